"""Fair rounds on a machine whose two processors are now near to each other, now far.

A virtual machine's processors may be moved about by its host. The round trip of a cache line
between two of them, and with it every figure of two processes that share memory, then changes by a
factor of two to five, for seconds or minutes. So the round trip is measured around every
turn (``probe.c``), and only turns of one state are compared: a turn before and after which it
differs is repeated, and so is one that differs from the rest of its round. Of the rounds that come
out of this, those of one state are used: the fastest of which there are enough, as the slow ones
say more of the machine than of what is measured, or else the one that most of them have.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypeVar

import attrs

from .build import compile_program

_T = TypeVar("_T")

SAME_STATE = 1.8
"""Round trips that differ by less are of one state. Neighbours alone make 1.5 of it."""
REPEATS = 4
"""How often a turn is tried before its round is given up."""
ENOUGH = 5
"""Rounds of which a median may be taken; of a slower state twice as many are waited for."""


@attrs.frozen
class Round(Generic[_T]):
    """One turn of each subject, all in one state.

    Args:
        trip: the median round trip of a cache line meanwhile, in nanoseconds.
        results: by the names of the subjects.
    """

    trip: float
    results: Mapping[str, _T]


@attrs.frozen
class Rounds(Generic[_T]):
    """The rounds of one state.

    Args:
        trip: as in `Round`, the median.
        results: for each subject, what it returned in each round.
        rejected: how many turns and rounds were left out.
    """

    trip: float
    results: Mapping[str, Sequence[_T]]
    rejected: int


def is_same_state(trips: Sequence[float]) -> bool:
    """Whether these round trips are all of one state."""
    return max(trips) < SAME_STATE * min(trips)


def states_of(rounds: Sequence[Round[_T]]) -> list[list[Round[_T]]]:
    """The rounds of each state, the fastest one first."""
    states: list[list[Round[_T]]] = []
    for each in sorted(rounds, key=lambda each: each.trip):
        if states and is_same_state([states[-1][0].trip, each.trip]):
            states[-1].append(each)
        else:
            states.append([each])
    return states


def best_state(rounds: Sequence[Round[_T]], enough: int) -> list[Round[_T]]:
    """Those of the fastest state that has enough, or of the one that has most; in their order."""
    states = states_of(rounds)
    first = next((state for state in states if len(state) >= enough), None)
    chosen = first or max(states, key=len, default=[])
    return [each for each in rounds if each in chosen]


def paired_rounds(
    subjects: Mapping[str, Callable[[], _T]], probe: Callable[[], float], rounds: int
) -> Rounds[_T]:
    """Measure all subjects in turn, so many times in one state.

    In a state that is not the fastest one it goes on for twice as many rounds, for the fastest may
    come back. It ends after three times as many with what there is then.

    Args:
        probe: measures the round trip of a cache line; nothing else runs meanwhile.
    """
    taken: list[Round[_T]] = []
    rejected = 0
    for _ in range(3 * rounds):
        each, repeats = _round(subjects, probe)
        rejected += repeats
        if each is not None:
            taken.append(each)
        chosen = best_state(taken, min(ENOUGH, rounds))
        is_fastest = bool(chosen) and states_of(taken)[0][0] in chosen
        if len(chosen) >= rounds and (is_fastest or len(taken) >= 2 * rounds):
            break
    results = {name: [each.results[name] for each in chosen] for name in subjects}
    trip = statistics.median(each.trip for each in chosen) if chosen else float("nan")
    return Rounds(trip, results, rejected + len(taken) - len(chosen))


def _round(
    subjects: Mapping[str, Callable[[], _T]], probe: Callable[[], float]
) -> tuple[Round[_T] | None, int]:
    """A round, or None if the state would not stay; and how many turns were left out."""
    trips: list[float] = []
    results: dict[str, _T] = {}
    rejected = 0
    for name, measure in subjects.items():
        for _ in range(REPEATS):
            before, result, after = probe(), measure(), probe()
            if is_same_state([*trips, before, after]):
                trips += [before, after]
                results[name] = result
                break
            rejected += 1
        else:
            return None, rejected + len(results)
    return Round(statistics.median(trips), results), rejected


@contextmanager
def compiled_probe(processors: Sequence[int]) -> Iterator[Callable[[], float]]:
    """What measures the round trip between these two processors."""
    with TemporaryDirectory(prefix="mvirt-net-") as folder:
        program = Path(folder, "probe")
        compile_program([Path(__file__).with_name("probe.c")], program, ["-pthread"])
        command = [str(program), *map(str, processors)]
        yield lambda: float(subprocess.run(command, check=True, capture_output=True).stdout)
