"""The vhost-user codec: headers and payloads, bytes in and out.

A message (vhost-user, "Message Specification") is a 12-byte header and a payload; all numbers are
in the byte order of the machine. Descriptors travel beside the bytes and are no business of this
module.

A payload class knows which sizes it can have (`SIZE`) and parses exactly those. A header that
makes no sense is the end of the conversation, because the beginning of the next message can no
longer be found: `ConnectionBroken`. A payload that makes no sense is one bad request:
`RequestRefused`. Nothing else leaves these functions, whatever the bytes.
"""

from __future__ import annotations

import abc
import enum
import struct
from typing import ClassVar, Self

import attrs

from ..errors import ConnectionBroken, RequestRefused
from ..model import MemoryRegion, VringAddr
from .config_space import CONFIG_SPACE_SIZE

MAX_PAYLOAD = 4096
"""Longest payload that is read at all, in bytes. What is understood is shorter; the rest of the
space lets a frontend hear why its message is refused."""

MAX_TABLE_REGIONS = 8
"""Regions of one SET_MEM_TABLE (vhost-user, "Multiple Memory regions description")."""

VERSION = 0x1
REPLY = 0x4
NEED_REPLY = 0x8
"""The `flags` of a header. Plain numbers, for ``~`` of an IntFlag forgets bits it does not know."""

_HEADER = struct.Struct("=III")
HEADER_SIZE = _HEADER.size

_U64 = struct.Struct("=Q")
_VRING_STATE = struct.Struct("=II")
_VRING_ADDR = struct.Struct("=IIQQQQ")
_REGION = struct.Struct("=QQQQ")
_TABLE_HEAD = struct.Struct("=II")
_SINGLE_REGION_PADDING = 8
_CONFIG_HEAD = struct.Struct("=III")


class Request(enum.IntEnum):
    """Message ids of frontend requests (vhost-user, "Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


def request_name(request: int) -> str:
    """``SET_OWNER``, or ``request 45`` for an id that the specification does not have."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


@attrs.frozen
class Header:
    """What precedes the payload. `size` is the payload's, in bytes."""

    request: int
    flags: int
    size: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From exactly `HEADER_SIZE` bytes.

        Raises:
            ConnectionBroken: wrong version, a flag that no request has, or a payload longer than
                `MAX_PAYLOAD`. The payload must not be read then.
        """
        request, flags, size = _HEADER.unpack(data)
        if flags & ~NEED_REPLY != VERSION:
            raise ConnectionBroken(f"{request_name(request)} with flags {flags:#x}")
        if size > MAX_PAYLOAD:
            raise ConnectionBroken(f"{request_name(request)} with a payload of {size} bytes")
        return cls(request, flags, size)

    @property
    def need_reply(self) -> bool:
        """Whether an acknowledgement is asked for; it counts only once REPLY_ACK is negotiated."""
        return bool(self.flags & NEED_REPLY)


def reply(request: int, payload: bytes) -> bytes:
    """The whole reply to `request`. Its flags are compared as a whole by QEMU: no NEED_REPLY."""
    return _HEADER.pack(request, VERSION | REPLY, len(payload)) + payload


class Payload(abc.ABC):
    """What follows a header; a subclass for each form of the specification."""

    SIZE: ClassVar[range]
    """The sizes that a payload of this form can have, in bytes."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises RequestRefused for the wrong size or fields that contradict each other."""
        if len(data) not in cls.SIZE:
            raise RequestRefused(f"payload of {len(data)} bytes")
        return cls._parse(data)

    @classmethod
    @abc.abstractmethod
    def _parse(cls, data: bytes) -> Self:
        """From data of a size that `SIZE` has."""


def _exactly(size: int) -> range:
    return range(size, size + 1)


@attrs.frozen
class Empty(Payload):
    """No payload."""

    SIZE = _exactly(0)

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        return cls()


@attrs.frozen
class Opaque(Payload):
    """Anything: the payload of a message that is refused whatever it says."""

    SIZE = range(MAX_PAYLOAD + 1)

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        return cls()


@attrs.frozen
class U64(Payload):
    """A single 64-bit integer."""

    SIZE = _exactly(_U64.size)

    value: int

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        return cls(*_U64.unpack(data))

    def pack(self) -> bytes:
        return _U64.pack(self.value)


@attrs.frozen
class VringState(Payload):
    """A vring and a number, whose meaning is the message's."""

    SIZE = _exactly(_VRING_STATE.size)

    index: int
    num: int

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        return cls(*_VRING_STATE.unpack(data))

    def pack(self) -> bytes:
        return _VRING_STATE.pack(self.index, self.num)


@attrs.frozen
class VringAddress(Payload):
    """A vring address description, without the address of the log."""

    SIZE = _exactly(_VRING_ADDR.size)

    index: int
    flags: int
    addr: VringAddr

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        index, flags, desc, used, avail, _log = _VRING_ADDR.unpack(data)
        return cls(index, flags, VringAddr(desc=desc, used=used, avail=avail))


@attrs.frozen
class VringFile(Payload):
    """The payload of SET_VRING_KICK, _CALL and _ERR: bits 0-7 a vring, bit 8 "no descriptor"."""

    SIZE = _exactly(_U64.size)
    INDEX_MASK: ClassVar[int] = 0xFF
    NOFD: ClassVar[int] = 0x100

    index: int
    no_fd: bool

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        (value,) = _U64.unpack(data)
        if value & ~(cls.INDEX_MASK | cls.NOFD):
            raise RequestRefused(f"vring {value:#x}")
        return cls(value & cls.INDEX_MASK, bool(value & cls.NOFD))


@attrs.frozen
class MemoryTable(Payload):
    """Multiple memory regions description. Only the regions that there are go over the wire."""

    SIZE = range(
        _TABLE_HEAD.size + _REGION.size,
        _TABLE_HEAD.size + MAX_TABLE_REGIONS * _REGION.size + 1,
        _REGION.size,
    )

    regions: tuple[MemoryRegion, ...]

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        count, _padding = _TABLE_HEAD.unpack_from(data)
        regions = data[_TABLE_HEAD.size :]
        if count * _REGION.size != len(regions):
            raise RequestRefused(f"{count} regions in a payload of {len(data)} bytes")
        return cls(tuple(MemoryRegion(*fields) for fields in _REGION.iter_unpack(regions)))


@attrs.frozen
class SingleRegion(Payload):
    """Single memory region description: padding and a region."""

    SIZE = _exactly(_SINGLE_REGION_PADDING + _REGION.size)

    region: MemoryRegion

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        return cls(MemoryRegion(*_REGION.unpack_from(data, _SINGLE_REGION_PADDING)))


@attrs.frozen
class ConfigAccess(Payload):
    """Virtio device config space: where, and as many bytes (in a GET_CONFIG request, room)."""

    SIZE = range(_CONFIG_HEAD.size + 1, _CONFIG_HEAD.size + CONFIG_SPACE_SIZE + 1)
    FLAGS: ClassVar[int] = 0x3
    """Bit 0: writable fields; bit 1: live migration. They make no difference to reading."""

    offset: int
    flags: int
    data: bytes

    @classmethod
    def _parse(cls, data: bytes) -> Self:
        offset, size, flags = _CONFIG_HEAD.unpack_from(data)
        content = data[_CONFIG_HEAD.size :]
        if size != len(content):
            raise RequestRefused(f"{size} bytes of config space in a payload of {len(data)} bytes")
        if flags & ~cls.FLAGS:
            raise RequestRefused(f"config space access with flags {flags:#x}")
        return cls(offset, flags, content)

    def pack(self) -> bytes:
        return _CONFIG_HEAD.pack(self.offset, len(self.data), self.flags) + self.data
