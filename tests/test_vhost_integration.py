"""The backend as a virtual machine sees it: handshake, transmission, ARP, ping, DHCP.

Run a part of it with ``-k handshake``, ``-k tx``, ``-k arp``, ``-k icmp`` or ``-k dhcp``.
"""

from __future__ import annotations

import pytest
import trio

from mvirt_net import DropReason
from tests.harness import GATEWAY_IP, GATEWAY_MAC, TestBackend, VhostTestClient
from tests.harness.client import DEFAULT_PROTOCOL_FEATURES, TX_QUEUE_IDX
from tests.harness.clock import virtual_time
from tests.harness.packets import (
    BROADCAST_MAC,
    DhcpMessageType,
    DhcpResponse,
    arp_request,
    dhcp_discover,
    dhcp_request,
    ethernet_frame,
    icmp_echo_request,
    is_arp_reply,
    is_icmp_echo_reply,
    parse_arp_reply,
    parse_dhcp_response,
    parse_icmp_echo_reply,
)
from tests.harness.vhost_user import Feature, ProtocolFeature

pytestmark = virtual_time
"""Time stands still while anybody has anything to do, so no time-out depends on the machine."""

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"


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
