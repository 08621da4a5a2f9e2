"""How long requests of frontends take, in buckets."""

from __future__ import annotations

import bisect

import attrs

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
"""Seconds: from what a small request takes to what QEMU's user would notice."""


@attrs.define(eq=False)
class RequestTimes:
    """A histogram that only grows; for all NICs together."""

    counts: list[int] = attrs.field(init=False, factory=lambda: [0] * (len(BOUNDS) + 1))
    """Requests by bucket, of which the last has no bound."""
    total: float = attrs.field(init=False, default=0.0)
    """Seconds of all of them."""

    def observe(self, seconds: float) -> None:
        """Count a request that took so long."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
