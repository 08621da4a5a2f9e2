"""Guest memory: which regions are taken, and what addresses find in them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvirt_net.errors import CoreError
from mvirt_net.ffi import MAX_REGIONS, GuestMemory, Network, NextStep, Port
from mvirt_net.model import TX_QUEUE, MemoryRegion
from tests.harness.memory import Region

from .rig import MAC, PAGE, map_guest, open_rig

MIB = 1 << 20


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, MIB)
    yield fd
    os.close(fd)


@pytest.fixture
def empty() -> Iterator[GuestMemory]:
    fault_fd = os.eventfd(0, os.EFD_NONBLOCK)
    table = GuestMemory.empty(fault_fd)
    yield table
    table.close()
    os.close(fault_fd)


def region(
    guest_addr: int = 0, size: int = MIB, user_addr: int = 1 << 40, mmap_offset: int = 0
) -> MemoryRegion:
    return MemoryRegion(guest_addr, size, user_addr, mmap_offset)


def refusal(table: GuestMemory, wanted: MemoryRegion, fd: int) -> int:
    with pytest.raises(CoreError) as caught:
        table.with_region(wanted, fd)
    return caught.value.errno


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:guest")


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(region(size=0), id="size-0"),
        pytest.param(region(size=1), id="size-1"),
        pytest.param(region(size=PAGE + 1), id="size-not-in-pages"),
        pytest.param(region(size=1 << 63), id="size-2-to-the-63"),
        pytest.param(region(guest_addr=(1 << 64) - PAGE, size=2 * PAGE), id="guest-wraps"),
        pytest.param(region(user_addr=(1 << 64) - PAGE, size=2 * PAGE), id="user-wraps"),
        pytest.param(region(mmap_offset=(1 << 64) - PAGE, size=2 * PAGE), id="offset-wraps"),
        pytest.param(region(mmap_offset=(1 << 63) - PAGE, size=PAGE), id="offset-negative"),
        pytest.param(region(mmap_offset=1, size=PAGE), id="offset-not-in-pages"),
        pytest.param(region(mmap_offset=MIB, size=PAGE), id="offset-past-the-file"),
        pytest.param(region(size=MIB + PAGE), id="size-past-the-file"),
    ],
)
def test_m25_m27_region_that_contradicts_itself_or_its_file(
    empty: GuestMemory, memfd: int, wanted: MemoryRegion
) -> None:
    assert refusal(empty, wanted, memfd) == errno.EINVAL
    assert mappings() == 0


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(region(guest_addr=MIB - PAGE, user_addr=2 << 40), id="guest"),
        pytest.param(region(guest_addr=MIB, user_addr=(1 << 40) + PAGE), id="user"),
        pytest.param(region(), id="both"),
    ],
)
def test_m26_overlapping_regions(empty: GuestMemory, memfd: int, second: MemoryRegion) -> None:
    table = empty.with_region(region(), memfd)
    assert refusal(table, second, memfd) == errno.EINVAL
    table.close()


def test_m26_same_file_twice_is_an_alias(empty: GuestMemory, memfd: int) -> None:
    first = empty.with_region(region(), memfd)
    both = first.with_region(region(guest_addr=MIB, user_addr=2 << 40), memfd)
    first.close()
    both.close()


def test_m28_files_that_are_no_memory(empty: GuestMemory) -> None:
    read_end, write_end = os.pipe()
    wanted = region(size=PAGE)
    with tempfile.TemporaryDirectory() as folder:
        fds = {
            "pipe": os.dup(read_end),
            "folder": os.open(folder, os.O_RDONLY),
            "zero": os.open("/dev/zero", os.O_RDWR),
            "eventfd": os.eventfd(0),
        }
        for fd in fds.values():
            assert refusal(empty, wanted, fd) == errno.ENODEV
            os.close(fd)
    os.close(read_end)
    os.close(write_end)
    assert refusal(empty, wanted, read_end) == errno.EBADF


def test_m28_files_whose_pages_somebody_else_delivers(empty: GuestMemory) -> None:
    """A page fault on FUSE or NFS waits for a server that may be the frontend's own."""
    fd = os.open("/proc/self/status", os.O_RDONLY)
    assert refusal(empty, region(size=PAGE), fd) == errno.ENODEV
    os.close(fd)


SENT_SIGBUS = """
import os, signal
from mvirt_net.ffi import GuestMemory
from mvirt_net.model import MemoryRegion

signal.signal(signal.SIGBUS, signal.SIG_DFL)  # a sanitizer has a handler of its own
fd = os.memfd_create("guest")
os.ftruncate(fd, 4096)
table = GuestMemory.empty(os.eventfd(0, os.EFD_NONBLOCK)).with_region(
    MemoryRegion(0, 4096, 0, 0), fd
)
os.kill(os.getpid(), signal.SIGBUS)
"""


def test_m29_signal_that_was_only_sent_has_its_usual_effect() -> None:
    """It is not ours to swallow, and must not switch the protection off."""
    ended = subprocess.run([sys.executable, "-c", SENT_SIGBUS], check=False)
    assert ended.returncode == -signal.SIGBUS


def test_m28_file_that_cannot_be_written(empty: GuestMemory, memfd: int) -> None:
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    assert refusal(empty, region(), read_only) == errno.EACCES
    os.close(read_only)


def test_m28_memory_that_is_sealed_against_writing(empty: GuestMemory) -> None:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert refusal(empty, region(), fd) == errno.EPERM
    os.close(fd)


def test_m30_huge_sparse_regions_are_capped(empty: GuestMemory) -> None:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 46)
    assert refusal(empty, region(size=1 << 46), fd) == errno.ENOSPC
    table = empty.with_region(region(size=3 << 40), fd)
    second = region(guest_addr=4 << 40, size=2 << 40, user_addr=8 << 40)
    assert refusal(table, second, fd) == errno.ENOSPC
    table.close()
    os.close(fd)


def test_m31_huge_pages_come_whole(empty: GuestMemory) -> None:
    huge = 2 * MIB
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, huge)
    assert refusal(empty, region(size=MIB), fd) == errno.EINVAL
    os.close(fd)


def test_m33_table_is_full(empty: GuestMemory, memfd: int) -> None:
    table = empty
    for i in range(MAX_REGIONS):
        former = table
        table = former.with_region(
            region(guest_addr=i * MIB, user_addr=(1 << 40) + i * MIB, size=PAGE), memfd
        )
        if former is not empty:
            former.close()
    one_more = region(guest_addr=1 << 50, user_addr=1 << 50, size=PAGE)
    assert refusal(table, one_more, memfd) == errno.ENOSPC
    table.close()
    assert mappings() == 0


def test_m33_removing_what_is_not_there(empty: GuestMemory, memfd: int) -> None:
    table = empty.with_region(region(), memfd)
    for other in (region(guest_addr=PAGE), region(size=PAGE), region(user_addr=PAGE)):
        with pytest.raises(CoreError) as caught:
            table.without_region(other)
        assert caught.value.errno == errno.ENOENT
    rest = table.without_region(region())
    assert mappings() == 1, "the first table still has it"
    table.close()
    assert mappings() == 0
    rest.close()


def test_m29_memory_that_shrinks_costs_no_more_than_itself() -> None:
    """The ring and the frames lie in memory that is gone; the drain goes on and says so."""
    with open_rig() as rig:
        rig.start()
        rig.send(bytes(60))
        info = rig.guest.get_region_info()[0]
        os.ftruncate(info.fd, 0)
        assert rig.port.drain().next in (NextStep.KICK, NextStep.NOTHING)
        assert os.eventfd_read(rig.fault_fd) >= 1
        rig.port.drain()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(rig.fault_fd)
        os.ftruncate(info.fd, info.size)  # for the harness, which looks at its memory when it ends


def test_memory_is_sealed_against_shrinking_where_it_can_be(empty: GuestMemory) -> None:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    table = empty.with_region(region(), fd)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.ftruncate(fd, 2 * MIB)  # M56: growth is nobody's harm
    table.close()
    os.close(fd)


def test_no_ring_without_memory() -> None:
    with open_rig(regions=[Region(0, MIB)]) as rig:
        addr = rig.lay_out(TX_QUEUE)
        rig.port.check_ring(rig.size, addr)
        rig.port.set_memory(None)
        with pytest.raises(CoreError):
            rig.port.check_ring(rig.size, addr)
        rig.port.set_memory(rig.table)


def test_table_without_a_running_ring_is_refused_and_nothing_changes() -> None:
    """M32: the present table stays in use."""
    with open_rig() as rig:
        rig.start()
        smaller = GuestMemory.empty(rig.fault_fd)
        with pytest.raises(CoreError) as caught:
            rig.port.set_memory(smaller)
        assert caught.value.errno == errno.EFAULT
        smaller.close()
        rig.send(bytes(60))
        rig.drain()
        assert rig.port.stats().tx_frames == 1


def test_running_rings_follow_their_memory_to_a_new_table() -> None:
    with open_rig() as rig:
        rig.start()
        moved = map_guest(rig.guest, rig.fault_fd)
        rig.port.set_memory(moved)
        rig.table.close()
        rig.send(bytes(60))
        rig.drain()
        assert rig.tx.pop_used() is not None
        for queue in rig.queues:
            rig.port.stop_ring(queue)
        rig.port.set_memory(None)
        moved.close()


def test_mapping_with_an_offset_shows_the_right_bytes() -> None:
    with open_rig(regions=[Region(0, MIB, user_offset=7 << 40, mmap_offset=3 * PAGE)]) as rig:
        rig.start()
        rig.send(bytes(60))
        rig.drain()
        assert rig.port.stats().tx_frames == 1


def test_closed_port_may_be_closed_again() -> None:
    network = Network()
    port = Port(network, MAC)
    port.close()
    port.close()
    network.close()
    network.close()
