"""The driver's side of split virtqueues (virtio 1.2, chapter 2.7), in plain Python.

`VirtioQueue` is at once a careful driver and a hostile one: `add_chain`, `pop_used` and
`pop_frame` follow the specification and check that the device does, while `write_desc`,
`write_avail`, `write_avail_idx` and `offer_raw` put anything at all into the ring.

Directions are the guest's: it transmits on TX and receives on RX.
"""

from __future__ import annotations

import collections
import struct
from collections.abc import Iterable, Sequence
from typing import Self, TypeAlias

import attrs

from .memory import TestGuestMemory, fence

QUEUE_SIZE = 256
"""Descriptors of a queue when nothing else is asked for."""
VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4
VRING_AVAIL_F_NO_INTERRUPT = 1
VRING_USED_F_NO_NOTIFY = 1
VIRTIO_NET_HDR_SIZE = 12
DESC_SIZE = 16

_DESC = struct.Struct("<QIHH")
_PAIR = struct.Struct("<HH")
_USED_ELEM = struct.Struct("<II")
_NET_HDR = struct.Struct("<BBHHHHH")

Segment: TypeAlias = tuple[int, int]
"""One buffer of a chain: guest address and length in bytes."""


VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_F_DATA_VALID = 2
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
VIRTIO_NET_HDR_GSO_ECN = 0x80

_GUEST_CSUM = 1 << 1
_GUEST_ECN = 1 << 9
_GUEST_GSO = {
    VIRTIO_NET_HDR_GSO_TCPV4: 1 << 7,
    VIRTIO_NET_HDR_GSO_TCPV6: 1 << 8,
    VIRTIO_NET_HDR_GSO_UDP_L4: 1 << 54 | 1 << 55,
}
"""Which feature lets the device pass a packet on without segmentation: any bit of these."""


class QueueFullError(Exception):
    """Not enough free descriptors for the chain."""


class DeviceError(AssertionError):
    """The device broke a rule of the virtio specification."""


@attrs.frozen
class VringDesc:
    """A descriptor (virtio 1.2, 2.7.5)."""

    addr: int = 0
    len: int = 0
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        """The sixteen bytes of the table entry."""
        return _DESC.pack(self.addr, self.len, self.flags, self.next)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the sixteen bytes of the table entry."""
        return cls(*_DESC.unpack(data))


@attrs.frozen
class VringAvail:
    """The head of an avail ring (virtio 1.2, 2.7.6); entries and used_event follow it."""

    flags: int = 0
    idx: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the first four bytes of the ring."""
        return cls(*_PAIR.unpack(data))


@attrs.frozen
class VringUsed:
    """The head of a used ring (virtio 1.2, 2.7.8); elements and avail_event follow it."""

    flags: int = 0
    idx: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the first four bytes of the ring."""
        return cls(*_PAIR.unpack(data))


@attrs.frozen
class VringUsedElem:
    """An element of a used ring: the head of a chain, and how many bytes the device wrote."""

    id: int = 0
    len: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the eight bytes of the element."""
        return cls(*_USED_ELEM.unpack(data))


@attrs.frozen
class VirtioNetHdr:
    """The header in front of each frame (virtio 1.2, 5.1.6)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self) -> bytes:
        """The twelve bytes in front of the frame."""
        return _NET_HDR.pack(*attrs.astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the first twelve bytes of a buffer."""
        return cls(*_NET_HDR.unpack(data))


@attrs.frozen
class UsedBuffer:
    """A chain that the device has returned.

    Args:
        head: index of the first descriptor.
        length: bytes that the device says to have written.
        readable, writable: the parts of the chain.
        table: guest address of the indirect table, if there was one.
    """

    head: int
    length: int
    readable: tuple[Segment, ...] = ()
    writable: tuple[Segment, ...] = ()
    table: int | None = None


@attrs.frozen
class ReceivedFrame:
    """A frame without its header, the header, and the chains that it came in."""

    frame: bytes
    header: VirtioNetHdr
    buffers: tuple[UsedBuffer, ...]
    pair: int = 0
    """The queue pair by which it came."""


@attrs.frozen
class _Chain:
    """What the driver must remember of a chain that the device has."""

    slots: tuple[int, ...]
    readable: tuple[Segment, ...] = ()
    writable: tuple[Segment, ...] = ()
    table: int | None = None
    raw: bool = False


def vring_need_event(event: int, new: int, old: int) -> bool:
    """Whether an index that went from `old` to `new` has passed `event` (virtio 1.2, 2.7.7.2)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


def avail_ring_size(queue_size: int) -> int:
    """Bytes of an avail ring with its used_event."""
    return 4 + 2 * queue_size + 2


def used_ring_size(queue_size: int) -> int:
    """Bytes of a used ring with its avail_event."""
    return 4 + 8 * queue_size + 2


def split_lengths(total: int, split: Iterable[int]) -> list[int]:
    """Cut `total` bytes into pieces of the lengths in `split`; the last piece takes the rest."""
    lengths: list[int] = []
    for length in split:
        if length >= total:
            break
        lengths.append(length)
        total -= length
    return [*lengths, total]


class VirtioQueue:
    """One split virtqueue in guest memory.

    Args:
        memory: where everything lies.
        queue_idx: 0 for RX, 1 for TX.
        desc_table, avail_ring, used_ring: guest addresses, aligned to 16, 2 and 4.
        size: number of descriptors, a power of two.
        base: where both indices start; a driver starts at 0, a test of wrap-around does not.
        event_idx: EVENT_IDX was negotiated.
        in_order: IN_ORDER was negotiated, so chains must come back in the order they were given.
        features: all that was negotiated, for a check of received headers; None: no check.
    """

    def __init__(
        self,
        memory: TestGuestMemory,
        queue_idx: int,
        desc_table: int,
        avail_ring: int,
        used_ring: int,
        *,
        size: int = QUEUE_SIZE,
        base: int = 0,
        event_idx: bool = False,
        in_order: bool = False,
        features: int | None = None,
    ) -> None:
        self.memory = memory
        self.queue_idx = queue_idx
        self.desc_table = desc_table
        self.avail_ring = avail_ring
        self.used_ring = used_ring
        self.size = size
        self.event_idx = event_idx
        self.in_order = in_order
        self.features = features
        self._reset(base)

    DESC_FLAGS = 12
    """Where the flags are in a descriptor."""

    @staticmethod
    def part_sizes(size: int) -> tuple[int, int, int]:
        """Bytes of the descriptor table, the avail ring and the used ring."""
        return DESC_SIZE * size, avail_ring_size(size), used_ring_size(size)

    def wire_base(self, index: int) -> int:
        """How SET_VRING_BASE says that the ring stands at this index."""
        return index & 0xFFFF

    def _reset(self, base: int) -> None:
        self.next_avail = base
        self.last_used = base
        self._kicked = base
        self._free = collections.deque(range(self.size))
        self._given: collections.deque[int] = collections.deque()
        self._chains: dict[int, collections.deque[_Chain]] = {}

    def init(self, base: int = 0) -> None:
        """Zero the three parts, start both indices at `base` and forget all chains."""
        self._reset(base)
        self.memory.write(self.desc_table, bytes(DESC_SIZE * self.size))
        self.memory.write(self.avail_ring, bytes(avail_ring_size(self.size)))
        self.memory.write(self.used_ring, bytes(used_ring_size(self.size)))
        self.memory.store16(self.avail_ring + 2, base)
        self.memory.store16(self.used_ring + 2, base)
        self.set_used_event(base)

    @property
    def free_descriptors(self) -> int:
        """Descriptors that belong to no chain."""
        return len(self._free)

    @property
    def outstanding(self) -> int:
        """Chains that the device has."""
        return len(self._given)

    @property
    def raw_outstanding(self) -> bool:
        """Whether the device has a chain of `offer_raw`."""
        return any(chain.raw for chains in self._chains.values() for chain in chains)

    # Giving buffers to the device

    def add_chain(
        self,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        *,
        table: int | None = None,
        publish: bool = True,
    ) -> int:
        """Give one chain to the device and return its head.

        Args:
            readable, writable: what the device reads comes first (virtio 1.2, 2.7.4.2).
            table: guest address of room for an indirect table of all segments; None: direct.
            publish: move the avail index too; otherwise `publish` does it for a batch.

        Raises:
            QueueFullError: too few free descriptors.
        """
        segments = [(*s, 0) for s in readable] + [(*s, VRING_DESC_F_WRITE) for s in writable]
        slots = self._take_slots(1 if table is not None else len(segments))
        if table is None:
            for slot, desc in zip(slots, _linked(segments, slots), strict=True):
                self.write_desc(slot, desc)
        else:
            descs = _linked(segments, range(len(segments)))
            self.memory.write(table, b"".join(desc.pack() for desc in descs))
            size = DESC_SIZE * len(segments)
            self.write_desc(slots[0], VringDesc(table, size, VRING_DESC_F_INDIRECT))
        self._offer(slots[0], _Chain(slots, tuple(readable), tuple(writable), table), publish)
        return slots[0]

    def add_tx_buffer(
        self,
        where: int | Sequence[Segment],
        data: bytes,
        *,
        header: VirtioNetHdr | None = None,
        table: int | None = None,
        publish: bool = True,
    ) -> int:
        """Write a header and the frame `data` to memory and give them to the device.

        Args:
            where: a guest address for everything in one piece, or segments that together are
                exactly as long as header and frame; these may be cut anywhere.
            header: all zeros by default.
            table, publish: see `add_chain`.

        Returns:
            The head of the chain.
        """
        packet = (header or VirtioNetHdr()).pack() + data
        segments = [(where, len(packet))] if isinstance(where, int) else where
        if sum(length for _, length in segments) != len(packet):
            raise ValueError("the segments are not as long as the packet")
        done = 0
        for addr, length in segments:
            self.memory.write(addr, packet[done : done + length])
            done += length
        return self.add_chain(segments, (), table=table, publish=publish)

    def add_rx_buffer(
        self,
        where: int | Sequence[Segment],
        size: int = 0,
        *,
        table: int | None = None,
        publish: bool = True,
    ) -> int:
        """Give the device room to write to: `size` bytes at an address, or segments.

        Returns:
            The head of the chain.
        """
        segments = [(where, size)] if isinstance(where, int) else where
        return self.add_chain((), segments, table=table, publish=publish)

    def publish(self) -> None:
        """Let the device see every chain that was added (one 16-bit store)."""
        fence()
        self.memory.store16(self.avail_ring + 2, self.next_avail)

    def _take_slots(self, count: int) -> tuple[int, ...]:
        if count > len(self._free):
            raise QueueFullError(f"{count} descriptors wanted, {len(self._free)} free")
        return tuple(self._free.popleft() for _ in range(count))

    def _offer(self, head: int, chain: _Chain, publish: bool) -> None:
        self._chains.setdefault(head, collections.deque()).append(chain)
        self._given.append(head)
        self.write_avail(self.next_avail, head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        if publish:
            self.publish()

    # Taking buffers back

    def used_idx(self) -> int:
        """The used index as it stands in memory."""
        return self.memory.load16(self.used_ring + 2)

    def used_count(self) -> int:
        """How many chains the device has returned that were not popped yet."""
        return (self.used_idx() - self.last_used) & 0xFFFF

    def has_used(self) -> bool:
        """Whether the device has returned a chain that was not popped yet."""
        return self.used_count() > 0

    def pop_used(self) -> UsedBuffer | None:
        """Take the next returned chain and free its descriptors; None: there is none.

        Raises:
            DeviceError: the device returned what it does not have, or too much, or out of order.
        """
        count = self.used_count()
        if count == 0:
            return None
        if count > len(self._given):
            raise DeviceError(f"the used index is {count - len(self._given)} past what was given")
        fence()
        element = self._used_element(self.last_used)
        chain = self._take_back(element)
        self.last_used = (self.last_used + 1) & 0xFFFF
        self._free.extend(chain.slots)
        return UsedBuffer(element.id, element.len, chain.readable, chain.writable, chain.table)

    def _used_element(self, position: int) -> VringUsedElem:
        slot = position % self.size
        return VringUsedElem.unpack(self.memory.read(self.used_ring + 4 + 8 * slot, 8))

    def _take_back(self, element: VringUsedElem) -> _Chain:
        if not self._chains.get(element.id):
            raise DeviceError(f"chain {element.id} was returned, but the device does not have it")
        if self.in_order and self._given[0] != element.id:
            raise DeviceError(f"chain {element.id} was returned before {self._given[0]}")
        chain = self._chains[element.id].popleft()
        self._given.remove(element.id)
        if not chain.raw and element.len > sum(length for _, length in chain.writable):
            raise DeviceError(f"chain {element.id} holds less than the {element.len} bytes written")
        return chain

    def detach_all(self) -> list[UsedBuffer]:
        """Take back every chain that a stopped device still had; `init` must follow."""
        chains = [
            UsedBuffer(head, 0, chain.readable, chain.writable, chain.table)
            for head, given in self._chains.items()
            for chain in given
        ]
        self._reset(self.last_used)
        return chains

    def read_rx_data(self, where: int | Sequence[Segment], length: int) -> bytes:
        """The frame without its header in a buffer that the device wrote `length` bytes to."""
        segments = [(where, length)] if isinstance(where, int) else where
        return self._written(segments, length)[VIRTIO_NET_HDR_SIZE:]

    def pop_frame(self, *, mergeable: bool = False) -> ReceivedFrame | None:
        """Take the next received frame, from several chains if need be; None: there is none.

        Args:
            mergeable: MRG_RXBUF was negotiated.

        Raises:
            DeviceError: the rules of virtio 1.2, 5.1.6.4.1 are broken.
        """
        first = self.pop_used()
        if first is None:
            return None
        data = self._written(first.writable, first.length)
        if len(data) < VIRTIO_NET_HDR_SIZE:
            raise DeviceError(f"{len(data)} bytes are no virtio_net_hdr")
        header = VirtioNetHdr.unpack(data[:VIRTIO_NET_HDR_SIZE])
        if header.num_buffers != 1 and (not mergeable or header.num_buffers == 0):
            raise DeviceError(f"num_buffers is {header.num_buffers}")
        buffers = [first]
        while len(buffers) < header.num_buffers:
            buffers.append(self._next_part(buffers[-1]))
            data += self._written(buffers[-1].writable, buffers[-1].length)
        frame = data[VIRTIO_NET_HDR_SIZE:]
        if self.features is not None:
            check_received_header(header, len(frame), self.features)
        return ReceivedFrame(frame, header, tuple(buffers))

    def _next_part(self, previous: UsedBuffer) -> UsedBuffer:
        if previous.length != sum(length for _, length in previous.writable):
            raise DeviceError("a buffer that is not the frame's last was not filled")
        part = self.pop_used()
        if part is None:
            raise DeviceError("a frame was published in parts")
        return part

    def _written(self, segments: Sequence[Segment], length: int) -> bytes:
        data = b"".join(self.memory.read(addr, size) for addr, size in segments)
        return data[:length]

    # Notifications

    def set_used_event(self, event: int) -> None:
        """Ask for an interrupt once the used index passes `event`."""
        self.memory.store16(self.avail_ring + 4 + 2 * self.size, event & 0xFFFF)

    def get_avail_event(self) -> int:
        """The avail index past which the device wants a kick."""
        return self.memory.load16(self.used_ring + 4 + 8 * self.size)

    def kick_needed(self) -> bool:
        """Whether the device wants to hear of what was published since the last call of this."""
        fence()
        old, self._kicked = self._kicked, self.next_avail
        if self.event_idx:
            return vring_need_event(self.get_avail_event(), self.next_avail, old)
        return not self.memory.load16(self.used_ring) & VRING_USED_F_NO_NOTIFY

    def enable_call(self, after: int = 1) -> bool:
        """Ask for an interrupt after `after` more chains; True: they are there already."""
        if self.event_idx:
            self.set_used_event(self.last_used + after - 1)
        else:
            self.write_avail_flags(0)
        fence()
        return self.used_count() >= after

    def disable_call(self) -> None:
        """Ask for no interrupt. With EVENT_IDX: for none before the index has gone all round."""
        if self.event_idx:
            self.set_used_event(self.last_used - 1)
        else:
            self.write_avail_flags(VRING_AVAIL_F_NO_INTERRUPT)

    # Anything at all

    def write_desc(self, index: int, desc: VringDesc) -> None:
        """Write an entry of the descriptor table."""
        self.memory.write(self.desc_table + DESC_SIZE * index, desc.pack())

    def write_avail(self, position: int, head: int) -> None:
        """Write the entry of the avail ring that stands for the free-running index `position`."""
        self.memory.store16(self.avail_ring + 4 + 2 * (position % self.size), head)

    def write_avail_idx(self, index: int) -> None:
        """Write the avail index, and nothing else."""
        self.memory.store16(self.avail_ring + 2, index & 0xFFFF)

    def write_avail_flags(self, flags: int) -> None:
        """Write the flags of the avail ring."""
        self.memory.store16(self.avail_ring, flags)

    def offer_raw(self, head: int, *, publish: bool = True) -> None:
        """Give the device the chain at `head`, whatever the descriptor table says there."""
        self._offer(head, _Chain((), raw=True), publish)


def check_received_header(header: VirtioNetHdr, length: int, features: int) -> None:
    """Whether a device may give this header to such a driver (virtio 1.2, 5.1.6.4).

    Args:
        length: of the frame.
        features: those negotiated.

    Raises:
        DeviceError: it may not.
    """
    if header.flags & ~(VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID):
        raise DeviceError(f"unknown flags {header.flags:#x}")
    if header.flags and not features & _GUEST_CSUM:
        raise DeviceError("a checksum left out, but GUEST_CSUM was not negotiated")
    if header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        if not 14 <= header.csum_start <= header.csum_start + header.csum_offset + 2 <= length:
            raise DeviceError(f"the checksum is outside the frame: {header}")
    elif header.csum_start or header.csum_offset:
        raise DeviceError(f"a checksum's place without a checksum: {header}")
    kind = header.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    if kind == VIRTIO_NET_HDR_GSO_NONE:
        if header.gso_type or header.gso_size or header.hdr_len:
            raise DeviceError(f"segmentation without its kind: {header}")
        return
    if not features & _GUEST_GSO.get(kind, 0):
        raise DeviceError(f"segmentation of kind {kind} was not negotiated")
    if header.gso_type & VIRTIO_NET_HDR_GSO_ECN and not features & _GUEST_ECN:
        raise DeviceError("ECN was not negotiated")
    if not header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        raise DeviceError("segmentation without a checksum left out")
    if header.gso_size == 0 or not header.csum_start < header.hdr_len < length:
        raise DeviceError(f"segmentation that cannot be: {header}")


def _linked(segments: Sequence[tuple[int, int, int]], slots: Sequence[int]) -> list[VringDesc]:
    """Descriptors for (address, length, flags), each linked to the slot of the next."""
    descs = [
        VringDesc(addr, length, flags | VRING_DESC_F_NEXT, following)
        for (addr, length, flags), following in zip(segments, slots[1:], strict=False)
    ]
    return [*descs, VringDesc(*segments[-1])]
