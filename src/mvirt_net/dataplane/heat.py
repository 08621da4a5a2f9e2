"""When a TX ring is worth a thread that polls it.

A ring is COLD while somebody waits for its kicks, and HOT while a worker polls it. Two things make
a ring hot. It may be *busy*: drained again and again, it never got empty. Or it is kicked
*quickly*: the driver sends one packet at a time and waits for each answer, as a request that goes
back and forth does. Then each packet waits for a thread to wake up, which takes longer than
everything else that is done with it.

Quickly means that a worker would find the next packet before it loses patience. Nobody knows before
it was tried, for kicks that wake a thread, here and where the answer comes from, come later than
packets would that nobody has to be woken for. So up to four times that time is given the benefit of
the doubt. Where a worker had no success, the next attempt takes twice as many kicks, and so on:
rings at the edge do not go back and forth for ever.

Who sees the kicks counts them: the watcher, in bursts of as many as it takes (`Heat.burst`).
"""

from __future__ import annotations

import attrs

BUSY_DRAINS = 4
"""Drains in a row that end with work left, 50 µs or 1 MiB each."""
FEW_PUNTS = 8
"""Frames for services, of one drain. With more, what a ring waits for is services, not drains.
Those that the core drops for coming too fast are not of them: draining is all they need."""
QUICK_KICKS = 16
"""Kicks of a burst that come quickly on average."""
DOUBT = 4.0
"""How much slower than the worker's patience kicks may be."""
SUCCESS = 32
"""Frames that a worker must have taken for an attempt to have been worth it."""
MOST_ATTEMPTS = 1024
"""Up to which the kicks that an attempt takes are multiplied: a ring at the edge, with 10,000 kicks
a second, is then tried once in 1.6 s, and not 40 times a second. Each attempt is work for the event
loop."""


@attrs.define(eq=False)
class Heat:
    """How hot a COLD ring is.

    Args:
        patience: seconds for which a worker polls an empty ring. With 0 only busy rings are hot.
    """

    patience: float
    _busy: int = attrs.field(default=0, init=False)
    """Drains in a row that left work."""
    _quick: bool = attrs.field(default=False, init=False)
    """There was a quick burst."""
    _attempts: int = attrs.field(default=1, init=False)

    @property
    def is_hot(self) -> bool:
        """Whether a worker should have the ring now."""
        return self._quick or self._busy >= BUSY_DRAINS

    def drained(self, *, left: bool, punts: int) -> None:
        """The ring was drained: whether there is work left, and how many frames for services."""
        self._busy = self._busy + 1 if left and punts <= FEW_PUNTS else 0

    @property
    def burst(self) -> tuple[int, float]:
        """How many kicks in less than how many seconds are quick."""
        kicks = QUICK_KICKS * self._attempts
        return kicks, kicks * DOUBT * self.patience

    def kicked_quickly(self) -> None:
        """There was such a burst."""
        self._quick = True

    def cooled(self, frames: int) -> None:
        """A worker has had the ring, and has taken so many frames."""
        success = frames >= SUCCESS
        self._attempts = 1 if success else min(2 * self._attempts, MOST_ATTEMPTS)
        self._busy = 0
        self._quick = False
