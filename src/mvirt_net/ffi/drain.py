"""What drains of TX rings leave to do."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import attrs

from ..model import IcmpError, PuntKind
from ._core import ffi, lib
from .results import NextStep, allocated

if TYPE_CHECKING:
    from .port import Port


@attrs.frozen
class Punt:
    """A frame for the slow path, copied out of guest memory, without virtio_net_hdr."""

    kind: PuntKind
    frame: bytes
    error: IcmpError = IcmpError.TIME_EXCEEDED
    """Of an ICMP_ERROR: what its sender is to hear."""
    mtu: int = 0
    """Of an ICMP_ERROR for being TOO_BIG: what it was too big for, in bytes."""


@attrs.frozen
class Drained:
    """What one drain of the TX ring left to do."""

    next: NextStep
    punts: list[Punt]
    woken: list[tuple[Port, int]]
    """Pairs of ports that have frames waiting now, or whose RX ring has broken: to be flushed."""


def work_of(kind: PuntKind, size: int) -> float:
    """Microseconds that the services take at most for a frame of `size` bytes."""
    return lib.mv_punt_work(kind, size) / 1e3  # type: ignore[no-any-return]


def copy_punts(drained: Any, view: memoryview) -> list[Punt]:
    """Copies of the punts whose bytes are in `view`."""
    punts = []
    for i in range(drained.n_punts):
        entry = drained.punts[i]
        frame = bytes(view[entry.offset : entry.offset + entry.length])
        punts.append(Punt(PuntKind(entry.kind), frame, IcmpError(entry.error), entry.mtu))
    return punts


class _DrainRoom(threading.local):
    """What a thread needs to drain or to read counters, and where that leaves what it found, which
    is nothing between two calls.
    """

    def __init__(self) -> None:
        self.worker = ffi.gc(allocated("worker", lib.mv_worker_new()), lib.mv_worker_free)
        self.buffer = ffi.new("uint8_t[]", lib.MV_PUNT_BYTES)
        self.view = memoryview(ffi.buffer(self.buffer))
        self.drained = ffi.new("struct mv_drained *")
        self.stats = ffi.new("struct mv_stats *")


drain_room = _DrainRoom()
