"""The blocks of a pcapng file that are not packets (draft-ietf-opsawg-pcapng).

Packets come from the core, block by block (``ffi/capture.c``); this is what stands before and after
them. All is little endian, which the file says of itself.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

_SECTION_HEADER = 0x0A0D0D0A
_INTERFACE_DESCRIPTION = 1
_INTERFACE_STATISTICS = 5
_ENHANCED_PACKET = 6

_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LENGTH_UNKNOWN = 0xFFFFFFFFFFFFFFFF
_ETHERNET = 1  # LINKTYPE_ETHERNET
_NANOSECONDS = 9  # if_tsresol: a negative power of ten

_BLOCK = struct.Struct("<II")
_SMALLEST_BLOCK = 12
_INTERFACE = struct.Struct("<I")
_OPTION = struct.Struct("<HH")

Option = tuple[int, bytes]


def section_header(application: str) -> bytes:
    """The block that begins a file; `application` is who writes it."""
    body = struct.pack("<IHHQ", _BYTE_ORDER_MAGIC, 1, 0, _LENGTH_UNKNOWN)
    return _block(_SECTION_HEADER, body, [(3, b"Linux"), (4, application.encode())])


def interface_description(
    name: str,
    description: str,
    *,
    snaplen: int,
    mac: bytes | None = None,
    ipv4: IPv4Address | None = None,
    ipv6: IPv6Address | None = None,
) -> bytes:
    """The block for one interface, which must come before its packets; they count the blocks."""
    options: list[Option] = [(2, name.encode()), (3, description.encode())]
    if ipv4 is not None:
        options.append((4, ipv4.packed + b"\xff\xff\xff\xff"))
    if ipv6 is not None:
        options.append((5, ipv6.packed + b"\x80"))
    if mac is not None:
        options.append((6, mac))
    options.append((9, bytes([_NANOSECONDS])))
    return _block(_INTERFACE_DESCRIPTION, struct.pack("<HHI", _ETHERNET, 0, snaplen), options)


def interface_statistics(
    interface: int, now_ns: int, *, start_ns: int, seen: int, lost: int
) -> bytes:
    """The block that ends an interface.

    Args:
        interface: its number, counted from 0.
        now_ns, start_ns: nanoseconds since 1970.
        seen: frames that passed by.
        lost: those of them that are not in the file.
    """
    options = [
        (2, _timestamp(start_ns)),
        (3, _timestamp(now_ns)),
        (4, struct.pack("<Q", seen)),
        (5, struct.pack("<Q", lost)),
        (8, struct.pack("<Q", seen - lost)),
    ]
    body = struct.pack("<I", interface) + _timestamp(now_ns)
    return _block(_INTERFACE_STATISTICS, body, options)


def whole_blocks(data: bytes, length: int) -> int:
    """How many of the first `length` bytes of a sequence of blocks are whole ones.

    What is no sequence of blocks has none from there on.
    """
    end = 0
    for _kind, start, total in _blocks(data, length):
        end = start + total
    return end


def frames_by_interface(data: bytes) -> Counter[int]:
    """How many packets there are in a sequence of blocks."""
    return Counter(
        _INTERFACE.unpack_from(data, start + _BLOCK.size)[0]
        for kind, start, _total in _blocks(data, len(data))
        if kind == _ENHANCED_PACKET
    )


def _blocks(data: bytes, length: int) -> Iterator[tuple[int, int, int]]:
    """The kind, place and size of each whole block in the first `length` bytes."""
    start = 0
    while start + _SMALLEST_BLOCK <= length:
        kind, total = _BLOCK.unpack_from(data, start)
        if total < _SMALLEST_BLOCK or start + total > length:
            return
        yield kind, start, total
        start += total


def _timestamp(ns: int) -> bytes:
    """The upper half comes first, whatever the byte order."""
    return struct.pack("<II", ns >> 32, ns & 0xFFFFFFFF)


def _block(kind: int, body: bytes, options: Iterable[Option]) -> bytes:
    body += b"".join(_option(code, value) for code, value in options) + _OPTION.pack(0, 0)
    total = _BLOCK.size + len(body) + 4
    return _BLOCK.pack(kind, total) + body + struct.pack("<I", total)


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)
