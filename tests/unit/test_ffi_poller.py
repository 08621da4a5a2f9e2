"""TX rings that a thread polls: what is taken, when they are given up, and what is left to do.

The thread is a real one. Tests wait for what it signals: the driver's call, or the ring's event.
Where time is not what a test is about, a poller has none (0) or all the patience of the world.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from mvirt_net.ffi import HotRing, Network, NextStep, Poller, Port
from mvirt_net.ffi._core import ffi, lib
from mvirt_net.model import RX_QUEUE, TX_QUEUE, MacAddress, PuntKind
from tests.harness.packets import GATEWAY_IP, GATEWAY_MAC, arp_request, ethernet_frame, udp_frame
from tests.harness.virtio import QUEUE_SIZE, vring_need_event

from .rig import EVENT_IDX, IPV4, MAC, RING_PACKED, VERSION_1, Rig, map_guest, open_rig

ALL_KINDS = pytest.mark.parametrize(
    "features",
    [
        pytest.param(VERSION_1, id="split"),
        pytest.param(VERSION_1 | EVENT_IDX, id="split-event-idx"),
        pytest.param(VERSION_1 | RING_PACKED, id="packed"),
        pytest.param(VERSION_1 | RING_PACKED | EVENT_IDX, id="packed-event-idx"),
    ],
)
"""Each has a way of its own to ask for kicks."""
FOR_EVER = 1e6
PATIENCE = 30
"""Seconds after which what a test waits for does not come any more."""

OTHER_MAC = MacAddress.parse("52:54:00:00:00:02")
OTHER_IPV4 = "10.0.0.6"
DROPPED = ethernet_frame(GATEWAY_MAC, MAC.packed, 0x88B5, bytes(50))
"""Without a word: no protocol that anybody knows."""
UNROUTABLE = udp_frame(MAC.packed, GATEWAY_MAC, IPV4, "192.0.2.1", 1, 2, b"")
"""An ICMP error says so."""
ARP = arp_request(MAC.packed, IPV4, GATEWAY_IP)


@contextlib.contextmanager
def running(poller: Poller) -> Iterator[Poller]:
    """The poller, in a thread that has ended afterwards."""
    thread = threading.Thread(target=poller.run)
    thread.start()
    try:
        yield poller
    finally:
        poller.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextlib.contextmanager
def hot(poller: Poller, rig: Rig) -> Iterator[HotRing]:
    with contextlib.closing(HotRing(poller, rig.port, 0.0)) as ring:
        yield ring


@contextlib.contextmanager
def polled(patience: float, **options: object) -> Iterator[tuple[Rig, HotRing]]:
    """A rig whose TX ring a thread polls."""
    with (
        open_rig(**options) as rig,  # type: ignore[arg-type]
        running(Poller(patience)) as poller,
    ):
        rig.start()
        with hot(poller, rig) as ring:
            yield rig, ring


def wait_for(fd: int) -> None:
    """Until an eventfd is signalled, which it is not any more then."""
    assert select.select([fd], [], [], PATIENCE)[0], "nothing happened"
    os.eventfd_read(fd)


def wait_released(ring: HotRing) -> None:
    while not ring.released:
        wait_for(ring.fd)


def wait_taken(rig: Rig, count: int) -> None:
    """Until the device has returned so many buffers."""
    while not rig.tx.enable_call(count):
        wait_for(rig.calls[TX_QUEUE])


def take_all(ring: HotRing) -> list[bytes]:
    """The frames for services that are there."""
    frames = []
    while (drained := ring.take()) is not None:
        frames += [punt.frame for punt in drained.punts]
    return frames


def drain_at(port: Port, now: float) -> list[bytes]:
    """The frames for services in what a ring has, by a clock that stands still."""
    frames, step = [], NextStep.CALL_AGAIN
    while step is NextStep.CALL_AGAIN:
        drained = port.drain(now)
        frames += [punt.frame for punt in drained.punts]
        step = drained.next
    return frames


def numbered_arp(number: int) -> bytes:
    """An ARP request for the gateway that can be told from others."""
    return ARP + number.to_bytes(4, "big")


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network(mtu=65535)
    yield network
    network.close()


@contextlib.contextmanager
def receiver(network: Network) -> Iterator[Rig]:
    """Another guest, for `to_other`."""
    with open_rig(network=network, mac=OTHER_MAC, routes=[OTHER_IPV4]) as rig:
        rig.start()
        yield rig


def to_other(payload: bytes, src: str = IPV4, mac: MacAddress = MAC) -> bytes:
    return udp_frame(mac.packed, GATEWAY_MAC, src, OTHER_IPV4, 1, 2, payload)


class TestPolling:
    @ALL_KINDS
    def test_takes_frames_without_a_kick(self, features: int) -> None:
        with polled(FOR_EVER, features=features) as (rig, _):
            for count in range(1, 20):
                rig.send(DROPPED)
                wait_taken(rig, count)
                assert not rig.tx.kick_needed()
            assert rig.port.stats().tx_frames == 19

    def test_takes_what_was_there_before(self) -> None:
        with open_rig() as rig, running(Poller(FOR_EVER)) as poller:
            rig.start()
            rig.send(DROPPED)
            with hot(poller, rig):
                wait_taken(rig, 1)

    def test_refuses_kicks_that_were_asked_for(self) -> None:
        with open_rig() as rig, running(Poller(FOR_EVER)) as poller:
            rig.start()
            assert rig.port.drain().next is NextStep.KICK
            assert rig.tx.kick_needed()
            limit = time.monotonic() + PATIENCE
            with hot(poller, rig):
                while rig.tx.kick_needed():
                    assert time.monotonic() < limit

    def test_forwards_in_order(self, network: Network) -> None:
        with receiver(network) as other, polled(FOR_EVER, network=network) as (rig, _):
            other.offer(2048, 100)
            for number in range(100):
                rig.send(to_other(number.to_bytes(4, "big")))
            wait_taken(rig, 100)
            got = []
            while (frame := other.rx.pop_frame()) is not None:
                got.append(int.from_bytes(frame.frame[42:46], "big"))
            assert got == list(range(100))

    def test_says_who_has_a_backlog(self, network: Network) -> None:
        with receiver(network) as other, polled(FOR_EVER, network=network) as (rig, ring):
            rig.send(to_other(b""))
            wait_for(ring.fd)
            drained = ring.take()
            assert drained is not None
            assert drained.woken == [(other.port, 0)]
            assert other.port.backlog == 1

    def test_says_so_though_nobody_takes_what_is_for_services(self, network: Network) -> None:
        with receiver(network) as other, polled(FOR_EVER, network=network) as (rig, ring):
            rig.send(ARP)
            wait_for(ring.fd)
            rig.send(ARP)
            rig.send(to_other(b""))
            wait_for(ring.fd)
            assert ring.take_woken() == [(other.port, 0)]
            assert ring.take_woken() == []
            frames = take_all(ring)
            while len(frames) < 2:
                wait_for(ring.fd)
                frames += take_all(ring)

    def test_says_so_though_it_comes_with_what_is_for_services(self, network: Network) -> None:
        with receiver(network) as other, polled(FOR_EVER, network=network) as (rig, ring):
            rig.send(ARP)
            wait_for(ring.fd)
            assert take_all(ring) == [ARP]
            rig.send(ARP, publish=False)
            rig.send(to_other(b""))
            wait_for(ring.fd)
            assert ring.take_woken() == [(other.port, 0)]
            while not (frames := take_all(ring)):
                wait_for(ring.fd)
            assert frames == [ARP]

    def test_gets_no_signals(self) -> None:
        before = set(tasks())
        with polled(FOR_EVER) as (rig, _):
            rig.send(DROPPED)
            wait_taken(rig, 1)
            # Of those that came meanwhile, it is the one that has blocked something.
            [status] = [
                text
                for task in set(tasks()) - before
                if "SigBlk:\t0000000000000000" not in (text := read_status(task))
            ]
        blocked = int(status.partition("SigBlk:\t")[2].split()[0], 16)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1
        assert not blocked >> (signal.SIGBUS - 1) & 1


def tasks() -> list[str]:
    return os.listdir("/proc/self/task")  # noqa: PTH208


def read_status(task: str) -> str:
    with open(f"/proc/self/task/{task}/status") as file:  # noqa: PTH123
        return file.read()


def event_field(rig: Rig) -> tuple[int, int]:
    """Where the device says of the TX ring which kicks it wants: address and length."""
    used = rig.tx.used_ring
    if rig.features & RING_PACKED:
        return used, 4
    return (used + 4 + 8 * rig.size, 2) if rig.features & EVENT_IDX else (used, 2)


class TestKicks:
    """None is asked for while a ring is hot, and that is said once."""

    @ALL_KINDS
    @pytest.mark.parametrize("batch", [2, 3, 4])
    def test_none_for_a_batch_that_is_taken_as_it_comes(self, features: int, batch: int) -> None:
        """As with Linux's xmit_more: each frame is there to be taken before the driver looks."""
        with polled(FOR_EVER, features=features) as (rig, _):
            count = 0
            for _ in range(20):
                for _ in range(batch):
                    rig.send(DROPPED)
                    count += 1
                    wait_taken(rig, count)
                assert not rig.tx.kick_needed()

    @pytest.mark.parametrize(
        ("size", "behind", "step"),
        [
            pytest.param(QUEUE_SIZE, QUEUE_SIZE, 200, id="small"),
            pytest.param(8192, 8192, 4096, id="large"),
            pytest.param(32768, 16383, 4096, id="largest"),
        ],
    )
    @pytest.mark.parametrize("base", [0, 0x7FF0, 0xFFF0])
    def test_none_all_round_the_counter(self, base: int, size: int, behind: int, step: int) -> None:
        """Of a driver that is as far ahead as its ring lets it be, and looks that late."""
        with (
            open_rig(features=VERSION_1 | EVENT_IDX, size=size) as rig,
            running(Poller(FOR_EVER)) as poller,
        ):
            rig.start(base)
            # All entries of the ring name head 0, so a store of the index sends as many frames.
            rig.send(DROPPED, publish=False)
            with hot(poller, rig):
                for taken in range(base + step, base + 0x14000, step):
                    rig.tx.last_used = (taken - step) & 0xFFFF
                    rig.tx.write_avail_idx(taken)
                    wait_taken(rig, step)
                    event = rig.tx.get_avail_event()
                    old, new = (taken - behind) & 0xFFFF, (taken + size) & 0xFFFF
                    assert not vring_need_event(event, new, old)

    @ALL_KINDS
    def test_refused_once(self, features: int) -> None:
        """What the driver itself writes there stays, for it is the driver that it harms."""
        with polled(FOR_EVER, features=features) as (rig, ring):
            rig.send(DROPPED)
            wait_taken(rig, 1)
            addr, length = event_field(rig)
            rig.guest.write(addr, b"\x5a" * length)
            for count in range(2, 50):
                rig.send(DROPPED)
                wait_taken(rig, count)
            ring.close()
            assert rig.guest.read(addr, length) == b"\x5a" * length
            rig.drain()
            rig.tx.kick_needed()
            rig.send(DROPPED)
            assert rig.tx.kick_needed()

    @ALL_KINDS
    def test_refused_where_a_ring_has_moved_to(self, features: int) -> None:
        with polled(FOR_EVER, features=features) as (rig, _):
            rig.send(DROPPED)
            wait_taken(rig, 1)
            rig.port.move_ring(TX_QUEUE, rig.lay_out(TX_QUEUE, base=1))
            rig.send(DROPPED)
            wait_taken(rig, 1)
            assert not rig.tx.kick_needed()

    @ALL_KINDS
    def test_refused_in_other_memory(self, features: int) -> None:
        """The frontend says of the same addresses that they are elsewhere."""
        with polled(FOR_EVER, features=features) as (rig, _):
            rig.send(DROPPED)
            wait_taken(rig, 1)
            addr, length = event_field(rig)
            rig.guest.write(addr, b"\0" * length)
            with contextlib.closing(map_guest(rig.guest, rig.fault_fd)) as table:
                rig.port.set_memory(table)
                rig.send(DROPPED)
                wait_taken(rig, 2)
                rig.port.set_memory(rig.table)
            assert rig.guest.read(addr, length) != b"\0" * length

    @ALL_KINDS
    def test_refused_by_a_ring_that_has_started_again(self, features: int) -> None:
        with open_rig(features=features) as rig, running(Poller(FOR_EVER)) as poller:
            for _ in range(2):
                rig.start()
                with hot(poller, rig):
                    rig.send(DROPPED)
                    wait_taken(rig, 1)
                    assert not rig.tx.kick_needed()
                for queue in (RX_QUEUE, TX_QUEUE):
                    rig.port.stop_ring(queue)


class TestGivingUp:
    def test_at_once_without_patience(self) -> None:
        with polled(0) as (rig, ring):
            wait_released(ring)
            assert ring.take() is None
            rig.send(DROPPED)
            rig.drain()
            assert rig.port.stats().tx_frames == 1

    def test_after_a_while(self) -> None:
        with polled(0.001) as (_, ring):
            wait_released(ring)

    def test_not_before_it_was_there_for_a_while(self) -> None:
        with open_rig() as rig, running(Poller(0)) as poller:
            rig.start()
            with contextlib.closing(HotRing(poller, rig.port, 0.0, FOR_EVER)) as ring:
                for count in range(1, 20):
                    rig.send(DROPPED)
                    wait_taken(rig, count)
                assert not ring.released

    def test_not_while_frames_come(self) -> None:
        """Each one renews the patience. That this thread was kept from sending for as long as that
        shows on the poller's own clock: on a slow machine the test says less, but never fails."""
        patience, fresh = 0.05, time.monotonic()
        end = fresh + 3 * patience
        with polled(patience) as (rig, ring):
            address = rig.buffer(2048)
            while (sent := time.monotonic()) < end:
                rig.tx.add_tx_buffer(address, DROPPED)
                while rig.tx.pop_used() is None:
                    if ring.released:
                        assert time.monotonic() - fresh >= patience
                        return
                fresh = sent

    def test_kicks_are_for_who_drains_next(self) -> None:
        with polled(0) as (rig, ring):
            wait_released(ring)
            ring.close()
            rig.drain()
            assert rig.tx.kick_needed()

    @ALL_KINDS
    @pytest.mark.parametrize("patience", [0.0, 1e-6, 20e-6])
    def test_no_frame_is_forgotten(self, patience: float, features: int) -> None:
        """Sent at any moment of a release, it is taken by the poller or by the drain after."""
        with open_rig(features=features) as rig, running(Poller(patience)) as poller:
            rig.start()
            address = rig.buffer(2048)
            for count in range(1, 501):
                with hot(poller, rig) as ring:
                    rig.tx.add_tx_buffer(address, DROPPED)
                    wait_released(ring)
                rig.drain()
                assert rig.tx.pop_used() is not None
                assert rig.port.stats().tx_frames == 2 * count - 1
                rig.tx.kick_needed()
                rig.tx.add_tx_buffer(address, DROPPED)
                assert rig.tx.kick_needed()
                rig.drain()
                assert rig.tx.pop_used() is not None

    def test_a_ring_that_is_stopped(self) -> None:
        with polled(FOR_EVER) as (rig, ring):
            rig.send(DROPPED)
            wait_taken(rig, 1)
            assert rig.port.stop_ring(TX_QUEUE) == 1
            wait_released(ring)

    def test_a_ring_that_does_not_run(self) -> None:
        with open_rig() as rig, running(Poller(FOR_EVER)) as poller, hot(poller, rig) as ring:
            wait_released(ring)

    def test_a_ring_that_is_broken(self) -> None:
        with polled(FOR_EVER) as (rig, ring):
            rig.tx.write_avail_idx(0x8000)
            wait_released(ring)
            assert rig.port.ring_broken(TX_QUEUE)
            assert rig.erred(TX_QUEUE)

    def test_when_the_poller_stops(self) -> None:
        poller = Poller(FOR_EVER)
        with open_rig() as rig:
            rig.start()
            with running(poller), hot(poller, rig) as ring:
                poller.stop()
                wait_released(ring)
            with hot(poller, rig) as ring:
                wait_released(ring)

    def test_without_a_thread(self) -> None:
        """Of a poller that never runs a ring can be had back all the same."""
        with open_rig() as rig:
            rig.start()
            rig.send(DROPPED)
            with hot(Poller(FOR_EVER), rig) as ring:
                assert not ring.released
            assert rig.port.stats().tx_frames == 0


class TestPatience:
    """By a clock that is given to it: 50 units are the usual time."""

    USUAL, BEGIN = 50, 1_000_000

    def begin(self, usual: int = USUAL) -> Any:
        patience = ffi.new("struct mv_patience *")
        lib.mv_patience_begin(patience, usual, self.BEGIN)
        return patience

    def lasts(self, patience: Any, now: int) -> int:
        """How long it waits for packets that do not come."""
        assert not lib.mv_patience_ends(patience, now) or patience.usual == 0
        waited = 0
        while not lib.mv_patience_ends(patience, now + waited):
            waited += 1
        return waited

    def busy(self, patience: Any, gap: int, times: int) -> int:
        """So many times packets, and nothing in between; what the clock is then."""
        now = self.BEGIN
        for _ in range(times):
            lib.mv_patience_ends(patience, now + 1)
            now += gap
            lib.mv_patience_busy(patience, now)
        return now

    def test_of_a_ring_without_packets_is_the_usual_one(self) -> None:
        assert self.lasts(self.begin(), self.BEGIN) == self.USUAL

    def test_grows_by_an_eighth_of_the_time_in_which_packets_come(self) -> None:
        patience = self.begin()
        now = self.busy(patience, 40, 20)
        assert self.lasts(patience, now) == self.USUAL + 20 * 40 // 8

    def test_grows_no_longer_than_twenty_times(self) -> None:
        patience = self.begin()
        now = self.busy(patience, 40, 10_000)
        assert self.lasts(patience, now) == self.USUAL + 20 * self.USUAL

    def test_never_grows_by_more_than_a_millisecond(self) -> None:
        patience = self.begin(10**9)
        self.busy(patience, 10**8, 1000)
        assert patience.earned == 10**6

    def test_is_paid_for(self) -> None:
        """Packets that come late use up what was earned, and earn nothing."""
        patience = self.begin()
        now = self.busy(patience, 40, 20)
        assert not lib.mv_patience_ends(patience, now)
        now += self.USUAL + 30
        assert not lib.mv_patience_ends(patience, now)
        lib.mv_patience_busy(patience, now)
        assert self.lasts(patience, now) == self.USUAL + 100 - 30
        lib.mv_patience_busy(patience, now + 1000)
        assert self.lasts(patience, now + 1000) == self.USUAL

    def test_there_is_none_without_a_usual_one(self) -> None:
        patience = self.begin(0)
        assert self.lasts(patience, self.busy(patience, 1, 1000)) == 0


class TestClosing:
    def test_leaves_the_port_alone(self) -> None:
        with polled(FOR_EVER) as (rig, ring):
            rig.send(DROPPED)
            wait_taken(rig, 1)
            ring.close()
            rig.send(DROPPED)
            assert rig.port.stats().tx_frames == 1
            ring.close()

    def test_says_whether_it_is_hot(self) -> None:
        with polled(FOR_EVER) as (rig, ring):
            assert rig.port.hot_pairs
            ring.close()
            assert not rig.port.hot_pairs
            assert rig.port.takeovers == 1

    def test_wakes_who_was_left_with_a_backlog(self, network: Network) -> None:
        with receiver(network) as other, polled(FOR_EVER, network=network) as (rig, ring):
            woken: list[int] = []
            other.port.wake = woken.append
            rig.send(to_other(b""))
            wait_taken(rig, 1)
            ring.close()
            assert woken == [0]

    def test_of_a_receiver_that_is_gone_meanwhile(self, network: Network) -> None:
        with polled(FOR_EVER, network=network) as (rig, ring):
            with receiver(network):
                rig.send(to_other(b""))
                wait_taken(rig, 1)
            drained = ring.take()
            assert drained is None or drained.woken == []

    def test_one_of_several(self) -> None:
        """The others are polled on, whichever of them goes."""
        with contextlib.ExitStack() as stack:
            rigs = [stack.enter_context(open_rig()) for _ in range(3)]
            poller = stack.enter_context(running(Poller(FOR_EVER)))
            rings = []
            for rig in rigs:
                rig.start()
                rings.append(stack.enter_context(hot(poller, rig)))
            for left in range(3):
                for rig in rigs[left:]:
                    rig.send(DROPPED)
                    wait_taken(rig, left + 1)
                rings[left].close()


class TestMoving:
    def test_the_other_poller_goes_on(self) -> None:
        with polled(FOR_EVER) as (rig, ring), running(Poller(FOR_EVER)) as other:
            first = ring._poller
            rig.send(DROPPED)
            wait_taken(rig, 1)
            ring.move(other)
            first.stop()
            rig.send(DROPPED)
            wait_taken(rig, 2)
            assert not ring.released
            ring.close()
            rig.send(DROPPED)
            assert rig.port.stats().tx_frames == 2

    def test_leaves_the_others_where_they_are(self) -> None:
        with (
            polled(FOR_EVER) as (rig, ring),
            open_rig() as staying,
            running(Poller(FOR_EVER)) as other,
        ):
            staying.start()
            with hot(ring._poller, staying):
                ring.move(other)
                for one in (rig, staying):
                    one.send(DROPPED)
                    wait_taken(one, 1)

    def test_to_a_poller_that_has_stopped(self) -> None:
        with polled(FOR_EVER) as (_, ring):
            other = Poller(FOR_EVER)
            other.stop()
            ring.move(other)
            assert ring.released

    def test_of_a_ring_that_was_given_up(self) -> None:
        with (
            polled(FOR_EVER) as (rig, ring),
            open_rig() as another,
            running(Poller(FOR_EVER)) as other,
        ):
            another.start()
            ring._poller.stop()
            assert ring.released
            ring.move(other)
            rig.send(DROPPED)
            # Its other rings have had their turns since.
            with hot(other, another):
                for count in range(1, 4):
                    another.send(DROPPED)
                    wait_taken(another, count)
            assert rig.port.stats().tx_frames == 0


class TestServices:
    def test_frames_for_services(self) -> None:
        with polled(FOR_EVER) as (rig, ring):
            rig.send(ARP)
            wait_for(ring.fd)
            drained = ring.take()
            assert drained is not None
            [punt] = drained.punts
            assert (punt.kind, punt.frame) == (PuntKind.ARP, ARP)
            assert ring.take() is None

    def test_more_while_they_are_answered(self) -> None:
        with polled(FOR_EVER) as (rig, ring):
            frames = [numbered_arp(number) for number in range(40)]
            for count, frame in enumerate(frames, 1):
                rig.send(frame)
                wait_taken(rig, count)
            got: list[bytes] = []
            while len(got) < len(frames):
                wait_for(ring.fd)
                got += take_all(ring)
            assert got == frames
            assert not ring.released

    def test_more_than_anybody_answers(self) -> None:
        """Who floods the gateway gets its ring back, and no frame is lost or comes twice."""
        with polled(FOR_EVER) as (rig, ring):
            frames = [numbered_arp(number) for number in range(200)]
            for frame in frames:
                rig.send(frame)
            wait_released(ring)
            got = take_all(ring)
            assert 64 < len(got) <= 128
            got += [punt.frame for punt in rig.drain()]
            assert got == frames

    def test_errors_are_limited_by_the_clock_of_the_drains(self) -> None:
        """Both count the same time, wherever it began, so that neither takes the other's for its
        past."""
        with open_rig() as rig, running(Poller(0)) as poller:
            rig.start()
            for _ in range(60):
                rig.send(UNROUTABLE)
            assert len(drain_at(rig.port, 1e9)) == 50
            with contextlib.closing(HotRing(poller, rig.port, 1e9 + 1)) as ring:
                for _ in range(60):
                    rig.send(UNROUTABLE)
                wait_released(ring)
                after = take_all(ring)
            assert len(after + drain_at(rig.port, 1e9 + 1)) >= 50


class TestFairness:
    def test_a_flood_waits_its_turn(self, network: Network) -> None:
        """A frame of another ring comes after one turn of a flood, 1 MiB."""
        flood = to_other(bytes(65000))
        third_mac, third = MacAddress.parse("52:54:00:00:00:03"), "10.0.0.7"
        with (
            receiver(network) as other,
            open_rig(network=network) as flooding,
            open_rig(network=network, mac=third_mac, routes=[third]) as modest,
        ):
            address = other.buffer(66000)
            for _ in range(64):
                other.rx.add_rx_buffer(address, 66000)
            flooding.start()
            modest.start()
            address = flooding.buffer(66000)
            for _ in range(60):
                flooding.tx.add_tx_buffer(address, flood)
            modest.send(to_other(b"", third, third_mac))
            poller = Poller(0)
            with hot(poller, flooding) as first, hot(poller, modest) as second, running(poller):
                wait_released(first)
                wait_released(second)
            lengths = []
            while (used := other.rx.pop_used()) is not None:
                lengths.append(used.length)
            assert len(lengths) == 61
            assert lengths.index(min(lengths)) <= 17


class TestChanges:
    def test_of_memory(self) -> None:
        with polled(FOR_EVER) as (rig, _):
            tables = [map_guest(rig.guest, rig.fault_fd), rig.table]
            for count in range(1, 21):
                rig.port.set_memory(tables[count % 2])
                rig.send(DROPPED)
                wait_taken(rig, count)
            rig.port.set_memory(rig.table)
            tables[0].close()

    def test_memory_that_vanishes(self) -> None:
        """The fault is the poller's thread's; the other guest does not notice."""
        with open_rig() as good, polled(FOR_EVER) as (rig, ring):
            good.start()
            with hot(ring._poller, good):
                good.send(DROPPED)
                wait_taken(good, 1)
                [info] = rig.guest.get_region_info()
                os.ftruncate(info.fd, 0)
                wait_for(rig.fault_fd)
                os.ftruncate(info.fd, info.size)
                good.send(DROPPED)
                wait_taken(good, 2)

    def test_of_routes(self, network: Network) -> None:
        with receiver(network) as other, polled(FOR_EVER, network=network) as (rig, _):
            other.offer(2048, 64)
            for count in range(1, 20):
                other.port.set_routes([])
                other.port.set_routes([ip_network(OTHER_IPV4)])
                rig.send(to_other(b""))
                wait_taken(rig, count)
                assert other.port.stats().rx_frames == count


def test_several_pollers(network: Network) -> None:
    """Two threads send to one receiver; all arrives, each sender's in its order."""
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(receiver(network))
        other.offer(128, 200)
        senders = []
        for number in range(2):
            mac, ip = MacAddress(bytes([2, 0, 0, 0, 1, number])), f"10.0.0.{20 + number}"
            rig = stack.enter_context(open_rig(network=network, mac=mac, routes=[ip]))
            rig.start()
            senders.append(rig)
            for count in range(100):
                payload = bytes([number, count])
                rig.tx.add_tx_buffer(rig.buffer(128), to_other(payload, ip, mac), publish=False)
            stack.enter_context(hot(stack.enter_context(running(Poller(FOR_EVER))), rig))
        for rig in senders:
            rig.tx.publish()
        for rig in senders:
            wait_taken(rig, 100)
        got: dict[int, list[int]] = {0: [], 1: []}
        while (frame := other.rx.pop_frame()) is not None:
            got[frame.frame[42]].append(frame.frame[43])
        assert got == {0: list(range(100)), 1: list(range(100))}


def test_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: int) -> int:
        raise OSError(24, "Too many open files")

    with open_rig() as rig:
        monkeypatch.setattr(os, "eventfd", refuse)
        with pytest.raises(OSError, match="Too many"):
            HotRing(Poller(0), rig.port, 0.0)
        monkeypatch.undo()
        assert not rig.port.hot_pairs


def test_port_is_cold_at_first() -> None:
    with contextlib.closing(Network()) as network:
        port = Port(network, MAC)
        assert (port.hot_pairs, port.takeovers) == ((), 0)
        port.close()
