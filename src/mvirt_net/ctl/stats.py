"""The verb ``stats``: the counters of all NICs and their sum, or of one in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from .session import NICS, Session, completing, ctl
from .tables import Column, fields, render, terminal_width
from .text import printable

Stats = Mapping[str, Any]
"""Numbers by name, and ``drops``: numbers by reason."""

_COUNTERS = ("tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "kicks", "calls")
"""In the table; the others are shown for a single NIC."""
_COLUMNS = (
    Column("NIC"),
    *(Column(name.upper().replace("_", "-"), right=True) for name in _COUNTERS),
    Column("DROPS", right=True),
)
_DROPS = (Column("DROPPED", right=True), Column("REASON"), Column("NICS"))
_FOREMOST = 3
"""NICs that are named for a reason."""


@ctl.command()
@click.argument("nic", required=False, shell_complete=completing(NICS))
def stats(nic: str | None) -> None:
    """Counters since each NIC was added: of all and their sum, or of NIC in full."""
    session = Session.current()
    if nic is None:
        by_name = session.client.get("stats")["nics"]
        total = sum_of(by_name.values())
        session.answer({"nics": by_name, "total": total}, _table(by_name, total))
    else:
        with session.naming(NICS, nic):
            name = session.client.get(NICS, nic)["name"]
        # It may have gone meanwhile, and then it has counted nothing.
        one = session.client.get("stats")["nics"].get(name, sum_of([]))
        session.answer({"nics": {name: one}}, _in_full(name, one))


def sum_of(every: Any) -> dict[str, Any]:
    """The counters of several NICs together."""
    numbers: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    for one in every:
        numbers.update({name: value for name, value in one.items() if name != "drops"})
        drops.update(one["drops"])
    return {**numbers, "drops": dict(drops)}


def dropped(one: Stats) -> int:
    """Frames that a NIC dropped, for whatever reason."""
    return sum(one["drops"].values())


def _table(by_name: Mapping[str, Stats], total: Stats) -> list[str]:
    rows = [_row(name, one) for name, one in sorted(by_name.items())]
    lines = render(_COLUMNS, [*rows, _row("total", total)], terminal_width())
    if total["drops"]:
        lines += ["", *render(_DROPS, _drop_rows(by_name, total), terminal_width())]
    return lines


def _row(name: str, one: Stats) -> list[object]:
    return [name, *(one.get(counter, 0) for counter in _COUNTERS), dropped(one)]


def _drop_rows(by_name: Mapping[str, Stats], total: Stats) -> list[list[object]]:
    """The reasons, the most frequent first, and the NICs that it happened to most."""
    return [
        [
            count,
            reason,
            _foremost({name: one["drops"].get(reason) for name, one in by_name.items()}),
        ]
        for reason, count in _most_frequent(total["drops"])
    ]


def _most_frequent(drops: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(drops.items(), key=lambda item: (-item[1], item[0]))


def _foremost(counts: Mapping[str, int | None]) -> str:
    those = _most_frequent({name: count for name, count in counts.items() if count})
    named = [f"{name} {count}" for name, count in those[:_FOREMOST]]
    return ", ".join(named) + (", .." if len(those) > _FOREMOST else "")


def _in_full(name: str, one: Stats) -> list[str]:
    numbers = [(counter, value) for counter, value in one.items() if counter != "drops"]
    lines = [f"NIC {printable(name)}", *fields([*numbers, ("drops", dropped(one))])]
    if one["drops"]:
        rows = _most_frequent(one["drops"])
        lines += ["", *render(_DROPS[:2], [(count, reason) for reason, count in rows])]
    return lines
