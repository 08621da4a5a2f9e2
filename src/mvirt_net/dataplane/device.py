"""What a vhost-user session acts on: one connection's rings, memory and file descriptors.

The C core borrows everything: memory tables, call and err descriptors. `VhostDevice` is their owner
and keeps the one rule that makes it safe: what the core may still use is neither unmapped nor
closed. It replaces first and closes what was replaced, and `VhostDevice.close` ends it all in the
only order there is.

Nothing here waits or knows of trio. The tasks that serve the rings hear of every change by `wake`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Self

import attrs

from ..errors import CoreError, RequestRefused
from ..ffi import GuestMemory, Mapping, Port, is_eventfd
from ..model import RX_QUEUE, TX_QUEUE, MemoryRegion, VringAddr, pair_of, rx_of, tx_of
from ..vhost_user.session import VRINGS
from .fds import close_fd


@attrs.define(eq=False)
class VringFds:
    """The eventfds of one ring, each None when there is none."""

    kick: int | None = None
    polled: bool = False
    """The driver never kicks (no-descriptor bit of SET_VRING_KICK): look at the ring regularly."""
    call: int | None = None
    err: int | None = None


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the core objects to into a refusal of the request."""
    try:
        yield
    except CoreError as error:
        raise RequestRefused(str(error)) from error


class VhostDevice:
    """The `vhost_user.session.Device` of one connection, on a port that nobody else uses meanwhile.

    Use it as a context manager, or call `close`.

    Args:
        port: the NIC's; it stays the caller's and is left without rings, memory and descriptors.
        wake: called with a ring's index when its task should look at it again.
        on_start: called with the device and a ring's index when that starts, before `wake`.
        on_mtu: called with the MTU that the frontend has given its driver.
        release_fd: closes a descriptor on which a task may be waiting.

    Raises:
        OSError: no file descriptor is left for the memory fault event.
        CoreError: out of memory.
    """

    __slots__ = (
        "_fds",
        "_memory",
        "_on_mtu",
        "_on_start",
        "_port",
        "_prepared",
        "_release_fd",
        "_wake",
        "fault_fd",
    )

    def __init__(
        self,
        port: Port,
        *,
        wake: Callable[[int], None],
        on_start: Callable[[VhostDevice, int], None] = lambda _device, _index: None,
        on_mtu: Callable[[int], None] = lambda _mtu: None,
        release_fd: Callable[[int], None] = close_fd,
    ) -> None:
        self._port = port
        self._wake = wake
        self._on_start = on_start
        self._on_mtu = on_mtu
        self._release_fd = release_fd
        self._fds = {RX_QUEUE: VringFds(), TX_QUEUE: VringFds()}
        """Also of other rings, once the frontend has named them."""
        self.fault_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable once guest memory has vanished."""
        self._prepared: dict[int, Mapping] = {}
        try:
            self._memory = GuestMemory.empty(self.fault_fd)
        except BaseException:
            close_fd(self.fault_fd)
            raise

    def fds(self, index: int) -> VringFds:
        """The descriptors of a ring, as they are now; for looking at."""
        return self._fds.setdefault(index, VringFds())

    def take_kick(self, index: int) -> None:
        """Reset the kick eventfd of a ring, and give it up if it cannot be read any more."""
        kick = self.fds(index).kick
        if kick is None:
            return
        try:
            self._port.take_kick(kick)
        except OSError:
            self.drop_vring_kick(index)

    # Mapping before the session asks for it, where that takes long.

    def prepare(self, wanted: Sequence[tuple[MemoryRegion, int]]) -> list[tuple[Mapping, int]]:
        """What a request is going to need: to be mapped, in this order, and to be closed.

        Args:
            wanted: regions, and the descriptors that come with them.

        Raises:
            CoreError: out of memory.
        """
        if not wanted:
            return []
        with contextlib.closing(GuestMemory.empty(self.fault_fd)) as table:
            return [(table.prepare(region, fd), fd) for region, fd in wanted]

    @contextlib.contextmanager
    def using(self, prepared: Iterable[tuple[Mapping, int]]) -> Iterator[None]:
        """For the time in which the session carries out the request."""
        self._prepared = {fd: mapping for mapping, fd in prepared}
        try:
            yield
        finally:
            for mapping in self._prepared.values():
                mapping.close()
            self._prepared = {}

    # What the session asks for; see `vhost_user.session.Device`.

    def set_features(self, features: int) -> None:
        with _refusing():
            self._port.set_features(features)

    def set_mtu(self, mtu: int) -> None:
        self._on_mtu(mtu)

    def set_memory_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        with _refusing():
            memory = GuestMemory.empty(self.fault_fd)
        for region, fd in zip(regions, fds, strict=True):
            # Tables never change, so each step makes the last one superfluous.
            with contextlib.closing(memory), _refusing():
                memory = self._with_region(memory, region, fd)
        self._use(memory)

    def add_memory_region(self, region: MemoryRegion, fd: int) -> None:
        with _refusing():
            memory = self._with_region(self._memory, region, fd)
        self._use(memory)

    def remove_memory_region(self, region: MemoryRegion) -> None:
        with _refusing():
            memory = self._memory.without_region(region)
        self._use(memory)

    def check_vring(self, index: int, size: int, addr: VringAddr) -> None:
        with _refusing():
            self._port.check_ring(size, addr)

    def start_vring(self, index: int, size: int, addr: VringAddr, base: int | None) -> None:
        with _refusing():
            self._port.start_ring(index, size, addr, base)
        self._on_start(self, index)
        self._wake(index)

    def move_vring(self, index: int, addr: VringAddr) -> None:
        with _refusing():
            self._port.move_ring(index, addr)
        self._wake(index)

    def stop_vring(self, index: int) -> int:
        base = self._port.stop_ring(index)
        self._wake(index)
        return base

    def enable_vring(self, index: int, enabled: bool) -> None:
        self._port.enable_ring(index, enabled)
        self._wake(index)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        _check_eventfd(fd)
        self.drop_vring_kick(index)
        ring = self.fds(index)
        ring.kick, ring.polled = fd, fd is None
        self._wake(index)

    def drop_vring_kick(self, index: int) -> None:
        ring = self.fds(index)
        kick, ring.kick, ring.polled = ring.kick, None, False
        self._release(kick)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        _check_eventfd(fd)
        with _refusing():
            self._port.set_call(index, fd)
        ring = self.fds(index)
        old, ring.call = ring.call, fd
        self._release(old)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        _check_eventfd(fd)
        with _refusing():
            self._port.set_err(index, fd)
        ring = self.fds(index)
        old, ring.err = ring.err, fd
        self._release(old)

    # The end.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back: stop rings → flush → unmap → close descriptors.

        Each step is taken even if one before it failed. Only what the core would not let go of
        stays mapped or open: a leak is better than a descriptor of somebody else or a fault.

        Raises:
            ExceptionGroup: of all that failed.
        """
        failures = []
        for step in self._closing_steps():
            try:
                step()
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("closing a vhost-user device", failures)

    def _closing_steps(self) -> tuple[Callable[[], object], ...]:
        """The close order, written here and nowhere else.

        The guest gets the replies to all that was taken from its TX rings, so RX stops last.
        """
        pairs = sorted({pair_of(index) for index in self._fds})
        return (
            *(partial(self._port.stop_ring, tx_of(pair)) for pair in pairs),
            *(partial(self._port.flush, pair) for pair in pairs),
            *(partial(self._port.stop_ring, rx_of(pair)) for pair in pairs),
            # The next frontend begins with no features and rings that are disabled.
            *(partial(self._port.enable_ring, index, False) for index in range(VRINGS)),
            partial(self._port.set_features, 0),
            self._unmap,
            *(partial(self.set_vring_call, index, None) for index in self._fds),
            *(partial(self.set_vring_err, index, None) for index in self._fds),
            *(partial(self.drop_vring_kick, index) for index in self._fds),
        )

    def _unmap(self) -> None:
        """Only after the last user: the core first, then the mappings, then their fault event."""
        self._port.set_memory(None)
        self._memory.close()
        self._release(self.fault_fd)

    def _with_region(self, memory: GuestMemory, region: MemoryRegion, fd: int) -> GuestMemory:
        if fd in self._prepared:
            return memory.with_mapping(self._prepared[fd])
        return memory.with_region(region, fd)

    def _use(self, memory: GuestMemory) -> None:
        """Put `memory`, now ours, in the place of the present table; or close it."""
        try:
            with _refusing():
                self._port.set_memory(memory)
        except BaseException:
            memory.close()
            raise
        old, self._memory = self._memory, memory
        old.close()
        for index in self._fds:
            self._wake(index)

    def _release(self, fd: int | None) -> None:
        if fd is not None:
            self._release_fd(fd)


def _check_eventfd(fd: int | None) -> None:
    """Anything else could block, never end or wake us for ever: refuse it."""
    if fd is not None and not is_eventfd(fd):
        raise RequestRefused("the file descriptor is not an eventfd")
