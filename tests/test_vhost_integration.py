"""The backend as a virtual machine sees it: handshake, transmission, ARP, ping, DHCP.

Run a part of it with ``-k handshake``, ``-k tx``, ``-k arp``, ``-k icmp`` or ``-k dhcp``.
"""

from __future__ import annotations

import itertools

import pytest
import trio

from mvirt_net import DropReason
from tests.harness import GATEWAY_IP, GATEWAY_IPV6, GATEWAY_MAC, TestBackend, VhostTestClient
from tests.harness.client import DEFAULT_PROTOCOL_FEATURES, TX_QUEUE_IDX
from tests.harness.clock import virtual_time
from tests.harness.exchanges import ping_gateway, ping_gateway6
from tests.harness.packets import (
    ALL_NODES,
    BROADCAST_MAC,
    UNSPECIFIED_IPV6,
    DhcpMessageType,
    DhcpResponse,
    Dhcpv6MessageType,
    arp_request,
    dhcp_discover,
    dhcp_request,
    dhcpv6_request,
    dhcpv6_solicit,
    ethernet_frame,
    group_mac,
    icmp_echo_request,
    icmpv6_echo_request,
    ipv6_bytes,
    is_arp_reply,
    is_icmp_echo_reply,
    is_icmpv6_echo_reply,
    link_local,
    neighbor_solicitation,
    parse_arp_reply,
    parse_dhcp_response,
    parse_dhcpv6_response,
    parse_icmp_echo_reply,
    parse_icmp_error,
    parse_icmpv6_error,
    parse_neighbor_advertisement,
    parse_router_advertisement,
    router_solicitation,
)
from tests.harness.vhost_user import Feature, ProtocolFeature

pytestmark = virtual_time
"""Time stands still while anybody has anything to do, so no time-out depends on the machine."""

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
IPV6 = "fd00::5"
LINK_LOCAL = link_local(MAC)


def numbered_frame(number: int, size: int = 64) -> bytes:
    """A broadcast frame that no service answers."""
    return ethernet_frame(
        BROADCAST_MAC, [0x52, 0x54, 0x00, 0x12, 0x34, number], 0x0800, bytes([number]) * size
    )


async def test_handshake_and_feature_negotiation(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    assert client.has_feature(Feature.VERSION_1)
    assert client.has_feature(Feature.MAC)


async def test_config_returns_mac(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, "52:54:00:aa:bb:cc")
    client = await backend.connect()
    assert await client.get_mac_from_config() == bytes([0x52, 0x54, 0x00, 0xAA, 0xBB, 0xCC])


# Transmission


async def test_send_packet(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    await client.send_packet(ethernet_frame(BROADCAST_MAC, MAC, 0x0800, bytes(64)))
    assert client.pending_tx_count() == 0


async def test_tx_completion(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    client.send_packet_nowait(ethernet_frame(BROADCAST_MAC, MAC, 0x0800, bytes(64)))
    assert await client.wait_tx_completion(timeout=1.0) == 1


async def test_tx_burst_completion(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    assert await client.send_burst([numbered_frame(i) for i in range(10)], timeout=2.0) == 10


async def test_tx_large_burst(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    assert await client.send_burst([numbered_frame(i, 128) for i in range(50)], timeout=5.0) == 50


async def test_tx_sequential_packets(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    for number in range(5):
        client.send_packet_nowait(numbered_frame(number))
        assert await client.wait_tx_completion(timeout=0.5) == 1


async def test_tx_with_event_idx_suppression(nursery: trio.Nursery) -> None:
    """The device interrupts when the used index passes used_event, and at no other time."""
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    assert client.has_feature(Feature.EVENT_IDX)
    await client.send_packet(numbered_frame(0))
    calls = client.vrings[TX_QUEUE_IDX].calls
    assert await client.send_burst([numbered_frame(i) for i in range(20)], timeout=3.0) == 20
    assert client.vrings[TX_QUEUE_IDX].calls == calls + 1


async def test_tx_rapid_fire(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC)
    client = await backend.connect()
    for number in range(100):
        client.send_packet_nowait(numbered_frame(number))
    completed = 0
    with trio.fail_after(5):
        while completed < 100:
            completed += await client.wait_tx_completion(timeout=5.0)
    assert completed == 100


# ARP


async def test_arp_request_gets_reply(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    await client.send_packet(arp_request(MAC, [10, 0, 0, 100], [169, 254, 0, 1]))
    reply = await client.recv_packet(timeout=2.0)
    assert is_arp_reply(reply)
    arp = parse_arp_reply(reply)
    assert arp.sender_ip == GATEWAY_IP
    assert arp.sender_mac == GATEWAY_MAC


# Ping


async def resolve_gateway(client: VhostTestClient) -> bytes:
    await client.send_packet(arp_request(MAC, IP, GATEWAY_IP))
    return parse_arp_reply(await client.recv_packet()).sender_mac


async def test_icmp_ping_gateway(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    gateway = await resolve_gateway(client)
    assert gateway == GATEWAY_MAC
    await client.send_packet(
        icmp_echo_request(MAC, gateway, IP, GATEWAY_IP, 0x1234, 1, b"ping test")
    )
    reply = await client.recv_packet(timeout=2.0)
    assert is_icmp_echo_reply(reply)
    echo = parse_icmp_echo_reply(reply)
    assert echo.src_ip == GATEWAY_IP
    assert echo.dst_ip == bytes([10, 0, 0, 5])
    assert (echo.ident, echo.seq_no, echo.data) == (0x1234, 1, b"ping test")


async def test_icmp_ping_non_gateway_ignored(nursery: trio.Nursery) -> None:
    """Replies come in the order of the questions, so the next one shows that none was given."""
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    await client.send_packet(
        icmp_echo_request(MAC, BROADCAST_MAC, IP, "8.8.8.8", 0x5678, 1, b"test")
    )
    assert await resolve_gateway(client) == GATEWAY_MAC
    assert not client.received


async def test_icmp_ping_non_gateway_is_unreachable(nursery: trio.Nursery) -> None:
    """Sent to the gateway to be routed, it is not answered but refused."""
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    request = icmp_echo_request(MAC, GATEWAY_MAC, IP, "8.8.8.8", 0x5678, 1, b"test")
    await client.send_packet(request)
    error = parse_icmp_error(await client.recv_packet(timeout=0.5))
    assert (error.kind, error.code, error.quoted) == (3, 0, request[14:])
    with pytest.raises(trio.TooSlowError):
        await client.recv_packet(timeout=0.5)


async def test_icmp_echo_reply(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    await ping_gateway(client, MAC, IP)


async def test_icmp_echo_burst(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    pings = [
        icmp_echo_request(MAC, GATEWAY_MAC, IP, GATEWAY_IP, 7, number, b"burst")
        for number in range(100)
    ]
    assert await client.send_burst(pings) == 100
    replies = [parse_icmp_echo_reply(await client.recv_packet()) for _ in pings]
    assert [reply.seq_no for reply in replies] == list(range(100))


async def test_vhost_user_ping(nursery: trio.Nursery) -> None:
    """Everything a guest does before it can ping, in its order."""
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    assert await client.get_mac_from_config() == bytes.fromhex(MAC.replace(":", ""))
    assert await resolve_gateway(client) == GATEWAY_MAC
    await ping_gateway(client, MAC, IP)


async def test_dhcp_arp_ping(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    await client.send_packet(dhcp_discover(MAC, 1))
    offer = parse_dhcp_response(await client.recv_packet(timeout=2.0))
    await client.send_packet(dhcp_request(MAC, 1, offer.your_ip, offer.server_ip))
    ack = parse_dhcp_response(await client.recv_packet(timeout=2.0))
    await client.send_packet(arp_request(MAC, ack.your_ip, GATEWAY_IP))
    assert parse_arp_reply(await client.recv_packet()).sender_mac == GATEWAY_MAC
    await ping_gateway(client, MAC, ack.your_ip)


async def test_icmp_silence_lasts(nursery: trio.Nursery) -> None:
    """Nothing comes in half a second, which passes once nobody has anything left to do."""
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    await client.send_packet(icmp_echo_request(MAC, BROADCAST_MAC, IP, "8.8.8.8", 1, 1, b"test"))
    with pytest.raises(trio.TooSlowError):
        await client.recv_packet(timeout=0.5)


# DHCP


def assert_lease(dhcp: DhcpResponse) -> None:
    assert dhcp.your_ip == bytes([10, 0, 0, 5])
    assert dhcp.server_ip == GATEWAY_IP
    assert dhcp.subnet_mask == bytes([255, 255, 255, 255])
    assert dhcp.router == GATEWAY_IP
    assert dhcp.dns_servers == [bytes([1, 1, 1, 1]), bytes([8, 8, 8, 8])]
    assert dhcp.lease_time == 86400


async def test_dhcp_discover_gets_offer(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    await client.send_packet(dhcp_discover(MAC, 0x12345678))
    offer = parse_dhcp_response(await client.recv_packet(timeout=2.0))
    assert offer.message_type == DhcpMessageType.OFFER
    assert offer.xid == 0x12345678
    assert_lease(offer)


async def test_dhcp_full_flow(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    xid = 0xDEADBEEF

    await client.send_packet(dhcp_discover(MAC, xid))
    offer = parse_dhcp_response(await client.recv_packet(timeout=2.0))
    assert (offer.message_type, offer.xid) == (DhcpMessageType.OFFER, xid)
    assert offer.your_ip == bytes([10, 0, 0, 5])

    await client.send_packet(dhcp_request(MAC, xid, offer.your_ip, offer.server_ip))
    ack = parse_dhcp_response(await client.recv_packet(timeout=2.0))
    assert (ack.message_type, ack.xid) == (DhcpMessageType.ACK, xid)
    assert ack.your_ip == offer.your_ip
    assert_lease(ack)


@pytest.mark.parametrize(("frontends", "promised"), [(1400, 1400), (1500, 1500), (9000, 1500)])
async def test_dhcp_promises_no_more_than_the_frontend_told_its_driver(
    nursery: trio.Nursery, frontends: int, promised: int
) -> None:
    """QEMU's host_mtu comes as NET_SET_MTU; option 26 must not exceed what the NIC carries."""
    backend = await TestBackend.start(nursery, MAC, ipv4=IP, mtu=1500)
    client = await backend.connect(
        protocol_features=DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.NET_MTU
    )
    await client.connection.set_mtu(frontends)
    await client.send_packet(dhcp_discover(MAC, 1))
    assert parse_dhcp_response(await client.recv_packet(timeout=2.0)).mtu == promised


async def test_dhcp_flood_is_answered_up_to_a_limit(nursery: trio.Nursery) -> None:
    """One guest's questions must not take the time of everybody else's."""
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    client = await backend.connect()
    for first in range(0, 1000, 50):
        await client.send_burst([dhcp_discover(MAC, first + n) for n in range(50)])
    assert backend.nic.stats().drops[DropReason.PUNT_LIMIT] > 0
    while await client.wait_for_rx(timeout=0.1):
        await client.recv_packet()
    await trio.sleep(1)
    await client.send_packet(dhcp_discover(MAC, 0xFFFF))
    assert parse_dhcp_response(await client.recv_packet()).xid == 0xFFFF


# IPv6


async def test_ndp_neighbor_solicitation_gets_advertisement(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await client.send_packet(neighbor_solicitation(MAC, LINK_LOCAL, GATEWAY_IPV6))
    reply = parse_neighbor_advertisement(await client.recv_packet(timeout=2.0))
    assert (reply.src_ip, reply.dst_ip) == (GATEWAY_IPV6, LINK_LOCAL)
    assert (reply.target_ip, reply.target_mac) == (GATEWAY_IPV6, GATEWAY_MAC)
    assert (reply.router, reply.solicited, reply.override) == (True, True, True)
    assert reply.src_mac == GATEWAY_MAC


async def test_neighbor_solicitation_for_gateway(nursery: trio.Nursery) -> None:
    """Unicast, as a neighbour unreachability probe is, and from the guest's global address."""
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await client.send_packet(
        neighbor_solicitation(
            MAC, IPV6, GATEWAY_IPV6, dst_ip=GATEWAY_IPV6, dst_mac=GATEWAY_MAC, options=b""
        )
    )
    reply = parse_neighbor_advertisement(await client.recv_packet(timeout=2.0))
    assert (reply.solicited, reply.override) == (True, True)
    assert reply.dst_ip == ipv6_bytes(IPV6)


@pytest.mark.parametrize("target", [IPV6, "fd00::6", "fe80::2", LINK_LOCAL])
async def test_neighbor_solicitation_for_non_gateway(
    nursery: trio.Nursery, target: str | bytes
) -> None:
    """Neither for others nor, least of all, for the guest's own addresses."""
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    for source in (LINK_LOCAL, UNSPECIFIED_IPV6):
        await client.send_packet(neighbor_solicitation(MAC, source, target))
    with pytest.raises(trio.TooSlowError):
        await client.recv_packet(timeout=5)


async def test_ndp_gateway_defends_its_address(nursery: trio.Nursery) -> None:
    """Duplicate address detection for fe80::1 fails (RFC 4862, 5.4.3)."""
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await client.send_packet(neighbor_solicitation(MAC, UNSPECIFIED_IPV6, GATEWAY_IPV6))
    reply = parse_neighbor_advertisement(await client.recv_packet(timeout=2.0))
    assert (reply.dst_ip, reply.dst_mac) == (ALL_NODES, group_mac(ALL_NODES))
    assert (reply.solicited, reply.override) == (False, True)


async def test_ndp_router_solicitation_gets_advertisement(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6, mtu=1400)
    client = await backend.connect()
    await client.send_packet(router_solicitation(MAC, LINK_LOCAL))
    reply = parse_router_advertisement(await client.recv_packet(timeout=2.0))
    assert (reply.src_ip, reply.dst_ip) == (GATEWAY_IPV6, LINK_LOCAL)
    assert (reply.managed, reply.other_config) == (True, True)
    assert (reply.router_lifetime, reply.mtu) == (1800, 1400)
    assert (reply.prefix, reply.source_mac) == (None, GATEWAY_MAC)
    assert reply.dns_servers == (
        ipv6_bytes("2606:4700:4700::1111"),
        ipv6_bytes("2001:4860:4860::8888"),
    )


async def test_ra_comes_unasked(nursery: trio.Nursery) -> None:
    """Three within 16 seconds of one another, then one in 200 to 600 (RFC 4861, 6.2.4)."""
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    times = [trio.current_time()]
    for _ in range(6):
        advertisement = parse_router_advertisement(await client.recv_packet(timeout=700))
        assert advertisement.dst_ip == ALL_NODES
        assert advertisement.dst_mac == group_mac(ALL_NODES)
        times.append(trio.current_time())
    intervals = [after - before for before, after in itertools.pairwise(times)]
    assert all(interval <= 16.1 for interval in intervals[:3])
    assert all(199 < interval < 601 for interval in intervals[3:])


async def test_ra_begins_anew_with_the_guest(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    for _ in range(4):
        await client.recv_packet(timeout=700)
    await client.reset_driver()
    began = trio.current_time()
    for _ in range(3):
        parse_router_advertisement(await client.recv_packet(timeout=17))
    assert trio.current_time() - began <= 49


async def test_ra_for_a_guest_without_an_address(nursery: trio.Nursery) -> None:
    """To all nodes, soon, but never twice in three seconds (RFC 4861, 6.2.6)."""
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    times = []
    for _ in range(3):
        await client.send_packet(router_solicitation(MAC, UNSPECIFIED_IPV6))
        reply = parse_router_advertisement(await client.recv_packet(timeout=3.6))
        assert reply.dst_ip == ALL_NODES
        times.append(trio.current_time())
    rounding = 1e-9
    assert all(after - before >= 3 - rounding for before, after in itertools.pairwise(times))


async def test_dhcpv6_solicit_gets_advertise(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await client.send_packet(dhcpv6_solicit(MAC, LINK_LOCAL, b"\1\2\3", 0xDEADBEEF))
    reply = parse_dhcpv6_response(await client.recv_packet(timeout=2.0))
    assert (reply.message_type, reply.xid) == (Dhcpv6MessageType.ADVERTISE, b"\1\2\3")
    assert (reply.iaid, reply.assigned_ip) == (0xDEADBEEF, ipv6_bytes(IPV6))
    assert reply.server_duid
    assert reply.src_ip == GATEWAY_IPV6


async def test_dhcpv6_full_flow(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await client.send_packet(dhcpv6_solicit(MAC, LINK_LOCAL, 1, 0xCAFEBABE))
    offer = parse_dhcpv6_response(await client.recv_packet(timeout=2.0))
    assert offer.server_duid is not None
    await client.send_packet(dhcpv6_request(MAC, LINK_LOCAL, 2, offer.server_duid, 0xCAFEBABE))
    reply = parse_dhcpv6_response(await client.recv_packet(timeout=2.0))
    assert reply.message_type == Dhcpv6MessageType.REPLY
    assert (reply.iaid, reply.assigned_ip) == (0xCAFEBABE, ipv6_bytes(IPV6))
    assert reply.preferred_lifetime is not None
    assert reply.valid_lifetime is not None
    assert reply.valid_lifetime >= reply.preferred_lifetime > 0
    assert reply.dns_servers


async def test_ipv6_rs_ra_dhcpv6(nursery: trio.Nursery) -> None:
    """What a guest does to get its address: RS, RA, SOLICIT … REPLY, then it uses it."""
    backend = await TestBackend.start(nursery, MAC, ipv6=IPV6)
    client = await backend.connect()
    await client.send_packet(router_solicitation(MAC, LINK_LOCAL))
    router = parse_router_advertisement(await client.recv_packet(timeout=2.0))
    assert router.managed
    await client.send_packet(dhcpv6_solicit(MAC, LINK_LOCAL, 1, 1))
    offer = parse_dhcpv6_response(await client.recv_packet(timeout=2.0))
    assert offer.server_duid is not None
    await client.send_packet(dhcpv6_request(MAC, LINK_LOCAL, 2, offer.server_duid, 1))
    assigned = parse_dhcpv6_response(await client.recv_packet(timeout=2.0)).assigned_ip
    assert assigned is not None
    await ping_gateway6(client, MAC, assigned)


async def test_icmpv6_ping_gateway(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await ping_gateway6(client, MAC, LINK_LOCAL)


async def test_ping6_gateway(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    await ping_gateway6(client, MAC, IPV6, bytes(1400))


async def test_icmpv6_ping_non_gateway_ignored(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP, IPV6)
    client = await backend.connect()
    request = icmpv6_echo_request(MAC, GATEWAY_MAC, IPV6, "2001:db8::1", 1, 1, b"test")
    await client.send_packet(request)
    answer = await client.recv_packet(timeout=0.5)
    assert not is_icmpv6_echo_reply(answer)
    error = parse_icmpv6_error(answer)
    assert (error.kind, error.code, error.quoted) == (1, 0, request[14:])
    with pytest.raises(trio.TooSlowError):
        await client.recv_packet(timeout=0.5)


async def test_no_ipv6_without_an_address(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP)
    client = await backend.connect()
    await client.send_packet(router_solicitation(MAC, LINK_LOCAL))
    await client.send_packet(neighbor_solicitation(MAC, LINK_LOCAL, GATEWAY_IPV6))
    await client.send_packet(dhcpv6_solicit(MAC, LINK_LOCAL, 1, 1))
    with pytest.raises(trio.TooSlowError):
        await client.recv_packet(timeout=1000)
    drops = backend.nic.stats().drops
    assert drops == {DropReason.NDP_IGNORED: 2, DropReason.DHCPV6_IGNORED: 1}
