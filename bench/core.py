"""How many frames a second the ring core moves, alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import attrs

from mvirt_net.ffi import NextStep, Port
from tests.harness.memory import Region
from tests.harness.virtio import VIRTIO_NET_HDR_SIZE
from tests.unit.rig import EVENT_IDX, VERSION_1, open_rig

from .ceiling import Ceiling, compiled
from .figures import Row, Scale, Table, ratio, spread, take_turns
from .guest import BUFFERS, MAX_FRAME, MIN_FRAME, Ring, dropped
from .processes import BenchError

RING_SIZE = 32768
BACKLOG = 256
"""Frames that a port keeps at most, so what one flush moves."""
LOOKED_AT = VIRTIO_NET_HDR_SIZE + 64
"""Bytes that the core copies of a frame before it knows what to do with it."""

COLUMNS = ("Mframes/s", "ns a frame", "peer's ns", "÷ peer", "± %")
NOTES = (
    f"One core, no daemon; rings of {RING_SIZE} entries that name {BUFFERS} buffers.",
    "Processor time. Peer: a loop in C that makes the same accesses to guest memory, unchecked.",
)


@attrs.frozen
class Subject:
    """A port, and a device that trusts its driver, on the same two rings."""

    port: Port
    rx: Ring
    tx: Ring
    rx_ceiling: Ceiling
    tx_ceiling: Ceiling


@contextmanager
def open_subject() -> Iterator[Subject]:
    """Running rings, RX with room."""
    regions = [Region(0, 8 << 20)]
    with (
        open_rig(features=VERSION_1 | EVENT_IDX, size=RING_SIZE, regions=regions) as rig,
        compiled() as library,
    ):
        rig.start()
        rx, tx = Ring(rig.rx), Ring(rig.tx)
        rx.make_room()
        yield Subject(rig.port, rx, tx, Ceiling(*library, rig.rx), Ceiling(*library, rig.tx))


def take(subject: Subject, size: int, count: int) -> float:
    """The core takes full rings of frames and drops them: ns a frame."""
    tx = subject.tx
    tx.load(dropped(size))
    spent = 0
    for _ in range(count // RING_SIZE):
        tx.give(RING_SIZE, call=False)
        begin = time.thread_time_ns()
        while subject.port.drain().next is NextStep.CALL_AGAIN:
            pass
        spent += time.thread_time_ns() - begin
    if tx.outstanding():
        raise BenchError("the core left frames in the TX ring")
    return spent / count


def take_trusting(subject: Subject, size: int, count: int) -> float:
    """The peer takes as many: ns a frame."""
    subject.tx.load(dropped(size))
    begin = time.thread_time_ns()
    for _ in range(count // RING_SIZE):
        subject.tx_ceiling.take(RING_SIZE, min(LOOKED_AT, VIRTIO_NET_HDR_SIZE + size))
    return (time.thread_time_ns() - begin) / count


def deliver(subject: Subject, size: int, count: int, *, enqueue: bool) -> float:
    """The core delivers frames, a backlog at a time: ns a frame.

    Args:
        enqueue: count what it takes to put them into the backlog too.
    """
    frame = bytes(size)
    port, spent = subject.port, 0
    for _ in range(count // BACKLOG):
        subject.rx.give(BACKLOG, call=False)
        begin = time.thread_time_ns()
        for _ in range(BACKLOG):
            port.enqueue(frame)
        if not enqueue:
            begin = time.thread_time_ns()
        while port.flush() is NextStep.CALL_AGAIN:
            pass
        spent += time.thread_time_ns() - begin
    if subject.rx.outstanding() or port.backlog:
        raise BenchError("the core did not deliver everything")
    return spent / count


def deliver_trusting(subject: Subject, size: int, count: int) -> float:
    """The peer delivers as many: ns a frame."""
    begin = time.thread_time_ns()
    for _ in range(count // BACKLOG):
        subject.rx_ceiling.give(BACKLOG, VIRTIO_NET_HDR_SIZE + size)
    return (time.thread_time_ns() - begin) / count


def ring_core(scale: Scale) -> Table:
    """The table of what C does alone; only "enqueue" crosses the FFI for each frame."""
    rows = []
    with open_subject() as subject:
        for size in (MIN_FRAME, MAX_FRAME):
            ours = partial(take, subject, size, scale.frames)
            trusting = partial(take_trusting, subject, size, scale.frames)
            rows.append(_row(f"take a frame of {size} B, drop it", ours, trusting, scale.rounds))
        for size in (MIN_FRAME, MAX_FRAME):
            trusting = partial(deliver_trusting, subject, size, scale.frames)
            for enqueue, name in ((False, "deliver"), (True, "enqueue and deliver")):
                ours = partial(deliver, subject, size, scale.frames, enqueue=enqueue)
                rows.append(_row(f"{name} a frame of {size} B", ours, trusting, scale.rounds))
    return Table("core", "The ring core alone", COLUMNS, rows, NOTES)


def _row(name: str, ours: Callable[[], float], trusting: Callable[[], float], rounds: int) -> Row:
    costs = take_turns({"ours": ours, "peer": trusting}, rounds)
    cost = statistics.median(costs["ours"])
    cells = {
        "Mframes/s": 1000 / cost,
        "ns a frame": cost,
        "peer's ns": statistics.median(costs["peer"]),
        "÷ peer": ratio(costs["ours"], costs["peer"]),
        "± %": spread(costs["ours"]),
    }
    return Row(name, cells)
