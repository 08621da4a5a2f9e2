"""TX rings for whose kicks a thread waits."""

from __future__ import annotations

import os

import attrs

from ._core import ffi, lib
from .drain import Drained, copy_punts
from .port import Port
from .results import NextStep, allocated

KEYS_AT_ONCE = 256


class Watcher:
    """Waits for kicks of TX rings in a thread, which the caller gives it by calling `run` there.

    Everything else belongs to the one thread that has the ports.

    Raises:
        OSError: no memory or no descriptor is left.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there are rings that `returned` tells."""
        handle = lib.mv_watcher_new(self.fd)
        if handle == ffi.NULL:
            error = ffi.errno
            os.close(self.fd)
            raise OSError(error, os.strerror(error))
        self._handle = handle
        self._keys = ffi.new("int64_t[]", KEYS_AT_ONCE)

    def run(self) -> None:
        """Watch until `stop`. Signals are for other threads meanwhile."""
        lib.mv_watcher_run(self._handle)

    def stop(self) -> None:
        """Touch no ring any more, for good, and have `run` return, now or when it is called."""
        lib.mv_watcher_stop(self._handle)

    def returned(self) -> list[int]:
        """The keys of the rings given back or offered, each once, in that order."""
        keys: list[int] = []
        while True:
            n = lib.mv_watcher_returned(self._handle, self._keys, KEYS_AT_ONCE)
            keys += ffi.unpack(self._keys, n)
            if n < KEYS_AT_ONCE:
                return keys

    def close(self) -> None:
        """Give it up; `run` has returned, no `Poller` helps. Each `Watch` stays as it is."""
        lib.mv_watcher_free(self._handle)
        os.close(self.fd)


@attrs.frozen
class Watched:
    """Why a ring was given back or offered, and what that leaves to do."""

    drained: Drained
    """Of the last drain, after which the ring is as after `Port.drain`."""
    quick: bool
    """Kicks came as quickly as the caller wanted to know."""


class Watch:
    """What a `Watcher` may have of a port's TX ring; to be closed before anything of the port is.

    Args:
        port, pair: its `drain` is for nobody else between `begin` and `end`.
        key: what `Watcher.returned` calls it.
        now: seconds of the clock that `drain` is called with.

    Raises:
        CoreError: out of memory.
    """

    __slots__ = ("_handle", "_port", "_watcher")

    def __init__(
        self, watcher: Watcher, port: Port, key: int, now: float, *, pair: int = 0
    ) -> None:
        self._watcher = watcher
        self._port = port
        handle = lib.mv_watch_new(watcher._handle, port._handle, pair, key, int(now * 1e9))
        self._handle = allocated("watch", handle)

    def begin(self, kick: int, burst: int, seconds: float) -> None:
        """Have the ring drained when its driver kicks, until there is something for the caller.

        Then it is given back. When it is kicked quickly it is offered, and drained on until `end`.

        Args:
            kick: the driver's eventfd, open until `end`.
            burst: how many kicks that bring frames are quick in less than so many `seconds`.

        Raises:
            OSError: it cannot be watched.
        """
        result = lib.mv_watch_begin(self._handle, kick, burst, int(seconds * 1e9))
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def end(self) -> Watched | None:
        """Take the ring back; None: it was neither given back nor offered before.

        May be called again, with the same result. At the return the watcher does not touch the port
        any more.
        """
        watched = ffi.new("struct mv_watched *")
        lib.mv_watch_end(self._handle, watched)
        if not (watched.given_back or watched.quick):
            return None
        punts, woken = [], []
        if watched.drained != ffi.NULL:
            view = memoryview(ffi.buffer(watched.buffer, lib.MV_PUNT_BYTES))
            punts = copy_punts(watched.drained, view)
            woken = self._port._pairs(watched.drained.woken, watched.drained.n_woken)
        return Watched(Drained(NextStep(watched.next), punts, woken), bool(watched.quick))

    def close(self) -> None:
        """Take the ring back for good. May be called again.

        Ports that a drain left to be flushed are woken; punts are forgotten.
        """
        if self._handle == ffi.NULL:
            return
        if (watched := self.end()) is not None:
            for port, pair in watched.drained.woken:
                port.wake(pair)
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_watch_free(handle)
