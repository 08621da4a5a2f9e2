"""What one call of the ring core from Python costs at least."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import attrs

from .core import Subject, open_subject
from .figures import Row, Scale, Table, ratio, spread, take_turns
from .guest import ARP, MIN_FRAME, Ring, dropped

COLUMNS = ("µs", "÷ peer", "± %")
NOTES = ("From Python, through the FFI. Some 0.1 µs of each are the clock's.",)
PEER = "peer: a call that does nothing"


def _nothing() -> None:
    """Around a call that needs no preparation."""


@attrs.frozen
class Call:
    """A call, and what must be done around it that does not count.

    Args:
        load: the frame in the TX buffers.
    """

    what: Callable[[], object]
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing
    load: bytes | None = None

    def measure(self, tx: Ring, count: int) -> float:
        """ns of the median call."""
        if self.load is not None:
            tx.load(self.load)
        costs = []
        for _ in range(count):
            self.before()
            begin = time.perf_counter_ns()
            self.what()
            costs.append(time.perf_counter_ns() - begin)
            self.after()
        return statistics.median(costs)


def calls(scale: Scale) -> Table:
    """The table of the calls, with one frame or none."""
    with open_subject() as subject:
        subjects = {
            name: partial(call.measure, subject.tx, scale.echoes)
            for name, call in _calls(subject).items()
        }
        results = take_turns(subjects, scale.rounds)
    rows = []
    for name, costs in results.items():
        cells = {
            "µs": statistics.median(costs) / 1000,
            "÷ peer": ratio(costs, results[PEER]),
            "± %": spread(costs),
        }
        rows.append(Row(name, cells))
    return Table("calls", "One call of the core", COLUMNS, rows, NOTES)


def _calls(subject: Subject) -> dict[str, Call]:
    port, rx, tx = subject.port, subject.rx, subject.tx
    enqueue = partial(port.enqueue, bytes(MIN_FRAME))
    one_taken = partial(tx.give, 1, call=False)
    # A second each, so that services have time for all.
    clock = itertools.count()

    def one_to_deliver(*, call: bool) -> None:
        rx.give(1, call=call)
        enqueue()

    def deliver() -> None:
        rx.give(1, call=False)
        port.flush()

    return {
        PEER: Call(lambda: port.backlog),
        "drain, ring empty": Call(port.drain),
        "drain, one frame to drop": Call(port.drain, one_taken, load=dropped(MIN_FRAME)),
        "drain, one frame for a service": Call(
            lambda: port.drain(next(clock)), one_taken, load=ARP
        ),
        "enqueue": Call(enqueue, after=deliver),
        "flush, one frame": Call(port.flush, partial(one_to_deliver, call=False)),
        "flush, one frame, call": Call(port.flush, partial(one_to_deliver, call=True)),
        "stats": Call(port.stats),
    }
