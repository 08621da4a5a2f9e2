"""How long it takes until a kick is answered with a call, one at a time."""

from __future__ import annotations

import os
import select
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from .figures import Row, Scale, Table, quantile, ratio, spread, take_turns
from .guest import ARP, IPV4, MAC, MIN_FRAME, Guest, connected_guest, dropped, eventfd, ping
from .processes import (
    PATIENCE,
    BenchError,
    Place,
    Process,
    run_daemon,
    run_python,
    socket_path,
    two_processors,
)

PAUSE_NS = 100_000
"""Between a call and the next kick, so that the other end is asleep again. It is spent busily, for
the processor of this end shall stay awake."""

EPOLL = "peer: a bare epoll loop"
TRIO = "peer: a bare trio task"

COLUMNS = ("p50 µs", "p99 µs", "p50 ÷ trio", "p99 ÷ trio", "± %", "CPU µs", "CPU ÷ trio")
NOTES = (
    "From before the write of the kick to after the read of the call, on two cores.",
    "CPU: processor time of the other end for each, going to sleep again included.",
)


@attrs.frozen
class End:
    """The other end of the loop.

    Args:
        process: what it runs in.
        kick, call: its eventfds.
        begin_turn: called before a turn.
        give: called right before each kick, outside the time that is measured. Not before the
            pause: an end that is not asleep yet would take the frame without the kick.
    """

    process: Process
    kick: int
    call: int
    begin_turn: Callable[[], None] = lambda: None
    give: Callable[[], None] = lambda: None


@attrs.frozen
class Turn:
    """What one turn gave, in microseconds.

    Args:
        p50, p99: quantiles of the round trips.
        cpu: processor time of the other end for each.
    """

    p50: float
    p99: float
    cpu: float


def measure(end: End, count: int) -> Turn:
    """Kick and wait for the call, `count` times."""
    end.begin_turn()
    ready = select.poll()
    ready.register(end.call, select.POLLIN)
    before = end.process.cpu_seconds()
    times = [_round_trip(end, ready) for _ in range(count)]
    cpu = 1e6 * (end.process.cpu_seconds() - before) / count
    return Turn(quantile(times, 0.5), quantile(times, 0.99), cpu)


def _round_trip(end: End, ready: select.poll) -> float:
    pause_over = time.perf_counter_ns() + PAUSE_NS
    while time.perf_counter_ns() < pause_over:
        pass
    end.give()
    begin = time.perf_counter_ns()
    os.eventfd_write(end.kick, 1)
    # Two system calls, for the daemon has made the call eventfd non-blocking.
    if not ready.poll(PATIENCE * 1000):
        raise BenchError("a kick was not answered")
    os.eventfd_read(end.call)
    return (time.perf_counter_ns() - begin) / 1000


async def round_trips(scale: Scale) -> Table:
    """The table of the round trips; the daemon and its peers are processes of their own."""
    with TemporaryDirectory(prefix="mvirt-net-") as name, ExitStack() as stack:
        folder = Path(name)
        theirs = stack.enter_context(two_processors())
        ends = {EPOLL: _peer("epoll", theirs, stack), TRIO: _peer("trio", theirs, stack)}
        daemon = stack.enter_context(
            run_daemon(folder, 1, first=[Place(MAC, IPV4)], processors=theirs)
        )
        async with connected_guest(socket_path(folder, 0)) as guest:
            ends |= {
                "frame dropped in C → TX call": _completion(daemon, guest, dropped(MIN_FRAME)),
                "ARP request → RX call, reply there": _echo(daemon, guest, ARP),
                "ping → RX call, reply there": _echo(daemon, guest, ping(98)),
            }
            subjects = {
                name: partial(measure, end, scale.round_trips) for name, end in ends.items()
            }
            return _table(take_turns(subjects, scale.rounds))


def _peer(name: str, processors: set[int], stack: ExitStack) -> End:
    kick, call = fds = eventfd(stack), eventfd(stack)
    command = ("-m", "bench.loops", name, *map(str, fds))
    process = stack.enter_context(run_python(*command, pass_fds=fds, processors=processors))
    return End(process, kick, call)


def _completion(daemon: Process, guest: Guest, frame: bytes) -> End:
    """Until the device returns the buffer of a frame."""
    load, give = partial(guest.tx.load, frame), partial(guest.tx.give, 1, call=True)
    return End(daemon, guest.kick, guest.tx_call, load, give)


def _echo(daemon: Process, guest: Guest, frame: bytes) -> End:
    """Until the reply to a frame is there."""

    def give() -> None:
        guest.rx.give(1, call=True)
        guest.tx.give(1, call=False)

    return End(daemon, guest.kick, guest.rx_call, partial(guest.tx.load, frame), give)


def _table(results: dict[str, list[Turn]]) -> Table:
    rows = []
    for name, turns in results.items():
        p50, p99, cpu = _columns(turns)
        trio_p50, trio_p99, trio_cpu = _columns(results[TRIO])
        cells = {
            "p50 µs": statistics.median(p50),
            "p99 µs": statistics.median(p99),
            "p50 ÷ trio": ratio(p50, trio_p50),
            "p99 ÷ trio": ratio(p99, trio_p99),
            "± %": spread(p50),
            "CPU µs": statistics.median(cpu),
            "CPU ÷ trio": ratio(cpu, trio_cpu),
        }
        rows.append(Row(name, cells))
    return Table("roundtrip", "Kick → call round trip", COLUMNS, rows, NOTES)


def _columns(turns: Sequence[Turn]) -> tuple[list[float], list[float], list[float]]:
    return [t.p50 for t in turns], [t.p99 for t in turns], [t.cpu for t in turns]
