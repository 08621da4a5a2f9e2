"""What was measured side by side, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from ..figures import Cell, Row, Table, ratio, spread
from ..memory_state import ENOUGH, Rounds
from .backends import EPOLL, OURS, OVS, RING, TAPS, TESTPMD, Wiring
from .plan import LARGE
from .subjects import Sample

PEERS = (TESTPMD, OVS, TAPS)
RATES = (OURS, *PEERS)
LATENCIES: Mapping[str, Callable[[Sample], float | None]] = {
    "p50": lambda sample: sample.p50,
    "p99": lambda sample: sample.p99,
}
KEPT_UP = 0.95
"""The share of a load that has to arrive for its latency to mean anything."""

TRIP = "line ns"
TAKEN = "rounds"
LEFT_OUT = "left out"
STATE = (TRIP, TAKEN, LEFT_OUT)
_STATE_NOTE = (
    "line ns: a cache line's round trip between the two processors, which changes at times; all"
    " rounds of a figure are of one state, the fastest that has five, or the one that has most."
    " rounds: of which the figures are the medians. left out: turns that were not."
)
_RING_NOTE = (
    f"{RING}: a router in C that checks nothing, looks nothing up and copies once, polling the"
    " rings by itself."
)


@attrs.frozen
class Flood:
    """As many frames of one kind as each backend took.

    Args:
        directions: 1 or 2 at once.
    """

    size: int
    directions: int
    wiring: Wiring
    rounds: Rounds[Sample]

    @property
    def name(self) -> str:
        size = "64 KiB TSO" if self.wiring.offloads else f"{self.size} B"
        return f"{size}, {'both ways' if self.directions == 2 else 'one way'}, {self.wiring}"


@attrs.frozen
class Load:
    """So many frames a second."""

    rate: float
    rounds: Rounds[Sample]


@attrs.frozen
class Pings:
    """One frame at a time.

    Args:
        idle: each from a backend that may have gone to sleep.
        hot: one right after another, without the first.
        percent: of a processor, when nothing happens, of each backend.
    """

    idle: Rounds[Sample]
    hot: Rounds[Sample]
    percent: Mapping[str, float]


@attrs.frozen
class Crowd:
    """A daemon with so many NICs.

    Args:
        nics: all of them are connected.
        percent: of a processor, when nothing happens.
        private_bytes: its own memory.
    """

    nics: int
    percent: float
    private_bytes: int


def figures(rounds: Rounds[Sample], name: str, of: Callable[[Sample], float | None]) -> list[float]:
    """One figure of each round; none if any round has none."""
    values = [of(sample) for sample in rounds.results.get(name, ())]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def middle(values: Sequence[float]) -> Cell:
    """The median, if there is anything."""
    return statistics.median(values) if values else None


def versus(ours: Sequence[float], peers: Sequence[float]) -> Cell:
    """The median of the ratios round by round, if both were there."""
    return ratio(ours, peers) if ours and peers else None


def rate_tables(floods: Sequence[Flood], notes: Sequence[str]) -> list[Table]:
    """Frames a second; of those that are to be segmented bits a second."""
    plain = [flood for flood in floods if not flood.wiring.offloads]
    large = [flood for flood in floods if flood.wiring.offloads]
    return [
        _rate_table(
            *("peers-rate", "Side by side: Mframes/s", (*PEERS, RING), plain, 1e-6),
            (_RING_NOTE, *dict.fromkeys(notes)),
        ),
        _rate_table("peers-tso", "Side by side: Gbit/s", PEERS, large, 8e-9 * LARGE, ()),
    ]


def _rate_table(
    name: str,
    title: str,
    peers: Sequence[str],
    floods: Sequence[Flood],
    unit: float,
    notes: Sequence[str],
) -> Table:
    rows = []
    everyone = (OURS, *peers)
    for flood in floods:
        rates = {who: figures(flood.rounds, who, lambda s: s.rate * unit) for who in everyone}
        cells: dict[str, Cell] = {who: middle(rates[who]) for who in everyone}
        cells |= {f"÷ {who}": versus(rates[OURS], rates[who]) for who in peers}
        cells["± %"] = spread(rates[OURS])
        rows.append(Row(flood.name, cells | state(flood.rounds)))
    columns = (*everyone, *(f"÷ {who}" for who in peers), "± %", *STATE)
    explained = (
        "÷: our rate in units of the peer's, round by round; higher is better. ± %: of ours.",
        "Every frame's length and headers (MACs, TTL, checksum) are checked, of some all bytes.",
        *notes,
    )
    return Table(name, title, columns, rows, explained)


def cpu_table(floods: Sequence[Flood]) -> Table:
    """What a frame costs the backend."""
    rows = []
    for flood in floods:
        costs = {name: figures(flood.rounds, name, lambda s: s.cpu * 1e9) for name in RATES}
        cells: dict[str, Cell] = {name: middle(costs[name]) for name in RATES}
        cells |= {f"lost by {name}, %": lost_percent(flood.rounds, name) for name in RATES}
        rows.append(Row(flood.name, cells | state(flood.rounds)))
    columns = (*RATES, *(f"lost by {name}, %" for name in RATES), *STATE)
    notes = (
        "Processor time of all threads of the backend; of the taps all that its processor does.",
        "Those that poll use all of their processor, whatever they do.",
        "lost: of the frames that the backend has taken.",
    )
    return Table(
        "peers-cpu", "Side by side: ns of the backend's processor a frame", columns, rows, notes
    )


def lost_percent(rounds: Rounds[Sample], name: str) -> Cell:
    """Of the frames that were sent, in the median round."""
    share = middle(figures(rounds, name, lambda sample: sample.loss))
    return None if share is None else max(0.0, 100 * share)


def ping_table(pings: Pings) -> Table:
    """One frame at a time."""
    rows = []
    names = dict.fromkeys([*pings.idle.results, *pings.hot.results])
    for name in names:
        cells: dict[str, Cell] = {}
        for kind, rounds, base in (("idle", pings.idle, EPOLL), ("hot", pings.hot, OVS)):
            p50 = figures(rounds, name, lambda s: s.p50)
            cells[f"{kind} p50 µs"] = middle(p50)
            cells[f"{kind} p99 µs"] = middle(figures(rounds, name, lambda s: s.p99))
            cells[f"÷ {base}"] = versus(p50, figures(rounds, base, lambda s: s.p50))
        cells["idle % of a core"] = pings.percent.get(name)
        rows.append(Row(name, cells | state(pings.idle, pings.hot)))
    columns = (
        *("idle p50 µs", "idle p99 µs", f"÷ {EPOLL}"),
        *("hot p50 µs", "hot p99 µs", f"÷ {OVS}", "idle % of a core", *STATE),
    )
    notes = (
        "64 bytes, from the client's send to its receipt on the other port, through the backend.",
        "idle: the client sleeps 1 ms before each. hot: one right after another,"
        " and a tenth as many before, which do not count.",
        f"{EPOLL}: a thread in C that sleeps in epoll and passes frames on by librte_vhost.",
        "idle % of a core: with nothing to do.",
    )
    return Table("peers-ping", "Side by side: one frame at a time", columns, rows, notes)


def load_table(loads: Sequence[Load]) -> Table:
    """Latency against load."""
    rows = []
    for load in loads:
        cells: dict[str, Cell] = {}
        for name in RATES:
            for column, of in LATENCIES.items():
                latency = middle(figures(load.rounds, name, of))
                cells[f"{name} {column}"] = latency if _kept_up(load, name) else None
        rows.append(Row(f"{load.rate / 1e6:g} Mframes/s", cells | state(load.rounds)))
    columns = (*(f"{name} {column}" for name in RATES for column in ("p50", "p99")), *STATE)
    notes = (
        "64 bytes, evenly paced; µs from send to receipt. None where less than 95 % arrived in the"
        " median round.",
    )
    return Table("peers-load", "Side by side: latency against load", columns, rows, notes)


def _kept_up(load: Load, name: str) -> bool:
    """In the round in the middle; others are disturbed now and then."""
    rate = middle(figures(load.rounds, name, lambda sample: sample.rate))
    return rate is not None and rate >= KEPT_UP * load.rate


def crowd_table(crowds: Sequence[Crowd], rounds: Mapping[str, Rounds[Sample]]) -> Table:
    """What grows with the number of NICs.

    Args:
        crowds: the one with the fewest NICs first.
        rounds: of each measurement, whose results have the numbers of NICs as names.
    """
    fewest = crowds[0]
    rows = []
    for crowd in crowds:
        cells: dict[str, Cell] = {"idle % of a core": crowd.percent}
        for kind, (unit, of) in CROWD_FIGURES.items():
            own, base = (figures(rounds[kind], str(c.nics), of) for c in (crowd, fewest))
            cells[f"{kind}, {unit}"] = middle(own)
            if kind in COMPARED:
                cells[f"{kind} ÷ fewest"] = versus(own, base)
        if crowd.nics > fewest.nics:
            more = crowd.private_bytes - fewest.private_bytes
            cells["KiB a NIC"] = more / 1024 / (crowd.nics - fewest.nics)
        rows.append(Row(f"{crowd.nics} NICs", cells | state(*rounds.values())))
    columns: list[str] = []
    for kind, (unit, _) in CROWD_FIGURES.items():
        columns.append(f"{kind}, {unit}")
        columns += [f"{kind} ÷ fewest"] if kind in COMPARED else []
    notes = (
        "mvirt-net alone; 64 bytes. Every NIC is connected; two are busy, or eight in four pairs.",
        "KiB a NIC: private memory, neither files nor guests', of each more than the fewest.",
    )
    columns += ["idle % of a core", "KiB a NIC", *STATE]
    return Table("peers-nics", "The cost of many NICs", columns, rows, notes)


FLOOD, FLOOD_OF_FOUR, PING, HOT_PING = "one pair", "four pairs", "ping", "hot ping"
COMPARED = (FLOOD, PING, HOT_PING)
CROWD_FIGURES: Mapping[str, tuple[str, Callable[[Sample], float | None]]] = {
    FLOOD: ("Mframes/s", lambda sample: sample.rate / 1e6),
    FLOOD_OF_FOUR: ("Mframes/s", lambda sample: sample.rate / 1e6),
    PING: ("p50 µs", lambda sample: sample.p50),
    HOT_PING: ("p50 µs", lambda sample: sample.p50),
}


def state(*measured: Rounds[Any]) -> dict[str, Cell]:
    """Of which rounds a row consists: what is worst of all that it was measured in."""
    counts = [len(next(iter(rounds.results.values()), ())) for rounds in measured]
    trips = [rounds.trip for rounds, count in zip(measured, counts, strict=True) if count]
    return {
        TRIP: max(trips, default=None),
        TAKEN: min(counts),
        LEFT_OUT: sum(rounds.rejected for rounds in measured),
    }


def with_state(table: Table) -> Table:
    """The table, which says of its rounds what there is to know, and marks rows of too few."""
    few = [row for row in table.rows if (row.cells.get(TAKEN) or 0) < ENOUGH]
    rows = [attrs.evolve(row, name=f"{row.name} *") if row in few else row for row in table.rows]
    notes = (*table.notes, _STATE_NOTE, *([f"*: fewer than {ENOUGH} rounds."] if few else []))
    return attrs.evolve(table, rows=rows, notes=notes)
