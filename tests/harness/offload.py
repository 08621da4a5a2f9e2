"""What a device does for a guest that leaves it undone: a reference, in plain Python.

Checksums, TCP and UDP segmentation, and IPv4 fragmentation as the standards describe them, without
a thought of speed. Tests compare the C core with it. Frames are whole Ethernet frames, with
addresses and hop limit as they are; only what each step must change is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import attrs

from .packets import (
    ETHERTYPE_IPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    internet_checksum,
    pseudo_header6,
)
from .virtio import VIRTIO_NET_HDR_GSO_NONE, VirtioNetHdr

_ETHERNET = 14
_IPV6 = 40
_TCP_CSUM, _UDP_CSUM = 16, 6
_FIN_PSH, _CWR = 0x09, 0x80


@attrs.frozen
class Layout:
    """Where the parts of a TCP or UDP packet without extension headers are."""

    ipv6: bool
    protocol: int
    l4: int
    payload: int


def layout_of(frame: bytes) -> Layout:
    """The layout of a whole frame. ValueError: neither TCP nor UDP."""
    ipv6 = int.from_bytes(frame[12:14], "big") == ETHERTYPE_IPV6
    l4 = _ETHERNET + (_IPV6 if ipv6 else (frame[_ETHERNET] & 15) * 4)
    protocol = frame[_ETHERNET + (6 if ipv6 else 9)]
    if protocol == IPPROTO_TCP:
        return Layout(ipv6, protocol, l4, l4 + (frame[l4 + 12] >> 4) * 4)
    if protocol == IPPROTO_UDP:
        return Layout(ipv6, protocol, l4, l4 + 8)
    raise ValueError(f"IP protocol {protocol}")


def fill_ipv4_checksum(frame: bytes) -> bytes:
    """The frame with a right IPv4 header checksum."""
    size = (frame[_ETHERNET] & 15) * 4
    header = bytearray(frame[_ETHERNET : _ETHERNET + size])
    header[10:12] = b"\0\0"
    header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
    return frame[:_ETHERNET] + bytes(header) + frame[_ETHERNET + size :]


def fill_checksum(frame: bytes) -> bytes:
    """The frame with a right TCP or UDP checksum, whatever stood there."""
    where = layout_of(frame)
    start = where.l4 + (_TCP_CSUM if where.protocol == IPPROTO_TCP else _UDP_CSUM)
    blank = frame[:start] + b"\0\0" + frame[start + 2 :]
    datagram = blank[where.l4 :]
    if where.ipv6:
        pseudo = pseudo_header6(frame[22:38], frame[38:54], len(datagram), where.protocol)
    else:
        pseudo = frame[26:34] + struct.pack("!HH", where.protocol, len(datagram))
    checksum = internet_checksum(pseudo + datagram)
    if where.protocol == IPPROTO_UDP:
        checksum = checksum or 0xFFFF
    return blank[:start] + checksum.to_bytes(2, "big") + blank[start + 2 :]


def complete_checksum(frame: bytes, csum_start: int, csum_offset: int) -> bytes:
    """What a driver makes of a frame with NEEDS_CSUM (virtio 1.2, 5.1.6.4.2).

    The field holds the sum of the pseudo-header; it is replaced by the checksum over all from
    `csum_start` on, the field included.
    """
    field = csum_start + csum_offset
    checksum = internet_checksum(frame[csum_start:])
    if frame[_ETHERNET + 9] == IPPROTO_UDP or csum_offset == _UDP_CSUM:
        checksum = checksum or 0xFFFF
    return frame[:field] + checksum.to_bytes(2, "big") + frame[field + 2 :]


def segment(frame: bytes, header: VirtioNetHdr) -> list[bytes]:
    """The packets that a packet with this header stands for, each with whole checksums.

    One for a header without segmentation; of several, the IPv4 identification goes up by one each
    time, FIN and PSH belong to the last and CWR to the first (RFC 3168, 6.1.2).
    """
    if not header.flags:
        return [frame]
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return [fill_checksum(frame)]
    where = layout_of(frame)
    payload = frame[where.payload :]
    size = header.gso_size
    starts = range(0, len(payload), size)
    return [
        _segment(
            frame, where, number, start, payload[start : start + header.gso_size], len(payload)
        )
        for number, start in enumerate(starts)
    ]


def _segment(
    frame: bytes, where: Layout, number: int, start: int, part: bytes, total: int
) -> bytes:
    head = bytearray(frame[: where.payload])
    length = where.payload - _ETHERNET + len(part)
    if where.ipv6:
        head[18:20] = (length - _IPV6).to_bytes(2, "big")
    else:
        head[16:18] = length.to_bytes(2, "big")
        ident = int.from_bytes(head[18:20], "big")
        head[18:20] = (ident + number & 0xFFFF).to_bytes(2, "big")
    l4 = where.l4
    if where.protocol == IPPROTO_UDP:
        head[l4 + 4 : l4 + 6] = (8 + len(part)).to_bytes(2, "big")
    else:
        seq = int.from_bytes(head[l4 + 4 : l4 + 8], "big")
        head[l4 + 4 : l4 + 8] = (seq + start & 0xFFFFFFFF).to_bytes(4, "big")
        if start:
            head[l4 + 13] &= ~_CWR & 0xFF
        if start + len(part) < total:
            head[l4 + 13] &= ~_FIN_PSH & 0xFF
    whole = fill_checksum(bytes(head) + part)
    return whole if where.ipv6 else fill_ipv4_checksum(whole)


def fragment_ipv4(frame: bytes, mtu: int) -> list[bytes]:
    """The fragments of an IPv4 packet without options (RFC 791, 3.2)."""
    payload = frame[_ETHERNET + 20 :]
    if 20 + len(payload) <= mtu:
        return [frame]
    room = (mtu - 20) // 8 * 8
    fragments = []
    for start in range(0, len(payload), room):
        part = payload[start : start + room]
        head = bytearray(frame[: _ETHERNET + 20])
        head[16:18] = (20 + len(part)).to_bytes(2, "big")
        field = int.from_bytes(head[20:22], "big") + start // 8
        if start + len(part) < len(payload):
            field |= 0x2000
        head[20:22] = field.to_bytes(2, "big")
        fragments.append(fill_ipv4_checksum(bytes(head) + part))
    return fragments


def reassemble_ipv4(fragments: Iterable[bytes]) -> bytes:
    """The packet whose fragments these are, in any order. ValueError: some are missing."""
    parts: list[tuple[int, bytes, bytes]] = sorted(
        ((int.from_bytes(frame[20:22], "big") & 0x1FFF) * 8, frame[:34], frame[34:])
        for frame in fragments
    )
    payload = b""
    for start, _, part in parts:
        if start != len(payload):
            raise ValueError(f"nothing between {len(payload)} and {start}")
        payload += part
    if int.from_bytes(parts[-1][1][20:22], "big") & 0x2000:
        raise ValueError("the last fragment is missing")
    head = bytearray(parts[0][1])
    head[16:18] = (20 + len(payload)).to_bytes(2, "big")
    head[20:22] = bytes(2)
    return fill_ipv4_checksum(bytes(head) + payload)


def received_segments(frames: Sequence[tuple[bytes, VirtioNetHdr]]) -> list[bytes]:
    """All that a driver gets, as it would be on a wire: checksums whole, nothing over-large."""
    return [piece for frame, header in frames for piece in segment(frame, header)]
