"""From counters to rates, and to lines that show them; nothing here waits or writes."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from .stats import Stats, dropped
from .tables import GAP, Column, least_width, render
from .text import printable

_UNITS = ("", "k", "M", "G", "T", "P")

_COLUMNS = (
    Column("NIC"),
    Column("NETWORK"),
    Column("STATE"),
    Column("TX-FRAMES/S", right=True),
    Column("TX-BIT/S", right=True),
    Column("RX-FRAMES/S", right=True),
    Column("RX-BIT/S", right=True),
    Column("DROPS/S", right=True),
)
_NETWORK, _STATE = 1, 2
_FRAMES, _BITS = (3, 5), (4, 6)
"""Where those columns are that a narrow terminal does without."""
_TROUBLE_LINES, _KEY_LINES = 3, 2
"""At most, so that NICs are to be seen."""


@attrs.frozen
class Sample:
    """What the daemon says at a moment."""

    at: float
    """Seconds of a clock that only goes forward."""
    nics: Mapping[str, Mapping[str, Any]]
    """Records, by name."""
    stats: Mapping[str, Stats]


@attrs.frozen
class Rates:
    """Of one NIC, a second; None where there is no earlier number to tell it from."""

    tx_frames: float | None = None
    tx_bits: float | None = None
    rx_frames: float | None = None
    rx_bits: float | None = None
    drops: float | None = None

    @classmethod
    def between(cls, before: Stats | None, after: Stats, seconds: float) -> Rates:
        """None for all when the NIC is new, or is another one of the same name by now."""
        if before is None or seconds <= 0:
            return cls()
        rise = [new - old for old, new in zip(_numbers(before), _numbers(after), strict=True)]
        return cls() if min(rise) < 0 else cls(*(number / seconds for number in rise))

    @classmethod
    def together(cls, every: Iterable[Rates]) -> Rates:
        """The sum of those that are known."""
        columns = zip(*(attrs.astuple(rates) for rates in every), strict=True)
        return cls(*(_sum(column) for column in columns))


@attrs.frozen
class Row:
    """A NIC between two samples."""

    name: str
    network: str
    state: str
    rates: Rates


class Order(enum.Enum):
    """What rows are sorted by; the largest first, but for names."""

    BITS = "bits"
    FRAMES = "frames"
    TX = "tx"
    RX = "rx"
    DROPS = "drops"
    NAME = "name"

    @property
    def key(self) -> str:
        """That chooses it."""
        return self.value[0]

    @property
    def dispensable(self) -> tuple[tuple[int, ...], ...]:
        """Columns that are left out when there is no room for them, these first."""
        return (_NETWORK,), (_STATE,), _BITS if self is Order.FRAMES else _FRAMES

    def sorted(self, rows: Iterable[Row]) -> list[Row]:
        return sorted(rows, key=lambda row: (-self._weight(row.rates), row.name))

    def _weight(self, rates: Rates) -> float:
        match self:
            case Order.BITS:
                return (rates.tx_bits or 0) + (rates.rx_bits or 0)
            case Order.FRAMES:
                return (rates.tx_frames or 0) + (rates.rx_frames or 0)
            case Order.TX:
                return rates.tx_bits or 0
            case Order.RX:
                return rates.rx_bits or 0
            case Order.DROPS:
                return rates.drops or 0
            case Order.NAME:
                return 0


HELP = ("q quit", "space now", "sort by:", *(f"{order.key} {order.value}" for order in Order))


@attrs.frozen
class View:
    """What has happened between two samples."""

    rows: tuple[Row, ...]
    seconds: float

    @classmethod
    def between(cls, before: Sample | None, after: Sample) -> View:
        seconds = 0.0 if before is None else after.at - before.at
        old = {} if before is None else before.stats
        rows = [
            Row(
                name,
                after.nics[name]["network"],
                after.nics[name]["state"],
                Rates.between(old.get(name), numbers, seconds),
            )
            for name, numbers in after.stats.items()
            if name in after.nics
        ]
        return cls(tuple(rows), seconds)

    def table(self, order: Order, width: int | None) -> list[str]:
        """Titles, then a line for each NIC."""
        rows = [
            (row.name, row.network, row.state, *map(human, attrs.astuple(row.rates)))
            for row in order.sorted(self.rows)
        ]
        shown = list(range(len(_COLUMNS)))
        columns, cells = _pick(shown, rows)
        for dispensable in order.dispensable:
            if width is None or least_width(columns, cells) <= width:
                break
            shown = [index for index in shown if index not in dispensable]
            columns, cells = _pick(shown, rows)
        return render(columns, cells, width)

    def summary(self) -> tuple[str, ...]:
        """All NICs together, in a few phrases."""
        total = Rates.together(row.rates for row in self.rows)
        active = sum(row.state == "active" for row in self.rows)
        return (
            f"{len(self.rows)} NICs, {active} active",
            f"tx {human(total.tx_frames)} frames/s {human(total.tx_bits)} bit/s",
            f"rx {human(total.rx_frames)} frames/s {human(total.rx_bits)} bit/s",
            f"drops {human(total.drops)}/s",
        )

    def as_json(self, at: datetime) -> dict[str, Any]:
        """For a program; rates are not rounded."""
        nics = [
            {
                "name": row.name,
                "network": row.network,
                "state": row.state,
                **{f"{name}_per_s": rate for name, rate in attrs.asdict(row.rates).items()},
            }
            for row in Order.NAME.sorted(self.rows)
        ]
        return {"at": at.isoformat(), "seconds": self.seconds, "nics": nics}


@attrs.frozen
class Page:
    """A screen full."""

    lines: list[str]
    first: int
    """Which row is at the top."""
    room: int
    """For how many there is room, titles not counted."""

    @classmethod
    def of(
        cls,
        view: View,
        order: Order,
        title: str,
        size: tuple[int, int],
        *,
        first: int = 0,
        trouble: str = "",
    ) -> Page:
        """Title, summary, as many NICs as there is room for, the keys.

        Args:
            view, order: what is shown.
            title: of the screen.
            size: columns and lines.
            first: the row that is to be at the top, if there are enough to fill the rest.
            trouble: to be said in place of the summary.
        """
        width, height = size
        summary = textwrap.wrap(trouble, max(width, 20))[:_TROUBLE_LINES]
        head = [printable(title), *(summary or wrap(view.summary(), width)), ""]
        keys = wrap(HELP, width)[:_KEY_LINES]
        titles, *rows = view.table(order, width)
        shown, first, room = _window(rows, height - len(head) - 1 - len(keys), first)
        filler = [""] * (height - len(head) - 1 - len(shown) - len(keys))
        lines = [*head, titles, *shown, *filler, *keys]
        return cls([line[:width] for line in lines][:height], first, room)


def _window(rows: list[str], room: int, first: int) -> tuple[list[str], int, int]:
    """What is to be seen, and of the rows the first and how many; the last line tells of others."""
    is_cut = len(rows) > room
    room = max(0, room - is_cut)
    first = max(0, min(first, len(rows) - room))
    shown, below = rows[first : first + room], len(rows) - first - room
    if is_cut:
        others = [f"{n} {where}" for n, where in ((first, "above"), (below, "below")) if n]
        shown.append(f"({', '.join(others)}; arrows scroll)")
    return shown, first, room


def wrap(phrases: Iterable[str], width: int) -> list[str]:
    """Phrases on as few lines as they need; only one that is too long by itself is longer."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and len(lines[-1]) + len(GAP) + len(phrase) <= width:
            lines[-1] += GAP + phrase
        else:
            lines.append(phrase)
    return lines


def _pick(
    shown: Sequence[int], rows: Sequence[Sequence[object]]
) -> tuple[list[Column], list[list[object]]]:
    """These columns, and their cells."""
    return [_COLUMNS[index] for index in shown], [[row[index] for index in shown] for row in rows]


def human(rate: float | None) -> str:
    """Three digits and a unit: ``0``, ``12``, ``1.23k``."""
    if rate is None:
        return "-"
    for unit in _UNITS:
        # What would be rounded to 1,000 belongs to the next unit.
        if rate < 999.5 or unit == _UNITS[-1]:
            break
        rate /= 1000
    if unit == "" or rate >= 99.95:
        return f"{rate:.0f}{unit}"
    return f"{rate:.1f}{unit}" if rate >= 9.995 else f"{rate:.2f}{unit}"


def _numbers(stats: Stats) -> Sequence[int]:
    """In the order of the fields of `Rates`."""
    return (
        stats["tx_frames"],
        stats["tx_bytes"] * 8,
        stats["rx_frames"],
        stats["rx_bytes"] * 8,
        dropped(stats),
    )


def _sum(column: Iterable[float | None]) -> float | None:
    known = [rate for rate in column if rate is not None]
    return sum(known) if known else None
