"""The task that tells a guest of its router, unasked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import trio

from .doorbell import Doorbell
from .ndp import NdpResponder, RaSchedule


class RouterAdvertiser:
    """Advertises the router of one NIC while its guest can receive.

    Args:
        ndp: says what is advertised.
        is_up: whether the guest can receive.
        send: takes a whole Ethernet frame for the guest.
    """

    __slots__ = ("_changed", "_is_up", "_ndp", "_schedule", "_send")

    def __init__(
        self,
        ndp: NdpResponder,
        is_up: Callable[[], bool],
        send: Callable[[bytes], object],
    ) -> None:
        self._is_up = is_up
        self._send = send
        self._schedule = RaSchedule(random.random)
        self._changed = Doorbell()
        self.use(ndp)

    def use(self, ndp: NdpResponder) -> None:
        """Advertise what `ndp` says from now on, and when it asks for it."""
        self._ndp = ndp
        ndp.on_solicited = self._on_solicited
        self.follow_link()

    def follow_link(self) -> None:
        """Look whether the guest can receive; each time that it begins to, all begins anew."""
        up = self._is_up()
        if up == (self._schedule.next_at is not None):
            return
        if up:
            self._schedule.start(trio.current_time())
        else:
            self._schedule.stop()
        self._changed.ring()

    def begin_anew(self) -> None:
        """What is advertised has changed (RFC 4861, 6.2.4); nothing while the link is down."""
        if self._schedule.next_at is not None:
            self._schedule.changed(trio.current_time())
            self._changed.ring()

    async def run(self) -> None:
        """Send each advertisement to all nodes when it is due, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._due()):
                await self._changed.wait()
            # The link may have gone down in the very moment in which it was due.
            if self._due() <= trio.current_time():
                self._schedule.sent(trio.current_time())
                self._send(self._ndp.advertisement())

    def _due(self) -> float:
        return math.inf if self._schedule.next_at is None else self._schedule.next_at

    def _on_solicited(self) -> None:
        self._schedule.solicited(trio.current_time())
        self._changed.ring()
