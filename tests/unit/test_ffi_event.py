"""Signalling eventfds whose other end is a frontend's, who may do with them what it likes."""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mvirt_net.ffi import events_never_block, write_event
from mvirt_net.model import TX_QUEUE

from .rig import open_rig

FULL = 2**64 - 2
"""The most that can be written to the counter of an eventfd."""

FILLS_UP_AFTER_POLL = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
    const uint64_t full = UINT64_MAX - 1;
    struct timespec limit = { timeout / 1000, timeout % 1000 * 1000000L };
    int r = (int)syscall(SYS_ppoll, fds, n, timeout < 0 ? 0 : &limit, 0, 0);

    if (n == 1 && (fds[0].revents & POLLOUT)) {
        fcntl(fds[0].fd, F_SETFL, 0);
        if (write(fds[0].fd, &full, sizeof(full)) < 0)
            _exit(3);
    }
    return r;
}
"""
"""What a frontend may do between a look and a write, when it is quick."""

REFUSED_CALL = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

static int after = AFTER;

long syscall(long number, ...)
{
    long arguments[6], r;
    va_list list;

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == REFUSED && after-- <= 0) {
        errno = ERROR;
        return -1;
    }
    register long r10 __asm__("r10") = arguments[3];
    register long r8 __asm__("r8") = arguments[4];
    register long r9 __asm__("r9") = arguments[5];
    __asm__ volatile("syscall" : "=a"(r)
                     : "a"(number), "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]),
                       "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    if (r < 0) {
        errno = (int)-r;
        return -1;
    }
    return r;
}
"""


def refusing(call: str, error: str, after: int) -> str:
    """A shim under which a system call works so many times, and then fails."""
    return f"#define REFUSED {call}\n#define ERROR {error}\n#define AFTER {after}\n{REFUSED_CALL}"


def run(folder: Path, shim: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python's with a library in front of libc. It has some seconds."""
    library = folder / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"],
        input=shim,
        text=True,
        check=True,
    )
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"},
    )


def test_each_counts() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    assert events_never_block()
    for _ in range(1000):
        assert write_event(fd)
    assert os.eventfd_read(fd) == 1000
    os.close(fd)


def test_full_counter_stays_full() -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, FULL)
    for _ in range(3):
        write_event(fd)
    assert os.eventfd_read(fd) >= FULL
    os.close(fd)


def test_no_descriptor() -> None:
    fd = os.eventfd(0)
    os.close(fd)
    with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
        write_event(fd)


def test_m21_counter_that_fills_up_in_between(tmp_path: Path) -> None:
    program = """
import os
from mvirt_net.ffi import write_event
fd = os.eventfd(0, os.EFD_NONBLOCK)
write_event(fd)
print(os.eventfd_read(fd))
"""
    ended = run(tmp_path, FILLS_UP_AFTER_POLL, program)
    assert (ended.returncode, ended.stdout) == (0, "1\n")


def test_m21_full_counter_without_asynchronous_io(tmp_path: Path) -> None:
    program = """
import os
from mvirt_net.ffi import events_never_block, write_event
assert not events_never_block()
fd = os.eventfd(0)
print(write_event(fd))
os.eventfd_write(fd, 2**64 - 3)
print(write_event(fd))
"""
    ended = run(tmp_path, refusing("SYS_io_setup", "ENOSYS", 0), program)
    assert (ended.returncode, ended.stdout) == (0, "True\nFalse\n"), ended.stderr


@pytest.mark.parametrize("error", ["EAGAIN", "ENOMEM"])
def test_signals_without_memory_in_the_kernel(tmp_path: Path, error: str) -> None:
    """The first submission is the probe's."""
    program = """
import os
from mvirt_net.ffi import events_never_block, write_event
assert events_never_block()
fd = os.eventfd(0, os.EFD_NONBLOCK)
print(write_event(fd), os.eventfd_read(fd))
"""
    ended = run(tmp_path, refusing("SYS_io_submit", error, 1), program)
    assert (ended.returncode, ended.stdout) == (0, "True 1\n"), ended.stderr


def test_each_counts_in_a_child_too() -> None:
    """Asynchronous I/O is the parent's; a program may fork after its switch has begun."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    write_event(fd)
    child = os.fork()
    if child == 0:
        os._exit(0 if write_event(fd) and events_never_block() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.eventfd_read(fd) == 2
    os.close(fd)


@contextmanager
def watched(fd: int, times: int) -> Iterator[None]:
    """The square of so many wait for the eventfd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * times + 1000), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        copies = [os.dup(fd) for _ in range(times)]
        for copy in copies:
            stack.callback(os.close, copy)
        for _ in range(times):
            epoll = stack.enter_context(select.epoll())
            for copy in copies:
                epoll.register(copy, select.EPOLLIN | select.EPOLLET)
        yield


def test_m21_call_that_wakes_a_multitude() -> None:
    """The kernel goes through all of them, and no other guest is served meanwhile."""
    with open_rig() as rig:
        rig.start()
        with watched(rig.calls[TX_QUEUE], 500):
            for _ in range(3):
                assert not rig.port.ring_broken(TX_QUEUE)
                rig.send(bytes(60))
                rig.drain()
            assert rig.port.ring_broken(TX_QUEUE)
