"""Everything side by side: the daemon, testpmd, Open vSwitch on DPDK, and taps of the kernel.

One client in C (``client.c``) drives all of them, on the first of two processors; the backend has
the other. In each round each backend takes one turn, and `bench.memory_state` says which rounds
count.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from tests.harness.client import VhostTestClient

from ..figures import Scale, Table
from ..memory_state import compiled_probe
from ..processes import BenchError, Process, socket_path, two_processors
from .backends import (
    EPOLL,
    OURS,
    OVS,
    PROGRAMS,
    RING,
    TAPS,
    TESTPMD,
    Wiring,
    huge_pages,
    open_daemon,
)
from .client import compile_all
from .neighbours import beside_floods, neighbour_table
from .notifications import count_notifications, notification_table
from .plan import FULL, LARGE, QUICK, Plan
from .subjects import Site, Subject, open_subject, open_subjects, take_rounds
from .tables import (
    FLOOD,
    FLOOD_OF_FOUR,
    HOT_PING,
    PING,
    Crowd,
    Flood,
    Load,
    Pings,
    cpu_table,
    crowd_table,
    load_table,
    ping_table,
    rate_tables,
    with_state,
)

HUGE_MEGABYTES = 4096
BUSY_PORTS = 8


async def peers(scale: Scale) -> list[Table]:
    """All tables of what stands side by side."""
    plan = FULL if scale.thorough else QUICK
    with open_site() as site:
        floods, notes = _floods(site, plan)
        pings, loads = _latencies(site, plan)
        crowds = await _crowds(site, plan)
        neighbours = neighbour_table(beside_floods(site, plan))
        notifications = notification_table(count_notifications(site, plan))
    tables = [
        *rate_tables(floods, notes),
        cpu_table(floods),
        ping_table(pings),
        load_table(loads),
        neighbours,
        notifications,
        crowds,
    ]
    return [with_state(table) for table in tables]


@contextmanager
def open_site() -> Iterator[Site]:
    """Two processors, huge pages, and the programs that need DPDK.

    Raises:
        BenchError: something is missing.
    """
    processors = sorted(os.sched_getaffinity(0))
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        raise BenchError(f"missing Debian packages: {', '.join(missing)}; see make bench-peers")
    if os.geteuid() != 0 or len(processors) < 2:
        raise BenchError("huge pages and taps need root, and all of it two processors")
    client, backend = processors[0], processors[-1]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mvirt-")))
        stack.enter_context(huge_pages(HUGE_MEGABYTES))
        probe = stack.enter_context(compiled_probe([client, backend]))
        yield Site(client, backend, compile_all(folder), probe)


def _floods(site: Site, plan: Plan) -> tuple[list[Flood], list[str]]:
    floods: list[Flood] = []
    notes: list[str] = []
    sizes = {False: plan.sizes, True: (LARGE,)}
    for wiring in (*plan.wirings, *plan.large_wirings):
        # Taps have no rings, so that one wiring is as good as another. The bare ring only copies.
        names = [OURS, TESTPMD, OVS, *([TAPS] if _is_common(wiring) else [])]
        names += [] if wiring.offloads else [RING]
        with open_subjects(site, wiring, names, notes) as subjects:
            for size in sizes[wiring.offloads]:
                for directions in (1, 2):
                    command = f"flood size={size} directions={directions} seconds={plan.seconds}"
                    rounds = take_rounds(_by_name(subjects), command, plan.rounds)
                    floods.append(Flood(size, directions, wiring, rounds))
    return floods, notes


def _is_common(wiring: Wiring) -> bool:
    return wiring.mergeable and not wiring.packed


def _by_name(subjects: Sequence[Subject]) -> dict[str, Subject]:
    return {subject.backend.name: subject for subject in subjects}


def _latencies(site: Site, plan: Plan) -> tuple[Pings, list[Load]]:
    notes: list[str] = []
    with open_subjects(site, Wiring(), [OURS, TESTPMD, OVS, TAPS, EPOLL], notes) as subjects:
        named = _by_name(subjects)
        with two_processors():
            idle = take_rounds(named, plan.ping, plan.rounds)
            hot = take_rounds(named, plan.hot_ping, plan.rounds)
        percent = {name: subject.idle_percent(plan.idle_seconds) for name, subject in named.items()}
        del named[EPOLL]
        loads = []
        for rate in plan.loads:
            loads.append(Load(rate, take_rounds(named, plan.load(rate), plan.rounds)))
    return Pings(idle, hot, percent), loads


async def _crowds(site: Site, plan: Plan) -> Table:
    """Daemons with more and more NICs, side by side."""
    subjects: dict[str, Subject] = {}
    crowds = []
    with ExitStack() as stack:
        async with trio.open_nursery() as guests:
            for nics in plan.crowds:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="mvirt-")))
                ports = min(nics, BUSY_PORTS)
                backend = stack.enter_context(open_daemon(folder, {site.backend}, nics, ports))
                await _connect_idle(guests, folder, range(ports, nics))
                subject = stack.enter_context(open_subject(site, backend, Wiring()))
                subjects[str(nics)] = subject
            for nics, subject in zip(plan.crowds, subjects.values(), strict=True):
                crowds.append(_look_at(nics, subject, plan))
            table = _compare(crowds, subjects, plan)
            guests.cancel_scope.cancel()
    return table


async def _connect_idle(guests: trio.Nursery, folder: Path, numbers: Sequence[int]) -> None:
    """Guests that are there and have nothing to say."""
    for number in numbers:
        await VhostTestClient.connect(guests, socket_path(folder, number))


def _look_at(nics: int, subject: Subject, plan: Plan) -> Crowd:
    # Memory after there was traffic, so that all have what they need for it.
    subject.measure(f"flood size=64 pairs=1 seconds={plan.seconds}")
    (pid,) = subject.backend.processes
    return Crowd(nics, subject.idle_percent(plan.idle_seconds), Process(pid).private_bytes())


def _compare(crowds: Sequence[Crowd], subjects: dict[str, Subject], plan: Plan) -> Table:
    of_four = {
        name: subject
        for name, subject in subjects.items()
        if len(subject.backend.sockets) == BUSY_PORTS
    }
    rounds = {}
    for kind, who, command in (
        (FLOOD, subjects, f"flood size=64 pairs=1 seconds={plan.seconds}"),
        (FLOOD_OF_FOUR, of_four, f"flood size=64 seconds={plan.seconds}"),
    ):
        rounds[kind] = take_rounds(who, command, plan.rounds)
    with two_processors():
        rounds[PING] = take_rounds(subjects, plan.ping, plan.rounds)
        rounds[HOT_PING] = take_rounds(subjects, plan.hot_ping, plan.rounds)
    return crowd_table(crowds, rounds)
