"""Mapping guest memory, in another thread where the kernel may make that take long.

Theory of operation
===================

To map a file of hugetlbfs the kernel waits until nobody is at work on that file, and a frontend can
have a process that always is. Other memory is mapped in some microseconds, so that is done in the
loop: a thread would take ten times as long, and virtual time would not wait for it.

A thread that waits there holds the address space of the whole process. Others can go on using
memory, page faults included, but not map or unmap any. So while one waits,

* nobody else may map in the loop: all take turns, in threads, one at a time;
* nobody may unmap in the loop: the core has a thread for that (`unmap_aside`);
* the loop can only hope that Python and malloc() have the memory that it needs.

Mostly they have. But who wants to can make it need more, or a page of zeros (`sigbus.c`), at such a
moment. So whoever makes it long owes for it (`Port.charge`), and has to wait before the next time.

A thread that waits in the kernel cannot be stopped. When its connection ends it is left alone, with
descriptors of its own, and closes what it has made. Its turn ends when it does.
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
import time
from collections.abc import Sequence

import trio

from ..errors import ConnectionBroken
from ..ffi import Mapping, Port, unmap_aside
from .fds import close_fd

MAPPING_TIME_LIMIT = 5.0
"""Seconds that the kernel may take to map the memory of one request. Its frontend waits as long."""
SLOW_MAPPING = 0.005
"""Seconds of it that cost nothing: a thread may be interrupted."""

Prepared = Sequence[tuple[Mapping, int]]
"""Mappings to be made, each with a descriptor of its file."""

_turn = trio.lowlevel.RunVar[trio.CapacityLimiter]("mvirt_net.mapping")


async def map_prepared(prepared: Prepared, port: Port) -> None:
    """Map in order until one cannot be; which that is, whoever uses them will find out.

    A checkpoint only where it has to wait.

    Args:
        prepared: the caller's, but after an exception they are closed, now or when they can be. The
            descriptors are borrowed.
        port: of the NIC that owes for it if it takes long.

    Raises:
        ConnectionBroken: it takes more than `MAPPING_TIME_LIMIT`.
        OSError: no file descriptor is left.
    """
    turn = _the_turn()
    if turn.borrowed_tokens or any(mapping.may_wait for mapping, _ in prepared):
        await _map_in_turn(prepared, port, turn)
    else:
        _map(prepared)


async def settle_debt(port: Port) -> None:
    """Wait for as long as the port owes. A checkpoint only if it does."""
    while owes := port.owes:
        due = port.due
        await trio.sleep(owes)
        port.settle(due)


def _the_turn() -> trio.CapacityLimiter:
    try:
        return _turn.get()
    except LookupError:
        turn = trio.CapacityLimiter(1)
        _turn.set(turn)
        return turn


def _map(prepared: Prepared) -> None:
    for mapping, fd in prepared:
        if not mapping.map(fd):
            break


async def _map_in_turn(prepared: Prepared, port: Port, turn: trio.CapacityLimiter) -> None:
    """Map in a thread, when no other one does. Waiting for that is not the frontend's fault."""
    job = _Job(prepared, port, turn)
    try:
        await settle_debt(port)
        await job.take_turn()
        # What it had to wait for may have been for itself, and has to be paid for first.
        while port.owes:
            job.give_turn_back()
            await settle_debt(port)
            await job.take_turn()
        with trio.fail_after(MAPPING_TIME_LIMIT):
            await trio.to_thread.run_sync(
                job.run, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )
    except trio.TooSlowError:
        job.abandon()
        raise ConnectionBroken("mapping its memory took too long: the file is in use") from None
    except BaseException:
        job.abandon()
        raise


class _State(enum.Enum):
    NEW = enum.auto()
    AT_WORK = enum.auto()
    """In the thread, and nobody knows for how long."""
    DONE = enum.auto()


class _Job:
    """Mappings that a thread makes; what nobody wants is closed by the last who may use it.

    Args:
        prepared: see `map_prepared`.
        port: that owes for the time.
        turn: is given back when the thread is done.

    Raises:
        OSError: no file descriptor is left; the mappings are closed.
    """

    def __init__(self, prepared: Prepared, port: Port, turn: trio.CapacityLimiter) -> None:
        self._work: list[tuple[Mapping, int]] = []
        self._mappings = [mapping for mapping, _ in prepared]
        self._port = port
        self._turn = turn
        self._has_turn = False
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._state = _State.NEW
        self._abandoned = False
        try:
            for mapping, fd in prepared:
                self._work.append((mapping, os.dup(fd)))
        except OSError:
            self._close()
            raise

    async def take_turn(self) -> None:
        """Wait until no other thread maps. From then on the address space may be held up."""
        await self._turn.acquire_on_behalf_of(self)
        self._has_turn = True
        unmap_aside(True)

    def give_turn_back(self) -> None:
        """Before the thread has begun."""
        self._has_turn = False
        unmap_aside(False)
        self._turn.release_on_behalf_of(self)

    def run(self) -> None:
        """Started in a thread by `_map_in_turn`; ends when the kernel lets it."""
        with self._lock:
            if self._abandoned:
                return
            self._state = _State.AT_WORK
        begin = time.monotonic()
        _map(self._work)
        took = time.monotonic() - begin
        with self._lock:
            self._state = _State.DONE
            self._close_fds()
            if self._abandoned:
                self._close()
        unmap_aside(False)
        # Without a loop there is nobody who waits for a turn.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._end_turn, took)

    def abandon(self) -> None:
        """Nobody wants the mappings, if they are ever made."""
        with self._lock:
            self._abandoned = True
            state = self._state
            if state is not _State.AT_WORK:
                self._close()
        if state is _State.NEW and self._has_turn:
            self.give_turn_back()

    def _end_turn(self, took: float) -> None:
        self._turn.release_on_behalf_of(self)
        if took > SLOW_MAPPING:
            self._port.charge(took)

    def _close(self) -> None:
        self._close_fds()
        for mapping in self._mappings:
            mapping.close()

    def _close_fds(self) -> None:
        while self._work:
            close_fd(self._work.pop()[1])
