"""What is wrong with memory regions and rings by their numbers alone, before any file is looked at.

Everything here comes from the frontend, so each function returns or raises RequestRefused.
Python's integers do not wrap, which is why a sum can simply be compared with 2 ** 64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ..errors import RequestRefused
from ..model import MemoryRegion, VringAddr

MIN_VRING_SIZE = 2
MAX_VRING_SIZE = 32768
"""Virtio 1.2, 2.7. A size is a power of two."""

PAGE_SIZE = 4096
"""Smallest page, in bytes: frontends map memory too, so regions begin and end on pages."""

_ADDRESS_SPACE = 1 << 64


def check_vring_size(size: int) -> None:
    """Raises RequestRefused unless a split ring can have `size` entries."""
    if not MIN_VRING_SIZE <= size <= MAX_VRING_SIZE or size & (size - 1):
        raise RequestRefused(f"vring of {size} entries")


def check_vring_layout(size: int, addr: VringAddr) -> None:
    """Raises RequestRefused for parts that are misaligned, wrap around or overlap.

    Sizes and alignments are those of virtio 1.2, 2.7; whether memory is there is not asked.
    """
    parts = sorted(
        (
            (addr.desc, 16 * size, 16),
            (addr.avail, 6 + 2 * size, 2),
            (addr.used, 6 + 8 * size, 4),
        )
    )
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
