"""Captures: frames on their way into a file."""

from __future__ import annotations

import os
from typing import Any

from ..model import DropReason
from ._core import ffi, lib
from .port import Port
from .results import allocated, check

MAX_TAPS: int = lib.MV_MAX_TAPS
"""Captures that one port can have at once."""


def _comments() -> Any:
    """What captures say about frames that were dropped."""
    comments = ffi.new("struct mv_comments *")
    for reason in DropReason:
        comments.text[reason] = f"dropped: {reason.name.lower()}".encode()
    return comments


class CaptureRing:
    """Frames of some ports on their way into a file; `capture.c` says what is recorded and how.

    Args:
        room: bytes that may wait to be taken; what finds no room is lost, and counted so.
        snaplen: bytes of each frame at most.

    Raises:
        OSError: no descriptor is left.
        CoreError: out of memory.
    """

    PIECE = 1 << 17
    """Bytes that are taken at once at most; the largest block is half of it."""

    def __init__(self, room: int, snaplen: int) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there is something to `take` where nothing was."""
        try:
            handle = lib.mv_capture_new(room, snaplen, self.fd, _comments())
            self._handle = allocated("capture", handle)
        except BaseException:
            os.close(self.fd)
            raise
        self._buffer = ffi.new("uint8_t[]", self.PIECE)
        self._ports: set[Port] = set()

    def tap(self, port: Port) -> int:
        """Record what the guest of this port sends and receives from now on.

        Returns:
            The number of its interface in the file, counted from 0.

        Raises:
            CoreError: it is recorded already, or has four captures.
        """
        number = check("capture", lib.mv_capture_tap(self._handle, port._handle))
        self._ports.add(port)
        port._captures += (self,)
        return number

    def untap(self, port: Port) -> None:
        """Record nothing of it any more. A port that closes does this itself."""
        if port in self._ports:
            lib.mv_capture_untap(self._handle, port._handle)
            self._ports.remove(port)
            port._captures = tuple(ring for ring in port._captures if ring is not self)

    def untap_all(self) -> None:
        """The same for all ports."""
        for port in list(self._ports):
            self.untap(port)

    def take(self, most: int = PIECE) -> bytes:
        """Whole blocks that wait, oldest first, of `most` bytes and `PIECE` at most."""
        n = lib.mv_capture_take(self._handle, self._buffer, min(most, self.PIECE))
        return bytes(ffi.buffer(self._buffer, n))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return bool(lib.mv_capture_is_empty(self._handle))

    def lose(self, interface: int, frames: int) -> None:
        """So many frames of an interface, in blocks that were taken, come into no file."""
        lib.mv_capture_lose(self._handle, interface, frames)

    def lose_waiting(self) -> None:
        """Throw away what waits, and count it as lost."""
        lib.mv_capture_lose_waiting(self._handle)

    def counts(self, interface: int) -> tuple[int, int]:
        """Frames of an interface so far, and those of them that were lost."""
        seen, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.mv_capture_counts(self._handle, interface, seen, lost)
        return seen[0], lost[0]

    def totals(self) -> tuple[int, int]:
        """The same of all interfaces together."""
        seen, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.mv_capture_totals(self._handle, seen, lost)
        return seen[0], lost[0]

    def close(self) -> None:
        """End it; what waits is lost. May be called again."""
        if self._handle == ffi.NULL:
            return
        self.untap_all()
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_capture_free(handle)
        os.close(self.fd)
