"""The harness's guest memory: layout, translation, allocator, descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.memory import (
    AVAIL_RING_OFFSET,
    DATA_BUFFER_OFFSET,
    DESC_TABLE_OFFSET,
    MEMORY_SIZE,
    QUEUE_REGION_SIZE,
    USED_RING_OFFSET,
    GuestMemoryFullError,
    Region,
    SharedMemory,
    TestGuestMemory,
    create_memfd,
)

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[TestGuestMemory]:
    memory = TestGuestMemory()
    yield memory
    memory.close()


@pytest.fixture
def two_regions() -> Iterator[TestGuestMemory]:
    """Two regions that touch in guest addresses and nowhere else."""
    memory = TestGuestMemory(
        [
            Region(0x10000, 2 * PAGE, user_offset=0x7000_0000, mmap_offset=PAGE, file=0),
            Region(0x12000, PAGE, user_offset=0x5000_0000, mmap_offset=0, file=1),
        ],
        data_offset=0,
    )
    yield memory
    memory.close()


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_the_constants_are_those_of_the_layout(memory: TestGuestMemory) -> None:
    assert MEMORY_SIZE == 2 * 1024 * 1024
    assert (DESC_TABLE_OFFSET, AVAIL_RING_OFFSET, USED_RING_OFFSET) == (0, 0x10000, 0x20000)
    assert DATA_BUFFER_OFFSET == 0x30000
    assert memory.desc_table_addr(1) == QUEUE_REGION_SIZE == 0x8000
    assert memory.avail_ring_addr(0) == 0x10000
    assert memory.used_ring_addr(1) == 0x28000
    assert memory.alloc_buffer(1) == DATA_BUFFER_OFFSET


def test_memfd_has_its_size_and_does_not_leak_into_children() -> None:
    fd = create_memfd(3 * PAGE)
    try:
        assert os.fstat(fd).st_size == 3 * PAGE
        assert not os.get_inheritable(fd)
        assert "vhost-test-mem" in str(Path(f"/proc/self/fd/{fd}").readlink())
    finally:
        os.close(fd)


def test_what_is_written_stands_in_the_file(two_regions: TestGuestMemory) -> None:
    two_regions.write(0x10003, b"hello")
    info = two_regions.get_region_info()[0]
    assert os.pread(info.fd, 5, PAGE + 3) == b"hello"
    assert two_regions.read(0x10002, 7) == b"\0hello\0"


def test_regions_are_announced_with_three_unrelated_addresses(
    two_regions: TestGuestMemory,
) -> None:
    first, second = two_regions.get_region_info()
    assert (first.guest_addr, first.size, first.user_addr, first.mmap_offset) == (
        0x10000,
        2 * PAGE,
        0x7001_0000,
        PAGE,
    )
    assert (second.guest_addr, second.user_addr, second.mmap_offset) == (0x12000, 0x5001_2000, 0)
    assert first.fd != second.fd
    assert os.fstat(first.fd).st_size == 3 * PAGE
    assert two_regions.get_host_address(0x12345) == 0x5001_2345
    assert [region.file for region in two_regions.memory()] == [0, 1]


def test_user_address_is_where_the_harness_mapped_it(memory: TestGuestMemory) -> None:
    (info,) = memory.get_region_info()
    addresses = [
        int(line.split("-")[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "vhost-test-mem" in line
    ]
    assert info.user_addr in addresses


def test_access_may_cross_regions_that_touch(two_regions: TestGuestMemory) -> None:
    two_regions.write(0x11FFE, b"abcd")
    first, second = two_regions.get_region_info()
    assert os.pread(first.fd, 2, 3 * PAGE - 2) == b"ab"
    assert os.pread(second.fd, 2, 0) == b"cd"
    assert two_regions.read(0x11FFE, 4) == b"abcd"


@pytest.mark.parametrize("addr", [0, 0xFFFF, 0x12FFF, 0x13000])
def test_access_outside_is_an_error(two_regions: TestGuestMemory, addr: int) -> None:
    with pytest.raises(ValueError, match="no memory at guest address"):
        two_regions.read(addr, 2)


def test_16_bit_numbers_are_little_endian(memory: TestGuestMemory) -> None:
    memory.store16(0x100, 0x1234)
    assert memory.read(0x100, 2) == b"\x34\x12"
    assert memory.load16(0x100) == 0x1234


def test_memory_is_reused_for_ever(memory: TestGuestMemory) -> None:
    seen = set()
    for _ in range(5000):
        addr = memory.alloc_buffer(2048)
        seen.add(addr)
        memory.free_buffer(addr)
    assert len(seen) == 1
    assert memory.allocated == 0


def test_allocator_says_when_it_is_full(two_regions: TestGuestMemory) -> None:
    assert two_regions.alloc_buffer(2 * PAGE) == 0x10000
    assert two_regions.alloc_buffer(PAGE) == 0x12000
    with pytest.raises(GuestMemoryFullError):
        two_regions.alloc_buffer(1)


def test_a_buffer_is_never_cut_by_the_end_of_a_region(two_regions: TestGuestMemory) -> None:
    two_regions.alloc_buffer(PAGE + 1, align=1)
    assert two_regions.alloc_buffer(PAGE, align=1) == 0x12000


def test_a_chosen_span_may_lie_across_regions(two_regions: TestGuestMemory) -> None:
    addr = two_regions.reserve(0x11F00, 0x200)
    with pytest.raises(GuestMemoryFullError):
        two_regions.reserve(0x12000, 1)
    two_regions.free_buffer(addr)
    assert two_regions.alloc_buffer(2 * PAGE) == 0x10000


def test_freeing_twice_is_an_error(memory: TestGuestMemory) -> None:
    addr = memory.alloc_buffer(10)
    memory.free_buffer(addr)
    with pytest.raises(KeyError):
        memory.free_buffer(addr)


@given(
    st.lists(
        st.tuples(st.integers(1, 700), st.sampled_from([1, 2, 16, 256]), st.booleans()),
        max_size=60,
    )
)
def test_allocations_never_overlap(
    requests: list[tuple[int, int, bool]],
) -> None:
    memory = TestGuestMemory([Region(0, 4 * PAGE)], data_offset=0)
    live: dict[int, int] = {}
    try:
        for size, align, free_one in requests:
            if free_one and live:
                addr = next(iter(live))
                memory.free_buffer(addr)
                del live[addr]
            try:
                addr = memory.alloc_buffer(size, align=align)
            except GuestMemoryFullError:
                continue
            assert addr % align == 0
            assert all(addr + size <= a or a + s <= addr for a, s in live.items())
            live[addr] = size
        for addr in live:
            memory.free_buffer(addr)
        assert memory.alloc_buffer(4 * PAGE) == 0
    finally:
        memory.close()


def test_regions_of_one_number_share_a_file() -> None:
    memory = TestGuestMemory(
        [Region(0, PAGE, mmap_offset=PAGE), Region(0x100000, PAGE, mmap_offset=0)], data_offset=0
    )
    try:
        low, high = memory.get_region_info()
        assert low.fd == high.fd
        assert low.user_addr == high.user_addr + PAGE
        memory.write(0, b"low")
        assert os.pread(low.fd, 3, PAGE) == b"low"
    finally:
        memory.close()


def test_regions_come_and_go(memory: TestGuestMemory) -> None:
    added = memory.add_region(Region(0x4000_0000, PAGE, user_offset=PAGE, file=1))
    assert added.user_addr == 0x4000_0000 + PAGE
    memory.write(0x4000_0000, b"x")
    assert memory.remove_region(0x4000_0000) == added
    with pytest.raises(ValueError, match="no memory"):
        memory.read(0x4000_0000, 1)
    assert len(memory.get_region_info()) == 1


def test_contents_move_to_new_files(two_regions: TestGuestMemory) -> None:
    two_regions.write(0x11FFE, b"abcd")
    before = two_regions.get_region_info()
    former = two_regions.move_to_new_files()
    after = two_regions.get_region_info()
    assert {b.fd for b in before}.isdisjoint(a.fd for a in after)
    assert [b.user_addr for b in before] == [a.user_addr for a in after]
    two_regions.write(0x12000, b"CD")
    assert two_regions.read(0x11FFE, 4) == b"abCD"
    assert bytes(former[1].bytes[:2]) == b"cd"
    for file in former:
        file.close()


def test_shared_memory_as_guest_memory_stays_the_owners() -> None:
    shared = SharedMemory(PAGE)
    memory = shared.to_guest_memory()
    memory.write(8, b"data")
    memory.close()
    assert bytes(shared.bytes[8:12]) == b"data"
    shared.close()
    shared.close()
    assert shared.fd == -1


def test_close_leaves_no_descriptor() -> None:
    before = open_fds()
    memory = TestGuestMemory([Region(0, PAGE), Region(PAGE, PAGE, file=1)], data_offset=0)
    memory.add_region(Region(0x10000, PAGE, file=2))
    for file in memory.move_to_new_files():
        file.close()
    memory.close()
    memory.close()
    assert open_fds() == before


def test_view_shows_what_is_written_and_writes_what_is_read() -> None:
    regions = (Region(0x1000, PAGE), Region(0x2000, PAGE, file=1))
    with closing(TestGuestMemory(regions, data_offset=0)) as memory:
        with memory.view(0x1010, 4) as view:
            memory.write(0x1010, b"abcd")
            assert bytes(view) == b"abcd"
            view[1:3] = b"xy"
        assert memory.read(0x1010, 4) == b"axyd"
        with pytest.raises(ValueError, match="within one region"):
            memory.view(0x1FFE, 4)
