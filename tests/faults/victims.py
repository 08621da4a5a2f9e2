"""Frontends that are killed in the middle of what they say.

``python -m tests.faults.victims`` reads orders, one JSON object a line, and forks a frontend for
each, which says its part and kills itself; then it says so.
"""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn, cast

import attrs

from tests.harness.memory import create_memfd
from tests.harness.vhost_user import HEADER, Request

MEMORY_SIZE = 4 << 20
MEMORY_NAME = "/memfd:vhost-test-mem"
"""How a mapping of guest memory stands in /proc/PID/maps."""

_WITH_MEMORY = frozenset({Request.SET_MEM_TABLE, Request.ADD_MEM_REG})


@attrs.frozen
class Line:
    """A message of a conversation.

    Args:
        request, flags, payload: what it is.
        fds: how many descriptors it carries; of what kind, follows from the request.
        reply_size: bytes that answer it.
    """

    request: int
    flags: int
    payload: str
    fds: int
    reply_size: int

    @property
    def data(self) -> bytes:
        """The message."""
        payload = bytes.fromhex(self.payload)
        return HEADER.pack(self.request, self.flags, len(payload)) + payload


def speak(path: Path, lines: Sequence[Line], last_size: int, at_end: contextlib.ExitStack) -> None:
    """Connect and send all messages, of the last one only `last_size` bytes.

    Args:
        at_end: hangs up and gives everything back.
    """
    sock = at_end.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.connect(str(path))
    for line in lines[:-1]:
        _send(sock, line, len(line.data), at_end)
        _receive(sock, line.reply_size)
    last = lines[-1]
    _send(sock, last, last_size, at_end)
    if last_size == len(last.data):
        _receive(sock, last.reply_size)


def _send(sock: socket.socket, line: Line, size: int, at_end: contextlib.ExitStack) -> None:
    fds = [_descriptor(line.request, at_end) for _ in range(line.fds)]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([line.data[:size]], rights) == size


def _receive(sock: socket.socket, size: int) -> None:
    while size > 0:
        data = sock.recv(size)
        assert data, "the backend hung up"
        size -= len(data)


def _descriptor(request: int, at_end: contextlib.ExitStack) -> int:
    """Guest memory, mapped as a VMM has it, or an eventfd."""
    if request not in _WITH_MEMORY:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
    else:
        fd = create_memfd(MEMORY_SIZE)
        at_end.enter_context(contextlib.closing(mmap.mmap(fd, MEMORY_SIZE)))
    at_end.callback(os.close, fd)
    return fd


@attrs.define(eq=False)
class Victims:
    """The process that forks the victims, seen from the test; made by `victims`."""

    _process: subprocess.Popen[str]

    def speak(self, path: Path, lines: Sequence[Line], last_size: int) -> None:
        """As the function, by a process that is killed then."""
        order = [str(path), [attrs.astuple(line) for line in lines], last_size]
        stdin, stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        assert stdout.readline() == f"{-signal.SIGKILL}\n"


@contextlib.contextmanager
def victims() -> Iterator[Victims]:
    """The process that forks victims."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.victims"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with process:
        try:
            yield Victims(process)
        finally:
            process.kill()


def _main() -> None:
    for order in sys.stdin:
        pid = os.fork()
        if pid == 0:
            path, lines, last_size = json.loads(order)
            _be_victim(Path(path), [Line(*line) for line in lines], last_size)
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _be_victim(path: Path, lines: Sequence[Line], last_size: int) -> NoReturn:
    try:
        speak(path, lines, last_size, contextlib.ExitStack())
    except Exception:
        traceback.print_exc()
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived SIGKILL")


if __name__ == "__main__":
    _main()
