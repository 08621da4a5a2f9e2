"""TCP segments (RFC 9293) in either family, for tests of checksums and segmentation."""

from __future__ import annotations

import struct

import attrs

from .ipv4 import IPPROTO_TCP, ipv4_packet, parse_ipv4
from .ipv6 import ipv6_packet, parse_ipv6, pseudo_header6
from .link import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    Ip,
    Mac,
    ethernet_frame,
    internet_checksum,
    ip_bytes,
    ipv6_bytes,
    parse_ethernet,
)

FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80

_TCP = struct.Struct("!HHIIBBHHH")


@attrs.frozen
class TcpSegment:
    """What a TCP segment says, and the addresses that carried it."""

    src_ip: bytes
    dst_ip: bytes
    src_port: int
    dst_port: int
    seq: int
    flags: int
    payload: bytes
    src_mac: bytes
    dst_mac: bytes
    ttl: int


def _is_ipv6(ip: Ip) -> bool:
    return ":" in ip if isinstance(ip, str) else len(ip) == 16


def _pseudo_header(src: bytes, dst: bytes, length: int) -> bytes:
    if len(src) == 16:
        return pseudo_header6(src, dst, length, IPPROTO_TCP)
    return src + dst + struct.pack("!HH", IPPROTO_TCP, length)


def tcp_frame(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    payload: bytes,
    *,
    src_port: int = 1000,
    dst_port: int = 2000,
    seq: int = 1,
    flags: int = ACK,
    partial: bool = False,
    fragment: int = 0x4000,
    ident: int = 0,
) -> bytes:
    """A TCP segment in IPv4 or IPv6 in Ethernet; the addresses say which.

    Args:
        partial: leave the checksum to the device: the field holds the pseudo-header's sum
            (virtio 1.2, 5.1.6.2).
        fragment: flags and fragment offset of IPv4; "don't fragment" by default.
    """
    ipv6 = _is_ipv6(src_ip)
    src = ipv6_bytes(src_ip) if ipv6 else ip_bytes(src_ip)
    dst = ipv6_bytes(dst_ip) if ipv6 else ip_bytes(dst_ip)
    fields = (src_port, dst_port, seq, 0, 0x50, flags, 0xFFFF)
    segment = _TCP.pack(*fields, 0, 0) + payload
    pseudo = _pseudo_header(src, dst, len(segment))
    if partial:
        checksum = ~internet_checksum(pseudo) & 0xFFFF
    else:
        checksum = internet_checksum(pseudo + segment)
    segment = _TCP.pack(*fields, checksum, 0) + payload
    if ipv6:
        packet = ipv6_packet(src, dst, IPPROTO_TCP, segment)
        return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV6, packet)
    packet = ipv4_packet(src, dst, IPPROTO_TCP, segment, fragment=fragment, ident=ident)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV4, packet)


def parse_tcp(frame: bytes, *, checksum: bool = True) -> TcpSegment:
    """Parse a TCP segment of either family.

    Args:
        checksum: look at it; not for a packet that a device need not have completed.
    """
    ethernet, packet = parse_ethernet(frame)
    if ethernet.ethertype == ETHERTYPE_IPV6:
        header6, segment = parse_ipv6(packet, IPPROTO_TCP)
        src, dst, ttl = header6.src, header6.dst, header6.hop_limit
    else:
        header4, segment = parse_ipv4(packet, IPPROTO_TCP)
        src, dst, ttl = header4.src, header4.dst, header4.ttl
    if len(segment) < _TCP.size:
        raise ValueError(f"{len(segment)} bytes are no TCP segment")
    if checksum and internet_checksum(_pseudo_header(src, dst, len(segment)) + segment):
        raise ValueError("the TCP checksum is wrong")
    src_port, dst_port, seq, _, offset, flags, *_ = _TCP.unpack_from(segment)
    return TcpSegment(
        src_ip=src,
        dst_ip=dst,
        src_port=src_port,
        dst_port=dst_port,
        seq=seq,
        flags=flags,
        payload=segment[(offset >> 4) * 4 :],
        src_mac=ethernet.src,
        dst_mac=ethernet.dst,
        ttl=ttl,
    )
