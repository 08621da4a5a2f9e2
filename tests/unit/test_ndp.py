"""Neighbour discovery: who is answered, what is said, and when it is said unasked."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from mvirt_net.dataplane.ndp import NdpResponder, RaSchedule
from mvirt_net.model import DropReason, MacAddress
from tests.harness.packets import (
    GATEWAY_IPV6,
    GATEWAY_MAC,
    UNSPECIFIED_IPV6,
    icmpv6_frame,
    ipv6_bytes,
    link_local,
    neighbor_solicitation,
    parse_neighbor_advertisement,
    parse_router_advertisement,
    router_solicitation,
)

from .fuzzing import mutated

MAC = "52:54:00:12:34:56"
LINK_LOCAL = link_local(MAC)
OWN = "fd00::5"
TO_ALL_MAC = bytes.fromhex("333300000001")


def responder(**options: Any) -> NdpResponder:
    return NdpResponder(MacAddress.parse(MAC), **options)


def answer(frame: bytes, **options: Any) -> bytes:
    reply = responder(**options).handle(frame)
    assert isinstance(reply, bytes)
    return reply


def assert_scapy_agrees(frame: bytes) -> Any:
    """The lengths and the checksum are what scapy computes."""
    packet = Ether(frame)
    again = packet.copy()
    del again[IPv6].plen
    for layer in (ICMPv6ND_NA, ICMPv6ND_RA):
        if again.haslayer(layer):
            del again[layer].cksum
    assert bytes(again) == frame
    return packet[IPv6]


@pytest.mark.parametrize("source", [LINK_LOCAL, ipv6_bytes(OWN)])
def test_gateway_is_found(source: bytes) -> None:
    frame = answer(neighbor_solicitation(MAC, source, GATEWAY_IPV6))
    packet = assert_scapy_agrees(frame)
    assert packet.hlim == 255
    assert (packet[ICMPv6ND_NA].R, packet[ICMPv6ND_NA].S, packet[ICMPv6ND_NA].O) == (1, 1, 1)
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == "02:00:00:00:00:01"
    reply = parse_neighbor_advertisement(frame)
    assert (reply.src_ip, reply.dst_ip) == (GATEWAY_IPV6, source)
    assert (reply.src_mac, reply.dst_mac) == (GATEWAY_MAC, MacAddress.parse(MAC).packed)


def test_literal_bytes() -> None:
    frame = answer(neighbor_solicitation(MAC, LINK_LOCAL, GATEWAY_IPV6))
    assert frame.hex() == (
        "525400123456 020000000001 86dd"
        "60000000 0020 3a ff fe800000000000000000000000000001 fe80000000000000505400fffe123456"
        "88 00 1461 e0000000 fe800000000000000000000000000001 0201020000000001"
    ).replace(" ", "")


def test_unreachability_probe_without_option() -> None:
    probe = neighbor_solicitation(
        MAC, LINK_LOCAL, GATEWAY_IPV6, dst_ip=GATEWAY_IPV6, dst_mac=GATEWAY_MAC, options=b""
    )
    assert parse_neighbor_advertisement(answer(probe)).solicited


def test_gateways_address_is_defended() -> None:
    reply = parse_neighbor_advertisement(
        answer(neighbor_solicitation(MAC, UNSPECIFIED_IPV6, GATEWAY_IPV6))
    )
    assert (reply.dst_ip, reply.dst_mac) == (ipv6_bytes("ff02::1"), TO_ALL_MAC)
    assert (reply.router, reply.solicited, reply.override) == (True, False, True)


@pytest.mark.parametrize("target", [OWN, LINK_LOCAL, "fe80::2", "::1"])
@pytest.mark.parametrize("source", [LINK_LOCAL, UNSPECIFIED_IPV6])
def test_nobody_else_is_answered_for(source: bytes, target: str | bytes) -> None:
    frame = neighbor_solicitation(MAC, source, target)
    assert isinstance(responder().handle(frame), DropReason)


def test_router_advertisement() -> None:
    frame = answer(
        router_solicitation(MAC, LINK_LOCAL),
        mtu=9000,
        dns_servers=[*map(ip, ("1.1.1.1", "2001:db8::53", "2001:db8::54"))],
    )
    packet = assert_scapy_agrees(frame)
    advertisement = packet[ICMPv6ND_RA]
    assert (packet.src, packet.dst, packet.hlim) == ("fe80::1", "fe80::5054:ff:fe12:3456", 255)
    assert (advertisement.M, advertisement.O, advertisement.chlim) == (1, 1, 64)
    assert (advertisement.routerlifetime, advertisement.reachabletime) == (1800, 0)
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == "02:00:00:00:00:01"
    assert packet[ICMPv6NDOptMTU].mtu == 9000
    assert packet[ICMPv6NDOptRDNSS].dns == ["2001:db8::53", "2001:db8::54"]
    assert packet[ICMPv6NDOptRDNSS].lifetime == 1800


def ip(text: str) -> Any:
    import ipaddress

    return ipaddress.ip_address(text)


def test_router_advertisement_without_ipv6_servers_has_no_rdnss() -> None:
    frame = answer(router_solicitation(MAC, LINK_LOCAL), dns_servers=[ip("1.1.1.1")])
    assert parse_router_advertisement(frame).dns_servers == ()


def test_more_servers_than_one_option_holds() -> None:
    servers = [ip(f"2001:db8::{number:x}") for number in range(1, 201)]
    frame = answer(router_solicitation(MAC, LINK_LOCAL), dns_servers=servers)
    assert parse_router_advertisement(frame).dns_servers == tuple(s.packed for s in servers)


def test_advertisement_to_all() -> None:
    frame = responder().advertisement()
    assert_scapy_agrees(frame)
    reply = parse_router_advertisement(frame)
    assert (reply.dst_ip, reply.dst_mac) == (ipv6_bytes("ff02::1"), TO_ALL_MAC)
    assert (reply.prefix, reply.mtu) == (None, 1500)


def test_solicitation_without_an_address_is_passed_on() -> None:
    calls = []
    ndp = responder()
    ndp.on_solicited = lambda: calls.append("solicited")
    assert ndp.handle(router_solicitation(MAC, UNSPECIFIED_IPV6)) is None
    assert calls == ["solicited"]


def message(kind: int, body: bytes, **options: Any) -> bytes:
    how = {"hop_limit": 255, "code": 0, "dst_ip": "ff02::1:ff00:1", **options}
    code, source = how.pop("code"), how.pop("src_ip", LINK_LOCAL)
    dst = ipv6_bytes(how.pop("dst_ip"))
    mac = b"\x33\x33" + dst[12:]
    return icmpv6_frame(MAC, mac, source, dst, kind, code, body, **how)


NS = bytes(4) + GATEWAY_IPV6


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(message(135, NS, hop_limit=254), id="p13-hop-limit"),
        pytest.param(message(133, bytes(4), hop_limit=64), id="p13-rs-hop-limit"),
        pytest.param(message(135, NS, code=1), id="p13-code"),
        pytest.param(message(135, NS[:-1]), id="p13-cut"),
        pytest.param(message(135, NS + b"\1\0" + bytes(6)), id="p13-option-0"),
        pytest.param(message(135, NS + b"\1\2" + bytes(6)), id="p13-option-past-end"),
        pytest.param(message(135, NS + b"\1"), id="p13-half-an-option"),
        pytest.param(message(135, bytes(4) + ipv6_bytes("ff02::1")), id="p13-target-group"),
        pytest.param(
            message(135, NS + b"\1\1" + bytes(6), src_ip="::"), id="p13-dad-with-link-layer"
        ),
        pytest.param(message(135, NS, src_ip="::", dst_ip="ff02::1"), id="p13-dad-to-all"),
        pytest.param(message(135, NS, src_ip="fe80::1"), id="p13-from-the-gateway"),
        pytest.param(message(135, NS, src_ip="ff02::5"), id="p13-from-a-group"),
        pytest.param(
            message(133, bytes(4) + b"\1\1" + bytes(6), src_ip="::", dst_ip="ff02::2"),
            id="p13-rs-with-link-layer",
        ),
        pytest.param(message(133, bytes(3)), id="p13-rs-cut"),
        pytest.param(message(135, NS + (b"\1\1" + bytes(6)) * 17), id="p13-17-options"),
        pytest.param(message(135, NS)[:-1] + b"\xff", id="p13-checksum"),
    ],
)
def test_malformed(frame: bytes) -> None:
    assert responder().handle(frame) is DropReason.NDP_MALFORMED


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(message(134, bytes(12)), id="p13-ra-from-a-guest"),
        pytest.param(message(136, NS), id="na"),
        pytest.param(message(137, bytes(36)), id="p13-redirect-from-a-guest"),
        pytest.param(message(135, NS, dst_ip="ff02::1"), id="to-all"),
        pytest.param(message(133, bytes(4), dst_ip="ff02::1"), id="rs-to-all"),
    ],
)
def test_ignored(frame: bytes) -> None:
    assert responder().handle(frame) is DropReason.NDP_IGNORED


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.integers(132, 138),
    body=mutated([NS, NS + b"\1\1" + bytes(6), bytes(4), bytes(4) + b"\1\1" + bytes(6)])
    | st.binary(max_size=100),
)
def test_any_message_with_a_good_checksum(kind: int, body: bytes) -> None:
    assert isinstance(responder().handle(message(kind, body)), bytes | DropReason | None)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(frame=mutated([message(135, NS)]) | st.binary(max_size=200))
def test_any_frame(frame: bytes) -> None:
    assert isinstance(responder().handle(frame), bytes | DropReason | None)


class TestSchedule:
    """RFC 4861, 6.2.4 and 6.2.6, in pure numbers."""

    def schedule(self, *randoms: float) -> RaSchedule:
        values = iter(randoms)
        return RaSchedule(lambda: next(values))

    def test_nothing_is_due_while_the_link_is_down(self) -> None:
        schedule = self.schedule()
        assert schedule.next_at is None
        schedule.solicited(5)
        assert schedule.next_at is None

    def test_three_soon_then_at_random(self) -> None:
        schedule = self.schedule(0.5, 0.5, 0, 1)
        schedule.start(100)
        times = []
        for _ in range(5):
            assert schedule.next_at is not None
            times.append(schedule.next_at)
            schedule.sent(schedule.next_at)
            if len(times) == 4:
                break
        assert times == [116, 132, 148, 348]
        assert schedule.next_at == 948

    def test_what_has_changed_is_told_at_once_and_as_often_as_at_the_start(self) -> None:
        schedule = self.schedule(1, 1, 1, 1, 1, 1, 0)
        schedule.changed(5)
        assert schedule.next_at is None
        schedule.start(100)
        schedule.sent(116)
        schedule.sent(132)
        schedule.sent(148)
        assert schedule.next_at == 748
        schedule.changed(200)
        times = [schedule.next_at]
        for _ in range(3):
            assert schedule.next_at is not None
            schedule.sent(schedule.next_at)
            times.append(schedule.next_at)
        assert times == [200, 216, 232, 832]
        # But not more often than RFC 4861 (6.2.6) lets a router.
        schedule.sent(300)
        schedule.changed(301)
        assert schedule.next_at == 303

    def test_solicited_soon(self) -> None:
        schedule = self.schedule(0.5)
        schedule.start(100)
        schedule.solicited(101)
        assert schedule.next_at == 101.25

    def test_never_twice_within_three_seconds(self) -> None:
        schedule = self.schedule(0, 0, 0)
        schedule.start(0)
        schedule.sent(16)
        schedule.solicited(17)
        assert schedule.next_at == 19

    def test_solicitation_does_not_put_off(self) -> None:
        schedule = self.schedule(1, 1)
        schedule.start(0)
        schedule.solicited(15.9)
        assert schedule.next_at == 16

    def test_begins_anew(self) -> None:
        schedule = self.schedule(*[1.0] * 10)
        schedule.start(0)
        for now in (16, 32, 48):
            schedule.sent(now)
        assert schedule.next_at == 648
        schedule.stop()
        assert schedule.next_at is None
        schedule.start(100)
        assert schedule.next_at == 116
        schedule.sent(116)
        assert schedule.next_at == 132


def test_rdnss_length_is_in_units_of_eight() -> None:
    frame = answer(router_solicitation(MAC, LINK_LOCAL), dns_servers=[ip("2001:db8::1")])
    kind, units = struct.unpack_from("!BB", frame, 14 + 40 + 16 + 8 + 8)
    assert (kind, units) == (25, 3)
