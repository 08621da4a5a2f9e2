"""How much of the services' time one guest may have.

A guest that floods the gateway with questions costs everybody else: all services run in one thread.
A token bucket bounds what it gets. Tokens are microseconds of work, as measured, so that one
bucket serves questions of very different price.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..model import PuntKind

ORDINARY_SIZE = 350
"""Bytes of the longest frame that costs no more than its kind does: an IPv4 DHCP message."""

COSTS: Mapping[PuntKind, float] = {
    PuntKind.ARP: 4.0,
    PuntKind.DHCPV4: 100.0,
    PuntKind.ICMPV4: 8.0,
    PuntKind.NDP: 12.0,
    PuntKind.ICMPV6: 9.0,
    PuntKind.DHCPV6: 33.0,
    PuntKind.ICMP_ERROR: 9.0,
}
"""Microseconds for one frame of ordinary size, with its way to the service and back."""

_PER_BYTE: Mapping[PuntKind, float] = {
    PuntKind.ARP: 0.01,
    PuntKind.DHCPV4: 0.7,
    PuntKind.ICMPV4: 0.005,
    PuntKind.NDP: 0.01,
    PuntKind.ICMPV6: 0.01,
    PuntKind.DHCPV6: 0.3,
    PuntKind.ICMP_ERROR: 0.0,
}
"""Microseconds for each byte more, of the worst that a guest can write into it: a message full of
options, or one that is copied and summed up."""
RATE = 200_000.0
"""Microseconds of work for one guest in each second: a fifth of a processor, which is 25,000 pings
or 2,000 DHCP messages."""
BURST = 50_000.0
"""Microseconds of work that a guest may save up while it asks nothing."""


def cost_of(kind: PuntKind, size: int) -> float:
    """Microseconds that a frame of `size` bytes takes at most."""
    return COSTS[kind] + max(0, size - ORDINARY_SIZE) * _PER_BYTE[kind]


@attrs.define(eq=False)
class WorkLimit:
    """A token bucket, full at first; time is passed in, in seconds of any clock.

    Args:
        rate: tokens a second.
        burst: most tokens.
    """

    rate: float = RATE
    burst: float = BURST
    _tokens: float = attrs.field(init=False)
    _filled_at: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = self.burst

    def take(self, cost: float, now: float) -> bool:
        """Take `cost` tokens; False, and none taken, when there are fewer."""
        if self._filled_at is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True
