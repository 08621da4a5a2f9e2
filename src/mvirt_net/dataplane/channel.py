"""The frontend's socket: whole messages with their file descriptors in, replies out.

A unix stream socket may be cut anywhere, so a message is put together from as many reads as it
takes. Its file descriptors belong to the first byte of its header (vhost-user, "Message
Specification"). That byte is therefore read alone: the kernel joins what waits in the socket, and a
longer read could return descriptors that were sent with a later byte.

Nearly always a whole message is there, and there is room for the reply. So the socket is one of the
standard library, tried at once: three reads cost less than one turn of trio's, and hundreds of VMs
may boot at the same time. trio only waits.
"""

from __future__ import annotations

import array
import socket

import attrs
import trio

from ..errors import ConnectionBroken
from ..vhost_user.messages import HEADER_SIZE, Header
from .fds import close_fds

MESSAGE_TIME_LIMIT = 5.0
"""Seconds from a message's first byte to its last."""
REPLY_TIME_LIMIT = 5.0
"""Seconds that a frontend may leave a reply unread when its socket is full."""
MAX_FDS = 16
"""Descriptors taken with one message. The most that any message needs is 8 (SET_MEM_TABLE)."""

_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


@attrs.frozen
class Message:
    """One request. Whoever has it closes what is left in `fds`."""

    header: Header
    payload: bytes
    fds: list[int]


@attrs.define(eq=False)
class _Incoming:
    """A message of which nothing, some or all has been read, and the descriptors so far."""

    fds: list[int] = attrs.field(factory=list)
    _data: bytes = b""
    _header: Header | None = None

    @property
    def begun(self) -> bool:
        """Whether its first byte has been read."""
        return self._data != b""

    @property
    def message(self) -> Message:
        """It, when all of it has been read."""
        assert self._header is not None
        return Message(self._header, self._data[HEADER_SIZE:], self.fds)

    def begin(self, sock: socket.socket) -> bool:
        """Read its first byte; False: the connection has ended. Raises OSError."""
        self._data, self.fds = _receive_some(sock, 1)
        return self.begun

    def go_on(self, sock: socket.socket) -> None:
        """Read the rest. After an exception that is no end, what has come counts.

        Raises:
            BlockingIOError: there is no more yet.
            ConnectionBroken: its header is malformed, descriptors come late, or the end does.
            OSError: as recvmsg(2).
        """
        if self._header is None:
            self._read_up_to(sock, HEADER_SIZE)
            self._header = Header.parse(self._data)
        self._read_up_to(sock, HEADER_SIZE + self._header.size)

    def _read_up_to(self, sock: socket.socket, size: int) -> None:
        while len(self._data) < size:
            more, late_fds = _receive_some(sock, size - len(self._data))
            if late_fds:
                close_fds(late_fds)
                raise ConnectionBroken("file descriptors came after the first byte of a message")
            if not more:
                raise ConnectionBroken("the connection ended inside a message")
            self._data += more


class MessageChannel:
    """Reads requests from a connected socket and writes replies to it.

    Args:
        sock: a connected unix stream socket that does not block; it stays the caller's.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def receive(self) -> Message | None:
        """Wait for a message, for ever, and for its end within `MESSAGE_TIME_LIMIT`. A checkpoint.

        Returns:
            The message, its descriptors now the caller's, or None when the frontend has closed the
            connection between two messages.

        Raises:
            ConnectionBroken: the message ends too early or too late, its header is malformed, or
                descriptors came in a wrong place or number. All that came have been closed.
        """
        # Others have a turn even if a frontend always has another message ready.
        await trio.lowlevel.checkpoint()
        incoming = _Incoming()
        try:
            while (begun := self._begin(incoming)) is None:
                await trio.lowlevel.wait_readable(self._sock)
            if not begun:
                return None
            await self._go_on(incoming)
        except BaseException:
            close_fds(incoming.fds)
            raise
        return incoming.message

    async def send(self, reply: bytes) -> None:
        """Write a reply. A checkpoint only if there is no room for it.

        Raises:
            ConnectionBroken: the frontend is gone, or did not read for `REPLY_TIME_LIMIT`.
        """
        try:
            unsent = self._send_some(memoryview(reply))
            if unsent:
                with trio.fail_after(REPLY_TIME_LIMIT):
                    while unsent:
                        await trio.lowlevel.wait_writable(self._sock)
                        unsent = self._send_some(unsent)
        except trio.TooSlowError:
            raise ConnectionBroken("the frontend does not read its replies") from None
        except OSError as error:
            raise ConnectionBroken(f"cannot reply: {error.strerror}") from error

    def _send_some(self, data: memoryview) -> memoryview:
        """Write as much as there is room for; returns the rest. Raises OSError."""
        try:
            return data[self._sock.send(data) :]
        except BlockingIOError:
            return data

    def _begin(self, incoming: _Incoming) -> bool | None:
        """Read the first byte of a message; None: it has not come yet, False: it never will."""
        try:
            return incoming.begin(self._sock)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # It went without reading the last reply, which was its right.
            return False

    async def _go_on(self, incoming: _Incoming) -> None:
        """Wait for the rest of a message."""
        try:
            if not self._is_whole(incoming):
                with trio.fail_after(MESSAGE_TIME_LIMIT):
                    while True:
                        await trio.lowlevel.wait_readable(self._sock)
                        if self._is_whole(incoming):
                            break
        except trio.TooSlowError:
            raise ConnectionBroken("a message took too long to come") from None
        except OSError as error:
            raise ConnectionBroken(f"cannot read a message: {error.strerror}") from error

    def _is_whole(self, incoming: _Incoming) -> bool:
        """Read on; whether that was all. Raises as `_Incoming.go_on`."""
        try:
            incoming.go_on(self._sock)
        except BlockingIOError:
            return False
        return True


def _receive_some(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Up to `size` bytes and the descriptors that came with them, close-on-exec from birth."""
    data, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary) if ancillary else []
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        raise ConnectionBroken("more file descriptors in one message than can be taken")
    return data, fds


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """All the file descriptors among the control messages; other kinds are ignored."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
