"""``mvirt-net serve --config`` as a child process, the way a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

START_SECONDS = 30
"""Deadline from the start to readiness, on a busy machine."""
STOP_SECONDS = 5
"""What the daemon promises: from SIGTERM to its end."""


class DaemonError(Exception):
    """The daemon did not start or not stop; the text holds its log."""


@attrs.define(eq=False)
class Daemon:
    """The daemon on one configuration, started and ended any number of times.

    Made by `run_daemon`.
    """

    config: Path
    log: Path
    """Where the stderr of all its processes goes."""
    options: Sequence[str] = ()
    """What else each process is told."""
    _process: trio.Process | None = None

    async def start(self) -> None:
        """Start a process and wait until it is ready (``--ready-fd``)."""
        ready, ready_of_daemon = os.pipe()
        stream = trio.lowlevel.FdStream(ready)
        async with stream:
            try:
                self._process = await self._open(ready_of_daemon)
            finally:
                os.close(ready_of_daemon)
            with trio.move_on_after(START_SECONDS):
                if await stream.receive_some(16):
                    return
        raise DaemonError(f"not ready\n{self._log_text()}")

    async def stop(self) -> int:
        """End the process by SIGTERM; returns its exit status."""
        if self._process is None:
            raise DaemonError("not running")
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_SECONDS):
            return await self._wait(self._process)
        raise DaemonError(f"still there {STOP_SECONDS} s after SIGTERM\n{self._log_text()}")

    async def kill(self) -> None:
        """End the process by SIGKILL, if there is one."""
        if self._process is not None:
            self._process.kill()
            with trio.CancelScope(shield=True):
                await self._wait(self._process)

    def mapped_memfds(self) -> int:
        """How many pieces of guests' memory the process has mapped."""
        if self._process is None:
            raise DaemonError("not running")
        maps = Path(f"/proc/{self._process.pid}/maps").read_text()
        return maps.count("memfd:memory-backend-memfd")

    async def _open(self, ready_fd: int) -> trio.Process:
        # Beside the Python that runs: what `pip install .` has put into this environment.
        program = Path(sys.executable).with_name("mvirt-net")
        command = [str(program), "serve", "--config", str(self.config), *self.options]
        with self.log.open("ab") as log:
            return await trio.lowlevel.open_process(
                [*command, "--ready-fd", str(ready_fd)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_fd],
            )

    async def _wait(self, process: trio.Process) -> int:
        status = await process.wait()
        self._process = None
        return status

    def _log_text(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@asynccontextmanager
async def run_daemon(config: Path, *options: str) -> AsyncIterator[Daemon]:
    """The daemon, ready; whatever runs of it at the end is killed.

    An exception that leaves the block gets the end of the daemon's log as a note.

    Args:
        config: the configuration file; the log is written beside it.
        options: of ``serve``, besides.
    """
    daemon = Daemon(config, config.with_suffix(".log"), options)
    try:
        await daemon.start()
        yield daemon
    except Exception as error:
        error.add_note(f"--- end of {daemon.log.name} ---\n{daemon._log_text()}")
        raise
    finally:
        await daemon.kill()
