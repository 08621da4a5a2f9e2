"""TX rings that a thread polls while they are busy."""

from __future__ import annotations

import os

from ._core import ffi, lib
from .drain import Drained, copy_punts
from .port import Port
from .results import NextStep, allocated
from .watcher import Watcher


class Poller:
    """Polls TX rings in a thread, which the caller gives it by calling `run` there.

    Everything else belongs to the one thread that has the ports.

    Args:
        patience: seconds that a ring may be empty before it is given up; 0: none at all.

    Raises:
        CoreError: out of memory.
    """

    def __init__(self, patience: float) -> None:
        handle = allocated("poller", lib.mv_poller_new(int(patience * 1e9)))
        self._handle = ffi.gc(handle, lib.mv_poller_free)

    def run(self) -> None:
        """Poll until `stop`. Signals are for other threads meanwhile."""
        lib.mv_poller_run(self._handle)

    def stop(self) -> None:
        """Give up all rings, for good, and have `run` return, now or when it is called."""
        lib.mv_poller_stop(self._handle)

    def help(self, watcher: Watcher | None) -> None:
        """While it polls, attend to the kicks that `watcher` waits for, too; None: to nobody's.

        At the return a former watcher is not touched any more; it must not have been closed before.
        """
        lib.mv_poller_help(self._handle, ffi.NULL if watcher is None else watcher._handle)


class HotRing:
    """The TX ring of a port while a `Poller` has it; to be closed before anything of the port is.

    Args:
        poller: whose it is now.
        port, pair: its `drain` is for nobody else meanwhile, and must be called afterwards.
        now: seconds of the clock that `drain` is called with.
        stay: seconds for which it is not given up for being empty.

    Raises:
        OSError: no descriptor is left.
        CoreError: out of memory.
    """

    def __init__(
        self, poller: Poller, port: Port, now: float, stay: float = 0.0, *, pair: int = 0
    ) -> None:
        self._poller = poller
        self._port = port
        self._buffer = ffi.new("const uint8_t **")
        self._woken = ffi.new("struct mv_woken[]", lib.MV_MAX_WOKEN)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there may be something to `take`, or the ring was given up."""
        try:
            times = int(now * 1e9), int(stay * 1e9)
            handle = lib.mv_poller_add(poller._handle, port._handle, pair, *times, self.fd)
            self._handle = allocated("hot ring", handle)
        except BaseException:
            os.close(self.fd)
            raise
        self._pair = pair
        port.hot_pairs += (pair,)
        port.takeovers += 1

    def move(self, poller: Poller) -> None:
        """Have another poller go on with it, unless it was given up."""
        if lib.mv_hot_move(self._handle, poller._handle):
            self._poller = poller

    @property
    def released(self) -> bool:
        """Whether the poller has given the ring up; what it has left before can still be taken."""
        return bool(lib.mv_hot_released(self._handle))

    def take(self) -> Drained | None:
        """What the poller has left to do; None: nothing."""
        woken = self.take_woken()
        drained = lib.mv_hot_take(self._handle, self._buffer)
        if drained == ffi.NULL:
            return Drained(NextStep.CALL_AGAIN, [], woken) if woken else None
        view = memoryview(ffi.buffer(self._buffer[0], lib.MV_PUNT_BYTES))
        woken += self._port._pairs(drained.woken, drained.n_woken)
        taken = Drained(NextStep.CALL_AGAIN, copy_punts(drained, view), woken)
        lib.mv_hot_done(self._handle)
        return taken

    def take_woken(self) -> list[tuple[Port, int]]:
        """Whom else to wake, as in `Drained`: to be asked also while there is much to do."""
        n = lib.mv_hot_take_woken(self._handle, self._woken)
        return self._port._pairs(self._woken, n)

    def close(self) -> None:
        """Take the ring from the poller if it still has it. May be called again.

        At the return it does not touch the port any more. Ports that it left to be flushed are
        woken; punts are forgotten.
        """
        if self._handle == ffi.NULL:
            return
        lib.mv_hot_remove(self._handle)
        while (drained := self.take()) is not None:
            for port, pair in drained.woken:
                port.wake(pair)
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_hot_free(handle)
        os.close(self.fd)
        hot = self._port.hot_pairs
        self._port.hot_pairs = tuple(pair for pair in hot if pair != self._pair)
