"""What a NIC has to wait for others: a light pair of ports beside pairs that flood."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..figures import Cell, Row, Table
from ..memory_state import Rounds
from ..processes import two_processors
from .backends import OURS, OVS, TESTPMD, Wiring
from .plan import Plan
from .subjects import Sample, Site, open_subjects, take_rounds
from .tables import LATENCIES, STATE, figures, lost_percent, middle, state

NAMES = (OURS, TESTPMD, OVS)
PORTS = 8


@attrs.frozen
class Beside:
    """A light pair beside others.

    Args:
        rate: frames a second of the light pair.
        flooding: how many other pairs send as much as the backend takes.
    """

    rate: float
    flooding: int
    rounds: Rounds[Sample]

    @property
    def name(self) -> str:
        beside = {0: "alone", 1: "beside 1 flood"}
        return f"{self.rate:,.0f}/s {beside.get(self.flooding, f'beside {self.flooding} floods')}"


def beside_floods(site: Site, plan: Plan) -> list[Beside]:
    """Measure each light load alone and beside floods, in backends with as many ports."""
    with open_subjects(site, Wiring(), NAMES, [], PORTS) as subjects, two_processors():
        named = {subject.backend.name: subject for subject in subjects}
        return [
            Beside(
                *(rate, flooding),
                take_rounds(named, f"{plan.load(rate)} pairs=1 flooding={flooding}", plan.rounds),
            )
            for rate in plan.light
            for flooding in plan.flooding
        ]


def neighbour_table(measured: Sequence[Beside]) -> Table:
    """Latency and loss of the light pair, and what the others get through meanwhile."""
    rows = []
    for beside in measured:
        cells: dict[str, Cell] = {}
        for name in NAMES:
            for column, of in LATENCIES.items():
                cells[f"{name} {column}"] = middle(figures(beside.rounds, name, of))
            cells[f"{name} lost %"] = lost_percent(beside.rounds, name)
            flooded = figures(beside.rounds, name, lambda sample: sample.flooded / 1e6)
            cells[f"{name} floods"] = middle(flooded) if beside.flooding else None
        rows.append(Row(beside.name, cells | state(beside.rounds)))
    kinds = (*LATENCIES, "lost %", "floods")
    notes = (
        f"Backends with {PORTS} ports. 64 bytes, one way; p50 and p99 in µs, and what was lost, of"
        " the light pair, evenly paced; a frame that found no room when it was due counts as lost."
        " floods: Mframes/s of the others together.",
        "The client is one thread and looks at the light pair after each burst of 32 frames of a"
        " flood, so that one or two bursts of its own are in the latency, of all backends alike.",
        "All threads of a backend have one processor; the one of ours that polls those that flood"
        " looks for the kicks of others at most each 50 µs.",
    )
    columns = [*(f"{name} {kind}" for name in NAMES for kind in kinds), *STATE]
    title = "Side by side: a light pair beside floods"
    return Table("peers-fairness", title, columns, rows, notes)
