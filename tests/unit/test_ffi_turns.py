"""How long one drain may take, and who comes before whom.

A turn is over by the clock, so who wants to see when a drain looks at it, and what the drivers and
other threads can see by then, has to be asked for the time. Which thread comes first is up to the
kernel, unless one of them is stopped in front of what it calls next.
"""

from __future__ import annotations

from pathlib import Path

from .test_ffi_event import run

IN_FRONT_OF_LIBC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static __thread int64_t (*clock_of_thread)(void);

/* From now on this thread's clock is what `clock` returns, in ns. */
void go_by(int64_t (*clock)(void))
{
    clock_of_thread = clock;
}

/* Python asks for the time, too, while it has half taken what `clock` would need. */
static bool is_asked_by_core(void)
{
    void *callers[8];
    int count = backtrace(callers, 8);

    for (int i = 0; i < count; i++) {
        Dl_info info;

        if (!dladdr(callers[i], &info) || !info.dli_fname)
            return false;
        if (!strstr(info.dli_fname, "/shim.") && !strstr(info.dli_fname, "/libasan."))
            return strstr(info.dli_fname, "/_core.") != NULL;
    }
    return false;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int64_t (*ask)(void) = clock_of_thread, ns;

    if (clock != CLOCK_MONOTONIC || !ask || !is_asked_by_core())
        return (int)syscall(SYS_clock_gettime, clock, now);
    clock_of_thread = NULL;
    ns = ask();
    clock_of_thread = ask;
    *now = (struct timespec){ ns / 1000000000, ns % 1000000000 };
    return 0;
}

static __thread enum { NOWHERE, AFTER_SLEEP, AT_LOCK } stops;
static _Atomic bool is_about_to_sleep, has_stopped, goes_on;

/* This thread stops in front of the next lock that the core takes, until go_on(). */
void stop_at_lock(void)
{
    stops = AT_LOCK;
}

/* The same, but in front of the first lock after it has slept in poll(). */
void stop_at_lock_after_sleep(void)
{
    stops = AFTER_SLEEP;
}

void wait_about_to_sleep(void)
{
    while (!is_about_to_sleep)
        usleep(100);
}

void wait_stopped(void)
{
    while (!has_stopped)
        usleep(100);
}

void go_on(void)
{
    goes_on = true;
}

int pthread_mutex_lock(pthread_mutex_t *lock)
{
    static _Atomic(int (*)(pthread_mutex_t *)) real;

    if (!real)
        real = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    if (stops == AT_LOCK) {
        /* Whoever finds out may take locks, too. */
        stops = NOWHERE;
        if (is_asked_by_core()) {
            has_stopped = true;
            while (!goes_on)
                usleep(100);
        } else {
            stops = AT_LOCK;
        }
    }
    return real(lock);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    struct timespec time = { timeout / 1000, timeout % 1000 * 1000000L };
    bool is_core = stops == AFTER_SLEEP && is_asked_by_core();
    int found;

    if (is_core)
        is_about_to_sleep = true;
    found = (int)syscall(SYS_ppoll, fds, count, timeout < 0 ? NULL : &time, NULL, 8);
    if (is_core)
        stops = AT_LOCK;
    return found;
}

/* Until another thread sleeps, or is gone. */
void wait_asleep(int thread)
{
    char path[64], state = 'R';

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
    while (state == 'R') {
        FILE *stat = fopen(path, "r");

        if (!stat)
            return;
        if (fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
            state = 'X';
        fclose(stat);
    }
}
"""

TWO_GUESTS = """
import contextlib, ctypes, itertools, os, threading
from mvirt_net.ffi import Network
from mvirt_net.model import MacAddress
from tests.harness.memory import Region
from tests.harness.packets import GATEWAY_MAC, udp_frame
from tests.unit.rig import IPV4, MAC, MRG_RXBUF, VERSION_1, open_rig

SHIM = ctypes.CDLL(None)
CLOCK = ctypes.CFUNCTYPE(ctypes.c_int64)
OTHER_MAC, OTHER = MacAddress.parse("52:54:00:00:00:02"), "10.0.0.6"

@contextlib.contextmanager
def two_guests(network=None, features=VERSION_1):
    with contextlib.ExitStack() as stack:
        network = network or Network(mtu=65535)
        stack.callback(network.close)
        regions = [Region(0, 8 << 20)]
        a = stack.enter_context(open_rig(network=network, regions=regions))
        b = stack.enter_context(open_rig(
            network=network, regions=regions, features=features, mac=OTHER_MAC, routes=[OTHER]
        ))
        a.start()
        b.start()
        yield a, b

def send(a, size, count):
    frame = udp_frame(MAC.packed, GATEWAY_MAC, IPV4, OTHER, 1, 2, bytes(size))
    for _ in range(count):
        a.send(frame)

def drain(rig, clock):
    '''Drain once, by a clock.'''
    clock = CLOCK(clock)
    SHIM.go_by(clock)
    try:
        return rig.port.drain()
    finally:
        SHIM.go_by(None)
"""


def answers(folder: Path, program: str) -> str:
    """What a program prints that has two guests and such a clock."""
    ended = run(folder, IN_FRONT_OF_LIBC, TWO_GUESTS + program)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_who_waits_for_the_receiver_has_it_in_between(tmp_path: Path) -> None:
    """Not at the end of the turn, which does not end here: the clock stands still."""
    program = """
with two_guests() as (a, b):
    b.offer(2048, 256)
    send(a, 0, 256)
    waiter = threading.Thread(target=b.port.flush)
    before = []

    def clock():
        sent = a.port.stats().tx_frames
        if sent >= 32 and waiter.ident is None:
            waiter.start()
        if waiter.ident is not None:
            SHIM.wait_asleep(waiter.native_id)
            if not waiter.is_alive():
                before.append(sent)
        return 0

    drain(a, clock)
    waiter.join()
    print(a.port.stats().tx_frames, any(sent < 256 for sent in before))
"""
    assert answers(tmp_path, program) == "256 True\n"


def test_who_has_waited_for_long_does_what_it_has_waited_for(tmp_path: Path) -> None:
    """A frame in two pieces, beside a drain that does not go on before the other one sleeps."""
    program = """
THIRD_MAC, THIRD = MacAddress.parse("52:54:00:00:00:03"), "10.0.0.7"
network = Network(mtu=65535)
with two_guests(network) as (a, b), open_rig(
    network=network, regions=[Region(0, 1 << 20)], mac=THIRD_MAC, routes=[THIRD]
) as c:
    c.start()
    b.offer(2048, 256)
    for _ in range(64):
        c.send(udp_frame(THIRD_MAC.packed, GATEWAY_MAC, THIRD, OTHER, 1, 2, b""))
    frame = udp_frame(MAC.packed, GATEWAY_MAC, IPV4, OTHER, 1, 2, b"")
    buffer = a.buffer(12 + len(frame))
    a.tx.add_tx_buffer([(buffer, 12), (buffer + 12, len(frame))], frame)
    main, begun, holds = threading.get_native_id(), threading.Event(), threading.Event()

    def clock_of_holder():
        if c.port.stats().tx_frames and not holds.is_set():
            holds.set()
            begun.wait()
            SHIM.wait_asleep(main)
        return 0

    late = iter([0])

    def clock():
        begun.set()
        return next(late, 10**9)

    holder = threading.Thread(target=drain, args=(c, clock_of_holder))
    holder.start()
    holds.wait()
    drained = drain(a, clock)
    holder.join()
    print(b.port.backlog, drained.woken, b.port.stats().rx_frames)
"""
    assert answers(tmp_path, program) == "0 [] 65\n"


def test_all_cold_rings_together_have_a_turn_in_each_round(tmp_path: Path) -> None:
    """By a clock in which each step takes 60 µs, and with it a turn 16 frames of the hot ring."""
    program = """
from mvirt_net.ffi import HotRing, Poller, Watch, Watcher
DROPPED = udp_frame(MAC.packed, GATEWAY_MAC, IPV4, "239.1.1.1", 1, 2, b"")
with contextlib.ExitStack() as stack:
    hot = stack.enter_context(open_rig())
    hot.start()
    for _ in range(256):
        hot.send(DROPPED)
    watcher, cold = stack.enter_context(contextlib.closing(Watcher())), []
    for key in range(10):
        rig = stack.enter_context(open_rig())
        rig.start()
        rig.send(DROPPED)
        kick = os.eventfd(1, os.EFD_NONBLOCK)
        watch = stack.enter_context(contextlib.closing(Watch(watcher, rig.port, key, 0.0)))
        watch.begin(kick, 1, 0.0)
        cold.append(rig)
    poller, done, at_last = Poller(1e6), threading.Event(), []
    times = itertools.count(10**9, 60_000)

    def clock():
        if not at_last and all(rig.port.stats().tx_frames for rig in cold):
            at_last.append(hot.port.stats().tx_frames)
            done.set()
        return next(times)

    def run(clock=CLOCK(clock)):
        SHIM.go_by(clock)
        poller.run()
        SHIM.go_by(None)

    thread = threading.Thread(target=run)
    ring = stack.enter_context(contextlib.closing(HotRing(poller, hot.port, 0.0, 1e6)))
    poller.help(watcher)
    thread.start()
    done.wait()
    poller.help(None)
    poller.stop()
    thread.join()
    print(at_last)
"""
    assert answers(tmp_path, program) == f"[{10 * 16}]\n"


HELP = """
import time
from mvirt_net.ffi import HotRing, Poller, Watch, Watcher
DROPPED = udp_frame(MAC.packed, GATEWAY_MAC, IPV4, "239.1.1.1", 1, 2, b"")

@contextlib.contextmanager
def helper(watcher):
    '''A poller that attends to the watcher's kicks; how to wait until it has looked for them.'''
    with contextlib.ExitStack() as stack:
        hot = stack.enter_context(open_rig())
        hot.start()
        poller, frames = Poller(1e6), itertools.count(1)
        stack.enter_context(contextlib.closing(HotRing(poller, hot.port, 0.0, 1e6)))
        poller.help(watcher)
        thread = threading.Thread(target=poller.run)
        thread.start()

        def look():
            # Twenty times as long as it is between two of its looks, and rounds of it meanwhile.
            until = time.monotonic() + 0.001
            while time.monotonic() < until:
                hot.send(DROPPED)
                wait_taken(hot, next(frames))

        yield look
        poller.help(None)
        poller.stop()
        thread.join()

def wait_taken(rig, frames):
    while rig.port.stats().tx_frames < frames:
        pass

@contextlib.contextmanager
def cold_ring():
    '''One that a watcher waits for; how to send on it, and how many frames it has sent.'''
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(open_rig())
        rig.start()
        watcher = stack.enter_context(contextlib.closing(Watcher()))
        kick = os.eventfd(0, os.EFD_NONBLOCK)
        watch = stack.enter_context(contextlib.closing(Watch(watcher, rig.port, 7, 0.0)))
        watch.begin(kick, 1, 0.0)

        def send():
            rig.send(DROPPED)
            os.eventfd_write(kick, 1)

        yield watcher, rig, send

def stopping(where, work):
    '''A thread that works until it comes there.'''
    def run():
        where()
        work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
"""


def test_a_poller_leaves_the_watcher_to_who_waits_for_it(tmp_path: Path) -> None:
    """Who wants control, and has not got the lock yet, comes before the next kick."""
    program = """
with cold_ring() as (watcher, cold, send):
    controller = stopping(SHIM.stop_at_lock, watcher.returned)
    SHIM.wait_stopped()
    with helper(watcher) as look:
        send()
        look()
        print(cold.port.stats().tx_frames)
        SHIM.go_on()
        controller.join()
        wait_taken(cold, 1)
"""
    assert answers(tmp_path, HELP + program) == "0\n"


def test_a_poller_has_what_the_watcher_was_woken_for(tmp_path: Path) -> None:
    """The watcher's thread was, and waits for the lock."""
    program = """
with cold_ring() as (watcher, cold, send):
    thread = stopping(SHIM.stop_at_lock_after_sleep, watcher.run)
    SHIM.wait_about_to_sleep()
    send()
    SHIM.wait_stopped()
    with helper(watcher) as look:
        look()
        print(cold.port.stats().tx_frames)
    SHIM.go_on()
    watcher.stop()
    thread.join()
"""
    assert answers(tmp_path, HELP + program) == "1\n"


def test_bytes_take_time(tmp_path: Path) -> None:
    """With 30 µs between two looks at the clock a turn has two, one for each large frame."""
    program = """
with two_guests() as (a, b):
    b.offer(66000, 16)
    send(a, 65000, 16)
    looks = itertools.count(0, 30_000)
    drain(a, lambda: next(looks))
    print(a.port.stats().tx_frames)
"""
    assert answers(tmp_path, program) == "2\n"


def test_large_frames_are_seen_one_by_one(tmp_path: Path) -> None:
    """By both drivers, at the next look at the clock, of which there is one for each."""
    program = """
with two_guests() as (a, b):
    b.offer(66000, 16)
    send(a, 65000, 16)
    seen = []

    def clock():
        seen.append((a.tx.used_count(), b.rx.used_count()))
        return 0

    drain(a, clock)
    print(seen[1:17] == [(n, n) for n in range(16)])
"""
    assert answers(tmp_path, program) == "True\n"


def test_full_ring_is_seen_before_frames_have_to_wait(tmp_path: Path) -> None:
    """The driver can take sixteen frames out of its buffers, and may give more of them."""
    program = """
with two_guests() as (a, b):
    b.offer(2048, 16)
    send(a, 100, 128)
    seen = []

    def clock():
        seen.append(b.rx.used_count())
        return 0

    drain(a, clock)
    print(seen[1])
"""
    assert answers(tmp_path, program) == "16\n"
