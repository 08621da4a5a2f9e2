"""How the tasks of a connection wake one another."""

from __future__ import annotations

import trio


class Doorbell:
    """Wakes the one task that serves a ring; a ring while it is awake is remembered."""

    # Hundreds of NICs have several each, and an event would be made anew for each wait.
    __slots__ = ("_rung", "_waited_fd", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: trio.lowlevel.Task | None = None
        self._waited_fd: int | None = None

    def ring(self) -> None:
        """Make the present or next wait end."""
        self._rung = True
        if self._waited_fd is not None:
            # Wakes the waiter; nothing is closed.
            trio.lowlevel.notify_closing(self._waited_fd)
        elif self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    async def wait(self) -> None:
        """Until rung. A checkpoint."""
        if self._rung:
            await trio.lowlevel.checkpoint()
        else:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._give_up)
        self._rung = False

    async def wait_or_readable(self, fd: int) -> None:
        """Until rung, or until `fd` is readable, broken or closed by another task. A checkpoint."""
        if self._rung:
            await self.wait()
            return
        self._waited_fd = fd
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            self._rung = False
        finally:
            self._waited_fd = None

    def _give_up(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """The waiter is cancelled."""
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED
