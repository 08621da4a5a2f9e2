"""What the core records of frames: both directions, and what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet

from mvirt_net.errors import CoreError
from mvirt_net.ffi import MAX_FRAME, CaptureRing, Port
from mvirt_net.model import RX_QUEUE, TX_QUEUE, DropReason
from mvirt_net.pcapng import interface_description, section_header
from tests.harness.pcapng import INBOUND, OUTBOUND, PcapngFile
from tests.layouts import BOTH_LAYOUTS

from .rig import open_rig
from .test_ffi_forward import B4, ETHER, FROM_A4, FROM_A6, Pair, open_pair
from .test_ffi_limit import DHCP, ask, exhaust

pytestmark = BOTH_LAYOUTS

ROOM = 1 << 18
GOOD = FROM_A4 / UDP(sport=1, dport=2) / bytes(200)
SPOOFED = ETHER / IP(src="10.0.0.99", dst=B4) / UDP(sport=1, dport=2)


@contextmanager
def capturing(*ports: Port, snaplen: int = 65549) -> Iterator[CaptureRing]:
    with closing(CaptureRing(ROOM, snaplen)) as ring:
        for port in ports:
            ring.tap(port)
        yield ring


def taken(ring: CaptureRing, interfaces: int = 2) -> PcapngFile:
    """All that waits, as a file."""
    blocks = section_header("test")
    blocks += b"".join(interface_description(str(i), "", snaplen=0) for i in range(interfaces))
    while piece := ring.take():
        blocks += piece
    return PcapngFile.parse(blocks)


def seen(ring: CaptureRing) -> list[tuple[int, int, str]]:
    """Interface, direction and comment of each packet."""
    return [(p.interface, p.direction, p.comment) for p in taken(ring).packets]


def send(pair: Pair, packet: Packet, **how: object) -> None:
    pair.b.offer(2048)
    pair.send(packet, **how)


def test_routed_frame_is_recorded_as_sent_and_as_received() -> None:
    with open_pair() as pair, capturing(pair.a.port, pair.b.port) as ring:
        before = time.time_ns()
        send(pair, GOOD)
        sent, received = taken(ring).packets
        assert (sent.interface, sent.direction, sent.comment) == (0, OUTBOUND, "")
        assert (received.interface, received.direction, received.comment) == (1, INBOUND, "")
        assert sent.data == bytes(GOOD)
        [delivered] = pair.received()
        assert received.data == delivered.frame
        assert before <= sent.time_ns <= received.time_ns <= time.time_ns()


@pytest.mark.parametrize("tapped", [0, 1])
def test_short_way_hides_nothing(tapped: int) -> None:
    """The second packet of a flow takes it when neither end is tapped."""
    with open_pair() as pair:
        port = (pair.a.port, pair.b.port)[tapped]
        with capturing(port) as ring:
            for _ in range(3):
                send(pair, GOOD)
            assert seen(ring) == [(0, (OUTBOUND, INBOUND)[tapped], "")] * 3
        assert len(pair.received()) == 3


def test_frames_flow_on_while_captures_come_and_go() -> None:
    with open_pair() as pair:
        for tapped in (False, True, False, True):
            with ExitStack() as stack:
                ring = stack.enter_context(capturing(pair.a.port)) if tapped else None
                for _ in range(2):
                    send(pair, GOOD)
                if ring is not None:
                    assert len(seen(ring)) == 2
        assert len(pair.received()) == 8
        assert pair.a.port.stats().routed == 8


@pytest.mark.parametrize("packet", [GOOD, FROM_A6 / UDP() / bytes(1000)], ids=["ipv4", "ipv6"])
def test_capture_changes_nothing_for_the_receiver(packet: Packet) -> None:
    frames = []
    for captured in (False, True):
        with open_pair() as pair, ExitStack() as stack:
            if captured:
                stack.enter_context(capturing(pair.a.port, pair.b.port))
            for _ in range(2):
                send(pair, packet)
            frames.append([frame.frame for frame in pair.received()])
    assert frames[0] == frames[1]
    assert len(frames[0]) == 2


def test_dropped_frame_says_why() -> None:
    with open_pair() as pair, capturing(pair.a.port) as ring:
        pair.send(SPOOFED)
        pair.a.send(b"short")
        pair.a.drain()
        pair.a.port.enable_ring(TX_QUEUE, False)
        pair.send(GOOD)
        packets = taken(ring).packets
    assert [packet.comment for packet in packets] == [
        "dropped: source_address",
        "dropped: tx_too_short",
        "dropped: ring_disabled",
    ]
    assert [packet.data for packet in packets] == [bytes(SPOOFED), b"short", bytes(GOOD)]


@pytest.mark.parametrize(
    ("parts", "reason", "kept", "length"),
    [
        ([(0x1000, 65535), (0x1000, 65535)], "tx_too_long", MAX_FRAME, 2 * 65535 - 12),
        ([(0x1000, 65535)] * 100, "tx_too_long", MAX_FRAME, 100 * 65535 - 12),
        ([(0x1000, 0xFFFFFFFF)], "tx_buffer_invalid", 0, 0),
        ([(0x1000, 100), (1 << 40, 100)], "tx_buffer_invalid", 0, 0),
        ([(0x1000, 5)], "tx_too_short", 0, 0),
        ([(0x1000, 12), (0x1000, 0)], "tx_too_short", 0, 0),
    ],
)
def test_r27_chains_that_lie_are_captured_as_far_as_they_go(
    parts: list[tuple[int, int]], reason: str, kept: int, length: int
) -> None:
    with open_pair() as pair, capturing(pair.a.port) as ring:
        for _ in range(2):
            pair.a.tx.add_chain(parts, ())
            pair.a.drain()
        send(pair, GOOD)
        *lies, good = taken(ring).packets
    expected = (f"dropped: {reason}", kept, length)
    assert [(p.comment, len(p.data), p.length) for p in lies] == [expected] * 2
    assert good.data == bytes(GOOD)


def test_frame_that_the_receiver_cannot_take_is_dropped_there() -> None:
    with open_pair() as pair, capturing(pair.a.port, pair.b.port) as ring:
        pair.b.offer(64)
        pair.send(GOOD)
        assert seen(ring) == [(0, OUTBOUND, ""), (1, INBOUND, "dropped: rx_buffer_too_small")]


def test_frames_that_wait_are_recorded_when_they_are_delivered_or_given_up() -> None:
    with open_pair() as pair, capturing(pair.b.port) as ring:
        pair.send(GOOD)
        pair.send(GOOD)
        assert seen(ring) == []
        pair.b.offer(2048)
        assert len(pair.received()) == 1
        assert seen(ring) == [(0, INBOUND, "")]
        pair.b.port.stop_ring(RX_QUEUE)
        assert seen(ring) == [(0, INBOUND, "dropped: rx_ring_down")]


def test_injected_frame_without_a_guest() -> None:
    with open_rig() as rig, capturing(rig.port) as ring:
        assert not rig.port.enqueue(bytes(60))
        assert seen(ring) == [(0, INBOUND, "dropped: rx_ring_down")]


@pytest.mark.parametrize("reason", [None, *DropReason])
def test_punt_is_recorded_when_it_is_dealt_with(reason: DropReason | None) -> None:
    with open_rig() as rig, capturing(rig.port) as ring:
        rig.port.record_punt(b"question", reason)
        comment = "" if reason is None else f"dropped: {reason.name.lower()}"
        assert seen(ring) == [(0, OUTBOUND, comment)]


def test_frame_that_services_have_no_time_for_is_recorded_at_once() -> None:
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        with capturing(rig.port) as ring:
            ask(rig, DHCP, 1, 1.0)
            [packet] = taken(ring).packets
        assert (packet.data, packet.comment) == (DHCP, "dropped: punt_limit")


@pytest.mark.parametrize("snaplen", [1, 14, 60, 117, 242, 65549])
def test_snaplen_cuts_what_is_kept_and_says_so(snaplen: int) -> None:
    with open_pair() as pair, capturing(pair.a.port, snaplen=snaplen) as ring:
        send(pair, GOOD)
        [packet] = taken(ring).packets
        assert packet.data == bytes(GOOD)[:snaplen]
        assert packet.length == len(GOOD)


def test_full_ring_loses_frames_of_the_capture_alone() -> None:
    with open_pair() as pair, capturing(pair.a.port) as ring:
        packet = FROM_A4 / UDP() / bytes(1400)
        count = 240
        for _ in range(count):
            send(pair, packet)
        first = taken(ring).packets
        kept = len(first)
        assert 0 < kept < count
        assert ring.counts(0) == (count, count - kept)
        assert pair.a.port.stats().routed == count
        send(pair, packet)
        [after] = taken(ring).packets
        assert after.lost == count - kept
        send(pair, packet)
        [last] = taken(ring).packets
        assert last.lost == 0


def test_ring_wraps_round_with_frames_of_every_size() -> None:
    with open_rig() as rig, capturing(rig.port) as ring:
        frames = [bytes([i % 256]) * (14 + 37 * i % 1500) for i in range(1500)]
        for frame in frames:
            rig.port.record_punt(frame, None)
            [packet] = taken(ring).packets
            assert packet.data == frame


def test_event_comes_for_what_waits_after_all_was_taken() -> None:
    with open_rig() as rig, capturing(rig.port) as ring:
        for _ in range(2):
            assert ring.is_empty
            rig.port.record_punt(b"frame", None)
            rig.port.record_punt(b"frame", None)
            assert not ring.is_empty
            assert os.eventfd_read(ring.fd) == 1
            assert len(taken(ring).packets) == 2


def test_take_gives_whole_blocks_only() -> None:
    with open_rig() as rig, capturing(rig.port) as ring:
        for _ in range(3):
            rig.port.record_punt(bytes(100), None)
        assert ring.take(50) == b""
        one = ring.take(250)
        assert len(one) == 28 + 100 + 8 + 4 + 4
        assert len(ring.take()) == 2 * len(one)
        assert ring.is_empty


def test_port_has_four_captures_at_most() -> None:
    with open_rig() as rig, ExitStack() as stack:
        rings = [stack.enter_context(capturing(rig.port)) for _ in range(4)]
        with pytest.raises(CoreError, match="No space left"):
            stack.enter_context(capturing(rig.port))
        with pytest.raises(CoreError, match="File exists"):
            rings[0].tap(rig.port)
        rings[1].untap(rig.port)
        rig.port.record_punt(b"frame", None)
        assert [ring.is_empty for ring in rings] == [False, True, False, False]
        rings.append(stack.enter_context(capturing(rig.port)))


def test_port_that_is_closed_leaves_its_captures() -> None:
    with closing(CaptureRing(ROOM, 100)) as ring:
        with open_rig() as rig:
            assert ring.tap(rig.port) == 0
            rig.port.record_punt(b"frame", None)
        with open_rig() as rig:
            assert ring.tap(rig.port) == 1
            rig.port.record_punt(b"frame", None)
        assert [packet.interface for packet in taken(ring).packets] == [0, 1]
        assert ring.counts(0) == (1, 0)


def test_what_waits_can_be_thrown_away_and_is_lost() -> None:
    """Round the ring, so that blocks lie across its end."""
    with open_rig() as rig, open_rig() as other, capturing(rig.port, other.port) as ring:
        seen, lost = [0, 0], [0, 0]
        for i in range(400):
            for interface, port in ((0, rig.port), (1, other.port)):
                for _ in range(1 + interface):
                    port.record_punt(bytes(14 + 37 * i % 1500), None)
                    seen[interface] += 1
            if i % 3:
                taken(ring)
            else:
                ring.lose_waiting()
                lost[0], lost[1] = lost[0] + 1, lost[1] + 2
            assert ring.is_empty
        assert [ring.counts(0), ring.counts(1)] == list(zip(seen, lost, strict=True))
        assert ring.totals() == (sum(seen), sum(lost))


def test_what_was_taken_can_be_lost_too() -> None:
    with open_rig() as rig, capturing(rig.port) as ring:
        for _ in range(3):
            rig.port.record_punt(b"frame", None)
        ring.lose(0, 2)
        ring.lose(1, 5)
        assert ring.counts(0) == (3, 2)
        assert ring.counts(1) == (0, 0)
        assert ring.totals() == (3, 2)
