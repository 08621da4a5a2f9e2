"""Standard error, whose trouble is never that of the network.

**Theory of operation.** The log is written from the event loop, so a write that fails must not end
anything, and one that waits must not hold up packets: the disk may be full, the reader gone or
asleep. What cannot be written is lost, counted, and the log says how much as soon as it can.

Nothing here waits, but for `PATIENCE`, since a burst of lines may well outrun a reader that is
awake. A reader that has not moved in that time is not waited for again until it does. Writes
to pipes and terminals cannot wait by themselves: they are opened anew for O_NONBLOCK to be ours
alone, and not that of all who share the open file. A socket that is writable takes `_PIECE` bytes.
Only a file may keep us waiting, for as long as its file system does.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE = 20
"""Milliseconds that a reader has to make room."""

_STDERR = 2
_PIECE = select.PIPE_BUF
"""Bytes that a pipe or socket takes at once when it takes any."""


class _LossyWriter(io.RawIOBase):
    """Writes what can be written to `fd` and counts what cannot; `write` never raises.

    Each write is a line or several. One that was begun is finished before another is written.
    """

    def __init__(self, fd: int) -> None:
        self.lost = 0
        """Writes of which nothing was written."""
        self._fd = _own_description(fd)
        self._is_own = self._fd != fd
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._rest = b""
        """Of a write that was begun."""
        self._stuck = False
        """Whether the reader had its chance, and has not moved since."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._is_own and not self.closed:
            os.close(self._fd)
        super().close()

    def write(self, data: ReadableBuffer) -> int:
        lines = bytes(data)
        self._rest = self._rest[self._put(self._rest) :]
        taken = 0 if self._rest else self._put(lines)
        if taken:
            self._rest = lines[taken:]
        else:
            self.lost += 1
        return len(lines)

    def _put(self, data: bytes) -> int:
        """How many bytes of the beginning of `data` were written."""
        taken = 0
        while taken < len(data) and self._has_room():
            try:
                taken += os.write(self._fd, data[taken : taken + _PIECE])
            except OSError:
                break
        return taken

    def _has_room(self) -> bool:
        """Whether a write would not wait; errors count as room, for the write to meet them."""
        ready = bool(self._poll.poll(0 if self._stuck else PATIENCE))
        self._stuck = not ready
        return ready


class LossyStderr(io.TextIOWrapper):
    """Takes the place of `sys.stderr`.

    Args:
        fd: where to write; it stays the caller's.
    """

    def __init__(self, fd: int = _STDERR) -> None:
        self._writer = _LossyWriter(fd)
        super().__init__(
            self._writer,  # type: ignore[arg-type]  # it takes all there is, as a buffer does
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._writer.lost

    @lost.setter
    def lost(self, lines: int) -> None:
        self._writer.lost = lines


def use_lossy_stderr() -> None:
    """Let no failure to write to standard error get in the way of the process, from here on.

    Nor one to be closed: the next socket would take its number, and get what is meant for it.
    """
    for fd in range(_STDERR + 1):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stderr = LossyStderr()


def _own_description(fd: int) -> int:
    """A pipe or terminal opened anew; `fd` itself if it is neither or may not be opened."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            pass
    return fd
