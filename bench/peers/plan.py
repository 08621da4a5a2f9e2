"""What is measured side by side, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import attrs

from .backends import Wiring

LARGE = 14 + 20 + 20 + 45 * 1448
"""Bytes of a frame for 64 KiB TSO: 45 segments of what TCP puts into 1,500 bytes."""
PAUSE_US = 1000
HOT_TIMES = 10


@attrs.frozen
class Plan:
    """How much to measure.

    Args:
        rounds: of which a figure is the median.
        seconds: a flood or a load lasts so long in one round.
        wirings: of the client's driver, with frames of `sizes`.
        large_wirings: the same, with large frames that a device is to segment.
        loads: frames a second at which latency is looked at.
        pings: in one round, from idle; ten times as many back to back.
        crowds: how many NICs the daemon has, the fewest first.
        idle_seconds: for which is looked at what has nothing to do.
        light: frames a second of a pair beside which others flood.
        flooding: how many pairs those are.
    """

    rounds: int
    seconds: float
    sizes: Sequence[int]
    wirings: Sequence[Wiring]
    large_wirings: Sequence[Wiring]
    loads: Sequence[float]
    pings: int
    crowds: Sequence[int]
    idle_seconds: float
    light: Sequence[float]
    flooding: Sequence[int]

    @property
    def ping(self) -> str:
        """The command of the client for pings from idle."""
        return f"ping size=64 count={self.pings} pause_us={PAUSE_US}"

    @property
    def hot_ping(self) -> str:
        """The same for pings back to back."""
        return f"ping size=64 count={HOT_TIMES * self.pings} pause_us=0"

    def load(self, rate: float) -> str:
        """The same for so many frames a second."""
        return f"load size=64 rate={rate:.0f} seconds={self.seconds}"


_ALL = [Wiring(packed, mergeable) for packed, mergeable in product((False, True), (True, False))]

FULL = Plan(
    rounds=5,
    seconds=0.5,
    sizes=(64, 512, 1500),
    wirings=_ALL,
    large_wirings=[attrs.evolve(wiring, offloads=True) for wiring in _ALL],
    loads=(1e4, 1e5, 5e5, 1e6, 2e6, 4e6, 6e6, 8e6, 12e6),
    pings=200,
    crowds=(2, 8, 64, 512),
    idle_seconds=10.0,
    light=(1e3, 1e4, 1e5),
    flooding=(0, 1, 3),
)
QUICK = Plan(
    rounds=1,
    seconds=0.1,
    sizes=(64, 512, 1500),
    wirings=[Wiring(), Wiring(packed=True, mergeable=False)],
    large_wirings=[Wiring(offloads=True)],
    loads=(1e4, 1e5),
    pings=50,
    crowds=(2, 16),
    idle_seconds=0.1,
    light=(1e3,),
    flooding=(0, 3),
)
