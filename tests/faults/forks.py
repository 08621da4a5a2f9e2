"""Daemons by the dozen, from a process that has imported all there is to import.

That takes ten times as long as what the daemon then does at its start. ``python -m
tests.faults.forks`` reads orders, one JSON object a line, and forks a daemon for each; its standard
output says ``pid N`` at the start of one, ``ready`` as the daemon itself says it, ``exit N`` at its
end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NoReturn, cast

import attrs

from mvirt_net import cli, nic

from .shim import arm

_STDOUT, _STDERR, _READY_FD = 1, 2, 9


@attrs.define(eq=False)
class Forks:
    """That process, seen from the test; made by `forking`."""

    _process: subprocess.Popen[str]
    _unread: str = ""
    _pid: int | None = None
    """Of the daemon that has not been waited for."""

    def start(self, args: tuple[str, ...], stderr: Path, *, armed: bool) -> int:
        """Start a daemon; returns its process id.

        Args:
            stderr: a file or a pipe with a name, for its standard error.
            armed: its calls count from its first one on.
        """
        stdin = cast(IO[str], self._process.stdin)
        stdin.write(json.dumps([args, str(stderr), armed]) + "\n")
        stdin.flush()
        self._pid = self._number("pid")
        return self._pid

    def wait_ready(self) -> bool:
        """Wait until the daemon is ready; False when it has ended instead (ask `wait` then)."""
        line = self._line()
        self._unread = "" if line == "ready" else line
        return line == "ready"

    def wait(self) -> int:
        """The exit code of the daemon, once it has ended."""
        code = self._number("exit")
        self._pid = None
        return code

    def end(self) -> None:
        """End a daemon that has not been waited for, if there is one."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            while not self._line().startswith("exit"):
                pass
            self._pid = None

    def _line(self) -> str:
        line, self._unread = self._unread, ""
        return line or cast(IO[str], self._process.stdout).readline().rstrip()

    def _number(self, what: str) -> int:
        key, number = self._line().split()
        assert key == what
        return int(number)


@contextlib.contextmanager
def forking(environ: Mapping[str, str]) -> Iterator[Forks]:
    """The process that forks, with this environment."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.forks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=Path(__file__).parents[2],
    )
    with process:
        try:
            yield Forks(process)
        finally:
            process.kill()


def _main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _be_daemon(*json.loads(line))
        _, status = os.waitpid(pid, 0)
        _say("exit", os.waitstatus_to_exitcode(status))


def _be_daemon(args: list[str], stderr: str, armed: bool) -> NoReturn:
    _say("pid", os.getpid())
    fd = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, _STDERR)
    os.close(fd)
    os.dup2(_STDOUT, _READY_FD)
    # Hundreds of frontends come and go, and the tests go by what is said of each.
    nic.LINE_BURST = math.inf
    sys.argv[1:] = [*args, "--ready-fd", str(_READY_FD)]
    if armed:
        arm()
    sys.exit(cli.run())


def _say(what: str, number: int) -> None:
    os.write(_STDOUT, f"{what} {number}\n".encode())


if __name__ == "__main__":
    _main()
