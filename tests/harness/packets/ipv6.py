"""IPv6 (RFC 8200), UDP over it, and ICMPv6 echo and errors (RFC 4443)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import attrs

from .ipv4 import IPPROTO_UDP, IcmpErrorMessage
from .link import (
    ETHERTYPE_IPV6,
    EthernetHeader,
    Ip,
    Mac,
    ethernet_frame,
    internet_checksum,
    ipv6_bytes,
    mac_bytes,
    parse_ethernet,
    parses,
)

IPPROTO_ICMPV6 = 58
UNSPECIFIED_IPV6 = bytes(16)
ALL_NODES = ipv6_bytes("ff02::1")
ALL_ROUTERS = ipv6_bytes("ff02::2")

_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_ECHO = struct.Struct("!BBHHH")


class Ipv6Header(NamedTuple):
    """The fields of an IPv6 header that tests look at."""

    src: bytes
    dst: bytes
    protocol: int
    hop_limit: int


def link_local(mac: Mac) -> bytes:
    """The link-local address made of a MAC address (RFC 4291, 2.5.1 and appendix A)."""
    packed = mac_bytes(mac)
    return bytes([0xFE, 0x80, *bytes(6), packed[0] ^ 2, *packed[1:3], 0xFF, 0xFE, *packed[3:]])


def group_mac(group: Ip) -> bytes:
    """The MAC address of an IPv6 group (RFC 2464, 7)."""
    return b"\x33\x33" + ipv6_bytes(group)[12:]


def solicited_node(ip: Ip) -> bytes:
    """The solicited-node group of an address (RFC 4291, 2.7.1)."""
    return ipv6_bytes("ff02::1:ff00:0")[:13] + ipv6_bytes(ip)[13:]


def ipv6_packet(
    src: Ip,
    dst: Ip,
    protocol: int,
    payload: bytes,
    *,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow: int = 0,
    extensions: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """An IPv6 packet.

    Args:
        protocol: of the payload, after all extension headers.
        extensions: each with its kind, and its bytes after the next-header field.
    """
    chain = [*(kind for kind, _ in extensions), protocol]
    body = b"".join(
        bytes([following]) + data
        for (_, data), following in zip(extensions, chain[1:], strict=True)
    )
    first = 6 << 28 | traffic_class << 20 | flow
    length = len(body) + len(payload)
    header = _IPV6.pack(first, length, chain[0], hop_limit, ipv6_bytes(src), ipv6_bytes(dst))
    return header + body + payload


def parse_ipv6(packet: bytes, protocol: int | None = None) -> tuple[Ipv6Header, bytes]:
    """Header and payload of a packet without extension headers and Ethernet's padding."""
    if len(packet) < _IPV6.size:
        raise ValueError(f"{len(packet)} bytes are no IPv6 packet")
    first, length, found, hop_limit, src, dst = _IPV6.unpack_from(packet)
    if first >> 28 != 6 or length > len(packet) - _IPV6.size:
        raise ValueError("the IPv6 header contradicts the frame")
    if protocol not in (None, found):
        raise ValueError(f"the next header is {found}, not {protocol}")
    return Ipv6Header(src, dst, found, hop_limit), packet[_IPV6.size : _IPV6.size + length]


def pseudo_header6(src: bytes, dst: bytes, length: int, protocol: int) -> bytes:
    """What a transport checksum covers besides (RFC 8200, 8.1)."""
    return src + dst + struct.pack("!I3xB", length, protocol)


def udp_datagram6(src: Ip, dst: Ip, src_port: int, dst_port: int, payload: bytes) -> bytes:
    """A UDP datagram with its checksum, which IPv6 demands."""
    length = _UDP.size + len(payload)
    datagram = _UDP.pack(src_port, dst_port, length, 0) + payload
    pseudo = pseudo_header6(ipv6_bytes(src), ipv6_bytes(dst), length, IPPROTO_UDP)
    checksum = internet_checksum(pseudo + datagram) or 0xFFFF
    return _UDP.pack(src_port, dst_port, length, checksum) + payload


def udp_frame6(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    src_port: int,
    dst_port: int,
    payload: bytes,
    *,
    hop_limit: int = 64,
) -> bytes:
    """A UDP datagram in IPv6 in Ethernet."""
    datagram = udp_datagram6(src_ip, dst_ip, src_port, dst_port, payload)
    packet = ipv6_packet(src_ip, dst_ip, IPPROTO_UDP, datagram, hop_limit=hop_limit)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV6, packet)


def parse_udp6(header: Ipv6Header, datagram: bytes) -> tuple[int, int, bytes]:
    """Source port, destination port and payload; the checksum must be there and right."""
    if len(datagram) < _UDP.size:
        raise ValueError(f"{len(datagram)} bytes are no UDP datagram")
    src_port, dst_port, length, checksum = _UDP.unpack_from(datagram)
    if length != len(datagram):
        raise ValueError(f"UDP length {length} in a payload of {len(datagram)} bytes")
    pseudo = pseudo_header6(header.src, header.dst, length, IPPROTO_UDP)
    if not checksum or internet_checksum(pseudo + datagram):
        raise ValueError("the UDP checksum is missing or wrong")
    return src_port, dst_port, datagram[_UDP.size :]


# ICMPv6


def icmpv6_frame(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    kind: int,
    code: int,
    body: bytes,
    *,
    hop_limit: int = 64,
) -> bytes:
    """Any ICMPv6 message in a frame.

    Args:
        body: what follows the checksum.
    """
    src, dst = ipv6_bytes(src_ip), ipv6_bytes(dst_ip)
    pseudo = pseudo_header6(src, dst, 4 + len(body), IPPROTO_ICMPV6)
    checksum = internet_checksum(pseudo + bytes([kind, code, 0, 0]) + body)
    message = struct.pack("!BBH", kind, code, checksum) + body
    packet = ipv6_packet(src, dst, IPPROTO_ICMPV6, message, hop_limit=hop_limit)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV6, packet)


def parse_icmpv6(frame: bytes) -> tuple[EthernetHeader, Ipv6Header, int, int, bytes]:
    """Headers, type, code, and what follows the checksum, which must be right."""
    ethernet, packet = parse_ethernet(frame, ETHERTYPE_IPV6)
    header, message = parse_ipv6(packet, IPPROTO_ICMPV6)
    pseudo = pseudo_header6(header.src, header.dst, len(message), IPPROTO_ICMPV6)
    if len(message) < 4 or internet_checksum(pseudo + message):
        raise ValueError("an ICMPv6 message that is too short, or whose checksum is wrong")
    return ethernet, header, message[0], message[1], message[4:]


@attrs.frozen
class Icmpv6Echo:
    """What an ICMPv6 echo request or reply says, and the addresses that carried it."""

    src_ip: bytes
    dst_ip: bytes
    ident: int
    seq_no: int
    data: bytes
    src_mac: bytes
    dst_mac: bytes
    hop_limit: int


def icmpv6_echo_request(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    ident: int,
    seq_no: int,
    data: bytes,
    *,
    hop_limit: int = 64,
) -> bytes:
    """A ping."""
    body = struct.pack("!HH", ident, seq_no) + data
    return icmpv6_frame(src_mac, dst_mac, src_ip, dst_ip, 128, 0, body, hop_limit=hop_limit)


def icmpv6_echo_reply(
    src_mac: Mac, dst_mac: Mac, src_ip: Ip, dst_ip: Ip, ident: int, seq_no: int, data: bytes
) -> bytes:
    """The answer to a ping."""
    body = struct.pack("!HH", ident, seq_no) + data
    return icmpv6_frame(src_mac, dst_mac, src_ip, dst_ip, 129, 0, body)


def _parse_echo(frame: bytes, wanted: int) -> Icmpv6Echo:
    ethernet, header, kind, code, body = parse_icmpv6(frame)
    if (kind, code) != (wanted, 0) or len(body) < 4:
        raise ValueError(f"ICMPv6 type {kind}, code {code}")
    ident, seq_no = struct.unpack_from("!HH", body)
    return Icmpv6Echo(
        src_ip=header.src,
        dst_ip=header.dst,
        ident=ident,
        seq_no=seq_no,
        data=body[4:],
        src_mac=ethernet.src,
        dst_mac=ethernet.dst,
        hop_limit=header.hop_limit,
    )


def parse_icmpv6_echo_request(frame: bytes) -> Icmpv6Echo:
    """Parse a ping."""
    return _parse_echo(frame, 128)


def parse_icmpv6_echo_reply(frame: bytes) -> Icmpv6Echo:
    """Parse the answer to a ping."""
    return _parse_echo(frame, 129)


def is_icmpv6_echo_request(frame: bytes) -> bool:
    """Whether the frame is a ping."""
    return parses(parse_icmpv6_echo_request, frame)


def is_icmpv6_echo_reply(frame: bytes) -> bool:
    """Whether the frame is the answer to a ping."""
    return parses(parse_icmpv6_echo_reply, frame)


def parse_icmpv6_error(frame: bytes) -> IcmpErrorMessage:
    """Parse an ICMPv6 error (RFC 4443, 3)."""
    ethernet, header, kind, code, body = parse_icmpv6(frame)
    if kind >= 128 or len(body) < 4:
        raise ValueError(f"ICMPv6 type {kind} is no error")
    return IcmpErrorMessage(
        kind=kind,
        code=code,
        word=int.from_bytes(body[:4], "big"),
        quoted=body[4:],
        src_ip=header.src,
        dst_ip=header.dst,
        src_mac=ethernet.src,
        dst_mac=ethernet.dst,
        size=len(frame) - 14,
    )


def is_icmpv6_error(frame: bytes) -> bool:
    """Whether the frame is an ICMPv6 error."""
    return parses(parse_icmpv6_error, frame)
