"""The C core alone, with the harness's driver on its rings; no socket, no trio."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network

import attrs

from mvirt_net.ffi import GuestMemory, Network, NextStep, Port, Punt
from mvirt_net.model import RX_QUEUE, TX_QUEUE, MacAddress, MemoryRegion, VringAddr
from tests.harness.memory import Region, RegionInfo, TestGuestMemory
from tests.harness.packed import PackedQueue
from tests.harness.virtio import QUEUE_SIZE, VirtioQueue

MAC = MacAddress.parse("52:54:00:12:34:56")
IPV4 = "10.0.0.5"
IPV6 = "fd00:0:0:1::5"
"""The addresses that are routed to a rig's guest."""
VERSION_1 = 1 << 32
EVENT_IDX = 1 << 29
INDIRECT_DESC = 1 << 28
MRG_RXBUF = 1 << 15
RING_PACKED = 1 << 34

PAGE = 4096

layout = 0
"""Added to the features of every rig; the `layout` fixture of the tests changes it."""


@attrs.define(eq=False)
class Rig:
    """A port and a guest that shares its memory with it.

    `calls` and `errs` are eventfds by queue.
    """

    port: Port
    guest: TestGuestMemory
    table: GuestMemory
    fault_fd: int
    features: int = VERSION_1
    size: int = QUEUE_SIZE
    queues: dict[int, VirtioQueue] = attrs.field(factory=dict)
    calls: dict[int, int] = attrs.field(factory=dict)
    errs: dict[int, int] = attrs.field(factory=dict)

    @property
    def rx(self) -> VirtioQueue:
        return self.queues[RX_QUEUE]

    @property
    def tx(self) -> VirtioQueue:
        return self.queues[TX_QUEUE]

    def user_addr(self, guest_addr: int) -> int:
        """The frontend's address of a guest address."""
        for info in self.guest.get_region_info():
            if 0 <= guest_addr - info.guest_addr < info.size:
                return guest_addr - info.guest_addr + info.user_addr
        raise ValueError(f"{guest_addr:#x} is in no region")

    def lay_out(self, queue: int, base: int = 0) -> VringAddr:
        """Put an empty ring of `size` entries somewhere in memory."""
        layout = PackedQueue if self.features & RING_PACKED else VirtioQueue
        desc, avail, used = layout.part_sizes(self.size)
        ring = layout(
            self.guest,
            queue,
            self.guest.alloc_buffer(desc, align=16),
            self.guest.alloc_buffer(avail, align=4),
            self.guest.alloc_buffer(used, align=4),
            size=self.size,
            event_idx=bool(self.features & EVENT_IDX),
            features=self.features,
        )
        ring.init(base)
        self.queues[queue] = ring
        return self.addr(queue)

    def addr(self, queue: int) -> VringAddr:
        ring = self.queues[queue]
        return VringAddr(
            desc=self.user_addr(ring.desc_table),
            used=self.user_addr(ring.used_ring),
            avail=self.user_addr(ring.avail_ring),
        )

    def start(self, base: int | None = 0) -> None:
        """Start and enable both rings, empty."""
        for queue in (RX_QUEUE, TX_QUEUE):
            addr = self.lay_out(queue, base or 0)
            wire = None if base is None else self.queues[queue].wire_base(base)
            self.port.start_ring(queue, self.size, addr, wire)
            self.port.enable_ring(queue, True)

    def buffer(self, size: int) -> int:
        return self.guest.alloc_buffer(size)

    def send(self, frame: bytes, **options: object) -> int:
        """Give one frame to the TX ring in one piece."""
        return self.tx.add_tx_buffer(self.buffer(12 + len(frame)), frame, **options)  # type: ignore[arg-type]

    def offer(self, size: int, count: int = 1) -> list[int]:
        """Give `count` RX buffers of `size` bytes."""
        return [self.rx.add_rx_buffer(self.buffer(size), size) for _ in range(count)]

    def drain(self) -> list[Punt]:
        """Drain until the ring is empty and a kick was asked for."""
        punts: list[Punt] = []
        step = NextStep.CALL_AGAIN
        while step is NextStep.CALL_AGAIN:
            drained = self.port.drain()
            punts += drained.punts
            step = drained.next
        return punts

    def flush(self) -> NextStep:
        """Flush until there is nothing to do before a kick; a turn may end at any time."""
        while (step := self.port.flush()) is NextStep.CALL_AGAIN:
            pass
        return step

    def drops(self) -> dict[str, int]:
        return {reason.name: count for reason, count in self.port.stats().drops.items()}

    def called(self, queue: int) -> int:
        """How often the driver was interrupted since the last look."""
        try:
            return os.eventfd_read(self.calls[queue])
        except BlockingIOError:
            return 0

    def erred(self, queue: int) -> bool:
        try:
            return bool(os.eventfd_read(self.errs[queue]))
        except BlockingIOError:
            return False


def region_of(info: RegionInfo) -> MemoryRegion:
    """What the harness says of a region, as the core wants it."""
    return MemoryRegion(
        guest_addr=info.guest_addr,
        size=info.size,
        user_addr=info.user_addr,
        mmap_offset=info.mmap_offset,
    )


def map_guest(guest: TestGuestMemory, fault_fd: int) -> GuestMemory:
    """All regions of a guest in one table."""
    table = GuestMemory.empty(fault_fd)
    for info in guest.get_region_info():
        former, table = table, table.with_region(region_of(info), info.fd)
        former.close()
    return table


@contextmanager
def open_rig(
    *,
    features: int = VERSION_1,
    size: int = QUEUE_SIZE,
    regions: Sequence[Region] = (Region(0, 2 << 20),),
    network: Network | None = None,
    mac: MacAddress = MAC,
    routes: Sequence[str] = (IPV4, IPV6),
) -> Iterator[Rig]:
    """A rig whose rings are not started yet; closed in the order that the core demands.

    Args:
        network: shared with other rigs; by default one of its own.
        routes: prefixes or addresses that are routed to the guest.
    """
    features |= layout
    with ExitStack() as stack:
        fault_fd = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, fault_fd)
        guest = TestGuestMemory(regions, data_offset=0)
        stack.callback(guest.close)
        table = map_guest(guest, fault_fd)
        stack.callback(table.close)
        if network is None:
            network = Network()
            stack.callback(network.close)
        port = Port(network, mac)
        stack.callback(port.close)
        port.set_routes([ip_network(route) for route in routes])
        port.set_features(features)
        port.set_memory(table)
        rig = Rig(port, guest, table, fault_fd, features, size)
        for queue in (RX_QUEUE, TX_QUEUE):
            for fds, attach in ((rig.calls, port.set_call), (rig.errs, port.set_err)):
                fds[queue] = os.eventfd(0, os.EFD_NONBLOCK)
                stack.callback(os.close, fds[queue])
                attach(queue, fds[queue])
        yield rig
