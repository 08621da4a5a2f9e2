"""Mapping guest memory where that may take long: whose turn it is, and who closes what."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
from collections.abc import Iterator

import attrs
import pytest
import trio
import trio.testing

from mvirt_net.dataplane import mapping
from mvirt_net.dataplane.mapping import MAPPING_TIME_LIMIT, map_prepared
from mvirt_net.errors import ConnectionBroken, CoreError
from mvirt_net.ffi import GuestMemory, Mapping, unmap_aside
from mvirt_net.model import MemoryRegion
from tests.harness.clock import virtual_time
from tests.harness.footprint import mappings_of

from .rig import Rig, open_rig

pytestmark = virtual_time
"""It does not wait for threads, so any time limit passes while one waits for the test."""

SIZE = 1 << 20


@attrs.define(eq=False)
class Slow(Mapping):
    """Is mapped when the test lets it be."""

    may_wait: bool = True
    release: threading.Event = attrs.field(factory=threading.Event)
    begun: threading.Event = attrs.field(factory=threading.Event)
    fd: int = -1
    closed: threading.Event = attrs.field(factory=threading.Event)

    def map(self, fd: int) -> bool:
        self.fd = fd
        self.begun.set()
        assert self.release.wait(30)
        os.fstat(fd)
        return True

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with open_rig() as rig:
        yield rig


async def begins(slow: Slow) -> None:
    """Time stands still until the thread maps."""
    while not slow.begun.is_set():
        await trio.lowlevel.checkpoint()


async def turn_ends() -> None:
    """The thread that had it is gone, and has said so."""
    turn = mapping._turn.get()
    while turn.borrowed_tokens:
        await trio.lowlevel.checkpoint()


async def finish(nursery: trio.Nursery) -> None:
    """Time stands still until all tasks have what they wait for, and no thread has a turn."""
    while nursery.child_tasks:
        await trio.lowlevel.checkpoint()
    await turn_ends()


async def get_stuck(rig: Rig, memfd: int) -> Slow:
    """A thread that maps, and whose connection is over."""
    slow = Slow()

    async def too_long() -> None:
        with pytest.raises(ConnectionBroken, match="too long"):
            await map_prepared([(slow, memfd)], rig.port)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(too_long)
        await begins(slow)
    return slow


async def test_in_the_loop_where_nothing_can_wait(
    rig: Rig, memfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it takes as little time as it can, and none of a virtual clock's."""
    slow = Slow(may_wait=False)
    slow.release.set()
    monkeypatch.setattr(threading.Thread, "start", None)
    with trio.testing.assert_no_checkpoints():
        await map_prepared([(slow, memfd)], rig.port)
    assert slow.fd == memfd


async def test_order_is_kept_up_to_one_that_cannot_be(rig: Rig, memfd: int) -> None:
    spec = MemoryRegion(0, SIZE, 0, 0)
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(contextlib.closing(GuestMemory.empty(rig.fault_fd)))
        pipe, other_end = os.pipe()
        stack.callback(os.close, pipe)
        stack.callback(os.close, other_end)
        prepared = [(table.prepare(spec, fd), fd) for fd in (memfd, pipe, memfd)]
        for one, _ in prepared:
            stack.enter_context(contextlib.closing(one))
        assert mappings_of(memfd) == 0
        await map_prepared(prepared, rig.port)
        assert mappings_of(memfd) == 1
        with pytest.raises(CoreError):
            table.with_mapping(prepared[1][0])
        table.with_mapping(prepared[0][0]).close()
    assert mappings_of(memfd) == 0


async def test_loop_goes_on_meanwhile(rig: Rig, memfd: int) -> None:
    """The thread has a descriptor of its own."""
    slow = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(map_prepared, [(slow, memfd)], rig.port)
        await begins(slow)
        assert slow.fd != memfd
        slow.release.set()
        await finish(nursery)
    assert not slow.closed.is_set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(slow.fd)


async def test_too_long(rig: Rig, memfd: int) -> None:
    """The thread cannot be stopped. It keeps its descriptor, and closes all when it ends."""
    began = trio.current_time()
    slow = await get_stuck(rig, memfd)
    assert trio.current_time() - began == pytest.approx(MAPPING_TIME_LIMIT)
    os.fstat(slow.fd)
    assert not slow.closed.is_set()
    slow.release.set()
    await turn_ends()
    assert slow.closed.is_set()


async def test_one_thread_however_many_come(rig: Rig, memfd: int) -> None:
    """Others wait for it, whatever they have to map, and that is not held against them."""
    stuck, next_ = await get_stuck(rig, memfd), Slow(may_wait=False)
    threads = threading.active_count()
    with open_rig() as other:
        await _come_next(other, memfd, stuck, next_, threads)
    assert not next_.closed.is_set()


async def _come_next(rig: Rig, memfd: int, stuck: Slow, next_: Slow, threads: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(map_prepared, [(next_, memfd)], rig.port)
        await trio.sleep(100 * MAPPING_TIME_LIMIT)
        assert not next_.begun.is_set()
        assert threading.active_count() == threads
        stuck.release.set()
        await begins(next_)
        next_.release.set()
        await finish(nursery)


async def test_gone_before_its_turn(rig: Rig, memfd: int) -> None:
    stuck, waiting = await get_stuck(rig, memfd), Slow()
    with trio.move_on_after(1) as scope:
        await map_prepared([(waiting, memfd)], rig.port)
    assert scope.cancelled_caught
    assert waiting.closed.is_set()
    stuck.release.set()
    await turn_ends()
    assert not waiting.begun.is_set()


async def test_gone_before_the_thread_begins(rig: Rig, memfd: int) -> None:
    slow = Slow()
    with trio.CancelScope() as scope:
        scope.cancel()
        await map_prepared([(slow, memfd)], rig.port)
    assert slow.closed.is_set()
    assert not slow.begun.is_set()
    assert mapping._turn.get().borrowed_tokens == 0


async def test_without_descriptors(rig: Rig, memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [Slow(), Slow()]
    copies = iter([os.dup(memfd)])

    def dup(_fd: int) -> int:
        for copy in copies:
            return copy
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(OSError, match="Too many open files"):
        await map_prepared([(one, memfd) for one in slow], rig.port)
    assert all(one.closed.is_set() for one in slow)


async def test_port_owes_for_it(rig: Rig, memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "SLOW_MAPPING", 0.0)
    stuck = await get_stuck(rig, memfd)
    assert rig.port.owes == 0
    stuck.release.set()
    await turn_ends()
    assert rig.port.owes > 0


async def test_port_pays_before_it_takes_more(
    rig: Rig, memfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "SLOW_MAPPING", math.inf)
    rig.port.charge(1.0)
    began, slow = trio.current_time(), Slow()
    slow.release.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(map_prepared, [(slow, memfd)], rig.port)
        await trio.sleep(99)
        assert not slow.begun.is_set()
        await trio.sleep_until(began + 100)
        await finish(nursery)
    assert slow.begun.is_set()
    assert rig.port.owes == 0


async def test_port_pays_for_what_it_has_waited_for(rig: Rig, memfd: int) -> None:
    """That was its own, so its turn comes later."""
    stuck, next_ = await get_stuck(rig, memfd), Slow()
    next_.release.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(map_prepared, [(next_, memfd)], rig.port)
        await trio.testing.wait_all_tasks_blocked()
        rig.port.charge(1.0)
        stuck.release.set()
        await turn_ends()
        assert not next_.begun.is_set()
        # A little longer: what it owes gets less by a clock that does not stand still.
        await trio.sleep(rig.port.owes + 1)
        await finish(nursery)
    assert next_.begun.is_set()


async def test_unmapped_by_another_thread(rig: Rig, memfd: int) -> None:
    """Which is how nobody waits for it while a mapping is under way."""
    empty = GuestMemory.empty(rig.fault_fd)
    table = empty.with_region(MemoryRegion(0, SIZE, 0, 0), memfd)
    unmap_aside(True)
    table.close()
    empty.close()
    unmap_aside(False)
    while mappings_of(memfd):
        pass
