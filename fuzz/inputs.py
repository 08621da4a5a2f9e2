"""The form of an input of `fuzz.parsers`; written by `fuzz.corpus`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

from mvirt_net.model import PuntKind

MAC = "52:54:00:12:34:56"
IPV4 = "10.0.0.5"
IPV6 = "fd00::5"
"""The NIC's."""

Message: TypeAlias = tuple[int, bytes, int, int]
"""Request, payload, number of descriptors, header flags."""

SESSION = 0xFF
"""First byte of an input for the vhost-user session; otherwise it is the kind of a punt."""

_MESSAGE = struct.Struct("<BBH")
_KINDS = tuple(PuntKind)


def encode_punt(kind: PuntKind, frame: bytes) -> bytes:
    """A frame for the service of this kind."""
    return bytes([_KINDS.index(kind)]) + frame


def punt_kind(first: int) -> PuntKind:
    """The kind that the first byte of an input stands for."""
    return _KINDS[first % len(_KINDS)]


def encode_message(request: int, payload: bytes, fds: int, flags: int) -> bytes:
    """One message of a conversation; at most 15 descriptors, and the lower four flags."""
    return _MESSAGE.pack(request, flags << 4 | fds, len(payload)) + payload


def decode_messages(data: bytes) -> Iterator[Message]:
    """All messages of a conversation; the last one may be cut short."""
    at = 0
    while len(data) - at >= _MESSAGE.size:
        request, how, length = _MESSAGE.unpack_from(data, at)
        at += _MESSAGE.size
        yield request, data[at : at + length], how & 15, how >> 4
        at += length
