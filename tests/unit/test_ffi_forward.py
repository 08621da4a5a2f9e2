"""Packets from one port to another: routed, as the receiver's driver can take them, or refused.

scapy is the second opinion on every checksum and length.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_SSRR,
    IPOption_Timestamp,
    defragment,
)
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from mvirt_net.ffi import Network, NextStep, Punt
from mvirt_net.model import RX_QUEUE, TX_QUEUE, IcmpError, MacAddress, PuntKind
from tests.harness.memory import Region
from tests.harness.packets import internet_checksum
from tests.harness.virtio import ReceivedFrame, VirtioNetHdr, split_lengths

from .rig import EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, VERSION_1, Rig, open_rig

CSUM, GUEST_CSUM = 1 << 0, 1 << 1
GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
HOST_TSO4, HOST_TSO6, HOST_ECN = 1 << 11, 1 << 12, 1 << 13
GUEST_USO4, GUEST_USO6, HOST_USO = 1 << 54, 1 << 55, 1 << 56
ALL_HOST = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO
ALL_GUEST = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6

NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4, ECN = 1, 4, 5, 0x80

GATEWAY = "02:00:00:00:00:01"
A, B = (MacAddress.parse(f"52:54:00:00:00:0{digit}") for digit in "ab")
A4, B4, A6, B6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
SUBNETS = ("10.0.0.0/24", "fd00::/64")

ETHER = Ether(src=str(A), dst=GATEWAY)
FROM_A4 = ETHER / IP(src=A4, dst=B4)
FROM_A6 = ETHER / IPv6(src=A6, dst=B6)


@attrs.frozen
class Pair:
    """Two guests on one network: `a` sends, `b` receives."""

    network: Network
    a: Rig
    b: Rig

    def send(self, packet: Packet | bytes, **how: Any) -> list[Punt]:
        """Give the packet to the core, which drains it."""
        self.a.send(bytes(packet), **how)
        return self.a.drain()

    def received(self) -> list[ReceivedFrame]:
        """What `b` has got, with what a turn that was over has left for its task."""
        self.b.flush()
        return all_frames(self.b)


def all_frames(rig: Rig) -> list[ReceivedFrame]:
    frames = []
    while frame := rig.rx.pop_frame(mergeable=bool(rig.features & MRG_RXBUF)):
        frames.append(frame)
    return frames


@contextmanager
def open_pair(
    *, sends: int = 0, takes: int = 0, mtu: int = 1500, size: int = 256, **options: Any
) -> Iterator[Pair]:
    """A pair with running rings and no receive buffers.

    Args:
        sends: features of `a` beyond VERSION_1; takes: of `b`.
    """
    with ExitStack() as stack:
        network = Network(mtu, [ip_network(subnet) for subnet in SUBNETS])
        stack.callback(network.close)
        a, b = (
            stack.enter_context(
                open_rig(
                    network=network,
                    mac=mac,
                    routes=routes,
                    features=VERSION_1 | more,
                    size=size,
                    **options,
                )
            )
            for mac, routes, more in ((A, (A4, A6), sends), (B, (B4, B6), takes))
        )
        a.start()
        b.start()
        yield Pair(network, a, b)


def assert_right(frame: bytes) -> Packet:
    """Every length and checksum is what scapy makes of the rest; the parsed frame."""
    packet = Ether(frame)
    again = packet.copy()
    for layer in (IP, UDP, TCP, ICMP, ICMPv6EchoRequest, IPv6):
        if again.haslayer(layer):
            for field in ("chksum", "cksum", "len", "plen"):
                if field in again[layer].fields:
                    delattr(again[layer], field)
    assert bytes(again) == frame
    return packet


def right_fragment(frame: bytes) -> IP:
    """The IPv4 packet in a frame, its header checksum and length looked at."""
    packet = frame[14:]
    assert internet_checksum(packet[: (packet[0] & 15) * 4]) == 0
    assert int.from_bytes(packet[2:4], "big") == len(packet)
    return IP(packet)


# Rewriting


@pytest.mark.parametrize(
    "packet",
    [
        FROM_A4 / UDP(sport=1, dport=2) / b"hello",
        FROM_A4 / TCP(flags="S"),
        FROM_A4 / ICMP() / b"ping",
        ETHER / IP(src=A4, dst=B4, proto=132, tos=0xB8) / b"sctp",
        ETHER / IP(src=A4, dst=B4, options=[IPOption_Router_Alert()]) / UDP(),
        ETHER / IP(src=A4, dst=B4, options=[IPOption_NOP()] * 40) / UDP(),
        ETHER / IP(src=A4, dst=B4, flags="MF", frag=0) / Raw(bytes(24)),
        ETHER / IP(src=A4, dst=B4, frag=3) / Raw(bytes(24)),
        FROM_A6 / UDP(sport=1, dport=2) / b"hello",
        FROM_A6 / TCP(flags="S"),
        FROM_A6 / ICMPv6EchoRequest(data=b"ping"),
        ETHER / IPv6(src=A6, dst=B6, tc=0xB8, fl=0x12345, nh=59),
        FROM_A6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(),
        FROM_A6 / IPv6ExtHdrFragment(offset=5, m=1) / Raw(bytes(24)),
        FROM_A6 / IPv6ExtHdrFragment(offset=0, m=0, nh=17) / UDP() / b"atomic",
    ],
    ids=lambda packet: packet.summary()[:60],
)
def test_only_the_hop_is_rewritten(packet: Packet) -> None:
    with open_pair() as pair:
        pair.b.offer(2048)
        assert pair.send(packet) == []
        (received,) = pair.received()
        assert received.header == VirtioNetHdr(num_buffers=1)
        expected = packet.copy()
        expected.src, expected.dst = GATEWAY, str(B)
        if IP in expected:
            expected[IP].ttl -= 1
        else:
            expected[IPv6].hlim -= 1
        assert received.frame == bytes(expected)
        stats = pair.a.port.stats()
        assert (stats.routed, stats.punts, stats.drops) == (1, 0, {})
        assert pair.b.port.stats().rx_frames == 1
        assert pair.b.port.stats().rx_bytes == len(received.frame)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ident=st.integers(0, 65535), ttl=st.integers(2, 255), tos=st.integers(0, 255))
def test_checksum_of_every_header(ident: int, ttl: int, tos: int) -> None:
    with open_pair() as pair:
        pair.b.offer(2048)
        pair.send(ETHER / IP(src=A4, dst=B4, id=ident, ttl=ttl, tos=tos) / UDP())
        (received,) = pair.received()
        assert assert_right(received.frame)[IP].ttl == ttl - 1


def test_what_ethernet_padded_is_left_out() -> None:
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        for packet in (FROM_A4 / UDP(), FROM_A6 / UDP()):
            pair.send(bytes(packet) + bytes(30))
        assert [len(received.frame) for received in pair.received()] == [42, 62]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    payload=st.binary(max_size=4000),
    cuts=st.lists(st.integers(1, 300), max_size=20),
    rooms=st.lists(st.integers(1, 700), min_size=1, max_size=20),
    family=st.sampled_from([4, 6]),
)
def test_any_cut_of_buffers_on_both_sides(
    payload: bytes, cuts: list[int], rooms: list[int], family: int
) -> None:
    with open_pair(takes=MRG_RXBUF, mtu=9000) as pair:
        packet = (FROM_A4 if family == 4 else FROM_A6) / UDP() / payload
        for room in itertools.islice(itertools.cycle([12 + rooms[0], *rooms]), 200):
            pair.b.rx.add_rx_buffer(pair.b.buffer(room), room)
        frame = bytes(packet)
        lengths = split_lengths(12 + len(frame), cuts)
        pair.a.tx.add_tx_buffer([(pair.a.buffer(size), size) for size in lengths], frame)
        pair.a.drain()
        pair.b.flush()
        for received in pair.received():
            assert assert_right(received.frame)[UDP].payload.build() == payload
        assert pair.b.port.stats().rx_frames + sum(pair.b.port.stats().drops.values()) == 1


# Isolation and sources


def test_networks_with_the_same_addresses_do_not_meet() -> None:
    with open_pair() as blue, open_pair() as red:
        blue.b.offer(2048, 4)
        red.b.offer(2048, 4)
        blue.send(FROM_A4 / UDP())
        blue.send(FROM_A6 / UDP())
        assert len(blue.received()) == 2
        assert red.received() == []
        assert red.b.port.backlog == 0


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ETHER / IP(src="10.0.0.3", dst=B4) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src=B4, dst=B4) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src="0.0.0.0", dst=B4) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src="169.254.0.1", dst=B4) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src="169.254.7.7", dst=B4) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src="10.0.0.3", dst="169.254.0.1") / ICMP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src="10.0.0.3", dst="8.8.8.8") / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IP(src="10.0.0.3", dst="169.254.9.9") / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IPv6(src="fd00::3", dst=B6) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IPv6(src="fe80::3", dst=B6) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IPv6(src="::", dst=B6) / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IPv6(src="fd00::3", dst="fe80::1") / ICMPv6EchoRequest(), "SOURCE_ADDRESS"),
        (ETHER / IPv6(src="fd00::3", dst="fe80::9") / UDP(), "SOURCE_ADDRESS"),
        (ETHER / IPv6(src="fe80::1", dst=B6) / UDP(), "IP_MALFORMED"),
        (ETHER / IPv6(src="::1", dst=B6) / UDP(), "IP_MALFORMED"),
        (ETHER / IPv6(src="ff02::1", dst=B6) / UDP(), "IP_MALFORMED"),
        (ETHER / IPv6(src=A6, dst="::1") / UDP(), "IP_MALFORMED"),
        (ETHER / IPv6(src=A6, dst="::") / UDP(), "IP_MALFORMED"),
        (Ether(src=str(B), dst=GATEWAY) / IP(src=A4, dst=B4) / UDP(), "SOURCE_MAC"),
        (Ether(src=str(A), dst=str(B)) / IP(src=A4, dst=B4) / UDP(), "DESTINATION_MAC"),
        (ETHER / IP(src=A4, dst="127.0.0.1") / UDP(), "IP_MALFORMED"),
        (ETHER / IP(src=A4, dst="0.1.2.3") / UDP(), "IP_MALFORMED"),
        (ETHER / IP(src=A4, dst="240.0.0.1") / UDP(), "IP_MALFORMED"),
        (ETHER / IP(src=A4, dst="224.0.0.251") / UDP(), "MULTICAST"),
        (Ether(src=str(A), dst="ff:ff:ff:ff:ff:ff") / IP(src=A4, dst=B4) / UDP(), "MULTICAST"),
        (Ether(src=str(A), dst="ff:ff:ff:ff:ff:ff") / IPv6(src=A6, dst=B6) / UDP(), "MULTICAST"),
        (ETHER / IPv6(src=A6, dst="ff05::2") / UDP(), "MULTICAST"),
        (ETHER / IP(src=A4, dst=B4, options=[IPOption_RR()]) / UDP(), "IP_OPTION"),
        (ETHER / IP(src=A4, dst=B4, options=[IPOption_SSRR()]) / UDP(), "IP_OPTION"),
        (ETHER / IP(src=A4, dst=B4, options=[IPOption_Timestamp()]) / UDP(), "IP_OPTION"),
        (ETHER / IP(src=A4, dst=B4, options=b"\x94\x01\0\0") / UDP(), "IP_MALFORMED"),
        (ETHER / IP(src=A4, dst=B4, options=b"\x94\x05\0\0") / UDP(), "IP_MALFORMED"),
        (ETHER / IP(src=A4, dst=B4, options=b"\1\1\1\x94") / UDP(), "IP_MALFORMED"),
        (ETHER / IP(src=A4, dst=B4, frag=8191) / Raw(bytes(1000)), "IP_MALFORMED"),
        (FROM_A6 / IPv6ExtHdrFragment(offset=8191) / Raw(bytes(1000)), "IP_MALFORMED"),
        (FROM_A6 / IPv6ExtHdrRouting(type=0) / UDP(), "IP_OPTION"),
        (
            ETHER
            / IPv6(src=A6, dst="fe80::1")
            / IPv6ExtHdrRouting(type=4, segleft=1, addresses=["fd00::99"])
            / ICMPv6EchoRequest(),
            "IP_OPTION",
        ),
        (FROM_A6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop() / UDP(), "IP_MALFORMED"),
        (FROM_A6 / IPv6ExtHdrDestOpt(len=200) / UDP(), "IP_MALFORMED"),
        (ETHER / IPv6(src=A6, dst=B6, plen=9) / UDP(), "IP_MALFORMED"),
        (ETHER / IPv6(src=A6, dst=B6, version=4) / UDP(), "IP_MALFORMED"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.summary()[:70],
)
def test_silently_dropped(packet: Packet, reason: str) -> None:
    with open_pair() as pair:
        pair.b.offer(2048)
        assert pair.send(packet) == []
        assert pair.a.drops() == {reason: 1}
        assert pair.received() == []
        assert pair.b.port.backlog == 0


@pytest.mark.parametrize(("count", "passes"), [(8, True), (9, False)])
def test_number_of_extension_headers_is_bounded(count: int, passes: bool) -> None:
    packet = FROM_A6.copy()
    for _ in range(count):
        packet /= IPv6ExtHdrDestOpt()
    with open_pair() as pair:
        pair.b.offer(2048)
        pair.send(packet / UDP())
        assert len(pair.received()) == passes
        assert pair.a.drops() == ({} if passes else {"IP_MALFORMED": 1})


def test_routed_prefix_may_send_and_gets() -> None:
    with open_pair() as pair:
        pair.b.offer(2048, 4)
        behind = ETHER / IP(src="192.0.2.7", dst=B4) / UDP()
        pair.send(behind)
        assert pair.a.drops() == {"SOURCE_ADDRESS": 1}
        pair.a.port.set_routes([ip_network(net) for net in (A4, A6, "192.0.2.0/24")])
        pair.send(behind)
        assert len(pair.received()) == 1
        # A longer prefix of somebody else takes that part of it away.
        pair.b.port.set_routes([ip_network(net) for net in (B4, B6, "192.0.2.7/32")])
        pair.send(behind)
        assert pair.a.drops() == {"SOURCE_ADDRESS": 2}
        pair.send(ETHER / IP(src="192.0.2.8", dst="192.0.2.7") / UDP())
        assert len(pair.received()) == 1


# What the sender is told


@pytest.mark.parametrize(
    ("packet", "reason", "error"),
    [
        (ETHER / IP(src=A4, dst=B4, ttl=1) / UDP(), "TTL_EXCEEDED", IcmpError.TIME_EXCEEDED),
        (ETHER / IP(src=A4, dst=B4, ttl=0) / UDP(), "TTL_EXCEEDED", IcmpError.TIME_EXCEEDED),
        (ETHER / IPv6(src=A6, dst=B6, hlim=1) / UDP(), "TTL_EXCEEDED", IcmpError.TIME_EXCEEDED),
        (
            ETHER / IP(src=A4, dst="10.0.0.9") / UDP(),
            "HOST_UNREACHABLE",
            IcmpError.HOST_UNREACHABLE,
        ),
        (ETHER / IP(src=A4, dst=A4) / UDP(), "HOST_UNREACHABLE", IcmpError.HOST_UNREACHABLE),
        (
            ETHER / IPv6(src=A6, dst="fd00::9") / UDP(),
            "HOST_UNREACHABLE",
            IcmpError.HOST_UNREACHABLE,
        ),
        (ETHER / IP(src=A4, dst="8.8.8.8") / UDP(), "NO_ROUTE", IcmpError.NET_UNREACHABLE),
        (ETHER / IP(src=A4, dst="8.8.8.8") / ICMP(), "NO_ROUTE", IcmpError.NET_UNREACHABLE),
        (ETHER / IP(src=A4, dst="8.8.8.8") / ICMP(type=0), "NO_ROUTE", IcmpError.NET_UNREACHABLE),
        (ETHER / IPv6(src=A6, dst="2001:db8::1") / UDP(), "NO_ROUTE", IcmpError.NET_UNREACHABLE),
        (
            ETHER / IPv6(src=A6, dst="2001:db8::1") / ICMPv6EchoRequest(),
            "NO_ROUTE",
            IcmpError.NET_UNREACHABLE,
        ),
        (
            ETHER / IP(src=A4, dst="169.254.169.254") / TCP(),
            "ADMIN_PROHIBITED",
            IcmpError.ADMIN_PROHIBITED,
        ),
        (
            ETHER / IPv6(src=A6, dst="fe80::9") / TCP(),
            "ADMIN_PROHIBITED",
            IcmpError.ADMIN_PROHIBITED,
        ),
        (
            ETHER / IPv6(src="fe80::7", dst="fe80::9") / TCP(),
            "ADMIN_PROHIBITED",
            IcmpError.ADMIN_PROHIBITED,
        ),
        (
            ETHER / IP(src=A4, dst="169.254.0.1") / UDP(dport=53),
            "NOT_SERVED",
            IcmpError.PORT_UNREACHABLE,
        ),
        (
            ETHER / IP(src=A4, dst="169.254.0.1") / TCP(),
            "NOT_SERVED",
            IcmpError.PROTOCOL_UNREACHABLE,
        ),
        (
            ETHER / IPv6(src="fe80::7", dst="fe80::1") / UDP(dport=53),
            "NOT_SERVED",
            IcmpError.PORT_UNREACHABLE,
        ),
        (ETHER / IPv6(src=A6, dst="fe80::1") / TCP(), "NOT_SERVED", IcmpError.PROTOCOL_UNREACHABLE),
        (
            ETHER / IP(src=A4, dst="8.8.8.8", flags="MF") / UDP() / bytes(16),
            "NO_ROUTE",
            IcmpError.NET_UNREACHABLE,
        ),
    ],
    ids=lambda value: value.summary()[:70] if isinstance(value, Packet) else None,
)
def test_dropped_and_told(packet: Packet, reason: str, error: IcmpError) -> None:
    with open_pair() as pair:
        pair.b.offer(2048)
        (punt,) = pair.send(packet)
        assert (punt.kind, punt.error, punt.frame) == (PuntKind.ICMP_ERROR, error, bytes(packet))
        assert pair.a.drops() == {reason: 1}
        assert pair.a.port.stats().icmp_errors == 1
        assert pair.received() == []


@pytest.mark.parametrize(
    "packet",
    [
        *(ETHER / IP(src=A4, dst="8.8.8.8") / ICMP(type=kind) for kind in (3, 4, 5, 11, 12)),
        ETHER / IP(src=A4, dst="8.8.8.8", proto=1),
        ETHER / IP(src=A4, dst="8.8.8.8", frag=1) / Raw(bytes(8)),
        ETHER / IPv6(src=A6, dst="2001:db8::1") / ICMPv6DestUnreach() / bytes(48),
        ETHER / IPv6(src=A6, dst="2001:db8::1") / ICMPv6ND_Redirect(),
        ETHER / IPv6(src=A6, dst="2001:db8::1", nh=58),
        ETHER / IPv6(src=A6, dst="2001:db8::1") / IPv6ExtHdrFragment(offset=1) / Raw(bytes(8)),
    ],
    ids=lambda packet: packet.summary()[:70],
)
def test_never_told_about(packet: Packet) -> None:
    """An ICMP error or what may be one, or a later fragment (RFC 1122, 3.2.2; RFC 4443, 2.4)."""
    with open_pair() as pair:
        assert pair.send(packet) == []
        assert pair.a.drops() == {"NO_ROUTE": 1}


@pytest.mark.parametrize(
    "packet",
    [
        Ether(src=str(A), dst="ff:ff:ff:ff:ff:ff") / IP(src=A4, dst="169.254.0.1") / UDP(dport=9),
        Ether(src=str(A), dst="ff:ff:ff:ff:ff:ff") / IP(src=A4, dst="169.254.0.1") / ICMP(),
        ETHER / IP(src=A4, dst="10.0.0.255") / UDP(dport=137),
        ETHER / IP(src=A4, dst="10.0.0.255", ttl=1) / UDP(dport=137),
    ],
    ids=lambda packet: packet.summary()[:70],
)
def test_p15_never_told_about_a_broadcast(packet: Packet) -> None:
    """By its MAC address or its subnet's last address (RFC 1122, 3.2.2; RFC 1812, 4.3.2.7)."""
    with open_pair() as pair:
        assert pair.send(packet) == []
        assert pair.a.drops() == {"MULTICAST": 1}


def test_last_address_of_a_link_of_two_is_a_host() -> None:
    with open_pair() as pair:
        pair.network.close()
        network = Network(1500, [ip_network("10.0.0.0/31")])
        with open_rig(network=network, mac=A, routes=[A4]) as rig:
            rig.start()
            rig.send(bytes(ETHER / IP(src=A4, dst="10.0.0.0") / UDP()))
            assert [punt.error for punt in rig.drain()] == [IcmpError.HOST_UNREACHABLE]
        network.close()


def test_told_50_times_at_once_and_200_times_a_second() -> None:
    with open_pair() as pair:
        frame = bytes(ETHER / IP(src=A4, dst="8.8.8.8") / UDP())

        def told(count: int, now: float) -> int:
            for _ in range(count):
                pair.a.send(frame)
            punts = 0
            while True:
                drained = pair.a.port.drain(now)
                punts += len(drained.punts)
                if drained.next is not NextStep.CALL_AGAIN:
                    break
            while pair.a.tx.pop_used():
                pass
            return punts

        assert told(100, 1.0) == 50
        assert told(10, 1.004) == 0
        assert told(10, 1.0051) == 1
        assert told(100, 1.1) == 19
        assert told(100, 1000.0) == 50
        assert told(10, 5.0) == 0
        assert pair.a.drops() == {"NO_ROUTE": 330}


def test_told_about_a_guest_that_is_down() -> None:
    with open_pair() as pair:
        pair.b.port.stop_ring(RX_QUEUE)
        (punt,) = pair.send(FROM_A4 / UDP())
        assert punt.error is IcmpError.HOST_UNREACHABLE
        assert pair.a.drops() == {"HOST_UNREACHABLE": 1}
        assert pair.b.drops() == {}


@pytest.mark.parametrize("mtu", [68, 576, 1280, 1500, 9000])
def test_told_the_mtu(mtu: int) -> None:
    """Of an IPv6 link it is 1280 at least, for no host goes below (RFC 8200, 5; RFC 8201, 4)."""
    with open_pair(mtu=mtu) as pair:
        pair.b.offer(16384, 4)
        for base, header, most in (
            (ETHER / IP(src=A4, dst=B4, flags="DF") / UDP(), 28, mtu),
            (FROM_A6 / UDP(), 48, max(mtu, 1280)),
        ):
            assert pair.send(base / bytes(most - header)) == []
            (punt,) = pair.send(base / bytes(most - header + 1))
            assert (punt.error, punt.mtu) == (IcmpError.TOO_BIG, most)
            assert len(punt.frame) == min(14 + most + 1, 14 + 1232)
        assert len(pair.received()) == 2
        assert pair.a.drops() == {"TOO_BIG": 2}


def test_mtu_of_the_receiver_counts_and_never_exceeds_the_networks() -> None:
    with open_pair() as pair:
        pair.b.offer(2048, 2)
        packet = ETHER / IP(src=A4, dst=B4, flags="DF") / UDP() / bytes(1472)
        pair.b.port.set_mtu(1400)
        (punt,) = pair.send(packet)
        assert punt.mtu == 1400
        pair.b.port.set_mtu(9000)
        assert pair.send(packet) == []
        (punt,) = pair.send(ETHER / IP(src=A4, dst=B4, flags="DF") / UDP() / bytes(1473))
        assert punt.mtu == 1500


# Receivers that do not keep up


def test_backlog_keeps_order_and_is_bounded() -> None:
    with open_pair(size=1024) as pair:
        for number in range(300):
            pair.a.send(bytes(FROM_A4 / UDP() / number.to_bytes(2, "big")))
        woken = []
        while True:
            drained = pair.a.port.drain()
            woken += drained.woken
            if drained.next is not NextStep.CALL_AGAIN:
                break
        assert woken
        assert set(woken) == {(pair.b.port, 0)}
        assert pair.b.port.backlog == 256
        assert pair.b.drops() == {"RX_BACKLOG_FULL": 44}
        pair.b.offer(2048, 100)
        assert pair.b.flush() is NextStep.KICK
        # Asked for a kick: nobody has to be woken for what comes on top.
        pair.a.send(bytes(FROM_A4 / UDP() / b"on top"))
        assert pair.a.port.drain().woken == []
        pair.b.offer(2048, 200)
        pair.a.send(bytes(FROM_A4 / UDP() / b"last"))
        assert pair.a.port.drain().woken == []
        assert pair.b.flush() is NextStep.NOTHING
        payloads = [Ether(received.frame)[UDP].payload.build() for received in pair.received()]
        numbers = [number.to_bytes(2, "big") for number in range(256)]
        assert payloads == [*numbers, b"on top", b"last"]
        assert pair.b.port.backlog == 0


def test_backlog_is_bounded_in_bytes() -> None:
    with open_pair(
        sends=ALL_HOST, takes=ALL_GUEST, mtu=65535, regions=[Region(0, 32 << 20)]
    ) as pair:
        for _ in range(20):
            pair.a.send(bytes(FROM_A4 / UDP() / bytes(65000)))
        pair.a.drain()
        assert pair.b.port.backlog == (1 << 20) // (14 + 28 + 65000)
        assert pair.b.drops() == {"RX_BACKLOG_FULL": 20 - pair.b.port.backlog}


def test_full_receiver_does_not_hold_up_another() -> None:
    with (
        open_pair() as pair,
        open_rig(
            network=pair.network, mac=MacAddress.parse("52:54:00:00:00:0c"), routes=["10.0.0.3"]
        ) as c,
    ):
        c.start()
        c.offer(2048, 100)
        for number in range(100):
            pair.a.send(bytes(FROM_A4 / UDP()))
            pair.a.send(bytes(ETHER / IP(src=A4, dst="10.0.0.3") / UDP() / bytes([number])))
        pair.a.drain()
        assert [Ether(frame.frame)[UDP].payload.build()[0] for frame in all_frames(c)] == list(
            range(100)
        )
        assert c.drops() == {}
        assert pair.b.port.backlog == 100


@pytest.mark.parametrize("takes", [0, EVENT_IDX])
def test_wakes_a_receiver_whose_backlog_was_emptied_by_a_sender(takes: int) -> None:
    """Its task, called for a kick that has been dealt with, must not leave it marked as waiting."""
    frame = bytes(FROM_A4 / UDP())
    with open_pair(takes=takes) as pair:
        pair.a.send(frame)
        pair.a.drain()
        assert pair.b.flush() is NextStep.KICK
        pair.b.offer(2048, 2)
        pair.a.send(frame)
        pair.a.drain()
        assert pair.b.port.backlog == 0
        assert pair.b.flush() is NextStep.NOTHING
        pair.a.send(frame)
        assert pair.a.port.drain().woken == [(pair.b.port, 0)]
        assert pair.b.port.backlog == 1


def test_wakes_a_receiver_that_gave_up_on_a_frame() -> None:
    with open_pair(takes=MRG_RXBUF) as pair:
        pair.b.offer(256, 8)
        for _ in range(4):
            pair.send(FROM_A4 / UDP())
        pair.send(FROM_A4 / UDP() / bytes(1400))
        assert pair.b.flush() is NextStep.MORE_BUFFERS
        pair.b.port.drop_first()
        assert pair.b.flush() is NextStep.NOTHING
        for _ in range(4):
            pair.send(FROM_A4 / UDP())
        pair.a.send(bytes(FROM_A4 / UDP()))
        assert pair.a.port.drain().woken == [(pair.b.port, 0)]


def test_published_and_called_once_a_batch() -> None:
    with open_pair(sends=EVENT_IDX, takes=EVENT_IDX) as pair:
        pair.b.offer(2048, 100)
        pair.b.called(RX_QUEUE)
        for _ in range(50):
            pair.a.send(bytes(FROM_A4 / UDP()))
        pair.b.rx.set_used_event(pair.b.rx.used_idx())
        pair.a.tx.set_used_event(pair.a.tx.used_idx())
        pair.a.port.drain()
        assert pair.b.called(RX_QUEUE) == 1
        assert pair.a.called(TX_QUEUE) == 1
        assert pair.b.port.stats().calls == 1


def test_receiver_whose_ring_breaks_is_woken() -> None:
    with open_pair() as pair:
        pair.b.rx.write_avail(0, 999)
        pair.b.rx.write_avail_idx(1)
        pair.a.send(bytes(FROM_A4 / UDP()))
        assert pair.a.port.drain().woken == [(pair.b.port, 0)]
        assert pair.b.port.ring_broken(RX_QUEUE)
        assert pair.b.erred(RX_QUEUE)
        assert pair.b.drops() == {"RX_RING_DOWN": 1}
        assert pair.b.port.backlog == 0


def test_bad_buffer_costs_the_receiver_a_frame() -> None:
    with open_pair() as pair:
        pair.b.rx.add_rx_buffer(1 << 50, 2048)
        pair.b.offer(2048)
        pair.send(FROM_A4 / UDP() / b"lost")
        pair.send(FROM_A4 / UDP() / b"kept")
        assert pair.b.drops() == {"RX_BUFFER_INVALID": 1}
        assert pair.b.rx.pop_used() is not None
        (received,) = pair.received()
        assert Ether(received.frame)[UDP].payload.build() == b"kept"


class TestMoreBuffers:
    """A frame that takes more mergeable buffers than there are (virtio 1.2, 5.1.6.4.1)."""

    BIG = bytes(FROM_A4 / UDP() / bytes(1400))

    def test_a_driver_that_has_all_its_buffers_there_loses_it(self) -> None:
        with open_pair(takes=MRG_RXBUF) as pair:
            pair.b.offer(256, 4)
            pair.send(self.BIG)
            assert pair.b.drops() == {"RX_BUFFER_TOO_SMALL": 1}
            pair.send(FROM_A4 / UDP())
            assert len(pair.received()) == 1

    def test_a_driver_that_has_used_some_up_is_waited_for(self) -> None:
        with open_pair(takes=MRG_RXBUF) as pair:
            pair.b.offer(256, 8)
            for _ in range(4):
                pair.send(FROM_A4 / UDP())
            pair.send(self.BIG)
            assert pair.b.drops() == {}
            assert pair.b.port.flush() is NextStep.MORE_BUFFERS
            assert pair.b.port.flush() is NextStep.MORE_BUFFERS
            pair.b.offer(256)
            assert pair.b.port.flush() is NextStep.MORE_BUFFERS
            pair.b.offer(256)
            assert pair.b.port.flush() is NextStep.NOTHING
            assert [len(received.frame) for received in pair.received()] == [42] * 4 + [1442]

    @pytest.mark.parametrize("features", [MRG_RXBUF, MRG_RXBUF | EVENT_IDX])
    def test_its_next_buffers_are_announced(self, features: int) -> None:
        with open_pair(takes=features) as pair:
            pair.b.offer(256, 8)
            for _ in range(4):
                pair.send(FROM_A4 / UDP())
            assert not pair.b.rx.kick_needed()
            pair.send(self.BIG)
            assert pair.b.port.flush() is NextStep.MORE_BUFFERS
            pair.b.offer(256)
            assert pair.b.rx.kick_needed()

    def test_given_up(self) -> None:
        with open_pair(takes=MRG_RXBUF) as pair:
            pair.b.offer(256, 8)
            for _ in range(4):
                pair.send(FROM_A4 / UDP())
            pair.send(self.BIG)
            pair.send(FROM_A4 / UDP() / b"next")
            assert pair.b.port.flush() is NextStep.MORE_BUFFERS
            pair.b.port.drop_first()
            assert pair.b.port.flush() is NextStep.NOTHING
            assert pair.b.drops() == {"RX_BUFFER_TOO_SMALL": 1}
            assert len(pair.received()) == 5
            pair.b.port.drop_first()
            assert pair.b.drops() == {"RX_BUFFER_TOO_SMALL": 1}

    def test_given_up_after_somebody_has_delivered_it(self) -> None:
        with open_pair(takes=MRG_RXBUF) as pair:
            pair.b.offer(256, 8)
            for _ in range(4):
                pair.send(FROM_A4 / UDP())
            pair.send(self.BIG)
            pair.send(FROM_A4 / UDP() / b"next")
            assert pair.b.port.flush() is NextStep.MORE_BUFFERS
            pair.b.offer(256, 2)
            assert pair.b.port.flush() is NextStep.KICK
            pair.b.port.drop_first()
            assert pair.b.drops() == {}
            assert pair.b.port.backlog == 1


# Packets in pieces for a receiver that has no room for them


@pytest.mark.parametrize("takes", [0, INDIRECT_DESC])
def test_segments_after_one_that_finds_no_place_are_not_tried(takes: int) -> None:
    """Else one packet costs a walk of the receiver's worst buffer for each of 1,024 segments."""
    with open_pair(sends=ALL_HOST, takes=takes, regions=[Region(0, 4 << 20)]) as pair:
        # The last segment would fit.
        pair.b.offer(12 + 54 + 8)
        sent = offloaded(4, TCP, bytes(64 * 1000 + 8), 64)
        pair.send(sent.frame, header=sent.header)
        assert all_frames(pair.b) == []
        assert pair.b.drops() == {"RX_BUFFER_TOO_SMALL": 1001}


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_every_segment_is_delivered_or_waits_or_is_counted(kind: type[Packet]) -> None:
    with open_pair(sends=ALL_HOST, regions=[Region(0, 4 << 20)]) as pair:
        pair.b.offer(2048, 100)
        sent = offloaded(4, kind, bytes(64 * 1000), 64)
        pair.send(sent.frame, header=sent.header)
        (count,) = pair.b.drops().values()
        assert 0 < pair.b.port.backlog <= 256
        assert len(pair.received()) + pair.b.port.backlog + count == 1000


def test_fragments_after_one_that_finds_no_place_are_not_tried() -> None:
    with open_pair(mtu=68) as pair:
        pair.b.offer(12 + 14 + 20 + 8)
        pair.send(FROM_A4 / UDP() / bytes(48 * 20))
        assert pair.received() == []
        assert pair.b.drops() == {"RX_BUFFER_TOO_SMALL": 21}


def test_last_fragment_may_be_longer_than_those_before_it() -> None:
    """Only offsets count in eight bytes (RFC 791, 3.2): two fragments, 576 and 578 bytes."""
    with open_pair(mtu=598) as pair:
        pair.b.offer(12 + 14 + 20 + 8)
        pair.send(FROM_A4 / UDP() / bytes(576 + 578 - 8))
        assert pair.received() == []
        assert pair.b.drops() == {"RX_BUFFER_TOO_SMALL": 2}


# Offloads


def partial_frame(packet: Packet, field: int) -> bytes:
    """The frame as a driver leaves it to the device: its checksum field holds something else."""
    frame = bytearray(bytes(packet))
    frame[field : field + 2] = b"\xab\xcd"
    return bytes(frame)


@attrs.frozen
class Offloaded:
    """A packet whose checksum, and maybe segmentation, is left to the device."""

    packet: Packet
    header: VirtioNetHdr

    @property
    def frame(self) -> bytes:
        return partial_frame(self.packet, self.header.csum_start + self.header.csum_offset)


def offloaded(
    family: int, protocol: type[Packet], payload: bytes, gso: int = 0, **fields: Any
) -> Offloaded:
    base = FROM_A4 if family == 4 else FROM_A6
    start = 34 if family == 4 else 54
    kind = 0
    if gso:
        kind = UDP_L4 if protocol is UDP else TCPV4 if family == 4 else TCPV6
    header = VirtioNetHdr(
        flags=NEEDS_CSUM,
        gso_type=kind,
        gso_size=gso,
        csum_start=start,
        csum_offset=6 if protocol is UDP else 16,
        # Drivers fill it in differently and are not believed.
        hdr_len=1,
    )
    return Offloaded(base / protocol(sport=1000, dport=2000, **fields) / payload, header)


kinds = st.sampled_from([(4, TCP), (6, TCP), (4, UDP), (6, UDP)])
payloads = st.integers(0, 9000).map(lambda size: bytes(i * 7 % 251 for i in range(size)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kind=kinds, payload=payloads, cuts=st.lists(st.integers(1, 999), max_size=20))
def test_checksum_for_a_receiver_without(
    kind: tuple[int, type[Packet]], payload: bytes, cuts: list[int]
) -> None:
    sent = offloaded(*kind, payload)
    with open_pair(sends=CSUM, mtu=9216) as pair:
        pair.b.offer(9300)
        lengths = split_lengths(12 + len(sent.frame), cuts)
        pair.a.tx.add_tx_buffer(
            [(pair.a.buffer(size), size) for size in lengths], sent.frame, header=sent.header
        )
        pair.a.drain()
        (received,) = pair.received()
        assert received.header == VirtioNetHdr(num_buffers=1)
        assert assert_right(received.frame)[kind[1]].payload.build() == payload


def test_udp_checksum_of_zero_is_sent_as_ones() -> None:
    """RFC 768: 0 means that there is none."""
    with open_pair(sends=CSUM) as pair:
        pair.b.offer(2048)
        probe = offloaded(4, UDP, b"\0\0")
        rest = (FROM_A4 / UDP(sport=1000, dport=2000) / b"\0\0").build()
        # What makes the sum come out as 0 when it is the payload.
        payload = Ether(rest)[UDP].chksum.to_bytes(2, "big")
        sent = attrs.evolve(probe, packet=FROM_A4 / UDP(sport=1000, dport=2000) / payload)
        pair.send(sent.frame, header=sent.header)
        (received,) = pair.received()
        assert received.frame[40:42] == b"\xff\xff"
        assert_right(received.frame)


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_checksum_of_a_packet_that_goes_on_from_its_target(kind: type[Packet]) -> None:
    """It is for the last of the route (RFC 8200, 8.1), which the driver has summed up."""
    route = IPv6ExtHdrRouting(type=4, segleft=1, addresses=["fd00::99"])
    wanted = bytes(ETHER / IPv6(src=A6, dst="fd00::99") / kind() / b"hello")
    sent = bytearray(bytes(FROM_A6 / route / kind() / b"hello"))
    start, offset = 54 + len(route), 6 if kind is UDP else 16
    length = len(sent) - start
    pseudo = IPv6(wanted[14:54]).src, "fd00::99", length, kind().overload_fields[IPv6]["nh"]
    packed = b"".join(ip_address(name).packed for name in pseudo[:2])
    partial = 0xFFFF ^ internet_checksum(packed + struct.pack("!II", *pseudo[2:]))
    struct.pack_into("!H", sent, start + offset, partial)
    header = VirtioNetHdr(flags=NEEDS_CSUM, csum_start=start, csum_offset=offset)
    with open_pair(sends=ALL_HOST) as pair:
        pair.b.offer(2048)
        assert pair.send(bytes(sent), header=header) == []
        (received,) = pair.received()
        assert received.frame[start:] == wanted[54:]
        gso = VirtioNetHdr(
            flags=NEEDS_CSUM,
            gso_type=TCPV6 if kind is TCP else UDP_L4,
            gso_size=2,
            csum_start=start,
            csum_offset=offset,
        )
        pair.send(bytes(sent), header=gso)
        assert pair.a.drops() == {"OFFLOAD_INVALID": 1}


@pytest.mark.parametrize(("family", "protocol"), [(4, TCP), (6, TCP), (4, UDP), (6, UDP)])
def test_no_checksum_for_a_receiver_that_needs_none(family: int, protocol: type[Packet]) -> None:
    sent = offloaded(family, protocol, b"payload")
    with open_pair(sends=CSUM, takes=GUEST_CSUM) as pair:
        pair.b.offer(2048)
        pair.send(sent.frame, header=sent.header)
        (received,) = pair.received()
        assert received.header == attrs.evolve(sent.header, hdr_len=0, num_buffers=1)
        assert received.frame[14 + 20 :] == sent.frame[14 + 20 :]


def receiver_takes(takes: int, header: VirtioNetHdr, family: int) -> bool:
    """Whether a driver with these features takes a packet without segmentation."""
    kind = header.gso_type & ~ECN
    needed = {TCPV4: GUEST_TSO4, TCPV6: GUEST_TSO6}.get(
        kind, GUEST_USO4 if family == 4 else GUEST_USO6
    )
    needed |= GUEST_CSUM | (GUEST_ECN if header.gso_type & ECN else 0)
    return takes & needed == needed


def reference_segments(sent: Offloaded, protocol: type[Packet]) -> list[Packet]:
    """What segmentation makes of a packet, with the checksums that scapy computes."""
    whole = Ether(bytes(sent.packet))
    payload, size = whole[protocol].payload.build(), sent.header.gso_size
    segments = []
    for number, start in enumerate(range(0, len(payload), size)):
        segment = whole.copy()
        segment.src, segment.dst = GATEWAY, str(B)
        segment[protocol].remove_payload()
        segment /= payload[start : start + size]
        for layer in (IP, IPv6, protocol):
            for field in ("chksum", "len", "plen"):
                if segment.haslayer(layer) and field in segment[layer].fields:
                    delattr(segment[layer], field)
        if IP in segment:
            segment[IP].ttl -= 1
            segment[IP].id = (segment[IP].id + number) & 0xFFFF
        else:
            segment[IPv6].hlim -= 1
        if protocol is TCP:
            segment[TCP].seq = (segment[TCP].seq + start) & 0xFFFFFFFF
            if start:
                segment[TCP].flags &= ~0x80
            if start + size < len(payload):
                segment[TCP].flags &= ~0x09
        segments.append(segment)
    return segments


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=kinds,
    size=st.integers(1, 20000),
    gso=st.integers(100, 1440),
    takes=st.integers(0, 127),
    ecn=st.booleans(),
    flags=st.sampled_from(["A", "PA", "FPA", "FPAC", "AC", "FPUAEC"]),
    seq=st.sampled_from([0, 0xFFFFFF00, 12345]),
    ident=st.integers(0, 65535),
    cuts=st.lists(st.integers(1, 3000), max_size=8),
)
def test_segments_or_one_packet_as_the_receiver_has_it(
    kind: tuple[int, type[Packet]],
    size: int,
    gso: int,
    takes: int,
    ecn: bool,
    flags: str,
    seq: int,
    ident: int,
    cuts: list[int],
) -> None:
    family, protocol = kind
    features = [
        *(GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN),
        *(GUEST_USO4, GUEST_USO6, MRG_RXBUF),
    ]
    takes = sum(bit for number, bit in enumerate(features) if takes >> number & 1)
    payload = bytes(i * 11 % 253 for i in range(size))
    fields = {"flags": flags, "seq": seq} if protocol is TCP else {}
    sent = offloaded(family, protocol, payload, gso, **fields)
    if family == 4:
        sent.packet[IP].id = ident
    if protocol is TCP and ecn:
        header = attrs.evolve(sent.header, gso_type=sent.header.gso_type | ECN)
        sent = attrs.evolve(sent, header=header)
    regions = [Region(0, 8 << 20)]
    with open_pair(sends=ALL_HOST, takes=takes, size=1024, regions=regions) as pair:
        mergeable = bool(takes & MRG_RXBUF)
        pair.b.offer(2000 if mergeable else 21000, 250)
        lengths = split_lengths(12 + len(sent.frame), cuts)
        pair.a.tx.add_tx_buffer(
            [(pair.a.buffer(length), length) for length in lengths], sent.frame, header=sent.header
        )
        assert pair.a.drain() == []
        received = pair.received()
        assert (pair.a.drops(), pair.b.drops(), pair.b.port.backlog) == ({}, {}, 0)

    if size <= gso or receiver_takes(takes, sent.header, family):
        (whole,) = received
        check_whole(whole, sent, protocol, takes)
        return
    expected = reference_segments(sent, protocol)
    assert len(received) == len(expected)
    for got, want in zip(received, expected, strict=True):
        if takes & GUEST_CSUM:
            check_partial(got, want, sent, protocol)
        else:
            assert got.header == VirtioNetHdr(num_buffers=got.header.num_buffers)
            assert got.frame == bytes(want)


def check_whole(got: ReceivedFrame, sent: Offloaded, protocol: type[Packet], takes: int) -> None:
    payload = sent.packet[protocol].payload.build()
    assert Ether(got.frame)[protocol].payload.build() == payload
    gso = len(payload) > sent.header.gso_size
    if not takes & GUEST_CSUM:
        assert not gso
        assert got.header == VirtioNetHdr(num_buffers=got.header.num_buffers)
        assert_right(got.frame)
        return
    transport = (Ether(got.frame)[TCP].dataofs * 4) if protocol is TCP else 8
    assert got.header == VirtioNetHdr(
        flags=NEEDS_CSUM,
        gso_type=sent.header.gso_type if gso else 0,
        gso_size=sent.header.gso_size if gso else 0,
        hdr_len=sent.header.csum_start + transport if gso else 0,
        csum_start=sent.header.csum_start,
        csum_offset=sent.header.csum_offset,
        num_buffers=got.header.num_buffers,
    )


def check_partial(
    got: ReceivedFrame, want: Packet, sent: Offloaded, protocol: type[Packet]
) -> None:
    """All but the checksum is there, and completing it gives the right one."""
    start, offset = sent.header.csum_start, sent.header.csum_offset
    assert got.header == VirtioNetHdr(
        flags=NEEDS_CSUM,
        csum_start=start,
        csum_offset=offset,
        num_buffers=got.header.num_buffers,
    )
    completed = bytearray(got.frame)
    total = 0
    data = got.frame[start:] + bytes(len(got.frame[start:]) % 2)
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2], "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum = ~total & 0xFFFF
    if protocol is UDP:
        checksum = checksum or 0xFFFF
    completed[start + offset : start + offset + 2] = checksum.to_bytes(2, "big")
    assert bytes(completed) == bytes(want)


def header(**fields: int) -> VirtioNetHdr:
    base = {"flags": NEEDS_CSUM, "csum_start": 34, "csum_offset": 16}
    return VirtioNetHdr(**{**base, **fields})


TCP_PACKET = FROM_A4 / TCP() / bytes(3000)
UDP_PACKET = FROM_A4 / UDP() / bytes(3000)


@pytest.mark.parametrize(
    ("packet", "hdr"),
    [
        (TCP_PACKET, header(csum_start=3054)),
        (TCP_PACKET, header(csum_start=65535)),
        (TCP_PACKET, header(csum_start=0)),
        (TCP_PACKET, header(csum_start=13)),
        (TCP_PACKET, header(csum_start=35)),
        (TCP_PACKET, header(csum_start=54)),
        (TCP_PACKET, header(csum_offset=6)),
        (TCP_PACKET, header(csum_offset=65535)),
        (UDP_PACKET, header(csum_offset=16)),
        (FROM_A4 / ICMP(), header(csum_offset=2)),
        (ETHER / IP(src=A4, dst=B4, proto=132) / bytes(30), header(csum_offset=8)),
        (ETHER / IP(src=A4, dst=B4, flags="MF") / TCP() / bytes(24), header()),
        (ETHER / IP(src=A4, dst=B4, frag=1) / TCP() / bytes(24), header()),
        (FROM_A6 / IPv6ExtHdrFragment(nh=6) / TCP(), header(csum_start=62)),
        (ETHER / IP(src=A4, dst=B4, proto=6) / bytes(19), header()),
        (FROM_A4 / TCP(dataofs=4), header()),
        (FROM_A4 / TCP(dataofs=15), header()),
        (FROM_A4 / UDP(len=7), header(csum_offset=6)),
        (FROM_A4 / UDP(len=9), header(csum_offset=6)),
        (TCP_PACKET, header(flags=0, gso_type=TCPV4, gso_size=1000)),
        (TCP_PACKET, header(gso_type=TCPV4, gso_size=0)),
        (TCP_PACKET, header(gso_type=TCPV4, gso_size=2)),
        (TCP_PACKET, header(gso_type=TCPV6, gso_size=1000)),
        (TCP_PACKET, header(gso_type=UDP_L4, gso_size=1000)),
        (UDP_PACKET, header(csum_offset=6, gso_type=TCPV4, gso_size=1000)),
        (UDP_PACKET, header(csum_offset=6, gso_type=UDP_L4 | ECN, gso_size=1000)),
        (FROM_A6 / TCP() / bytes(3000), header(csum_start=54, gso_type=TCPV4, gso_size=1000)),
        (ETHER.copy(), header()),
    ],
)
def test_p02_p03_p04_header_that_contradicts_the_packet(packet: Packet, hdr: VirtioNetHdr) -> None:
    if packet == ETHER:
        packet = Ether(src=str(A), dst=GATEWAY, type=0x0806) / bytes(28)
    with open_pair(sends=ALL_HOST, takes=ALL_GUEST | MRG_RXBUF) as pair:
        pair.b.offer(2048, 16)
        assert pair.send(packet, header=hdr) == []
        assert pair.a.drops() == {"OFFLOAD_INVALID": 1}
        assert pair.received() == []


@pytest.mark.parametrize(
    ("sends", "hdr"),
    [
        (0, header()),
        (ALL_HOST & ~CSUM, header()),
        (ALL_HOST & ~HOST_TSO4, header(gso_type=TCPV4, gso_size=1000)),
        (ALL_HOST & ~HOST_TSO6, header(gso_type=TCPV6, gso_size=1000)),
        (ALL_HOST & ~HOST_USO, header(gso_type=UDP_L4, gso_size=1000)),
        (ALL_HOST & ~HOST_ECN, header(gso_type=TCPV4 | ECN, gso_size=1000)),
        (ALL_HOST, header(gso_type=3, gso_size=1000)),
        (ALL_HOST, header(gso_type=2, gso_size=1000)),
        (ALL_HOST, header(gso_type=ECN, gso_size=1000)),
        (ALL_HOST, header(gso_type=127, gso_size=1000)),
    ],
)
def test_p01_p03_not_negotiated(sends: int, hdr: VirtioNetHdr) -> None:
    with open_pair(sends=sends, takes=ALL_GUEST) as pair:
        assert pair.send(TCP_PACKET, header=hdr) == []
        assert pair.a.drops() == {"OFFLOAD_NOT_NEGOTIATED": 1}


def test_p01_other_flags_are_ignored_and_not_passed_on() -> None:
    with open_pair(sends=ALL_HOST, takes=ALL_GUEST) as pair:
        pair.b.offer(2048, 2)
        for flags in (0xFE, 2):
            junk = VirtioNetHdr(flags, 0, 7, 7, 7, 7, 7)
            pair.send(FROM_A4 / UDP(), header=junk)
        assert [received.header for received in pair.received()] == [
            VirtioNetHdr(num_buffers=1)
        ] * 2


def test_offload_of_a_packet_with_long_headers() -> None:
    packet = FROM_A6.copy()
    for _ in range(6):
        packet /= IPv6ExtHdrDestOpt(options=[], len=3) / Raw(bytes(24))
    # scapy does not put options into shape by itself; the bytes are what counts.
    extensions = b"".join(
        bytes([6 if number == 5 else 60, 3]) + b"\1\x1c" + bytes(28) for number in range(6)
    )
    tcp = bytes(FROM_A6 / TCP(flags="A") / bytes(4000))[54:]
    frame = bytearray(
        bytes(ETHER / IPv6(src=A6, dst=B6, nh=60, plen=len(extensions + tcp))) + extensions + tcp
    )
    start = 54 + len(extensions)
    hdr = VirtioNetHdr(flags=1, gso_type=TCPV6, gso_size=1000, csum_start=start, csum_offset=16)
    with open_pair(sends=ALL_HOST, mtu=9000) as pair:
        pair.b.offer(4096, 8)
        assert pair.send(bytes(frame), header=hdr) == []
        received = pair.received()
        assert len(received) == 4
        for got in received:
            assert got.frame[54:start] == extensions
            assert len(got.frame) == start + 20 + 1000
            inner = IPv6(src=A6, dst=B6) / TCP(got.frame[start:])
            checksum = inner[TCP].chksum
            del inner[TCP].chksum
            assert IPv6(bytes(inner))[TCP].chksum == checksum


def test_gso_larger_than_the_mtu_of_the_receiver_is_too_big() -> None:
    for family in (4, 6):
        sent = offloaded(family, TCP, bytes(4000), 1480)
        if family == 4:
            sent.packet[IP].flags = "DF"
        with open_pair(sends=ALL_HOST, takes=ALL_GUEST) as pair:
            (punt,) = pair.send(sent.frame, header=sent.header)
            assert (punt.error, punt.mtu) == (IcmpError.TOO_BIG, 1500)


def test_services_get_whole_checksums() -> None:
    with open_pair(sends=CSUM) as pair:
        packet = ETHER / IP(src=A4, dst="169.254.0.1") / UDP(sport=68, dport=67) / bytes(300)
        hdr = header(csum_offset=6)
        (punt,) = pair.send(partial_frame(packet, 40), header=hdr)
        assert punt.kind is PuntKind.DHCPV4
        assert punt.frame == bytes(packet)


# Fragments


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    size=st.integers(1450, 3000),
    mtu=st.one_of(st.integers(68, 1500), st.sampled_from([576, 1280])),
    options=st.sampled_from([0, 1, 4, 9]),
    leave_checksum=st.booleans(),
)
def test_packet_without_df_is_fragmented(
    size: int, mtu: int, options: int, leave_checksum: bool
) -> None:
    payload = bytes(i * 13 % 241 for i in range(size))
    ip = IP(src=A4, dst=B4, id=77, options=[IPOption_Router_Alert()] * options)
    packet = ETHER / ip / UDP(sport=1, dport=2) / payload
    start = 34 + 4 * options
    hdr = VirtioNetHdr(flags=1, csum_start=start, csum_offset=6) if leave_checksum else None
    with open_pair(sends=CSUM, size=1024) as pair:
        pair.b.offer(1600, 1000)
        pair.b.port.set_mtu(mtu)
        frame = partial_frame(packet, start + 6) if leave_checksum else bytes(packet)
        assert pair.send(frame, header=hdr) == []
        received = [right_fragment(got.frame) for got in pair.received()]
    assert all(len(fragment) <= mtu for fragment in received)
    assert all(fragment.ttl == 63 for fragment in received)
    # As few as can be: all but the last are as full as units of eight bytes allow.
    assert all(len(fragment) > mtu - 8 for fragment in received[:-1])
    (whole,) = defragment(received)  # type: ignore[no-untyped-call]
    assert len(received) == 1 or len(whole) == 20 + 4 * options + 8 + size
    expected = packet.copy()
    assert whole[UDP].payload.build() == payload
    assert whole[UDP].chksum == Ether(bytes(expected))[UDP].chksum


def test_fragment_is_fragmented_again() -> None:
    fragment = ETHER / IP(src=A4, dst=B4, id=7, frag=100, flags="MF") / Raw(bytes(1200))
    last = ETHER / IP(src=A4, dst=B4, id=7, frag=250) / Raw(bytes(1000))
    with open_pair() as pair:
        pair.b.offer(2048, 8)
        pair.b.port.set_mtu(820)
        pair.send(fragment)
        pair.send(last)
        pieces = [right_fragment(got.frame) for got in pair.received()]
        assert [(piece.frag, int(piece.flags), len(piece) - 20) for piece in pieces] == [
            *((100, 1, 800), (200, 1, 400)),
            *((250, 1, 800), (350, 0, 200)),
        ]


def test_reserved_flag_is_passed_on_in_each_fragment() -> None:
    """RFC 1812, 4.2.2.3: routers do not look at it, and keep it."""
    packet = ETHER / IP(src=A4, dst=B4, id=7, flags="evil") / Raw(bytes(1200))
    with open_pair() as pair:
        pair.b.offer(2048, 5)
        pair.b.port.set_mtu(576)
        pair.send(packet)
        pieces = [right_fragment(got.frame) for got in pair.received()]
    assert [str(piece.flags) for piece in pieces] == ["MF+evil", "MF+evil", "evil"]


def test_options_that_are_not_copied_are_blanked_in_later_fragments() -> None:
    options = b"\x1e\x04\xaa\xbb" + b"\x94\x04\x00\x00" + b"\x01\x01\x00\x00"
    packet = ETHER / IP(src=A4, dst=B4, options=options) / UDP() / bytes(1000)
    with open_pair() as pair:
        pair.b.offer(2048, 8)
        pair.b.port.set_mtu(576)
        pair.send(packet)
        received = pair.received()
        assert all(right_fragment(got.frame) for got in received)
        first, second = (got.frame[34:46] for got in received)
        assert first == options
        assert second == b"\x01\x01\x01\x01" + options[4:]


def numbered(count: int) -> Sequence[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


def test_order_and_no_duplicates_over_100_000_packets() -> None:
    """In bursts of any size, with a receiver that is sometimes slow; what is dropped is counted."""
    with open_pair(size=256) as pair:
        template = bytes(ETHER / IP(src=A4, dst=B4) / UDP(chksum=0) / bytes(4))[:-4]
        frames = iter([template + number for number in numbered(100_000)])
        buffers = itertools.cycle([0, 256, 100, 7])
        addrs = [pair.a.buffer(12 + len(template) + 4) for _ in range(256)]
        rooms = [pair.b.buffer(128) for _ in range(256)]
        received: list[bytes] = []
        while burst := list(itertools.islice(frames, 200)):
            for addr, frame in zip(addrs, burst, strict=False):
                pair.a.tx.add_tx_buffer([(addr, 12 + len(frame))], frame)
            pair.a.drain()
            while pair.a.tx.pop_used():
                pass
            for _ in range(min(next(buffers), 256 - pair.b.rx.outstanding)):
                pair.b.rx.add_rx_buffer([(rooms.pop(), 128)])
            pair.b.flush()
            for got in pair.received():
                received.append(got.frame[-4:])
                rooms += [addr for buffer in got.buffers for addr, _ in buffer.writable]
        while pair.b.port.backlog:
            for _ in range(256 - pair.b.rx.outstanding):
                pair.b.rx.add_rx_buffer([(rooms.pop(), 128)])
            pair.b.flush()
            for got in pair.received():
                received.append(got.frame[-4:])
                rooms += [addr for buffer in got.buffers for addr, _ in buffer.writable]
        assert received == sorted(set(received))
        assert len(received) + sum(pair.b.drops().values()) == 100_000
        assert pair.a.port.stats().routed == 100_000
        assert len(received) > 30_000
