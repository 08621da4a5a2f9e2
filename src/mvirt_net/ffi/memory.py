"""Guest memory: the regions that a frontend shares, mapped."""

from __future__ import annotations

from typing import Any, Self

from ..errors import CoreError
from ..model import MemoryRegion
from ._core import ffi, lib
from .results import allocated, check

MAX_REGIONS: int = lib.MV_MAX_REGIONS


def _region_spec(region: MemoryRegion) -> Any:
    return ffi.new(
        "struct mv_region_spec *",
        {
            "guest_addr": region.guest_addr,
            "size": region.size,
            "user_addr": region.user_addr,
            "mmap_offset": region.mmap_offset,
        },
    )


class GuestMemory:
    """A table of mapped guest memory regions; it never changes, tables share their mappings.

    Close a table only when no `Port` uses it any more. A mapping goes with its last table.
    """

    __slots__ = ("_handle",)

    def __init__(self, handle: Any) -> None:
        self._handle = allocated("memory table", handle)

    @classmethod
    def empty(cls, fault_fd: int) -> Self:
        """A table without regions.

        Args:
            fault_fd: an eventfd to which 1 is added when memory vanishes because the frontend
                shortened its file (zero pages take its place then). It stays the caller's and
                must stay open until the last table made from this one is closed.

        Raises:
            CoreError: out of memory, as everything that makes a table.
        """
        return cls(lib.mv_memory_new(fault_fd))

    def with_region(self, region: MemoryRegion, fd: int) -> Self:
        """A new table with this region of file `fd` mapped besides the present ones.

        The fd stays the caller's and may be closed afterwards.

        Raises:
            CoreError: the region is misaligned, overlaps another, lies outside the file, cannot
                be mapped for writing, or is one too many.
        """
        table = type(self)(lib.mv_memory_copy(self._handle))
        try:
            check("memory region", lib.mv_memory_add(table._handle, _region_spec(region), fd))
        except CoreError:
            table.close()
            raise
        return table

    def prepare(self, region: MemoryRegion, fd: int) -> Mapping:
        """What `with_region` does with the file, to be done in its time. Nothing is mapped yet."""
        return Mapping(self._handle, region, fd)

    def with_mapping(self, mapping: Mapping) -> Self:
        """A new table with this region, mapped already, besides the present ones.

        Raises:
            CoreError: as `with_region`.
        """
        table = type(self)(lib.mv_memory_copy(self._handle))
        try:
            mapping._give_to(table._handle)
        except CoreError:
            table.close()
            raise
        return table

    def without_region(self, region: MemoryRegion) -> Self:
        """A new table without the region of these addresses and this size.

        Raises:
            CoreError: there is no such region.
        """
        table = type(self)(lib.mv_memory_copy(self._handle))
        try:
            check("memory region", lib.mv_memory_remove(table._handle, _region_spec(region)))
        except CoreError:
            table.close()
            raise
        return table

    def close(self) -> None:
        """Give up the table; unmaps what no other table shares. May be called again."""
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_memory_free(handle)


class Mapping:
    """A region of guest memory on its way into a table; `GuestMemory.prepare` makes it.

    What is wrong with it is kept until a table is to have it, so that the frontend hears of it when
    and how it would have without all this.
    """

    def __init__(self, table: Any, region: MemoryRegion, fd: int) -> None:
        place = ffi.new("mv_region **")
        self._result = lib.mv_region_new(place, table, _region_spec(region), fd)
        self._handle = place[0]

    @property
    def may_wait(self) -> bool:
        """Whether `map` may take long: the kernel may wait for others who use the file."""
        return self._handle != ffi.NULL and bool(lib.mv_region_may_wait(self._handle))

    def map(self, fd: int) -> bool:
        """Map it; False when it cannot be. Any thread may do this, and nothing else meanwhile.

        Args:
            fd: of the same file.
        """
        if self._result == 0:
            self._result = lib.mv_region_map(self._handle, fd)
        return bool(self._result == 0)

    def _give_to(self, table: Any) -> None:
        check("memory region", self._result)
        check("memory region", lib.mv_memory_adopt(table, self._handle))
        self._handle = ffi.NULL

    def close(self) -> None:
        """Unmap what no table has got. May be called again."""
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_region_free(handle)


def unmap_aside(begin: bool) -> None:
    """Leave unmapping to another thread, or as often as before no longer.

    While one thread waits in `Mapping.map`, others that unmap or map would wait for it.
    """
    if begin:
        lib.mv_unmap_aside_begin()
    else:
        lib.mv_unmap_aside_end()
