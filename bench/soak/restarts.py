"""The daemon itself is killed, again and again, while frames are in its hands.

Both guests keep their rings and connect again to the next daemon. The receiver always has more
buffers than there are frames, so nothing waits in a backlog: each frame must arrive, and may arrive
twice, when the daemon was killed between delivering it and saying that it has taken it.
"""

from __future__ import annotations

import collections
import os
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import trio

from tests.harness.client import TX_QUEUE_IDX, VhostTestClient
from tests.harness.packets import GATEWAY_MAC, udp_frame

from .daemon import Place, SoakedDaemon, run_soaked, until
from .report import Report, equal

BURST = 200
"""Frames, fewer than a ring has entries."""
STEP = 20e-6
"""Seconds that each daemon lives longer than the one before with a burst, and all over again after
`STEPS`: from before it has woken up to after it has done it all."""
STEPS = 10


async def restarts(count: int) -> Report:
    """The report on so many killed daemons."""
    with TemporaryDirectory(prefix="mvirt-soak-") as name:
        folder = Path(name)
        async with trio.open_nursery() as nursery:
            async with run_soaked(folder, 2) as daemon:
                guests = await _connect(nursery, daemon)
                await guests.burst(daemon, 0)
            for number in range(1, count):
                async with run_soaked(folder, 2) as daemon:
                    await guests.reconnect()
                    await guests.burst(daemon, number)
            async with run_soaked(folder, 2):
                await guests.reconnect()
                await guests.settle()
            nursery.cancel_scope.cancel()
    seen, sent = guests.seen, count * BURST
    figures = [
        ("frames sent", sent),
        ("  left to a later daemon", guests.left),
        ("  that came twice or more", sum(times > 1 for times in seen.values())),
    ]
    checks = [
        equal("frames that never came", sent - len(seen), 0),
        equal("frames that nobody sent", sum(frame >= sent for frame in seen), 0),
    ]
    return Report(f"{count} daemons killed with frames in their hands", figures, checks)


async def _connect(nursery: trio.Nursery, daemon: SoakedDaemon) -> _Guests:
    source, target = daemon.places
    return _Guests(
        source,
        target,
        await VhostTestClient.connect(nursery, source.path),
        await VhostTestClient.connect(nursery, target.path, rx_buffers=256),
    )


@attrs.define(eq=False)
class _Guests:
    """One that sends, and one that receives."""

    source: Place
    target: Place
    sender: VhostTestClient
    receiver: VhostTestClient
    seen: collections.Counter[int] = attrs.field(factory=collections.Counter)
    """How often each frame has come."""
    left: int = 0
    """Frames that a daemon had not taken when it was killed."""

    async def reconnect(self) -> None:
        """Both, with the rings as they are; the receiver first, or frames would be dropped."""
        await self.receiver.reconnect()
        await self.sender.reconnect()

    async def burst(self, daemon: SoakedDaemon, number: int) -> None:
        """Give a burst to a daemon, after all that is there already, and kill it."""
        await self.settle()
        for frame in range(number * BURST, (number + 1) * BURST):
            self.sender.queue_tx(self._frame(frame), publish=False)
        self.sender.tx_queue.publish()
        self.sender.kick(TX_QUEUE_IDX)
        end = time.perf_counter() + number % STEPS * STEP
        while time.perf_counter() < end:
            pass
        os.kill(daemon.process.pid, signal.SIGKILL)
        await until(daemon.process.is_gone, "the daemon is killed")
        self.left += self.sender.tx_queue.outstanding - self.sender.tx_queue.used_count()

    async def settle(self) -> None:
        """Until all that was sent has been taken, and received."""
        await self.sender.wait_tx_idle()
        # Frames are published to their receiver before they are given back to their sender.
        self.receiver.process(self.receiver.vrings[0])
        while self.receiver.received:
            frame = self.receiver.received.popleft().frame
            self.seen[int.from_bytes(frame[42:50], "little")] += 1

    def _frame(self, number: int) -> bytes:
        payload = number.to_bytes(8, "little")
        source, target = self.source, self.target
        return udp_frame(source.mac, GATEWAY_MAC, source.ipv4, target.ipv4, 1, 1, payload)
