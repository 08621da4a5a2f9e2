"""The reference implementation of offloads, against scapy and against itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, defragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.harness.offload import (
    complete_checksum,
    fill_checksum,
    fragment_ipv4,
    reassemble_ipv4,
    received_segments,
    segment,
)
from tests.harness.packets import GATEWAY_MAC, parse_tcp, tcp_frame, udp_frame, udp_frame6
from tests.harness.virtio import DeviceError, VirtioNetHdr, check_received_header

MAC = "52:54:00:12:34:56"
V4, V6 = ("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")


@pytest.mark.parametrize("addresses", [V4, V6])
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_filled_and_completed_are_the_same(addresses: tuple[str, str], payload: bytes) -> None:
    whole = tcp_frame(MAC, GATEWAY_MAC, *addresses, payload)
    partial = tcp_frame(MAC, GATEWAY_MAC, *addresses, payload, partial=True)
    assert fill_checksum(partial) == whole
    assert complete_checksum(partial, 34 if addresses is V4 else 54, 16) == whole


@pytest.mark.parametrize("build", [udp_frame, udp_frame6])
def test_udp(build: object) -> None:
    frame = (
        udp_frame(MAC, GATEWAY_MAC, *V4, 1, 2, b"x")
        if build is udp_frame
        else udp_frame6(MAC, GATEWAY_MAC, *V6, 1, 2, b"x")
    )
    start = 40 if build is udp_frame else 60
    assert fill_checksum(frame[:start] + b"\1\2" + frame[start + 2 :]) == frame


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(1, 9000), gso=st.integers(50, 2000), ipv6=st.booleans())
def test_segments_are_what_scapy_would_build(size: int, gso: int, ipv6: bool) -> None:
    payload = bytes(i % 256 for i in range(size))
    addresses = V6 if ipv6 else V4
    frame = tcp_frame(MAC, GATEWAY_MAC, *addresses, payload, partial=True, flags=0x99, ident=65534)
    hdr = VirtioNetHdr(1, 4 if ipv6 else 1, 0, gso, 54 if ipv6 else 34, 16)
    pieces = segment(frame, hdr)
    assert b"".join(parse_tcp(piece).payload for piece in pieces) == payload
    for number, piece in enumerate(pieces):
        packet = Ether(piece)
        again = packet.copy()
        del again[TCP].chksum
        if ipv6:
            del again[IPv6].plen
        else:
            assert packet[IP].id == (65534 + number) % 65536
            del again[IP].len, again[IP].chksum
        assert bytes(again) == piece
        assert packet[TCP].seq == 1 + number * gso
        last = number == len(pieces) - 1
        assert int(packet[TCP].flags) == 0x10 | (0x80 if number == 0 else 0) | (0x09 if last else 0)


def test_plain_frames_stay_as_they_are() -> None:
    frame = tcp_frame(MAC, GATEWAY_MAC, *V4, b"plain")
    assert segment(frame, VirtioNetHdr()) == [frame]
    assert received_segments([(frame, VirtioNetHdr())] * 2) == [frame] * 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(0, 5000), mtu=st.integers(68, 1500), order=st.randoms())
def test_fragments(size: int, mtu: int, order: random.Random) -> None:
    frame = udp_frame(MAC, GATEWAY_MAC, *V4, 1, 2, bytes(i % 256 for i in range(size)))
    fragments = fragment_ipv4(frame, mtu)
    assert all(len(fragment) - 14 <= mtu for fragment in fragments)
    if len(fragments) > 1:
        (whole,) = defragment([Ether(piece)[IP] for piece in fragments])  # type: ignore[no-untyped-call]
        assert bytes(whole[UDP].payload) == frame[42:]
    order.shuffle(fragments)
    assert reassemble_ipv4(fragments) == frame
    for number in range(len(fragments) if len(fragments) > 1 else 0):
        with pytest.raises(ValueError, match=r"missing|nothing between"):
            reassemble_ipv4(fragments[:number] + fragments[number + 1 :])


GUEST_CSUM, GUEST_TSO4, GUEST_ECN = 1 << 1, 1 << 7, 1 << 9


@pytest.mark.parametrize(
    ("header", "features"),
    [
        (VirtioNetHdr(flags=1, csum_start=34, csum_offset=16), 0),
        (VirtioNetHdr(flags=4), GUEST_CSUM),
        (VirtioNetHdr(flags=1, csum_start=34, csum_offset=99), GUEST_CSUM),
        (VirtioNetHdr(flags=1, csum_start=0, csum_offset=0), GUEST_CSUM),
        (VirtioNetHdr(csum_start=34), GUEST_CSUM),
        (VirtioNetHdr(gso_size=100), GUEST_CSUM),
        (VirtioNetHdr(1, 1, 54, 100, 34, 16), GUEST_CSUM),
        (VirtioNetHdr(1, 0x81, 54, 100, 34, 16), GUEST_CSUM | GUEST_TSO4),
        (VirtioNetHdr(0, 1, 54, 100), GUEST_CSUM | GUEST_TSO4),
        (VirtioNetHdr(1, 1, 54, 0, 34, 16), GUEST_CSUM | GUEST_TSO4),
        (VirtioNetHdr(1, 1, 999, 100, 34, 16), GUEST_CSUM | GUEST_TSO4),
        (VirtioNetHdr(1, 3, 54, 100, 34, 16), GUEST_CSUM | GUEST_TSO4),
    ],
)
def test_driver_notices_a_header_it_has_not_agreed_to(header: VirtioNetHdr, features: int) -> None:
    with pytest.raises(DeviceError):
        check_received_header(header, 100, features)


def test_driver_takes_what_it_has_agreed_to() -> None:
    check_received_header(VirtioNetHdr(), 60, 0)
    check_received_header(VirtioNetHdr(1, 0, 0, 0, 34, 16), 100, GUEST_CSUM)
    features = GUEST_CSUM | GUEST_TSO4 | GUEST_ECN
    check_received_header(VirtioNetHdr(1, 0x81, 54, 20, 34, 16), 100, features)
