"""IPv4 (RFC 791), UDP (RFC 768) and ICMP (RFC 792)."""

from __future__ import annotations

import struct
from typing import NamedTuple

import attrs

from .link import (
    ETHERTYPE_IPV4,
    EthernetHeader,
    Ip,
    Mac,
    ethernet_frame,
    internet_checksum,
    ip_bytes,
    parse_ethernet,
    parses,
)

IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_UDP = 17

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ECHO = struct.Struct("!BBHHH")


class Ipv4Header(NamedTuple):
    """The fields of an IPv4 header that tests look at."""

    src: bytes
    dst: bytes
    protocol: int
    ttl: int


def ipv4_packet(
    src: Ip,
    dst: Ip,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    ident: int = 0,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet with a right checksum.

    Args:
        fragment: flags and fragment offset, as they stand in the header.
        options: header options; their length is a multiple of four.
    """
    size = _IPV4.size + len(options)
    fields = (4 << 4 | size // 4, 0, size + len(payload), ident, fragment, ttl, protocol)
    addresses = (ip_bytes(src), ip_bytes(dst))
    checksum = internet_checksum(_IPV4.pack(*fields, 0, *addresses) + options)
    return _IPV4.pack(*fields, checksum, *addresses) + options + payload


def parse_ipv4(packet: bytes, protocol: int | None = None) -> tuple[Ipv4Header, bytes]:
    """Header and payload of an unfragmented packet, without what Ethernet padded behind it."""
    if len(packet) < _IPV4.size:
        raise ValueError(f"{len(packet)} bytes are no IPv4 packet")
    first, _, total, _, fragment, ttl, found, _, src, dst = _IPV4.unpack_from(packet)
    size = (first & 15) * 4
    if first >> 4 != 4 or not _IPV4.size <= size <= total <= len(packet):
        raise ValueError("the lengths of the IPv4 header contradict each other")
    if internet_checksum(packet[:size]):
        raise ValueError("the IPv4 header checksum is wrong")
    if fragment & 0x3FFF:
        raise ValueError("a fragment")
    if protocol not in (None, found):
        raise ValueError(f"IP protocol is {found}, not {protocol}")
    return Ipv4Header(src, dst, found, ttl), packet[size:total]


def udp_datagram(
    src: Ip, dst: Ip, src_port: int, dst_port: int, payload: bytes, *, checksum: bool = True
) -> bytes:
    """A UDP datagram; without `checksum` the field is 0, which IPv4 allows."""
    length = _UDP.size + len(payload)
    value = 0
    if checksum:
        datagram = _UDP.pack(src_port, dst_port, length, 0) + payload
        value = internet_checksum(_pseudo_header(ip_bytes(src), ip_bytes(dst), length) + datagram)
        value = value or 0xFFFF
    return _UDP.pack(src_port, dst_port, length, value) + payload


def udp_frame(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    src_port: int,
    dst_port: int,
    payload: bytes,
) -> bytes:
    """A UDP datagram in IPv4 in Ethernet."""
    datagram = udp_datagram(src_ip, dst_ip, src_port, dst_port, payload)
    packet = ipv4_packet(src_ip, dst_ip, IPPROTO_UDP, datagram)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV4, packet)


def parse_udp(header: Ipv4Header, datagram: bytes) -> tuple[int, int, bytes]:
    """Source port, destination port and payload; the checksum must be there and right."""
    if len(datagram) < _UDP.size:
        raise ValueError(f"{len(datagram)} bytes are no UDP datagram")
    src_port, dst_port, length, checksum = _UDP.unpack_from(datagram)
    if length != len(datagram):
        raise ValueError(f"UDP length {length} in a payload of {len(datagram)} bytes")
    pseudo = _pseudo_header(header.src, header.dst, length)
    if not checksum or internet_checksum(pseudo + datagram):
        raise ValueError("the UDP checksum is missing or wrong")
    return src_port, dst_port, datagram[_UDP.size :]


def _pseudo_header(src: bytes, dst: bytes, length: int) -> bytes:
    return src + dst + struct.pack("!HH", IPPROTO_UDP, length)


@attrs.frozen
class IcmpEchoReply:
    """What an echo reply says, and the addresses that carried it."""

    src_ip: bytes
    dst_ip: bytes
    ident: int
    seq_no: int
    data: bytes
    src_mac: bytes
    dst_mac: bytes
    ttl: int


@attrs.frozen
class IcmpEchoRequest:
    """What an echo request says, and the addresses that carried it."""

    src_mac: bytes
    dst_mac: bytes
    src_ip: bytes
    dst_ip: bytes
    ident: int
    seq_no: int
    data: bytes


def icmp_echo_request(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    ident: int,
    seq_no: int,
    data: bytes,
) -> bytes:
    """A ping."""
    message = _ECHO.pack(8, 0, 0, ident, seq_no) + data
    message = _ECHO.pack(8, 0, internet_checksum(message), ident, seq_no) + data
    packet = ipv4_packet(src_ip, dst_ip, IPPROTO_ICMP, message)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV4, packet)


def parse_icmp_echo_reply(frame: bytes) -> IcmpEchoReply:
    """Parse the answer to a ping."""
    ethernet, header, ident, seq_no, data = _parse_echo(frame, 0)
    return IcmpEchoReply(
        header.src, header.dst, ident, seq_no, data, ethernet.src, ethernet.dst, header.ttl
    )


def parse_icmp_echo_request(frame: bytes) -> IcmpEchoRequest:
    """Parse a ping."""
    ethernet, header, ident, seq_no, data = _parse_echo(frame, 8)
    return IcmpEchoRequest(ethernet.src, ethernet.dst, header.src, header.dst, ident, seq_no, data)


def is_icmp_echo_reply(frame: bytes) -> bool:
    """Whether the frame is the answer to a ping."""
    return parses(parse_icmp_echo_reply, frame)


def is_icmp_echo_request(frame: bytes) -> bool:
    """Whether the frame is a ping."""
    return parses(parse_icmp_echo_request, frame)


def _parse_echo(frame: bytes, kind: int) -> tuple[EthernetHeader, Ipv4Header, int, int, bytes]:
    ethernet, packet = parse_ethernet(frame, ETHERTYPE_IPV4)
    header, message = parse_ipv4(packet, IPPROTO_ICMP)
    if len(message) < _ECHO.size or internet_checksum(message):
        raise ValueError("an ICMP message that is too short, or whose checksum is wrong")
    found, code, _, ident, seq_no = _ECHO.unpack_from(message)
    if (found, code) != (kind, 0):
        raise ValueError(f"ICMP type {found}, code {code}")
    return ethernet, header, ident, seq_no, message[_ECHO.size :]


@attrs.frozen
class IcmpErrorMessage:
    """An ICMP or ICMPv6 error: what it says, what it quotes, and the addresses that carried it.

    `word` is the four bytes after the checksum as a number: for "fragmentation needed" the lower
    half is the MTU, for "packet too big" all of it.
    """

    kind: int
    code: int
    word: int
    quoted: bytes
    src_ip: bytes
    dst_ip: bytes
    src_mac: bytes
    dst_mac: bytes
    size: int
    """Of the whole IP packet, in bytes."""

    @property
    def mtu(self) -> int:
        """What a packet was too big for."""
        return self.word & 0xFFFF if len(self.src_ip) == 4 else self.word


ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})


def parse_icmp_error(frame: bytes) -> IcmpErrorMessage:
    """Parse an ICMP error (RFC 792)."""
    ethernet, packet = parse_ethernet(frame, ETHERTYPE_IPV4)
    header, message = parse_ipv4(packet, IPPROTO_ICMP)
    if len(message) < _ECHO.size or internet_checksum(message):
        raise ValueError("an ICMP message that is too short, or whose checksum is wrong")
    if message[0] not in ICMP_ERRORS:
        raise ValueError(f"ICMP type {message[0]} is no error")
    return IcmpErrorMessage(
        kind=message[0],
        code=message[1],
        word=int.from_bytes(message[4:8], "big"),
        quoted=message[8:],
        src_ip=header.src,
        dst_ip=header.dst,
        src_mac=ethernet.src,
        dst_mac=ethernet.dst,
        size=len(packet),
    )


def is_icmp_error(frame: bytes) -> bool:
    """Whether the frame is an ICMP error."""
    return parses(parse_icmp_error, frame)
