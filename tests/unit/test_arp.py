"""ARP replies, byte by byte and as scapy sees them; P9 is a row of the list of hostile inputs."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from mvirt_net.dataplane.arp import ArpResponder
from mvirt_net.model import DropReason, MacAddress

from .fuzzing import fuzz, mutated

MAC = "52:54:00:12:34:56"
GATEWAY_MAC = "02:00:00:00:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"
OWN = "10.0.0.5"
GATEWAY = "169.254.0.1"

MALFORMED = DropReason.ARP_MALFORMED
IGNORED = DropReason.ARP_IGNORED


def request(target: str = GATEWAY, *, to: str = BROADCAST, **fields: Any) -> bytes:
    """A request of the guest's, good but for `fields` of the ARP packet."""
    arp = ARP(**{"op": 1, "hwsrc": MAC, "psrc": OWN, "pdst": target, **fields})
    return bytes(Ether(src=MAC, dst=to) / arp)


def responder(own: str = OWN, subnet: str | None = None) -> ArpResponder:
    network = None if subnet is None else IPv4Network(subnet)
    return ArpResponder(MacAddress.parse(MAC), IPv4Address(own), network)


def reply_to(frame: bytes, by: ArpResponder | None = None) -> ARP:
    """The reply's ARP packet, after a look at all that is the same in every reply."""
    reply = (by or responder()).handle(frame)
    assert isinstance(reply, bytes)
    ether = Ether(reply)
    assert (ether.dst, ether.src, ether.type) == (MAC, GATEWAY_MAC, 0x0806)
    arp: ARP = ether[ARP]
    assert (arp.hwtype, arp.ptype, arp.hwlen, arp.plen, arp.op) == (1, 0x0800, 6, 4, 2)
    assert (arp.hwsrc, arp.hwdst) == (GATEWAY_MAC, MAC)
    return arp


def test_literal_bytes() -> None:
    reply = responder().handle(
        bytes.fromhex(
            "ffffffffffff 525400123456 0806"
            "0001 0800 06 04 0001"
            "525400123456 0a000005"
            "000000000000 a9fe0001"
        )
    )
    assert reply == bytes.fromhex(
        "525400123456 020000000001 0806"
        "0001 0800 06 04 0002"
        "020000000001 a9fe0001"
        "525400123456 0a000005"
    )


@pytest.mark.parametrize(
    "sender",
    [
        pytest.param(OWN, id="own"),
        pytest.param("0.0.0.0", id="probe"),
        pytest.param("10.0.0.100", id="foreign"),
        pytest.param("169.254.7.7", id="link-local"),
        pytest.param(GATEWAY, id="claims-to-be-the-gateway"),
    ],
)
def test_any_sender_is_answered_for_the_gateway(sender: str) -> None:
    arp = reply_to(request(psrc=sender))
    assert (arp.psrc, arp.pdst) == (GATEWAY, sender)


def test_unicast_probe_is_answered() -> None:
    arp = reply_to(request(to=GATEWAY_MAC, hwdst=GATEWAY_MAC))
    assert (arp.psrc, arp.pdst) == (GATEWAY, OWN)


def test_padding_is_ignored() -> None:
    assert reply_to(request() + bytes(18)).psrc == GATEWAY


@pytest.mark.parametrize(
    ("target", "sender"),
    [
        pytest.param(OWN, "0.0.0.0", id="probe-for-own"),
        pytest.param(OWN, OWN, id="announcement-of-own"),
        pytest.param("10.0.0.6", OWN, id="neighbour"),
        pytest.param("0.0.0.0", OWN, id="nobody"),
        pytest.param("255.255.255.255", OWN, id="broadcast"),
        pytest.param("169.254.0.2", OWN, id="next-to-the-gateway"),
    ],
)
def test_nothing_but_the_gateway_is_answered_for(target: str, sender: str) -> None:
    assert responder().handle(request(target, psrc=sender)) is IGNORED


def test_replies_of_the_guest_are_ignored() -> None:
    assert responder().handle(request(op=2)) is IGNORED


@pytest.mark.parametrize("to", ["01:00:5e:00:00:01", "02:00:00:00:00:02"])
def test_requests_to_somebody_else_are_ignored(to: str) -> None:
    assert responder().handle(request(to=to)) is IGNORED


def raw_request(
    *, htype: int = 1, ptype: int = 0x0800, hlen: int = 6, plen: int = 4, op: int = 1
) -> bytes:
    """Scapy shapes a packet by its hlen and plen; here only the numbers change."""
    return request()[:14] + struct.pack("!HHBBH", htype, ptype, hlen, plen, op) + request()[22:]


P9 = (
    ("htype-0", raw_request(htype=0)),
    ("htype-6", raw_request(htype=6)),
    ("ptype", raw_request(ptype=0x86DD)),
    ("hlen-0", raw_request(hlen=0)),
    ("hlen-5", raw_request(hlen=5)),
    ("hlen-255", raw_request(hlen=255)),
    ("plen-0", raw_request(plen=0)),
    ("plen-16", raw_request(plen=16)),
    ("op-0", raw_request(op=0)),
    ("op-3", raw_request(op=3)),
    ("op-65535", raw_request(op=65535)),
    ("truncated-by-1", request()[:41]),
    ("ethernet-only", request()[:14]),
    ("empty", b""),
    ("sender-not-ethernet-source", request(hwsrc="52:54:00:12:34:57")),
    ("sender-broadcast", request(hwsrc=BROADCAST)),
    ("ethernet-source-not-the-nic", request()[:11] + b"\x57" + request()[12:]),
    (
        "both-not-the-nic",
        bytes(Ether(src=GATEWAY_MAC, dst=BROADCAST) / ARP(hwsrc=GATEWAY_MAC, pdst=GATEWAY)),
    ),
    ("ethertype", request()[:12] + b"\x08\x00" + request()[14:]),
    ("vlan", request()[:12] + b"\x81\x00\x00\x01" + request()[12:]),
)


@pytest.mark.parametrize("frame", [frame for _, frame in P9], ids=[f"P9-{row}" for row, _ in P9])
def test_p9_malformed(frame: bytes) -> None:
    assert responder().handle(frame) is MALFORMED
    assert responder(subnet="10.0.0.0/24").handle(frame) is MALFORMED


class TestSubnet:
    @pytest.mark.parametrize("target", [GATEWAY, "10.0.0.1", "10.0.0.4", "10.0.0.6", "10.0.0.254"])
    def test_everybody_in_it_is_answered_for(self, target: str) -> None:
        arp = reply_to(request(target), responder(subnet="10.0.0.0/24"))
        assert (arp.psrc, arp.pdst) == (target, OWN)

    @pytest.mark.parametrize("sender", ["0.0.0.0", OWN])
    def test_but_never_for_the_guest(self, sender: str) -> None:
        assert responder(subnet="10.0.0.0/24").handle(request(OWN, psrc=sender)) is IGNORED

    @pytest.mark.parametrize("target", ["10.0.0.0", "10.0.0.255", "9.255.255.255", "10.0.1.0"])
    def test_and_not_for_its_edges_or_beyond(self, target: str) -> None:
        assert responder(subnet="10.0.0.0/24").handle(request(target)) is IGNORED

    def test_both_addresses_of_a_point_to_point_subnet(self) -> None:
        assert reply_to(request("10.0.0.4"), responder(subnet="10.0.0.4/31")).psrc == "10.0.0.4"
        assert responder(subnet="10.0.0.4/31").handle(request(OWN)) is IGNORED

    def test_a_subnet_of_the_guest_alone(self) -> None:
        assert responder(subnet="10.0.0.5/32").handle(request(OWN)) is IGNORED
        assert reply_to(request(), responder(subnet="10.0.0.5/32")).psrc == GATEWAY


def test_nothing_is_learnt() -> None:
    arp = responder()
    before = arp.handle(request())
    for psrc in (GATEWAY, "10.0.0.9"):
        arp.handle(request(op=2, psrc=psrc))
        arp.handle(request(psrc, psrc=psrc))
    assert arp.handle(request()) == before


@fuzz
@given(st.binary(max_size=64) | mutated([request(), request("10.0.0.9")]))
def test_any_bytes_get_a_reply_to_the_guest_or_a_reason(frame: bytes) -> None:
    reply = responder(subnet="10.0.0.0/24").handle(frame)
    if isinstance(reply, bytes):
        arp = Ether(reply)[ARP]
        assert arp.psrc == GATEWAY or (arp.psrc.startswith("10.0.0.") and arp.psrc != OWN)
        assert (arp.op, arp.hwdst, len(reply)) == (2, MAC, 42)
    else:
        assert reply in (MALFORMED, IGNORED)
