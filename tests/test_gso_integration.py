"""Checksum and segmentation offloads between guests that have agreed to different ones.

What a guest sends with a `virtio_net_hdr` of its own reaches the backend exactly so. What another
gets, headers followed, must be what the reference implementation makes of it (`harness.offload`).
"""

from __future__ import annotations

import pytest
import trio

from mvirt_net import DropReason
from tests.harness import (
    GATEWAY_MAC,
    RoutingNicConfig,
    RoutingTestBackend,
    TestBackend,
    VhostTestClient,
)
from tests.harness.client import (
    DEFAULT_FEATURES,
    GUEST_OFFLOADS,
    HOST_OFFLOADS,
    OFFLOAD_FEATURES,
)
from tests.harness.clock import virtual_time
from tests.harness.memory import Region
from tests.harness.offload import fill_checksum, segment
from tests.harness.packets import (
    DhcpMessageType,
    dhcp_renew,
    mac_bytes,
    parse_dhcp_response,
    parse_tcp,
    tcp_frame,
    udp_frame,
    udp_frame6,
)
from tests.harness.vhost_user import Feature
from tests.harness.virtio import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    VirtioNetHdr,
)
from tests.layouts import BOTH_LAYOUTS

pytestmark = [virtual_time, BOTH_LAYOUTS]

MAC_A, MAC_B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
A = RoutingNicConfig("a", MAC_A, "10.0.0.1", "fd00::1")
B = RoutingNicConfig("b", MAC_B, "10.0.0.2", "fd00::2")

TSO = Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.GUEST_TSO4 | Feature.GUEST_TSO6
MEMORY = [Region(0, 16 << 20)]


def csum_header(**fields: int) -> VirtioNetHdr:
    base = {"flags": VIRTIO_NET_HDR_F_NEEDS_CSUM, "csum_start": 34, "csum_offset": 16}
    return VirtioNetHdr(**{**base, **fields})


async def start(
    nursery: trio.Nursery, *, sends: int, takes: int, mtu: int = 1500
) -> tuple[VhostTestClient, VhostTestClient]:
    """Two guests with these features beyond the default ones, the second with large buffers."""
    backend = await RoutingTestBackend.start(nursery, A, B, mtu=mtu)
    a = await backend.connect_a(features=DEFAULT_FEATURES | sends, regions=MEMORY)
    b = await backend.connect_b(
        features=DEFAULT_FEATURES | takes,
        regions=MEMORY,
        rx_buffer_size=2048 if takes & Feature.MRG_RXBUF else 70_000,
        rx_buffers=64,
    )
    return a, b


def hop(frame: bytes) -> bytes:
    """What routing makes of a frame from a to b, its checksums left as they are."""
    ipv6 = frame[14] >> 4 == 6
    out = bytearray(mac_bytes(MAC_B) + GATEWAY_MAC + frame[12:])
    out[21 if ipv6 else 22] -= 1
    if not ipv6:
        checksum = int.from_bytes(out[24:26], "big") + 0x0100
        out[24:26] = ((checksum & 0xFFFF) + (checksum >> 16)).to_bytes(2, "big")
    return bytes(out)


# The seven of upstream, which test here what they say


async def test_tso_features_not_advertised(nursery: trio.Nursery) -> None:
    """To a driver that does not ask for them: it never gets anything but plain packets."""
    a, b = await start(nursery, sends=OFFLOAD_FEATURES, takes=0)
    assert not b.has_feature(TSO)
    frame = tcp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", bytes(5000), partial=True)
    await a.send_packet(frame, header=csum_header(gso_type=VIRTIO_NET_HDR_GSO_TCPV4, gso_size=1400))
    for _ in range(4):
        assert (await b.recv_frame()).header == VirtioNetHdr(num_buffers=1)


async def test_tso_features_advertised(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC_A, ipv4="10.0.0.1")
    client = await backend.connect(features=DEFAULT_FEATURES | OFFLOAD_FEATURES)
    assert client.features & OFFLOAD_FEATURES == OFFLOAD_FEATURES


async def test_mergeable_rx_buffers_advertised(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC_A, ipv4="10.0.0.1")
    client = await backend.connect(features=DEFAULT_FEATURES | Feature.MRG_RXBUF)
    assert client.has_feature(Feature.MRG_RXBUF)


async def test_feature_negotiation_with_tun(nursery: trio.Nursery) -> None:
    """Any part of the offloads can be had (upstream: whatever its TUN device can)."""
    backend = await TestBackend.start(nursery, MAC_A, ipv4="10.0.0.1")
    for features in (Feature.CSUM, Feature.CSUM | Feature.HOST_TSO4, Feature.GUEST_CSUM):
        client = await backend.connect(features=DEFAULT_FEATURES | features)
        assert client.features & OFFLOAD_FEATURES == features
        await client.aclose()


async def test_send_packet_with_gso_none(nursery: trio.Nursery) -> None:
    a, b = await start(nursery, sends=OFFLOAD_FEATURES, takes=OFFLOAD_FEATURES)
    frame = tcp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", b"plain")
    await a.send_packet(frame, header=VirtioNetHdr())
    got = await b.recv_frame()
    assert got.header == VirtioNetHdr(num_buffers=1)
    assert got.frame == hop(frame)


@pytest.mark.parametrize("takes", [0, Feature.GUEST_CSUM])
async def test_send_packet_with_csum_offload_request(nursery: trio.Nursery, takes: int) -> None:
    a, b = await start(nursery, sends=Feature.CSUM, takes=takes)
    frame = tcp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", b"payload", partial=True)
    await a.send_packet(frame, header=csum_header())
    got = await b.recv_frame()
    if takes:
        assert got.header == csum_header(num_buffers=1)
        assert got.frame == hop(frame)
    else:
        assert got.header == VirtioNetHdr(num_buffers=1)
        assert got.frame == fill_checksum(hop(frame))


@pytest.mark.parametrize(
    "takes", [0, Feature.GUEST_CSUM, GUEST_OFFLOADS, GUEST_OFFLOADS | Feature.MRG_RXBUF]
)
@pytest.mark.parametrize(
    ("family", "size", "gso_size"), [(4, 8000, 1440), (6, 4000, 1428), (4, 60_000, 1448)]
)
async def test_send_large_packet(
    nursery: trio.Nursery, family: int, size: int, gso_size: int, takes: int
) -> None:
    a, b = await start(nursery, sends=HOST_OFFLOADS, takes=takes)
    src, dst = ("10.0.0.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00::2")
    payload = bytes(i % 251 for i in range(size))
    frame = tcp_frame(MAC_A, GATEWAY_MAC, src, dst, payload, partial=True, ident=7)
    header = csum_header(
        gso_type=VIRTIO_NET_HDR_GSO_TCPV4 if family == 4 else VIRTIO_NET_HDR_GSO_TCPV6,
        gso_size=gso_size,
        csum_start=34 if family == 4 else 54,
    )
    await a.send_packet(frame, header=header)
    expected = segment(hop(frame), header)
    pieces: list[bytes] = []
    frames = 0
    while len(pieces) < len(expected):
        got = await b.recv_frame()
        frames += 1
        pieces += segment(got.frame, got.header)
        parse_tcp(pieces[-1])
    assert pieces == expected
    assert frames == (1 if takes & Feature.GUEST_TSO4 else len(expected))
    assert not await b.wait_for_rx(timeout=1)


async def test_send_large_packet_gso_tcpv4(nursery: trio.Nursery) -> None:
    """Upstream's numbers: 8,000 bytes, segments of 1,500, which only a larger MTU carries."""
    a, b = await start(nursery, sends=OFFLOAD_FEATURES, takes=OFFLOAD_FEATURES, mtu=1600)
    frame = tcp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", bytes(8000), partial=True)
    await a.send_packet(frame, header=csum_header(gso_type=VIRTIO_NET_HDR_GSO_TCPV4, gso_size=1500))
    got = await b.recv_frame()
    assert (got.header.gso_type, got.header.gso_size) == (VIRTIO_NET_HDR_GSO_TCPV4, 1500)
    assert (got.header.hdr_len, got.header.num_buffers) == (54, 4)
    assert got.frame == hop(frame)


async def test_send_large_packet_gso_tcpv6(nursery: trio.Nursery) -> None:
    a, b = await start(nursery, sends=OFFLOAD_FEATURES, takes=OFFLOAD_FEATURES, mtu=1600)
    frame = tcp_frame(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", bytes(4000), partial=True)
    await a.send_packet(
        frame,
        header=csum_header(gso_type=VIRTIO_NET_HDR_GSO_TCPV6, gso_size=1500, csum_start=54),
    )
    got = await b.recv_frame()
    assert (got.header.gso_type, got.header.gso_size) == (VIRTIO_NET_HDR_GSO_TCPV6, 1500)
    assert got.frame == hop(frame)


# And what upstream has not


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("takes", [0, GUEST_OFFLOADS | Feature.MRG_RXBUF])
async def test_udp_segmentation(nursery: trio.Nursery, family: int, takes: int) -> None:
    a, b = await start(nursery, sends=HOST_OFFLOADS, takes=takes)
    build, src, dst = (
        (udp_frame, "10.0.0.1", "10.0.0.2") if family == 4 else (udp_frame6, "fd00::1", "fd00::2")
    )
    frame = build(MAC_A, GATEWAY_MAC, src, dst, 1, 2, bytes(i % 7 for i in range(5000)))
    header = csum_header(
        gso_type=VIRTIO_NET_HDR_GSO_UDP_L4,
        gso_size=1200,
        csum_start=34 if family == 4 else 54,
        csum_offset=6,
    )
    await a.send_packet(frame, header=header)
    expected = segment(hop(frame), header)
    if takes:
        got = await b.recv_frame()
        assert segment(got.frame, got.header) == expected
    else:
        assert [(await b.recv_frame()).frame for _ in expected] == expected


async def test_jumbo_frames(nursery: trio.Nursery) -> None:
    """Up to 65,535 bytes of IP where the network has such an MTU."""
    a, b = await start(nursery, sends=0, takes=Feature.MRG_RXBUF, mtu=65535)
    for size in (9000, 65535):
        frame = udp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", 1, 2, bytes(size - 28))
        await a.send_packet(frame)
        assert await b.recv_packet() == hop(frame)


async def test_offload_that_was_not_negotiated(nursery: trio.Nursery) -> None:
    backend = await RoutingTestBackend.start(nursery, A, B)
    a = await backend.connect_a()
    b = await backend.connect_b(features=DEFAULT_FEATURES | OFFLOAD_FEATURES)
    frame = tcp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", bytes(100), partial=True)
    await a.send_packet(frame, header=csum_header())
    assert not await b.wait_for_rx(timeout=1)
    assert backend.nic.stats().drops == {DropReason.OFFLOAD_NOT_NEGOTIATED: 1}


async def test_gateway_is_asked_with_a_checksum_left_out(nursery: trio.Nursery) -> None:
    """systemd-networkd renews by a UDP socket, whose checksum the kernel leaves to the device."""
    backend = await RoutingTestBackend.start(nursery, A, B)
    a = await backend.connect_a(features=DEFAULT_FEATURES | OFFLOAD_FEATURES)
    frame = dhcp_renew(MAC_A, 1, "10.0.0.1")
    partial = frame[:40] + b"\x12\x34" + frame[42:]
    await a.send_packet(partial, header=csum_header(csum_offset=6))
    assert parse_dhcp_response(await a.recv_packet()).message_type == DhcpMessageType.ACK
    await a.send_packet(partial)
    assert backend.nic.stats().drops == {DropReason.DHCP_MALFORMED: 1}
