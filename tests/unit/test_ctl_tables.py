"""Tables and texts of the client."""

from __future__ import annotations

import json

import pytest

from mvirt_net.ctl.tables import Column, fields, render
from mvirt_net.ctl.text import printable, to_json, words

COLUMNS = (Column("NAME"), Column("FRAMES", right=True), Column("SOCKET", keep_end=True))
ROWS = [("vm1", 12, "/run/mvirt-net/vm1.sock"), ("database", 3456789, None)]


class TestTable:
    def test_columns_are_aligned(self) -> None:
        assert render(COLUMNS, ROWS) == [
            "NAME       FRAMES  SOCKET",
            "vm1            12  /run/mvirt-net/vm1.sock",
            "database  3456789  -",
        ]

    def test_wide_text_is_cut_for_a_terminal(self) -> None:
        assert render(COLUMNS, ROWS, 30) == [
            "NAME       FRAMES  SOCKET",
            "vm1            12  ../vm1.sock",
            "database  3456789  -",
        ]

    def test_the_beginning_of_a_name_is_kept(self) -> None:
        lines = render((Column("NAME"),), [("a" * 30,)], 12)
        assert lines == ["NAME", "aaaaaaaaaa.."]

    @pytest.mark.parametrize("width", [1, 8, 20, 25])
    def test_nothing_is_wider_than_the_terminal(self, width: int) -> None:
        assert all(len(line) <= width for line in render(COLUMNS, ROWS, width))

    def test_numbers_are_never_cut_for_text(self) -> None:
        assert "3456789" in render(COLUMNS, ROWS, 27)[2]

    def test_without_rows(self) -> None:
        assert render(COLUMNS, []) == ["NAME  FRAMES  SOCKET"]

    def test_a_list_is_one_cell(self) -> None:
        assert render((Column("DNS"),), [(["1.1.1.1", "8.8.8.8"],), ([],)])[1:] == [
            "1.1.1.1, 8.8.8.8",
            "-",
        ]

    def test_fields(self) -> None:
        assert fields([("name", "vm1"), ("mac_address", None)]) == [
            "name:         vm1",
            "mac_address:  -",
        ]


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("vm1", "vm1"),
            ("größe", "größe"),
            ("\x1b[2J", r"\x1b[2J"),
            ("a\nb\tc\rd", r"a\nb\tc\rd"),
            ("\x7f\x9b", r"\x7f\x9b"),
            ("\u202eevil", r"\u202eevil"),
            ("\ud800", r"\ud800"),
        ],
    )
    def test_nothing_moves_the_cursor(self, text: str, shown: str) -> None:
        assert printable(text) == shown

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (True, "yes"),
            (False, "no"),
            (0, "0"),
            (None, "-"),
            ("", "-"),
            ([], "-"),
            ([1, 2], "1, 2"),
        ],
    )
    def test_words(self, value: object, shown: str) -> None:
        assert words(value) == shown

    @pytest.mark.parametrize("indent", [None, 2])
    def test_json_has_no_control_characters(self, indent: int | None) -> None:
        value = {"a\x7f": "".join(map(chr, range(0x100)))}
        text = to_json(value, indent=indent)
        assert all(0x20 <= ord(char) < 0x7F for char in text.replace("\n", ""))
        assert json.loads(text) == value
        assert ("\n" in text) == (indent is not None)
