"""Threads that the core gets for good."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection

import trio

from ..log import get_logger

_log = get_logger(__name__)


class ThreadTime:
    """The processor time that calls of `measure` have taken, to be asked for from any thread."""

    def __init__(self) -> None:
        self._used = 0.0
        self._running: tuple[int, float] | None = None
        """A thread's clock, and what it was at the beginning of the call."""

    @property
    def seconds(self) -> float:
        """Those of a call under way among them."""
        if (running := self._running) is None:
            return self._used
        clock, began = running
        return self._used + time.clock_gettime(clock) - began

    def measure(self, run: Callable[[], None]) -> None:
        """Call `run`; one at a time."""
        # trio keeps threads for other work, and this one may have done some before.
        began = time.thread_time()
        self._running = time.pthread_getcpuclockid(threading.get_ident()), began
        try:
            run()
        finally:
            self._running = None
            self._used += time.thread_time() - began


async def run_in_thread(
    run: Callable[[], None], name: str, cpus: Collection[int], limiter: trio.CapacityLimiter
) -> None:
    """Run `run` in a thread of that name until it returns; somebody else has to see to that.

    Where there can be no thread, a warning says so. Not cut short by a cancellation.

    Args:
        cpus: the processors that the thread stays on; none: any.
    """
    try:
        await trio.to_thread.run_sync(
            _run_pinned, run, name, cpus, thread_name=name, limiter=limiter
        )
    except RuntimeError as error:
        _log.warning("no thread for a worker; rings stay in trio", worker=name, reason=str(error))


def _run_pinned(run: Callable[[], None], name: str, cpus: Collection[int]) -> None:
    # trio keeps threads for other work, which is not to be pinned.
    before = os.sched_getaffinity(0)
    if cpus:
        _pin(name, cpus)
    try:
        run()
    finally:
        if cpus:
            _pin(name, before)


def _pin(name: str, cpus: Collection[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        _log.warning("worker is not pinned", worker=name, reason=error.strerror)
