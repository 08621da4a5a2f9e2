"""How the tasks of a connection wake one another."""

from __future__ import annotations

import trio


class Doorbell:
    """Wakes the one task that serves a ring; a ring while it is awake is remembered."""

    def __init__(self) -> None:
        self._rung = trio.Event()
        self._waited_fd: int | None = None

    def ring(self) -> None:
        """Make the present or next wait end."""
        self._rung.set()
        if self._waited_fd is not None:
            # Wakes the waiter; nothing is closed.
            trio.lowlevel.notify_closing(self._waited_fd)

    async def wait(self) -> None:
        """Until rung. A checkpoint."""
        await self._rung.wait()
        self._rung = trio.Event()

    async def wait_or_readable(self, fd: int) -> None:
        """Until rung, or until `fd` is readable, broken or closed by another task. A checkpoint."""
        if self._rung.is_set():
            await self.wait()
            return
        self._waited_fd = fd
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            self._rung = trio.Event()
        finally:
            self._waited_fd = None
