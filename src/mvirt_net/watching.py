"""Who wants to hear of each change, and how far behind they may be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from .records import Change

WATCH_BACKLOG = 256
"""Changes that a watcher may be behind."""


class Watchers:
    """Those who watch, each with a channel of its own."""

    def __init__(self) -> None:
        self._channels: set[trio.MemorySendChannel[Change]] = set()
        self._closed = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[trio.MemoryReceiveChannel[Change]]:
        """For the body, a channel with all that is told from now on.

        It ends with `close`, or when the watcher is more than `WATCH_BACKLOG` changes behind.
        """
        send, receive = trio.open_memory_channel[Change](WATCH_BACKLOG)
        if self._closed:
            send.close()
        else:
            self._channels.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._end(send)

    def tell(self, change: Change) -> None:
        """Tell everybody, and cut off who has no room for it."""
        for channel in list(self._channels):
            try:
                channel.send_nowait(change)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._end(channel)

    def close(self) -> None:
        """End all channels, and those that are still to come at once."""
        self._closed = True
        for channel in list(self._channels):
            self._end(channel)

    def _end(self, channel: trio.MemorySendChannel[Change]) -> None:
        self._channels.discard(channel)
        channel.close()
