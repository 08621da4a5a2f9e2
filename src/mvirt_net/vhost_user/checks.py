"""What is wrong with memory regions and rings by their numbers alone, before any file is looked at.

Everything here comes from the frontend, so each function returns or raises RequestRefused.
Python's integers do not wrap, which is why a sum can simply be compared with 2 ** 64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ..errors import RequestRefused
from ..model import MemoryRegion, VringAddr

MIN_SPLIT_SIZE = 2
MAX_VRING_SIZE = 32768
"""Virtio 1.2, 2.7 and 2.8. The size of a split vring is a power of two, of a packed one any."""

_MAX_SPLIT_BASE = 0xFFFF
_MAX_PACKED_BASE = 0xFFFF_FFFF
_SLOT = 0x7FFF
"""The slot in a position, whose bit 15 is a wrap counter."""

PAGE_SIZE = 4096
"""Smallest page, in bytes: frontends map memory too, so regions begin and end on pages."""

_ADDRESS_SPACE = 1 << 64


def check_vring_size(size: int, *, packed: bool) -> None:
    """Raises RequestRefused unless such a vring can have `size` entries."""
    if packed:
        possible = 1 <= size <= MAX_VRING_SIZE
    else:
        possible = MIN_SPLIT_SIZE <= size <= MAX_VRING_SIZE and not size & (size - 1)
    if not possible:
        raise RequestRefused(f"vring of {size} entries")


def check_vring_base(base: int, size: int, *, packed: bool) -> None:
    """Raises RequestRefused for what SET_VRING_BASE cannot say of a vring of `size` entries.

    A split vring's index has 16 bits and runs freely. Of a packed one there are two positions, of
    the next available and the next used descriptor (vhost-user, "Vring descriptor indices for
    packed virtqueues").
    """
    if packed:
        possible = base <= _MAX_PACKED_BASE and max(base & _SLOT, base >> 16 & _SLOT) < size
    else:
        possible = base <= _MAX_SPLIT_BASE
    if not possible:
        raise RequestRefused(f"base {base:#x}")


def check_vring_layout(size: int, addr: VringAddr, *, packed: bool) -> None:
    """Raises RequestRefused for parts that are misaligned, wrap around or overlap.

    Sizes and alignments are those of virtio 1.2, 2.7 and 2.8.10.1; whether memory is there is not
    asked.
    """
    avail, used = ((4, 4), (4, 4)) if packed else ((6 + 2 * size, 2), (6 + 8 * size, 4))
    parts = sorted(((addr.desc, 16 * size, 16), (addr.avail, *avail), (addr.used, *used)))
    for start, length, alignment in parts:
        if start % alignment or start + length > _ADDRESS_SPACE:
            raise RequestRefused(f"vring part at {start:#x}")
    _refuse_overlaps("vring parts", ((start, length) for start, length, _ in parts))


def check_regions(regions: Sequence[MemoryRegion]) -> None:
    """Raises RequestRefused unless these regions can be one memory table."""
    for region in regions:
        _check_region(region)
    _refuse_overlaps("guest addresses", ((r.guest_addr, r.size) for r in regions))
    _refuse_overlaps("user addresses", ((r.user_addr, r.size) for r in regions))


def _check_region(region: MemoryRegion) -> None:
    if not region.size:
        raise RequestRefused("memory region of 0 bytes")
    for start in (region.guest_addr, region.user_addr, region.mmap_offset):
        if start % PAGE_SIZE or region.size % PAGE_SIZE:
            raise RequestRefused(f"memory region of {region.size:#x} bytes at {start:#x}")
        if start + region.size > _ADDRESS_SPACE:
            raise RequestRefused(f"memory region of {region.size:#x} bytes at {start:#x}")


def _refuse_overlaps(what: str, ranges: Iterable[tuple[int, int]]) -> None:
    for (start, length), (following, _) in itertools.pairwise(sorted(ranges)):
        if start + length > following:
            raise RequestRefused(f"{what} overlap at {following:#x}")
