"""What a hostile guest may send, row by row of the project's list (P1 to P16).

The attacker's network has a bystander, and beside it there is another network with the very same
addresses. A frame that must not arrive is looked for at all three of them. Where each frame is
judged has its unit tests; here the whole backend is asked.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import ConfigError, DropReason, NicSpec
from tests.harness import GATEWAY_IP, GATEWAY_IPV6, GATEWAY_MAC, VhostTestClient
from tests.harness.backend import NETWORK_NAME
from tests.harness.client import DEFAULT_FEATURES, OFFLOAD_FEATURES
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway
from tests.harness.footprint import Footprint
from tests.harness.packets import (
    ALL_DHCP_AGENTS,
    ALL_NODES,
    BROADCAST_MAC,
    arp_packet,
    arp_request,
    dhcp_discover,
    dhcp_frame,
    dhcp_message,
    dhcpv6_message,
    dhcpv6_option,
    ethernet_frame,
    group_mac,
    ia_na,
    icmp_echo_request,
    icmpv6_frame,
    internet_checksum,
    ip_bytes,
    ipv4_packet,
    ipv6_bytes,
    ipv6_packet,
    is_arp_reply,
    is_dhcp_response,
    is_icmp_error,
    is_icmpv6_error,
    link_local,
    mac_bytes,
    neighbor_solicitation,
    parse_dhcpv6_response,
    parse_ethernet,
    router_solicitation,
    tcp_frame,
    udp_datagram,
    udp_frame,
    udp_frame6,
)
from tests.harness.scene import BYSTANDER_IP, BYSTANDER_IPV6, BYSTANDER_MAC, IP, IPV6, MAC, Scene
from tests.harness.virtio import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    VirtioNetHdr,
)

pytestmark = virtual_time
"""Time stands still while anybody has anything to do, so no time-out depends on the machine."""

OTHER_NETWORK = "other-network"
STRANGER_MAC = "52:54:00:00:00:77"
LINK_LOCAL = link_local(MAC)
IPV4, ARP, IPV6_TYPE = 0x0800, 0x0806, 0x86DD
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

Drop: TypeAlias = tuple[bytes, DropReason]
"""A frame, and why it goes no further."""


@attrs.define(eq=False)
class Place:
    """The scene of an attack with packets."""

    scene: Scene
    attacker: VhostTestClient
    stranger: VhostTestClient
    """On the other network, with the bystander's addresses."""

    async def send(self, frame: bytes, header: VirtioNetHdr | None = None) -> None:
        """The attacker sends a frame, and all that comes of it comes."""
        await self.attacker.send_packet(frame, header=header)
        await wait_all_tasks_blocked()

    def take_received(self) -> list[bytes]:
        """What the attacker has got."""
        frames = [received.frame for received in self.attacker.received]
        self.attacker.received.clear()
        return frames

    def take_from_bystander(self) -> list[bytes]:
        """What the bystander has got."""
        frames = [received.frame for received in self.scene.bystander.received]
        self.scene.bystander.received.clear()
        return frames

    def assert_nobody_got_anything(self) -> None:
        for client in (self.attacker, self.scene.bystander, self.stranger):
            assert not client.received

    async def assert_dropped(
        self, frame: bytes, reason: DropReason, header: VirtioNetHdr | None = None
    ) -> None:
        """Nobody gets the frame, nobody answers it, and it is counted under this reason alone."""
        await self.send(frame, header)
        self.assert_nobody_got_anything()
        assert self.scene.drops() == {reason: 1}


@pytest.fixture
async def place(nursery: trio.Nursery) -> AsyncIterator[Place]:
    """With an attacker that has negotiated every offload."""
    scene = await Scene.start(nursery, dual_stack=True)
    await scene.backend.add_network(OTHER_NETWORK, BYSTANDER_IP, BYSTANDER_IPV6)
    nic = await scene.backend.add_nic(
        "stranger", STRANGER_MAC, BYSTANDER_IP, BYSTANDER_IPV6, network=OTHER_NETWORK
    )
    stranger = await scene.backend.connect(nic)
    scene.before = Footprint.take()
    attacker = await scene.connect(features=DEFAULT_FEATURES | OFFLOAD_FEATURES)
    yield Place(scene, attacker, stranger)
    assert not stranger.received
    await scene.assert_unharmed()


def to_gateway(packet: bytes, ethertype: int = IPV4, *, source: str | bytes = MAC) -> bytes:
    """A packet in a frame for the gateway."""
    return ethernet_frame(GATEWAY_MAC, source, ethertype, packet)


def datagram(dst: str = BYSTANDER_IP, src: str = IP) -> bytes:
    """A UDP datagram in IPv4, without Ethernet header."""
    return ipv4_packet(src, dst, UDP, udp_datagram(src, dst, 1000, 2000, b"payload"))


def patched(packet: bytes, at: int, value: bytes, *, fix: bool = True) -> bytes:
    """An IPv4 packet with other bytes in its header; the checksum right unless told otherwise."""
    packet = packet[:at] + value + packet[at + len(value) :]
    if not fix:
        return packet
    size = max(20, (packet[0] & 15) * 4)
    header = packet[:10] + b"\0\0" + packet[12:size]
    return packet[:10] + internet_checksum(header).to_bytes(2, "big") + packet[12:]


# P1 to P6: the header in front of the frame

SEGMENT = tcp_frame(MAC, GATEWAY_MAC, IP, BYSTANDER_IP, bytes(3000), partial=True)
SEGMENT6 = tcp_frame(MAC, GATEWAY_MAC, IPV6, BYSTANDER_IPV6, bytes(3000), partial=True)
CSUM, TSO4, TSO6, USO, ECN = (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    VIRTIO_NET_HDR_GSO_ECN,
)
GOOD = VirtioNetHdr(CSUM, TSO4, 54, 1000, 34, 16)
"""For `SEGMENT`."""


def with_header(**fields: int) -> VirtioNetHdr:
    return attrs.evolve(GOOD, **fields)


async def test_p01_to_p06_good_header(place: Place) -> None:
    """What the bad ones below are made of is good itself."""
    await place.send(SEGMENT, GOOD)
    assert len(place.take_from_bystander()) == 3


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(VirtioNetHdr(CSUM, csum_start=34, csum_offset=16), id="p01 checksum"),
        pytest.param(GOOD, id="p03 TSO"),
        pytest.param(with_header(gso_type=TSO4 | ECN), id="p03 ECN"),
        pytest.param(with_header(gso_type=USO), id="p03 USO"),
    ],
)
async def test_p01_p03_not_negotiated(place: Place, header: VirtioNetHdr) -> None:
    await place.scene.send_attackers_away()
    place.attacker = await place.scene.connect(features=DEFAULT_FEATURES)
    await place.assert_dropped(SEGMENT, DropReason.OFFLOAD_NOT_NEGOTIATED, header)


@pytest.mark.parametrize("gso_type", [2, 3, 6, 7, 0x40, 0x7F, ECN, 0xFF])
async def test_p03_unknown_kind_of_segmentation(place: Place, gso_type: int) -> None:
    """UFO is 3; ECN alone is no kind at all."""
    await place.send(SEGMENT, with_header(gso_type=gso_type))
    place.assert_nobody_got_anything()
    ((reason, count),) = place.scene.drops().items()
    assert reason in (DropReason.OFFLOAD_NOT_NEGOTIATED, DropReason.OFFLOAD_INVALID)
    assert count == 1


BAD_HEADERS: dict[str, tuple[bytes, VirtioNetHdr]] = {
    "p02 start past the frame": (SEGMENT, with_header(csum_start=65535)),
    "p02 offset past the frame": (SEGMENT, with_header(csum_offset=65535)),
    "p02 last byte": (SEGMENT, with_header(csum_start=len(SEGMENT) - 1)),
    "p02 sum of both wraps": (SEGMENT, with_header(csum_start=0xFFF0, csum_offset=0x42)),
    "p02 in the Ethernet header": (SEGMENT, with_header(csum_start=13)),
    "p02 odd": (SEGMENT, with_header(csum_start=35)),
    "p02 another field": (SEGMENT, with_header(csum_offset=4)),
    "p03 no checksum": (SEGMENT, with_header(flags=0)),
    "p03 gso_size 0": (SEGMENT, with_header(gso_size=0)),
    "p03 gso_size 1": (SEGMENT, with_header(gso_size=1)),
    "p03 another family": (SEGMENT, with_header(gso_type=TSO6)),
    "p03 another family, IPv6": (SEGMENT6, with_header(csum_start=54)),
    "p03 another protocol": (SEGMENT, with_header(gso_type=USO)),
    "p03 ECN without TCP": (
        udp_frame(MAC, GATEWAY_MAC, IP, BYSTANDER_IP, 1, 2, bytes(3000)),
        with_header(gso_type=USO | ECN, csum_offset=6),
    ),
    "p04 fragment": (
        to_gateway(patched(SEGMENT[14:], 6, b"\x20\0")),
        with_header(gso_type=0, gso_size=0),
    ),
    "p04 neither TCP nor UDP": (
        icmp_echo_request(MAC, GATEWAY_MAC, IP, BYSTANDER_IP, 1, 1, bytes(100)),
        VirtioNetHdr(CSUM, csum_start=34, csum_offset=2),
    ),
    "p04 ARP": (arp_request(MAC, IP, GATEWAY_IP), VirtioNetHdr(CSUM, csum_start=14)),
}


@pytest.mark.parametrize(("frame", "header"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
async def test_p02_p03_p04_header_that_contradicts_the_frame(
    place: Place, frame: bytes, header: VirtioNetHdr
) -> None:
    await place.assert_dropped(frame, DropReason.OFFLOAD_INVALID, header)


@pytest.mark.parametrize("hdr_len", [0, 1, 53, 3054, 65535])
async def test_p03_hdr_len_is_a_hint(place: Place, hdr_len: int) -> None:
    """It is never read, so it cannot lie (virtio 1.2, 5.1.6.2.2)."""
    await place.send(SEGMENT, with_header(hdr_len=hdr_len))
    assert len(place.take_from_bystander()) == 3


async def test_p03_gso_size_past_the_packet(place: Place) -> None:
    """One segment then, which no receiver with this MTU could take."""
    await place.send(SEGMENT, with_header(gso_size=65535))
    assert not place.scene.bystander.received
    assert place.scene.drops() == {DropReason.TOO_BIG: 1}
    assert all(map(is_icmp_error, place.take_received()))


ALL_WRONG = VirtioNetHdr(0xFE, 0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF)
"""Everything but what asks for something."""


async def test_p01_p05_p06_header_of_the_guest_goes_no_further(place: Place) -> None:
    """The receiver gets one that was made anew of checked fields: there, nothing was asked for."""
    await place.send(to_gateway(datagram()), ALL_WRONG)
    got = await place.scene.bystander.recv_frame()
    assert got.header == VirtioNetHdr(num_buffers=1)


async def test_p06_offloads_are_described_anew(place: Place) -> None:
    """To a receiver that takes them; what the sender says wrongly of them is put right."""
    nic = await place.scene.backend.add_nic("receiver", "52:54:00:00:00:78", "10.0.0.10")
    receiver = await place.scene.backend.connect(nic, features=DEFAULT_FEATURES | OFFLOAD_FEATURES)
    frame = tcp_frame(MAC, GATEWAY_MAC, IP, "10.0.0.10", bytes(3000), partial=True)
    lie = with_header(flags=CSUM | 0xFE, hdr_len=65535, num_buffers=77)
    await place.send(frame, lie)
    assert attrs.evolve((await receiver.recv_frame()).header, num_buffers=0) == GOOD
    await receiver.aclose()
    await place.scene.backend.switch.remove_nic("receiver")


# P7 to P12: headers of frames and packets

VLAN = b"\x81\0\0\1"
OPTIONS = {
    "record route": bytes([7, 7, 4, 0, 0, 0, 0, 0]),
    "timestamp": bytes([68, 8, 5, 0, 0, 0, 0, 0]),
    "loose source route": bytes([131, 7, 4, 10, 0, 0, 9, 0]),
    "strict source route": bytes([137, 7, 4, 10, 0, 0, 9, 0]),
}
BAD_OPTIONS = {
    "of length 0": bytes([148, 0, 0, 0]),
    "of length 1": bytes([148, 1, 0, 0]),
    "past the end": bytes([148, 5, 0, 0]),
    "without length": bytes([1, 1, 1, 148]),
}


def with_options(options: bytes) -> bytes:
    body = udp_datagram(IP, BYSTANDER_IP, 1, 2, b"")
    return to_gateway(ipv4_packet(IP, BYSTANDER_IP, UDP, body, options=options))


def later_fragment(offset: int, size: int) -> bytes:
    """At so many times eight bytes."""
    return to_gateway(ipv4_packet(IP, BYSTANDER_IP, UDP, bytes(size), fragment=offset))


def ipv6_with(extensions: list[tuple[int, bytes]], payload: bytes = bytes(8)) -> bytes:
    packet = ipv6_packet(IPV6, BYSTANDER_IPV6, UDP, payload, extensions=extensions)
    return to_gateway(packet, IPV6_TYPE)


def datagram6(src: str | bytes, dst: str | bytes = BYSTANDER_IPV6) -> bytes:
    return udp_frame6(MAC, GATEWAY_MAC, src, dst, 1000, 2000, b"payload")


GOOD6 = datagram6(IPV6)
EMPTY_EXTENSION = b"\0\1\4\0\0\0\0"
FRAGMENT_6 = 44

DROPPED: dict[str, Drop] = {
    "p07 source multicast": (
        to_gateway(datagram(), source="53:54:00:12:34:56"),
        DropReason.SOURCE_MAC,
    ),
    "p07 source broadcast": (to_gateway(datagram(), source=BROADCAST_MAC), DropReason.SOURCE_MAC),
    "p07 source of another": (to_gateway(datagram(), source=BYSTANDER_MAC), DropReason.SOURCE_MAC),
    "p07 source of the gateway": (
        to_gateway(datagram(), source=GATEWAY_MAC),
        DropReason.SOURCE_MAC,
    ),
    "p07 to another": (
        ethernet_frame(BYSTANDER_MAC, MAC, IPV4, datagram()),
        DropReason.DESTINATION_MAC,
    ),
    "p07 to itself": (ethernet_frame(MAC, MAC, IPV4, datagram()), DropReason.DESTINATION_MAC),
    "p07 VLAN": (
        to_gateway(VLAN[2:] + IPV4.to_bytes(2, "big") + datagram(), 0x8100),
        DropReason.ETHERTYPE,
    ),
    "p07 two tags": (
        to_gateway(VLAN[2:] + VLAN + IPV4.to_bytes(2, "big") + datagram(), 0x88A8),
        DropReason.ETHERTYPE,
    ),
    "p07 802.3": (to_gateway(datagram(), len(datagram())), DropReason.ETHERTYPE),
    "p07 802.3 longest": (to_gateway(bytes(1500), 0x5DC), DropReason.ETHERTYPE),
    "p07 ethertype 0": (to_gateway(datagram(), 0), DropReason.ETHERTYPE),
    "p08 version": (to_gateway(patched(datagram(), 0, b"\x65")), DropReason.IP_MALFORMED),
    "p08 header of 16 bytes": (
        to_gateway(patched(datagram(), 0, b"\x44")),
        DropReason.IP_MALFORMED,
    ),
    "p08 header past the packet": (
        to_gateway(patched(datagram()[:24], 0, b"\x4f")),
        DropReason.IP_MALFORMED,
    ),
    "p08 longer than the frame": (
        to_gateway(patched(datagram(), 2, b"\x05\xdc")),
        DropReason.IP_MALFORMED,
    ),
    "p08 shorter than its header": (
        to_gateway(patched(datagram(), 2, b"\0\x13")),
        DropReason.IP_MALFORMED,
    ),
    "p08 checksum": (
        to_gateway(patched(datagram(), 10, b"\x12\x34", fix=False)),
        DropReason.IP_MALFORMED,
    ),
    **{
        f"p08 {name}": (with_options(options), DropReason.IP_OPTION)
        for name, options in OPTIONS.items()
    },
    **{
        f"p08 option {name}": (with_options(options), DropReason.IP_MALFORMED)
        for name, options in BAD_OPTIONS.items()
    },
    "p08 ping of death": (later_fragment(8191, 100), DropReason.IP_MALFORMED),
    "p08 fragment to the gateway": (
        to_gateway(ipv4_packet(IP, GATEWAY_IP, ICMP, bytes(8), fragment=0x2000)),
        DropReason.FRAGMENT,
    ),
    "p08 later fragment to the gateway": (
        to_gateway(ipv4_packet(IP, GATEWAY_IP, UDP, bytes(8), fragment=1)),
        DropReason.FRAGMENT,
    ),
    **{
        f"p08 source {source}": (to_gateway(datagram(src=source)), DropReason.IP_MALFORMED)
        for source in ("224.0.0.1", "239.255.255.255", "255.255.255.255", "127.0.0.1", "240.0.0.1")
    },
    **{
        f"p08 source {source}": (to_gateway(datagram(src=source)), DropReason.SOURCE_ADDRESS)
        for source in ("0.0.0.0", BYSTANDER_IP, "169.254.0.1", "8.8.8.8")
    },
    **{
        f"p08 to {target}": (to_gateway(datagram(target)), reason)
        for target, reason in {
            "127.0.0.1": DropReason.IP_MALFORMED,
            "127.255.255.255": DropReason.IP_MALFORMED,
            "0.0.0.0": DropReason.IP_MALFORMED,
            "240.0.0.1": DropReason.IP_MALFORMED,
            "224.0.0.1": DropReason.MULTICAST,
            "239.1.2.3": DropReason.MULTICAST,
            "255.255.255.255": DropReason.MULTICAST,
            "10.0.0.255": DropReason.MULTICAST,
        }.items()
    },
    "p08 to all, in a broadcast frame": (
        ethernet_frame(BROADCAST_MAC, MAC, IPV4, datagram("255.255.255.255")),
        DropReason.MULTICAST,
    ),
    "p08 to another, in a broadcast frame": (
        ethernet_frame(BROADCAST_MAC, MAC, IPV4, datagram()),
        DropReason.MULTICAST,
    ),
    "p12 longer than the frame": (GOOD6[:-1], DropReason.IP_MALFORMED),
    "p12 version": (GOOD6[:14] + b"\x45" + GOOD6[15:], DropReason.IP_MALFORMED),
    "p12 cut": (GOOD6[:53], DropReason.IP_MALFORMED),
    "p12 jumbogram": (
        to_gateway(
            struct.pack("!IHBB", 6 << 28, 0, 0, 64)
            + ipv6_bytes(IPV6)
            + ipv6_bytes(BYSTANDER_IPV6)
            + bytes([UDP, 0, 0xC2, 4, 0, 1, 0, 8])
            + bytes(65544),
            IPV6_TYPE,
        )[:65000],
        DropReason.IP_MALFORMED,
    ),
    "p12 hop-by-hop twice": (ipv6_with([(0, EMPTY_EXTENSION)] * 2), DropReason.IP_MALFORMED),
    "p12 a hundred hop-by-hop": (ipv6_with([(0, EMPTY_EXTENSION)] * 100), DropReason.IP_MALFORMED),
    "p12 nine extensions": (ipv6_with([(60, EMPTY_EXTENSION)] * 9), DropReason.IP_MALFORMED),
    "p12 a hundred extensions": (ipv6_with([(60, EMPTY_EXTENSION)] * 100), DropReason.IP_MALFORMED),
    "p12 extension past the end": (
        ipv6_with([(60, b"\x20" + EMPTY_EXTENSION[1:])]),
        DropReason.IP_MALFORMED,
    ),
    "p12 routing header of type 0": (
        ipv6_with([(43, b"\2\0\1" + bytes(4) + ipv6_bytes("fd00::7"))]),
        DropReason.IP_OPTION,
    ),
    "p12 ping of death": (
        ipv6_with([(FRAGMENT_6, b"\0\xff\xf8\0\0\0\1")], bytes(100)),
        DropReason.IP_MALFORMED,
    ),
    "p12 atomic fragment to the gateway": (
        to_gateway(
            ipv6_packet(
                IPV6,
                GATEWAY_IPV6,
                ICMPV6,
                bytes(8),
                extensions=[(FRAGMENT_6, bytes(3) + b"\0\0\0\1")],
            ),
            IPV6_TYPE,
        ),
        DropReason.FRAGMENT,
    ),
    "p12 source multicast": (datagram6("ff02::1"), DropReason.IP_MALFORMED),
    "p12 source loopback": (datagram6("::1"), DropReason.IP_MALFORMED),
    "p12 source of the gateway": (datagram6(GATEWAY_IPV6), DropReason.IP_MALFORMED),
    "p12 source unspecified": (datagram6("::"), DropReason.SOURCE_ADDRESS),
    "p12 source of another": (datagram6(BYSTANDER_IPV6), DropReason.SOURCE_ADDRESS),
    "p12 source mapped": (datagram6("::ffff:10.0.0.9"), DropReason.SOURCE_ADDRESS),
    "p12 to loopback": (datagram6(IPV6, "::1"), DropReason.IP_MALFORMED),
    "p12 to nobody": (datagram6(IPV6, "::"), DropReason.IP_MALFORMED),
    "p12 to all nodes": (
        udp_frame6(MAC, group_mac(ALL_NODES), IPV6, ALL_NODES, 1, 2, b""),
        DropReason.MULTICAST,
    ),
}


@pytest.mark.parametrize(("frame", "reason"), DROPPED.values(), ids=DROPPED.keys())
async def test_p07_p08_p12_headers(place: Place, frame: bytes, reason: DropReason) -> None:
    await place.assert_dropped(frame, reason)


TOLD: dict[str, Drop] = {
    **{
        f"p08 TTL {ttl}": (
            to_gateway(patched(datagram(), 8, bytes([ttl]))),
            DropReason.TTL_EXCEEDED,
        )
        for ttl in (0, 1)
    },
    "p08 to the metadata service": (
        to_gateway(datagram("169.254.169.254")),
        DropReason.ADMIN_PROHIBITED,
    ),
    "p08 elsewhere": (to_gateway(datagram("8.8.8.8")), DropReason.NO_ROUTE),
    "p12 hop limit 0": (GOOD6[:21] + b"\0" + GOOD6[22:], DropReason.TTL_EXCEEDED),
}


@pytest.mark.parametrize(("frame", "reason"), TOLD.values(), ids=TOLD.keys())
async def test_p08_p12_sender_hears_of_it(place: Place, frame: bytes, reason: DropReason) -> None:
    """Once, and only the sender."""
    await place.send(frame)
    (answer,) = place.take_received()
    assert is_icmp_error(answer) or is_icmpv6_error(answer)
    place.assert_nobody_got_anything()
    assert place.scene.drops() == {reason: 1}


async def test_p08_p12_fragments_are_passed_on_as_they_are(place: Place) -> None:
    """A router puts nothing together, so overlaps and tiny pieces are the receiver's to judge."""
    frames = [later_fragment(0x2000, 8), later_fragment(0x2001, 8), later_fragment(1, 24)]
    frames.append(ipv6_with([(FRAGMENT_6, bytes(3) + b"\0\0\0\1")]))
    for frame in frames:
        await place.send(frame)
    got = place.take_from_bystander()
    assert [parse_ethernet(frame)[1][20:] for frame in got[:3]] == [f[34:] for f in frames[:3]]
    assert parse_ethernet(got[3])[1][40:] == frames[3][54:]
    assert not place.scene.drops()


# P9: ARP

ARP_GOOD = arp_request(MAC, IP, GATEWAY_IP)

BAD_ARP: dict[str, Drop] = {
    "p09 hlen 5": (ARP_GOOD[:18] + b"\5" + ARP_GOOD[19:], DropReason.ARP_MALFORMED),
    "p09 plen 16": (ARP_GOOD[:19] + b"\x10" + ARP_GOOD[20:], DropReason.ARP_MALFORMED),
    **{
        f"p09 op {op}": (arp_packet(op, MAC, IP, bytes(6), GATEWAY_IP), DropReason.ARP_MALFORMED)
        for op in (0, 3, 65535)
    },
    "p09 truncated": (ARP_GOOD[:41], DropReason.ARP_MALFORMED),
    "p09 empty": (ARP_GOOD[:14], DropReason.ARP_MALFORMED),
    "p09 sender is not the Ethernet source": (
        ARP_GOOD[:22] + mac_bytes(BYSTANDER_MAC) + ARP_GOOD[28:],
        DropReason.ARP_MALFORMED,
    ),
    "p09 reply": (
        arp_packet(2, MAC, GATEWAY_IP, BYSTANDER_MAC, BYSTANDER_IP),
        DropReason.ARP_IGNORED,
    ),
    "p09 announcement": (arp_request(MAC, BYSTANDER_IP, BYSTANDER_IP), DropReason.ARP_IGNORED),
    "p09 who has another's address": (arp_request(MAC, IP, BYSTANDER_IP), DropReason.ARP_IGNORED),
    "p09 to another": (
        arp_packet(2, MAC, GATEWAY_IP, BYSTANDER_MAC, BYSTANDER_IP, dst=BYSTANDER_MAC),
        DropReason.DESTINATION_MAC,
    ),
}


@pytest.mark.parametrize(("frame", "reason"), BAD_ARP.values(), ids=BAD_ARP.keys())
async def test_p09_arp(place: Place, frame: bytes, reason: DropReason) -> None:
    await place.assert_dropped(frame, reason)


@pytest.mark.parametrize("sender", ["0.0.0.0", BYSTANDER_IP, "169.254.0.1", "255.255.255.255"])
async def test_p09_sender_address_teaches_nothing(place: Place, sender: str) -> None:
    """The gateway is named to whoever asks; packets go the way that they went before."""
    await place.send(arp_request(MAC, sender, GATEWAY_IP))
    (answer,) = place.take_received()
    assert is_arp_reply(answer)
    await place.send(to_gateway(datagram()))
    assert len(place.take_from_bystander()) == 1


# P10 and P11: UDP and DHCP

DISCOVER = {53: b"\1"}
DISCOVER_FRAME = dhcp_discover(MAC, 1)


def dhcp(message: bytes) -> bytes:
    return dhcp_frame(MAC, message)


def discover(more: bytes = b"", *, end: bytes = b"\xff", kind: bytes = b"\x35\1\1") -> bytes:
    """DISCOVER with these options behind its type, and padded as clients do."""
    fixed = dhcp_message(MAC, 1, {})[:-1]
    return (fixed + kind + more + end).ljust(300, b"\0")


def bootp_field(at: int, value: bytes) -> bytes:
    message = discover()
    return message[:at] + value + message[at + len(value) :]


def udp_field(at: int, value: bytes) -> bytes:
    """The DISCOVER with other bytes in its UDP header."""
    at += 34
    return DISCOVER_FRAME[:at] + value + DISCOVER_FRAME[at + len(value) :]


NOT_ANSWERED: dict[str, bytes] = {
    "p10 length 7": udp_field(4, b"\0\7"),
    "p10 length 0": udp_field(4, b"\0\0"),
    "p10 longer than the packet": udp_field(4, b"\xff\xff"),
    "p10 longer than the packet, and no checksum": udp_field(4, b"\xff\xff\0\0"),
    "p10 checksum": udp_field(6, b"\x12\x34"),
    "p11 short fixed part": dhcp(discover()[:239]),
    "p11 nothing": dhcp(b""),
    "p11 no cookie": dhcp(bootp_field(236, bytes(4))),
    "p11 op 2": dhcp(bootp_field(0, b"\2")),
    "p11 htype 6": dhcp(bootp_field(1, b"\6")),
    "p11 hlen 16": dhcp(bootp_field(2, b"\x10")),
    "p11 option past the end": dhcp(discover(b"\x0c\xff")),
    "p11 type twice": dhcp(discover(b"\x35\1\1")),
    "p11 type of length 0": dhcp(discover(kind=b"\x35\0")),
    "p11 type of length 2": dhcp(discover(kind=b"\x35\2\1\1")),
    "p11 overload that is none": dhcp(discover(b"\x34\1\4")),
    "p11 client id over 255 bytes": dhcp(discover((b"\x3d\xff" + bytes(255)) * 2)),
    "p11 relay": dhcp(dhcp_message(MAC, 1, DISCOVER, relay_ip="10.0.0.9")),
    "p11 another's hardware address": dhcp(bootp_field(28, mac_bytes(BYSTANDER_MAC))),
}


@pytest.mark.parametrize("frame", NOT_ANSWERED.values(), ids=NOT_ANSWERED.keys())
async def test_p10_p11_not_answered(place: Place, frame: bytes) -> None:
    await place.send(frame)
    place.assert_nobody_got_anything()
    ((reason, count),) = place.scene.drops().items()
    assert reason in (DropReason.DHCP_MALFORMED, DropReason.DHCP_IGNORED)
    assert count == 1


ANSWERED: dict[str, bytes] = {
    "p10 without checksum": udp_field(6, b"\0\0"),
    "p11 no end": dhcp(discover(end=b"")),
    "p11 pad flood": dhcp(discover(bytes(1000))),
    "p11 overload that loops": dhcp(
        discover(b"\x34\1\3")[:44] + b"\x34\1\3".ljust(64, b"\0") + discover(b"\x34\1\3")[108:]
    ),
    "p11 55 empty": dhcp(discover(b"\x37\0")),
    "p11 55 with 255 entries": dhcp(discover(b"\x37\xff" + bytes(range(255)))),
    "p11 client id empty": dhcp(discover(b"\x3d\0")),
    "p11 client id of 255 bytes": dhcp(discover(b"\x3d\xff" + bytes(255))),
    "p11 57 is 0": dhcp(discover(b"\x39\2\0\0")),
    "p11 57 is 575": dhcp(discover(b"\x39\2\2\x3f")),
    "p11 xid 0": dhcp(bootp_field(4, bytes(4))),
}


@pytest.mark.parametrize("frame", ANSWERED.values(), ids=ANSWERED.keys())
async def test_p10_p11_odd_but_answered(place: Place, frame: bytes) -> None:
    await place.send(frame)
    (answer,) = place.take_received()
    assert is_dhcp_response(answer)
    place.assert_nobody_got_anything()


@pytest.mark.parametrize("length", [b"\0\0", b"\0\7", b"\xff\xff"])
async def test_p10_datagrams_between_guests_are_the_receivers_to_judge(
    place: Place, length: bytes
) -> None:
    """A router looks at the IP header; nothing is asked of the core that needs the UDP length."""
    frame = to_gateway(datagram())
    frame = frame[:38] + length + b"\xab\xcd" + frame[42:]
    await place.send(frame)
    (got,) = place.take_from_bystander()
    assert got[34:] == frame[34:]


# P13 and P14: neighbour discovery and DHCPv6

NS = bytes(4) + GATEWAY_IPV6


def nd(
    kind: int,
    body: bytes,
    *,
    src: str | bytes = LINK_LOCAL,
    code: int = 0,
    hop_limit: int = 255,
) -> bytes:
    """A solicitation to the group that it is for."""
    dst = "ff02::1:ff00:1" if kind == 135 else "ff02::2"
    return icmpv6_frame(MAC, group_mac(dst), src, dst, kind, code, body, hop_limit=hop_limit)


def advertisement(kind: int, body: bytes, dst: bytes | str = ALL_NODES) -> bytes:
    """One from the guest, to everybody or to the gateway."""
    to = GATEWAY_MAC if dst == GATEWAY_IPV6 else group_mac(dst)
    return icmpv6_frame(MAC, to, LINK_LOCAL, dst, kind, 0, body, hop_limit=255)


BAD_ND: dict[str, Drop] = {
    "p13 hop limit 254": (nd(135, NS, hop_limit=254), DropReason.NDP_MALFORMED),
    "p13 hop limit of a router solicitation": (
        nd(133, bytes(4), hop_limit=64),
        DropReason.NDP_MALFORMED,
    ),
    "p13 code": (nd(135, NS, code=1), DropReason.NDP_MALFORMED),
    "p13 option of length 0": (nd(135, NS + b"\1\0" + bytes(6)), DropReason.NDP_MALFORMED),
    "p13 option past the end": (nd(135, NS + b"\1\x09" + bytes(6)), DropReason.NDP_MALFORMED),
    "p13 target multicast": (nd(135, bytes(4) + ALL_NODES), DropReason.NDP_MALFORMED),
    "p13 nobody with a link-layer address": (
        nd(135, NS + b"\1\1" + mac_bytes(MAC), src="::"),
        DropReason.NDP_MALFORMED,
    ),
    "p13 router solicitation of nobody with a link-layer address": (
        nd(133, bytes(4) + b"\1\1" + mac_bytes(MAC), src="::"),
        DropReason.NDP_MALFORMED,
    ),
    "p13 router advertisement": (advertisement(134, bytes(12)), DropReason.MULTICAST),
    "p13 router advertisement to the gateway": (
        advertisement(134, bytes(12), GATEWAY_IPV6),
        DropReason.NDP_IGNORED,
    ),
    "p13 redirect": (advertisement(137, bytes(36)), DropReason.MULTICAST),
    "p13 redirect to the gateway": (
        advertisement(137, bytes(36), GATEWAY_IPV6),
        DropReason.NDP_IGNORED,
    ),
    "p13 neighbour advertisement of another's address": (
        advertisement(136, b"\x20\0\0\0" + ipv6_bytes(BYSTANDER_IPV6)),
        DropReason.MULTICAST,
    ),
    "p13 who has another's address": (
        neighbor_solicitation(MAC, LINK_LOCAL, BYSTANDER_IPV6),
        DropReason.MULTICAST,
    ),
}


@pytest.mark.parametrize(("frame", "reason"), BAD_ND.values(), ids=BAD_ND.keys())
async def test_p13_neighbour_discovery(place: Place, frame: bytes, reason: DropReason) -> None:
    await place.assert_dropped(frame, reason)


async def test_p13_good_solicitations_are_answered(place: Place) -> None:
    """What the bad ones above are made of is good itself."""
    for frame in (nd(135, NS), router_solicitation(MAC, LINK_LOCAL)):
        await place.send(frame)
        assert len(place.take_received()) == 1
    assert not place.scene.drops()


SOLICIT = ia_na(1)


def dhcpv6(options: bytes = SOLICIT, kind: int = 1, src: str | bytes = LINK_LOCAL) -> bytes:
    return dhcpv6_message(MAC, src, kind, 1, options)


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = dhcpv6_option(3, bytes(12) + inner)
    return inner


BAD_DHCPV6: dict[str, Drop] = {
    "p14 relay-forward": (dhcpv6(kind=12), DropReason.DHCPV6_IGNORED),
    "p14 no client": (
        dhcpv6_message(MAC, LINK_LOCAL, 1, 1, SOLICIT, client_id=b""),
        DropReason.DHCPV6_IGNORED,
    ),
    "p14 client of 1 byte": (
        dhcpv6_message(MAC, LINK_LOCAL, 1, 1, SOLICIT, client_id=b"\1"),
        DropReason.DHCPV6_MALFORMED,
    ),
    "p14 client of 131 bytes": (
        dhcpv6_message(MAC, LINK_LOCAL, 1, 1, SOLICIT, client_id=bytes(131)),
        DropReason.DHCPV6_MALFORMED,
    ),
    "p14 a hundred associations": (dhcpv6(SOLICIT * 70), DropReason.DHCPV6_MALFORMED),
    "p14 option past the end": (dhcpv6(SOLICIT + b"\0\6\0\2\0"), DropReason.DHCPV6_MALFORMED),
    "p14 odd option request": (dhcpv6(SOLICIT + b"\0\6\0\3\0\x17\0"), DropReason.DHCPV6_MALFORMED),
    "p14 source not link-local": (dhcpv6(src=IPV6), DropReason.DHCPV6_MALFORMED),
    "p14 source unspecified": (dhcpv6(src="::"), DropReason.DHCPV6_MALFORMED),
    "p14 unicast": (
        dhcpv6_message(MAC, LINK_LOCAL, 1, 1, SOLICIT, dst_ip=GATEWAY_IPV6, dst_mac=GATEWAY_MAC),
        DropReason.DHCPV6_IGNORED,
    ),
}


@pytest.mark.parametrize(("frame", "reason"), BAD_DHCPV6.values(), ids=BAD_DHCPV6.keys())
async def test_p14_dhcpv6(place: Place, frame: bytes, reason: DropReason) -> None:
    await place.assert_dropped(frame, reason)


@pytest.mark.parametrize("depth", [1, 60])
async def test_p14_nesting_is_not_followed(place: Place, depth: int) -> None:
    await place.send(dhcpv6(nested(depth)))
    (answer,) = place.take_received()
    assert len(parse_dhcpv6_response(answer).addresses) == 1


async def test_p14_any_port_is_answered_on_546(place: Place) -> None:
    """Where a client sends from says nothing of where it listens (RFC 8415, 7.2)."""
    message = dhcpv6()[62:]
    await place.send(
        udp_frame6(MAC, group_mac(ALL_DHCP_AGENTS), LINK_LOCAL, ALL_DHCP_AGENTS, 7, 547, message)
    )
    (answer,) = place.take_received()
    assert struct.unpack_from("!HH", answer, 54) == (547, 546)


# P15: errors about errors


def icmp_message(dst: str, kind: int, *, fragment: int = 0, src: str = IP) -> bytes:
    body = bytes([kind, 0, 0, 0]) + bytes(4) + datagram()[:28]
    checksum = internet_checksum(body).to_bytes(2, "big")
    return ipv4_packet(src, dst, ICMP, body[:2] + checksum + body[4:], fragment=fragment)


NOT_TOLD: dict[str, bytes] = {
    **{f"p15 type {kind}": to_gateway(icmp_message("8.8.8.8", kind)) for kind in (3, 4, 5, 11, 12)},
    "p15 later fragment": to_gateway(ipv4_packet(IP, "8.8.8.8", UDP, bytes(8), fragment=1)),
    "p15 to a group": to_gateway(patched(datagram("224.0.0.1"), 8, b"\1")),
    "p15 to all of the subnet": to_gateway(patched(datagram("10.0.0.255"), 8, b"\1")),
    "p15 in a broadcast frame": ethernet_frame(BROADCAST_MAC, MAC, IPV4, datagram("8.8.8.8")),
    "p15 from another": to_gateway(datagram("8.8.8.8", BYSTANDER_IP)),
    **{
        f"p15 ICMPv6 type {kind}": icmpv6_frame(
            MAC, GATEWAY_MAC, IPV6, "2001:db8::1", kind, 0, bytes(48)
        )
        for kind in (1, 2, 3, 4, 127)
    },
}


@pytest.mark.parametrize("frame", NOT_TOLD.values(), ids=NOT_TOLD.keys())
async def test_p15_no_error_about_it(place: Place, frame: bytes) -> None:
    await place.send(frame)
    place.assert_nobody_got_anything()
    assert sum(place.scene.drops().values()) == 1


async def test_p15_errors_are_limited(place: Place) -> None:
    """However many packets go nowhere: there is one error for each five milliseconds, and some."""
    frame = to_gateway(datagram("8.8.8.8"))
    for _ in range(10):
        await place.attacker.send_burst([frame] * 100)
        await wait_all_tasks_blocked()
    assert place.scene.drops()[DropReason.NO_ROUTE] == 1000
    answers = place.take_received()
    assert all(map(is_icmp_error, answers))
    assert len(answers) == 50
    place.assert_nobody_got_anything()


# P16: two with one address


@pytest.mark.parametrize(
    "fields",
    [
        {"mac_address": BYSTANDER_MAC},
        {"ipv4_address": BYSTANDER_IP},
        {"ipv6_address": BYSTANDER_IPV6},
        {"routed_ipv4_prefixes": [f"{BYSTANDER_IP}/32"]},
        {"routed_ipv6_prefixes": [f"{BYSTANDER_IPV6}/128"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_p16_second_nic_with_an_address(place: Place, fields: dict[str, Any]) -> None:
    """It cannot be added, and the first one goes on."""
    spec = NicSpec(name="thief", network=NETWORK_NAME, **fields)
    with pytest.raises(ConfigError):
        await place.scene.backend.switch.add_nic(spec)
    assert "thief" not in place.scene.backend.switch.nics
    await place.send(to_gateway(datagram()))
    assert len(place.take_from_bystander()) == 1


async def test_p16_guest_that_claims_anothers_address(place: Place) -> None:
    """By ARP, ND, DHCP and by the packets it sends: what is for the bystander goes on to it."""
    for frame in (
        arp_packet(2, MAC, BYSTANDER_IP, BROADCAST_MAC, BYSTANDER_IP),
        arp_request(MAC, BYSTANDER_IP, GATEWAY_IP),
        advertisement(136, b"\x20\0\0\0" + ipv6_bytes(BYSTANDER_IPV6)),
        dhcp(discover(b"\x32\4" + ip_bytes(BYSTANDER_IP))),
        to_gateway(datagram(src=BYSTANDER_IP)),
        to_gateway(datagram(), source=BYSTANDER_MAC),
        datagram6(BYSTANDER_IPV6),
    ):
        await place.send(frame)
    place.take_received()
    place.assert_nobody_got_anything()
    await place.scene.bystander.send_packet(
        udp_frame(BYSTANDER_MAC, GATEWAY_MAC, BYSTANDER_IP, IP, 1, 2, b"to the attacker")
    )
    await wait_all_tasks_blocked()
    (got,) = place.take_received()
    assert got.endswith(b"to the attacker")
    await place.send(to_gateway(datagram()))
    assert len(place.take_from_bystander()) == 1
    assert place.scene.backend.nic.spec.ipv4_address == IPv4Address(IP)
    await arp_gateway(place.attacker, MAC, IP)
