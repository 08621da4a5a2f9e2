"""Neighbour discovery (RFC 4861) and DNS servers in router advertisements (RFC 8106)."""

from __future__ import annotations

import struct

import attrs

from .ipv6 import (
    ALL_ROUTERS,
    UNSPECIFIED_IPV6,
    group_mac,
    icmpv6_frame,
    parse_icmpv6,
    solicited_node,
)
from .link import Ip, Mac, ipv6_bytes, mac_bytes, parses

ROUTER_SOLICITATION = 133
ROUTER_ADVERTISEMENT = 134
NEIGHBOR_SOLICITATION = 135
NEIGHBOR_ADVERTISEMENT = 136
HOP_LIMIT = 255

_SOURCE_LINK_LAYER = 1
_TARGET_LINK_LAYER = 2
_PREFIX = 3
_MTU = 5
_RDNSS = 25


def link_layer_option(kind: int, mac: Mac) -> bytes:
    """A source (1) or target (2) link-layer address option."""
    return bytes([kind, 1]) + mac_bytes(mac)


def parse_nd_options(data: bytes) -> list[tuple[int, bytes]]:
    """Kind and content of each option. ValueError: one of length 0, or past the end."""
    options = []
    while data:
        if len(data) < 2 or data[1] == 0 or 8 * data[1] > len(data):
            raise ValueError("an ND option that runs past the end, or has no length")
        size = 8 * data[1]
        options.append((data[0], data[2:size]))
        data = data[size:]
    return options


def neighbor_solicitation(
    src_mac: Mac,
    src_ip: Ip,
    target_ip: Ip,
    *,
    dst_ip: Ip | None = None,
    dst_mac: Mac | None = None,
    options: bytes | None = None,
    hop_limit: int = HOP_LIMIT,
) -> bytes:
    """Who has `target_ip`? From ``::`` it is duplicate address detection (RFC 4862, 5.4).

    Args:
        dst_ip: by default the solicited-node group of the target.
        options: by default the source link-layer address, but not from ``::``.
    """
    group = solicited_node(target_ip) if dst_ip is None else ipv6_bytes(dst_ip)
    if options is None:
        from_nobody = ipv6_bytes(src_ip) == UNSPECIFIED_IPV6
        options = b"" if from_nobody else link_layer_option(_SOURCE_LINK_LAYER, src_mac)
    body = bytes(4) + ipv6_bytes(target_ip) + options
    to_mac = group_mac(group) if dst_mac is None else dst_mac
    return icmpv6_frame(
        src_mac, to_mac, src_ip, group, NEIGHBOR_SOLICITATION, 0, body, hop_limit=hop_limit
    )


@attrs.frozen
class NeighborAdvertisement:
    """What a neighbour advertisement says, and the addresses that carried it."""

    src_ip: bytes
    dst_ip: bytes
    target_ip: bytes
    target_mac: bytes | None
    router: bool
    solicited: bool
    override: bool
    src_mac: bytes
    dst_mac: bytes


def parse_neighbor_advertisement(frame: bytes) -> NeighborAdvertisement:
    """Parse a neighbour advertisement, as RFC 4861, 7.1.2 validates it."""
    ethernet, header, kind, code, body = parse_icmpv6(frame)
    if (kind, code, header.hop_limit) != (NEIGHBOR_ADVERTISEMENT, 0, HOP_LIMIT) or len(body) < 20:
        raise ValueError("not a neighbour advertisement")
    flags = body[0]
    if header.dst[0] == 0xFF and flags & 0x40:
        raise ValueError("solicited, but sent to a group")
    options = dict(parse_nd_options(body[20:]))
    return NeighborAdvertisement(
        src_ip=header.src,
        dst_ip=header.dst,
        target_ip=body[4:20],
        target_mac=options.get(_TARGET_LINK_LAYER),
        router=bool(flags & 0x80),
        solicited=bool(flags & 0x40),
        override=bool(flags & 0x20),
        src_mac=ethernet.src,
        dst_mac=ethernet.dst,
    )


def is_neighbor_advertisement(frame: bytes) -> bool:
    """Whether the frame is a neighbour advertisement."""
    return parses(parse_neighbor_advertisement, frame)


def router_solicitation(
    src_mac: Mac,
    src_ip: Ip,
    *,
    dst_ip: Ip = ALL_ROUTERS,
    options: bytes | None = None,
    hop_limit: int = HOP_LIMIT,
) -> bytes:
    """Is there a router? With the source link-layer address, but not from ``::``."""
    if options is None:
        from_nobody = ipv6_bytes(src_ip) == UNSPECIFIED_IPV6
        options = b"" if from_nobody else link_layer_option(_SOURCE_LINK_LAYER, src_mac)
    return icmpv6_frame(
        src_mac,
        group_mac(dst_ip),
        src_ip,
        dst_ip,
        ROUTER_SOLICITATION,
        0,
        bytes(4) + options,
        hop_limit=hop_limit,
    )


@attrs.frozen
class RouterAdvertisement:
    """What a router advertisement says, and the addresses that carried it."""

    src_ip: bytes
    dst_ip: bytes
    src_mac: bytes
    dst_mac: bytes
    hop_limit: int
    """What hosts should use; the message's own is always 255."""
    managed: bool
    other_config: bool
    router_lifetime: int
    reachable_time: int
    retrans_timer: int
    prefix: bytes | None
    mtu: int | None
    source_mac: bytes | None
    dns_servers: tuple[bytes, ...]
    dns_lifetime: int | None


def parse_router_advertisement(frame: bytes) -> RouterAdvertisement:
    """Parse a router advertisement, as RFC 4861, 6.1.2 validates it."""
    ethernet, header, kind, code, body = parse_icmpv6(frame)
    if (kind, code, header.hop_limit) != (ROUTER_ADVERTISEMENT, 0, HOP_LIMIT) or len(body) < 12:
        raise ValueError("not a router advertisement")
    if header.src[:2] != b"\xfe\x80":
        raise ValueError("a router advertises from its link-local address")
    hop_limit, flags, lifetime, reachable, retrans = struct.unpack_from("!BBHII", body)
    pairs = parse_nd_options(body[12:])
    options = dict(pairs)
    servers = [value[6:] for kind, value in pairs if kind == _RDNSS]
    return RouterAdvertisement(
        src_ip=header.src,
        dst_ip=header.dst,
        src_mac=ethernet.src,
        dst_mac=ethernet.dst,
        hop_limit=hop_limit,
        managed=bool(flags & 0x80),
        other_config=bool(flags & 0x40),
        router_lifetime=lifetime,
        reachable_time=reachable,
        retrans_timer=retrans,
        prefix=options.get(_PREFIX),
        mtu=int.from_bytes(options[_MTU][2:6], "big") if _MTU in options else None,
        source_mac=options.get(_SOURCE_LINK_LAYER),
        dns_servers=tuple(
            value[start : start + 16] for value in servers for start in range(0, len(value), 16)
        ),
        dns_lifetime=int.from_bytes(options[_RDNSS][2:6], "big") if _RDNSS in options else None,
    )


def is_router_advertisement(frame: bytes) -> bool:
    """Whether the frame is a router advertisement."""
    return parses(parse_router_advertisement, frame)
