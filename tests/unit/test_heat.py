"""When a ring becomes hot."""

from __future__ import annotations

import itertools

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


def kicks_until_hot(heat: Heat, gap: float, most: int = 10_000) -> int | None:
    """How many kicks it takes, one each `gap` seconds; None: so many are not enough."""
    for count in range(1, most + 1):
        heat.kicked(count * gap)
        if heat.is_hot:
            return count
    return None


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
    def test_kicks_that_a_worker_would_not_have_to_wait_for(self) -> None:
        count = kicks_until_hot(Heat(PATIENCE), 20e-6)
        assert count is not None
        assert QUICK_KICKS <= count <= 2 * QUICK_KICKS

    def test_kicks_that_are_late_as_a_task_had_to_wake_up(self) -> None:
        assert kicks_until_hot(Heat(PATIENCE), 0.9 * DOUBT * PATIENCE) is not None

    def test_kicks_that_are_too_far_apart(self) -> None:
        assert kicks_until_hot(Heat(PATIENCE), 1.1 * DOUBT * PATIENCE) is None

    def test_bursts_far_apart(self) -> None:
        """Some quick kicks are not enough if a pause follows, however long that is."""
        heat = Heat(PATIENCE)
        now = 0.0
        for _ in range(100):
            now += 1
            for _ in range(8):
                heat.kicked(now)
                now += 10e-6
                assert not heat.is_hot

    def test_a_pause_is_forgotten(self) -> None:
        heat = Heat(PATIENCE)
        heat.kicked(0)
        heat.kicked(3600)
        for count in range(2 * QUICK_KICKS):
            heat.kicked(3600 + count * 20e-6)
        assert heat.is_hot

    def test_never_without_patience(self) -> None:
        assert kicks_until_hot(Heat(0), 0.0) is None


class TestCooled:
    def test_begins_anew(self) -> None:
        heat = Heat(PATIENCE)
        first = kicks_until_hot(heat, 20e-6)
        heat.cooled(SUCCESS)
        assert not heat.is_hot
        assert kicks_until_hot(heat, 20e-6) == first

    def test_takes_longer_each_time_without_success(self) -> None:
        heat = Heat(PATIENCE)
        counts = []
        for _ in range(12):
            count = kicks_until_hot(heat, 20e-6)
            assert count is not None
            counts.append(count)
            heat.cooled(SUCCESS - 1)
        assert counts == sorted(counts)
        assert counts[2] > 2 * counts[0]
        assert counts[-1] == counts[-2] >= MOST_ATTEMPTS * QUICK_KICKS
        heat.cooled(SUCCESS)
        assert kicks_until_hot(heat, 20e-6) == counts[0]
