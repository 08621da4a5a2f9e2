"""The frontend's end of a vhost-user socket, from the specification (QEMU, vhost-user.rst).

`Connection` has one coroutine for each request that a frontend needs, and below them `request`
and `send_raw` for everything that a frontend should not do. None of them takes over a descriptor:
what goes into a message is duplicated by the kernel, and the caller's stays the caller's.
"""

from __future__ import annotations

import array
import contextlib
import enum
import os
import socket
import struct
from collections.abc import Sequence

import attrs
import trio

from .memory import RegionInfo

REPLY_TIMEOUT = 5.0
"""Seconds that a backend may take for a reply."""

VERSION = 0x1
REPLY_FLAG = 0x4
NEED_REPLY_FLAG = 0x8
VRING_NOFD = 0x100
"""Bit 8 of the payload of SET_VRING_KICK, CALL and ERR: no descriptor is attached."""

HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDR = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")


class Request(enum.IntEnum):
    """Requests of the frontend."""

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
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


OWN_REPLY = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_VRING_BASE,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_CONFIG,
        Request.GET_MAX_MEM_SLOTS,
    }
)
"""Requests that are answered with a value, and so with no acknowledgement besides."""


class Feature(enum.IntFlag):
    """Virtio feature bits (virtio 1.2, 5.1.3 and 6) and vhost-user's own bit 30."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    MQ = 1 << 22
    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


class ProtocolFeature(enum.IntFlag):
    """vhost-user protocol feature bits."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15


class BackendRefusedError(Exception):
    """The backend answered that it cannot do what the request asks for."""

    def __init__(self, request: int, code: int) -> None:
        super().__init__(f"request {request} was answered with {code}")
        self.request = request
        self.code = code


class BackendHungUpError(Exception):
    """The backend has closed the connection."""


@attrs.frozen
class Message:
    """A message as it came from the backend."""

    request: int
    flags: int
    payload: bytes


def encode(request: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    """A message with a right header."""
    return HEADER.pack(request, flags, len(payload)) + payload


def encode_u64(value: int) -> bytes:
    """The payload of a message that carries one number."""
    return _U64.pack(value & 0xFFFF_FFFF_FFFF_FFFF)


def encode_state(index: int, num: int) -> bytes:
    """The payload "vring state"."""
    return _STATE.pack(index, num)


def encode_vring_addr(
    index: int, desc: int, used: int, avail: int, *, flags: int = 0, log: int = 0
) -> bytes:
    """The payload "vring address"; all are user addresses but `log`."""
    return _ADDR.pack(index, flags, desc, used, avail, log)


def encode_region(region: RegionInfo) -> bytes:
    """The payload "memory region description"."""
    return _REGION.pack(region.guest_addr, region.size, region.user_addr, region.mmap_offset)


def encode_mem_table(regions: Sequence[RegionInfo]) -> bytes:
    """The payload "multiple memory regions description"."""
    return _STATE.pack(len(regions), 0) + b"".join(map(encode_region, regions))


def encode_single_region(region: RegionInfo) -> bytes:
    """The payload "single memory region description"."""
    return _U64.pack(0) + encode_region(region)


class Connection:
    """One connection to a backend. Closing it is the caller's.

    Args:
        stream: connected; owned by this object.
    """

    def __init__(self, stream: trio.socket.SocketType) -> None:
        self._socket = stream
        self._lock = trio.Lock()
        self.need_reply = False
        """REPLY_ACK was negotiated: ask for an acknowledgement of every request."""

    @classmethod
    async def open(cls, path: str | os.PathLike[str]) -> Connection:
        """Connect to the socket at `path`."""
        stream = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await stream.connect(os.fspath(path))
        except BaseException:
            stream.close()
            raise
        return cls(stream)

    def close(self) -> None:
        """Hang up. Idempotent, not a checkpoint."""
        self._socket.close()

    # Anything at all

    async def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes; descriptors go along with the first of them.

        Raises:
            BackendHungUpError: there is nobody to take them.
        """
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = await self._socket.sendmsg([data], ancillary)
            while sent < len(data):
                sent += await self._socket.send(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise BackendHungUpError("while sending") from error

    def send_nowait(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """As `send_raw`, without a turn of the event loop; all must fit into the buffer."""
        with socket.socket(fileno=os.dup(self._socket.fileno())) as sock:
            assert socket.send_fds(sock, [data], fds) == len(data)

    async def receive(self, *, timeout: float = REPLY_TIMEOUT) -> Message:
        """The next message of the backend.

        Raises:
            BackendHungUpError: there is none, and never will be.
            trio.TooSlowError: nothing came in `timeout` seconds.
        """
        with trio.fail_after(timeout):
            request, flags, size = HEADER.unpack(await self._receive_exactly(HEADER.size))
            return Message(request, flags, await self._receive_exactly(size))

    async def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = await self._socket.recv(size - len(data))
            except ConnectionResetError as error:
                raise BackendHungUpError("while receiving") from error
            if not part:
                raise BackendHungUpError(f"after {len(data)} bytes of {size}")
            data += part
        return data

    async def wait_hung_up(self, *, timeout: float = REPLY_TIMEOUT) -> None:
        """Wait until the backend closes the connection, whatever it says before.

        Raises:
            trio.TooSlowError: it does not in `timeout` seconds.
        """
        with trio.fail_after(timeout), contextlib.suppress(ConnectionResetError):
            while await self._socket.recv(4096):
                pass

    # Requests in general

    async def request(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int | None = None,
    ) -> Message | None:
        """Send a request and take what answers it.

        Args:
            flags: those of the header; by default the version, and NEED_REPLY once REPLY_ACK was
                negotiated.

        Returns:
            The reply; None where there is none.

        Raises:
            BackendHungUpError, trio.TooSlowError: there should have been one.
        """
        if flags is None:
            flags = VERSION | (NEED_REPLY_FLAG if self.need_reply else 0)
        async with self._lock:
            await self.send_raw(encode(request, payload, flags), fds)
            if request not in OWN_REPLY and not flags & NEED_REPLY_FLAG:
                return None
            reply = await self.receive()
        if reply.request != request or reply.flags != VERSION | REPLY_FLAG:
            raise AssertionError(f"{reply} does not answer request {request}")
        return reply

    async def command(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no reply of its own, and look at the acknowledgement if any.

        Raises:
            BackendRefusedError: it says that the request failed.
        """
        reply = await self.request(request, payload, fds)
        if reply is not None and (code := _u64(reply)) != 0:
            raise BackendRefusedError(request, code)

    async def get_u64(self, request: int) -> int:
        """Send a request without payload that is answered with one number."""
        reply = await self.request(request)
        assert reply is not None
        return _u64(reply)

    # One coroutine for each request

    async def set_owner(self) -> None:
        """SET_OWNER."""
        await self.command(Request.SET_OWNER)

    async def get_features(self) -> int:
        """GET_FEATURES: the virtio feature bits on offer."""
        return await self.get_u64(Request.GET_FEATURES)

    async def set_features(self, features: int) -> None:
        """SET_FEATURES."""
        await self.command(Request.SET_FEATURES, encode_u64(features))

    async def get_protocol_features(self) -> int:
        """GET_PROTOCOL_FEATURES: the protocol feature bits on offer."""
        return await self.get_u64(Request.GET_PROTOCOL_FEATURES)

    async def set_protocol_features(self, features: int) -> None:
        """SET_PROTOCOL_FEATURES; from here on acknowledgements are asked for if they can be."""
        await self.command(Request.SET_PROTOCOL_FEATURES, encode_u64(features))
        self.need_reply = bool(features & ProtocolFeature.REPLY_ACK)

    async def get_queue_num(self) -> int:
        """GET_QUEUE_NUM."""
        return await self.get_u64(Request.GET_QUEUE_NUM)

    async def get_max_mem_slots(self) -> int:
        """GET_MAX_MEM_SLOTS."""
        return await self.get_u64(Request.GET_MAX_MEM_SLOTS)

    async def set_mem_table(self, regions: Sequence[RegionInfo]) -> None:
        """SET_MEM_TABLE."""
        fds = [region.fd for region in regions]
        await self.command(Request.SET_MEM_TABLE, encode_mem_table(regions), fds)

    async def add_mem_region(self, region: RegionInfo) -> None:
        """ADD_MEM_REG."""
        await self.command(Request.ADD_MEM_REG, encode_single_region(region), [region.fd])

    async def remove_mem_region(self, region: RegionInfo) -> None:
        """REM_MEM_REG."""
        await self.command(Request.REM_MEM_REG, encode_single_region(region))

    async def set_vring_num(self, index: int, num: int) -> None:
        """SET_VRING_NUM."""
        await self.command(Request.SET_VRING_NUM, encode_state(index, num))

    async def set_vring_addr(self, index: int, desc: int, used: int, avail: int) -> None:
        """SET_VRING_ADDR, with user addresses."""
        await self.command(Request.SET_VRING_ADDR, encode_vring_addr(index, desc, used, avail))

    async def set_vring_base(self, index: int, base: int) -> None:
        """SET_VRING_BASE."""
        await self.command(Request.SET_VRING_BASE, encode_state(index, base))

    async def get_vring_base(self, index: int) -> int:
        """GET_VRING_BASE: stops the ring and says which avail index comes next."""
        reply = await self.request(Request.GET_VRING_BASE, encode_state(index, 0))
        assert reply is not None
        found, base = _STATE.unpack(reply.payload)
        assert found == index
        return int(base)

    async def set_vring_kick(self, index: int, fd: int | None) -> None:
        """SET_VRING_KICK; None: the backend has to poll the ring."""
        await self._set_vring_fd(Request.SET_VRING_KICK, index, fd)

    async def set_vring_call(self, index: int, fd: int | None) -> None:
        """SET_VRING_CALL; None: this side polls the ring."""
        await self._set_vring_fd(Request.SET_VRING_CALL, index, fd)

    async def set_vring_err(self, index: int, fd: int | None) -> None:
        """SET_VRING_ERR."""
        await self._set_vring_fd(Request.SET_VRING_ERR, index, fd)

    async def _set_vring_fd(self, request: Request, index: int, fd: int | None) -> None:
        payload = index | (VRING_NOFD if fd is None else 0)
        await self.command(request, encode_u64(payload), [] if fd is None else [fd])

    async def set_vring_enable(self, index: int, enabled: bool) -> None:
        """SET_VRING_ENABLE."""
        await self.command(Request.SET_VRING_ENABLE, encode_state(index, int(enabled)))

    async def set_mtu(self, mtu: int) -> None:
        """NET_SET_MTU."""
        await self.command(Request.NET_SET_MTU, encode_u64(mtu))

    async def reset_device(self) -> None:
        """RESET_DEVICE."""
        await self.command(Request.RESET_DEVICE)

    async def get_config(self, offset: int, size: int, *, flags: int = 0) -> bytes:
        """GET_CONFIG: `size` bytes of the configuration space.

        Raises:
            BackendRefusedError: the reply is the empty one that stands for an error.
        """
        payload = _CONFIG.pack(offset, size, flags) + bytes(size)
        reply = await self.request(Request.GET_CONFIG, payload)
        assert reply is not None
        if not reply.payload:
            raise BackendRefusedError(Request.GET_CONFIG, 0)
        assert _CONFIG.unpack_from(reply.payload) == (offset, size, flags)
        assert len(reply.payload) == len(payload)
        return reply.payload[_CONFIG.size :]


def _u64(reply: Message) -> int:
    return int(_U64.unpack(reply.payload)[0])
