"""The harness's driver against the bytes of the specification, and against a model of a device."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.memory import MEMORY_SIZE, Region, TestGuestMemory
from tests.harness.virtio import (
    QUEUE_SIZE,
    VIRTIO_NET_HDR_SIZE,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    DeviceError,
    QueueFullError,
    VirtioNetHdr,
    VirtioQueue,
    VringAvail,
    VringDesc,
    VringUsed,
    VringUsedElem,
    split_lengths,
    vring_need_event,
)

MakeQueue = Callable[..., VirtioQueue]


@pytest.fixture
def make_queue() -> Iterator[MakeQueue]:
    """Makes queues on fresh memory; the last one's memory is closed at the end."""
    memory = TestGuestMemory()

    def make(size: int = 8, base: int = 0, **options: bool) -> VirtioQueue:
        queue = VirtioQueue(
            memory,
            0,
            memory.desc_table_addr(0),
            memory.avail_ring_addr(0),
            memory.used_ring_addr(0),
            size=size,
            **options,
        )
        queue.init(base)
        return queue

    yield make
    memory.close()


@attrs.define
class ModelDevice:
    """The device's side, as slow and plain as the specification's text."""

    queue: VirtioQueue
    next_avail: int = 0
    used: int = 0

    def pop(self) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        """Head, readable and writable segments of the next chain."""
        read, queue = self.queue.memory.read, self.queue
        (idx,) = struct.unpack("<H", read(queue.avail_ring + 2, 2))
        assert idx != self.next_avail
        slot = self.next_avail % queue.size
        (head,) = struct.unpack("<H", read(queue.avail_ring + 4 + 2 * slot, 2))
        self.next_avail = (self.next_avail + 1) % 65536
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        table, index = queue.desc_table, head
        while True:
            addr, length, flags, following = struct.unpack("<QIHH", read(table + 16 * index, 16))
            if flags & VRING_DESC_F_INDIRECT:
                table, index = addr, 0
                continue
            (writable if flags & VRING_DESC_F_WRITE else readable).append((addr, length))
            if not flags & VRING_DESC_F_NEXT:
                return head, readable, writable
            index = following

    def read(self, segments: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(self.queue.memory.read(addr, length) for addr, length in segments)

    def write(self, segments: Sequence[tuple[int, int]], data: bytes) -> None:
        for addr, length in segments:
            self.queue.memory.write(addr, data[:length])
            data = data[length:]

    def push(self, *elements: tuple[int, int]) -> None:
        """Return chains and publish them together."""
        queue = self.queue
        for head, length in elements:
            where = queue.used_ring + 4 + 8 * (self.used % queue.size)
            queue.memory.write(where, struct.pack("<II", head, length))
            self.used = (self.used + 1) % 65536
        queue.memory.write(queue.used_ring + 2, struct.pack("<H", self.used))


# Layout


def test_structures_have_the_sizes_of_the_specification() -> None:
    assert QUEUE_SIZE == 256
    assert (VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT) == (1, 2, 4)
    assert VringDesc(0x1122, 3, 4, 5).pack().hex() == "22110000000000000300000004000500"
    assert VringDesc.unpack(VringDesc(1, 2, 3, 4).pack()) == VringDesc(1, 2, 3, 4)
    assert VringAvail.unpack(b"\1\0\2\0") == VringAvail(1, 2)
    assert VringUsed.unpack(b"\1\0\2\0") == VringUsed(1, 2)
    assert VringUsedElem.unpack(b"\1\0\0\0\2\0\0\0") == VringUsedElem(1, 2)
    header = VirtioNetHdr(1, 2, 3, 4, 5, 6, 7)
    assert header.pack().hex() == "010203000400050006000700"
    assert len(header.pack()) == VIRTIO_NET_HDR_SIZE
    assert VirtioNetHdr.unpack(header.pack()) == header


def test_tx_buffer_in_memory(make_queue: MakeQueue) -> None:
    queue = make_queue()
    addr = queue.memory.alloc_buffer(100)
    assert queue.add_tx_buffer(addr, b"frame") == 0
    read = queue.memory.read
    assert read(addr, 17) == bytes(12) + b"frame"
    assert read(queue.desc_table, 16) == struct.pack("<QIHH", addr, 17, 0, 0)
    assert read(queue.avail_ring, 6) == struct.pack("<HHH", 0, 1, 0)


def test_rx_buffer_in_memory(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.add_rx_buffer(0x30000, 2048)
    assert queue.add_rx_buffer([(0x31000, 1), (0x32000, 2)]) == 1
    descs = struct.iter_unpack("<QIHH", queue.memory.read(queue.desc_table, 48))
    assert list(descs) == [
        (0x30000, 2048, VRING_DESC_F_WRITE, 0),
        (0x31000, 1, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 2),
        (0x32000, 2, VRING_DESC_F_WRITE, 0),
    ]
    assert queue.memory.read(queue.avail_ring, 8) == struct.pack("<HHHH", 0, 2, 0, 1)


def test_indirect_table_in_memory(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.add_chain([(0x31000, 12)], [(0x32000, 7)], table=0x30000)
    assert queue.memory.read(queue.desc_table, 16) == struct.pack("<QIHH", 0x30000, 32, 4, 0)
    assert queue.memory.read(0x30000, 32) == struct.pack(
        "<QIHHQIHH", 0x31000, 12, 1, 1, 0x32000, 7, 2, 0
    )
    assert queue.free_descriptors == 7


def test_events_stand_behind_the_rings(make_queue: MakeQueue) -> None:
    queue = make_queue(size=8)
    queue.set_used_event(0x1234)
    assert queue.memory.read(queue.avail_ring + 4 + 16, 2) == b"\x34\x12"
    queue.memory.write(queue.used_ring + 4 + 64, b"\x78\x56")
    assert queue.get_avail_event() == 0x5678


def test_init_starts_both_indices_at_the_base(make_queue: MakeQueue) -> None:
    queue = make_queue(base=65535)
    assert VringAvail.unpack(queue.memory.read(queue.avail_ring, 4)).idx == 65535
    assert VringUsed.unpack(queue.memory.read(queue.used_ring, 4)).idx == 65535
    queue.add_rx_buffer(0x30000, 10)
    assert VringAvail.unpack(queue.memory.read(queue.avail_ring, 4)).idx == 0
    assert queue.memory.load16(queue.avail_ring + 4 + 2 * 7) == 0


def test_batches_are_seen_when_published(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.add_rx_buffer(0x30000, 10, publish=False)
    queue.add_rx_buffer(0x30010, 10, publish=False)
    assert queue.memory.load16(queue.avail_ring + 2) == 0
    queue.publish()
    assert queue.memory.load16(queue.avail_ring + 2) == 2


def test_segments_must_fit_the_packet(make_queue: MakeQueue) -> None:
    with pytest.raises(ValueError, match="as long as the packet"):
        make_queue().add_tx_buffer([(0x30000, 13)], b"frame")


def test_split_lengths() -> None:
    assert split_lengths(17, []) == [17]
    assert split_lengths(17, [12]) == [12, 5]
    assert split_lengths(17, [1] * 12) == [1] * 12 + [5]
    assert split_lengths(4, [1] * 12) == [1, 1, 1, 1]
    assert split_lengths(5, [5, 1]) == [5]


# Used buffers


def test_used_buffers_come_back(make_queue: MakeQueue) -> None:
    queue = make_queue()
    device = ModelDevice(queue)
    queue.add_rx_buffer([(0x30000, 10), (0x31000, 10)])
    head, _, writable = device.pop()
    device.write(writable, bytes(12) + b"xyz")
    assert not queue.has_used()
    assert queue.pop_used() is None
    device.push((head, 15))
    assert queue.has_used()
    used = queue.pop_used()
    assert used is not None
    assert (used.head, used.length) == (0, 15)
    assert queue.read_rx_data(used.writable, used.length) == b"xyz"
    assert queue.read_rx_data(0x30000, 10) == b""
    assert (queue.outstanding, queue.free_descriptors) == (0, 8)


def test_a_full_queue_says_so_and_recovers(make_queue: MakeQueue) -> None:
    queue = make_queue(size=4)
    device = ModelDevice(queue)
    for _ in range(2):
        queue.add_rx_buffer([(0x30000, 1), (0x30010, 1)])
    with pytest.raises(QueueFullError):
        queue.add_rx_buffer(0x30020, 1)
    device.push((device.pop()[0], 0))
    queue.pop_used()
    queue.add_rx_buffer([(0x30000, 1), (0x30010, 1)])


def test_chains_may_come_back_in_any_order_unless_agreed(make_queue: MakeQueue) -> None:
    for in_order in (False, True):
        queue = make_queue(in_order=in_order)
        queue.add_rx_buffer(0x30000, 1)
        queue.add_rx_buffer(0x30010, 1)
        ModelDevice(queue).push((1, 0), (0, 0))
        if in_order:
            with pytest.raises(DeviceError, match="before"):
                queue.pop_used()
        else:
            assert [queue.pop_used().head for _ in "ab"] == [1, 0]  # type: ignore[union-attr]


def test_device_errors_are_noticed(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.add_rx_buffer(0x30000, 4)
    device = ModelDevice(queue)
    device.push((5, 0))
    with pytest.raises(DeviceError, match="does not have"):
        queue.pop_used()
    device.push((0, 0))
    with pytest.raises(DeviceError, match="past what was given"):
        queue.pop_used()


def test_too_much_written_is_noticed(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.add_rx_buffer(0x30000, 4)
    ModelDevice(queue).push((0, 5))
    with pytest.raises(DeviceError, match="5 bytes"):
        queue.pop_used()


def test_raw_chains_come_back_too(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.write_desc(7, VringDesc(0x30000, 12, 0, 0))
    queue.offer_raw(7)
    queue.offer_raw(7)
    device = ModelDevice(queue)
    assert [device.pop()[0], device.pop()[0]] == [7, 7]
    device.push((7, 0), (7, 0))
    assert [used.head for used in (queue.pop_used(), queue.pop_used()) if used] == [7, 7]
    assert queue.free_descriptors == 8


def test_detach_takes_everything_back(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.add_rx_buffer([(0x30000, 4), (0x31000, 4)])
    queue.add_chain([(0x32000, 4)], [], table=0x33000)
    chains = queue.detach_all()
    assert [chain.writable for chain in chains] == [((0x30000, 4), (0x31000, 4)), ()]
    assert [chain.table for chain in chains] == [None, 0x33000]
    assert (queue.outstanding, queue.free_descriptors) == (0, 8)


def test_raw_writers(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.write_avail_idx(70000)
    queue.write_avail(9, 0xFFFF)
    queue.write_avail_flags(1)
    assert queue.memory.read(queue.avail_ring, 8) == struct.pack(
        "<HHHH", 1, 70000 - 65536, 0, 0xFFFF
    )


# Frames


def give(queue: VirtioQueue, *sizes: int) -> ModelDevice:
    for number, size in enumerate(sizes):
        queue.add_rx_buffer(0x30000 + 0x1000 * number, size)
    return ModelDevice(queue)


def deliver(device: ModelDevice, packet: bytes, *lengths: int) -> list[tuple[int, int]]:
    """Spread a packet over the next chains."""
    elements = []
    for length in lengths:
        head, _, writable = device.pop()
        device.write(writable, packet[:length])
        packet = packet[length:]
        elements.append((head, length))
    return elements


def test_frame_in_one_buffer(make_queue: MakeQueue) -> None:
    queue = make_queue()
    device = give(queue, 100)
    device.push(*deliver(device, VirtioNetHdr(num_buffers=1).pack() + b"frame", 17))
    received = queue.pop_frame()
    assert received is not None
    assert received.frame == b"frame"
    assert received.header == VirtioNetHdr(num_buffers=1)
    assert queue.pop_frame() is None


def test_frame_in_several_buffers(make_queue: MakeQueue) -> None:
    queue = make_queue()
    device = give(queue, 14, 3, 3)
    device.push(*deliver(device, VirtioNetHdr(num_buffers=3).pack() + b"abcdef", 14, 3, 1))
    received = queue.pop_frame(mergeable=True)
    assert received is not None
    assert received.frame == b"abcdef"
    assert [buffer.length for buffer in received.buffers] == [14, 3, 1]


@pytest.mark.parametrize(
    ("num_buffers", "mergeable", "lengths", "published", "problem"),
    [
        (0, False, (17,), 1, "num_buffers is 0"),
        (2, False, (17,), 1, "num_buffers is 2"),
        (0, True, (17,), 1, "num_buffers is 0"),
        (2, True, (16, 1), 2, "not filled"),
        (2, True, (20, 1), 1, "published in parts"),
        (1, True, (11,), 1, "no virtio_net_hdr"),
    ],
)
def test_broken_frames_are_noticed(
    make_queue: MakeQueue,
    num_buffers: int,
    mergeable: bool,
    lengths: tuple[int, ...],
    published: int,
    problem: str,
) -> None:
    queue = make_queue()
    device = give(queue, 20, 20)
    packet = VirtioNetHdr(num_buffers=num_buffers).pack() + b"abcdefghi"
    device.push(*deliver(device, packet, *lengths)[:published])
    with pytest.raises(DeviceError, match=problem):
        queue.pop_frame(mergeable=mergeable)


# Notifications


@pytest.mark.parametrize(
    ("event", "new", "old", "needed"),
    [
        (0, 1, 0, True),
        (1, 1, 0, False),
        (4, 5, 0, True),
        (5, 5, 0, False),
        (65535, 0, 65535, True),
        (65535, 1, 65535, True),
        (65534, 1, 65535, False),
        (100, 1, 0, False),
        (0, 0, 0, False),
    ],
)
def test_need_event(event: int, new: int, old: int, needed: bool) -> None:
    assert vring_need_event(event, new, old) is needed


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 300))
def test_need_event_is_crossing_the_event(event: int, old: int, steps: int) -> None:
    crossed = event in {(old + step) % 65536 for step in range(steps)}
    assert vring_need_event(event, (old + steps) % 65536, old) is crossed


def test_kick_needed_without_event_idx(make_queue: MakeQueue) -> None:
    queue = make_queue()
    assert queue.kick_needed()
    queue.memory.write(queue.used_ring, b"\1\0")
    assert not queue.kick_needed()


def test_kick_needed_with_event_idx(make_queue: MakeQueue) -> None:
    queue = make_queue(event_idx=True)
    queue.memory.write(queue.used_ring, b"\1\0")
    queue.memory.store16(queue.used_ring + 4 + 64, 1)
    queue.add_rx_buffer(0x30000, 1)
    assert not queue.kick_needed()
    queue.add_rx_buffer(0x30010, 1)
    assert queue.kick_needed()
    assert not queue.kick_needed()


def test_calls_on_and_off_by_flag(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.disable_call()
    assert queue.memory.load16(queue.avail_ring) == 1
    assert not queue.enable_call()
    assert queue.memory.load16(queue.avail_ring) == 0


def test_calls_on_and_off_by_event(make_queue: MakeQueue) -> None:
    queue = make_queue(event_idx=True)
    device = give(queue, 1, 1, 1)
    event = queue.avail_ring + 4 + 16
    queue.disable_call()
    assert queue.memory.load16(event) == 65535
    assert not queue.enable_call()
    assert queue.memory.load16(event) == 0
    assert not queue.enable_call(3)
    assert queue.memory.load16(event) == 2
    device.push((0, 0), (1, 0))
    assert not queue.enable_call(3)
    assert queue.enable_call(2)


# Anything goes in, the same comes out


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[int], bool]:
    lengths = st.lists(st.integers(0, 40), max_size=6)
    readable = draw(lengths)
    writable = draw(lengths if readable else st.lists(st.integers(0, 40), min_size=1, max_size=6))
    return readable, writable, draw(st.booleans())


@given(
    size=st.sampled_from([2, 4, 16, 256]),
    base=st.integers(65500, 65535),
    given_chains=st.lists(chains(), min_size=1, max_size=80),
    data=st.data(),
)
def test_driver_against_model(
    size: int, base: int, given_chains: list[tuple[list[int], list[int], bool]], data: st.DataObject
) -> None:
    """Every chain is seen as it was given, comes back once, and frees what it held."""
    memory = TestGuestMemory([Region(0x1000, MEMORY_SIZE, user_offset=1 << 40)])
    base_addr = 0x1000
    queue = VirtioQueue(memory, 0, base_addr, base_addr + 0x10000, base_addr + 0x20000, size=size)
    queue.init(base)
    device = ModelDevice(queue, base, base)
    held: list[tuple[int, int]] = []
    try:
        for readable, writable, indirect in given_chains:
            segments = [
                [(memory.alloc_buffer(length + 1, align=1), length) for length in lengths]
                for lengths in (readable, writable)
            ]
            count = len(readable) + len(writable)
            table = memory.alloc_buffer(16 * count) if indirect or count > size else None
            while queue.free_descriptors < (1 if table is not None else count):
                device.push(held.pop(data.draw(st.integers(0, len(held) - 1))))
                assert queue.pop_used() is not None
            head = queue.add_chain(*segments, table=table)
            assert device.pop() == (head, *segments)
            held.append((head, 0))
        device.push(*held)
        while queue.pop_used():
            pass
        assert (queue.free_descriptors, queue.outstanding) == (size, 0)
    finally:
        memory.close()
