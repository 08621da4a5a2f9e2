"""ICMPv6 echo of the gateway."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6EchoReply, IPv6
from scapy.layers.l2 import Ether

from mvirt_net.dataplane.icmpv6 import Icmpv6Responder
from mvirt_net.model import DropReason, MacAddress
from tests.harness.packets import (
    GATEWAY_IPV6,
    GATEWAY_MAC,
    icmpv6_echo_reply,
    icmpv6_echo_request,
    icmpv6_frame,
    ipv6_bytes,
    link_local,
    parse_icmpv6_echo_reply,
)

from .fuzzing import mutated

MAC = "52:54:00:12:34:56"
LINK_LOCAL = link_local(MAC)
RESPONDER = Icmpv6Responder(MacAddress.parse(MAC))


def request(source: str | bytes = LINK_LOCAL, data: bytes = b"ping") -> bytes:
    return icmpv6_echo_request(MAC, GATEWAY_MAC, source, GATEWAY_IPV6, 0x1234, 7, data)


@pytest.mark.parametrize("source", [LINK_LOCAL, ipv6_bytes("fd00::5")])
@pytest.mark.parametrize("size", [0, 1, 1400, 65535 - 8])
def test_echo(source: bytes, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    frame = RESPONDER.handle(request(source, data))
    assert isinstance(frame, bytes)
    reply = parse_icmpv6_echo_reply(frame)
    assert (reply.src_ip, reply.dst_ip, reply.hop_limit) == (GATEWAY_IPV6, source, 64)
    assert (reply.src_mac, reply.dst_mac) == (GATEWAY_MAC, MacAddress.parse(MAC).packed)
    assert (reply.ident, reply.seq_no, reply.data) == (0x1234, 7, data)


def test_scapy_agrees() -> None:
    frame = RESPONDER.handle(request())
    assert isinstance(frame, bytes)
    packet = Ether(frame)
    del packet[ICMPv6EchoReply].cksum
    del packet[IPv6].plen
    assert bytes(packet) == frame


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (request("::"), DropReason.ICMP_MALFORMED),
        (request()[:-1] + b"?", DropReason.ICMP_MALFORMED),
        (request()[:50], DropReason.ICMP_MALFORMED),
        (
            icmpv6_frame(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 128, 1, bytes(4)),
            DropReason.ICMP_MALFORMED,
        ),
        (
            icmpv6_frame(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 128, 0, bytes(3)),
            DropReason.ICMP_MALFORMED,
        ),
        (
            icmpv6_echo_reply(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 1, 1, b""),
            DropReason.ICMP_IGNORED,
        ),
        (
            icmpv6_frame(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 1, 0, bytes(44)),
            DropReason.ICMP_IGNORED,
        ),
        (
            icmpv6_echo_request(MAC, GATEWAY_MAC, LINK_LOCAL, "fd00::9", 1, 1, b""),
            DropReason.ICMP_IGNORED,
        ),
        (
            icmpv6_echo_request(MAC, b"\x33\x33\0\0\0\1", LINK_LOCAL, "ff02::1", 1, 1, b""),
            DropReason.ICMP_IGNORED,
        ),
    ],
)
def test_not_answered(frame: bytes, reason: DropReason) -> None:
    assert RESPONDER.handle(frame) is reason


@settings(max_examples=300, deadline=None, derandomize=True)
@given(kind=st.integers(0, 255), code=st.integers(0, 2), body=st.binary(max_size=60))
def test_any_message_with_a_good_checksum(kind: int, code: int, body: bytes) -> None:
    frame = icmpv6_frame(MAC, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, kind, code, body)
    assert isinstance(RESPONDER.handle(frame), bytes | DropReason)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(frame=mutated([request()]) | st.binary(max_size=120))
def test_any_frame(frame: bytes) -> None:
    assert isinstance(RESPONDER.handle(frame), bytes | DropReason)
