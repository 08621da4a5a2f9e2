"""The bytes under every IPv6 service; `packet` is its counterpart for IPv4.

Everything here is unpacked from raw bytes: dpkt throws AttributeError on a fragment header, and
knows neither options of neighbour discovery nor DHCPv6.
"""

from __future__ import annotations

import struct

import attrs

from ..model import GATEWAY_IPV6, GATEWAY_MAC
from .packet import (
    ETHERNET_HEADER_SIZE,
    PROTOCOL_UDP,
    TTL,
    UDP_HEADER_SIZE,
    Cursor,
    Malformed,
    UdpDatagram,
    internet_checksum,
)

ETHERTYPE_IPV6 = 0x86DD
IPV6_HEADER_SIZE = 40
PROTOCOL_ICMPV6 = 58
MAX_EXTENSION_HEADERS = 8
"""As many as the core lets pass."""

UNSPECIFIED = bytes(16)
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")
"""ff02::1 (RFC 4291, 2.7.1)."""

_ETHERNET = struct.Struct("!6s6sH")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_PSEUDO_HEADER = struct.Struct("!16s16sI3xB")
_CHECKSUM = struct.Struct("!H")

_HOP_BY_HOP = 0
_ROUTING = 43
_FRAGMENT = 44
_AUTHENTICATION = 51
_DESTINATION_OPTIONS = 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS})

_GATEWAY_MAC = GATEWAY_MAC.packed
_GATEWAY_IPV6 = GATEWAY_IPV6.packed
_LOOPBACK = bytes(15) + b"\1"


def is_multicast(address: bytes) -> bool:
    """Whether it is a group's (RFC 4291, 2.7)."""
    return address[0] == 0xFF


def is_link_local(address: bytes) -> bool:
    """Whether it is in fe80::/10 (RFC 4291, 2.5.6)."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def group_mac(group: bytes) -> bytes:
    """The MAC address of an IPv6 multicast group (RFC 2464, 7)."""
    return b"\x33\x33" + group[12:]


@attrs.frozen
class Ipv6Packet:
    """What a service needs of an IPv6 packet; `payload` is without Ethernet padding."""

    destination_mac: bytes
    hop_limit: int
    protocol: int
    """What follows the extension headers."""
    source: bytes
    destination: bytes
    payload: bytes


def parse_ipv6(frame: bytes, source_mac: bytes) -> Ipv6Packet:
    """Take a guest's frame apart down to the IPv6 payload.

    The source may be ::, as duplicate address detection needs it. Bytes after the payload are
    padding.

    Args:
        frame: a whole Ethernet frame.
        source_mac: the MAC address of the NIC, the only one that its guest may send from.

    Raises:
        Malformed: another sender, not IPv6, a payload longer than the frame, extension headers out
            of order or too many, a fragment of any kind, a routing header of type 0, or a source
            address that no guest can have.
    """
    if len(frame) < ETHERNET_HEADER_SIZE + IPV6_HEADER_SIZE:
        raise Malformed("shorter than an IPv6 header")
    to_mac, from_mac, ethertype = _ETHERNET.unpack_from(frame)
    if from_mac != source_mac or ethertype != ETHERTYPE_IPV6:
        raise Malformed("not the NIC's, or not IPv6")
    version, length, protocol, hop_limit, source, destination = _IPV6.unpack_from(
        frame, ETHERNET_HEADER_SIZE
    )
    start = ETHERNET_HEADER_SIZE + IPV6_HEADER_SIZE
    if version >> 28 != 6 or length > len(frame) - start:
        raise Malformed("not IPv6, or longer than its frame")
    if is_multicast(source) or source in (_LOOPBACK, _GATEWAY_IPV6):
        raise Malformed("a source address that no guest has")
    protocol, payload = _skip_extensions(protocol, frame[start : start + length])
    return Ipv6Packet(to_mac, hop_limit, protocol, source, destination, payload)


def _skip_extensions(protocol: int, data: bytes) -> tuple[int, bytes]:
    """Past the extension headers (RFC 8200, 4): what follows them, and its bytes."""
    cursor = Cursor(data)
    for number in range(MAX_EXTENSION_HEADERS + 1):
        if protocol not in _EXTENSIONS:
            return protocol, cursor.get_bytes(cursor.remaining())
        # Neighbour discovery must not be fragmented (RFC 6980), and nothing else here is so long.
        if protocol == _FRAGMENT or (protocol == _HOP_BY_HOP and number > 0):
            raise Malformed("a fragment, or a hop-by-hop header that is not the first")
        following, size = cursor.get_uint8(), cursor.get_uint8()
        if protocol == _AUTHENTICATION:
            cursor.get_bytes((size + 2) * 4 - 2)
        else:
            body = cursor.get_bytes((size + 1) * 8 - 2)
            if protocol == _ROUTING and body[0] == 0:
                raise Malformed("a routing header of type 0 (RFC 5095)")
        protocol = following
    raise Malformed("too many extension headers")


def pseudo_header(source: bytes, destination: bytes, length: int, protocol: int) -> bytes:
    """What transport checksums cover besides the datagram (RFC 8200, 8.1)."""
    return _PSEUDO_HEADER.pack(source, destination, length, protocol)


def build_ipv6(
    destination_mac: bytes,
    destination: bytes,
    protocol: int,
    payload: bytes,
    *,
    hop_limit: int = TTL,
    traffic_class: int = 0,
) -> bytes:
    """A whole frame from the gateway."""
    ethernet = _ETHERNET.pack(destination_mac, _GATEWAY_MAC, ETHERTYPE_IPV6)
    header = _IPV6.pack(
        6 << 28 | traffic_class << 20, len(payload), protocol, hop_limit, _GATEWAY_IPV6, destination
    )
    return ethernet + header + payload


def build_icmpv6(
    destination_mac: bytes,
    destination: bytes,
    kind: int,
    code: int,
    body: bytes,
    *,
    hop_limit: int = TTL,
) -> bytes:
    """A whole frame with an ICMPv6 message from the gateway (RFC 4443, 2.1).

    Args:
        body: what follows the checksum.
    """
    head = bytes((kind, code))
    pseudo = pseudo_header(_GATEWAY_IPV6, destination, 4 + len(body), PROTOCOL_ICMPV6)
    checksum = _CHECKSUM.pack(internet_checksum(pseudo + head + b"\0\0" + body))
    return build_ipv6(
        destination_mac, destination, PROTOCOL_ICMPV6, head + checksum + body, hop_limit=hop_limit
    )


def icmpv6_message(packet: Ipv6Packet) -> bytes:
    """The ICMPv6 message in a packet, its checksum found right.

    Raises:
        Malformed: another protocol, shorter than its header, or a wrong checksum.
    """
    message = packet.payload
    if packet.protocol != PROTOCOL_ICMPV6 or len(message) < 4:
        raise Malformed("no ICMPv6 message")
    pseudo = pseudo_header(packet.source, packet.destination, len(message), PROTOCOL_ICMPV6)
    if internet_checksum(pseudo + message) != 0:
        raise Malformed("wrong ICMPv6 checksum")
    return message


def parse_udp6(packet: Ipv6Packet) -> UdpDatagram:
    """The UDP datagram in an IPv6 packet.

    Raises:
        Malformed: another protocol, shorter than its header or its own length says, a wrong
            checksum, or none, which IPv6 does not allow (RFC 8200, 8.1).
    """
    if packet.protocol != PROTOCOL_UDP or len(packet.payload) < UDP_HEADER_SIZE:
        raise Malformed("no UDP datagram")
    source_port, destination_port, length, checksum = _UDP.unpack_from(packet.payload)
    if not UDP_HEADER_SIZE <= length <= len(packet.payload):
        raise Malformed("a UDP length that contradicts the packet")
    datagram = packet.payload[:length]
    pseudo = pseudo_header(packet.source, packet.destination, length, PROTOCOL_UDP)
    if checksum == 0 or internet_checksum(pseudo + datagram) != 0:
        raise Malformed("a wrong UDP checksum, or none")
    return UdpDatagram(source_port, destination_port, datagram[UDP_HEADER_SIZE:])


def build_udp6(
    destination_mac: bytes,
    destination: bytes,
    payload: bytes,
    *,
    source_port: int,
    destination_port: int,
) -> bytes:
    """A whole frame with a UDP datagram from the gateway."""
    length = UDP_HEADER_SIZE + len(payload)
    header = _UDP.pack(source_port, destination_port, length, 0)
    pseudo = pseudo_header(_GATEWAY_IPV6, destination, length, PROTOCOL_UDP)
    checksum = internet_checksum(pseudo + header + payload) or 0xFFFF
    datagram = header[:6] + _CHECKSUM.pack(checksum) + payload
    return build_ipv6(destination_mac, destination, PROTOCOL_UDP, datagram)
