"""``mvirt-net`` as a child process, as seen by a user: its ready line, its log, its end.

A process is waited for by what it does, and each test is under the time limit of all tests, so
nothing here sleeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import trio

from .client import VhostTestClient
from .config import one_network
from .packets import (
    GATEWAY_IP,
    GATEWAY_MAC,
    arp_request,
    dhcp_discover,
    ethernet_frame,
    is_arp_reply,
    is_dhcp_response,
)

STOP_SECONDS = 30
"""For a stop on a machine that stands still now and then. What the daemon promises, its own limit
enforces (`STOP_TIME_LIMIT`), and the exit code tells whether it had to."""

GET_FEATURES = 1
MAC = "52:54:00:12:34:56"
UNKNOWN = ethernet_frame(GATEWAY_MAC, bytes.fromhex(MAC.replace(":", "")), 0x88B5, bytes(50))
"""A frame of a protocol that nobody knows, from the guest with that address."""
NOBODY = pwd.getpwnam("nobody")

CONFIG = one_network(vm1={}, vm2={})


WITHOUT_RIGHTS = """
import os, sys
from mvirt_net.cli import main, serve, single
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(main())
"""
"""A program for `started`: as nobody, whoever starts it, but only once it is loaded, for Python and
its modules may lie where only root may read."""


class Daemon:
    """A running ``mvirt-net``; `log` reads its stderr, one JSON object a line."""

    def __init__(self, process: subprocess.Popen[str], ready: IO[bytes]) -> None:
        self.process = process
        self._ready = ready

    def wait_ready(self) -> None:
        """Until its ready line; everything after it must be the end of the pipe."""
        line = self._ready.read()
        assert line == b"ready\n", self.process.communicate()

    def wait_unready(self) -> None:
        """Until it has closed the descriptor of its ready line without one."""
        assert self._ready.read() == b""

    def wait_event(self, event: str) -> dict[str, Any]:
        """The next line of the log that says `event`."""
        stderr = cast(IO[str], self.process.stderr)
        seen = []
        for line in stderr:
            record = cast(dict[str, Any], json.loads(line))
            if record["event"] == event:
                return record
            seen.append(line)
        raise AssertionError(f"no {event!r} in {seen}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def send_to_child(self, number: int) -> None:
        """Send a signal to the daemon when its `wrapper` is what was started."""
        pid = self.process.pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(child), number)

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()


@contextlib.contextmanager
def started(
    *args: str,
    command: Sequence[str] = ("-m", "mvirt_net"),
    wrapper: Sequence[str] = (),
    python: str | Path = sys.executable,
    fd: int | None = None,
    **options: Any,
) -> Iterator[Daemon]:
    """A daemon that is killed at the end of the block if it is still there.

    Args:
        args: its arguments.
        command: what Python runs.
        wrapper: a program, with its arguments, that runs Python.
        python: the Python.
        fd: a descriptor to hand down.
        options: for Popen.
    """
    ready, ready_of_daemon = os.pipe()
    fds = [ready_of_daemon] if fd is None else [ready_of_daemon, fd]
    reporting = ("--ready-fd", str(ready_of_daemon), "--log-format", "json")
    with os.fdopen(ready, "rb") as reader:
        try:
            process = subprocess.Popen(
                [*wrapper, python, *command, *args, *reporting],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                **{"stderr": subprocess.PIPE, **options},
            )
        finally:
            os.close(ready_of_daemon)
        with process:
            try:
                yield Daemon(process, reader)
            finally:
                process.kill()


def activator(*paths: Path) -> tuple[str, ...]:
    """A wrapper that listens, and becomes the daemon when somebody connects."""
    listen = (f"--listen={path}" for path in paths)
    names = ":".join(path.stem for path in paths)
    # By itself it hands nothing on of what Python and the sanitizers may need.
    environment = (f"--setenv={name}={value}" for name, value in os.environ.items())
    return ("systemd-socket-activate", *listen, f"--fdname={names}", *environment)


def serve(folder: Path, text: str) -> tuple[str, ...]:
    """Arguments that serve a configuration of this text, with all files in `folder`."""
    path = folder / "x.toml"
    path.write_text(text)
    return ("serve", "--config", str(path), "--socket-dir", str(folder))


def two_nics(folder: Path) -> tuple[str, ...]:
    """Arguments that serve the NICs of `CONFIG`."""
    return serve(folder, CONFIG)


def single(path: Path) -> tuple[str, ...]:
    """Arguments that serve one NIC at `path`."""
    return ("--socket-path", str(path), "--address", "10.0.0.5")


@contextlib.contextmanager
def notified(
    folder: Path, *, abstract: bool = False
) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A service manager's socket, and the environment in which the daemon finds it."""
    name = f"{folder}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        yield manager, {**os.environ, "NOTIFY_SOCKET": f"@{name}" if abstract else name}


def run_failing(*args: str, **options: Any) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a daemon that does not start."""
    with started(*args, **options) as daemon:
        _, stderr = daemon.process.communicate()
        return daemon.process.returncode, stderr.splitlines()


def ask_features(frontend: socket.socket) -> None:
    """One request and its reply, by which the daemon knows a frontend."""
    frontend.sendall(struct.pack("<III", GET_FEATURES, 1, 0))
    request, _flags, size = struct.unpack("<III", frontend.recv(12))
    assert request == GET_FEATURES
    assert len(frontend.recv(size)) == 8


HOT = ("--busy-poll", "1000000")
"""Arguments with which a guest that sends one frame after another makes its ring hot."""


async def make_hot(client: VhostTestClient) -> None:
    """Send frames that nobody answers until a worker must have taken the ring, given `HOT`."""
    for _ in range(100):
        await client.send_packet(UNKNOWN)


async def serves_a_guest(nursery: trio.Nursery, path: Path) -> None:
    """ARP and DHCP, which take the ring, the slow path and dpkt."""
    client = await VhostTestClient.connect(nursery, path)
    await client.send_packet(arp_request(MAC, "10.0.0.5", GATEWAY_IP))
    assert is_arp_reply(await client.recv_packet())
    await client.send_packet(dhcp_discover(MAC, 1))
    assert is_dhcp_response(await client.recv_packet())
    await client.aclose()
