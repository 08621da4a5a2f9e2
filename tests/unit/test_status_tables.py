"""Tables and curves of the status page: escaped, bounded, in pieces, and the same as JSON."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvirt_net.activity import SAMPLES
from mvirt_net.api.tables import (
    FLOOR,
    HEIGHT,
    ROWS_A_PIECE,
    WIDTH,
    Column,
    Curve,
    Number,
    Row,
    State,
    Table,
    curve,
    svg,
    table_html,
    table_json,
)

COLUMNS = (Column("Name"), Column("State", "state"), Column("N", "number"), Column("C", "curve"))
HOSTILE = "</td><script>alert(1)</script>&\"'<!--"


def table(rows: list[Row], **fields: Any) -> Table:
    return Table("key", "Title", COLUMNS, rows, "Nothing.", **fields)


def row(key: str, text: str = "text", value: float = 1.0) -> Row:
    return Row(key, (text, State(text, text), Number(text, value), Curve("0,0 1,1", "2,2")))


@attrs.define(slots=False)
class Seen(HTMLParser):
    """What a browser would see: elements, with their attributes, and text."""

    elements: list[tuple[str, dict[str, str | None]]] = attrs.field(factory=list)
    texts: list[str] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @classmethod
    def of(cls, html: str) -> Seen:
        seen = cls()
        seen.feed(html)
        seen.close()
        return seen

    def attribute(self, name: str) -> list[str | None]:
        return [attributes[name] for _tag, attributes in self.elements if name in attributes]


def test_text_is_never_markup() -> None:
    seen = Seen.of("".join(table_html(table([row(HOSTILE, HOSTILE)]))))
    plain = Seen.of("".join(table_html(table([row("x", "x")]))))
    assert [tag for tag, _ in seen.elements] == [tag for tag, _ in plain.elements]
    assert seen.texts.count(HOSTILE) == 4
    assert HOSTILE in seen.attribute("data-key")
    assert HOSTILE in seen.attribute("data-state")


@given(st.text())
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    seen = Seen.of(svg(Curve("", ""), label=text + "x"))
    assert seen.attribute("aria-label") == [text.replace("\r", "\r") + "x"]
    [[key, *cells]] = json.loads("".join(table_json(table([row(text, text)]))))
    assert (key, cells[:2]) == (text, [text, [text, text]])


def test_json_has_what_the_html_has() -> None:
    rows = [row("a", "one", 1.5), row("b", "two", 2.5)]
    assert json.loads("".join(table_json(table(rows)))) == [
        ["a", "one", ["one", "one"], ["one", 1.5], ["0,0 1,1", "2,2"]],
        ["b", "two", ["two", "two"], ["two", 2.5], ["0,0 1,1", "2,2"]],
    ]


def test_headers_are_headers() -> None:
    seen = Seen.of("".join(table_html(table([row("a")]))))
    assert [a["scope"] for tag, a in seen.elements if tag == "th"] == ["col"] * 4 + ["row"] * 2
    [region] = [a for _, a in seen.elements if a.get("role") == "region"]
    assert region["aria-labelledby"] in seen.attribute("id")


def test_no_styles_and_no_handlers_in_the_markup() -> None:
    html = "".join(table_html(table([row("a")], filterable=True)))
    for _tag, attributes in Seen.of(html).elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("count", [0, 1, ROWS_A_PIECE, 5 * ROWS_A_PIECE + 1])
def test_many_rows_come_in_pieces(count: int) -> None:
    rows = [row(str(number)) for number in range(count)]
    html, text = list(table_html(table(rows))), list(table_json(table(rows)))
    assert len(json.loads("".join(text))) == count
    for pieces in (html, text):
        assert max(piece.count("0,0 1,1") for piece in pieces) <= max(ROWS_A_PIECE, 1)
    # And one in the template of new rows.
    assert "".join(html).count("<tr data-key") == count + 1


# Curves.


def test_no_samples_make_no_curve() -> None:
    assert curve([], []) == Curve("", "")


def test_the_newest_sample_is_at_the_right() -> None:
    top = 2 * FLOOR
    assert curve([0.0, top], [top / 2, 0.0]) == Curve(
        f"{WIDTH - 2},{HEIGHT} {WIDTH},0", f"{WIDTH - 2},{HEIGHT // 2} {WIDTH},{HEIGHT}"
    )


def test_both_curves_have_the_same_scale_and_it_has_a_floor() -> None:
    assert curve([FLOOR / 2], [0.0]) == Curve(
        f"{WIDTH},{HEIGHT // 2}", f"{WIDTH},{HEIGHT} {WIDTH},{HEIGHT}"
    )
    assert curve([FLOOR], [4 * FLOOR]).tx == f"{WIDTH},{HEIGHT - HEIGHT // 4}"


RATES = st.lists(st.floats(0, 1e13), max_size=SAMPLES)


@given(RATES, RATES)
def test_every_point_is_in_the_picture(tx: list[float], rx: list[float]) -> None:
    curves = curve(tx, rx)
    for values, points in ((tx, curves.tx), (rx, curves.rx)):
        pairs = [tuple(map(int, point.split(","))) for point in points.split()]
        assert len(pairs) <= max(len(values), 2)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in pairs)
        assert not values or pairs[-1][0] == WIDTH
