"""The bytes under every service: reading what a guest sent, writing what it gets.

Everything that is read here was written by a guest, so nothing in it is believed. Whatever is
wrong with it leaves as one exception, `Malformed`; lengths are compared before they are used and
every loop ends with the bytes it walks over. Frames are whole Ethernet frames without FCS;
addresses are four or six bytes in wire order unless a type says otherwise.

Two ways of reading live side by side. What may come often (ARP, echo) is unpacked from raw bytes
with precompiled structs. What is rare (DHCP over UDP) goes through dpkt, and this is the only
module that imports it: dpkt throws IndexError, AttributeError and others on hostile input, which
`_unpack` turns into `Malformed`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol, Self, TypeVar

import attrs
import dpkt

from ..model import GATEWAY_IPV4, GATEWAY_MAC, DropReason

BROADCAST_MAC = b"\xff" * 6
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERNET_HEADER_SIZE = 14

IPV4_HEADER_SIZE = 20
"""Without options (RFC 791, 3.1)."""
UDP_HEADER_SIZE = 8
BOOTP_SIZE = 240
"""A DHCP message without its options: the fixed part and the magic cookie (RFC 2131, 2)."""
PROTOCOL_ICMP = 1
PROTOCOL_UDP = 17
TTL = 64
"""Of everything the gateway sends (RFC 1700, "IP TIME TO LIVE")."""
DONT_FRAGMENT = 0x4000
FRAGMENT_MASK = 0x3FFF
"""More-fragments bit and fragment offset."""

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBH2xHBB2x4s4s")
"""Identification and checksum are skipped: nothing is reassembled, and the sum is of the whole."""
_UDP_PSEUDO_HEADER = struct.Struct("!4s4sxBH")

_OPTION_END = 0
_OPTION_NO_OPERATION = 1
_SOURCE_ROUTES = frozenset({131, 137})
"""Loose and strict source route (RFC 791, 3.1); they exist only to get around a router."""

_GATEWAY_IPV4 = GATEWAY_IPV4.packed


class Malformed(ValueError):
    """The bytes are not what they claim to be. The only exception that this module lets out."""


class Service(Protocol):
    """Answers one kind of slow-path frame of one NIC, without I/O, time or memory of the past."""

    def handle(self, frame: bytes) -> bytes | DropReason | None:
        """Answer a frame from the guest.

        Args:
            frame: the whole Ethernet frame, any bytes at all.

        Returns:
            The whole Ethernet frame for the guest, or why there is none; None: it was good, and
            what it asks for comes by another way. Nothing is ever raised.
        """
        ...


class Cursor:
    """Reads forward through bytes that somebody else wrote, and never past their end."""

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._end = len(data)

    def remaining(self) -> int:
        """Bytes left to read."""
        return self._end - self._position

    def get_bytes(self, size: int) -> bytes:
        """The next `size` bytes. Raises Malformed when there are fewer."""
        if size > self.remaining():
            raise Malformed(f"{size} bytes wanted, {self.remaining()} left")
        start = self._position
        self._position += size
        return self._data[start : self._position]

    def get_uint8(self) -> int:
        return self.get_bytes(1)[0]

    def get_uint16(self) -> int:
        return int.from_bytes(self.get_bytes(2), "big")

    def get_uint32(self) -> int:
        return int.from_bytes(self.get_bytes(4), "big")

    def finish(self) -> None:
        """Raises Malformed when something is left to read."""
        if self.remaining():
            raise Malformed(f"{self.remaining()} bytes too many")


def internet_checksum(data: bytes) -> int:
    """The checksum of RFC 1071 over `data`; 0 when `data` holds its own, right checksum.

    2**16 is 1 modulo 0xffff, so the folded one's complement sum of the 16-bit words is the
    remainder of the whole number that the bytes spell: one division in C in place of a loop.
    """
    number = int.from_bytes(data, "big") << (8 * (len(data) % 2))
    if number == 0:
        return 0xFFFF
    return 0xFFFE - (number - 1) % 0xFFFF


@attrs.frozen
class Ipv4Packet:
    """What a service needs of an IPv4 packet; `payload` is without Ethernet padding."""

    destination_mac: bytes
    tos: int
    protocol: int
    source: bytes
    destination: bytes
    payload: bytes


def parse_ipv4(frame: bytes, source_mac: bytes) -> Ipv4Packet:
    """Take a guest's frame apart down to the IPv4 payload.

    TTL 1 is right for a packet that ends here (RFC 1122, 3.2.1.7). The source may be 0.0.0.0, as
    DHCP needs it. Bytes after the total length are padding.

    Args:
        frame: a whole Ethernet frame.
        source_mac: the MAC address of the NIC, the only one that its guest may send from.

    Raises:
        Malformed: another sender, not IPv4, a header that contradicts itself or the frame, a wrong
            checksum, a fragment, TTL 0, a source route, bad options, or a source address that no
            guest can have.
    """
    if len(frame) < ETHERNET_HEADER_SIZE + IPV4_HEADER_SIZE:
        raise Malformed("shorter than an IPv4 header")
    to_mac, from_mac, ethertype = _ETHERNET.unpack_from(frame)
    if from_mac != source_mac or ethertype != ETHERTYPE_IPV4:
        raise Malformed("not the NIC's, or not IPv4")
    version, tos, length, fragment, ttl, protocol, source, destination = _IPV4.unpack_from(
        frame, ETHERNET_HEADER_SIZE
    )
    header_size = (version & 0xF) * 4
    if version >> 4 != 4 or not (
        IPV4_HEADER_SIZE <= header_size <= length <= len(frame) - ETHERNET_HEADER_SIZE
    ):
        raise Malformed("not IPv4, or lengths that contradict each other")
    if fragment & FRAGMENT_MASK or ttl == 0:
        raise Malformed("a fragment, or TTL 0")
    if source[0] == 127 or source[0] >= 224 or source == _GATEWAY_IPV4:
        raise Malformed("a source address that no guest has")
    packet = frame[ETHERNET_HEADER_SIZE : ETHERNET_HEADER_SIZE + length]
    _check_ipv4_header(packet[:header_size])
    return Ipv4Packet(to_mac, tos, protocol, source, destination, packet[header_size:])


def _check_ipv4_header(header: bytes) -> None:
    """Checksum and options (RFC 791, 3.1); options are checked and otherwise ignored."""
    if internet_checksum(header) != 0:
        raise Malformed("wrong header checksum")
    if len(header) == IPV4_HEADER_SIZE:
        return
    cursor = Cursor(header[IPV4_HEADER_SIZE:])
    while cursor.remaining():
        kind = cursor.get_uint8()
        if kind == _OPTION_END:
            return
        if kind != _OPTION_NO_OPERATION:
            _skip_ipv4_option(cursor, kind)


def _skip_ipv4_option(cursor: Cursor, kind: int) -> None:
    """Past one option whose kind has been read; its length counts the two bytes of its head."""
    if kind in _SOURCE_ROUTES:
        raise Malformed("a source route")
    length = cursor.get_uint8()
    if length < 2:
        raise Malformed("an option shorter than its head")
    cursor.get_bytes(length - 2)


_Parsed = TypeVar("_Parsed")


def _unpack(parse: Callable[[bytes], _Parsed], data: bytes) -> _Parsed:
    """What dpkt makes of `data`, with everything that it may throw turned into Malformed."""
    try:
        return parse(data)
    except Exception as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


@attrs.frozen
class UdpDatagram:
    source_port: int
    destination_port: int
    payload: bytes


def parse_udp(packet: Ipv4Packet) -> UdpDatagram:
    """The UDP datagram in an IPv4 packet. Checksum 0 means "none" (RFC 768).

    Raises:
        Malformed: shorter than its header or its own length says, or a wrong checksum.
    """
    udp = _unpack(dpkt.udp.UDP, packet.payload)
    if not UDP_HEADER_SIZE <= udp.ulen <= len(packet.payload):
        raise Malformed("a UDP length that contradicts the packet")
    datagram = packet.payload[: udp.ulen]
    pseudo_header = _UDP_PSEUDO_HEADER.pack(
        packet.source, packet.destination, PROTOCOL_UDP, udp.ulen
    )
    if udp.sum != 0 and internet_checksum(pseudo_header + datagram) != 0:
        raise Malformed("wrong UDP checksum")
    return UdpDatagram(udp.sport, udp.dport, datagram[UDP_HEADER_SIZE:])


def build_udp(
    destination_mac: bytes,
    destination: IPv4Address,
    payload: bytes,
    *,
    source_port: int,
    destination_port: int,
) -> bytes:
    """A whole frame from the gateway.

    It may not be fragmented, so its identification may be 0 (RFC 6864, 4.1). dpkt fills in both
    checksums, with 0xffff where the UDP one comes out as 0 (RFC 768).
    """
    udp = dpkt.udp.UDP(
        sport=source_port,
        dport=destination_port,
        ulen=UDP_HEADER_SIZE + len(payload),
        data=payload,
    )
    packet = dpkt.ip.IP(
        src=_GATEWAY_IPV4, dst=destination.packed, ttl=TTL, p=PROTOCOL_UDP, df=1, data=udp
    )
    return bytes(dpkt.ethernet.Ethernet(dst=destination_mac, src=GATEWAY_MAC.packed, data=packet))


_UNSPECIFIED = IPv4Address(0)


@attrs.frozen(kw_only=True)
class BootpMessage:
    """A DHCP message up to its magic cookie (RFC 2131, figure 1) and, undecoded, what follows."""

    op: int
    xid: int
    flags: int
    chaddr: bytes
    """As many bytes as `hlen` says, at most 16."""
    htype: int = 1
    hlen: int = 6
    ciaddr: IPv4Address = _UNSPECIFIED
    yiaddr: IPv4Address = _UNSPECIFIED
    siaddr: IPv4Address = _UNSPECIFIED
    giaddr: IPv4Address = _UNSPECIFIED
    sname: bytes = b""
    file: bytes = b""
    options: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises Malformed when `data` is too short or lacks the cookie (plain BOOTP)."""
        # Only the fixed part is dpkt's: its own walk over the options believes their lengths.
        fixed = _unpack(dpkt.dhcp.DHCP, data[:BOOTP_SIZE])
        if fixed.magic != dpkt.dhcp.DHCP_MAGIC:
            raise Malformed("no DHCP magic cookie")
        return cls(
            op=fixed.op,
            xid=fixed.xid,
            flags=fixed.flags,
            chaddr=fixed.chaddr,
            htype=fixed.hrd,
            hlen=fixed.hln,
            ciaddr=IPv4Address(fixed.ciaddr),
            yiaddr=IPv4Address(fixed.yiaddr),
            siaddr=IPv4Address(fixed.siaddr),
            giaddr=IPv4Address(fixed.giaddr),
            sname=fixed.sname,
            file=fixed.file,
            options=data[BOOTP_SIZE:],
        )

    def __bytes__(self) -> bytes:
        message = dpkt.dhcp.DHCP(
            op=self.op,
            xid=self.xid,
            flags=self.flags,
            chaddr=self.chaddr,
            hrd=self.htype,
            hln=self.hlen,
            ciaddr=int(self.ciaddr),
            yiaddr=int(self.yiaddr),
            siaddr=int(self.siaddr),
            giaddr=int(self.giaddr),
            sname=self.sname,
            file=self.file,
            opts=(),
            data=self.options,
        )
        return bytes(message)
