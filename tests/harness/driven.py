"""A daemon whose verbs a test calls from outside, over a socket pair of its own.

What the daemon serves to the world (gRPC, HTTP) has tests of its own. Here it is the verbs in a
process that is started, killed, sandboxed and told to reload like the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from .process import Daemon, started

_PROGRAM = """
import json, os, sys
import attrs, trio
from mvirt_net import cli, runner
import mvirt_net.cli.serve
from mvirt_net.control import ControlError

DROP_RIGHTS

def plain(value):
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not attrs.has(type(value)):
        return value
    spec = value.spec
    record = {"id": value.id, "name": spec.name, "error": value.error, "in_file": value.in_file}
    record["created_at"] = str(value.created_at)
    record["spec"] = {
        field.name: str(getattr(spec, field.name)) for field in attrs.fields(type(spec))
    }
    if hasattr(value, "state"):
        record["state"] = value.state.value
    return record

async def call(control, verb, args, kwargs):
    try:
        result = getattr(control, verb)(*args, **kwargs)
        return ["done", plain(await result if hasattr(result, "__await__") else result)]
    except ControlError as error:
        return ["refused", [error.kind.name, error.message]]

async def answer(control):
    stream = trio.SocketStream(trio.socket.socket(fileno=int(os.environ["VERBS_FD"])))
    lines = b""
    async for part in stream:
        lines += part
        while b"\\n" in lines:
            line, lines = lines.split(b"\\n", 1)
            answer = await call(control, *json.loads(line))
            await stream.send_all(json.dumps(answer).encode() + b"\\n")

serve_alone = runner.serve
async def serve(config, *, on_control, **others):
    async with trio.open_nursery() as nursery:
        def take(control):
            on_control(control)
            nursery.start_soon(answer, control)
        await serve_alone(config, on_control=take, **others)
        nursery.cancel_scope.cancel()
runner.serve = serve
sys.exit(cli.main())
"""

_DROP_RIGHTS = """
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


class Verbs:
    """The verbs of a daemon: each attribute is one, and returns what it returned as JSON."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rw")

    def __getattr__(self, verb: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._file.write(json.dumps([verb, args, kwargs]) + "\n")
            self._file.flush()
            outcome, value = json.loads(self._file.readline())
            if outcome == "refused":
                raise RefusedError(*value)
            return value

        return call

    def close(self) -> None:
        self._file.close()


class RefusedError(Exception):
    """A verb was refused: kind and message."""


@contextlib.contextmanager
def driven(
    *args: str, as_nobody: bool = False, wrapper: Sequence[str] = ()
) -> Iterator[tuple[Daemon, Verbs]]:
    """A daemon that serves, and its verbs; killed at the end of the block if it is still there.

    Args:
        args: its arguments.
        as_nobody: without rights, whoever starts it.
        wrapper: a program, with its arguments, that runs it.
    """
    ours, theirs = socket.socketpair()
    program = _PROGRAM.replace("DROP_RIGHTS", _DROP_RIGHTS if as_nobody else "")
    with ours, theirs:
        environ = {**os.environ, "VERBS_FD": str(theirs.fileno())}
        how: dict[str, Any] = {"wrapper": wrapper, "fd": theirs.fileno(), "env": environ}
        with started(*args, command=("-c", program), **how) as daemon:
            theirs.close()
            if wrapper:
                # It may keep the descriptor of the ready line open.
                daemon.wait_event("serving")
            else:
                daemon.wait_ready()
            verbs = Verbs(ours)
            try:
                yield daemon, verbs
            finally:
                verbs.close()
