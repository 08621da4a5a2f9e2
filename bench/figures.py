"""Taking turns, summing up, and the tables that the figures stand in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import attrs

_T = TypeVar("_T")

Cell = float | None
"""None: there is nothing to say, which is not 0."""


@attrs.frozen
class Row:
    """One line of a table: what was measured, and its figures by the names of the columns."""

    name: str
    cells: Mapping[str, Cell]


@attrs.frozen
class Table:
    """A question, the rows that answer it, and what to know when reading them.

    Args:
        name: for ``--only`` and JSON.
        title, notes: for readers.
        columns: names, each with its unit.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


@attrs.frozen
class Scale:
    """How much to measure.

    Args:
        rounds: how often each subject takes its turn.
        round_trips: in one turn.
        frames: in one turn, of what C does alone.
        echoes: in one turn, of what passes through Python.
        nics: how many are idle at once.
        many: how many boot at once.
        idle_seconds: how long they are watched.
        thorough: everything that can be measured side by side, not one of each kind.
    """

    rounds: int
    round_trips: int
    frames: int
    echoes: int
    nics: int
    many: int
    idle_seconds: float
    thorough: bool


FULL = Scale(
    rounds=25,
    round_trips=400,
    frames=1 << 17,
    echoes=2048,
    nics=100,
    many=512,
    idle_seconds=10.0,
    thorough=True,
)
QUICK = Scale(
    rounds=2,
    round_trips=50,
    frames=1 << 15,
    echoes=256,
    nics=3,
    many=8,
    idle_seconds=0.2,
    thorough=False,
)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def take_turns(subjects: Mapping[str, Callable[[], _T]], rounds: int) -> dict[str, list[_T]]:
    """Measure each subject once a round, one after the other, so that they share bad moments.

    A round that does not count comes first: it warms caches and the interpreter.

    Returns:
        For each subject, what it returned in each round.
    """
    for measure in subjects.values():
        measure()
    results: dict[str, list[_T]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, measure in subjects.items():
            results[name].append(measure())
    return results


def ratio(ours: Sequence[float], peers: Sequence[float]) -> float:
    """Our cost in units of the peer's: the median of the ratios round by round."""
    return statistics.median(our / peer for our, peer in zip(ours, peers, strict=True))


def spread(results: Sequence[float]) -> float | None:
    """How unsteady the rounds were: half the distance of the quartiles, in % of the median."""
    if len(results) < 4:
        return None
    low, _, high = statistics.quantiles(results, n=4)
    return 50 * (high - low) / statistics.median(results)
