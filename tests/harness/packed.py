"""The driver's side of packed virtqueues (virtio 1.2, chapter 2.8), in plain Python.

`PackedQueue` is used like the split `VirtioQueue`, whose buffers, frames and bookkeeping it shares.
Where that has free-running indices, this counts slots of the ring from its first lap on, without
end; `position` makes a slot and a wrap counter of such a number.

For hostile drivers `write_desc` and `offer_raw` are here, too. A packed ring has no table to which
heads point, so the table is kept beside it, and a chain is copied into the ring when it is offered.
`write_slot` writes to the ring itself.
"""

from __future__ import annotations

import collections
import itertools
import struct
from collections.abc import Iterator, Sequence

from .memory import fence
from .virtio import (
    DESC_SIZE,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    DeviceError,
    QueueFullError,
    Segment,
    UsedBuffer,
    VirtioQueue,
    VringDesc,
    VringUsedElem,
    _Chain,
)

VRING_DESC_F_AVAIL = 1 << 7
VRING_DESC_F_USED = 1 << 15
RING_EVENT_FLAGS_ENABLE = 0
RING_EVENT_FLAGS_DISABLE = 1
RING_EVENT_FLAGS_DESC = 2

EVENT_SIZE = 4
"""Bytes of an event suppression area."""

_WRAP = 1 << 15
_NO_ID = 0xFFFF
"""In all descriptors of a chain but the last, whose id counts."""
_DESC = struct.Struct("<QIHH")
_LEN_AND_ID = struct.Struct("<IH")


def pack_desc(desc: VringDesc) -> bytes:
    """The sixteen bytes of a descriptor, of the ring or of an indirect table; `next` is its id."""
    return _DESC.pack(desc.addr, desc.len, desc.next, desc.flags)


class PackedQueue(VirtioQueue):
    """One packed virtqueue in guest memory.

    Args:
        desc_table: the descriptor ring.
        avail_ring: the driver event suppression area.
        used_ring: the device event suppression area.
        size: number of descriptors, 1 to 32768.

    The others are those of `VirtioQueue`.
    """

    DESC_FLAGS = 14

    @staticmethod
    def part_sizes(size: int) -> tuple[int, int, int]:
        """Bytes of the descriptor ring, the driver's and the device's event suppression area."""
        return DESC_SIZE * size, EVENT_SIZE, EVENT_SIZE

    def _reset(self, base: int) -> None:
        super()._reset(base)
        self._free_slots = self.size
        self._table: dict[int, VringDesc] = {}
        self._held_back: tuple[int, int] | None = None

    def init(self, base: int = 0) -> None:
        """Make a ring in which everything before slot number `base` was given and returned."""
        self._reset(base)
        self.memory.write(self.desc_table, bytes(DESC_SIZE * self.size))
        for number in range(max(0, base - self.size), base):
            both = VRING_DESC_F_AVAIL | VRING_DESC_F_USED if self._wrap(number) else 0
            self.memory.store16(self._slot_addr(number) + self.DESC_FLAGS, both)
        self.memory.write(self.avail_ring, bytes(EVENT_SIZE))
        self.memory.write(self.used_ring, bytes(EVENT_SIZE))
        if self.event_idx:
            self.set_used_event(base)

    # Numbers and positions

    def position(self, number: int) -> int:
        """The slot with this number, and in bit 15 the wrap counter there."""
        return number % self.size | (_WRAP if self._wrap(number) else 0)

    def wire_base(self, number: int) -> int:
        """How SET_VRING_BASE says that the ring stands there: available below, used above."""
        return self.position(number) | self.position(number) << 16

    def _wrap(self, number: int) -> bool:
        return number // self.size % 2 == 0

    def _slot_addr(self, number: int) -> int:
        return self.desc_table + DESC_SIZE * (number % self.size)

    # Giving buffers to the device

    @property
    def free_descriptors(self) -> int:
        """Descriptors that belong to no chain."""
        return self._free_slots

    def add_chain(
        self,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        *,
        table: int | None = None,
        publish: bool = True,
    ) -> int:
        """Give one chain to the device and return its buffer id."""
        descs = [VringDesc(*s) for s in readable]
        descs += [VringDesc(*s, VRING_DESC_F_WRITE) for s in writable]
        if table is not None:
            self.memory.write(table, b"".join(map(pack_desc, descs)))
            descs = [VringDesc(table, DESC_SIZE * len(descs), VRING_DESC_F_INDIRECT)]
        if len(descs) > self._free_slots:
            raise QueueFullError(f"{len(descs)} descriptors wanted, {self._free_slots} free")
        buffer_id = self._free.popleft()
        chain = _Chain((0,) * len(descs), tuple(readable), tuple(writable), table)
        linked = [VringDesc(d.addr, d.len, d.flags | VRING_DESC_F_NEXT, _NO_ID) for d in descs]
        linked[-1] = VringDesc(descs[-1].addr, descs[-1].len, descs[-1].flags, buffer_id)
        self._give(buffer_id, chain, linked, publish)
        return buffer_id

    def _give(
        self, buffer_id: int, chain: _Chain, descs: Sequence[VringDesc], publish: bool
    ) -> None:
        """Write a chain; the flags of a batch's first descriptor are held back for `publish`."""
        self._chains.setdefault(buffer_id, collections.deque()).append(chain)
        self._given.append(buffer_id)
        for number, desc in reversed(list(enumerate(descs, start=self.next_avail))):
            bit = VRING_DESC_F_AVAIL if self._wrap(number) else VRING_DESC_F_USED
            addr, flags = self._slot_addr(number), desc.flags | bit
            self.memory.write(addr, pack_desc(desc)[: self.DESC_FLAGS])
            if number == self.next_avail and self._held_back is None:
                self._held_back = addr + self.DESC_FLAGS, flags
            else:
                fence()
                self.memory.store16(addr + self.DESC_FLAGS, flags)
        self.next_avail += len(descs)
        self._free_slots -= len(descs)
        if publish:
            self.publish()

    def publish(self) -> None:
        """Let the device see every chain that was added (one 16-bit store)."""
        fence()
        if self._held_back is not None:
            self.memory.store16(*self._held_back)
        self._held_back = None

    # Taking buffers back

    def _returned(self) -> Iterator[tuple[VringUsedElem, int]]:
        """Elements that were not popped yet, and the slots that each of them stands for."""
        seen: collections.Counter[int] = collections.Counter()
        number = self.last_used
        while self._is_used(number):
            fence()
            element = self._used_element(number)
            chains = self._chains.get(element.id, ())
            if seen[element.id] == len(chains):
                raise DeviceError(f"buffer {element.id} was returned, but the device has it not")
            slots = len(chains[seen[element.id]].slots)
            seen[element.id] += 1
            yield element, slots
            number += slots

    def _is_used(self, number: int) -> bool:
        """Whether the device has marked this slot; not if the driver still holds it back."""
        flags = self.memory.load16(self._slot_addr(number) + self.DESC_FLAGS)
        bits = VRING_DESC_F_AVAIL | VRING_DESC_F_USED
        return number < self.next_avail and flags & bits == (bits if self._wrap(number) else 0)

    def _used_element(self, position: int) -> VringUsedElem:
        length, buffer_id = _LEN_AND_ID.unpack(self.memory.read(self._slot_addr(position) + 8, 6))
        return VringUsedElem(buffer_id, length)

    def used_idx(self) -> int:
        """The number of the slot where the device goes on."""
        return self.last_used + sum(slots for _, slots in self._returned())

    def used_count(self) -> int:
        """How many chains the device has returned that were not popped yet."""
        return sum(1 for _ in self._returned())

    def has_used(self) -> bool:
        """Whether the device has returned a chain that was not popped yet."""
        return next(self._returned(), None) is not None

    def pop_used(self) -> UsedBuffer | None:
        """Take the next returned chain and free its descriptors; None: there is none."""
        returned = next(self._returned(), None)
        if returned is None:
            return None
        element, slots = returned
        flags = self.memory.load16(self._slot_addr(self.last_used) + self.DESC_FLAGS)
        if bool(flags & VRING_DESC_F_WRITE) is not bool(element.len):
            raise DeviceError(f"{element.len} bytes were written, and the flags are {flags:#x}")
        chain = self._take_back(element)
        self.last_used += slots
        self._free_slots += slots
        if not chain.raw:
            self._free.append(element.id)
        return UsedBuffer(element.id, element.len, chain.readable, chain.writable, chain.table)

    # Notifications

    def _set_event(self, flags: int, position: int) -> None:
        self.memory.store16(self.avail_ring, position)
        fence()
        self.memory.store16(self.avail_ring + 2, flags)

    def set_used_event(self, event: int) -> None:
        """Ask for an interrupt once the device returns the slot with this number."""
        self._set_event(RING_EVENT_FLAGS_DESC, self.position(event))

    def get_avail_event(self) -> int:
        """The position past which the device wants a kick."""
        return self.memory.load16(self.used_ring)

    def kick_needed(self) -> bool:
        """Whether the device wants to hear of what was published since the last call of this."""
        fence()
        old, self._kicked = self._kicked, self.next_avail
        flags = self.memory.load16(self.used_ring + 2)
        if flags != RING_EVENT_FLAGS_DESC:
            return flags == RING_EVENT_FLAGS_ENABLE
        if not self.event_idx:
            raise DeviceError("the device names a descriptor, but EVENT_IDX was not negotiated")
        event = self.get_avail_event()
        return any(self.position(number) == event for number in range(old, self.next_avail))

    def enable_call(self, after: int = 1) -> bool:
        """Ask for an interrupt after `after` more chains; True: they are there already."""
        if self.event_idx:
            outstanding = [len(self._chains[given][0].slots) for given in self._given]
            slots = itertools.islice(itertools.chain(outstanding, itertools.repeat(1)), after - 1)
            self.set_used_event(self.last_used + sum(slots))
        else:
            self.write_avail_flags(RING_EVENT_FLAGS_ENABLE)
        fence()
        return self.used_count() >= after

    def disable_call(self) -> None:
        """Ask for no interrupt."""
        self.write_avail_flags(RING_EVENT_FLAGS_DISABLE)

    # Anything at all

    def write_desc(self, index: int, desc: VringDesc) -> None:
        """Write an entry of the table beside the ring."""
        self._table[index] = desc

    def write_slot(self, number: int, desc: VringDesc) -> None:
        """Write to the ring itself; `next` is the id, and the flags are taken as they are."""
        self.memory.write(self._slot_addr(number), pack_desc(desc))

    def write_avail_flags(self, flags: int) -> None:
        """Write the flags of the driver event suppression area."""
        self.memory.store16(self.avail_ring + 2, flags)

    def offer_raw(self, head: int, *, publish: bool = True) -> None:
        """Give the device the chain at `head` of the table, with the head as its id.

        A chain without an end takes up the whole ring.
        """
        descs = [self._table.get(head, VringDesc())]
        while descs[-1].flags & VRING_DESC_F_NEXT and len(descs) < self.size:
            descs.append(self._table.get(descs[-1].next, VringDesc()))
        raw = [VringDesc(desc.addr, desc.len, desc.flags, head) for desc in descs]
        self._give(head, _Chain((0,) * len(raw), raw=True), raw, publish)
