"""The frontend's socket: whole messages with their file descriptors in, replies out.

A unix stream socket may be cut anywhere, so a message is put together from as many reads as it
takes. Its file descriptors belong to the first byte of its header (vhost-user, "Message
Specification"). That byte is therefore read alone: the kernel joins what waits in the socket, and a
longer read could return descriptors that were sent with a later byte.
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


class MessageChannel:
    """Reads requests from a connected socket and writes replies to it.

    Args:
        sock: a connected unix stream socket; it stays the caller's.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock

    async def receive(self) -> Message | None:
        """Wait for a message, for ever, and for its end within `MESSAGE_TIME_LIMIT`.

        Returns:
            The message, its descriptors now the caller's, or None when the frontend has closed the
            connection between two messages.

        Raises:
            ConnectionBroken: the message ends too early or too late, its header is malformed, or
                descriptors came in a wrong place or number. All that came have been closed.
        """
        fds: list[int] = []
        try:
            first = await self._first_byte(fds)
            return await self._rest_of_message(first, fds) if first else None
        except BaseException:
            close_fds(fds)
            raise

    async def send(self, reply: bytes) -> None:
        """Write a reply.

        Raises:
            ConnectionBroken: the frontend is gone, or did not read for `REPLY_TIME_LIMIT`.
        """
        unsent = memoryview(reply)
        try:
            with trio.fail_after(REPLY_TIME_LIMIT):
                while unsent:
                    unsent = unsent[await self._sock.send(unsent) :]
        except trio.TooSlowError:
            raise ConnectionBroken("the frontend does not read its replies") from None
        except OSError as error:
            raise ConnectionBroken(f"cannot reply: {error.strerror}") from error

    async def _first_byte(self, fds: list[int]) -> bytes:
        try:
            data, received = await self._receive_some(1)
        except ConnectionResetError:
            # It went without reading the last reply, which was its right.
            return b""
        fds += received
        return data

    async def _rest_of_message(self, first: bytes, fds: list[int]) -> Message:
        try:
            with trio.fail_after(MESSAGE_TIME_LIMIT):
                header = Header.parse(first + await self._exactly(HEADER_SIZE - len(first)))
                return Message(header, await self._exactly(header.size), fds)
        except trio.TooSlowError:
            raise ConnectionBroken("a message took too long to come") from None
        except OSError as error:
            raise ConnectionBroken(f"cannot read a message: {error.strerror}") from error

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more, late_fds = await self._receive_some(size - len(data))
            if late_fds:
                close_fds(late_fds)
                raise ConnectionBroken("file descriptors came after the first byte of a message")
            if not more:
                raise ConnectionBroken("the connection ended inside a message")
            data += more
        return data

    async def _receive_some(self, size: int) -> tuple[bytes, list[int]]:
        """Up to `size` bytes and the descriptors that came with them, close-on-exec from birth."""
        data, ancillary, flags, _ = await self._sock.recvmsg(
            size, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
        )
        fds = _descriptors(ancillary)
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
