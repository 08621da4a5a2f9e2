"""The thread that waits for the kicks of COLD TX rings.

A thread in the core wakes up several times as fast as a task does. So a task that would only wait
for a kick leaves that to the core's `Watcher`, which drains the ring each time, and gives it back
when there is something for the task. One more task waits for that and rings the doorbells of the
tasks whose rings are back, or which may have them for a worker (`KickWatcher`). Workers that are
busy attend to kicks as well, so that they do not keep the watcher's processor from them.

The thread is started with the first ring there is. Nothing depends on it: where it cannot be
started, or a ring cannot be watched, tasks wait for kicks themselves.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Sequence

import trio

from ..errors import CoreError
from ..ffi import Poller, Port, Watch, Watcher, read_event
from ..log import get_logger
from .threads import ThreadTime, run_in_thread

_log = get_logger(__name__)


class WatchedRing:
    """A TX ring while a task serves it; yields what to have it watched with, as `KickWatcher.ring`.

    Args:
        watch: to be closed at the end; None: it cannot be watched.
        wakes: where its task is to be woken from; forgotten at the end.
        key: of the ring in there.
    """

    # With a generator each connection would take half a KiB more.
    __slots__ = ("_key", "_wakes", "_watch")

    def __init__(self, watch: Watch | None, wakes: dict[int, Callable[[], None]], key: int) -> None:
        self._watch = watch
        self._wakes = wakes
        self._key = key

    def __enter__(self) -> Watch | None:
        return self._watch

    def __exit__(self, *_exc_info: object) -> None:
        if self._watch is not None:
            del self._wakes[self._key]
            self._watch.close()


class KickWatcher:
    """The watcher of a switch, as trio sees it.

    Args:
        cpus: the processors that its thread stays on; none: any.
        nursery: where its tasks run, which end with `close`.
        helpers: attend to kicks, too, while they poll.
    """

    name = "mvirt-watcher"
    """Of its thread."""

    def __init__(
        self, cpus: Collection[int], nursery: trio.Nursery, helpers: Sequence[Poller] = ()
    ) -> None:
        self.time = ThreadTime()
        self._cpus = cpus
        self._nursery = nursery
        self._helpers = helpers
        self._watcher: Watcher | None = None
        self._ended = False
        self._keys = itertools.count()
        self._wakes: dict[int, Callable[[], None]] = {}
        """By the key of a ring: wakes its task."""

    def ring(self, port: Port, pair: int, wake: Callable[[], None]) -> WatchedRing:
        """For the time in which a task serves a TX ring; nobody else touches the ring at the end.

        Args:
            wake: has the task look at the ring, which was given back or offered.

        Returns:
            A context manager that yields what to have it watched with; None: it cannot be.
        """
        watcher, key, watch = self._get(), next(self._keys), None
        if watcher is not None:
            with contextlib.suppress(CoreError):
                watch = Watch(watcher, port, key, trio.current_time(), pair=pair)
                self._wakes[key] = wake
        return WatchedRing(watch, self._wakes, key)

    def close(self) -> None:
        """Give all rings back, and let the thread end."""
        self._ended = True
        if self._watcher is not None:
            self._watcher.stop()

    def _get(self) -> Watcher | None:
        if self._watcher is None and not self._ended:
            try:
                self._watcher = Watcher()
            except (OSError, CoreError) as error:
                _log.warning("kicks are waited for in trio", reason=str(error))
                self._ended = True
            else:
                for poller in self._helpers:
                    poller.help(self._watcher)
                self._nursery.start_soon(self._run, self._watcher)
        return self._watcher

    async def _run(self, watcher: Watcher) -> None:
        """Started with the first ring; ends with the thread, which `close` ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, watcher)
                limiter = trio.CapacityLimiter(1)
                run = functools.partial(self.time.measure, watcher.run)
                await run_in_thread(run, self.name, self._cpus, limiter)
                nursery.cancel_scope.cancel()
        finally:
            # Whoever has a ring watched gets it back.
            self.close()
            self._watcher = None
            for poller in self._helpers:
                poller.help(None)
            watcher.close()
            for wake in self._wakes.values():
                wake()

    async def _listen(self, watcher: Watcher) -> None:
        """Wake the tasks whose rings were given back or offered."""
        try:
            while True:
                await trio.lowlevel.wait_readable(watcher.fd)
                read_event(watcher.fd)
                for key in watcher.returned():
                    if key in self._wakes:
                        self._wakes[key]()
        except OSError as error:
            # The kernel has no memory for it, or lets this user wait for no more descriptors.
            _log.warning("kicks are waited for in trio", reason=str(error))
            self.close()
