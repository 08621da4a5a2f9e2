"""ICMP errors of both families: type, code, quotation, sizes."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, IPv6
from scapy.layers.inet6 import ICMPv6TimeExceeded as TimeExceeded6
from scapy.layers.l2 import Ether

from mvirt_net.dataplane.icmp_errors import IcmpErrorBuilder
from mvirt_net.dataplane.packet import Malformed
from mvirt_net.model import IcmpError, MacAddress
from tests.harness.packets import (
    GATEWAY_IP,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    ethernet_frame,
    ip_bytes,
    ipv6_bytes,
    ipv6_packet,
    parse_icmp_error,
    parse_icmpv6_error,
    udp_frame,
    udp_frame6,
)

MAC = "52:54:00:12:34:56"
BUILDER = IcmpErrorBuilder(MacAddress.parse(MAC))


def packet4(size: int = 100) -> bytes:
    return udp_frame(MAC, GATEWAY_MAC, "10.0.0.5", "192.0.2.1", 1, 2, bytes(size))


def packet6(size: int = 100) -> bytes:
    return udp_frame6(MAC, GATEWAY_MAC, "fd00::5", "2001:db8::1", 1, 2, bytes(size))


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (IcmpError.TIME_EXCEEDED, 11, 0),
        (IcmpError.NET_UNREACHABLE, 3, 0),
        (IcmpError.HOST_UNREACHABLE, 3, 1),
        (IcmpError.PROTOCOL_UNREACHABLE, 3, 2),
        (IcmpError.PORT_UNREACHABLE, 3, 3),
        (IcmpError.TOO_BIG, 3, 4),
        (IcmpError.ADMIN_PROHIBITED, 3, 13),
    ],
)
def test_ipv4(error: IcmpError, kind: int, code: int) -> None:
    frame = BUILDER.build(packet4(), error, 1400)
    got = parse_icmp_error(frame)
    assert (got.kind, got.code) == (kind, code)
    assert got.word == (1400 if error is IcmpError.TOO_BIG else 0)
    assert got.quoted == packet4()[14:]
    assert (got.src_ip, got.dst_ip) == (GATEWAY_IP, ip_bytes("10.0.0.5"))
    assert (got.src_mac, got.dst_mac) == (GATEWAY_MAC, MacAddress.parse(MAC).packed)
    packet = Ether(frame)
    assert (packet[IP].tos, packet[IP].ttl) == (0xC0, 64)
    del packet[IP].chksum, packet[IP].len, packet[ICMP].chksum
    assert bytes(packet) == frame


@pytest.mark.parametrize(
    ("error", "kind", "code", "layer"),
    [
        (IcmpError.TIME_EXCEEDED, 3, 0, TimeExceeded6),
        (IcmpError.NET_UNREACHABLE, 1, 0, ICMPv6DestUnreach),
        (IcmpError.ADMIN_PROHIBITED, 1, 1, ICMPv6DestUnreach),
        (IcmpError.HOST_UNREACHABLE, 1, 3, ICMPv6DestUnreach),
        (IcmpError.PORT_UNREACHABLE, 1, 4, ICMPv6DestUnreach),
        (IcmpError.TOO_BIG, 2, 0, ICMPv6PacketTooBig),
        (IcmpError.PROTOCOL_UNREACHABLE, 4, 1, ICMPv6ParamProblem),
    ],
)
def test_ipv6(error: IcmpError, kind: int, code: int, layer: type) -> None:
    frame = BUILDER.build(packet6(), error, 1400)
    got = parse_icmpv6_error(frame)
    assert (got.kind, got.code) == (kind, code)
    assert got.quoted == packet6()[14:]
    assert (got.src_ip, got.dst_ip) == (GATEWAY_IPV6, ipv6_bytes("fd00::5"))
    packet = Ether(frame)
    del packet[IPv6].plen, packet[layer].cksum
    assert bytes(packet) == frame


def test_mtu() -> None:
    assert parse_icmp_error(BUILDER.build(packet4(), IcmpError.TOO_BIG, 65535)).mtu == 65535
    assert parse_icmpv6_error(BUILDER.build(packet6(), IcmpError.TOO_BIG, 65535)).mtu == 65535


def test_as_much_is_quoted_as_every_link_carries() -> None:
    got = parse_icmp_error(BUILDER.build(packet4(1400), IcmpError.TOO_BIG, 1400))
    assert (got.size, got.quoted) == (576, packet4(1400)[14 : 14 + 548])
    got = parse_icmpv6_error(BUILDER.build(packet6(1400), IcmpError.TOO_BIG, 1400))
    assert (got.size, got.quoted) == (1280, packet6(1400)[14 : 14 + 1232])


@pytest.mark.parametrize(
    ("extensions", "pointer"),
    [([], 6), ([(60, b"\0" + bytes(6))], 40), ([(0, b"\1" + bytes(14)), (60, bytes(7))], 56)],
)
def test_pointer_to_the_protocol(extensions: list[tuple[int, bytes]], pointer: int) -> None:
    packet = ipv6_packet("fd00::5", "fe80::1", 6, bytes(20), extensions=extensions)
    frame = ethernet_frame(GATEWAY_MAC, MAC, 0x86DD, packet)
    assert parse_icmpv6_error(BUILDER.build(frame, IcmpError.PROTOCOL_UNREACHABLE)).word == pointer
    assert packet[pointer] == 6


@pytest.mark.parametrize("frame", [b"", bytes(14), packet4()[:33], packet6()[:53], bytes(100)])
def test_nothing_to_quote(frame: bytes) -> None:
    with pytest.raises(Malformed):
        BUILDER.build(frame, IcmpError.TIME_EXCEEDED)
