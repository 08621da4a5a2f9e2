"""Watchers: who reads is never cut off, who does not costs nothing in the long run."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from mvirt_net.model import NicSpec
from mvirt_net.records import Change, NicRecord, NicState
from mvirt_net.watching import WATCH_BACKLOG, WATCH_LIMIT, WATCH_PATIENCE, Watch, Watchers

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def tell(watchers: Watchers, count: int) -> None:
    for number in range(count):
        watchers.tell(Change("nic", str(number), NOW, None))


async def read(watch: Watch, count: int) -> list[str]:
    return [(await watch.receive()).id for _ in range(count)]


async def test_all_hear_the_same_in_order() -> None:
    watchers = Watchers()
    with watchers.watch() as first, watchers.watch() as second:
        tell(watchers, 3)
        with watchers.watch() as late:
            tell(watchers, 1)
            assert await read(first, 4) == await read(second, 4) == ["0", "1", "2", "0"]
            assert await read(late, 1) == ["0"]


async def test_waits_for_news(nursery: trio.Nursery) -> None:
    watchers = Watchers()
    with watchers.watch() as watch:
        async with trio.open_nursery() as reading:
            reading.start_soon(read, watch, 1)
            await trio.testing.wait_all_tasks_blocked()
            tell(watchers, 1)
        with trio.move_on_after(0):
            await watch.receive()
        tell(watchers, 1)
        assert await read(watch, 1) == ["0"]


async def test_much_at_once_cuts_off_nobody_who_reads(mock_clock: MockClock) -> None:
    """Even after a long time in which there was nothing to read, and with pauses."""
    watchers = Watchers()
    with watchers.watch() as watch:
        mock_clock.jump(3600)
        tell(watchers, 10_000)
        for _ in range(10):
            mock_clock.jump(WATCH_PATIENCE * 0.9)
            tell(watchers, 1)
            await read(watch, 1000)
        assert await read(watch, 10) == ["0"] * 10


async def test_who_does_not_read_is_cut_off(mock_clock: MockClock) -> None:
    watchers = Watchers()
    with watchers.watch() as slow, watchers.watch() as fast:
        tell(watchers, WATCH_BACKLOG)
        await read(fast, WATCH_BACKLOG)
        mock_clock.jump(WATCH_PATIENCE)
        tell(watchers, 1)
        assert [change async for change in slow] == []
        assert await read(fast, 1) == ["0"]


async def test_a_short_backlog_may_be_as_old_as_it_likes(mock_clock: MockClock) -> None:
    watchers = Watchers()
    with watchers.watch() as watch:
        for _ in range(WATCH_BACKLOG):
            mock_clock.jump(WATCH_PATIENCE)
            tell(watchers, 1)
        await read(watch, WATCH_BACKLOG)


async def test_nobody_is_behind_without_limit(mock_clock: MockClock) -> None:
    watchers = Watchers()
    with watchers.watch() as watch:
        tell(watchers, WATCH_LIMIT)
        await read(watch, 1)
        tell(watchers, 2)
        with pytest.raises(trio.EndOfChannel):
            await watch.receive()


async def test_prefixes_count_as_they_take_memory(mock_clock: MockClock) -> None:
    spec = NicSpec(
        name="vm1",
        network="blue",
        routed_ipv4_prefixes=[f"192.0.2.{host}/32" for host in range(255)],
        routed_ipv6_prefixes=["2001:db8::/48"],
    )
    record = NicRecord(
        id="x",
        network_id="y",
        spec=spec,
        state=NicState.CREATED,
        created_at=NOW,
        updated_at=NOW,
        in_file=False,
        error="",
    )
    watchers = Watchers()
    with watchers.watch() as slow, watchers.watch() as reading:
        for _ in range(WATCH_LIMIT // 257 + 1):
            watchers.tell(Change("nic", "x", NOW, record))
            await read(reading, 1)
        with pytest.raises(trio.EndOfChannel):
            await slow.receive()
        tell(watchers, 1)
        assert await read(reading, 1) == ["0"]


async def test_what_nobody_is_to_hear_any_more_is_not_kept() -> None:
    watchers = Watchers()
    with watchers.watch() as watch:
        change = Change("nic", "x", NOW, None)
        kept = weakref.ref(change)
        watchers.tell(change)
        tell(watchers, 1)
        del change
        await read(watch, 2)
        gc.collect()
        assert kept() is None


async def test_the_end() -> None:
    """What was told before is heard, by who watches already."""
    watchers = Watchers()
    with watchers.watch() as watch:
        tell(watchers, 2)
        watchers.close()
        assert [change.id async for change in watch] == ["0", "1"]
        with watchers.watch() as late:
            assert [change async for change in late] == []


async def test_a_watcher_that_leaves() -> None:
    watchers = Watchers()
    with watchers.watch() as watch:
        tell(watchers, 1)
        async with watch:
            pass
        tell(watchers, 1)
        with pytest.raises(trio.EndOfChannel):
            await watch.receive()
