"""TX rings whose kicks a thread waits for: what is drained, when they are given back or offered.

The thread is a real one. Tests wait for what it signals: the driver's call, or the watcher's event.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from mvirt_net.ffi import Drained, Network, NextStep, Poller, Watch, Watched, Watcher
from mvirt_net.ffi.watcher import KEYS_AT_ONCE
from mvirt_net.model import RX_QUEUE, TX_QUEUE
from tests.harness.packets import GATEWAY_IP, arp_request

from .rig import EVENT_IDX, IPV4, MAC, VERSION_1, Rig, open_rig
from .test_ffi_poller import (
    DROPPED,
    FOR_EVER,
    PATIENCE,
    hot,
    numbered_arp,
    receiver,
    running,
    to_other,
    wait_for,
    wait_taken,
)

KEY = 7
NEVER_QUICK = 1, 0.0
ARP = arp_request(MAC.packed, IPV4, GATEWAY_IP)


@contextlib.contextmanager
def at_work(watcher: Watcher) -> Iterator[None]:
    """In a thread, which has ended afterwards."""
    thread = threading.Thread(target=watcher.run)
    thread.start()
    try:
        yield
    finally:
        watcher.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextlib.contextmanager
def watching() -> Iterator[Watcher]:
    with contextlib.closing(Watcher()) as watcher, at_work(watcher):
        yield watcher


@contextlib.contextmanager
def watch(
    watcher: Watcher, rig: Rig, kick: int, burst: tuple[int, float] = NEVER_QUICK, key: int = KEY
) -> Iterator[Watch]:
    """A rig's TX ring, empty, armed and watched."""
    assert rig.port.drain().next is NextStep.KICK
    with contextlib.closing(Watch(watcher, rig.port, key, 0.0)) as ring:
        ring.begin(kick, *burst)
        yield ring


@pytest.fixture
def kick() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def send(rig: Rig, kick: int, frame: bytes = DROPPED) -> None:
    """As a driver does: while the last drain is not over, the device looks without a kick."""
    rig.send(frame)
    if rig.tx.kick_needed():
        os.eventfd_write(kick, 1)


def watch_again(ring: Watch, kick: int) -> None:
    """As a task does, which takes the kick's count first: with it the watcher would drain at once.

    A frame sent meanwhile might come between that drain and its asking for a kick (wait_over()).
    """
    os.eventfd_read(kick)
    ring.begin(kick, *NEVER_QUICK)


def wait_over(rig: Rig) -> None:
    """Until the drain that has begun has asked for the next kick, too.

    A frame that comes between its last buffer and that goes without a kick, and the ring is given
    back for it. The drain has the ring's lock for all of that, and whatever sets its descriptors
    waits for it.
    """
    rig.port.set_err(TX_QUEUE, rig.errs[TX_QUEUE])


def wait_drained(rig: Rig, count: int) -> None:
    """Until the device has returned so many buffers, and the drain is over."""
    wait_taken(rig, count)
    wait_over(rig)


def wait_returned(watcher: Watcher, ring: Watch) -> Watched:
    """Until it was given back."""
    wait_for(watcher.fd)
    assert watcher.returned() == [KEY]
    watched = ring.end()
    assert watched is not None
    return watched


def wait_kicked(rig: Rig, watcher: Watcher, count: int) -> None:
    """Until so many kicks have been followed, with no ring given back."""
    deadline = time.monotonic() + PATIENCE
    while rig.port.stats().kicks < count:
        assert not select.select([watcher.fd], [], [], 0)[0]
        assert time.monotonic() < deadline
    wait_over(rig)


class TestWatching:
    @pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
    def test_drains_at_each_kick_and_asks_for_the_next(self, features: int, kick: int) -> None:
        with open_rig(features=features) as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                for count in range(1, 20):
                    send(rig, kick)
                    wait_drained(rig, count)
                assert ring.end() is None
            assert rig.port.stats().tx_frames == 19

    def test_a_kick_before(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            assert rig.port.drain().next is NextStep.KICK
            send(rig, kick)
            with contextlib.closing(Watch(watcher, rig.port, KEY, 0.0)) as ring:
                ring.begin(kick, *NEVER_QUICK)
                wait_taken(rig, 1)
            # Its count is left to whoever takes the ring back.
            assert os.eventfd_read(kick) == 1

    def test_delivers_to_another_guest(self, kick: int) -> None:
        with (
            contextlib.closing(Network(mtu=65535)) as network,
            open_rig(network=network) as rig,
            receiver(network) as other,
            watching() as watcher,
        ):
            rig.start()
            other.offer(2048)
            other.flush()
            with watch(watcher, rig, kick) as ring:
                send(rig, kick, to_other(b"payload"))
                wait_for(other.calls[RX_QUEUE])
                frame = other.rx.pop_frame()
                assert frame is not None
                assert b"payload" in frame.frame
                assert ring.end() is None

    def test_several_rings(self) -> None:
        with contextlib.ExitStack() as stack:
            watcher = stack.enter_context(watching())
            rigs = []
            for key in range(5):
                rig = stack.enter_context(open_rig())
                rig.start()
                kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                stack.callback(os.close, kick)
                stack.enter_context(watch(watcher, rig, kick, key=key))
                rigs.append((rig, kick))
            for count in range(1, 4):
                for rig, kick in rigs:
                    send(rig, kick)
                for rig, _ in rigs:
                    wait_drained(rig, count)


class TestGivenBack:
    def test_with_something_for_a_service(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                for number in range(5):
                    send(rig, kick, numbered_arp(number))
                    watched = wait_returned(watcher, ring)
                    assert [punt.frame for punt in watched.drained.punts] == [numbered_arp(number)]
                    assert watched.drained.next is NextStep.KICK
                    assert not watched.quick
                    watch_again(ring, kick)

    def test_with_another_port_to_wake(self, kick: int) -> None:
        """What has no buffer of its receiver waits in its backlog, for that one's task."""
        with (
            contextlib.closing(Network(mtu=65535)) as network,
            open_rig(network=network) as rig,
            receiver(network) as other,
            watching() as watcher,
        ):
            rig.start()
            with watch(watcher, rig, kick) as ring:
                send(rig, kick, to_other(b"payload"))
                assert wait_returned(watcher, ring).drained.woken == [(other.port, 0)]

    def test_close_wakes_the_port_to_wake(self, kick: int) -> None:
        with (
            contextlib.closing(Network(mtu=65535)) as network,
            open_rig(network=network) as rig,
            receiver(network) as other,
            watching() as watcher,
        ):
            rig.start()
            woken: list[int] = []
            other.port.wake = woken.append
            with watch(watcher, rig, kick):
                send(rig, kick, to_other(b"payload"))
                wait_for(watcher.fd)
            assert woken == [0]

    def test_when_the_ring_is_down(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                rig.port.stop_ring(TX_QUEUE)
                os.eventfd_write(kick, 1)
                assert wait_returned(watcher, ring).drained.next is NextStep.NOTHING

    def test_once(self, kick: int) -> None:
        """Nothing is drained afterwards, whatever the driver does, until it is watched again."""
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                send(rig, kick, ARP)
                wait_for(watcher.fd)
                assert watcher.returned() == [KEY]
                send(rig, kick)
                # The watcher is at work: another ring proves it.
                with open_rig() as other:
                    other.start()
                    kick_of_other = os.eventfd(0, os.EFD_NONBLOCK)
                    with watch(watcher, other, kick_of_other, key=8):
                        send(other, kick_of_other)
                        wait_taken(other, 1)
                    os.close(kick_of_other)
                assert rig.port.stats().tx_frames == 1
                ring.begin(kick, *NEVER_QUICK)
                wait_taken(rig, 2)

    def test_again_before_anybody_has_looked(self, kick: int) -> None:
        """It is named once for both."""
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                for count in (1, 2):
                    send(rig, kick, ARP)
                    wait_taken(rig, count)
                    assert ring.end() is not None
                    watch_again(ring, kick)
                assert watcher.returned() == [KEY]

    def test_in_their_order(self, kick: int) -> None:
        """However many there are. A ring that does not run is given back with the first kick."""
        with (
            open_rig() as down,
            open_rig() as rig,
            watching() as watcher,
            contextlib.ExitStack() as stack,
        ):
            kicks = []
            for key in range(KEYS_AT_ONCE + 10):
                ring = Watch(watcher, down.port, key, 0.0)
                stack.enter_context(contextlib.closing(ring))
                kicks.append(os.eventfd(0, os.EFD_NONBLOCK))
                stack.callback(os.close, kicks[-1])
                ring.begin(kicks[-1], *NEVER_QUICK)
            rig.start()
            last = stack.enter_context(watch(watcher, rig, kick, key=len(kicks)))
            for other in kicks:
                os.eventfd_write(other, 1)
            send(rig, kick, ARP)
            wait_taken(rig, 1)
            assert last.end() is not None
            assert watcher.returned() == list(range(len(kicks) + 1))
            assert watcher.returned() == []


class TestOffered:
    def test_kicked_quickly(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick, (3, 1e6)) as ring:
                for count in range(1, 3):
                    send(rig, kick)
                    wait_drained(rig, count)
                assert not select.select([watcher.fd], [], [], 0)[0]
                send(rig, kick)
                watched = wait_returned(watcher, ring)
            assert watched.quick
            assert watched.drained == Drained(NextStep.KICK, [], [])
            assert rig.port.stats().tx_frames == 3

    def test_is_drained_on_and_not_named_again(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick, (3, 1e6)) as ring:
                for count in range(1, 4):
                    send(rig, kick)
                    wait_drained(rig, count)
                wait_for(watcher.fd)
                assert watcher.returned() == [KEY]
                for count in range(4, 11):
                    send(rig, kick)
                    wait_drained(rig, count)
                assert watcher.returned() == []
                assert not select.select([watcher.fd], [], [], 0)[0]
                watched = ring.end()
                assert watched is not None
                assert watched.quick
                assert watched == ring.end()
                # That was that.
                ring.begin(kick, *NEVER_QUICK)
                assert ring.end() is None

    def test_given_back_after_all(self, kick: int) -> None:
        """Whether it has been named by then or not."""
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick, (3, 1e6)) as ring:
                for count in range(1, 4):
                    send(rig, kick)
                    wait_drained(rig, count)
                wait_for(watcher.fd)
                assert watcher.returned() == [KEY]
                send(rig, kick, ARP)
                watched = wait_returned(watcher, ring)
                assert watched.quick
                assert [punt.frame for punt in watched.drained.punts] == [ARP]

    def test_given_back_before_anybody_has_looked(self, kick: int) -> None:
        """It is named once for both."""
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick, (3, 1e6)) as ring:
                for count in range(1, 4):
                    send(rig, kick)
                    wait_drained(rig, count)
                send(rig, kick, ARP)
                wait_drained(rig, 4)
                watched = wait_returned(watcher, ring)
                assert watched.quick
                assert [punt.frame for punt in watched.drained.punts] == [ARP]
                assert watcher.returned() == []

    def test_not_for_kicks_without_frames(self, kick: int) -> None:
        """Nobody can have a poller by writing to an eventfd."""
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick, (3, 1e6)) as ring:
                for count in range(1, 6):
                    os.eventfd_write(kick, 1)
                    wait_kicked(rig, watcher, count)
                for count in range(1, 3):
                    send(rig, kick)
                    wait_drained(rig, count)
                assert ring.end() is None

    def test_not_for_a_kick_that_nobody_reads(self, kick: int) -> None:
        """Its count stays, and yet it was one kick and not one after another."""
        other_kick = os.eventfd(0, os.EFD_NONBLOCK)
        with open_rig() as rig, open_rig() as other, watching() as watcher:
            rig.start()
            other.start()
            with (
                watch(watcher, rig, kick, (3, 1e6)) as ring,
                watch(watcher, other, other_kick, key=8),
            ):
                send(rig, kick)
                wait_taken(rig, 1)
                # The watcher gets round to everything that epoll has several times.
                for count in range(1, 6):
                    send(other, other_kick)
                    wait_drained(other, count)
                assert ring.end() is None
            assert rig.port.stats().kicks == 1
        os.close(other_kick)


class PinnedPoller(Poller):
    def run(self) -> None:
        pin()
        super().run()


class PinnedWatcher(Watcher):
    def run(self) -> None:
        pin()
        super().run()


def pin() -> None:
    """Have the thread share one processor with all others that call this."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextlib.contextmanager
def busy_poller(kind: type[Poller] = Poller) -> Iterator[Poller]:
    """A poller that has a ring, in a thread."""
    with open_rig() as rig, running(kind(FOR_EVER)) as poller:
        rig.start()
        with hot(poller, rig):
            yield poller


@contextlib.contextmanager
def helping(poller: Poller, watcher: Watcher) -> Iterator[None]:
    poller.help(watcher)
    try:
        yield
    finally:
        poller.help(None)


class TestHelp:
    """A poller attends to kicks; the watcher's own thread does not run."""

    @pytest.fixture
    def watcher(self) -> Iterator[Watcher]:
        with contextlib.closing(Watcher()) as watcher:
            yield watcher

    def test_drains_at_each_kick(self, watcher: Watcher, kick: int) -> None:
        with (
            contextlib.closing(Network(mtu=65535)) as network,
            open_rig(network=network) as rig,
            receiver(network) as other,
            busy_poller() as poller,
            helping(poller, watcher),
        ):
            rig.start()
            other.offer(2048, 20)
            other.flush()
            with watch(watcher, rig, kick) as ring:
                for number in range(20):
                    send(rig, kick, to_other(b"%02d" % number))
                    wait_drained(rig, number + 1)
                    frame = other.rx.pop_frame()
                    assert frame is not None
                    assert frame.frame.endswith(b"%02d" % number)
                assert ring.end() is None
            assert rig.port.stats().kicks == 20

    def test_gives_back(self, watcher: Watcher, kick: int) -> None:
        with open_rig() as rig, busy_poller() as poller, helping(poller, watcher):
            rig.start()
            with watch(watcher, rig, kick) as ring:
                for number in range(5):
                    send(rig, kick, numbered_arp(number))
                    watched = wait_returned(watcher, ring)
                    assert [punt.frame for punt in watched.drained.punts] == [numbered_arp(number)]
                    watch_again(ring, kick)

    def test_offers(self, watcher: Watcher, kick: int) -> None:
        with open_rig() as rig, busy_poller() as poller, helping(poller, watcher):
            rig.start()
            with watch(watcher, rig, kick, (3, 1e6)) as ring:
                for count in range(1, 6):
                    send(rig, kick)
                    wait_drained(rig, count)
                assert wait_returned(watcher, ring).quick

    def test_more_kicks_than_at_one_look(self, watcher: Watcher) -> None:
        with busy_poller() as poller, contextlib.ExitStack() as stack:
            rigs = []
            for key in range(40):
                rig = stack.enter_context(open_rig())
                rig.start()
                kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                stack.callback(os.close, kick)
                stack.enter_context(watch(watcher, rig, kick, key=key))
                send(rig, kick)
                rigs.append(rig)
            with helping(poller, watcher):
                for rig in rigs:
                    wait_taken(rig, 1)

    def test_no_longer(self, watcher: Watcher, kick: int) -> None:
        """The kick is there for whoever waits for it then."""
        with open_rig() as rig, open_rig() as busy, running(Poller(FOR_EVER)) as poller:
            rig.start()
            busy.start()
            with hot(poller, busy), watch(watcher, rig, kick):
                poller.help(watcher)
                send(rig, kick)
                wait_drained(rig, 1)
                poller.help(None)
                send(rig, kick)
                for count in range(1, 6):
                    busy.send(DROPPED)
                    wait_taken(busy, count)
                assert rig.port.stats().tx_frames == 1
                poller.help(watcher)
                wait_taken(rig, 2)
                poller.help(None)

    def test_not_once_the_watcher_is_stopped(self, watcher: Watcher, kick: int) -> None:
        with open_rig() as rig, open_rig() as busy, running(Poller(FOR_EVER)) as poller:
            rig.start()
            busy.start()
            with hot(poller, busy), watch(watcher, rig, kick), helping(poller, watcher):
                watcher.stop()
                send(rig, kick)
                for count in range(1, 6):
                    busy.send(DROPPED)
                    wait_taken(busy, count)
                assert rig.port.stats().tx_frames == 0

    def test_lets_control_have_it(self, watcher: Watcher, kick: int) -> None:
        """Whatever is kicked meanwhile."""
        ended = threading.Event()

        def flood() -> None:
            while not ended.is_set():
                os.eventfd_write(kick, 1)
                os.eventfd_read(kick)

        with (
            open_rig() as rig,
            busy_poller() as poller,
            helping(poller, watcher),
            contextlib.ExitStack() as stack,
        ):
            rig.start()
            with watch(watcher, rig, kick) as ring:
                thread = threading.Thread(target=flood)
                thread.start()
                stack.callback(thread.join)
                stack.callback(ended.set)
                for _ in range(200):
                    assert ring.end() is None
                    ring.begin(kick, *NEVER_QUICK)

    def test_leaves_what_is_for_the_watcher_alone(self, kick: int) -> None:
        """That hears that it is to end though the poller, which has the processor, looks first."""
        with open_rig() as rig, busy_poller(PinnedPoller) as poller:
            rig.start()
            for count in range(1, 11):
                with (
                    contextlib.closing(PinnedWatcher()) as watcher,
                    contextlib.ExitStack() as stack,
                    at_work(watcher),
                ):
                    with watch(watcher, rig, kick):
                        send(rig, kick)
                        wait_drained(rig, count)
                    os.eventfd_read(kick)
                    stack.enter_context(helping(poller, watcher))


class TestEnd:
    def test_nothing_is_drained_afterwards(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                assert ring.end() is None
                send(rig, kick)
                ring.begin(kick, *NEVER_QUICK)
                wait_taken(rig, 1)

    def test_says_the_same_again(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with watch(watcher, rig, kick) as ring:
                send(rig, kick, ARP)
                assert wait_returned(watcher, ring) == ring.end()

    @pytest.mark.parametrize("closed", [0, 1, 2])
    def test_a_closed_ring_is_not_named(self, closed: int) -> None:
        """Whatever was given back before and after it."""
        with watching() as watcher, contextlib.ExitStack() as stack:
            for key in range(4):
                rig = stack.enter_context(open_rig())
                rig.start()
                kick = os.eventfd(0, os.EFD_NONBLOCK)
                stack.callback(os.close, kick)
                ring = stack.enter_context(watch(watcher, rig, kick, key=key))
                if key == closed:
                    close = ring.close
                if key == 3:
                    close()
                send(rig, kick, ARP)
                wait_taken(rig, 1)
                assert ring.end() is not None
            assert watcher.returned() == [key for key in range(4) if key != closed]


class TestErrors:
    def test_watched_twice(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with (
                watch(watcher, rig, kick) as ring,
                pytest.raises(OSError, match="busy"),
            ):
                ring.begin(kick, *NEVER_QUICK)

    def test_no_descriptor(self) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            with contextlib.closing(Watch(watcher, rig.port, KEY, 0.0)) as ring:
                with pytest.raises(OSError, match="descriptor"):
                    ring.begin(1 << 20, *NEVER_QUICK)
                assert ring.end() is None

    def test_stopped(self, kick: int) -> None:
        with open_rig() as rig, watching() as watcher:
            rig.start()
            watcher.stop()
            with (
                contextlib.closing(Watch(watcher, rig.port, KEY, 0.0)) as ring,
                pytest.raises(OSError, match="cancel"),
            ):
                ring.begin(kick, *NEVER_QUICK)
