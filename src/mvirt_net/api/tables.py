"""Tables and curves as HTML, and as the JSON from which the page's script brings them up to date.

Both are made of the same cells, so that there is one place that decides how a thing looks. All text
is escaped here: names come from users, and details of errors may hold what a guest has said.
Everything comes in pieces, for a page of 512 NICs must not be made in one go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Literal

import attrs

ROWS_A_PIECE = 16

WIDTH, HEIGHT = 118, 24
"""Of the curves, in the units of their viewBox: two for each interval between 60 samples."""
_STEP = 2
_POINTS = [[f"{x},{y}" for y in range(HEIGHT + 1)] for x in range(0, WIDTH + 1, _STEP)]
"""All points that there can be: with 512 NICs some 60,000 are on a page."""
FLOOR = 1250.0
"""Bytes per second that reach the top of a curve at least, so that a stray frame is no mountain."""


@attrs.frozen
class Number:
    """A cell with a number, as it is shown and as it is sorted by."""

    text: str
    value: float


@attrs.frozen
class State:
    """A cell with one of a few words, which has a colour, and what there is to say about it."""

    word: str
    detail: str = ""


@attrs.frozen
class Curve:
    """A cell with two curves, as the points of polylines."""

    tx: str
    rx: str


Cell = str | Number | State | Curve
"""Text may have several lines."""


@attrs.frozen
class Column:
    title: str
    kind: Literal["text", "number", "state", "curve"] = "text"
    minor: bool = False
    """Left out where there is no room."""


@attrs.frozen
class Row:
    key: str
    """Under which the script finds it again."""
    cells: Sequence[Cell]
    """As many as there are columns; the first is the row's header."""


@attrs.frozen
class Table:
    key: str
    title: str
    columns: Sequence[Column]
    rows: Iterable[Row]
    empty: str
    """Said when there are no rows."""
    sortable: bool = True
    filterable: bool = False


def curve(tx: Sequence[float], rx: Sequence[float]) -> Curve:
    """Two curves on one scale, the newest sample at the right."""
    top = max(FLOOR, max(tx, default=0.0), max(rx, default=0.0))
    return Curve(_points(tx, top), _points(rx, top))


def _points(values: Sequence[float], top: float) -> str:
    if not any(values):
        # Most NICs do nothing, most of the time.
        start = WIDTH - _STEP * max(len(values) - 1, 0)
        return f"{start},{HEIGHT} {WIDTH},{HEIGHT}" if values else ""
    scale = HEIGHT / top
    heights = [HEIGHT - round(value * scale) for value in values]
    columns = _POINTS[len(_POINTS) - len(values) :]
    return " ".join([column[height] for column, height in zip(columns, heights, strict=True)])


# HTML.


def svg(curves: Curve, label: str = "") -> str:
    """The curves; without a label they are for the eye only, beside numbers that say the same."""
    named = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return (
        f'<svg viewBox="0 -1 {WIDTH} {HEIGHT + 2}" preserveAspectRatio="none" {named}>'
        f'<polyline class="rx" points="{curves.rx}"/><polyline class="tx" points="{curves.tx}"/>'
        "</svg>"
    )


def table_html(table: Table) -> Iterator[str]:
    """A section with the table, in pieces."""
    key = table.key
    yield (
        f'<section aria-labelledby="{key}-title"><header><h2 id="{key}-title">'
        f"{escape(table.title)}</h2>{_filter(key) if table.filterable else ''}</header>"
        f'<div class="scroll" role="region" aria-labelledby="{key}-title" tabindex="0">'
        f'<table data-table="{key}"{" data-sortable" if table.sortable else ""}><thead><tr>'
    )
    yield "".join(
        f'<th scope="col" class="{_class(column)}">{escape(column.title)}</th>'
        for column in table.columns
    )
    yield f"</tr></thead><tbody data-empty={_quoted(table.empty)}>"
    for rows in _slices(table.rows):
        yield "".join([_row(table.columns, row) for row in rows])
    blank = _row(table.columns, Row("", [_BLANK[column.kind] for column in table.columns]))
    yield f'</tbody></table></div><template data-row-of="{key}">{blank}</template></section>'


_BLANK: dict[str, Cell] = {
    "text": "",
    "number": Number("", 0),
    "state": State(""),
    "curve": Curve("", ""),
}


def _filter(key: str) -> str:
    return (
        f'<label class="filter" hidden>Filter <input type="search" data-filter="{key}"'
        ' autocomplete="off" spellcheck="false" aria-keyshortcuts="/"></label>'
    )


def _row(columns: Sequence[Column], row: Row) -> str:
    cells = [
        f'<td class="{_class(column)}"{_content(cell)}</td>'
        for column, cell in zip(columns[1:], row.cells[1:], strict=True)
    ]
    header = f'<th scope="row" class="{_class(columns[0])}"{_content(row.cells[0])}</th>'
    return f"<tr data-key={_quoted(row.key)}>{header}{''.join(cells)}</tr>\n"


def _class(column: Column) -> str:
    return f"{column.kind} minor" if column.minor else column.kind


def _content(cell: Cell) -> str:
    """The rest of the start tag, and what is in the element."""
    match cell:
        case str():
            return f">{escape(cell)}"
        case Number(text, value):
            return f' data-value="{value:g}">{escape(text)}'
        case State(word, detail):
            badge = f"<span data-state={_quoted(word)}>{escape(word)}</span>"
            return f">{badge}<small>{escape(detail)}</small>"
        case _:
            return f">{svg(cell)}"


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


# JSON.


def table_json(table: Table) -> Iterator[str]:
    """The rows: a list of objects, in pieces."""
    yield "["
    separator = ""
    for rows in _slices(table.rows):
        yield separator + ",".join([_row_json(row) for row in rows])
        separator = ","
    yield "]"


def _row_json(row: Row) -> str:
    return json.dumps([row.key, *[_cell_json(cell) for cell in row.cells]])


def _cell_json(cell: Cell) -> str | list[str | float]:
    match cell:
        case str():
            return cell
        case Number(text, value):
            return [text, value]
        case State(word, detail):
            return [word, detail]
        case _:
            return [cell.tx, cell.rx]


def _slices(rows: Iterable[Row]) -> Iterator[list[Row]]:
    piece = []
    for row in rows:
        piece.append(row)
        if len(piece) == ROWS_A_PIECE:
            yield piece
            piece = []
    if piece:
        yield piece
