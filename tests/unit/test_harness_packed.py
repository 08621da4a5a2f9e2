"""The harness's driver of packed rings, against used descriptors that the test writes itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.harness.memory import Region, TestGuestMemory
from tests.harness.packed import (
    VRING_DESC_F_AVAIL,
    VRING_DESC_F_USED,
    PackedQueue,
)
from tests.harness.virtio import (
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    DeviceError,
    QueueFullError,
    VringDesc,
)

SIZE = 3
AVAIL, USED = VRING_DESC_F_AVAIL, VRING_DESC_F_USED


@pytest.fixture
def queue() -> Iterator[PackedQueue]:
    with closing(TestGuestMemory((Region(0, 1 << 16),), data_offset=0)) as memory:
        queue = PackedQueue(memory, 0, 0, 4096, 4100, size=SIZE)
        queue.init()
        yield queue


def flags_of(queue: PackedQueue) -> list[int]:
    return [queue.memory.load16(16 * slot + queue.DESC_FLAGS) for slot in range(SIZE)]


def use(queue: PackedQueue, number: int, buffer_id: int, length: int = 0) -> None:
    """Be the device: mark the slot with this number used."""
    bits = AVAIL | USED if queue.position(number) & 0x8000 else 0
    flags = bits | (VRING_DESC_F_WRITE if length else 0)
    queue.write_slot(number, VringDesc(0, length, flags, buffer_id))


def test_positions_turn_at_the_end_of_the_ring(queue: PackedQueue) -> None:
    assert [queue.position(number) for number in range(7)] == [
        *(0x8000, 0x8001, 0x8002),
        *(0, 1, 2),
        0x8000,
    ]
    assert queue.wire_base(4) == 0x0001_0001


def test_bits_of_one_lap_and_the_next(queue: PackedQueue) -> None:
    for lap in (AVAIL, USED, AVAIL):
        for _ in range(SIZE):
            queue.add_rx_buffer(0x2000, 64)
        assert flags_of(queue) == [lap | VRING_DESC_F_WRITE] * SIZE
        with pytest.raises(QueueFullError):
            queue.add_rx_buffer(0x2000, 64)
        for number in range(queue.last_used, queue.next_avail):
            use(queue, number, queue._given[0], 10)
            assert queue.pop_used() is not None


def test_first_descriptor_of_a_batch_becomes_available_last(queue: PackedQueue) -> None:
    queue.add_chain([(0x2000, 1), (0x2001, 2)], (), publish=False)
    queue.add_chain([(0x2003, 3)], (), publish=False)
    assert flags_of(queue) == [0, AVAIL, AVAIL]
    queue.publish()
    assert flags_of(queue) == [AVAIL | VRING_DESC_F_NEXT, AVAIL, AVAIL]


def test_used_chain_stands_for_all_its_slots(queue: PackedQueue) -> None:
    first = queue.add_chain([(0x2000, 1), (0x2001, 2)], ())
    second = queue.add_chain([(0x2003, 3)], ())
    use(queue, 2, second)
    assert not queue.has_used()  # the driver does not look so far
    use(queue, 0, first)
    assert (queue.used_count(), queue.used_idx()) == (2, 3)
    assert [used.head for _ in range(2) if (used := queue.pop_used())] == [first, second]
    assert queue.free_descriptors == SIZE


def test_id_that_the_device_has_not(queue: PackedQueue) -> None:
    buffer_id = queue.add_rx_buffer(0x2000, 64)
    use(queue, 0, buffer_id + 1)
    with pytest.raises(DeviceError, match="has it not"):
        queue.pop_used()


def test_length_without_the_write_flag(queue: PackedQueue) -> None:
    buffer_id = queue.add_rx_buffer(0x2000, 64)
    queue.write_slot(0, VringDesc(0, 10, AVAIL | USED, buffer_id))
    with pytest.raises(DeviceError, match="flags"):
        queue.pop_used()


@pytest.mark.parametrize(
    ("event_idx", "flags", "event", "expected"),
    [
        (False, 0, 0, True),
        (False, 1, 0, False),
        (True, 0, 0, True),
        (True, 1, 0x8000, False),
        (True, 2, 0x8000, True),
        (True, 2, 0x8001, True),
        (True, 2, 0x8002, False),
        (True, 2, 0x0000, False),
    ],
)
def test_kicks(queue: PackedQueue, event_idx: bool, flags: int, event: int, expected: bool) -> None:
    queue.event_idx = event_idx
    queue.memory.store16(queue.used_ring, event)
    queue.memory.store16(queue.used_ring + 2, flags)
    queue.add_chain([(0x2000, 1), (0x2001, 2)], ())
    assert queue.kick_needed() is expected


def test_device_that_names_a_descriptor_without_event_idx(queue: PackedQueue) -> None:
    queue.memory.store16(queue.used_ring + 2, 2)
    with pytest.raises(DeviceError, match="EVENT_IDX"):
        queue.kick_needed()
