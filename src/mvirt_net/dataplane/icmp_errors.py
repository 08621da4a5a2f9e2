"""ICMP errors: the sender of a packet that was dropped hears why (RFC 792, RFC 4443).

Whether an error may be sent at all (never about another one, a group, a later fragment, and not
too often) was decided by the core before it copied the packet; here it is only written.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ..model import GATEWAY_IPV4, GATEWAY_MAC, IcmpError, MacAddress
from .packet import (
    ETHERNET_HEADER_SIZE,
    ETHERTYPE_IPV4,
    IPV4_HEADER_SIZE,
    PROTOCOL_ICMP,
    TTL,
    Malformed,
    internet_checksum,
)
from .packet6 import ETHERTYPE_IPV6, IPV6_HEADER_SIZE, build_icmpv6

ICMPV4_LIMIT = 576
"""Bytes of the IPv4 packet with an error at most (RFC 1812, 4.3.2.3)."""
ICMPV6_LIMIT = 1280
"""Likewise of the IPv6 packet: the least MTU (RFC 4443, 2.4 (c))."""

_HEADER_SIZE = 8
"""Of every ICMP error of both families, in front of what it quotes."""
_INTERNETWORK_CONTROL = 0xC0
"""Precedence of an ICMP error in the TOS byte (RFC 1812, 4.3.2.5)."""

_V4: Mapping[IcmpError, tuple[int, int]] = {
    IcmpError.TIME_EXCEEDED: (11, 0),
    IcmpError.NET_UNREACHABLE: (3, 0),
    IcmpError.HOST_UNREACHABLE: (3, 1),
    IcmpError.PROTOCOL_UNREACHABLE: (3, 2),
    IcmpError.PORT_UNREACHABLE: (3, 3),
    IcmpError.TOO_BIG: (3, 4),
    IcmpError.ADMIN_PROHIBITED: (3, 13),
}
"""Type and code (RFC 792; RFC 1812, 5.2.7.1)."""
_V6: Mapping[IcmpError, tuple[int, int]] = {
    IcmpError.TIME_EXCEEDED: (3, 0),
    IcmpError.NET_UNREACHABLE: (1, 0),
    IcmpError.ADMIN_PROHIBITED: (1, 1),
    IcmpError.HOST_UNREACHABLE: (1, 3),
    IcmpError.PORT_UNREACHABLE: (1, 4),
    IcmpError.TOO_BIG: (2, 0),
    IcmpError.PROTOCOL_UNREACHABLE: (4, 1),
}
"""Type and code (RFC 4443, 3); a protocol that is not spoken is a parameter problem there."""

_IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")
_CHECKSUM = struct.Struct("!H")
_NEXT_HEADER = 6
"""Offset in the IPv6 header (RFC 8200, 3)."""
_EXTENSIONS = frozenset({0, 43, 60})
"""Those whose length is counted in eight bytes: hop-by-hop, routing, destination options."""


class IcmpErrorBuilder:
    """Writes the ICMP errors for the guest of one NIC.

    Args:
        mac: the NIC's MAC address.
    """

    __slots__ = ("_mac",)

    def __init__(self, mac: MacAddress) -> None:
        self._mac = mac.packed

    def build(self, frame: bytes, error: IcmpError, mtu: int = 0) -> bytes:
        """The message about a dropped packet.

        Args:
            frame: the guest's frame, maybe cut at its end; its IP header was found good.
            error: what its sender is to hear.
            mtu: with TOO_BIG, in bytes.

        Returns:
            A whole Ethernet frame for the guest, from the gateway to the packet's source.

        Raises:
            Malformed: the frame is neither IPv4 nor IPv6.
        """
        ethertype = int.from_bytes(frame[12:ETHERNET_HEADER_SIZE], "big")
        packet = frame[ETHERNET_HEADER_SIZE:]
        if ethertype == ETHERTYPE_IPV4 and len(packet) >= IPV4_HEADER_SIZE:
            return self._build_v4(packet, error, mtu)
        if ethertype == ETHERTYPE_IPV6 and len(packet) >= IPV6_HEADER_SIZE:
            return self._build_v6(packet, error, mtu)
        raise Malformed("nothing that an ICMP error could quote")

    def _build_v4(self, packet: bytes, error: IcmpError, mtu: int) -> bytes:
        # Next-hop MTU in the lower half of the unused word (RFC 1191, 4).
        head = bytes(_V4[error])
        quoted = packet[: ICMPV4_LIMIT - IPV4_HEADER_SIZE - _HEADER_SIZE]
        body = struct.pack("!HH", 0, mtu if error is IcmpError.TOO_BIG else 0) + quoted
        checksum = _CHECKSUM.pack(internet_checksum(head + b"\0\0" + body))
        message = head + checksum + body
        # Never fragmented on a link of 576 bytes or more, so without identification (RFC 6864, 4).
        header = _IPV4_HEADER.pack(
            *(0x45, _INTERNETWORK_CONTROL, IPV4_HEADER_SIZE + len(message), 0, 0),
            *(TTL, PROTOCOL_ICMP, 0, GATEWAY_IPV4.packed, packet[12:16]),
        )
        header = header[:10] + _CHECKSUM.pack(internet_checksum(header)) + header[12:]
        ethernet = self._mac + GATEWAY_MAC.packed + ETHERTYPE_IPV4.to_bytes(2, "big")
        return ethernet + header + message

    def _build_v6(self, packet: bytes, error: IcmpError, mtu: int) -> bytes:
        word = 0
        if error is IcmpError.TOO_BIG:
            word = mtu
        elif error is IcmpError.PROTOCOL_UNREACHABLE:
            word = _pointer_to_protocol(packet)
        quoted = packet[: ICMPV6_LIMIT - IPV6_HEADER_SIZE - _HEADER_SIZE]
        kind, code = _V6[error]
        return build_icmpv6(self._mac, packet[8:24], kind, code, struct.pack("!I", word) + quoted)


def _pointer_to_protocol(packet: bytes) -> int:
    """Where in an IPv6 packet the protocol is named that nobody speaks (RFC 4443, 3.4)."""
    pointer, header = _NEXT_HEADER, IPV6_HEADER_SIZE
    while packet[pointer] in _EXTENSIONS and header + 1 < len(packet):
        pointer, header = header, header + (packet[header + 1] + 1) * 8
    return pointer
