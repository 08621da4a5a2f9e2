"""What this process has open, mapped and allocated, to compare after an attack with before."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Self

import attrs


def open_files() -> collections.Counter[str]:
    """What the open descriptors of this process lead to, and how many lead there."""
    files: collections.Counter[str] = collections.Counter()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (Path.iterdir keeps the folder open)
        try:
            files[str(Path("/proc/self/fd", name).readlink())] += 1
        except FileNotFoundError:
            # The descriptor by which the folder itself was read.
            continue
    return files


def shared_mappings() -> int:
    """Mappings of memfds: guest memory, on either side of the socket."""
    return sum("/memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


def mappings_of(fd: int) -> int:
    """Mappings of one memfd, by its inode: those of other tests may not have been unmapped yet."""
    inode = str(os.fstat(fd).st_ino)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("/memfd:" in line and line.split()[4] == inode for line in lines)


def allocated_memory() -> int:
    """Bytes of resident memory that is no file's: the heaps of Python and of the C core."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/self/status without RssAnon")


@attrs.frozen
class Footprint:
    """What the process holds at one moment."""

    files: collections.Counter[str]
    mappings: int
    memory: int
    """In bytes."""

    @classmethod
    def take(cls) -> Self:
        """As it is now."""
        return cls(open_files(), shared_mappings(), allocated_memory())
