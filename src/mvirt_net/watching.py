"""Who wants to hear of each change, and how far behind they may be.

**Theory of operation.** What was told is a chain, the newest at its end, and each watcher holds the
link that it has heard last. So a change is in memory once, however many are still to hear it, and
not at all when nobody is.

One verb may bring more changes than anybody can read meanwhile: a reload, or the deletion of a
network with all that is in it. So it is not the length of the backlog that tells who reads from who
does not, but whether it gets shorter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import trio

from .records import Change, NicRecord

WATCH_BACKLOG = 256
"""Changes that a watcher may be behind, whether it reads or not."""
WATCH_PATIENCE = 10.0
"""Seconds in which one that is further behind must read one of them."""
WATCH_LIMIT = 65_536
"""What the changes may weigh (`_weight`) that anybody is behind: some 16 MiB."""


@attrs.define(eq=False)
class _Link:
    """A change, and what was told next."""

    change: Change | None = None
    weight: int = 0
    next: _Link | None = None


def _weight(change: Change) -> int:
    """Of what is in memory for it, in units of some 256 bytes: most of a large one are prefixes."""
    if not isinstance(change.record, NicRecord):
        return 1
    spec = change.record.spec
    return 1 + len(spec.routed_ipv4_prefixes) + len(spec.routed_ipv6_prefixes)


class Watch(trio.abc.ReceiveChannel[Change]):
    """What one watcher hears; made by `Watchers.watch`.

    Args:
        last: the link before the first one that it is to hear.
    """

    def __init__(self, last: _Link) -> None:
        self._last = last
        self._news = trio.Event()
        """Set when there is something to hear."""
        self._behind = 0
        self._weight = 0
        self._since = 0.0
        """When it has last read, or had nothing more to read."""
        self._ended = False

    async def receive(self) -> Change:
        """The next change. A checkpoint.

        Raises:
            trio.EndOfChannel: there are no more, or it was too far behind.
        """
        await trio.lowlevel.checkpoint()
        while self._last.next is None:
            if self._ended:
                raise trio.EndOfChannel
            self._news = trio.Event()
            await self._news.wait()
        self._last = self._last.next
        self._behind -= 1
        self._weight -= self._last.weight
        self._since = trio.current_time()
        assert self._last.change is not None
        return self._last.change

    async def aclose(self) -> None:
        """Hear no more. A checkpoint."""
        self.cut_off()
        await trio.lowlevel.checkpoint()

    def note(self, weight: int) -> bool:
        """Something of this weight was told. Returns whether this one may go on."""
        now = trio.current_time()
        if self._behind == 0:
            self._since = now
        self._behind += 1
        self._weight += weight
        self._news.set()
        if self._weight > WATCH_LIMIT:
            return False
        return self._behind <= WATCH_BACKLOG or now - self._since < WATCH_PATIENCE

    def end(self) -> None:
        """Nothing more will be told."""
        self._ended = True
        self._news.set()

    def cut_off(self) -> None:
        """As `end`, and forget what it has not heard yet."""
        self._last = _Link()
        self._behind = self._weight = 0
        self.end()


class Watchers:
    """Those who watch."""

    def __init__(self) -> None:
        self._last = _Link()
        self._watches: set[Watch] = set()
        self._closed = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        """For the body, all that is told from now on.

        It ends with `close`, or when the watcher has got too far behind.
        """
        watch = Watch(self._last)
        if self._closed:
            watch.end()
        else:
            self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            watch.cut_off()

    def tell(self, change: Change) -> None:
        """Tell everybody, and cut off who does not read."""
        self._last.next = _Link(change, _weight(change))
        self._last = self._last.next
        for watch in list(self._watches):
            if not watch.note(self._last.weight):
                self._watches.discard(watch)
                watch.cut_off()

    def close(self) -> None:
        """End all, and those that are still to come at once."""
        self._closed = True
        for watch in self._watches:
            watch.end()
        self._watches.clear()
