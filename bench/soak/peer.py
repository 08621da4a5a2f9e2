"""One of two guests that talk: ``python -m bench.soak.peer FOLDER OWN OTHER VISITOR FRAMES``.

Both send numbered frames as fast as they are taken, but no more than `WINDOW` of them that the
other one has not seen, and check what comes from the other and from the visitor. A conversation by
lines:

    peer      connected
    parent    go
    peer      enough            FRAMES have been sent; it goes on
    parent    stop
    peer      sent N            all of them have been taken by the device
    parent    (end of file)
    peer      {…}               a `PeerReport`
"""

from __future__ import annotations

import json
import os
import select
import sys
from contextlib import closing
from pathlib import Path

import attrs
import trio

from bench.guest import Wires, connected_wires
from tests.harness.client import RX_QUEUE_IDX

from .daemon import Place
from .numbered import Flow, NumberedRx, NumberedTx

WINDOW = 192
BATCH = 32
PATIENCE = 0.02
"""Seconds of silence after which one more frame is sent: the last ones may have been dropped."""
ROUNDS = 16
"""Looks at the rings between looks at the parent."""


@attrs.frozen
class PeerReport:
    """What a peer has seen: frames sent, received in all, and those of both senders."""

    sent: int
    received: int
    other: Flow
    visitor: Flow


@attrs.define(eq=False)
class _Orders:
    """What the parent has said; its end of file is told by `over`."""

    go: trio.Event = attrs.field(factory=trio.Event)
    stop: bool = False
    over: bool = False

    async def listen(self) -> None:
        """Task: until the end of file."""
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
            async for chunk in stream:
                for word in chunk.split():
                    if word == b"go":
                        self.go.set()
                    else:
                        self.stop = True
        self.over = True


class Peer:
    """The guest.

    Args:
        frames: after how many to say so. Nobody stops by itself, or the other one would wait for
            news in vain.
    """

    def __init__(self, wires: Wires, own: Place, other: Place, visitor: Place, frames: int) -> None:
        self._wires = wires
        self._frames = frames
        self._other, self._visitor = Flow(), Flow()
        flows = {other: self._other, visitor: self._visitor}
        # The visitor's frames come in turn to both.
        self._rx = NumberedRx(wires.client.rx_queue, own, flows, {other: 1, visitor: 2})
        self._tx = NumberedTx(wires.client.tx_queue, own, [other], life=0)
        self._received = 0
        self._told = 0
        """Frames of the other one that it knows we have seen."""

    async def run(self, orders: _Orders) -> PeerReport:
        """Send until told to stop, receive until all is over."""
        with select.epoll() as calls, closing(self._rx), closing(self._tx):
            for call in (self._wires.rx_call, self._wires.tx_call):
                calls.register(call, select.EPOLLIN)
            self._wires.client.kick(RX_QUEUE_IDX)
            await orders.go.wait()
            await self._talk(orders, calls)
            say(f"sent {self._tx.sent}")
            while not orders.over:
                await self._receive_and_wait(calls)
            self._receive()
        return PeerReport(self._tx.sent, self._received, self._other, self._visitor)

    async def _talk(self, orders: _Orders, calls: select.epoll) -> None:
        while not orders.stop:
            for _ in range(ROUNDS):
                received, sent = self._receive(), self._send()
                if not received and not sent:
                    break
            else:
                await trio.lowlevel.checkpoint()
                continue
            if not await self._wait(calls):
                self._tell()
        while self._tx.room() < self._wires.client.tx_queue.size:
            await self._receive_and_wait(calls)

    async def _receive_and_wait(self, calls: select.epoll) -> None:
        if not self._receive():
            await self._wait(calls)

    def _receive(self) -> int:
        count = self._rx.receive()
        self._received += count
        if count:
            self._wires.client.kick(RX_QUEUE_IDX)
        return count

    def _send(self) -> bool:
        """Send what the window and the ring have room for; whether it was anything."""
        window = WINDOW - (self._tx.sent - self._other.awaited)
        if window <= 0 and self._other.next_number - self._told >= WINDOW // 4:
            # Both wait for each other's news.
            window = 1
        count = min(window, self._tx.room(), BATCH)
        if count > 0:
            self._give(count)
        return count > 0

    def _tell(self) -> None:
        """Send one frame although the other has not seen the last ones."""
        if self._tx.room() > 0:
            self._give(1)

    def _give(self, count: int) -> None:
        self._told = self._other.next_number
        self._tx.send(count, awaited=self._told)
        if self._tx.sent - count < self._frames <= self._tx.sent:
            say("enough")
        client = self._wires.client
        client.kick(client.tx_queue.queue_idx)

    async def _wait(self, calls: select.epoll) -> bool:
        """Until the device interrupts, or for `PATIENCE`; whether it has done something."""
        client = self._wires.client
        tx = client.tx_queue
        tx.last_used = tx.used_idx()
        if client.rx_queue.enable_call() | tx.enable_call():
            return True
        with trio.move_on_after(PATIENCE):
            await trio.lowlevel.wait_readable(calls.fileno())
            for fd, _ in calls.poll(0):
                os.eventfd_read(fd)
            return True
        return False


def say(line: str) -> None:
    """To the parent."""
    print(line, flush=True)  # noqa: T201


async def main(folder: str, numbers: list[int], frames: int) -> None:
    """The whole life of the process."""
    own, other, visitor = (Place(Path(folder), number) for number in numbers)
    async with connected_wires(own.path) as wires, trio.open_nursery() as nursery:
        orders = _Orders()
        nursery.start_soon(orders.listen)
        peer = Peer(wires, own, other, visitor, frames)
        say("connected")
        say(json.dumps(attrs.asdict(await peer.run(orders))))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], [int(number) for number in sys.argv[2:5]], int(sys.argv[5]))
