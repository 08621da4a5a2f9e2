"""One task that waits for what hundreds of NICs wait for.

A task that waits for a descriptor takes 3 KiB, and a wait of trio's alone takes one. So what idle
NICs wait for (the next frontend, the loss of guest memory) is in one epoll instance, and one task
waits for that.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable

import trio

from ..log import get_logger

AT_ONCE = 32
"""Descriptors that are attended to before other tasks have their turn."""
RETRY_PAUSE = 0.1
"""Seconds until the next attempt when the kernel has no memory to wait with."""

_EVENTS = select.EPOLLIN | select.EPOLLONESHOT

_log = get_logger(__name__)


class Lookout:
    """Calls somebody when a descriptor is readable.

    Args:
        nursery: where its task runs, which ends with `close`.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        """By the descriptor that each waits for."""
        nursery.start_soon(self._run)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Have `call` called, once, when `fd` is readable or broken.

        Args:
            fd: to be given to `forget` before it is closed.
            call: must not wait. What it raises is a bug, is logged, and costs nobody else anything.

        Raises:
            OSError: the kernel has no memory for it, or lets this user wait for no more.
        """
        try:
            self._epoll.modify(fd, _EVENTS)
        except FileNotFoundError:
            self._epoll.register(fd, _EVENTS)
        self._calls[fd] = call

    def forget(self, fd: int) -> None:
        """Have nobody called for `fd` any more, if anybody was to be."""
        self._calls.pop(fd, None)
        # Also of one that was called: its file may be open elsewhere, and stay here after a close.
        with contextlib.suppress(OSError, ValueError):  # not watched; closed
            self._epoll.unregister(fd)

    def close(self) -> None:
        """End it; nobody is called any more. May be called again."""
        if self._epoll.closed:
            return
        self._calls.clear()
        trio.lowlevel.notify_closing(self._epoll.fileno())
        self._epoll.close()

    async def _run(self) -> None:
        """Started with it; ends with `close`."""
        failing = False
        while not self._epoll.closed:
            try:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if not failing:
                    _log.warning("cannot wait for NICs", reason=error.strerror)
                failing = True
                await trio.sleep(RETRY_PAUSE)
            else:
                failing = False
                self._attend()

    def _attend(self) -> None:
        for _ in range(AT_ONCE):
            # One by one: what is called may close the descriptor of the next one, and open another.
            ready = self._epoll.poll(0, 1)
            if not ready:
                break
            [(fd, _events)] = ready
            try:
                self._calls.pop(fd, _nobody)()
            except Exception:
                _log.exception("attending to a descriptor failed")


def _nobody() -> None:
    """Who is called for a descriptor that the kernel could not forget."""
