"""The threads that drain TX rings: one waits for the kicks of COLD ones, others poll HOT ones.

**Theory of operation.** A ring belongs to its connection's task, which drains it, and has the
watcher wait for kicks in its place (`KickWatcher`), until the ring `Heat.is_hot`. Then the task
hands the ring to the worker that has the fewest, and waits for what the worker leaves to do, and in
the end for the ring itself (`Workers.polling`). A worker that is left with two rings fewer than
another one gets one of those. A worker is one call of `Poller.run` in a thread; it never comes back
to Python while it runs, sleeps while it has no ring, and spins while it has, when it attends to the
watcher's kicks, too. It is started with the first ring that it gets.

Workers make rings faster, and nothing else depends on them. Where a thread cannot be started, rings
stay with their tasks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import attrs
import trio

from ..errors import CoreError
from ..ffi import HotRing, Poller, Port, Watch
from ..model import PollingSpec
from .heat import Heat
from .kicks import KickWatcher
from .threads import ThreadTime, run_in_thread

STAY = 8.0
"""How many times its patience a worker has a ring for at least. Two rings that answer each other
become hot one after the other, and packets only come quickly once both are."""


@attrs.define(eq=False)
class _Worker:
    """One thread, as trio sees it.

    Args:
        name: of the thread.
        poller: what it runs.
        cpus: the processor that it stays on; none: any.
    """

    name: str
    poller: Poller
    cpus: tuple[int, ...]
    rings: list[HotRing] = attrs.Factory(list)
    started: bool = False
    ended: bool = False
    time: ThreadTime = attrs.Factory(ThreadTime)


def _load(worker: _Worker) -> int:
    return len(worker.rings)


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
                cpus[index % len(cpus) :][:1] if cpus else (),
            )
            for index in range(polling.workers)
        ]
        pollers = [worker.poller for worker in self._workers]
        self._watcher = KickWatcher(cpus, nursery, pollers) if pollers else None

    def __len__(self) -> int:
        """How many threads run."""
        return sum(worker.started and not worker.ended for worker in self._workers)

    @property
    def hot_rings(self) -> int:
        """How many rings they have."""
        return sum(len(worker.rings) for worker in self._workers)

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        """Processor time of each thread there is or was, by its name."""
        times = {worker.name: worker.time.seconds for worker in self._workers}
        if self._watcher is not None:
            times[self._watcher.name] = self._watcher.time.seconds
        return times

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
        worker = min(usable, key=_load)
        try:
            stay = STAY * self._patience
            ring = HotRing(worker.poller, port, trio.current_time(), stay, pair=pair)
        except (OSError, CoreError):
            # Too little of everything; the ring is none the worse for staying where it is.
            yield None
            return
        with contextlib.closing(ring):
            worker.rings.append(ring)
            try:
                self._start(worker)
                yield ring
            finally:
                self._part(ring)

    def watching(
        self, port: Port, pair: int, wake: Callable[[], None]
    ) -> AbstractContextManager[Watch | None]:
        """As `KickWatcher.ring`; None without workers: everything is trio's then."""
        if self._watcher is None:
            return contextlib.nullcontext()
        return self._watcher.ring(port, pair, wake)

    def close(self) -> None:
        """Take all rings from the threads, and let these end."""
        if self._watcher is not None:
            self._watcher.close()
        for worker in self._workers:
            worker.ended = True
            worker.poller.stop()

    def _part(self, ring: HotRing) -> None:
        """No worker is to have the ring any more; who had it gets another one if it has too few."""
        [worker] = [worker for worker in self._workers if ring in worker.rings]
        worker.rings.remove(ring)
        busiest = max(self._workers, key=_load)
        # One that was given up is not polled any more; its task will say so.
        polled = [ring for ring in busiest.rings if not ring.released]
        if polled and _load(busiest) >= _load(worker) + 2 and not worker.ended:
            busiest.rings.remove(polled[-1])
            worker.rings.append(polled[-1])
            polled[-1].move(worker.poller)

    def _start(self, worker: _Worker) -> None:
        if not worker.started:
            worker.started = True
            self._nursery.start_soon(self._run, worker)

    async def _run(self, worker: _Worker) -> None:
        """Started with the first ring of a worker; ends with its thread, which `close` ends."""
        try:
            run = functools.partial(worker.time.measure, worker.poller.run)
            await run_in_thread(run, worker.name, worker.cpus, self._limiter)
        finally:
            # Whoever waits for one of its rings gets it back.
            worker.ended = True
            worker.poller.stop()
