"""ICMP: the guest can ping the gateway, and nothing else is answered.

Only an echo request gives rise to a reply, of the same size and to the sender alone. No error
message is ever sent from here, so there is none about another error, a fragment or a multicast
(RFC 1122, 3.2.2).
"""

from __future__ import annotations

import struct

from ..model import GATEWAY_IPV4, GATEWAY_MAC, DropReason, MacAddress
from .packet import (
    DONT_FRAGMENT,
    ETHERTYPE_IPV4,
    IPV4_HEADER_SIZE,
    PROTOCOL_ICMP,
    TTL,
    Ipv4Packet,
    Malformed,
    internet_checksum,
    parse_ipv4,
)

_IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
_CHECKSUM = struct.Struct("!H")
_ICMP_HEADER_SIZE = 8
_ECHO_REQUEST = 8
_ECHO_REPLY = b"\0\0"
"""Type and code."""
_DSCP = 0xFC
"""The upper six bits of the TOS byte; the lower two are congestion marks (RFC 3168, 5)."""

_GATEWAY_MAC = GATEWAY_MAC.packed
_GATEWAY_IPV4 = GATEWAY_IPV4.packed


class IcmpResponder:
    """Answers the guest's echo requests to the gateway (RFC 792).

    A request with IPv4 options is answered without any. The reply has the request's DSCP
    (RFC 1812, 4.3.2.5), its own TTL, and the identifier, sequence number and data of the request.

    Args:
        mac: the NIC's MAC address.
    """

    __slots__ = ("_ethernet_header", "_mac")

    def __init__(self, mac: MacAddress) -> None:
        self._mac = mac.packed
        self._ethernet_header = mac.packed + _GATEWAY_MAC + ETHERTYPE_IPV4.to_bytes(2, "big")

    def handle(self, frame: bytes) -> bytes | DropReason:
        """Answer one frame; see `Service`."""
        try:
            packet = parse_ipv4(frame, self._mac)
        except Malformed:
            return DropReason.ICMP_MALFORMED
        if not _is_for_gateway(packet):
            return DropReason.ICMP_IGNORED
        message = packet.payload
        if len(message) < _ICMP_HEADER_SIZE or internet_checksum(message) != 0:
            return DropReason.ICMP_MALFORMED
        if message[0] != _ECHO_REQUEST:
            return DropReason.ICMP_IGNORED
        # A reply cannot go to "this host" (RFC 1122, 3.2.1.3), and echo has no code but 0.
        if message[1] != 0 or packet.source[0] == 0:
            return DropReason.ICMP_MALFORMED
        return self._ethernet_header + _reply_header(packet) + _reply_message(message)


def _is_for_gateway(packet: Ipv4Packet) -> bool:
    """Whether it was sent to the gateway and to nobody else, by either address."""
    return (
        packet.protocol == PROTOCOL_ICMP
        and packet.destination == _GATEWAY_IPV4
        and packet.destination_mac == _GATEWAY_MAC
    )


def _reply_header(request: Ipv4Packet) -> bytes:
    """An IPv4 header back to the sender; never fragmented, so its identification may be 0."""
    header = _IPV4_HEADER.pack(
        0x45,
        request.tos & _DSCP,
        IPV4_HEADER_SIZE + len(request.payload),
        0,
        DONT_FRAGMENT,
        TTL,
        PROTOCOL_ICMP,
        0,
        _GATEWAY_IPV4,
        request.source,
    )
    return header[:10] + _CHECKSUM.pack(internet_checksum(header)) + header[12:]


def _reply_message(request: bytes) -> bytes:
    rest = request[4:]
    return _ECHO_REPLY + _CHECKSUM.pack(internet_checksum(_ECHO_REPLY + rest)) + rest
