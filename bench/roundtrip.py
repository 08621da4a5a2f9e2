"""How long it takes until a kick is answered with a call, one at a time."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from .figures import Row, Scale, Table, quantile, ratio, spread, take_turns
from .guest import ARP, IPV4, MAC, MIN_FRAME, Guest, connected_guest, dropped, eventfd, ping
from .processes import PATIENCE, BenchError, run_daemon, run_python, socket_path

PAUSE_NS = 100_000
"""Between a call and the next kick, so that the other end is asleep again. It is spent busily, for
the processor of this end shall stay awake."""

EPOLL = "peer: a bare epoll loop"
TRIO = "peer: a bare trio task"

COLUMNS = ("p50 µs", "p99 µs", "p50 ÷ trio", "p99 ÷ trio", "p50 ÷ epoll", "± %")
NOTES = (
    "From before the write of the kick eventfd until after the read of the call eventfd, in another"
    " process.",
)


@attrs.frozen
class End:
    """The other end of the loop.

    Args:
        kick, call: its eventfds.
        begin_turn: called before a turn.
        give: called before each kick, outside the time that is measured.
    """

    kick: int
    call: int
    begin_turn: Callable[[], None] = lambda: None
    give: Callable[[], None] = lambda: None


@attrs.frozen
class Latency:
    """Quantiles of one turn, in microseconds."""

    p50: float
    p99: float


def measure(end: End, count: int) -> Latency:
    """Kick and wait for the call, `count` times."""
    end.begin_turn()
    ready = select.poll()
    ready.register(end.call, select.POLLIN)
    times = [_round_trip(end, ready) for _ in range(count)]
    return Latency(quantile(times, 0.5), quantile(times, 0.99))


def _round_trip(end: End, ready: select.poll) -> float:
    pause_over = time.perf_counter_ns() + PAUSE_NS
    end.give()
    while time.perf_counter_ns() < pause_over:
        pass
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
        ends = {EPOLL: _peer("epoll", stack), TRIO: _peer("trio", stack)}
        stack.enter_context(run_daemon(folder, 1, mac=MAC, ipv4=IPV4))
        async with connected_guest(socket_path(folder, 0)) as guest:
            ends |= {
                "frame dropped in C → TX call": _completion(guest, dropped(MIN_FRAME)),
                "ARP request → RX call, reply there": _echo(guest, ARP),
                "ping → RX call, reply there": _echo(guest, ping(98)),
            }
            subjects = {
                name: partial(measure, end, scale.round_trips) for name, end in ends.items()
            }
            return _table(take_turns(subjects, scale.rounds))


def _peer(name: str, stack: ExitStack) -> End:
    end = End(eventfd(stack), eventfd(stack))
    fds = (end.kick, end.call)
    stack.enter_context(run_python("-m", "bench.peers", name, *map(str, fds), pass_fds=fds))
    return end


def _completion(guest: Guest, frame: bytes) -> End:
    """Until the device returns the buffer of a frame."""
    return End(
        guest.kick,
        guest.tx_call,
        partial(guest.tx.load, frame),
        partial(guest.tx.give, 1, call=True),
    )


def _echo(guest: Guest, frame: bytes) -> End:
    """Until the reply to a frame is there."""

    def give() -> None:
        guest.rx.give(1, call=True)
        guest.tx.give(1, call=False)

    return End(guest.kick, guest.rx_call, partial(guest.tx.load, frame), give)


def _table(results: dict[str, list[Latency]]) -> Table:
    p50 = {name: [turn.p50 for turn in turns] for name, turns in results.items()}
    p99 = {name: [turn.p99 for turn in turns] for name, turns in results.items()}
    rows = [
        Row(
            name,
            {
                "p50 µs": quantile(p50[name], 0.5),
                "p99 µs": quantile(p99[name], 0.5),
                "p50 ÷ trio": ratio(p50[name], p50[TRIO]),
                "p99 ÷ trio": ratio(p99[name], p99[TRIO]),
                "p50 ÷ epoll": ratio(p50[name], p50[EPOLL]),
                "± %": spread(p50[name]),
            },
        )
        for name in results
    ]
    return Table("roundtrip", "Kick → call round trip", COLUMNS, rows, NOTES)
