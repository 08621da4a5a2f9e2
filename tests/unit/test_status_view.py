"""Words and numbers of the status page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mvirt_net.api.view import duration, natural, scaled

START = datetime(2026, 11, 29, tzinfo=UTC)


def test_names_with_numbers_are_in_the_order_of_the_numbers() -> None:
    names = ["9", "10", "db", "vm", "vm1", "vm1a", "vm2", "vm9.x", "vm10", "vm10.1"]
    shuffled = [*names[5:], *names[:5]]
    assert sorted(shuffled, key=natural) == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (0.5, "0.5 B"),
        (999.4, "999 B"),
        (999.6, "1 kB"),
        (12_345, "12.3 kB"),
        (999_600_000, "1 GB"),
        (1.5e12, "1.5 TB"),
    ],
)
def test_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert scaled(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "0 h 0 min"), (3661, "1 h 1 min"), (2 * 86_400 + 3 * 3600 + 61, "2 d 3 h 1 min")],
)
def test_how_long_it_is_up(seconds: int, text: str) -> None:
    assert duration(START + timedelta(seconds=seconds), START) == text
