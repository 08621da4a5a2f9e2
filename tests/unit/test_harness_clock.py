"""Virtual time for a whole module, by its `pytestmark`."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.harness.clock import virtual_time

pytestmark = virtual_time


@pytest.fixture
async def started() -> float:
    return trio.current_time()


async def test_time_jumps(started: float) -> None:
    assert isinstance(trio.lowlevel.current_clock(), MockClock)
    await trio.sleep(3600)
    assert trio.current_time() - started == 3600


async def test_a_clock_of_the_tests_own_counts(mock_clock: MockClock) -> None:
    assert trio.lowlevel.current_clock() is mock_clock
