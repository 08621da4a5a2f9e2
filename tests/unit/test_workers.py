"""How rings are spread among workers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import PollingSpec
from mvirt_net.dataplane.workers import Workers
from mvirt_net.ffi import HotRing

from .rig import Rig, open_rig
from .test_ffi_poller import DROPPED, wait_taken

PATIENCE = 1_000_000


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    with contextlib.ExitStack() as stack:
        rigs = [stack.enter_context(open_rig()) for _ in range(3)]
        for rig in rigs:
            rig.start()
        yield rigs


def pollers(rings: list[HotRing]) -> list[int]:
    """How many rings each poller has that has any."""
    having = [ring._poller for ring in rings]
    return sorted(having.count(poller) for poller in set(having))


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    async with trio.open_nursery() as nursery:
        with contextlib.closing(
            Workers(PollingSpec(workers=2, busy_poll=PATIENCE), nursery)
        ) as two:
            yield two


@pytest.mark.parametrize("cooling", range(3))
async def test_spread_anew_when_one_cools_down(
    workers: Workers, rigs: list[Rig], cooling: int
) -> None:
    """Whichever it is, all others are polled on, by two workers."""
    with contextlib.ExitStack() as stack:
        rings, cool = [], []
        for rig in rigs:
            polling = stack.enter_context(contextlib.ExitStack())
            ring = polling.enter_context(workers.polling(rig.port))
            assert ring is not None
            rings.append(ring)
            cool.append(polling)
        assert pollers(rings) == [1, 2]
        await wait_all_tasks_blocked()
        cool[cooling].close()
        del rings[cooling], rigs[cooling]
        assert pollers(rings) == [1, 1]
        assert workers.hot_rings == 2
        for rig in rigs:
            rig.send(DROPPED)
            wait_taken(rig, 1)
    assert workers.hot_rings == 0


async def test_stay_where_they_are_while_they_are_spread(workers: Workers, rigs: list[Rig]) -> None:
    with contextlib.ExitStack() as stack:
        rings = [stack.enter_context(workers.polling(rig.port)) for rig in rigs[:2]]
        before = [ring._poller for ring in rings if ring is not None]
        with workers.polling(rigs[2].port):
            assert workers.hot_rings == 3
        assert [ring._poller for ring in rings if ring is not None] == before


async def test_given_back_when_the_workers_end(workers: Workers, rigs: list[Rig]) -> None:
    with contextlib.ExitStack() as stack:
        rings = [stack.enter_context(workers.polling(rig.port)) for rig in rigs]
        workers.close()
        assert all(ring is not None and ring.released for ring in rings)
    assert workers.hot_rings == 0
