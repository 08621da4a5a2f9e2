"""When a ring becomes hot."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from mvirt_net.dataplane.heat import (
    BUSY_DRAINS,
    DOUBT,
    FEW_PUNTS,
    MOST_ATTEMPTS,
    QUICK_KICKS,
    SUCCESS,
    Heat,
)

PATIENCE = 50e-6


def leave_work(heat: Heat) -> None:
    for _ in range(BUSY_DRAINS):
        heat.drained(left=True, punts=0)


class TestBusy:
    def test_drains_that_leave_work(self) -> None:
        heat = Heat(PATIENCE)
        for _ in range(BUSY_DRAINS):
            assert not heat.is_hot
            heat.drained(left=True, punts=0)
        assert heat.is_hot

    def test_in_a_row(self) -> None:
        heat = Heat(PATIENCE)
        for left in itertools.islice(itertools.cycle([True, True, False]), 100):
            heat.drained(left=left, punts=0)
            assert not heat.is_hot

    def test_with_much_for_services(self) -> None:
        heat = Heat(PATIENCE)
        for _ in range(100):
            heat.drained(left=True, punts=FEW_PUNTS + 1)
        assert not heat.is_hot

    def test_without_patience(self) -> None:
        heat = Heat(0)
        for _ in range(BUSY_DRAINS):
            heat.drained(left=True, punts=0)
        assert heat.is_hot


class TestQuick:
    def test_a_burst_is_as_quick_as_a_worker_would_wait_with_doubts(self) -> None:
        kicks, seconds = Heat(PATIENCE).burst
        assert kicks == QUICK_KICKS
        assert seconds == pytest.approx(kicks * DOUBT * PATIENCE)

    def test_hot_after_one(self) -> None:
        heat = Heat(PATIENCE)
        assert not heat.is_hot
        heat.kicked_quickly()
        assert heat.is_hot

    def test_no_burst_is_quick_without_patience(self) -> None:
        assert Heat(0).burst[1] == 0


class TestCooled:
    @pytest.mark.parametrize("cause", [Heat.kicked_quickly, leave_work])
    def test_begins_anew(self, cause: Callable[[Heat], None]) -> None:
        heat = Heat(PATIENCE)
        cause(heat)
        assert heat.is_hot
        heat.cooled(SUCCESS)
        assert not heat.is_hot
        assert heat.burst[0] == QUICK_KICKS

    def test_takes_longer_each_time_without_success(self) -> None:
        heat = Heat(PATIENCE)
        attempts = []
        for _ in range(12):
            kicks, seconds = heat.burst
            assert seconds == pytest.approx(kicks * DOUBT * PATIENCE)
            attempts.append(kicks // QUICK_KICKS)
            heat.cooled(SUCCESS - 1)
        assert attempts[:3] == [1, 2, 4]
        assert attempts[-1] == attempts[-2] == MOST_ATTEMPTS
        heat.cooled(SUCCESS)
        assert heat.burst[0] == QUICK_KICKS
