"""The harness's IPv6, DHCPv6 and TCP, with scapy as a second opinion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.dhcp6 import DHCP6_Request, DHCP6_Solicit, DHCP6OptIA_NA, DHCP6OptIA_PD
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.harness.packets import (
    GATEWAY_IPV6,
    GATEWAY_MAC,
    Parser,
    dhcpv6_message,
    dhcpv6_request,
    dhcpv6_solicit,
    duid_ll,
    ethernet_frame,
    group_mac,
    ia_pd,
    icmpv6_echo_reply,
    icmpv6_echo_request,
    icmpv6_frame,
    ipv6_bytes,
    ipv6_packet,
    is_dhcpv6_response,
    is_icmpv6_echo_reply,
    is_icmpv6_echo_request,
    is_icmpv6_error,
    is_neighbor_advertisement,
    is_router_advertisement,
    link_local,
    neighbor_solicitation,
    parse_icmpv6_echo_reply,
    parse_icmpv6_error,
    parse_neighbor_advertisement,
    parse_router_advertisement,
    parse_tcp,
    router_solicitation,
    solicited_node,
    tcp_frame,
    udp_frame6,
)

MAC = "52:54:00:12:34:56"
LINK_LOCAL = link_local(MAC)
SCAPY_GATEWAY = Ether(src="02:00:00:00:00:01", dst=MAC) / IPv6(
    src="fe80::1", dst="fe80::5054:ff:fe12:3456", hlim=255
)


def assert_scapy_agrees(frame: bytes, layer: type[Packet]) -> Any:
    """Every length and checksum is what scapy computes; the layer."""
    packet = Ether(frame)
    again = packet.copy()
    for found in (IP, IPv6, UDP, TCP, layer):
        for field in ("len", "plen", "chksum", "cksum"):
            if again.haslayer(found) and field in again[found].fields:
                delattr(again[found], field)
    assert bytes(again) == frame
    return packet[layer]


def test_addresses() -> None:
    assert link_local(MAC) == ipv6_bytes("fe80::5054:ff:fe12:3456")
    assert group_mac("ff02::1:ff00:1") == bytes.fromhex("3333ff000001")
    assert solicited_node("fd00::ab:cdef") == ipv6_bytes("ff02::1:ffab:cdef")
    with pytest.raises(ValueError, match="IPv6"):
        ipv6_bytes(bytes(4))


@pytest.mark.parametrize(
    ("frame", "layer"),
    [
        (neighbor_solicitation(MAC, LINK_LOCAL, GATEWAY_IPV6), ICMPv6ND_NS),
        (neighbor_solicitation(MAC, "::", LINK_LOCAL), ICMPv6ND_NS),
        (router_solicitation(MAC, LINK_LOCAL), ICMPv6ND_RS),
        (router_solicitation(MAC, "::"), ICMPv6ND_RS),
        (
            icmpv6_echo_request(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 1, 2, b"odd"),
            ICMPv6EchoRequest,
        ),
        (
            icmpv6_echo_reply(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 1, 2, b"even"),
            ICMPv6EchoReply,
        ),
        (udp_frame6(MAC, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, b"data"), UDP),
        (tcp_frame(MAC, GATEWAY_MAC, "fd00::1", "fd00::2", b"data"), TCP),
        (tcp_frame(MAC, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", b"odd"), TCP),
        (dhcpv6_solicit(MAC, LINK_LOCAL, 1, 2), DHCP6_Solicit),
        (dhcpv6_request(MAC, LINK_LOCAL, 1, duid_ll(GATEWAY_MAC), 2), DHCP6_Request),
    ],
)
def test_scapy_understands(frame: bytes, layer: type[Packet]) -> None:
    assert_scapy_agrees(frame, layer)


def test_what_is_in_them() -> None:
    ns = Ether(neighbor_solicitation(MAC, LINK_LOCAL, GATEWAY_IPV6))
    assert (ns.dst, ns[IPv6].dst, ns[IPv6].hlim) == ("33:33:ff:00:00:01", "ff02::1:ff00:1", 255)
    assert ns[ICMPv6NDOptSrcLLAddr].lladdr == MAC
    dad = Ether(neighbor_solicitation(MAC, "::", LINK_LOCAL))
    assert not dad.haslayer(ICMPv6NDOptSrcLLAddr)
    assert Ether(dhcpv6_solicit(MAC, LINK_LOCAL, 0x10203, 9))[DHCP6_Solicit].trid == 0x10203
    assert Ether(dhcpv6_solicit(MAC, LINK_LOCAL, 1, 9))[DHCP6OptIA_NA].iaid == 9
    pd = Ether(dhcpv6_message(MAC, LINK_LOCAL, 1, 1, ia_pd(7, [("2001:db8::", 56)])))
    assert pd[DHCP6OptIA_PD].iapdopt[0].prefix == "2001:db8::"
    packet = ipv6_packet("fd00::1", "fd00::2", 17, bytes(8), extensions=[(60, bytes(7))])
    parsed = Ether(ethernet_frame(GATEWAY_MAC, MAC, 0x86DD, packet))
    assert parsed[IPv6ExtHdrDestOpt].nh == 17


def test_partial_checksum_is_the_pseudo_headers() -> None:
    whole = tcp_frame(MAC, GATEWAY_MAC, "fd00::1", "fd00::2", b"data")
    partial = tcp_frame(MAC, GATEWAY_MAC, "fd00::1", "fd00::2", b"data", partial=True)
    assert whole[:70] == partial[:70]
    assert whole[72:] == partial[72:]
    parse_tcp(partial, checksum=False)
    with pytest.raises(ValueError, match="checksum"):
        parse_tcp(partial)


def test_neighbor_advertisement() -> None:
    packet = (
        SCAPY_GATEWAY
        / ICMPv6ND_NA(R=1, S=1, O=0, tgt="fe80::1")
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:01")
    )
    parsed = parse_neighbor_advertisement(bytes(packet))
    assert (parsed.router, parsed.solicited, parsed.override) == (True, True, False)
    assert (parsed.target_ip, parsed.target_mac) == (GATEWAY_IPV6, GATEWAY_MAC)


def test_router_advertisement() -> None:
    packet = (
        SCAPY_GATEWAY
        / ICMPv6ND_RA(M=1, O=0, routerlifetime=1800, chlim=64)
        / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:01")
        / ICMPv6NDOptMTU(mtu=9000)
        / ICMPv6NDOptPrefixInfo(prefix="fd00::")
        / ICMPv6NDOptRDNSS(dns=["fd00::53", "fd00::54"], lifetime=7)
    )
    parsed = parse_router_advertisement(bytes(packet))
    assert (parsed.managed, parsed.other_config, parsed.router_lifetime) == (True, False, 1800)
    assert (parsed.mtu, parsed.hop_limit, parsed.source_mac) == (9000, 64, GATEWAY_MAC)
    assert parsed.prefix is not None
    assert parsed.dns_servers == (ipv6_bytes("fd00::53"), ipv6_bytes("fd00::54"))
    assert parsed.dns_lifetime == 7


def test_error() -> None:
    packet = SCAPY_GATEWAY / ICMPv6DestUnreach(code=3) / IPv6(src="fd00::1", dst="fd00::2")
    parsed = parse_icmpv6_error(bytes(packet))
    assert (parsed.kind, parsed.code, len(parsed.quoted)) == (1, 3, 40)


GOOD: dict[Callable[[bytes], bool], bytes] = {
    is_icmpv6_echo_request: icmpv6_echo_request(MAC, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, b""),
    is_icmpv6_echo_reply: icmpv6_echo_reply(MAC, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, b""),
    is_neighbor_advertisement: icmpv6_frame(
        MAC, GATEWAY_MAC, "fe80::1", "fd00::2", 136, 0, bytes(4) + GATEWAY_IPV6, hop_limit=255
    ),
    is_router_advertisement: icmpv6_frame(
        MAC, GATEWAY_MAC, "fe80::1", "fd00::2", 134, 0, bytes(12), hop_limit=255
    ),
    is_icmpv6_error: icmpv6_frame(MAC, GATEWAY_MAC, "fe80::1", "fd00::2", 1, 0, bytes(44)),
    is_dhcpv6_response: udp_frame6(GATEWAY_MAC, MAC, "fe80::1", LINK_LOCAL, 547, 546, b"\7\1\2\3"),
}


@pytest.mark.parametrize("check", GOOD, ids=lambda check: check.__name__)
def test_each_knows_its_own_and_no_other(check: Callable[[bytes], bool]) -> None:
    for other, frame in GOOD.items():
        assert check(frame) == (check is other)


@pytest.mark.parametrize("check", GOOD, ids=lambda check: check.__name__)
def test_damage_is_noticed(check: Callable[[bytes], bool]) -> None:
    frame = GOOD[check]
    for position in (14, 18, 30, len(frame) - 1):
        damaged = bytearray(frame)
        damaged[position] ^= 0x40
        assert not check(bytes(damaged))
    for length in (0, 13, 40, len(frame) - 1):
        assert not check(frame[:length])


@pytest.mark.parametrize("parse", [parse_icmpv6_echo_reply, parse_tcp, parse_router_advertisement])
def test_only_value_errors(parse: Parser) -> None:
    for frame in (b"", bytes(14), bytes(100), b"\xff" * 100):
        with pytest.raises(ValueError):  # noqa: PT011  (which one does not matter)
            parse(frame)
