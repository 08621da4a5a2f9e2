"""When a TX ring is worth a thread that polls it.

A ring is COLD while its task waits for kicks, and HOT while a worker polls it. Two things make a
ring hot. It may be *busy*: drained again and again, it never got empty. Or it is kicked *quickly*:
the driver sends one packet at a time and waits for each answer, as a request that goes back and
forth does. Then each packet waits for a task to wake up, which takes longer than everything else
that is done with it.

Quickly means that a worker would find the next packet before it loses patience. Nobody knows before
it was tried, for kicks that wake a task, here and where the answer comes from, come later than
packets would that nobody has to be woken for. So up to four times that time is given the benefit of
the doubt. Where a worker had no success, the next attempt takes twice as many kicks, and so on:
rings at the edge do not go back and forth for ever.
"""

from __future__ import annotations

import attrs

BUSY_DRAINS = 4
"""Drains in a row that end with work left, 50 µs or 1 MiB each."""
FEW_PUNTS = 8
"""Frames for services, of one drain. With more, what a ring waits for is services, not drains."""
QUICK_KICKS = 16
"""Kicks in a row that come quickly on average."""
DOUBT = 4.0
"""How much slower than the worker's patience kicks may be."""
WEIGHT = 1 / 8
"""Of the newest gap between two kicks in their moving average."""
SUCCESS = 32
"""Frames that a worker must have taken for an attempt to have been worth it."""
MOST_ATTEMPTS = 16
"""Up to which the kicks that an attempt takes are multiplied."""


@attrs.define(eq=False)
class Heat:
    """How hot a COLD ring is; time is passed in, in seconds of any clock.

    Args:
        patience: seconds for which a worker polls an empty ring. With 0 only busy rings are hot.
    """

    patience: float
    _busy: int = attrs.field(default=0, init=False)
    """Drains in a row that left work."""
    _quick: int = attrs.field(default=0, init=False)
    """Kicks in a row at which the average was short."""
    _gap: float = attrs.field(init=False)
    """The moving average between kicks."""
    _kicked_at: float | None = attrs.field(default=None, init=False)
    _attempts: int = attrs.field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._gap = self._longest

    @property
    def is_hot(self) -> bool:
        """Whether a worker should have the ring now."""
        return self._busy >= BUSY_DRAINS or self._quick >= QUICK_KICKS * self._attempts

    def drained(self, *, left: bool, punts: int) -> None:
        """The ring was drained: whether there is work left, and how many frames for services."""
        self._busy = self._busy + 1 if left and punts <= FEW_PUNTS else 0

    def kicked(self, now: float) -> None:
        """The driver has kicked."""
        gap = self._longest if self._kicked_at is None else now - self._kicked_at
        self._kicked_at = now
        if gap < self._longest:
            self._gap += (gap - self._gap) * WEIGHT
        else:
            # What comes after a pause begins anew.
            self._gap = self._longest
        self._quick = self._quick + 1 if self._gap < DOUBT * self.patience else 0

    def cooled(self, frames: int) -> None:
        """A worker has had the ring, and has taken so many frames."""
        success = frames >= SUCCESS
        self._attempts = 1 if success else min(2 * self._attempts, MOST_ATTEMPTS)
        self._busy = self._quick = 0
        self._gap = self._longest
        self._kicked_at = None

    @property
    def _longest(self) -> float:
        return 2 * DOUBT * self.patience
