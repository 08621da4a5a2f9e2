"""The threads that poll hot TX rings.

**Theory of operation.** Everything of a ring is done by its connection's task, in trio, until it is
`Heat.is_hot`. Then the task hands the ring to the worker that has the fewest, and waits for what
the worker leaves to do, and in the end for the ring itself (`Workers.polling`). A worker is one
call of `Poller.run` in a thread; it never comes back to Python while it runs, sleeps while it has
no ring, and spins while it has. It is started with the first ring that it gets: a process whose
guests have nothing much to say has no second thread.

Workers make rings faster, and nothing else depends on them. Where a thread cannot be started, rings
stay with their tasks.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping

import attrs
import trio

from ..errors import CoreError
from ..ffi import HotRing, Poller, Port
from ..log import get_logger
from ..model import PollingSpec
from .heat import Heat

STAY = 8.0
"""How many times its patience a worker has a ring for at least. Two rings that answer each other
become hot one after the other, and packets only come quickly once both are."""

_log = get_logger(__name__)


@attrs.define(eq=False)
class _Worker:
    """One thread, as trio sees it.

    Args:
        name: of the thread.
        poller: what it runs.
        cpu: the processor that it stays on; None: any.
    """

    name: str
    poller: Poller
    cpu: int | None
    rings: int = 0
    started: bool = False
    ended: bool = False
    _clock: int | None = None
    """Of the thread's processor time; None: it does not run."""
    _before: float = 0.0
    _used: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the thread so far."""
        if self._clock is None:
            return self._used
        return time.clock_gettime(self._clock) - self._before

    def run(self) -> None:
        """The thread."""
        # trio keeps threads for other work, and this one may have done some before.
        self._before = time.thread_time()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self._poll()
        finally:
            self._used = time.thread_time() - self._before
            self._clock = None

    def _poll(self) -> None:
        if self.cpu is None:
            self.poller.run()
            return
        # trio keeps threads for other work, which is not to be pinned.
        before = os.sched_getaffinity(0)
        self._pin({self.cpu})
        try:
            self.poller.run()
        finally:
            self._pin(before)

    def _pin(self, cpus: set[int]) -> None:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            _log.warning("worker is not pinned", worker=self.name, reason=error.strerror)


class Workers:
    """All workers of a switch.

    Args:
        polling: how many, and for how long they poll an empty ring.
        nursery: where their tasks run, which end with `close`.

    Raises:
        CoreError: out of memory.
    """

    def __init__(self, polling: PollingSpec, nursery: trio.Nursery) -> None:
        self._patience = polling.busy_poll / 1e6
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(max(1, polling.workers))
        cpus = polling.worker_cpus
        self._workers = [
            _Worker(
                f"mvirt-worker-{index}",
                Poller(self._patience),
                cpus[index % len(cpus)] if cpus else None,
            )
            for index in range(polling.workers)
        ]

    def __len__(self) -> int:
        """How many threads run."""
        return sum(worker.started and not worker.ended for worker in self._workers)

    @property
    def hot_rings(self) -> int:
        """How many rings they have."""
        return sum(worker.rings for worker in self._workers)

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        """Processor time of each worker, by its name."""
        return {worker.name: worker.cpu_seconds for worker in self._workers}

    def new_heat(self) -> Heat | None:
        """For a ring that these workers may get; None: there are none."""
        return Heat(self._patience) if self._workers else None

    @contextlib.contextmanager
    def polling(self, port: Port, pair: int = 0) -> Iterator[HotRing | None]:
        """For the time in which a worker has a TX ring of `port`; it has not any more at the end.

        Yields:
            The ring, until it is `released`; None: no worker can have it.
        """
        usable = [worker for worker in self._workers if not worker.ended]
        if not usable:
            yield None
            return
        worker = min(usable, key=lambda worker: worker.rings)
        try:
            stay = STAY * self._patience
            ring = HotRing(worker.poller, port, trio.current_time(), stay, pair=pair)
        except (OSError, CoreError):
            # Too little of everything; the ring is none the worse for staying where it is.
            yield None
            return
        with contextlib.closing(ring):
            worker.rings += 1
            try:
                self._start(worker)
                yield ring
            finally:
                worker.rings -= 1

    def close(self) -> None:
        """Take all rings from the workers, and let the threads end."""
        for worker in self._workers:
            worker.ended = True
            worker.poller.stop()

    def _start(self, worker: _Worker) -> None:
        if not worker.started:
            worker.started = True
            self._nursery.start_soon(self._run, worker)

    async def _run(self, worker: _Worker) -> None:
        """Started with the first ring of a worker; ends with its thread, which `close` ends."""
        try:
            await trio.to_thread.run_sync(
                worker.run, thread_name=worker.name, limiter=self._limiter
            )
        except RuntimeError as error:
            _log.warning("no thread for a worker; rings stay in trio", reason=str(error))
        finally:
            # Whoever waits for one of its rings gets it back.
            worker.ended = True
            worker.poller.stop()
