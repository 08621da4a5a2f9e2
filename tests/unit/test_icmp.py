"""Echo of the gateway; P8 and P15 are rows of the list of hostile inputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from mvirt_net.dataplane.icmp import IcmpResponder
from mvirt_net.model import DropReason, MacAddress

from .fuzzing import fuzz, mutated

MAC = "52:54:00:12:34:56"
GATEWAY_MAC = "02:00:00:00:00:01"
OWN = "10.0.0.5"
GATEWAY = "169.254.0.1"

MALFORMED = DropReason.ICMP_MALFORMED
IGNORED = DropReason.ICMP_IGNORED


def frame(
    message: Packet | bytes, *, from_mac: str = MAC, to_mac: str = GATEWAY_MAC, **ip: Any
) -> bytes:
    """A frame from guest to gateway around an ICMP message, good but for the fields given."""
    header = IP(**{"src": OWN, "dst": GATEWAY, "proto": 1, **ip})
    body = Raw(message) if isinstance(message, bytes) else message
    return bytes(Ether(src=from_mac, dst=to_mac) / header / body)


def echo(data: bytes = b"ping test", **fields: Any) -> Packet:
    return ICMP(**{"type": 8, "id": 0x1234, "seq": 1, **fields}) / Raw(data)


def handle(request: bytes) -> bytes | DropReason:
    return IcmpResponder(MacAddress.parse(MAC)).handle(request)


def test_literal_bytes() -> None:
    reply = handle(
        bytes.fromhex(
            "020000000001 525400123456 0800"
            "4500 0020 abcd 0000 40 01 1b0c 0a000005 a9fe0001"
            "08 00 2104 1234 0001 61626364"
        )
    )
    assert reply == bytes.fromhex(
        "525400123456 020000000001 0800"
        "4500 0020 0000 4000 40 01 86d9 a9fe0001 0a000005"
        "00 00 2904 1234 0001 61626364"
    )


@pytest.mark.parametrize("data", [b"", b"x", b"ping test", bytes(56), bytes(range(256)) * 5])
def test_echo_is_exactly_what_scapy_builds(data: bytes) -> None:
    expected = (
        Ether(dst=MAC, src=GATEWAY_MAC)
        / IP(src=GATEWAY, dst=OWN, id=0, flags="DF", ttl=64)
        / echo(data, type=0)
    )
    assert handle(frame(echo(data))) == bytes(expected)


def test_reply_whose_checksum_is_ffff() -> None:
    # The one message whose words are all 0; an incremental update would leave 0 here.
    reply = handle(frame(echo(b"", id=0, seq=0)))
    assert isinstance(reply, bytes)
    assert reply[34:] == bytes.fromhex("0000ffff00000000")


def test_padding_is_not_echoed() -> None:
    reply = handle(frame(echo(b"abc")) + bytes(20))
    assert isinstance(reply, bytes)
    assert len(reply) == 14 + 20 + 8 + 3


def test_dscp_is_returned_without_congestion_marks() -> None:
    reply = handle(frame(echo(), tos=0xBB))
    assert isinstance(reply, bytes)
    assert Ether(reply)[IP].tos == 0xB8


@pytest.mark.parametrize("ip", [{"ttl": 1}, {"flags": "DF"}, {"src": "10.0.1.7"}])
def test_answered_all_the_same(ip: dict[str, Any]) -> None:
    reply = handle(frame(echo(), **ip))
    assert isinstance(reply, bytes)
    assert Ether(reply)[IP].dst == ip.get("src", OWN)


def test_request_with_options_is_answered_without() -> None:
    reply = handle(frame(echo(), options=[IPOption(b"\x07\x07\x04\0\0\0\0")]))
    assert isinstance(reply, bytes)
    assert (Ether(reply)[IP].ihl, Ether(reply)[ICMP].type) == (5, 0)


P8 = (
    ("header-checksum", frame(echo(), chksum=1)),
    ("length-beyond-frame", frame(echo(), len=1500)),
    ("length-below-header", frame(echo(), len=19)),
    ("ttl-0", frame(echo(), ttl=0)),
    ("first-fragment", frame(echo(), flags="MF")),
    ("later-fragment", frame(echo(), frag=3)),
    ("source-route", frame(echo(), options=[IPOption(b"\x83\x07\x04\x0a\0\0\x09")])),
    ("source-0", frame(echo(), src="0.0.0.0")),
    ("source-broadcast", frame(echo(), src="255.255.255.255")),
    ("source-multicast", frame(echo(), src="224.0.0.1")),
    ("source-loopback", frame(echo(), src="127.0.0.1")),
    ("source-gateway", frame(echo(), src=GATEWAY)),
    ("source-mac", frame(echo(), from_mac="52:54:00:12:34:57")),
    ("not-ipv4", frame(echo())[:12] + b"\x86\xdd" + frame(echo())[14:]),
    ("icmp-checksum", frame(echo(chksum=1))),
    ("icmp-header-cut-off", frame(b"\x08\x00\xf7\xff\x00\x00")),
    ("no-icmp", frame(b"")),
    ("echo-code", frame(echo(code=1))),
    ("empty", b""),
)


@pytest.mark.parametrize(
    "request_frame", [request for _, request in P8], ids=[f"P8-{row}" for row, _ in P8]
)
def test_p8_malformed(request_frame: bytes) -> None:
    assert handle(request_frame) is MALFORMED


P15 = (
    *((f"type-{kind}", frame(echo(type=kind))) for kind in (0, 3, 4, 5, 9, 10, 11, 12, 13, 15, 17)),
    ("error-about-an-error", frame(ICMP(type=3) / IP(src=GATEWAY, dst=OWN) / ICMP(type=11))),
    ("multicast", frame(echo(), dst="224.0.0.1")),
    ("broadcast", frame(echo(), dst="255.255.255.255")),
    ("link-layer-broadcast", frame(echo(), to_mac="ff:ff:ff:ff:ff:ff")),
    ("somebody-else", frame(echo(), dst="8.8.8.8")),
    ("udp", frame(UDP(sport=1, dport=7), proto=17)),
)


@pytest.mark.parametrize(
    "request_frame", [request for _, request in P15], ids=[f"P15-{row}" for row, _ in P15]
)
def test_p15_nothing_is_sent(request_frame: bytes) -> None:
    assert handle(request_frame) is IGNORED


@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
def test_p15_no_amplification(size: int) -> None:
    request = frame(echo(bytes(size)))
    reply = handle(request)
    assert isinstance(reply, bytes)
    assert len(reply) == len(request)


@fuzz
@given(
    st.binary(max_size=80) | mutated([frame(echo()), frame(echo(b""), options=[IPOption_NOP()])])
)
def test_any_bytes_get_a_reply_to_the_guest_or_a_reason(request: bytes) -> None:
    check_reply(handle(request))


@fuzz
@given(st.binary(max_size=40))
def test_any_message_in_a_good_packet(message: bytes) -> None:
    check_reply(handle(frame(message)))


def check_reply(reply: bytes | DropReason) -> None:
    if isinstance(reply, bytes):
        ether = Ether(reply)
        assert (ether.dst, ether.src, ether[IP].src) == (MAC, GATEWAY_MAC, GATEWAY)
        assert (ether[ICMP].type, ether[ICMP].code) == (0, 0)
    else:
        assert reply in (MALFORMED, IGNORED)
