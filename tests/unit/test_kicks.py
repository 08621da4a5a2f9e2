"""The watcher of a switch as its tasks see it, down to its end."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest
import trio

from mvirt_net.dataplane.kicks import KickWatcher
from mvirt_net.ffi import NextStep, Poller, Watcher

from .rig import Rig, open_rig
from .test_ffi_poller import DROPPED, FOR_EVER, hot, running, wait_taken


class Bell:
    """Of a task that waits for its ring."""

    def __init__(self) -> None:
        self.rung = trio.Event()

    def ring(self) -> None:
        self.rung.set()


@pytest.fixture
def kick() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def started(rig: Rig) -> Rig:
    rig.start()
    assert rig.port.drain().next is NextStep.KICK
    return rig


async def test_who_has_a_ring_watched_gets_it_back_at_the_end(kick: int) -> None:
    bell = Bell()
    with open_rig() as rig:
        async with trio.open_nursery() as nursery:
            watcher = KickWatcher((), nursery)
            with watcher.ring(started(rig).port, 0, bell.ring) as watch:
                assert watch is not None
                watch.begin(kick, 1, 0.0)
                watcher.close()
                with trio.fail_after(30):
                    await bell.rung.wait()
                assert watch.end() is None


async def test_nothing_is_watched_after_the_end() -> None:
    with open_rig() as rig:
        async with trio.open_nursery() as nursery:
            watcher = KickWatcher((), nursery)
            watcher.close()
            with watcher.ring(started(rig).port, 0, Bell().ring) as watch:
                assert watch is None
            assert not nursery.child_tasks


async def test_thread_that_cannot_be_had(kick: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    bell = Bell()
    with open_rig() as rig:
        async with trio.open_nursery() as nursery:
            watcher = KickWatcher((), nursery)
            with watcher.ring(started(rig).port, 0, bell.ring) as watch:
                assert watch is not None
                watch.begin(kick, 1, 0.0)
                with trio.fail_after(30):
                    await bell.rung.wait()
            with watcher.ring(rig.port, 0, bell.ring) as watch:
                assert watch is None


async def test_the_thread_cannot_be_listened_to(kick: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_fd: int) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trio.lowlevel, "wait_readable", refuse)
    bell = Bell()
    with open_rig() as rig:
        async with trio.open_nursery() as nursery:
            watcher = KickWatcher((), nursery)
            with watcher.ring(started(rig).port, 0, bell.ring) as watch:
                assert watch is not None
                with trio.fail_after(30):
                    await bell.rung.wait()
            with watcher.ring(rig.port, 0, bell.ring) as watch:
                assert watch is None


async def test_helped_by_pollers_until_the_end(kick: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the watcher's own thread never gets a processor."""
    ended = threading.Event()
    monkeypatch.setattr(Watcher, "run", lambda _watcher: ended.wait())
    with open_rig() as busy, open_rig() as rig, running(Poller(FOR_EVER)) as poller:
        busy.start()
        with hot(poller, busy):
            async with trio.open_nursery() as nursery:
                watcher = KickWatcher((), nursery, [poller])
                with watcher.ring(started(rig).port, 0, Bell().ring) as watch:
                    assert watch is not None
                    watch.begin(kick, 1, 0.0)
                    rig.send(DROPPED)
                    os.eventfd_write(kick, 1)
                    wait_taken(rig, 1)
                watcher.close()
                ended.set()
            busy.send(DROPPED)
            wait_taken(busy, 1)
