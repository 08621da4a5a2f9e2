"""Memory of hugetlbfs, and processes that keep its file busy while somebody wants to map it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HUGE_PAGE = 2 << 20

_NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")

_KEEP_BUSY = """
import ctypes, sys
libc = ctypes.CDLL(None)
fd, size = map(int, sys.argv[1:])
offset = [ctypes.c_long(0), ctypes.c_long(size)]
libc.fallocate(fd, 0, *offset)
print(flush=True)
while True:
    libc.fallocate(fd, 0, *offset)
    libc.fallocate(fd, 3, *offset)  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
"""


@contextmanager
def reserved_pages(count: int) -> Iterator[None]:
    """So many huge pages for a test, which is skipped where they cannot be had; only root may."""
    before = _NR_HUGEPAGES.read_text()
    if int(before) < count:
        try:
            _NR_HUGEPAGES.write_text(str(count))
        except OSError as error:
            pytest.skip(f"needs vm.nr_hugepages={count}, which only root can set: {error}")
    try:
        if int(_NR_HUGEPAGES.read_text()) < count:
            pytest.skip(f"needs vm.nr_hugepages={count}, for which no memory is left")
        yield
    finally:
        if int(before) < count:
            _NR_HUGEPAGES.write_text(before)


@contextmanager
def huge_file(pages: int) -> Iterator[int]:
    """A memfd of so many huge pages, none of which it has got yet."""
    fd = os.memfd_create("vhost-test-huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        os.ftruncate(fd, pages * HUGE_PAGE)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def kept_busy(fd: int, pages: int, processes: int = 2) -> Iterator[None]:
    """Processes that give the file pages and take them away, and hold its lock all the time."""
    command = [sys.executable, "-c", _KEEP_BUSY, str(fd), str(pages * HUGE_PAGE)]
    started = []
    try:
        for _ in range(processes):
            process = subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE)
            started.append(process)
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()
