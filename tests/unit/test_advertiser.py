"""The task that advertises the router: when it sends, and when it does not."""

from __future__ import annotations

import pytest
import trio

from mvirt_net.dataplane.advertiser import RouterAdvertiser
from mvirt_net.dataplane.ndp import INITIAL_INTERVAL, NdpResponder
from mvirt_net.model import MacAddress
from tests.harness.clock import virtual_time

pytestmark = virtual_time


class Link:
    """What the advertiser is told of a guest's link, and what it sends."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[float] = []
        ndp = NdpResponder(MacAddress.parse("52:54:00:12:34:56"))
        self.advertiser = RouterAdvertiser(ndp, lambda: self.up, self._note)

    def _note(self, _frame: bytes) -> None:
        self.sent.append(trio.current_time())

    def turn(self, up: bool) -> None:
        self.up = up
        self.advertiser.follow_link()


@pytest.mark.parametrize("attempt", range(20))
async def test_link_that_goes_down_in_the_moment_in_which_one_is_due(
    nursery: trio.Nursery, attempt: int
) -> None:
    """Which of two tasks runs first in one turn is up to trio, so it is tried several times."""
    link = Link()
    nursery.start_soon(link.advertiser.run)
    began = trio.current_time()
    await trio.sleep_until(began + INITIAL_INTERVAL)
    link.turn(False)
    assert len(link.sent) <= 1, attempt
    sent = len(link.sent)
    await trio.sleep(3600)
    assert len(link.sent) == sent
    link.turn(True)
    again = trio.current_time()
    await trio.sleep(INITIAL_INTERVAL + 1)
    assert link.sent[sent:] == [again + INITIAL_INTERVAL]
