"""The whole terminal, for as long as it is needed, with plain control sequences (ECMA-48, xterm).

**Theory of operation.** `Screen` takes the terminal in ``__enter__`` and gives it back in
``__exit__`` as it was: cursor, wrapping, the other screen's contents, what keys do. No signal may
end the process in between, so those that would are only noted: their numbers arrive, with the keys
and with what threads have to say, at one place, `wait`. Only SIGKILL leaves the terminal as it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Sequence
from typing import Any, Self

import attrs

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The other screen, no cursor, no wrapping."""
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_REST_OF_LINE = "\x1b[K"

UP, DOWN, PAGE_UP, PAGE_DOWN = "\u2191\u2193\u21de\u21df"
"""What those keys are in `Happened.keys`, where every key is a character."""
_KEYS = {"[A": UP, "OA": UP, "[B": DOWN, "OB": DOWN, "[5~": PAGE_UP, "[6~": PAGE_DOWN}
_ESCAPED = re.compile(r"\x1b(\[[0-;]*.|O.|.)?")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTED = (*ENDING, signal.SIGWINCH, signal.SIGTSTP)


@attrs.frozen
class Happened:
    """What `Screen.wait` has seen."""

    keys: str = ""
    signals: frozenset[int] = frozenset()
    hung_up: bool = False
    """There is nobody at the terminal any more."""


class Screen:
    """The terminal of standard input and output; a context manager.

    Standard output is a terminal. If standard input is none, there are no keys.
    """

    def __init__(self) -> None:
        self._out = sys.stdout.fileno()
        self._keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._ringer.fileno(), warn_on_full_buffer=False)
        for number in _NOTED:
            self._handlers[number] = signal.signal(number, _note)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc_info: object) -> None:
        try:
            # The terminal may be what has failed.
            with contextlib.suppress(OSError, termios.error):
                self._give_back()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._bell.close()
            self._ringer.close()

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines` in the place of what is there. Raises OSError when the terminal is gone."""
        self._write(_HOME + "\r\n".join(f"{line}{_REST_OF_LINE}" for line in lines) + "\x1b[J")

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines, at the moment."""
        return os.get_terminal_size(self._out)

    def ring(self) -> None:
        """Have `wait` return; from any thread, even when the screen has been left."""
        with contextlib.suppress(OSError):
            self._ringer.send(b"\0")

    def wait(self, seconds: float) -> Happened:
        """Until something happens, or for that long."""
        sources: list[int] = [self._bell.fileno()]
        if self._keyboard is not None:
            sources.append(self._keyboard)
        ready, _, _ = select.select(sources, [], [], max(0.0, seconds))
        signals = frozenset(self._bell.recv(4096)) if self._bell.fileno() in ready else frozenset()
        if self._keyboard not in ready:
            return Happened("", signals)
        keys = self._read_keys()
        return Happened(keys, signals, hung_up=not keys)

    def stop(self) -> None:
        """Give the terminal back and stop, as ^Z asks; go on when the shell says so."""
        self._give_back()
        signal.raise_signal(signal.SIGSTOP)
        self._take()

    def _read_keys(self) -> str:
        """Those that were pressed; none when the terminal is gone."""
        assert self._keyboard is not None
        try:
            keys = os.read(self._keyboard, 256).decode("ascii", "replace")
        except OSError:
            return ""
        # Keys that say nothing here are still there, as nobody is not.
        return _ESCAPED.sub(lambda match: _KEYS.get(match[1], "\0"), keys)

    def _take(self) -> None:
        if self._keyboard is not None:
            self._modes = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard)
        self._write(ENTER)

    def _give_back(self) -> None:
        modes, self._modes = self._modes, None
        try:
            self._write(LEAVE)
        finally:
            if self._keyboard is not None and modes is not None:
                # What was typed ahead was for us.
                termios.tcsetattr(self._keyboard, termios.TCSAFLUSH, modes)

    def _write(self, text: str) -> None:
        rest = text.encode(errors="replace")
        while rest:
            rest = rest[os.write(self._out, rest) :]


def _note(_number: int, _frame: object) -> None:
    """That it came is written to the wakeup descriptor."""
