"""The picture of what stands side by side: rates, latency against load, cost of many NICs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..figures import Cell, Table
from .backends import RING
from .tables import FLOOD, HOT_PING, PING, RATES


def draw(tables: Mapping[str, Table], path: Path) -> None:
    """Draw the tables of `bench.peers.measure` into a file; its suffix says what kind.

    matplotlib is imported here, so that everything else does without it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 20), layout="constrained")
    rates, large, loads, nics = figure.subplots(4, 1, height_ratios=(3, 1, 1, 1))
    _draw_rates(rates, tables["peers-rate"])
    _draw_rates(large, tables["peers-tso"])
    _draw_loads(loads, tables["peers-load"])
    _draw_nics(nics, tables["peers-nics"])
    figure.savefig(path)


def _add_legend(axes: Any) -> None:
    """Beside the axes, where it covers nothing."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _column(table: Table, name: str) -> list[float]:
    """A column with NaN for what is not known, which is not drawn."""
    return [_float(row.cells.get(name)) for row in table.rows]


def _float(cell: Cell) -> float:
    return float("nan") if cell is None else cell


def numbers_of(table: Table) -> list[float]:
    """What the names of the rows begin with."""
    return [float(re.split(r"\s", row.name)[0]) for row in table.rows]


def _draw_rates(axes: Any, table: Table) -> None:
    rows: Sequence[int] = range(len(table.rows))
    names = [name for name in (*RATES, RING) if name in table.columns]
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [row + (number - len(names) / 2 + 0.5) * height for row in rows]
        axes.barh(places, _column(table, name), height, label=name)
    axes.set_yticks(rows, [row.name for row in table.rows])
    axes.invert_yaxis()
    axes.set_title(table.title)
    _add_legend(axes)


def _draw_loads(axes: Any, table: Table) -> None:
    for name in RATES:
        axes.plot(numbers_of(table), _column(table, f"{name} p50"), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("load, Mframes/s of 64 bytes")
    axes.set_ylabel("p50, µs")
    axes.set_title(table.title)
    _add_legend(axes)


def _draw_nics(axes: Any, table: Table) -> None:
    for kind in (FLOOD, PING, HOT_PING):
        column = next(name for name in table.columns if name.startswith(f"{kind}, "))
        axes.plot(numbers_of(table), _column(table, column), marker="o", label=column)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("connected NICs")
    axes.set_title(table.title)
    _add_legend(axes)
