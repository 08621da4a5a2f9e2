"""Packets between guests: routed, isolated, and refused where they must be.

``tests/unit/test_ffi_forward.py`` looks at every bit of a routed packet; here are whole
connections, their tasks, and networks that change meanwhile.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
import trio.testing

from mvirt_net import ConfigError, DropReason, NicEventKind, NotFoundError
from tests.harness import (
    GATEWAY_IP,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    RoutingNicConfig,
    RoutingTestBackend,
    VhostTestClient,
)
from tests.harness.client import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    RX_QUEUE_IDX,
)
from tests.harness.clock import virtual_time
from tests.harness.exchanges import ping_gateway
from tests.harness.packets import (
    BROADCAST_MAC,
    arp_request,
    icmp_echo_request,
    icmpv6_echo_request,
    ip_bytes,
    ipv6_bytes,
    link_local,
    mac_bytes,
    parse_ethernet,
    parse_icmp_echo_request,
    parse_icmp_error,
    parse_icmpv6_echo_request,
    parse_icmpv6_error,
    parse_ipv4,
    parse_udp,
    udp_frame,
    udp_frame6,
)
from tests.harness.vhost_user import Feature, ProtocolFeature
from tests.layouts import BOTH_LAYOUTS

pytestmark = [virtual_time, BOTH_LAYOUTS]

MAC_A, MAC_B, MAC_C = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:0c"
A = RoutingNicConfig("a", MAC_A, "10.0.0.1", "fd00::1")
B = RoutingNicConfig("b", MAC_B, "10.0.0.2", "fd00::2")


async def start(
    nursery: trio.Nursery, **network: Any
) -> tuple[RoutingTestBackend, VhostTestClient, VhostTestClient]:
    """A backend, and a guest on each of its two NICs."""
    backend = await RoutingTestBackend.start(nursery, A, B, **network)
    return backend, await backend.connect_a(), await backend.connect_b()


def datagram(number: int, src: str = "10.0.0.1", dst: str = "10.0.0.2", mac: str = MAC_A) -> bytes:
    """A numbered UDP datagram on its way to the gateway."""
    return udp_frame(mac, GATEWAY_MAC, src, dst, 1000, 2000, number.to_bytes(4, "big"))


def number_in(frame: bytes) -> int:
    header, payload = parse_ipv4(parse_ethernet(frame)[1])
    return int.from_bytes(parse_udp(header, payload)[2], "big")


async def assert_silent(client: VhostTestClient, seconds: float = 10) -> None:
    """Nothing more comes, also when all there is to do has been done."""
    with pytest.raises(trio.TooSlowError):
        await client.recv_packet(timeout=seconds)


# From one to the other


async def test_routing_packet_from_a_to_b(nursery: trio.Nursery) -> None:
    _, a, b = await start(nursery)
    await a.send_packet(
        icmp_echo_request(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", 1, 2, b"data")
    )
    got = parse_icmp_echo_request(await b.recv_packet(timeout=3.0))
    assert (got.src_mac, got.dst_mac) == (GATEWAY_MAC, mac_bytes(MAC_B))
    assert (got.src_ip, got.dst_ip) == (ip_bytes("10.0.0.1"), ip_bytes("10.0.0.2"))
    assert (got.ident, got.seq_no, got.data) == (1, 2, b"data")


async def test_routing_bidirectional(nursery: trio.Nursery) -> None:
    _, a, b = await start(nursery)
    await a.send_packet(datagram(1))
    assert number_in(await b.recv_packet()) == 1
    await b.send_packet(datagram(2, "10.0.0.2", "10.0.0.1", MAC_B))
    frame = await a.recv_packet()
    assert number_in(frame) == 2
    assert parse_ethernet(frame)[0].dst == mac_bytes(MAC_A)


async def test_routing_ttl_decrement(nursery: trio.Nursery) -> None:
    _, a, b = await start(nursery)
    await a.send_packet(datagram(1))
    header, _ = parse_ipv4(parse_ethernet(await b.recv_packet())[1])
    assert header.ttl == 63


async def test_routing_ipv6_packet_from_a_to_b(nursery: trio.Nursery) -> None:
    _, a, b = await start(nursery)
    await a.send_packet(icmpv6_echo_request(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, b"6"))
    got = parse_icmpv6_echo_request(await b.recv_packet())
    assert (got.src_mac, got.dst_mac) == (GATEWAY_MAC, mac_bytes(MAC_B))
    assert (got.src_ip, got.dst_ip) == (ipv6_bytes("fd00::1"), ipv6_bytes("fd00::2"))
    assert (got.hop_limit, got.data) == (63, b"6")


async def test_routing_ipv6_bidirectional(nursery: trio.Nursery) -> None:
    _, a, b = await start(nursery)
    await a.send_packet(icmpv6_echo_request(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 1, b""))
    assert parse_icmpv6_echo_request(await b.recv_packet()).seq_no == 1
    await b.send_packet(icmpv6_echo_request(MAC_B, GATEWAY_MAC, "fd00::2", "fd00::1", 1, 2, b""))
    assert parse_icmpv6_echo_request(await a.recv_packet()).seq_no == 2


async def test_vm_to_vm_ping(nursery: trio.Nursery) -> None:
    """Both ask for the gateway's MAC address first, as guests do."""
    _, a, b = await start(nursery)
    for client, nic in ((a, A), (b, B)):
        assert nic.ipv4 is not None
        await client.send_packet(arp_request(nic.mac, nic.ipv4, GATEWAY_IP))
        await client.recv_packet()
    request = icmp_echo_request(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", 7, 1, b"ping")
    await a.send_packet(request)
    got = parse_icmp_echo_request(await b.recv_packet())
    # The other guest's answer: type 0 in place of 8, and the checksum that goes with it.
    answer = bytearray(
        icmp_echo_request(MAC_B, GATEWAY_MAC, got.dst_ip, got.src_ip, 7, 1, got.data)
    )
    checksum = int.from_bytes(answer[36:38], "big") + 0x0800
    answer[34] = 0
    answer[36:38] = ((checksum & 0xFFFF) + (checksum >> 16)).to_bytes(2, "big")
    await b.send_packet(bytes(answer))
    frame = await a.recv_packet()
    assert frame[34] == 0
    assert parse_ethernet(frame)[0].src == GATEWAY_MAC


async def test_vm_to_vm_routing(nursery: trio.Nursery) -> None:
    """Each of three guests reaches each other."""
    backend, a, b = await start(nursery)
    c = await backend.connect(await backend.add_nic("c", MAC_C, "10.0.0.3"))
    guests = [(a, MAC_A, "10.0.0.1"), (b, MAC_B, "10.0.0.2"), (c, MAC_C, "10.0.0.3")]
    for number, (sender, mac, src) in enumerate(guests):
        for receiver, _, dst in guests:
            if receiver is not sender:
                await sender.send_packet(datagram(number, src, dst, mac))
                assert number_in(await receiver.recv_packet()) == number
    assert backend.nic.stats().routed == 2


async def test_guest_that_comes_later_is_reached(nursery: trio.Nursery) -> None:
    backend = await RoutingTestBackend.start(nursery, A, B)
    a = await backend.connect_a()
    await a.send_packet(datagram(1))
    error = parse_icmp_error(await a.recv_packet())
    assert (error.kind, error.code) == (3, 1)
    b = await backend.connect_b()
    await a.send_packet(datagram(2))
    assert number_in(await b.recv_packet()) == 2
    b.disconnect()
    await trio.testing.wait_all_tasks_blocked()
    assert not backend.nic_b.connected
    await a.send_packet(datagram(3))
    assert parse_icmp_error(await a.recv_packet()).code == 1


# Isolation


async def test_networks_with_the_same_addresses(nursery: trio.Nursery) -> None:
    backend, a, b = await start(nursery)
    await backend.add_network("red", "10.0.0.1", "fd00::1")
    twins = []
    for name, mac, ipv4, ipv6 in (
        ("red-a", "52:54:00:00:01:0a", "10.0.0.1", "fd00::1"),
        ("red-b", "52:54:00:00:01:0b", "10.0.0.2", "fd00::2"),
    ):
        nic = await backend.add_nic(name, mac, ipv4, ipv6, network="red")
        twins.append(await backend.connect(nic))
    await a.send_packet(datagram(1))
    assert number_in(await b.recv_packet()) == 1
    await twins[0].send_packet(datagram(2, mac="52:54:00:00:01:0a"))
    assert number_in(await twins[1].recv_packet()) == 2
    # An address that only the other network has.
    await backend.add_nic("c", MAC_C, "10.0.0.77")
    await twins[0].send_packet(datagram(3, dst="10.0.0.77", mac="52:54:00:00:01:0a"))
    assert parse_icmp_error(await twins[0].recv_packet()).code == 1
    assert await backend_silent([a, b, *twins])


async def backend_silent(clients: list[VhostTestClient]) -> bool:
    """Whether nobody gets anything but the gateway's advertisements, for a while."""
    for client in clients:
        await assert_silent(client, 1)
    return True


@pytest.mark.parametrize(
    "frame",
    [
        datagram(1, mac=MAC_B),
        datagram(1, src="10.0.0.2"),
        datagram(1, src="10.0.0.99"),
        datagram(1, src="8.8.8.8"),
        datagram(1, src="0.0.0.0"),
        udp_frame6(MAC_A, GATEWAY_MAC, "fd00::2", "fd00::2", 1, 2, b""),
        udp_frame6(MAC_A, GATEWAY_MAC, link_local(MAC_A), "fd00::2", 1, 2, b""),
        udp_frame6(MAC_A, GATEWAY_MAC, "::", "fd00::2", 1, 2, b""),
        icmp_echo_request(MAC_A, GATEWAY_MAC, "10.0.0.2", GATEWAY_IP, 1, 1, b""),
        icmpv6_echo_request(MAC_A, GATEWAY_MAC, "fd00::2", GATEWAY_IPV6, 1, 1, b""),
    ],
)
async def test_spoofed_sender_gets_nowhere(nursery: trio.Nursery, frame: bytes) -> None:
    backend, a, b = await start(nursery)
    await a.send_packet(frame)
    await backend_silent([a, b])
    drops = backend.nic.stats().drops
    assert sum(drops.values()) == 1
    assert set(drops) <= {DropReason.SOURCE_MAC, DropReason.SOURCE_ADDRESS}


@pytest.mark.parametrize(
    "frame",
    [
        udp_frame(MAC_A, BROADCAST_MAC, "10.0.0.1", "255.255.255.255", 1, 2, b""),
        udp_frame(MAC_A, BROADCAST_MAC, "10.0.0.1", "10.0.0.255", 1, 2, b""),
        udp_frame(MAC_A, BROADCAST_MAC, "10.0.0.1", "10.0.0.2", 1, 2, b""),
        udp_frame(MAC_A, "01:00:5e:00:00:fb", "10.0.0.1", "224.0.0.251", 5353, 5353, b""),
        udp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "239.1.2.3", 1, 2, b""),
        udp_frame6(MAC_A, "33:33:00:00:00:01", "fd00::1", "ff02::1", 1, 2, b""),
        udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "ff0e::1", 1, 2, b""),
    ],
)
async def test_broadcast_and_multicast_stay(nursery: trio.Nursery, frame: bytes) -> None:
    backend, a, b = await start(nursery)
    await a.send_packet(frame)
    await backend_silent([a, b])
    assert backend.nic.stats().drops == {DropReason.MULTICAST: 1}


# Prefixes behind guests


async def test_route_update_under_traffic(nursery: trio.Nursery) -> None:
    """A prefix moves back and forth between two guests while a third one sends to it.

    Nothing is lost but what is refused while nobody has the prefix, and nothing ever comes to
    a guest that has not got it.
    """
    backend, a, b = await start(nursery)
    nic_c = await backend.add_nic("c", MAC_C, "10.0.0.3")
    c = await backend.connect(nic_c)
    sent = 0
    for owner, other, guest, idle in (("b", "c", b, c), ("c", "b", c, b)) * 10:
        await backend.switch.update_nic(other, routed_ipv4_prefixes=[])
        await a.send_packet(datagram(sent, dst="192.0.2.9"))
        assert parse_icmp_error(await a.recv_packet()).code == 0
        await backend.switch.update_nic(owner, routed_ipv4_prefixes=["192.0.2.0/24"])
        numbers = range(sent, sent + 20)
        await a.send_burst([datagram(number, dst="192.0.2.9") for number in numbers])
        assert [number_in(await guest.recv_packet()) for _ in numbers] == list(numbers)
        assert not idle.received
        sent += 20
    assert backend.nic.stats().routed == sent


async def test_prefix_is_a_guests_to_send_from(nursery: trio.Nursery) -> None:
    backend, a, b = await start(nursery)
    behind = datagram(1, src="192.0.2.9")
    await a.send_packet(behind)
    assert backend.nic.stats().drops == {DropReason.SOURCE_ADDRESS: 1}
    spec = await backend.switch.update_nic("test-nic", routed_ipv4_prefixes=["192.0.2.0/24"])
    assert backend.nic.spec is spec
    await a.send_packet(behind)
    assert number_in(await b.recv_packet()) == 1


async def test_update_that_is_refused_changes_nothing(nursery: trio.Nursery) -> None:
    backend, a, b = await start(nursery)
    switch = backend.switch
    await switch.update_nic("b", routed_ipv4_prefixes=["192.0.2.0/24"])
    for prefixes in (["192.0.2.128/25"], ["10.0.0.0/24"], ["127.0.0.0/8"], ["x"], ["1.2.3.4/24"]):
        with pytest.raises(ConfigError):
            await switch.update_nic("test-nic", routed_ipv4_prefixes=prefixes)
    with pytest.raises(NotFoundError):
        await switch.update_nic("nobody", routed_ipv4_prefixes=[])
    await a.send_packet(datagram(1, dst="192.0.2.9"))
    assert number_in(await b.recv_packet()) == 1
    assert backend.nic.spec.routed_ipv4_prefixes == ()


async def test_removed_nic_is_no_target_any_more(nursery: trio.Nursery) -> None:
    backend, a, b = await start(nursery)
    await a.send_packet(datagram(1))
    assert number_in(await b.recv_packet()) == 1
    await backend.switch.remove_nic("b")
    await a.send_packet(datagram(2))
    assert parse_icmp_error(await a.recv_packet()).code == 1
    nic = await backend.add_nic("again", MAC_B, "10.0.0.2")
    again = await backend.connect(nic)
    await a.send_packet(datagram(3))
    assert number_in(await again.recv_packet()) == 3


# Receivers that do not keep up


async def test_exhausted_receiver_does_not_hurt_others(nursery: trio.Nursery) -> None:
    backend, a, b = await start(nursery)
    slow = await backend.connect(
        await backend.add_nic("c", MAC_C, "10.0.0.3"), rx_buffers=4, refill=False
    )
    for number in range(0, 600, 2):
        await a.send_packet(datagram(number, dst="10.0.0.3"))
        await a.send_packet(datagram(number + 1))
        assert number_in(await b.recv_packet()) == number + 1
    stats = backend.switch.nics["c"].stats()
    assert stats.drops == {DropReason.RX_BACKLOG_FULL: 300 - 4 - 256}
    assert backend.nic.stats().drops == {}
    # It comes to its senses: what was kept for it arrives, in order.
    got: list[int] = []
    slow.fill_rx_queue()
    while len(got) < 260:
        got.append(number_in(await slow.recv_packet()))
        slow.add_rx_buffer()
        slow.kick(RX_QUEUE_IDX)
    assert got == list(range(0, 520, 2))


async def test_m29_receiver_that_loses_its_memory_is_alone_with_it(nursery: trio.Nursery) -> None:
    """Its frontend empties the file while another guest's frames are on their way into it."""
    backend, a, b = await start(nursery)
    nic = await backend.add_nic("c", MAC_C, "10.0.0.3", "fd00::3")
    c = await backend.connect(nic)
    (region,) = b.memory.get_region_info()
    async with backend.switch.events() as events:
        os.ftruncate(region.fd, 0)
        for number in range(100):
            await a.send_burst([datagram(number, dst=f"10.0.0.{host}") for host in (2, 3)])
            assert number_in(await c.recv_packet()) == number
        with trio.fail_after(5):
            event = await anext(events)
    assert (event.nic, event.kind) == ("b", NicEventKind.FAULTED)
    await b.connection.wait_hung_up()
    b.disconnect()
    again = await backend.connect_b()
    await a.send_packet(datagram(1000))
    assert number_in(await again.recv_packet()) == 1000
    assert backend.nic.stats().drops.keys() <= {DropReason.HOST_UNREACHABLE}
    assert nic.stats().drops == {}


async def test_frame_that_needs_more_buffers_waits_for_them_but_not_for_ever(
    nursery: trio.Nursery,
) -> None:
    backend = await RoutingTestBackend.start(nursery, A, B)
    a = await backend.connect_a()
    b = await backend.connect_b(
        features=DEFAULT_FEATURES | Feature.MRG_RXBUF,
        rx_buffer_size=256,
        rx_buffers=8,
        refill=False,
    )
    for number in range(4):
        await a.send_packet(datagram(number))
        await b.recv_packet()
    big = udp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", 1, 2, bytes(1400))
    await a.send_packet(big)
    await assert_silent(b, 0.05)
    for _ in range(2):
        b.add_rx_buffer()
    b.kick(RX_QUEUE_IDX)
    assert len(await b.recv_packet(timeout=0.01)) == len(big)
    assert backend.nic_b.stats().drops == {}

    for _ in range(4):
        b.add_rx_buffer()
    b.kick(RX_QUEUE_IDX)
    await a.send_packet(big)
    await a.send_packet(datagram(9))
    assert number_in(await b.recv_packet(timeout=1)) == 9
    assert backend.nic_b.stats().drops == {DropReason.RX_BUFFER_TOO_SMALL: 1}


@pytest.mark.timeout(180)
async def test_ordering_and_no_duplicates_over_100_000_packets(nursery: trio.Nursery) -> None:
    backend, a, b = await start(nursery)
    total, burst = 100_000, 250
    template = bytearray(
        udp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", 1000, 2000, bytes(4))
    )
    template[40:42] = b"\0\0"
    expected = 0
    for first in range(0, total, burst):
        frames = [bytes(template[:-4]) + n.to_bytes(4, "big") for n in range(first, first + burst)]
        await a.send_burst(frames)
        for _ in range(burst):
            frame = await b.recv_packet()
            assert int.from_bytes(frame[-4:], "big") == expected
            expected += 1
    assert not b.received
    assert backend.nic.stats().routed == total
    assert backend.nic_b.stats().rx_frames == total


# ICMP errors


async def test_traceroute_sees_the_gateway(nursery: trio.Nursery) -> None:
    _, a, _ = await start(nursery)
    probe = bytearray(datagram(1))
    probe[22] = 1
    # The header checksum of TTL 1 in place of 64.
    checksum = int.from_bytes(probe[24:26], "big") + ((64 - 1) << 8)
    probe[24:26] = ((checksum & 0xFFFF) + (checksum >> 16)).to_bytes(2, "big")
    await a.send_packet(bytes(probe))
    error = parse_icmp_error(await a.recv_packet())
    assert (error.kind, error.code) == (11, 0)
    assert (error.src_ip, error.dst_ip) == (GATEWAY_IP, ip_bytes("10.0.0.1"))
    assert error.quoted == bytes(probe[14:])

    await a.send_packet(
        icmpv6_echo_request(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 1, b"", hop_limit=1)
    )
    error = parse_icmpv6_error(await a.recv_packet())
    assert (error.kind, error.code, error.src_ip) == (3, 0, GATEWAY_IPV6)


@pytest.mark.parametrize(
    ("frame", "kind", "code"),
    [
        (datagram(1, dst="10.0.0.99"), 3, 1),
        (datagram(1, dst="8.8.8.8"), 3, 0),
        (datagram(1, dst="169.254.169.254"), 3, 13),
        (datagram(1, dst="169.254.0.1"), 3, 3),
        (udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::99", 1, 2, b""), 1, 3),
        (udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "2001:db8::1", 1, 2, b""), 1, 0),
        (udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fe80::99", 1, 2, b""), 1, 1),
        (udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fe80::1", 1, 2, b""), 1, 4),
    ],
)
async def test_unreachable(nursery: trio.Nursery, frame: bytes, kind: int, code: int) -> None:
    backend, a, _ = await start(nursery)
    await a.send_packet(frame)
    parse = parse_icmp_error if kind == 3 else parse_icmpv6_error
    error = parse(await a.recv_packet())
    assert (error.kind, error.code) == (kind, code)
    assert error.quoted == frame[14:]
    assert (error.src_mac, error.dst_mac) == (GATEWAY_MAC, mac_bytes(MAC_A))
    assert backend.nic.stats().icmp_errors == 1


async def test_mtu_is_the_same_everywhere(nursery: trio.Nursery) -> None:
    """Configuration space and "too big"; DHCP and RA have tests of their own."""
    _, a, b = await start(nursery, mtu=1400)
    config = await a.connection.get_config(10, 2)
    assert int.from_bytes(config, "little") == 1400
    fits = udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, bytes(1400 - 48))
    await a.send_packet(fits)
    assert len(await b.recv_packet()) == 14 + 1400
    await a.send_packet(
        udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, bytes(1400 - 47))
    )
    error = parse_icmpv6_error(await a.recv_packet())
    assert (error.kind, error.mtu, error.size) == (2, 1400, 1280)


async def test_mtu_of_the_receivers_frontend_counts(nursery: trio.Nursery) -> None:
    backend = await RoutingTestBackend.start(nursery, A, B)
    a = await backend.connect_a()
    b = await backend.connect_b(
        protocol_features=DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.NET_MTU
    )
    await b.connection.set_mtu(1300)
    big = udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1, 2, bytes(1400))
    await a.send_packet(big)
    assert parse_icmpv6_error(await a.recv_packet()).mtu == 1300
    # The next frontend has said nothing.
    b.disconnect()
    b = await backend.connect_b()
    await a.send_packet(big)
    assert len(await b.recv_packet()) == len(big)


async def test_errors_are_limited(nursery: trio.Nursery) -> None:
    backend, a, _ = await start(nursery)
    await a.send_burst([datagram(number, dst="8.8.8.8") for number in range(200)])
    assert backend.nic.stats().icmp_errors == 50
    await trio.sleep(1)
    await a.send_packet(datagram(1, dst="8.8.8.8"))
    assert backend.nic.stats().icmp_errors == 51
    assert backend.nic.stats().drops == {DropReason.NO_ROUTE: 201}
    for _ in range(51):
        parse_icmp_error(await a.recv_packet())
    await ping_gateway(a, MAC_A, "10.0.0.1")
