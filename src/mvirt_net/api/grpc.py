"""The gRPC protocol over HTTP/2 (doc/PROTOCOL-HTTP2.md of the gRPC project), the server's side.

A method takes messages and gives messages; what is around them is here: paths, the five-byte prefix
of each message, compression, deadlines, status codes in trailers. A call ends in exactly one way: a
status. A client that resets its stream cancels the method, which needs to do nothing about it.
"""

from __future__ import annotations

import enum
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import attrs
import trio
from google.protobuf.message import DecodeError, Message

from ..log import get_logger
from .http2 import Headers, Stream, StreamLost
from .transport import Budget, ConnectionLost

MAX_MESSAGE = 4 << 20
"""Bytes of a request's message, compressed or not: what gRPC libraries allow by default."""
REQUEST_TIMEOUT = 30.0
"""Seconds in which a client must have sent a request that it has begun."""

_PREFIX = struct.Struct("!BI")
"""Whether the message is compressed, and its size."""
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_CONTENT_TYPE = b"application/grpc"
_ENCODINGS = b"identity,gzip"
_GZIP_WBITS = 16 + zlib.MAX_WBITS

_log = get_logger(__name__)


class Status(enum.IntEnum):
    """How a call ends; the numbers are the protocol's."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallError(Exception):
    """A call ends with another status than OK.

    Args:
        status: the code.
        message: for a person.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


Receive = Callable[[], Awaitable[Any]]
"""The next message of the client, decoded; None when there are no more."""
Send = Callable[[Message], Awaitable[None]]
"""Sends a message to the client, as fast as it takes them."""
UnaryFunction = Callable[[Any], Awaitable[Message]]
StreamFunction = Callable[[Receive, Send], Awaitable[None]]


@attrs.frozen
class Method:
    """What is called by a path: the type of its requests and the function that answers them."""

    request_type: type[Message]
    unary: UnaryFunction | None = None
    """One request, one response."""
    stream: StreamFunction | None = None
    """Any number of either."""


Methods = Mapping[str, Method]
"""By path: ``/package.Service/Method``."""


class GrpcHandler:
    """Calls the methods of services; `http2.Handler` of a connection.

    Args:
        methods: all of them.
        budget: of bytes of requests in memory.
    """

    def __init__(self, methods: Methods, budget: Budget) -> None:
        self._methods = methods
        self._budget = budget

    async def __call__(self, stream: Stream) -> None:
        """Answer one request."""
        if refusal := _refusal(stream):
            await stream.send_headers(refusal, end=True)
            return
        try:
            with _deadline(stream):
                await self._call(stream)
            end = CallError(Status.OK, "")
        except* CallError as group:
            end = _first(group)
        except* trio.TooSlowError:
            end = CallError(Status.DEADLINE_EXCEEDED, "deadline exceeded")
        except* (StreamLost, ConnectionLost) as group:
            raise _first(group) from None
        except* Exception as group:
            _log.error("call failed", path=_text(stream, b":path"), exc_info=group)
            end = CallError(Status.INTERNAL, "internal error, see the daemon's log")
        await _send_end(stream, end)

    async def _call(self, stream: Stream) -> None:
        path = _text(stream, b":path")
        method = self._methods.get(path)
        if method is None:
            raise CallError(Status.UNIMPLEMENTED, f"there is no method {path}")
        reader = MessageReader(stream, self._budget, _encoding(stream))
        try:
            if method.unary is not None:
                request = _decode(method.request_type, await _only(reader))
                await _send_message(stream, await method.unary(request))
            elif method.stream is not None:
                # Who is told nothing yet shall know that the call has begun.
                await stream.send_headers(_begin())
                await method.stream(
                    partial(_receive, reader, method.request_type), partial(_send_message, stream)
                )
        finally:
            reader.close()


class MessageReader:
    """Takes the bodies of messages out of a request.

    Args:
        stream: where they come from.
        budget: what is held here is taken from it.
        encoding: of messages that are marked as compressed.
    """

    def __init__(self, stream: Stream, budget: Budget, encoding: str) -> None:
        self._stream = stream
        self._budget = budget
        self._encoding = encoding
        self._buffer = bytearray()
        self._held = 0

    async def receive(self) -> bytes | None:
        """The next message, None at the end.

        The wait for its first byte has no end but the call's. Raises CallError.
        """
        if not self._buffer and not await self._more():
            return None
        with trio.move_on_after(REQUEST_TIMEOUT):
            compressed, size = _PREFIX.unpack(await self._take(_PREFIX.size))
            if size > MAX_MESSAGE:
                raise _too_large(size)
            return self._decompress(await self._take(size)) if compressed else await self._take(size)
        raise CallError(Status.DEADLINE_EXCEEDED, f"no complete request in {REQUEST_TIMEOUT:g} s")

    def close(self) -> None:
        """Forget what is held."""
        self._buffer.clear()
        self._budget.give(self._held)
        self._held = 0

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._more():
                raise CallError(Status.INTERNAL, "the request ends inside a message")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._budget.give(size)
        self._held -= size
        return data

    async def _more(self) -> bool:
        data = await self._stream.receive()
        if not self._budget.take(len(data)):
            raise CallError(Status.RESOURCE_EXHAUSTED, "too many large requests at a time")
        self._held += len(data)
        self._buffer += data
        return bool(data)

    def _decompress(self, data: bytes) -> bytes:
        if self._encoding == "identity":
            raise CallError(Status.INTERNAL, "a message is compressed, and nobody says how")
        inflater = zlib.decompressobj(wbits=_GZIP_WBITS)
        try:
            # One byte more tells a message that fits from one that does not.
            message = inflater.decompress(data, MAX_MESSAGE + 1)
        except zlib.error as error:
            raise CallError(Status.INTERNAL, f"a message is not gzip: {error}") from error
        if len(message) > MAX_MESSAGE:
            raise _too_large(len(message))
        if not inflater.eof:
            raise CallError(Status.INTERNAL, "a message ends inside its compressed data")
        return message


def _too_large(size: int) -> CallError:
    return CallError(Status.RESOURCE_EXHAUSTED, f"message of {size} bytes, more than {MAX_MESSAGE}")


async def _only(reader: MessageReader) -> bytes:
    message = await reader.receive()
    if message is None:
        raise CallError(Status.INTERNAL, "no request")
    with trio.move_on_after(REQUEST_TIMEOUT):
        if await reader.receive() is not None:
            raise CallError(Status.INTERNAL, "more than one request")
        return message
    raise CallError(Status.DEADLINE_EXCEEDED, f"no end of the request in {REQUEST_TIMEOUT:g} s")


async def _receive(reader: MessageReader, request_type: type[Message]) -> Message | None:
    message = await reader.receive()
    return None if message is None else _decode(request_type, message)


def _decode(request_type: type[Message], data: bytes) -> Message:
    request = request_type()
    try:
        request.ParseFromString(data)
    except DecodeError as error:
        raise CallError(Status.INTERNAL, "the request cannot be decoded") from error
    return request


def _text(stream: Stream, name: bytes) -> str:
    return stream.headers.get(name, b"").decode("latin-1")


def _refusal(stream: Stream) -> Headers | None:
    """What to answer to a request that is not of gRPC at all; HTTP's codes speak then."""
    if stream.headers.get(b":method") != b"POST":
        return [(b":status", b"405"), (b"allow", b"POST")]
    if not stream.headers.get(b"content-type", b"").startswith(_CONTENT_TYPE):
        return [(b":status", b"415"), (b"accept", _CONTENT_TYPE)]
    return None


def _encoding(stream: Stream) -> str:
    encoding = _text(stream, b"grpc-encoding") or "identity"
    if encoding not in ("identity", "gzip"):
        raise CallError(Status.UNIMPLEMENTED, f"no compression {encoding!r}, only gzip")
    return encoding


def _deadline(stream: Stream) -> Any:
    """A scope that ends with TooSlowError when the client does not wait any longer."""
    text = _text(stream, b"grpc-timeout")
    if not text:
        return trio.fail_at(float("inf"))
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        # Whoever says nonsense does not wait for an answer.
        return trio.fail_after(0)
    return trio.fail_after(int(match[1]) * _UNITS[match[2]])


def _begin() -> Headers:
    return [
        (b":status", b"200"),
        (b"content-type", _CONTENT_TYPE),
        (b"grpc-accept-encoding", _ENCODINGS),
    ]


async def _send_message(stream: Stream, message: Message) -> None:
    data = message.SerializeToString()
    if not stream.is_response_begun:
        await stream.send_headers(_begin())
    await stream.send_data(_PREFIX.pack(0, len(data)) + data)


async def _send_end(stream: Stream, end: CallError) -> None:
    """The status, in trailers or, when nothing was sent, in the only headers."""
    headers = [] if stream.is_response_begun else _begin()
    headers.append((b"grpc-status", b"%d" % end.status))
    if end.message:
        headers.append((b"grpc-message", _percent_encode(end.message)))
    await stream.send_headers(headers, end=True)


def _percent_encode(text: str) -> bytes:
    """UTF-8 with everything that does not print, and the percent sign, as %XX."""
    return b"".join(
        b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in text.encode("utf-8", "replace")
    )


def _first(error: BaseException) -> Any:
    """The first leaf of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
