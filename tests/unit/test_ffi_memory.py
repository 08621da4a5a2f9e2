"""Guest memory: which regions are taken, and what addresses find in them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mvirt_net.errors import CoreError
from mvirt_net.ffi import MAX_REGIONS, GuestMemory, Network, NextStep, Port
from mvirt_net.model import TX_QUEUE, MacAddress, MemoryRegion
from tests.harness import GATEWAY_MAC, memory
from tests.harness.footprint import mappings_of
from tests.harness.memory import Region
from tests.harness.packets import udp_frame

from .rig import MAC, PAGE, Rig, map_guest, open_rig

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
    assert mappings_of(memfd) == 0


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
    assert mappings_of(memfd) == 0


def test_m33_removing_what_is_not_there(empty: GuestMemory, memfd: int) -> None:
    table = empty.with_region(region(), memfd)
    for other in (region(guest_addr=PAGE), region(size=PAGE), region(user_addr=PAGE)):
        with pytest.raises(CoreError) as caught:
            table.without_region(other)
        assert caught.value.errno == errno.ENOENT
    rest = table.without_region(region())
    assert mappings_of(memfd) == 1, "the first table still has it"
    table.close()
    assert mappings_of(memfd) == 0
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


@pytest.mark.usefixtures("huge_pages")
def test_m29_huge_pages_that_are_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What replaces them has to begin and end where their mapping does."""

    def create_huge(size: int) -> int:
        fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        os.ftruncate(fd, size)
        return fd

    monkeypatch.setattr(memory, "create_memfd", create_huge)
    with open_rig(regions=[Region(0, 4 * MIB)]) as rig:
        rig.start()
        rig.send(bytes(60))
        info = rig.guest.get_region_info()[0]
        os.ftruncate(info.fd, 0)
        assert rig.port.drain().next in (NextStep.KICK, NextStep.NOTHING)
        assert os.eventfd_read(rig.fault_fd) >= 1
        os.ftruncate(info.fd, info.size)


@contextlib.contextmanager
def shrunk(rig: Rig) -> Iterator[None]:
    """The file behind the guest's memory is empty meanwhile."""
    info = rig.guest.get_region_info()[0]
    os.ftruncate(info.fd, 0)
    yield
    os.ftruncate(info.fd, info.size)


def faulted(rig: Rig) -> bool:
    try:
        return os.eventfd_read(rig.fault_fd) > 0
    except BlockingIOError:
        return False


def from_to(source: int, target: int, payload: bytes) -> bytes:
    """A datagram between guests of those numbers."""
    return udp_frame(
        f"52:54:00:00:00:0{source}",
        GATEWAY_MAC,
        f"10.0.0.{source}",
        f"10.0.0.{target}",
        1,
        2,
        payload,
    )


@contextlib.contextmanager
def three_guests() -> Iterator[list[Rig]]:
    """Three running rigs of one network, their numbers from 1 on."""
    with ExitStack() as stack:
        network = Network()
        stack.callback(network.close)
        rigs = [
            stack.enter_context(
                open_rig(
                    network=network,
                    mac=MacAddress.parse(f"52:54:00:00:00:0{number}"),
                    routes=[f"10.0.0.{number}"],
                    regions=[Region(0, 8 * MIB)],
                )
            )
            for number in (1, 2, 3)
        ]
        for rig in rigs:
            rig.start()
            rig.offer(2048, 100)
        yield rigs


@pytest.mark.parametrize("sender", [1, 2])
def test_m29_memory_that_shrinks_while_another_guest_is_at_work(sender: int) -> None:
    """The second one loses its memory, as sender or as receiver; only it faults."""
    with three_guests() as rigs:
        a, b, c = rigs
        for number in range(50):
            for target in {1, 2, 3} - {sender}:
                rigs[sender - 1].send(from_to(sender, target, bytes([number]) * 1000))
        with shrunk(b):
            rigs[sender - 1].port.drain()
        assert [faulted(rig) for rig in rigs] == [False, True, False]
        if sender == 1:
            a.drain()
            frames = [c.rx.pop_frame(mergeable=False) for _ in range(50)]
            assert [frame and frame.frame[-1] for frame in frames] == list(range(50))
            assert a.drops() == c.drops() == {}
        a.send(from_to(1, 3, b"afterwards"))
        a.drain()
        last = None
        while frame := c.rx.pop_frame(mergeable=False):
            last = frame
        assert last is not None
        assert last.frame.endswith(b"afterwards")


IN_A_PROCESS = """
import faulthandler, mmap, os
from mvirt_net.ffi import GuestMemory, Network, Port
from mvirt_net.model import MacAddress, MemoryRegion, VringAddr

SIZE = 64 << 20

def guest(fault_fd):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, SIZE)
    table = GuestMemory.empty(fault_fd).with_region(MemoryRegion(0, SIZE, 0, 0), fd)
    return fd, table

def lose(fault_fd, fd, table):
    network = Network()
    port = Port(network, MacAddress.parse("52:54:00:00:00:01"))
    port.set_memory(table)
    port.start_ring(1, 256, VringAddr(desc=0, used=0x3000, avail=0x2000), 0)
    os.ftruncate(fd, 0)
    port.drain()
    assert os.eventfd_read(fault_fd) > 0

fault_fd = os.eventfd(0, os.EFD_NONBLOCK)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS + program],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0", **environment},
    )


NO_LARGE_REPLACEMENT = """
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *mmap(void *addr, size_t size, int prot, int flags, int fd, off_t offset)
{
    if ((flags & MAP_FIXED) && (flags & MAP_ANONYMOUS) && size > 4096) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, addr, size, prot, flags, fd, offset);
}
"""


def test_m29_without_memory_for_the_whole_region(tmp_path: Path) -> None:
    """As with vm.overcommit_memory=2: then the page alone is replaced."""
    shim = tmp_path / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", shim, "-x", "c", "-"],
        input=NO_LARGE_REPLACEMENT,
        text=True,
        check=True,
    )
    preload = f"{os.environ.get('LD_PRELOAD', '')} {shim}".strip()
    ended = run("lose(fault_fd, *guest(fault_fd))", LD_PRELOAD=preload)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_m29_with_a_handler_that_was_put_in_front() -> None:
    """The next region brings ours back, and what is not ours still gets there."""
    ended = run(
        """
first = guest(fault_fd)
faulthandler.enable()
lose(fault_fd, *guest(fault_fd))
print("survived", flush=True)
own = os.memfd_create("own")
os.ftruncate(own, 4096)
mapped = mmap.mmap(own, 4096)
os.ftruncate(own, 0)
print(mapped[0])
"""
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "survived\n")
    assert ended.stderr.startswith("Fatal Python error: Bus error")
    assert ended.stderr.count("Fatal Python error") == 1


def test_m29_file_is_not_sealed(empty: GuestMemory) -> None:
    """For that the kernel waits for whoever writes to the file, for as long as that takes."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    table = empty.with_region(region(), fd)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == 0
    os.ftruncate(fd, 2 * MIB)  # M56: growth is nobody's harm
    table.close()
    os.close(fd)


def test_large_region_is_unmapped_all_the_same(empty: GuestMemory) -> None:
    """By a thread, as freeing its pages may take long; it ends by itself."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, 64 * MIB)
    table = empty.with_region(region(size=64 * MIB), fd)
    assert mappings_of(fd) == 1
    table.close()
    while mappings_of(fd):
        pass
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
