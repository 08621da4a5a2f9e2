"""That the benchmarks run and report what they should; never what they measure."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable

import pytest

from bench.calls import calls
from bench.core import ring_core
from bench.echo import inline
from bench.figures import QUICK, Cell, Row, Scale, Table, quantile, ratio, spread, take_turns
from bench.hot import hot_rings
from bench.many import many
from bench.report import as_json, machine, markdown, number, text
from bench.roundtrip import round_trips
from bench.routing import routing
from bench.throughput import throughput


def check(table: Table) -> None:
    """Each cell has a column and is a figure, unless there were too few rounds for it."""
    assert table.rows
    for row in table.rows:
        figures = {name: cell for name, cell in row.cells.items() if cell is not None}
        assert figures.keys() >= set(table.columns) - {"± %"}
        assert all(math.isfinite(cell) and cell > 0 for cell in figures.values()), row


@pytest.mark.parametrize("measure", [ring_core, routing, calls, inline])
def test_measurement_in_one_process(measure: Callable[[Scale], Table]) -> None:
    check(measure(QUICK))


@pytest.mark.parametrize("measure", [round_trips, throughput])
async def test_measurement_through_a_daemon(measure: Callable[[Scale], Awaitable[Table]]) -> None:
    check(await measure(QUICK))


def test_many_guests_boot_and_are_served() -> None:
    table = many(QUICK)
    few, all_ = table.rows
    assert all_.name == f"{QUICK.many} NICs"
    assert few.cells.keys() < all_.cells.keys() == set(table.columns)
    for row in table.rows:
        lease, dhcp = row.cells["last lease, s"], row.cells["of it DHCP, s"]
        assert lease is not None
        assert dhcp is not None
        assert 0 < dhcp < lease


async def test_hot_rings_spare_notifications() -> None:
    table = await hot_rings(QUICK)
    assert {name for row in table.rows for name in row.cells} == set(table.columns)
    for row in table.rows:
        writes = row.cells["eventfd writes"]
        assert writes is not None
        if "COLD" in row.name:
            assert writes > 0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (1.0, 100)]
)
def test_quantile_is_a_value_that_occurred(share: float, expected: float) -> None:
    assert quantile(list(range(100, 0, -1)), share) == expected


def test_turns_are_taken_by_all_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def subject(name: str) -> int:
        order.append(name)
        return order.count(name)

    results = take_turns({"a": lambda: subject("a"), "b": lambda: subject("b")}, 2)
    assert order == ["a", "b"] * 3
    assert results == {"a": [2, 3], "b": [2, 3]}


def test_ratio_compares_within_a_round() -> None:
    assert ratio([2, 20, 600], [1, 10, 300]) == 2


def test_spread_is_half_the_quartile_distance_and_needs_four_rounds() -> None:
    assert spread([10, 10, 10, 10]) == 0
    assert spread([90, 90, 110, 110]) == pytest.approx(10)
    assert spread([1, 2, 3]) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((None, "-"), (0.0, "0.00"), (1.2345, "1.23"), (12.345, "12.3")),
        *((461234.0, "461,000"), (7, "7"), (1234, "1,234")),
    ],
)
def test_number_has_three_digits_and_a_count_all(value: Cell, expected: str) -> None:
    assert number(value) == expected


def test_report_for_people_and_for_programs() -> None:
    table = Table("t", "A title", ("µs", "÷ peer"), [Row("a", {"µs": 1.5})], ["a note"])
    assert text(table).splitlines() == [
        "A title (t)",
        "",
        "        µs   ÷ peer",
        "a     1.50        -",
        "  a note",
    ]
    assert markdown(table).splitlines() == [
        "## A title",
        "",
        "| | µs | ÷ peer |",
        "|---|--:|--:|",
        "| a | 1.50 | - |",
        "",
        "- a note",
    ]
    report = json.loads(json.dumps(as_json(machine(), [table])))
    assert report["tables"]["t"]["rows"] == [{"name": "a", "cells": {"µs": 1.5}}]
    assert {"kernel", "processor", "python", "trio"} <= report["machine"].keys()
