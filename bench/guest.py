"""A guest that costs next to nothing: buffers are laid out once and given again and again.

The tests' driver keeps account of each buffer, which takes longer than what is measured here. On
these rings every descriptor is a whole chain, available in the order of the table, and the device
completes in order, so to give `n` more buffers is to store one index.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import attrs
import trio

from tests.harness.client import RX_QUEUE_IDX, TX_QUEUE_IDX, VhostTestClient
from tests.harness.memory import fence
from tests.harness.packed import (
    VRING_DESC_F_AVAIL,
    VRING_DESC_F_USED,
    PackedQueue,
    pack_desc,
)
from tests.harness.packets import (
    GATEWAY_IP,
    GATEWAY_MAC,
    arp_request,
    dhcp_discover,
    ethernet_frame,
    icmp_echo_request,
    ipv4_packet,
)
from tests.harness.virtio import (
    DESC_SIZE,
    VRING_DESC_F_WRITE,
    VirtioNetHdr,
    VirtioQueue,
    VringDesc,
)

MAC = "52:54:00:12:34:56"
IPV4 = "10.0.0.5"
NEIGHBOUR_IPV4 = "10.0.0.6"

BUFFERS = 256
"""Different buffers in a ring, as many as a virtio-net queue of QEMU has by default; longer rings
name them several times."""
BUFFER_SIZE = 2048

MIN_FRAME = 60
MAX_FRAME = 1514
"""Ethernet frames without FCS, of the least length and of an MTU of 1,500 bytes."""

ARP = arp_request(MAC, IPV4, GATEWAY_IP)
DHCP = dhcp_discover(MAC, 0x12345678)


def ping(size: int) -> bytes:
    """An echo request to the gateway in a frame of `size` bytes."""
    data = bytes(size - 14 - 20 - 8)
    return icmp_echo_request(MAC, GATEWAY_MAC, IPV4, GATEWAY_IP, 1, 1, data)


def dropped(size: int) -> bytes:
    """A UDP packet to a neighbour: looked at as closely as any, then dropped (no route)."""
    packet = ipv4_packet(IPV4, NEIGHBOUR_IPV4, 17, bytes(size - 14 - 20))
    return ethernet_frame(GATEWAY_MAC, MAC, 0x0800, packet)


class Ring:
    """A queue whose buffers come back in the order in which they were given.

    Args:
        queue: set up but empty; with EVENT_IDX.
        buffer_size: in bytes.
        buffers: how many different ones there are.
    """

    def __init__(
        self, queue: VirtioQueue, buffer_size: int = BUFFER_SIZE, buffers: int = BUFFERS
    ) -> None:
        self.queue = queue
        self._given = queue.next_avail
        self._buffer_size = buffer_size
        self._buffers = [queue.memory.alloc_buffer(buffer_size) for _ in range(buffers)]

    def load(self, frame: bytes, header: VirtioNetHdr | None = None) -> None:
        """Make each buffer a frame for the device to take."""
        self.load_each([frame], header)

    def load_each(self, frames: Sequence[bytes], header: VirtioNetHdr | None = None) -> None:
        """Make the buffers these frames for the device to take, in turn; all of one length."""
        head = (header or VirtioNetHdr()).pack()
        for addr, frame in zip(self._buffers, itertools.cycle(frames), strict=False):
            self.queue.memory.write(addr, head + frame)
        self._describe(len(head) + len(frames[0]), 0)

    def make_room(self) -> None:
        """Make each buffer one for the device to write to."""
        self._describe(self._buffer_size, VRING_DESC_F_WRITE)

    def _describe(self, length: int, flags: int) -> None:
        descs = [desc.pack() for desc in self._descs(length, flags)]
        self.queue.memory.write(self.queue.desc_table, b"".join(descs))
        for slot in range(self.queue.size):
            self.queue.write_avail(slot, slot)

    def _descs(self, length: int, flags: int) -> list[VringDesc]:
        """One for each entry of the ring, which says its number."""
        addrs = itertools.islice(itertools.cycle(self._buffers), self.queue.size)
        return [VringDesc(addr, length, flags, slot) for slot, addr in enumerate(addrs)]

    def give(self, count: int, *, call: bool) -> None:
        """Give the next `count` buffers to the device.

        Args:
            call: ask for one interrupt when all of them are back; otherwise for none.
        """
        self._given = (self._given + count) & 0xFFFF
        # The furthest index from being passed is the one half way round.
        self.queue.set_used_event(self._given - 1 + (0 if call else 0x8000))
        fence()
        self.queue.write_avail_idx(self._given)

    def outstanding(self) -> int:
        """Buffers that the device has."""
        return (self._given - self.queue.used_idx()) & 0xFFFF

    def first_frame(self) -> bytes:
        """The first buffer without its header, for a look at what the device wrote."""
        return self.queue.read_rx_data(self._buffers[0], self._buffer_size)


class PackedRing(Ring):
    """The same with a packed ring, for a device that does not look at it while buffers are given.

    Its descriptors are written anew each time, since the device has written over them.
    """

    def _describe(self, length: int, flags: int) -> None:
        # All of the ring available, with the wrap counter of an even lap and of an odd one.
        self._laps = [
            b"".join(map(pack_desc, self._descs(length, flags | bit)))
            for bit in (VRING_DESC_F_AVAIL, VRING_DESC_F_USED)
        ]

    def give(self, count: int, *, call: bool) -> None:
        end = self._given + count
        while self._given < end:
            lap, slot = divmod(self._given, self.queue.size)
            run = min(end - self._given, self.queue.size - slot)
            part = slice(DESC_SIZE * slot, DESC_SIZE * (slot + run))
            where = self.queue.desc_table + part.start
            self.queue.memory.write(where, self._laps[lap % 2][part])
            self._given += run
        if call:
            self.queue.set_used_event(self._given - 1)
        else:
            self.queue.disable_call()
        fence()

    def outstanding(self) -> int:
        numbers = range(self._given - 1, max(0, self._given - self.queue.size) - 1, -1)
        return sum(1 for _ in itertools.takewhile(self._is_with_device, numbers))

    def _is_with_device(self, number: int) -> bool:
        lap, slot = divmod(number, self.queue.size)
        where = self.queue.desc_table + DESC_SIZE * slot + self.queue.DESC_FLAGS
        used = VRING_DESC_F_AVAIL | VRING_DESC_F_USED
        return self.queue.memory.load16(where) & used != (used if lap % 2 == 0 else 0)


def ring_on(queue: VirtioQueue, buffer_size: int, buffers: int) -> Ring:
    """A ring of the queue's layout."""
    kind = PackedRing if isinstance(queue, PackedQueue) else Ring
    return kind(queue, buffer_size, buffers)


@attrs.frozen
class Guest:
    """A guest connected to a NIC of the daemon: its rings, and the eventfds that it needs."""

    rx: Ring
    tx: Ring
    kick: int
    """Of the TX ring."""
    rx_call: int
    tx_call: int


@attrs.frozen
class Wires:
    """A frontend without driver: nobody looks at its rings, nor gives it buffers.

    Args:
        kick: of the TX ring.
    """

    client: VhostTestClient
    kick: int
    rx_call: int
    tx_call: int


@asynccontextmanager
async def connected_wires(path: Path) -> AsyncIterator[Wires]:
    """Connect to a NIC; whoever uses the rings fills them."""
    async with trio.open_nursery() as nursery:
        client = await VhostTestClient.connect(nursery, path, rx_buffers=0, poll_call=True)
        with ExitStack() as stack:
            calls = {index: eventfd(stack) for index in (RX_QUEUE_IDX, TX_QUEUE_IDX)}
            for index, call in calls.items():
                await client.connection.set_vring_call(index, call)
            kick = client.vrings[TX_QUEUE_IDX].kick
            assert kick is not None
            yield Wires(client, kick, calls[RX_QUEUE_IDX], calls[TX_QUEUE_IDX])
        await client.aclose()


@asynccontextmanager
async def connected_guest(path: Path) -> AsyncIterator[Guest]:
    """Connect to a NIC. The RX ring has room to be given, the TX ring wants a frame (`Ring.load`).

    No task looks at the rings: whoever uses the guest does.
    """
    async with connected_wires(path) as wires:
        guest = Guest(
            rx=Ring(wires.client.rx_queue),
            tx=Ring(wires.client.tx_queue),
            kick=wires.kick,
            rx_call=wires.rx_call,
            tx_call=wires.tx_call,
        )
        guest.rx.make_room()
        yield guest


def eventfd(stack: ExitStack) -> int:
    """A new eventfd like those of a driver, closed with the stack."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
