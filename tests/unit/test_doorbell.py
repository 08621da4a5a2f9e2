"""Tasks that wake one another, with and without a descriptor to wait for."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from mvirt_net.dataplane.doorbell import Doorbell

Wait = Callable[[Doorbell, int], Awaitable[None]]


async def wait(bell: Doorbell, _fd: int) -> None:
    await bell.wait()


async def wait_or_readable(bell: Doorbell, fd: int) -> None:
    await bell.wait_or_readable(fd)


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


async def waits(how: Wait, bell: Doorbell, fd: int) -> bool:
    """Whether the next wait does not end by itself."""
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def once() -> None:
            await how(bell, fd)
            ended.set()

        nursery.start_soon(once)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return not ended.is_set()


@pytest.mark.parametrize("how", [wait, wait_or_readable])
class TestDoorbell:
    async def test_wakes_who_waits_and_only_once(
        self, how: Wait, event: int, nursery: trio.Nursery
    ) -> None:
        bell = Doorbell()
        nursery.start_soon(how, bell, event)
        await trio.testing.wait_all_tasks_blocked()
        bell.ring()
        bell.ring()
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert await waits(how, bell, event)

    async def test_ring_while_nobody_waits_is_remembered(self, how: Wait, event: int) -> None:
        bell = Doorbell()
        bell.ring()
        with trio.testing.assert_checkpoints():
            await how(bell, event)
        assert await waits(how, bell, event)

    async def test_ring_after_a_cancelled_wait_is_remembered(self, how: Wait, event: int) -> None:
        bell = Doorbell()
        assert await waits(how, bell, event)
        bell.ring()
        assert not await waits(how, bell, event)


async def test_readable_ends_a_wait(event: int, nursery: trio.Nursery) -> None:
    bell = Doorbell()
    nursery.start_soon(bell.wait_or_readable, event)
    await trio.testing.wait_all_tasks_blocked()
    os.eventfd_write(event, 1)
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.child_tasks
