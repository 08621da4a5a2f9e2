"""Guest memory that a frontend shares with the backend: memfds, mapped, cut into regions.

Three kinds of address meet here (vhost-user, "Memory region description"): *guest* addresses are
the guest's physical ones and stand in descriptors; *user* addresses are the frontend's own and
stand in ring addresses; the *mmap offset* says where in the file a region begins. The three are
unrelated, and a layout may choose each of them, so that a backend that mixes them up is found out.

Numbers in shared memory are little-endian (virtio 1.2, 1.4), as is every machine this runs on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

import attrs

MEMORY_SIZE = 2 * 1024 * 1024
"""Bytes of guest memory when nothing else is asked for."""
DESC_TABLE_OFFSET = 0x0000_0000
AVAIL_RING_OFFSET = 0x0001_0000
USED_RING_OFFSET = 0x0002_0000
DATA_BUFFER_OFFSET = 0x0003_0000
"""Where buffers begin when the ring areas above are used."""
QUEUE_REGION_SIZE = 0x8000
"""Bytes of each ring area that belong to one queue: enough for 2048 descriptors."""

_fence_lock = threading.Lock()


class GuestMemoryFullError(Exception):
    """No free span of guest memory is large enough."""


def fence() -> None:
    """Order all memory accesses before the call with all after it.

    The locked instructions of taking a lock do it; it matters only when the backend serves a ring
    from another thread, since program order is enough within one.
    """
    with _fence_lock:
        pass


def create_memfd(size: int) -> int:
    """An anonymous file of `size` bytes, close-on-exec; the caller owns the descriptor."""
    fd = os.memfd_create("vhost-test-mem", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


class SharedMemory:
    """Owner of one memfd and of its mapping.

    Args:
        size: bytes, a multiple of the page size.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = create_memfd(size)
        try:
            self._map = mmap.mmap(self.fd, size)
        except (OSError, ValueError):
            os.close(self.fd)
            raise
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("H")

    @property
    def ptr(self) -> int:
        """Where the file is mapped in this process: the user address of a frontend like QEMU."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def to_guest_memory(self) -> TestGuestMemory:
        """This file as one region at guest address 0; the file stays this object's."""
        return TestGuestMemory((Region(0, self.size),), files={0: self}, data_offset=0)

    def close(self) -> None:
        """Unmap and close. Idempotent."""
        if self.fd < 0:
            return
        self.words.release()
        self.bytes.release()
        self._map.close()
        os.close(self.fd)
        self.fd = -1


@attrs.frozen
class Region:
    """One region of a layout, in bytes.

    Args:
        user_offset: user address minus guest address; None: the user address is where the harness
            has mapped the region, as in a real frontend.
        file: regions of the same number lie in one memfd.
    """

    guest_addr: int
    size: int
    user_offset: int | None = None
    mmap_offset: int = 0
    file: int = 0


@attrs.frozen
class RegionInfo:
    """What a memory table says of one region. The descriptor stays the guest memory's."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: int


@attrs.define(eq=False)
class _Spans:
    """Free spans of one region, sorted by address, as [start, end) pairs."""

    free: list[tuple[int, int]]

    def take(self, size: int, align: int) -> int | None:
        for start, end in self.free:
            first = -(-start // align) * align
            if first + size <= end:
                self.take_at(first, first + size)
                return first
        return None

    def take_at(self, first: int, last: int) -> None:
        for index, (start, end) in enumerate(self.free):
            if start <= first and last <= end:
                rest = [(start, first), (last, end)]
                self.free[index : index + 1] = [span for span in rest if span[0] < span[1]]
                return
        raise GuestMemoryFullError(f"{first:#x} to {last:#x} is not free")

    def give(self, first: int, last: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self.free, (first, last)]):
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self.free = merged


@attrs.define(eq=False)
class _Mapped:
    """A region with the file that it lies in."""

    spec: Region
    file: SharedMemory
    spans: _Spans

    @property
    def end(self) -> int:
        return self.spec.guest_addr + self.spec.size

    @property
    def user_addr(self) -> int:
        if self.spec.user_offset is None:
            return self.file.ptr + self.spec.mmap_offset
        return self.spec.guest_addr + self.spec.user_offset

    def info(self) -> RegionInfo:
        spec = self.spec
        return RegionInfo(
            spec.guest_addr, spec.size, self.user_addr, spec.mmap_offset, self.file.fd
        )


class TestGuestMemory:
    """The regions of one guest, with an allocator that takes memory back.

    Args:
        regions: the layout. The default is one region at guest address 0.
        files: the memfds by number; those that are missing are made, and owned, here.
        data_offset: so many bytes at the start of the first region are never allocated.
    """

    __test__ = False

    def __init__(
        self,
        regions: Sequence[Region] = (Region(0, MEMORY_SIZE),),
        *,
        files: dict[int, SharedMemory] | None = None,
        data_offset: int = DATA_BUFFER_OFFSET,
    ) -> None:
        self._files = dict(files or {})
        self._borrowed = set(self._files)
        self._buffers: dict[int, int] = {}
        self._mapped: list[_Mapped] = []
        for region in regions:
            size = max(r.mmap_offset + r.size for r in regions if r.file == region.file)
            self._map(region, size)
        first = regions[0].guest_addr
        if data_offset:
            self._mapped[0].spans.take_at(first, first + data_offset)

    def _map(self, region: Region, file_size: int) -> _Mapped:
        if region.file not in self._files:
            self._files[region.file] = SharedMemory(file_size)
        spans = _Spans([(region.guest_addr, region.guest_addr + region.size)])
        mapped = _Mapped(region, self._files[region.file], spans)
        self._mapped.append(mapped)
        return mapped

    def memory(self) -> tuple[Region, ...]:
        """The regions, in the order in which they are announced."""
        return tuple(mapped.spec for mapped in self._mapped)

    def get_region_info(self) -> tuple[RegionInfo, ...]:
        """What SET_MEM_TABLE has to say of each region."""
        return tuple(mapped.info() for mapped in self._mapped)

    # Allocation

    def alloc_buffer(self, size: int, *, align: int = 16) -> int:
        """The guest address of `size` free bytes within one region.

        Raises:
            GuestMemoryFullError: no region has so much left in one piece.
        """
        for mapped in self._mapped:
            addr = mapped.spans.take(size, align)
            if addr is not None:
                self._buffers[addr] = size
                return addr
        raise GuestMemoryFullError(f"{size} bytes")

    def reserve(self, addr: int, size: int) -> int:
        """Allocate exactly this span; it may lie across regions that touch. Returns `addr`."""
        for mapped, first, last in self._parts(addr, size):
            mapped.spans.take_at(first, last)
        self._buffers[addr] = size
        return addr

    def free_buffer(self, addr: int) -> None:
        """Give back what `alloc_buffer` or `reserve` returned. KeyError: it is not allocated."""
        for mapped, first, last in self._parts(addr, self._buffers.pop(addr)):
            mapped.spans.give(first, last)

    @property
    def allocated(self) -> int:
        """Bytes that are allocated now."""
        return sum(self._buffers.values())

    # Access by guest address

    def write(self, addr: int, data: bytes) -> None:
        """Copy `data` to guest memory. ValueError: outside of every region."""
        done = 0
        for window in self._windows(addr, len(data)):
            window[:] = data[done : done + len(window)]
            done += len(window)

    def read(self, addr: int, size: int) -> bytes:
        """Copy `size` bytes out of guest memory. ValueError: outside of every region."""
        return b"".join(bytes(window) for window in self._windows(addr, size))

    def view(self, addr: int, size: int) -> memoryview:
        """`size` bytes as the device sees them, for whoever comes back often; released before
        `close`. ValueError: not within one region.
        """
        window, *others = self._windows(addr, size)
        if others:
            raise ValueError(f"{size} bytes at {addr:#x} are not within one region")
        return window

    def load16(self, addr: int) -> int:
        """A 16-bit number, read in one access. `addr` is even."""
        mapped, first, _ = next(self._parts(addr, 2))
        return mapped.file.words[self._file_offset(mapped, first) // 2]

    def store16(self, addr: int, value: int) -> None:
        """Store a 16-bit number in one access, as ring indices need it. `addr` is even."""
        mapped, first, _ = next(self._parts(addr, 2))
        mapped.file.words[self._file_offset(mapped, first) // 2] = value

    def get_host_address(self, addr: int) -> int:
        """The user address of a guest address. ValueError: outside of every region."""
        mapped, first, _ = next(self._parts(addr, 1))
        return mapped.user_addr + first - mapped.spec.guest_addr

    def _parts(self, addr: int, size: int) -> Iterator[tuple[_Mapped, int, int]]:
        end = addr + size
        while addr < end:
            mapped = self._find(addr)
            last = min(end, mapped.end)
            yield mapped, addr, last
            addr = last

    def _find(self, addr: int) -> _Mapped:
        for mapped in self._mapped:
            if mapped.spec.guest_addr <= addr < mapped.end:
                return mapped
        raise ValueError(f"no memory at guest address {addr:#x}")

    def _windows(self, addr: int, size: int) -> Iterator[memoryview]:
        for mapped, first, last in self._parts(addr, size):
            start = self._file_offset(mapped, first)
            yield mapped.file.bytes[start : start + last - first]

    @staticmethod
    def _file_offset(mapped: _Mapped, addr: int) -> int:
        return mapped.spec.mmap_offset + addr - mapped.spec.guest_addr

    # Fixed places of small rings

    def desc_table_addr(self, queue_idx: int) -> int:
        """Guest address set aside for a queue's descriptor table."""
        return self._ring_area(DESC_TABLE_OFFSET, queue_idx)

    def avail_ring_addr(self, queue_idx: int) -> int:
        """Guest address set aside for a queue's avail ring."""
        return self._ring_area(AVAIL_RING_OFFSET, queue_idx)

    def used_ring_addr(self, queue_idx: int) -> int:
        """Guest address set aside for a queue's used ring."""
        return self._ring_area(USED_RING_OFFSET, queue_idx)

    def _ring_area(self, offset: int, queue_idx: int) -> int:
        return self._mapped[0].spec.guest_addr + offset + queue_idx * QUEUE_REGION_SIZE

    # Changes of the layout while the guest runs

    def add_region(self, region: Region) -> RegionInfo:
        """Plug in a region, in a file of its own unless the number is known already."""
        return self._map(region, region.mmap_offset + region.size).info()

    def remove_region(self, guest_addr: int) -> RegionInfo:
        """Unplug the region that begins at `guest_addr`; its file stays open until `close`."""
        mapped = self._find(guest_addr)
        self._mapped.remove(mapped)
        return mapped.info()

    def move_to_new_files(self) -> list[SharedMemory]:
        """Copy every file to a fresh one that takes its place; addresses stay as they are.

        Returns:
            The former files, which the caller now owns. User addresses must be fixed by
            `Region.user_offset`, since the mappings move.
        """
        former = list(self._files.values())
        for number, old in list(self._files.items()):
            new = SharedMemory(old.size)
            new.bytes[:] = old.bytes
            self._files[number] = new
        self._borrowed.clear()
        for mapped in self._mapped:
            mapped.file = self._files[mapped.spec.file]
        return former

    def close(self) -> None:
        """Close the files that were made here. Idempotent."""
        for number, file in self._files.items():
            if number not in self._borrowed:
                file.close()
