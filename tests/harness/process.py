"""The daemon as a real process of its own.

A process is waited for by what it does (its ready line, its log, its end), never by time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

STOP_SECONDS = 30
"""For a stop on a machine that stands still now and then. What the daemon promises, its own limit
enforces (`STOP_TIME_LIMIT`), and the exit code tells whether it had to."""

CONFIG = """
[[network]]
name = "blue"
ipv4_subnet = "10.0.0.0/24"
[[nic]]
name = "vm1"
network = "blue"
[[nic]]
name = "vm2"
network = "blue"
"""


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

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.send(number)
        return self.wait()


@contextlib.contextmanager
def started(
    *args: str, command: Sequence[str] = ("-m", "mvirt_net"), fd: int | None = None, **options: Any
) -> Iterator[Daemon]:
    """A daemon that is killed at the end of the block if it is still there.

    Args:
        args: its arguments.
        command: what Python runs.
        fd: a descriptor to hand down.
        options: for Popen.
    """
    ready, ready_of_daemon = os.pipe()
    fds = [ready_of_daemon] if fd is None else [ready_of_daemon, fd]
    reporting = ("--ready-fd", str(ready_of_daemon), "--log-format", "json")
    with os.fdopen(ready, "rb") as reader:
        try:
            process = subprocess.Popen(
                [sys.executable, *command, *args, *reporting],
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


def two_nics(folder: Path) -> tuple[str, ...]:
    """Arguments that serve the NICs of `CONFIG`, with all files in `folder`."""
    path = folder / "x.toml"
    path.write_text(CONFIG)
    return ("serve", "--config", str(path), "--socket-dir", str(folder))


def single(path: Path) -> tuple[str, ...]:
    """Arguments that serve one NIC at `path`."""
    return ("--socket-path", str(path), "--address", "10.0.0.5")


def run_failing(*args: str, **options: Any) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a daemon that does not start."""
    with started(*args, **options) as daemon:
        _, stderr = daemon.process.communicate()
        return daemon.process.returncode, stderr.splitlines()
