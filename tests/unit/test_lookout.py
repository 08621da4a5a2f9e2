"""One task that waits for the descriptors of many."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mvirt_net.dataplane.lookout import AT_ONCE, RETRY_PAUSE, Lookout


@pytest.fixture
async def lookout(nursery: trio.Nursery) -> AsyncIterator[Lookout]:
    with contextlib.closing(Lookout(nursery)) as lookout:
        yield lookout


@pytest.fixture
def events() -> Iterator[list[int]]:
    """Eventfds that count nothing yet."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(AT_ONCE + 1)]
    yield fds
    for fd in fds:
        os.close(fd)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_calls_once_for_each_watch(lookout: Lookout, events: list[int]) -> None:
    called: list[str] = []
    fd = events[0]
    lookout.watch(fd, lambda: called.append("first"))
    await settled()
    assert called == []
    os.eventfd_write(fd, 1)
    await settled()
    os.eventfd_write(fd, 1)
    await settled()
    assert called == ["first"]
    lookout.watch(fd, lambda: called.append("second"))
    await settled()
    assert called == ["first", "second"]


async def test_the_last_one_who_watches_is_called(lookout: Lookout, events: list[int]) -> None:
    called: list[str] = []
    lookout.watch(events[0], lambda: called.append("first"))
    lookout.watch(events[0], lambda: called.append("second"))
    os.eventfd_write(events[0], 1)
    await settled()
    assert called == ["second"]


async def test_forgotten(lookout: Lookout, events: list[int]) -> None:
    called: list[str] = []
    lookout.watch(events[0], lambda: called.append("first"))
    lookout.forget(events[0])
    lookout.forget(events[1])
    os.eventfd_write(events[0], 1)
    await settled()
    assert called == []


async def test_more_than_it_attends_to_at_once(lookout: Lookout, events: list[int]) -> None:
    called: set[int] = set()
    for fd in events:
        os.eventfd_write(fd, 1)
        lookout.watch(fd, lambda fd=fd: called.add(fd))  # type: ignore[misc]
    await settled()
    assert called == set(events)


async def test_bug_of_one_costs_nobody_else_anything(
    lookout: Lookout, events: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    called: list[str] = []
    os.eventfd_write(events[0], 1)
    lookout.watch(events[0], bug)
    await settled()
    lookout.watch(events[1], lambda: called.append("another"))
    os.eventfd_write(events[1], 1)
    await settled()
    assert called == ["another"]
    assert [record.message for record in caplog.records] == ["attending to a descriptor failed"]


async def test_descriptor_that_another_closes_in_the_same_moment(
    lookout: Lookout, events: list[int]
) -> None:
    """Its number is at once that of a new one, which is not called for that."""
    doomed, others = events[:2], events[2:]
    called: list[int] = []

    def close_the_other(mine: int, other: int) -> None:
        called.append(mine)
        lookout.forget(other)
        os.dup2(others[0], other)
        lookout.watch(other, lambda: called.append(-1))

    for mine, other in (doomed, reversed(doomed)):
        lookout.watch(mine, lambda mine=mine, other=other: close_the_other(mine, other))  # type: ignore[misc]
        os.eventfd_write(mine, 1)
    await settled()
    [first] = called
    [other] = set(doomed) - {first}
    os.eventfd_write(other, 1)
    await settled()
    assert called == [first, -1]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
async def test_what_cannot_be_watched(
    lookout: Lookout, events: list[int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Full:
        def modify(self, _fd: int, _events: int) -> None:
            raise OSError(number, os.strerror(number))

    called: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(lookout, "_epoll", Full())
        with pytest.raises(OSError, match=os.strerror(number)):
            lookout.watch(events[0], lambda: called.append("first"))
    lookout.watch(events[0], lambda: called.append("second"))
    os.eventfd_write(events[0], 1)
    await settled()
    assert called == ["second"]


async def test_one_that_was_called_is_forgotten(lookout: Lookout, events: list[int]) -> None:
    """Its file may be open elsewhere, and would stay in the kernel's list."""
    lookout.watch(events[0], lambda: None)
    os.eventfd_write(events[0], 1)
    await settled()
    lookout.forget(events[0])
    listed = Path(f"/proc/self/fdinfo/{lookout._epoll.fileno()}").read_text()
    assert "tfd" not in listed


async def test_goes_on_when_it_could_not_wait_for_a_while(
    lookout: Lookout,
    events: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: object,
) -> None:
    wait_readable, failures = trio.lowlevel.wait_readable, [errno.ENOSPC] * 3

    async def failing(fd: int) -> None:
        if failures:
            await trio.lowlevel.checkpoint()
            raise OSError(failures.pop(), "No space left on device")
        await wait_readable(fd)

    called: list[float] = []
    await settled()
    monkeypatch.setattr(trio.lowlevel, "wait_readable", failing)
    os.eventfd_write(events[0], 1)
    for _ in range(2):  # the first one by the wait that has begun already
        lookout.watch(events[0], lambda: called.append(trio.current_time()))
        await settled()
    began = trio.current_time()
    await trio.sleep(10 * RETRY_PAUSE)
    assert called == [began, pytest.approx(began + 3 * RETRY_PAUSE)]
    assert [record.message for record in caplog.records] == ["cannot wait for NICs"]


async def test_close_ends_its_task() -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            lookout = Lookout(nursery)
            await settled()
            lookout.close()
            lookout.close()
