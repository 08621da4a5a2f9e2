"""The short way makes no difference but in time.

A packet goes by it only when another one of its flow was found good before. So each packet here is
sent twice: as the first one between two guests, and behind a good packet of its flow. What becomes
of it must be the same.
"""

from __future__ import annotations

from functools import reduce
from operator import truediv
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from mvirt_net.ffi import Punt
from tests.harness.virtio import VirtioNetHdr

from .rig import EVENT_IDX, MRG_RXBUF, RING_PACKED, Rig
from .test_ffi_ahead import TARGET, two_in_one_memory
from .test_ffi_forward import (
    A4,
    A6,
    ALL_GUEST,
    ALL_HOST,
    B4,
    B6,
    CSUM,
    ETHER,
    FROM_A4,
    FROM_A6,
    GUEST_CSUM,
    NEEDS_CSUM,
    Pair,
    assert_right,
    open_pair,
)

DATAGRAM = UDP(sport=1, dport=2)
GOOD = {4: bytes(FROM_A4 / DATAGRAM / bytes(100)), 6: bytes(FROM_A6 / DATAGRAM / bytes(100))}


@attrs.frozen
class Setting:
    """What both guests have agreed to, and what the receiver offers.

    Args:
        buffers: sizes of its receive buffers, header included.
    """

    buffers: tuple[int, ...] = (2048, 2048)
    sends: int = 0
    takes: int = 0
    mtu: int = 1500


PLAIN = Setting()


@attrs.frozen
class Fate:
    """What became of a packet."""

    received: list[bytes]
    """With headers, by buffer."""
    drops: list[dict[str, int]]
    """At the sender and at the receiver."""
    punts: list[Punt]
    counted: tuple[int, ...]
    """Frames and bytes: sent, routed, received."""
    buffers_left: int
    backlog: int


def buffers_used(rig: Rig) -> list[bytes]:
    """What the device has written into each buffer that it gave back."""
    rig.flush()
    used = []
    while (buffer := rig.rx.pop_used()) is not None:
        ((where, _),) = buffer.writable
        used.append(rig.guest.read(where, buffer.length))
    return used


def counters(pair: Pair) -> tuple[int, ...]:
    a, b = pair.a.port.stats(), pair.b.port.stats()
    return (a.tx_frames, a.tx_bytes, a.routed, b.rx_frames, b.rx_bytes)


def fate(frame: bytes, setting: Setting, first: bytes | None, **how: Any) -> Fate:
    """What becomes of a frame, behind another one (which is none of it)."""
    with open_pair(sends=setting.sends, takes=setting.takes, mtu=setting.mtu) as pair:
        if first is not None:
            pair.b.offer(2048)
            pair.send(first)
            assert len(pair.received()) == 1
        before = counters(pair)
        for size in setting.buffers:
            pair.b.offer(size)
        punts = pair.send(frame, **how)
        return Fate(
            buffers_used(pair.b),
            [pair.a.drops(), pair.b.drops()],
            punts,
            tuple(now - then for now, then in zip(counters(pair), before, strict=True)),
            pair.b.rx.outstanding,
            pair.b.port.backlog,
        )


def same_fate(frame: bytes, setting: Setting = PLAIN, family: int = 4, **how: Any) -> Fate:
    """Assert that it makes no difference whether the flow is known; what becomes of the frame."""
    fates = [fate(frame, setting, first, **how) for first in (None, GOOD[family])]
    assert fates[0] == fates[1]
    return fates[0]


FRAMES: dict[str, Packet] = {
    "whole": FROM_A4 / DATAGRAM / bytes(100),
    "short": FROM_A4 / UDP(sport=1, dport=2),
    "as short as it gets": FROM_A4 / Raw(bytes(20)),
    "long": FROM_A4 / DATAGRAM / bytes(range(250)) / bytes(1222),
    "don't fragment": ETHER / IP(src=A4, dst=B4, flags="DF") / DATAGRAM,
    "padded by Ethernet": FROM_A4 / DATAGRAM / Raw(b"data") / Raw(bytes(0)),
    "TTL 2": ETHER / IP(src=A4, dst=B4, ttl=2) / DATAGRAM / bytes(40),
    "TTL 1": ETHER / IP(src=A4, dst=B4, ttl=1) / DATAGRAM / bytes(40),
    "TTL 0": ETHER / IP(src=A4, dst=B4, ttl=0) / DATAGRAM / bytes(40),
    "wrong checksum": ETHER / IP(src=A4, dst=B4, chksum=1) / DATAGRAM / bytes(40),
    "options": ETHER / IP(src=A4, dst=B4, options=[IPOption_NOP()] * 4) / DATAGRAM / bytes(40),
    "first fragment": ETHER / IP(src=A4, dst=B4, flags="MF") / DATAGRAM / bytes(40),
    "later fragment": ETHER / IP(src=A4, dst=B4, frag=3) / bytes(40),
    "ping of death": ETHER / IP(src=A4, dst=B4, frag=8191) / bytes(40),
    "reserved flag": ETHER / IP(src=A4, dst=B4, flags=4) / DATAGRAM / bytes(40),
    "length beyond the frame": ETHER / IP(src=A4, dst=B4, len=200) / DATAGRAM / bytes(40),
    "length below the header": ETHER / IP(src=A4, dst=B4, len=19) / DATAGRAM / bytes(40),
    "version 5": ETHER / IP(src=A4, dst=B4, version=5) / DATAGRAM / bytes(40),
    "header of 16 bytes": ETHER / IP(src=A4, dst=B4, ihl=4) / DATAGRAM / bytes(40),
    "other source": ETHER / IP(src="10.0.0.9", dst=B4) / DATAGRAM / bytes(40),
    "other target": ETHER / IP(src=A4, dst="10.0.0.9") / DATAGRAM / bytes(40),
    "other source MAC": Ether(src="52:54:00:00:00:0b", dst=ETHER.dst)
    / IP(src=A4, dst=B4)
    / DATAGRAM,
    "other target MAC": Ether(src=ETHER.src, dst="02:00:00:00:00:02")
    / IP(src=A4, dst=B4)
    / DATAGRAM,
    "to all": Ether(src=ETHER.src, dst="ff:ff:ff:ff:ff:ff") / IP(src=A4, dst=B4) / DATAGRAM,
    "too long for the link": FROM_A4 / DATAGRAM / bytes(1600),
    "too long, don't fragment": ETHER / IP(src=A4, dst=B4, flags="DF") / DATAGRAM / bytes(1600),
    "of another type": Ether(src=ETHER.src, dst=ETHER.dst, type=0x86DD)
    / IP(src=A4, dst=B4)
    / bytes(40),
}
FRAMES6: dict[str, Packet] = {
    "whole": FROM_A6 / DATAGRAM / bytes(100),
    "short": FROM_A6,
    "long": FROM_A6 / DATAGRAM / bytes(range(250)) / bytes(1202),
    "hop limit 2": ETHER / IPv6(src=A6, dst=B6, hlim=2) / DATAGRAM,
    "hop limit 1": ETHER / IPv6(src=A6, dst=B6, hlim=1) / DATAGRAM / bytes(40),
    "hop limit 0": ETHER / IPv6(src=A6, dst=B6, hlim=0) / DATAGRAM / bytes(40),
    "traffic class and flow label": ETHER / IPv6(src=A6, dst=B6, tc=0xFF, fl=0xFFFFF) / DATAGRAM,
    "extension header": FROM_A6 / IPv6ExtHdrDestOpt() / DATAGRAM / bytes(40),
    "source route": FROM_A6 / IPv6ExtHdrRouting(addresses=["fd00::9"]) / DATAGRAM,
    "nine extension headers": reduce(truediv, [FROM_A6, *[IPv6ExtHdrDestOpt()] * 9]),
    "fragment": FROM_A6 / IPv6ExtHdrFragment(offset=3) / bytes(40),
    "length beyond the frame": ETHER / IPv6(src=A6, dst=B6, plen=200) / DATAGRAM / bytes(40),
    "length 0": ETHER / IPv6(src=A6, dst=B6, plen=0) / DATAGRAM / bytes(40),
    "version 4": ETHER / IPv6(src=A6, dst=B6, version=4) / DATAGRAM / bytes(40),
    "other source": ETHER / IPv6(src="fd00::9", dst=B6) / DATAGRAM,
    "other half of the source": ETHER / IPv6(src="fd01::1", dst=B6) / DATAGRAM,
    "other target": ETHER / IPv6(src=A6, dst="fd00::9") / DATAGRAM,
    "other half of the target": ETHER / IPv6(src=A6, dst="fd01::2") / DATAGRAM,
    "too long for the link": FROM_A6 / DATAGRAM / bytes(1600),
    "of another type": Ether(src=ETHER.src, dst=ETHER.dst, type=0x0800)
    / IPv6(src=A6, dst=B6)
    / bytes(40),
}


@pytest.mark.parametrize("name", FRAMES)
def test_ipv4(name: str) -> None:
    same_fate(bytes(FRAMES[name]))


@pytest.mark.parametrize("name", FRAMES6)
def test_ipv6(name: str) -> None:
    same_fate(bytes(FRAMES6[name]), family=6)


@pytest.mark.parametrize("family", [4, 6])
def test_what_ethernet_padded_is_left_out(family: int) -> None:
    whole = same_fate(GOOD[family], family=family)
    padded = same_fate(GOOD[family] + bytes(30), family=family)
    assert padded.received == whole.received
    assert whole.received


@pytest.mark.parametrize("length", [13, 14, 33, 34, 53, 54])
@pytest.mark.parametrize("family", [4, 6])
def test_short_frames(length: int, family: int) -> None:
    same_fate(GOOD[family][:length], family=family)


@pytest.mark.parametrize("length", [0, 11, 12, 25, 26, 45, 46, 65, 66])
@pytest.mark.parametrize("family", [4, 6])
def test_what_lies_behind_a_short_frame_is_not_part_of_it(length: int, family: int) -> None:
    """A chain that ends within the headers; in memory they go on."""
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        pair.send(GOOD[family])
        packet = VirtioNetHdr().pack() + GOOD[family]
        where = pair.a.buffer(len(packet))
        pair.a.guest.write(where, packet)
        pair.a.tx.add_chain([(where, length)], ())
        pair.a.drain()
        assert len(pair.received()) == 1
        assert sum(pair.a.drops().values()) == 1


@pytest.mark.parametrize(
    "buffers",
    [(), (11,), (12,), (12 + 142,), (12 + 141, 2048), (11, 2048), (12 + 141,), (2048, 11)],
    ids=str,
)
@pytest.mark.parametrize("takes", [0, MRG_RXBUF, EVENT_IDX])
def test_buffers_of_any_size(buffers: tuple[int, ...], takes: int) -> None:
    assert len(GOOD[4]) == 142
    same_fate(GOOD[4], Setting(buffers, takes=takes))


HEADERS = {
    "nothing": VirtioNetHdr(),
    "other fields": VirtioNetHdr(hdr_len=7, gso_size=9, csum_start=8, csum_offset=3),
    "other flags": VirtioNetHdr(flags=0xFE),
    "checksum": VirtioNetHdr(flags=NEEDS_CSUM, csum_start=34, csum_offset=6),
    "checksum elsewhere": VirtioNetHdr(flags=NEEDS_CSUM, csum_start=33, csum_offset=6),
    "segmentation": VirtioNetHdr(
        flags=NEEDS_CSUM, gso_type=1, gso_size=50, hdr_len=54, csum_start=34, csum_offset=16
    ),
    "segmentation of a kind that is none": VirtioNetHdr(gso_type=0x40),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("sends", [0, ALL_HOST])
@pytest.mark.parametrize("takes", [0, ALL_GUEST])
@pytest.mark.parametrize("transport", [DATAGRAM, TCP(sport=1, dport=2)], ids=("UDP", "TCP"))
def test_what_is_left_to_the_device(name: str, sends: int, takes: int, transport: Packet) -> None:
    frame = bytes(FROM_A4 / transport / bytes(100))
    same_fate(frame, Setting(sends=sends, takes=takes), header=HEADERS[name])


# A checksum alone, which the receiver may take unfinished


FROM = {4: FROM_A4, 6: FROM_A6}
UNFINISHED = {"UDP": UDP(sport=1, dport=2, chksum=0x1234), "TCP": TCP(chksum=0x1234)}
"""Whether the sum of the pseudo-header is right is between the guests."""
CSUM_OFFSET = {"UDP": 6, "TCP": 16}


def l4(family: int) -> int:
    """Where the transport header is."""
    return len(FROM[family])


def left_to_do(family: int, transport: str, **fields: int) -> VirtioNetHdr:
    """The header of a frame whose checksum is left to do, with other values in these fields."""
    header = VirtioNetHdr(
        flags=NEEDS_CSUM, csum_start=l4(family), csum_offset=CSUM_OFFSET[transport]
    )
    return attrs.evolve(header, **fields)


@pytest.mark.parametrize("rings", [0, RING_PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("mergeable", [0, MRG_RXBUF], ids=["", "mergeable"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", UNFINISHED)
class TestChecksum:
    """Left to the device by the sender."""

    def test_receiver_takes_it(
        self, transport: str, family: int, mergeable: int, rings: int
    ) -> None:
        frame = bytes(FROM[family] / UNFINISHED[transport] / bytes(range(100)))
        setting = Setting(sends=CSUM | rings, takes=GUEST_CSUM | mergeable | rings)
        header = left_to_do(family, transport, flags=0xFF, hdr_len=9, gso_size=9, num_buffers=9)
        (received,) = same_fate(frame, setting, family, header=header).received
        assert received[:12] == left_to_do(family, transport, num_buffers=1).pack()
        assert received[12 + l4(family) :] == frame[l4(family) :]

    def test_receiver_does_not_take_it(
        self, transport: str, family: int, mergeable: int, rings: int
    ) -> None:
        frame = bytes(FROM[family] / UNFINISHED[transport] / bytes(range(100)))
        setting = Setting(sends=CSUM | rings, takes=mergeable | rings)
        header = left_to_do(family, transport)
        (received,) = same_fate(frame, setting, family, header=header).received
        assert received[:12] == VirtioNetHdr(num_buffers=1).pack()
        assert_right(received[12:])


WRONG_FIELDS: list[dict[str, int]] = [
    *({"csum_start": start} for start in (0, 14, 33, 34, 35, 54, 60, 1000, 0xFFFF)),
    *({"csum_offset": offset} for offset in (0, 5, 6, 7, 16, 0x106, 1000, 0xFFFF)),
    *({"gso_type": kind, "gso_size": 2000} for kind in (1, 2, 3, 4, 5, 0x80, 0x81, 0xFF)),
]


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=str)
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", UNFINISHED)
def test_header_of_an_unfinished_checksum(
    fields: dict[str, int], transport: str, family: int
) -> None:
    frame = bytes(FROM[family] / UNFINISHED[transport] / bytes(100))
    for setting in (Setting(sends=ALL_HOST, takes=ALL_GUEST), Setting(sends=CSUM)):
        what = same_fate(frame, setting, family, header=left_to_do(family, transport, **fields))
        assert what.received or what.drops[0] == {"OFFLOAD_INVALID": 1} or "gso_type" in fields


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", UNFINISHED)
@pytest.mark.parametrize("takes", [0, GUEST_CSUM])
def test_unfinished_checksum_that_was_not_negotiated(
    takes: int, transport: str, family: int
) -> None:
    frame = bytes(FROM[family] / UNFINISHED[transport] / bytes(100))
    what = same_fate(frame, Setting(takes=takes), family, header=left_to_do(family, transport))
    assert what.drops == [{"OFFLOAD_NOT_NEGOTIATED": 1}, {}]


SEGMENTS: dict[str, tuple[str, Packet, bool]] = {
    "as long as it says": ("UDP", UDP(chksum=1) / bytes(100), True),
    "no data": ("UDP", UDP(chksum=1), True),
    "shorter than it says": ("UDP", UDP(len=110, chksum=1) / bytes(100), False),
    "longer than it says": ("UDP", UDP(len=107, chksum=1) / bytes(100), False),
    "length 0": ("UDP", UDP(len=0, chksum=1) / bytes(100), False),
    "no whole UDP header": ("UDP", Raw(bytes(UDP(len=7, chksum=1))[:7]), False),
    "no whole TCP header": ("TCP", Raw(bytes(TCP(chksum=1))[:19]), False),
    "no data in TCP": ("TCP", TCP(chksum=1), True),
    "offset 0": ("TCP", TCP(dataofs=0, chksum=1) / bytes(100), False),
    "offset below the header": ("TCP", TCP(dataofs=4, chksum=1) / bytes(100), False),
    "offset at the end": ("TCP", TCP(dataofs=15, chksum=1) / bytes(40), True),
    "offset beyond the end": ("TCP", TCP(dataofs=15, chksum=1) / bytes(39), False),
    "nothing": ("UDP", Raw(b""), False),
}
PROTOCOLS = {"UDP": 17, "TCP": 6}


@pytest.mark.parametrize("takes", [0, GUEST_CSUM])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", SEGMENTS)
def test_lengths_in_the_transport_header(name: str, family: int, takes: int) -> None:
    transport, segment, good = SEGMENTS[name]
    protocol = PROTOCOLS[transport]
    ip = IP(src=A4, dst=B4, proto=protocol) if family == 4 else IPv6(src=A6, dst=B6, nh=protocol)
    frame = bytes(ETHER / ip / segment)
    setting = Setting(sends=CSUM, takes=takes)
    for padding in (0, 1, 60):
        header = left_to_do(family, transport)
        what = same_fate(frame + bytes(padding), setting, family, header=header)
        assert bool(what.received) is good
        assert what.drops == [{} if good else {"OFFLOAD_INVALID": 1}, {}]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [1, 2, 58, 132, 136, 255])
def test_protocol_without_a_checksum_to_leave(protocol: int, family: int) -> None:
    ip = IP(src=A4, dst=B4, proto=protocol) if family == 4 else IPv6(src=A6, dst=B6, nh=protocol)
    both = UDP(chksum=1) / (bytes(4) + b"\x50" + bytes(95))  # good as either of them
    frame = bytes(ETHER / ip / both)
    setting = Setting(sends=CSUM, takes=GUEST_CSUM)
    for transport in CSUM_OFFSET:
        what = same_fate(frame, setting, family, header=left_to_do(family, transport))
        assert what.drops == [{"OFFLOAD_INVALID": 1}, {}]


@pytest.mark.parametrize("takes", [GUEST_CSUM, GUEST_CSUM | MRG_RXBUF])
@pytest.mark.parametrize(
    "buffers", [(), (11,), (12 + 142,), (12 + 141,), (12 + 141, 2048)], ids=str
)
def test_unfinished_checksum_in_buffers_of_any_size(buffers: tuple[int, ...], takes: int) -> None:
    setting = Setting(buffers, sends=CSUM, takes=takes)
    same_fate(GOOD[4], setting, header=left_to_do(4, "UDP"))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", UNFINISHED)
@settings(max_examples=100)
@given(data=st.data())
def test_any_change_of_an_unfinished_packet(
    transport: str, family: int, data: st.DataObject
) -> None:
    frame = bytearray(bytes(FROM[family] / UNFINISHED[transport] / bytes(100)))
    head = bytearray(left_to_do(family, transport).pack())
    both = head + frame
    for at in data.draw(st.lists(st.integers(0, 12 + 80), min_size=1, max_size=3)):
        both[at] = data.draw(st.integers(0, 255))
    header = VirtioNetHdr.unpack(bytes(both[:12]))
    takes = data.draw(st.sampled_from([0, GUEST_CSUM, ALL_GUEST | MRG_RXBUF]))
    same_fate(bytes(both[12:]), Setting(sends=ALL_HOST, takes=takes), family, header=header)


@pytest.mark.parametrize(("transport", "at"), [("UDP", 4), ("TCP", 12)])
def test_lengths_that_change_after_they_were_checked(transport: str, at: int) -> None:
    """The sender's lie where the receiver gets num_buffers, so the device itself changes them."""
    frame = bytes(ETHER / IP(src=A4, dst=TARGET) / UNFINISHED[transport] / bytes(100))
    header = left_to_do(4, transport)
    with two_in_one_memory(sends=CSUM, takes=GUEST_CSUM) as (a, b):
        b.offer(2048)
        a.send(frame, header=header)
        a.drain()
        sent = a.buffer(4096)
        a.tx.add_tx_buffer(sent, frame, header=header)
        into = sent + 12 + l4(4) + at - 10
        b.rx.add_rx_buffer(into, 2048)
        a.drain()
        assert b.port.stats().rx_frames == 2
        assert b.guest.read(into, 12) == attrs.evolve(header, num_buffers=1).pack()
        assert b.guest.read(sent + 12 + l4(4) + at, 2) == bytes([1, 0])
        lengths = slice(l4(4) + at, l4(4) + at + 2)
        assert b.guest.read(into + 12, len(frame))[lengths] == frame[lengths]


def test_smaller_mtu_of_the_link() -> None:
    same_fate(GOOD[4], Setting(mtu=1280))
    same_fate(bytes(FROM_A4 / DATAGRAM / bytes(1300)), Setting(mtu=1280))


@pytest.mark.parametrize("family", [4, 6])
@settings(max_examples=150)
@given(data=st.data())
def test_any_change_of_a_good_packet(family: int, data: st.DataObject) -> None:
    frame = bytearray(GOOD[family])
    for at in data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=3)):
        frame[at] = data.draw(st.integers(0, 255))
    same_fate(bytes(frame), family=family)


@pytest.mark.parametrize("family", [4, 6])
def test_other_addresses_are_another_flow(family: int) -> None:
    """Enough of them to share the place of a known one."""
    make = IP if family == 4 else IPv6
    subnet, a, b = ("10.0.0.", A4, B4) if family == 4 else ("fd00::", A6, B6)
    with open_pair() as pair:
        for number in range(100, 200):
            other = f"{subnet}{number}"
            pair.b.offer(2048)
            pair.send(GOOD[family])
            assert len(pair.received()) == 1
            pair.send(ETHER / make(src=other, dst=b) / DATAGRAM / bytes(40))
            pair.send(ETHER / make(src=a, dst=other) / DATAGRAM / bytes(40))
            while pair.a.tx.pop_used():
                pass
        assert pair.a.drops() == {"SOURCE_ADDRESS": 100, "HOST_UNREACHABLE": 100}
        assert pair.received() == []


def test_packet_to_its_sender_is_refused_again_and_again() -> None:
    with open_pair() as pair:
        pair.a.offer(2048, 3)
        for _ in range(3):
            pair.send(ETHER / IP(src=A4, dst=A4) / DATAGRAM / bytes(40))
        assert pair.a.drops() == {"HOST_UNREACHABLE": 3}


def test_flow_ends_with_its_route() -> None:
    """The next packet goes where the route goes now."""
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        pair.send(GOOD[4])
        assert len(pair.received()) == 1
        pair.b.port.set_routes([])
        pair.send(GOOD[4])
        assert pair.a.drops() == {"HOST_UNREACHABLE": 1}
        assert pair.received() == []


def test_flow_ends_with_the_right_to_its_source() -> None:
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        pair.send(GOOD[4])
        pair.a.port.set_routes([])
        pair.send(GOOD[4])
        assert pair.a.drops() == {"SOURCE_ADDRESS": 1}
        assert len(pair.received()) == 1


def test_receiver_that_is_down_gets_nothing_of_a_known_flow() -> None:
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        pair.send(GOOD[4])
        pair.b.port.enable_ring(0, False)
        pair.send(GOOD[4])
        assert pair.a.drops() == {"HOST_UNREACHABLE": 1}
        assert pair.b.drops() == {}
        assert len(pair.received()) == 1


def test_disabled_ring_of_a_known_flow_is_discarded() -> None:
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        pair.send(GOOD[4])
        pair.a.port.enable_ring(1, False)
        pair.send(GOOD[4])
        assert pair.a.drops() == {"RING_DISABLED": 1}
        assert len(pair.received()) == 1


def test_what_waits_goes_first() -> None:
    with open_pair() as pair:
        pair.b.offer(2048)
        for number in range(3):
            pair.send(bytes(FROM_A4 / DATAGRAM / bytes([number])))
        pair.b.offer(2048, 3)
        pair.send(bytes(FROM_A4 / DATAGRAM / bytes([3])))
        assert [frame.frame[-1] for frame in pair.received()] == [0, 1, 2, 3]


@pytest.mark.parametrize("takes", [0, MRG_RXBUF])
@pytest.mark.parametrize("way", ["express", "general"])
@pytest.mark.parametrize("header", [VirtioNetHdr(), left_to_do(4, "UDP")], ids=["", "checksum"])
def test_header_is_written_whatever_the_buffer_holds(
    header: VirtioNetHdr, way: str, takes: int
) -> None:
    """It is only stored where another one is found, so that each of its bytes has to count."""
    options = IP(src=A4, dst=B4, options=[IPOption_NOP()] * 4)
    frame = GOOD[4]
    if way == "general":
        frame = bytes(ETHER / options / DATAGRAM / bytes(40))
        header = attrs.evolve(header, csum_start=header.csum_start and header.csum_start + 4)
    right = attrs.evolve(header, num_buffers=1).pack()
    with open_pair(sends=CSUM, takes=takes | GUEST_CSUM) as pair:
        pair.b.offer(2048)
        pair.send(frame, header=header)
        for at in range(-1, len(right)):
            found = bytes(byte ^ (i == at) for i, byte in enumerate(right))
            where = pair.b.buffer(2048)
            pair.b.guest.write(where, found)
            pair.b.rx.add_rx_buffer(where, 2048)
            pair.send(frame, header=header)
            assert pair.b.guest.read(where, len(right)) == right
        assert len(buffers_used(pair.b)) == 1 + 1 + len(right)
