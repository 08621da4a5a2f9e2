"""DHCPv6 messages as bytes (RFC 8415, 7.3, 8 and 21): what a client says, and how to answer.

A message is a type, a transaction id and options; options hold options. Reading goes two levels
deep, because there is nothing below that a server has to know, and leaves with `Malformed` or with
values.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network
from typing import Self

import attrs

from .packet import Cursor, Malformed

MAX_DUID = 130
"""Bytes of a DUID: a type of two and at most 128 more (RFC 8415, 11.1)."""
MAX_REQUEST = 1472
"""Bytes of a message: what an Ethernet frame carries, and more than any client has to say."""
MAX_OPTIONS = 64
"""Options of one message or of one identity association; no client has half as many."""
MAX_IAS = 8
"""Identity associations of one message; no client has as many."""
MAX_LEASES = 16
"""Addresses or prefixes of one identity association."""


_HEAD_SIZE = 4
"""Type and transaction id."""
_IA_HEAD_SIZE = 12
"""IAID, T1 and T2."""
_OPTION = struct.Struct("!HH")


class MessageType(enum.IntEnum):
    """RFC 8415, 7.3."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    RECONFIGURE = 10
    INFORMATION_REQUEST = 11
    RELAY_FORWARD = 12
    RELAY_REPLY = 13


class Option(enum.IntEnum):
    """The options read or sent here (RFC 8415, 21; RFC 3646; RFC 4075; RFC 5908)."""

    CLIENT_ID = 1
    SERVER_ID = 2
    IA_NA = 3
    IA_ADDRESS = 5
    OPTION_REQUEST = 6
    PREFERENCE = 7
    STATUS_CODE = 13
    RAPID_COMMIT = 14
    DNS_SERVERS = 23
    IA_PD = 25
    IA_PREFIX = 26
    SNTP_SERVERS = 31
    INFORMATION_REFRESH_TIME = 32
    NTP_SERVER = 56


class Status(enum.IntEnum):
    """RFC 8415, 21.13."""

    SUCCESS = 0
    NO_ADDRESSES_AVAILABLE = 2
    NO_BINDING = 3
    NOT_ON_LINK = 4
    NO_PREFIX_AVAILABLE = 6


@attrs.frozen
class IdentityAssociation:
    """An IA_NA or IA_PD of a client: its id, and the addresses or prefixes that it names.

    Those that are hints are left out: an address :: or a prefix ::/n asks for any.
    """

    kind: Option
    iaid: bytes
    addresses: tuple[IPv6Address, ...] = ()
    prefixes: tuple[IPv6Network, ...] = ()


@attrs.frozen(kw_only=True)
class ClientMessage:
    """What a client's message says, as far as it concerns a server. None: not said."""

    kind: int
    transaction: bytes
    client_id: bytes | None
    server_id: bytes | None
    associations: tuple[IdentityAssociation, ...]
    """Those of addresses and of prefixes, in the order in which they came."""
    rapid_commit: bool
    requested: frozenset[int]
    """The option codes that the client asks for."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises Malformed: too long, or an option goes past the end or has not its form."""
        if not _HEAD_SIZE <= len(data) <= MAX_REQUEST:
            raise Malformed(f"a message of {len(data)} bytes")
        options = read_options(data, _HEAD_SIZE)
        return cls(
            kind=data[0],
            transaction=data[1:_HEAD_SIZE],
            client_id=_duid(options, Option.CLIENT_ID),
            server_id=_duid(options, Option.SERVER_ID),
            associations=tuple(_associations(options)),
            rapid_commit=any(code == Option.RAPID_COMMIT for code, _ in options),
            requested=_requested(options),
        )


def read_options(data: bytes, start: int) -> list[tuple[int, bytes]]:
    """All options from `start` up to the end, in their order. Raises Malformed."""
    options: list[tuple[int, bytes]] = []
    end = len(data)
    while start < end:
        if end - start < _OPTION.size or len(options) == MAX_OPTIONS:
            raise Malformed("half an option, or too many of them")
        code, length = _OPTION.unpack_from(data, start)
        start += _OPTION.size
        if length > end - start:
            raise Malformed("an option past the end")
        options.append((code, data[start : start + length]))
        start += length
    return options


def _duid(options: Iterable[tuple[int, bytes]], wanted: Option) -> bytes | None:
    found = [value for code, value in options if code == wanted]
    if not found:
        return None
    # A type alone identifies nobody.
    if len(found) > 1 or not 2 < len(found[0]) <= MAX_DUID:
        raise Malformed("more than one DUID, or one of a wrong length")
    return found[0]


def _requested(options: Iterable[tuple[int, bytes]]) -> frozenset[int]:
    codes: set[int] = set()
    for code, value in options:
        if code == Option.OPTION_REQUEST:
            if len(value) % 2:
                raise Malformed("half an option code")
            codes.update(struct.unpack(f"!{len(value) // 2}H", value))
    return frozenset(codes)


def _associations(options: Iterable[tuple[int, bytes]]) -> list[IdentityAssociation]:
    found = [(code, value) for code, value in options if code in (Option.IA_NA, Option.IA_PD)]
    if len(found) > MAX_IAS:
        raise Malformed(f"more than {MAX_IAS} identity associations")
    return [_association(Option(code), value) for code, value in found]


def _association(kind: Option, data: bytes) -> IdentityAssociation:
    """IAID, T1, T2, then options (RFC 8415, 21.4 and 21.21)."""
    if len(data) < _IA_HEAD_SIZE:
        raise Malformed("half an identity association")
    iaid = data[:4]
    wanted = Option.IA_ADDRESS if kind is Option.IA_NA else Option.IA_PREFIX
    values = [Cursor(value) for code, value in read_options(data, _IA_HEAD_SIZE) if code == wanted]
    if len(values) > MAX_LEASES:
        raise Malformed(f"more than {MAX_LEASES} leases in an identity association")
    if kind is Option.IA_NA:
        addresses = map(_address, values)
        return IdentityAssociation(kind, iaid, addresses=tuple(filter(_is_named, addresses)))
    prefixes = map(_prefix, values)
    return IdentityAssociation(
        kind, iaid, prefixes=tuple(net for net in prefixes if _is_named(net.network_address))
    )


def _is_named(address: IPv6Address) -> bool:
    return not address.is_unspecified


def _address(cursor: Cursor) -> IPv6Address:
    """RFC 8415, 21.6; the lifetimes are hints."""
    address = IPv6Address(cursor.get_bytes(16))
    cursor.get_bytes(8)
    return address


def _prefix(cursor: Cursor) -> IPv6Network:
    """RFC 8415, 21.22."""
    cursor.get_bytes(8)
    length, prefix = cursor.get_uint8(), cursor.get_bytes(16)
    if length > 128:
        raise Malformed(f"a prefix of {length} bits")
    return IPv6Network((prefix, length), strict=False)


# Writing.


def option(code: Option, value: bytes) -> bytes:
    """RFC 8415, 21.1."""
    return _OPTION.pack(code, len(value)) + value


def status(code: Status, text: str) -> bytes:
    """A status code option (RFC 8415, 21.13)."""
    return option(Option.STATUS_CODE, struct.pack("!H", code) + text.encode())


def ia_address(address: IPv6Address, preferred: int, valid: int) -> bytes:
    """RFC 8415, 21.6; lifetimes in seconds."""
    return option(Option.IA_ADDRESS, address.packed + struct.pack("!II", preferred, valid))


def ia_prefix(prefix: IPv6Network, preferred: int, valid: int) -> bytes:
    """RFC 8415, 21.22; lifetimes in seconds."""
    value = struct.pack("!IIB", preferred, valid, prefix.prefixlen) + prefix.network_address.packed
    return option(Option.IA_PREFIX, value)


def association(kind: Option, iaid: bytes, t1: int, t2: int, options: Iterable[bytes]) -> bytes:
    """An IA_NA or IA_PD (RFC 8415, 21.4 and 21.21); T1 and T2 in seconds."""
    return option(kind, iaid + struct.pack("!II", t1, t2) + b"".join(options))
