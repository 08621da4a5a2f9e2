"""Questions that a guest asks of its gateway, with the answers checked."""

from __future__ import annotations

from typing import Any

from .client import VhostTestClient
from .packets import (
    GATEWAY_IP,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    Ip,
    Mac,
    arp_request,
    icmp_echo_request,
    icmpv6_echo_request,
    ip_bytes,
    ipv6_bytes,
    mac_bytes,
    parse_arp_reply,
    parse_icmp_echo_reply,
    parse_icmpv6_echo_reply,
)


async def arp_gateway(client: VhostTestClient, mac: Mac, ip: Ip, **how: Any) -> None:
    """Ask for the gateway's MAC address; `how` as in `VhostTestClient.queue_tx`.

    Raises:
        trio.TooSlowError: the request is not taken, or no reply comes.
        AssertionError, ValueError: the reply is wrong.
    """
    await client.send_packet(arp_request(mac, ip, GATEWAY_IP), **how)
    reply = parse_arp_reply(await client.recv_packet())
    assert (reply.sender_mac, reply.sender_ip) == (GATEWAY_MAC, GATEWAY_IP)
    assert (reply.target_mac, reply.target_ip) == (mac_bytes(mac), ip_bytes(ip))


async def ping_gateway(
    client: VhostTestClient,
    mac: Mac,
    ip: Ip,
    data: bytes = b"ping",
    *,
    seq_no: int = 1,
    **how: Any,
) -> None:
    """Ping the gateway; `how` as in `VhostTestClient.queue_tx`, exceptions as in `arp_gateway`."""
    request = icmp_echo_request(mac, GATEWAY_MAC, ip, GATEWAY_IP, 0x1234, seq_no, data)
    await client.send_packet(request, **how)
    reply = parse_icmp_echo_reply(await client.recv_packet())
    assert (reply.src_ip, reply.dst_ip) == (GATEWAY_IP, ip_bytes(ip))
    assert (reply.ident, reply.seq_no) == (0x1234, seq_no)
    assert reply.data == data


async def ping_gateway6(
    client: VhostTestClient, mac: Mac, ip: Ip, data: bytes = b"ping", **how: Any
) -> None:
    """Ping the gateway's fe80::1; `how` and exceptions as in `ping_gateway`."""
    request = icmpv6_echo_request(mac, GATEWAY_MAC, ip, GATEWAY_IPV6, 0x1234, 1, data)
    await client.send_packet(request, **how)
    reply = parse_icmpv6_echo_reply(await client.recv_packet())
    assert (reply.src_ip, reply.dst_ip) == (GATEWAY_IPV6, ipv6_bytes(ip))
    assert (reply.src_mac, reply.dst_mac) == (GATEWAY_MAC, mac_bytes(mac))
    assert (reply.ident, reply.seq_no, reply.data) == (0x1234, 1, data)
