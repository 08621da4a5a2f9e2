"""Addresses in any form, checksums, Ethernet and ARP (RFC 826)."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import attrs

GATEWAY_MAC = bytes([0x02, 0x00, 0x00, 0x00, 0x00, 0x01])
GATEWAY_IP = bytes([169, 254, 0, 1])
GATEWAY_IPV6 = bytes([0xFE, 0x80, *bytes(13), 1])
BROADCAST_MAC = b"\xff" * 6
BROADCAST_IP = b"\xff" * 4
UNSPECIFIED_IP = bytes(4)

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ARP_REQUEST = 1
ARP_REPLY = 2

Mac: TypeAlias = bytes | str | Sequence[int]
Ip: TypeAlias = bytes | str | Sequence[int]
Parser: TypeAlias = Callable[[bytes], object]

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")


def mac_bytes(mac: Mac) -> bytes:
    """The six bytes of a MAC address in any of its forms."""
    packed = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else bytes(mac)
    if len(packed) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return packed


def ip_bytes(ip: Ip) -> bytes:
    """The four bytes of an IPv4 address in any of its forms."""
    packed = ipaddress.IPv4Address(ip).packed if isinstance(ip, str) else bytes(ip)
    if len(packed) != 4:
        raise ValueError(f"{ip!r} is not an IPv4 address")
    return packed


def ipv6_bytes(ip: Ip) -> bytes:
    """The sixteen bytes of an IPv6 address in any of its forms."""
    packed = ipaddress.IPv6Address(ip).packed if isinstance(ip, str) else bytes(ip)
    if len(packed) != 16:
        raise ValueError(f"{ip!r} is not an IPv6 address")
    return packed


def internet_checksum(data: bytes) -> int:
    """The checksum of RFC 1071; 0 for data that holds its own correct checksum."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parses(parse: Parser, frame: bytes) -> bool:
    """Whether `parse` finds the frame good."""
    try:
        parse(frame)
    except ValueError:
        return False
    return True


class EthernetHeader(NamedTuple):
    """The 14 bytes in front of every frame."""

    dst: bytes
    src: bytes
    ethertype: int


def ethernet_frame(dst: Mac, src: Mac, ethertype: int, payload: bytes) -> bytes:
    """A raw Ethernet frame."""
    return _ETHERNET.pack(mac_bytes(dst), mac_bytes(src), ethertype) + payload


def parse_ethernet(frame: bytes, ethertype: int | None = None) -> tuple[EthernetHeader, bytes]:
    """Header and payload. ValueError: too short, or of another type than `ethertype`."""
    if len(frame) < _ETHERNET.size:
        raise ValueError(f"{len(frame)} bytes are no Ethernet frame")
    header = EthernetHeader(*_ETHERNET.unpack_from(frame))
    if ethertype not in (None, header.ethertype):
        raise ValueError(f"ethertype is {header.ethertype:#06x}, not {ethertype:#06x}")
    return header, frame[_ETHERNET.size :]


@attrs.frozen
class ArpReply:
    """What an ARP reply says, and the Ethernet addresses that carried it."""

    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes
    eth_src: bytes
    eth_dst: bytes


def arp_packet(
    operation: int,
    sender_mac: Mac,
    sender_ip: Ip,
    target_mac: Mac,
    target_ip: Ip,
    *,
    dst: Mac = BROADCAST_MAC,
) -> bytes:
    """Any ARP packet for IPv4 over Ethernet; the Ethernet source is `sender_mac`."""
    payload = _ARP.pack(
        1,
        ETHERTYPE_IPV4,
        6,
        4,
        operation,
        mac_bytes(sender_mac),
        ip_bytes(sender_ip),
        mac_bytes(target_mac),
        ip_bytes(target_ip),
    )
    return ethernet_frame(dst, sender_mac, ETHERTYPE_ARP, payload)


def arp_request(
    sender_mac: Mac, sender_ip: Ip, target_ip: Ip, *, dst: Mac = BROADCAST_MAC
) -> bytes:
    """An ARP request: who has `target_ip`? A probe has the sender address 0.0.0.0 (RFC 5227)."""
    return arp_packet(ARP_REQUEST, sender_mac, sender_ip, bytes(6), target_ip, dst=dst)


def parse_arp_reply(frame: bytes) -> ArpReply:
    """Parse an ARP reply; anything behind the 28 bytes is padding."""
    ethernet, payload = parse_ethernet(frame, ETHERTYPE_ARP)
    if len(payload) < _ARP.size:
        raise ValueError(f"{len(payload)} bytes are no ARP packet")
    *kinds, smac, sip, tmac, tip = _ARP.unpack_from(payload)
    if kinds != [1, ETHERTYPE_IPV4, 6, 4, ARP_REPLY]:
        raise ValueError(f"not an ARP reply for IPv4 over Ethernet: {kinds}")
    return ArpReply(smac, sip, tmac, tip, ethernet.src, ethernet.dst)


def is_arp_reply(frame: bytes) -> bool:
    """Whether the frame is an ARP reply."""
    return parses(parse_arp_reply, frame)
