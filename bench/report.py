"""The figures for people and for programs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

import mvirt_net

from .figures import Cell, Table


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "day": date.today().isoformat(),
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "trio": version("trio"),
        "mvirt-net": mvirt_net.__version__,
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def text(table: Table) -> str:
    """A table for a terminal."""
    name_width = max(len(row.name) for row in table.rows)
    widths = [max(len(column), 7) for column in table.columns]
    lines = [f"{table.title} ({table.name})", ""]
    lines.append(_line("", table.columns, name_width, widths))
    for row in table.rows:
        cells = [number(row.cells.get(column)) for column in table.columns]
        lines.append(_line(row.name, cells, name_width, widths))
    return "\n".join([*lines, *(f"  {note}" for note in table.notes), ""])


def _line(name: str, cells: Iterable[str], name_width: int, widths: Iterable[int]) -> str:
    padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([name.ljust(name_width), *padded]).rstrip()


def markdown(table: Table) -> str:
    """A table for documents."""
    lines = [f"## {table.title}", "", f"| | {' | '.join(table.columns)} |"]
    lines.append("|---|" + "--:|" * len(table.columns))
    for row in table.rows:
        cells = [number(row.cells.get(column)) for column in table.columns]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes), ""])


def number(value: Cell) -> str:
    """Three digits that mean something, as much as a noisy machine allows; a count in full."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_json(facts: Mapping[str, str], tables: Iterable[Table]) -> dict[str, Any]:
    """Everything, unrounded."""
    return {"machine": dict(facts), "tables": {table.name: attrs.asdict(table) for table in tables}}
