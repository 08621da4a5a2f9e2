"""The bound on what one guest costs the services."""

from __future__ import annotations

import pytest

from mvirt_net.dataplane.limit import BURST, COSTS, RATE, WorkLimit, cost_of
from mvirt_net.model import PuntKind


def test_a_burst_then_the_rate() -> None:
    limit = WorkLimit(rate=10, burst=5)
    assert [limit.take(1, 100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [limit.take(1, 100.2) for _ in range(3)] == [True] * 2 + [False]


def test_no_more_than_the_burst_is_saved_up() -> None:
    limit = WorkLimit(rate=10, burst=5)
    assert limit.take(5, 0.0)
    assert limit.take(5, 1e6)
    assert not limit.take(1, 1e6)


def test_what_is_refused_costs_nothing() -> None:
    limit = WorkLimit(rate=1, burst=3)
    assert not limit.take(4, 0.0)
    assert limit.take(3, 0.0)


@pytest.mark.parametrize("kind", [PuntKind.DHCPV4, PuntKind.DHCPV6])
def test_long_message_costs_what_it_may_take(kind: PuntKind) -> None:
    """Full of options it takes ten times as long as an ordinary one."""
    assert cost_of(kind, 342) == COSTS[kind]
    assert cost_of(kind, 1514) > 300


@pytest.mark.parametrize("kind", PuntKind)
def test_every_service_has_a_price_that_a_busy_guest_can_pay(kind: PuntKind) -> None:
    """512 NICs or one: a boot, with its retries, never meets the limit."""
    assert 100 * COSTS[kind] <= BURST <= RATE
