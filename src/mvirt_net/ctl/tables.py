"""Tables for people: aligned, and on a terminal no wider than it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence

import attrs

from .text import words

GAP = "  "
"""Between two columns."""
_CUT = ".."
_NARROWEST = 8
"""A column is not cut to less."""


@attrs.frozen
class Column:
    """A column and how it looks."""

    title: str
    right: bool = False
    """Aligned to the right, as numbers are."""
    keep_end: bool = False
    """Cut at its beginning when it is too wide, as paths are."""


def render(
    columns: Sequence[Column], rows: Iterable[Sequence[object]], width: int | None = None
) -> list[str]:
    """The lines of a table, titles first.

    Args:
        columns: what there is from left to right.
        rows: a value for each column, shown as `words`.
        width: that no line may exceed; the widest columns of text are cut for it. None: no limit.
    """
    cells, widths = _laid_out(columns, rows)
    if width is not None:
        _narrow(columns, widths, width)
    lines = [GAP.join(map(_fit, row, widths, columns)).rstrip() for row in cells]
    return lines if width is None else [line[:width] for line in lines]


def least_width(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> int:
    """How narrow `render` can make a table before it cuts numbers."""
    _cells, widths = _laid_out(columns, rows)
    least = (
        width if column.right else min(width, _NARROWEST)
        for column, width in zip(columns, widths, strict=True)
    )
    return sum(least) + len(GAP) * (len(widths) - 1)


def _laid_out(
    columns: Sequence[Column], rows: Iterable[Sequence[object]]
) -> tuple[list[list[str]], list[int]]:
    """The text of each cell, titles first, and how wide the columns are with all of it."""
    cells = [[column.title for column in columns]]
    cells += [[words(value) for value in row] for row in rows]
    return cells, [max(map(len, column)) for column in zip(*cells, strict=True)]


def fields(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """One thing in full: a name and its value a line."""
    cells = [(f"{name}:", words(value)) for name, value in pairs]
    widest = max((len(name) for name, _value in cells), default=0)
    return [f"{name:<{widest}}  {value}" for name, value in cells]


def terminal_width() -> int | None:
    """Columns of the terminal that is written to; None when it is none: nothing is cut there."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _narrow(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Take from the widest column of text, again and again, until the rest has room."""
    texts = [index for index, column in enumerate(columns) if not column.right]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for _ in range(excess):
        widest = max(texts, key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def _fit(cell: str, width: int, column: Column) -> str:
    if len(cell) > width:
        kept = width - len(_CUT)
        cell = _CUT + cell[-kept:] if column.keep_end else cell[:kept] + _CUT
    return cell.rjust(width) if column.right else cell.ljust(width)
