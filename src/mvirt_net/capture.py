"""Frames of NICs into a pcapng file, while they run.

**Theory of operation.** The core copies frames into a ring (``ffi/capture.c``) and never waits; a
task takes whole blocks out of it and has a thread write them, so that a slow disk or reader costs
frames of the capture, not of guests. An interface is described in the file before the first of its
packets, because what waits to be written first is looked at before the ring is.

A file that cannot be written any more (disk full, reader gone) ends the capture: one line in the
log. It is cut back to its last whole block then, so what is there can be read. A write that hangs
at the end is left to its thread after `FLUSH_LIMIT`; the file is closed when the thread gets back.

In the end each frame that was seen is either in the file or counted as lost: also those for which
the limit left no room, and those that had been taken out of the ring when a write failed. A thread
that comes back too late takes from the file again what it has written (from a pipe it cannot).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from ._version import __version__
from .errors import ConfigError
from .ffi import MAX_FRAME, CaptureRing, Port, read_event, write_event
from .log import get_logger
from .model import NicSpec
from .pcapng import (
    frames_by_interface,
    interface_description,
    interface_statistics,
    section_header,
    whole_blocks,
)
from .turns import InTurns

ROOM = 4 << 20
"""Bytes that may wait to be written: 30 ms of a gigabit a second."""
MAX_CAPTURES = 16
"""Under way at once; `ROOM` is what each takes of memory."""
FLUSH_LIMIT = 1.0
"""Seconds that the last bytes may take to be written."""
MAX_INTERFACES = 65_536
"""NICs that come into one file, those that have gone included: 300 bytes of memory each."""

_log = get_logger(__name__)


@attrs.frozen
class Captured:
    """Frames that guests have sent and received while they were captured."""

    frames: int = 0
    lost: int = 0
    """Those of them that do not come into the file: it could not be written fast enough, or at all,
    or has no room for them by its limit."""

    def __add__(self, other: Captured) -> Captured:
        return Captured(self.frames + other.frames, self.lost + other.lost)


@attrs.frozen
class CaptureSpec:
    """A capture of all NICs, as `Switch.start_capture` takes it."""

    target: Path | str | int
    snaplen: int = MAX_FRAME
    limit: int | None = None
    name: str | None = None
    """What the log calls it; None: the target."""

    def __attrs_post_init__(self) -> None:
        check_bounds(self.snaplen, self.limit)


def check_bounds(snaplen: int, limit: int | None) -> None:
    """Raises ConfigError for what no capture can have; its key is the argument's name."""
    if not 1 <= snaplen <= MAX_FRAME:
        raise ConfigError("snaplen", f"not between 1 and {MAX_FRAME}")
    if limit is not None and limit < 1:
        raise ConfigError("limit", "not positive")


def open_capture_file(path: Path, *, anew: bool = True) -> int:
    """Make a file for a capture, which only its owner may read.

    Args:
        anew: one that is there is written anew, with the rights that it has; else it is an error.

    Raises:
        OSError: it cannot be made, or is a symbolic link, or a FIFO that nobody reads.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
    flags |= os.O_TRUNC if anew else os.O_EXCL
    # So that a FIFO without a reader is refused, instead of waited for.
    fd = os.open(path, flags | os.O_NONBLOCK, 0o600)
    os.set_blocking(fd, True)
    return fd


class _File:
    """A descriptor that is closed when nobody writes to it any more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._writing = threading.Lock()
        self._counting = threading.Lock()
        """Of `size` and `_closing`."""
        self._closing = False
        self.size = 0
        """Bytes of whole blocks that were written; stays as it is once the file is closed."""

    def write(self, blocks: bytes) -> None:
        """Write all of it, however long that takes; for a thread. Raises OSError."""
        try:
            with self._writing:
                self._write(blocks)
        finally:
            if self._closing:
                self.close()

    def _write(self, blocks: bytes) -> None:
        done = 0
        try:
            while done < len(blocks) and not self._closing:
                try:
                    done += os.write(self._fd, memoryview(blocks)[done:])
                except BlockingIOError:
                    writable = select.poll()
                    writable.register(self._fd, select.POLLOUT)
                    writable.poll()
        finally:
            self._cut_back(done - self._count(blocks, done))

    def _count(self, blocks: bytes, done: int) -> int:
        """How many bytes of what was written stay: whole blocks, none when it is too late."""
        whole = done if done == len(blocks) else whole_blocks(blocks, done)
        with self._counting:
            if self._closing:
                return 0
            self.size += whole
            return whole

    def _cut_back(self, rest: int) -> None:
        """Take so many bytes off the end."""
        if self._is_regular and rest:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - rest)

    def close(self) -> None:
        """Close it now, or when the thread has come back that writes. May be called again."""
        with self._counting:
            self._closing = True
        if not self._writing.acquire(blocking=False):
            return
        try:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
        finally:
            self._writing.release()


class Capture:
    """A capture under way; `Switch.start_capture` makes it.

    Args:
        fd: of the file; owned once `run` is started.
        name: what the log calls the file.
        snaplen, limit: as of `Switch.start_capture`.

    Raises:
        OSError: no descriptor is left, or `fd` is none.
        CoreError: out of memory.
    """

    def __init__(
        self, fd: int, name: str, *, snaplen: int, limit: int | None = None, room: int = ROOM
    ) -> None:
        self._file = _File(fd)
        self._name = name
        self._snaplen = snaplen
        self._limit = limit
        self._ring = CaptureRing(room, snaplen)
        self._waiting = bytearray(section_header(f"mvirt-net {__version__}"))
        """What is to be written before more is taken from the ring."""
        self._interfaces = 0
        self._started_ns = time.time_ns()
        self._captured: Captured | None = None
        self._stopping = False
        self._scope = trio.CancelScope(shield=True)
        self._limiter = trio.CapacityLimiter(1)
        self._ended = trio.Event()
        self._reason = ""

    @property
    def ended(self) -> bool:
        """Whether nothing is written any more."""
        return self._ended.is_set()

    @property
    def reason(self) -> str:
        """Why it has ended: one line; empty before."""
        return self._reason

    @property
    def name(self) -> str:
        """What the log calls the file."""
        return self._name

    @property
    def captured(self) -> Captured:
        """What it has seen so far."""
        if self._captured is not None:
            return self._captured
        return Captured(*self._ring.totals())

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._file.size

    def add(self, port: Port, spec: NicSpec) -> None:
        """Record a NIC, too, from now on. Nothing happens when the capture is at its end.

        Raises:
            CoreError: it is recorded already, or has four captures.
        """
        if self._stopping:
            return
        if self._interfaces == MAX_INTERFACES:
            self._stop("it has had too many NICs")
            write_event(self._ring.fd)
            return
        self._ring.tap(port)
        self._interfaces += 1
        addresses = [str(address) for address in (spec.ipv4_address, spec.ipv6_address) if address]
        self._waiting += interface_description(
            spec.name,
            ", ".join([f"network {spec.network}", *addresses]),
            snaplen=self._snaplen,
            mac=spec.mac_address.packed if spec.mac_address else None,
            ipv4=spec.ipv4_address,
            ipv6=spec.ipv6_address,
        )
        # What describes NICs does not wait in memory for packets.
        write_event(self._ring.fd)

    def abandon(self, *, close_file: bool) -> None:
        """Give up a capture that was never run."""
        self._stop("abandoned")
        frames, _lost = self._ring.totals()
        self._captured = Captured(frames, frames)
        self._ring.close()
        self._ended.set()
        if close_file:
            self._file.close()

    async def run(self, forget: Callable[[], object]) -> None:
        """Started by `Switch.start_capture`; ends by `aclose`, at the limit, or by a failed write.

        Args:
            forget: called when it is over.
        """
        _log.info("capture started", file=self._name, nics=self._interfaces)
        failure = ""
        with self._scope:
            try:
                await self._write_all()
            except (OSError, RuntimeError) as error:
                # A reader that goes when the capture was stopped anyway has had enough.
                if not (self._stopping and isinstance(error, BrokenPipeError)):
                    failure = _why(error)
            except Exception as error:
                # A bug costs the capture, not the NICs.
                failure = "internal error"
                _log.error("capture failed", file=self._name, exc_info=error)
        if self._scope.cancelled_caught:
            failure = "the file could not be written in time"
        self._finish(failure)
        forget()

    async def wait_ended(self) -> None:
        """Wait until nothing is written any more. A checkpoint."""
        await self._ended.wait()

    def stop(self) -> None:
        """Record nothing more; it ends with `aclose`. May be called again."""
        self._stop("closed")

    async def aclose(self) -> None:
        """End it: what was recorded is written, for a second at most, and the file closed.

        Carried through, cancelled or not. May be called again.
        """
        if not self._ended.is_set():
            self.stop()
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + FLUSH_LIMIT)
            write_event(self._ring.fd)
            with trio.CancelScope(shield=True):
                await self._ended.wait()
        await trio.lowlevel.checkpoint()

    def _stop(self, reason: str) -> None:
        """Record nothing more; the rest is still to be written."""
        if not self._stopping:
            self._stopping = True
            self._reason = reason
            self._ring.untap_all()

    async def _write_all(self) -> None:
        """Until the capture has been stopped, and all that it had recorded is written."""
        while True:
            await self._write_what_waits()
            if self._stopping:
                break
            await trio.lowlevel.wait_readable(self._ring.fd)
            read_event(self._ring.fd)
        # By the limit there may be some.
        self._ring.lose_waiting()
        await self._write(await self._statistics())

    async def _write_what_waits(self) -> None:
        while True:
            # Packets that are taken now are of interfaces that were described before.
            blocks = bytes(self._waiting)
            self._waiting.clear()
            room = CaptureRing.PIECE
            if self._limit is not None:
                room = max(0, min(room, self._limit - self.size - len(blocks)))
            blocks += self._ring.take(room)
            if not blocks:
                if not self._ring.is_empty:
                    self._stop("it has reached its limit")
                return
            await self._write(blocks)

    async def _write(self, blocks: bytes) -> None:
        before = self.size
        try:
            await trio.to_thread.run_sync(
                self._file.write, blocks, limiter=self._limiter, abandon_on_cancel=True
            )
        except BaseException:
            # From here on its size stays what it is.
            self._file.close()
            lost = frames_by_interface(blocks[self.size - before :])
            for interface, frames in lost.items():
                self._ring.lose(interface, frames)
            raise

    async def _statistics(self) -> bytes:
        now = time.time_ns()

        def block(interface: int) -> bytes:
            seen, lost = self._ring.counts(interface)
            return interface_statistics(
                interface, now, start_ns=self._started_ns, seen=seen, lost=lost
            )

        return b"".join([found async for found in InTurns(range(self._interfaces), block)])

    def _finish(self, failure: str) -> None:
        self._stop(failure)
        self._ring.lose_waiting()
        self._reason = failure or self._reason
        self._captured = self.captured
        self._ring.close()
        self._file.close()
        log = _log.warning if failure else _log.info
        log(
            "capture ended",
            file=self._name,
            reason=self._reason,
            **attrs.asdict(self._captured),
        )
        self._ended.set()


def _why(error: OSError | RuntimeError) -> str:
    """One line."""
    if isinstance(error, OSError) and error.errno:
        return "nobody reads any more" if error.errno == errno.EPIPE else os.strerror(error.errno)
    return str(error)
