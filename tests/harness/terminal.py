"""A program on a terminal of its own, as its user sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CONTROL = re.compile(rb"\x1b\[[?0-9;]*[A-Za-z]")
"""A control sequence."""


class Terminal:
    """The user's end of a pseudo-terminal; made by `on_terminal`."""

    def __init__(self, process: subprocess.Popen[bytes], user: int, program: int) -> None:
        self.process = process
        self._user = user
        self._program = program
        self._unread = b""

    def type(self, keys: bytes) -> None:
        os.write(self._user, keys)

    def expect(self, text: bytes) -> bytes:
        """All that is written up to and with `text`, which must come."""
        while text not in self._unread:
            try:
                data = os.read(self._user, 4096)
            except OSError:
                data = b""
            assert data, f"no {text!r} in {self._unread!r}"
            self._unread += data
        seen, _, rest = self._unread.partition(text)
        self._unread = rest
        return seen + text

    def resize(self, columns: int, lines: int) -> None:
        set_size(self._user, columns, lines)

    def modes(self) -> list[Any]:
        """What the terminal does with keys and output (termios(3))."""
        return termios.tcgetattr(self._program)

    def wait_stopped(self) -> None:
        """Until the program has stopped, as by ^Z."""
        _pid, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def hang_up(self) -> None:
        """The window is closed."""
        os.close(self._user)
        self._user = -1

    def close(self) -> None:
        for fd in (self._user, self._program):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def on_terminal(
    command: Sequence[str], env: Mapping[str, str], *, columns: int = 100, lines: int = 12
) -> Iterator[Terminal]:
    """A program whose controlling terminal is a new one; killed at the end of the block."""
    user, program = pty.openpty()
    set_size(user, columns, lines)
    process = subprocess.Popen(
        command,
        stdin=program,
        stdout=program,
        stderr=program,
        env={**env, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    terminal = Terminal(process, user, program)
    with process:
        try:
            yield terminal
        finally:
            process.kill()
            terminal.close()


def set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Python starts programs without SIGPIPE; a shell does not.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
