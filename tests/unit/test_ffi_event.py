"""Signalling eventfds whose other end is a frontend's, who may do with them what it likes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvirt_net.ffi import events_never_block, write_event
from mvirt_net.model import RX_QUEUE, TX_QUEUE
from tests.harness.multitude import watched

from .rig import Rig, open_rig

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

CAUGHT_CALL = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <time.h>

static int after = AFTER;

long syscall(long number, ...)
{
    long arguments[6], r;
    va_list list;

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    if (number == CAUGHT && after-- <= 0) {
        WHAT
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
    return catching(call, f"errno = {error}; return -1;", after)


def sleeping(call: str, milliseconds: int) -> str:
    """A shim under which a system call takes so long, in which its thread does nothing."""
    return catching(call, f"nanosleep(&(struct timespec){{ 0, {milliseconds * 1_000_000} }}, 0);")


def catching(call: str, what: str, after: int = 0) -> str:
    return f"#define CAUGHT {call}\n#define WHAT {what}\n#define AFTER {after}\n{CAUGHT_CALL}"


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


@pytest.fixture
def fast() -> Iterator[int]:
    """An eventfd for which nobody waits."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def send(rig: Rig) -> None:
    rig.send(bytes(60))
    rig.drain()


def test_m21_call_that_wakes_a_multitude() -> None:
    """The kernel goes through all of them, and no other guest is served meanwhile."""
    with open_rig() as rig:
        rig.start()
        with watched(rig.calls[TX_QUEUE], 500):
            for _ in range(3):
                assert not rig.port.ring_broken(TX_QUEUE)
                send(rig)
            assert rig.port.ring_broken(TX_QUEUE)
        assert rig.port.stats().slow_signals == 2  # of the first it is not known whose fault it was
        assert rig.port.owes > 0.5


def test_m21_kick_that_wakes_a_multitude(fast: int) -> None:
    """Taking its count is as slow as signalling it, and is owed for in the same way."""
    with open_rig() as rig:
        with watched(fast, 500):
            for _ in range(3):
                write_event(fast)
                assert rig.port.take_kick(fast)
            write_event(fast)
            with pytest.raises(OSError, match="busy"):
                rig.port.take_kick(fast)
        assert rig.port.owes > 0.5


def test_m21_calls_in_between_that_are_fast(fast: int) -> None:
    with open_rig() as rig:
        rig.start()
        slow = rig.calls[TX_QUEUE]
        with watched(slow, 500):
            for _ in range(3):
                rig.port.set_call(TX_QUEUE, slow)
                send(rig)
                rig.port.set_call(TX_QUEUE, fast)
                send(rig)
            assert rig.port.ring_broken(TX_QUEUE)


def test_m21_restart_does_not_pay(fast: int) -> None:
    """Until it has waited, nothing is signalled for the port, whatever the eventfd."""
    with open_rig() as rig:
        rig.start()
        with watched(rig.calls[TX_QUEUE], 500):
            for _ in range(3):
                send(rig)
        rig.port.set_call(TX_QUEUE, fast)
        for queue in (RX_QUEUE, TX_QUEUE):
            rig.port.stop_ring(queue)
        rig.start()
        send(rig)
        assert rig.port.ring_broken(TX_QUEUE)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fast)

        rig.port.settle(rig.port.due)
        assert rig.port.owes == 0
        for queue in (RX_QUEUE, TX_QUEUE):
            rig.port.stop_ring(queue)
        rig.start()
        send(rig)
        assert not rig.port.ring_broken(TX_QUEUE)
        assert os.eventfd_read(fast) == 1


def test_m21_err_that_wakes_a_multitude() -> None:
    with open_rig() as rig:
        with watched(rig.errs[TX_QUEUE], 500):
            for _ in range(5):
                rig.start()
                rig.tx.write_avail_idx(rig.size + 1)
                rig.drain()
                assert rig.port.ring_broken(TX_QUEUE)
                for queue in (RX_QUEUE, TX_QUEUE):
                    rig.port.stop_ring(queue)
        assert os.eventfd_read(rig.errs[TX_QUEUE]) == 3
        assert rig.port.stats().slow_signals == 2


def test_interruptions_cost_nothing(tmp_path: Path) -> None:
    """A thread that others interrupt while it signals, as often as that happens."""
    program = """
import os
from mvirt_net.model import TX_QUEUE
from tests.unit.rig import open_rig
with open_rig() as rig:
    rig.start()
    for _ in range(10):
        rig.send(bytes(60))
        rig.drain()
    print(rig.port.ring_broken(TX_QUEUE), rig.port.owes, rig.called(TX_QUEUE))
"""
    ended = run(tmp_path, sleeping("SYS_io_submit", milliseconds=6), program)
    assert (ended.returncode, ended.stdout) == (0, "False 0.0 10\n"), ended.stderr


def test_what_was_charged_is_owed_a_hundredfold() -> None:
    with open_rig() as rig:
        rig.port.charge(0.5)
        assert 49 < rig.port.owes <= 50
        rig.port.charge(0.1)
        assert 59 < rig.port.owes <= 60
        rig.port.settle(rig.port.due)
        assert rig.port.owes == 0


def test_what_came_while_it_waited_is_owed() -> None:
    with open_rig() as rig:
        rig.port.charge(0.5)
        due = rig.port.due
        rig.port.charge(0.1)
        rig.port.settle(due)
        assert 9 < rig.port.owes <= 10


def test_nobody_owes_for_a_port_that_is_closed() -> None:
    with open_rig() as rig:
        rig.port.close()
        rig.port.charge(1.0)
