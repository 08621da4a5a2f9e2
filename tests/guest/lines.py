"""Conversations by lines of text over a local stream socket."""

from __future__ import annotations

import socket

import trio

_CHUNK = 65536


class ConversationEnded(Exception):
    """The other side has closed the socket."""


class LineStream:
    """One end of a socket pair; the other end's descriptor goes to a child process."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()

    @classmethod
    def pair(cls) -> tuple[LineStream, socket.socket]:
        """Our end, and the child's end, which the caller closes once the child has it."""
        ours, childs = socket.socketpair()
        ours.setblocking(False)
        return cls(trio.SocketStream(trio.socket.from_stdlib_socket(ours))), childs

    async def send(self, line: str) -> None:
        """Raises ConversationEnded."""
        try:
            await self._stream.send_all(line.encode() + b"\n")
        except trio.BrokenResourceError as error:
            raise ConversationEnded from error

    async def receive(self) -> str:
        """The next line without its end. A cancelled call loses nothing.

        Raises:
            ConversationEnded: no further whole line will come.
        """
        while (end := self._received.find(b"\n")) < 0:
            try:
                chunk = await self._stream.receive_some(_CHUNK)
            except trio.BrokenResourceError as error:
                raise ConversationEnded from error
            if not chunk:
                raise ConversationEnded
            self._received += chunk
        line = self._received[:end].decode(errors="replace")
        del self._received[: end + 1]
        return line

    def close(self) -> None:
        """Close our end; nobody may be waiting in it."""
        self._stream.socket.close()
