"""What `Scene.assert_unharmed` is for: each kind of harm makes it fail."""

from __future__ import annotations

import os

import pytest
import trio

from mvirt_net.ffi import GuestMemory
from mvirt_net.model import MemoryRegion
from tests.harness.clock import virtual_time
from tests.harness.scene import MEMORY_LIMIT, Scene, at_most_steps

pytestmark = virtual_time


async def test_nothing_has_happened(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)
    for _ in range(2):
        await scene.assert_unharmed()


async def test_descriptor_left_open(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)
    fd = os.eventfd(0)
    with pytest.raises(AssertionError, match="left open"):
        await scene.assert_unharmed()
    os.close(fd)


async def test_memory_left_mapped(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    memory = GuestMemory.empty(fault_fd=fd).with_region(MemoryRegion(0, 4096, 0, 0), fd)
    os.close(fd)
    with pytest.raises(AssertionError, match="still mapped"):
        await scene.assert_unharmed()
    memory.close()


async def test_memory_left_allocated(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)
    # Much more than the limit, as what other tests have freed may be used again.
    hoard = b"\1" * (8 * MEMORY_LIMIT)
    with pytest.raises(AssertionError, match="bytes more"):
        await scene.assert_unharmed()
    assert hoard


async def test_task_that_spins(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)

    async def spin() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    nursery.start_soon(spin)
    with pytest.raises(AssertionError, match="coming to rest"):
        await scene.assert_unharmed()
    nursery.cancel_scope.cancel()


async def test_task_that_wakes_too_often(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)

    async def poll() -> None:
        while True:  # noqa: ASYNC110  (waking too often is the point)
            await trio.sleep(0.01)

    nursery.start_soon(poll)
    with pytest.raises(AssertionError, match="a second without work"):
        await scene.assert_unharmed()
    nursery.cancel_scope.cancel()


async def test_bystander_that_gets_no_answer(nursery: trio.Nursery) -> None:
    scene = await Scene.start(nursery)
    scene.bystander.disconnect()
    with pytest.raises(trio.TooSlowError):
        await scene.assert_unharmed()


async def test_steps_are_counted() -> None:
    with at_most_steps(100, "this"):
        await take_steps(50)
    with pytest.raises(AssertionError, match="this took more than 100 steps"):
        await take_too_many_steps()


async def take_too_many_steps() -> None:
    with at_most_steps(100, "this"):
        await take_steps(200)


async def take_steps(number: int) -> None:
    for _ in range(number):
        await trio.lowlevel.checkpoint()
