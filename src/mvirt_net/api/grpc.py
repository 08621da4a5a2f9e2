"""The gRPC protocol over HTTP/2 (doc/PROTOCOL-HTTP2.md of the gRPC project), the server's side.

A method takes messages and gives messages; what is around them is here: paths, the five-byte prefix
of each message, compression, deadlines, status codes in trailers. A call ends in exactly one way: a
status. A client that resets its stream cancels the method, which needs to do nothing about it.

HTTP/2 is below ASGI, whose extension for trailers this needs. A call that fails before its first
message is answered with headers and trailers, the latter all the same.
"""

from __future__ import annotations

import enum
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import attrs
import trio
from google.protobuf.message import DecodeError, Message

from ..errors import leaves
from .client_log import get_client_logger
from .exchange import (
    AsgiReceive,
    AsgiSend,
    Budget,
    Exchange,
    Headers,
    Overloaded,
    Stalled,
    TooLarge,
)

MAX_MESSAGE = 256 << 10
"""Bytes of a request's message, compressed or not. The largest that a verb takes, a NIC with all
prefixes that it may have, has some 20 KiB; there may be fields that nobody knows, too."""
MAX_STATUS_MESSAGE = 1000
"""Characters."""
REQUEST_TIMEOUT = 30.0
"""Seconds in which a client must have sent a request that it has begun."""

_PREFIX = struct.Struct("!BI")
"""Whether the message is compressed, and its size."""
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_CONTENT_TYPE = b"application/grpc"
_CONTENT_TYPES = re.compile(rb"application/grpc(\+proto)?\s*(;.*)?", re.IGNORECASE)
"""Of requests; messages in other forms than protobuf's are not understood, nor is gRPC-Web."""
_ENCODINGS = b"identity,gzip"
_GZIP_WBITS = 16 + zlib.MAX_WBITS


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
ServerStreamFunction = Callable[[Any, Send], Awaitable[None]]
StreamFunction = Callable[[Receive, Send], Awaitable[None]]


@attrs.frozen
class Method:
    """What is called by a path: the type of its requests and the function that answers them."""

    request_type: type[Message]
    unary: UnaryFunction | None = None
    """One request, one response."""
    server_stream: ServerStreamFunction | None = None
    """One request, any number of responses."""
    stream: StreamFunction | None = None
    """Any number of either."""


Methods = Mapping[str, Method]
"""By path: ``/package.Service/Method``."""


@attrs.frozen
class GrpcApp:
    """The ASGI application: calls the methods of services."""

    methods: Methods
    budget: Budget
    _log: Any = attrs.field(factory=partial(get_client_logger, __name__), init=False)

    async def __call__(self, scope: Any, receive: AsgiReceive, send: AsgiSend) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            limit = MAX_MESSAGE + _PREFIX.size
            await Exchange(scope, send, self.budget, limit).run(receive, self._answer)

    async def _answer(self, exchange: Exchange) -> None:
        if refusal := _refusal(exchange):
            status, headers = refusal
            await exchange.drain()
            await exchange.begin(status, headers)
            await exchange.send(b"", more=False)
            return
        end = await self._outcome(exchange)
        await exchange.drain()
        await _send_end(exchange, end)

    async def _outcome(self, exchange: Exchange) -> CallError:
        """Call the method. Returns how that ended. Raises Stalled."""
        end = CallError(Status.OK, "")
        try:
            with _deadline(exchange):
                await self._call(exchange)
        except* CallError as group:
            end = _call_error(group)
        except* trio.TooSlowError:
            end = CallError(Status.DEADLINE_EXCEEDED, "deadline exceeded")
        except* TooLarge:
            end = _too_large()
        except* Overloaded:
            end = CallError(Status.RESOURCE_EXHAUSTED, "too much is asked for at a time")
        except* Stalled:
            raise
        except* Exception as group:
            self._log.error("call failed", path=exchange.scope["path"], exc_info=group)
            end = CallError(Status.INTERNAL, "internal error, see the daemon's log")
        return end

    async def _call(self, exchange: Exchange) -> None:
        path = exchange.scope["path"]
        method = self.methods.get(path)
        if method is None:
            raise CallError(Status.UNIMPLEMENTED, f"there is no method {path}")
        reader = MessageReader(exchange, _encoding(exchange))
        send = partial(_send_message, exchange)
        if method.stream is not None:
            # Who is told nothing yet shall know that the call has begun.
            await _begin(exchange)
            await method.stream(partial(_receive, reader, method.request_type), send)
            return
        request = _decode(method.request_type, await _only(reader))
        if method.unary is not None:
            await send(await method.unary(request))
        elif method.server_stream is not None:
            await _begin(exchange)
            await method.server_stream(request, send)


@attrs.frozen
class MessageReader:
    """Takes the bodies of messages out of a request."""

    exchange: Exchange
    encoding: str
    """Of messages that are marked as compressed."""

    async def receive(self) -> bytes | None:
        """The next message, None at the end.

        The wait for its first byte has no end but the call's. Raises CallError, TooLarge,
        Overloaded.
        """
        if not await self.exchange.wait():
            return None
        with trio.move_on_after(REQUEST_TIMEOUT):
            compressed, size = _PREFIX.unpack(await self._take(_PREFIX.size))
            if size > MAX_MESSAGE:
                raise _too_large()
            return (
                self._decompress(await self._take(size)) if compressed else await self._take(size)
            )
        raise _too_slow()

    async def _take(self, size: int) -> bytes:
        data = await self.exchange.take(size)
        if len(data) < size:
            raise CallError(Status.INTERNAL, "the request ends inside a message")
        return data

    def _decompress(self, data: bytes) -> bytes:
        if self.encoding == "identity":
            raise CallError(Status.INTERNAL, "a message is compressed, and nobody says how")
        inflater = zlib.decompressobj(wbits=_GZIP_WBITS)
        try:
            # One byte more tells a message that fits from one that does not.
            message = inflater.decompress(data, MAX_MESSAGE + 1)
        except zlib.error as error:
            raise CallError(Status.INTERNAL, f"a message is not gzip: {error}") from error
        if len(message) > MAX_MESSAGE:
            raise _too_large()
        if not inflater.eof:
            raise CallError(Status.INTERNAL, "a message ends inside its compressed data")
        return message


def _too_large() -> CallError:
    return CallError(Status.RESOURCE_EXHAUSTED, f"a message has more than {MAX_MESSAGE} bytes")


def _too_slow() -> CallError:
    return CallError(Status.DEADLINE_EXCEEDED, f"no complete request in {REQUEST_TIMEOUT:g} s")


async def _only(reader: MessageReader) -> bytes:
    """The only message of a request, which ends with it. Raises as `MessageReader.receive`."""
    with trio.move_on_after(REQUEST_TIMEOUT):
        message = await reader.receive()
        if message is None:
            raise CallError(Status.INTERNAL, "no request")
        if await reader.receive() is not None:
            raise CallError(Status.INTERNAL, "more than one request")
        return message
    raise _too_slow()


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


def _refusal(exchange: Exchange) -> tuple[int, Headers] | None:
    """What to answer to a request that is not of gRPC at all; HTTP's codes speak then."""
    scope, headers = exchange.scope, exchange.headers
    if scope["http_version"] != "2":
        return 505, []
    if scope["method"] != "POST":
        return 405, [(b"allow", b"POST")]
    if not _CONTENT_TYPES.fullmatch(headers.get(b"content-type", b"")):
        return 415, [(b"accept", _CONTENT_TYPE)]
    if headers.get(b"te") != b"trailers":
        # Its status would not come through.
        return 400, []
    return None


def _text(exchange: Exchange, name: bytes) -> str:
    return exchange.headers.get(name, b"").decode("latin-1")


def _encoding(exchange: Exchange) -> str:
    encoding = _text(exchange, b"grpc-encoding") or "identity"
    if encoding not in ("identity", "gzip"):
        raise CallError(Status.UNIMPLEMENTED, f"no compression {encoding!r}, only gzip")
    return encoding


def _deadline(exchange: Exchange) -> AbstractContextManager[object]:
    """A scope that ends with TooSlowError when the client does not wait any longer."""
    text = _text(exchange, b"grpc-timeout")
    if not text:
        return nullcontext()
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        # Whoever says nonsense does not wait for an answer.
        return trio.fail_after(0)
    return trio.fail_after(int(match[1]) * _UNITS[match[2]])


async def _begin(exchange: Exchange) -> None:
    headers = [(b"content-type", _CONTENT_TYPE), (b"grpc-accept-encoding", _ENCODINGS)]
    await exchange.begin(200, headers, trailers=True)


async def _send_message(exchange: Exchange, message: Message) -> None:
    data = message.SerializeToString()
    with exchange.room_for(data):
        if not exchange.is_begun:
            await _begin(exchange)
        await exchange.send(_PREFIX.pack(0, len(data)) + data)


async def _send_end(exchange: Exchange, end: CallError) -> None:
    """The status."""
    if not exchange.is_begun:
        await _begin(exchange)
    trailers = [(b"grpc-status", b"%d" % end.status)]
    if end.message:
        # HPACK takes a time that grows with the square of a header's length.
        trailers.append((b"grpc-message", _percent_encode(end.message[:MAX_STATUS_MESSAGE])))
    await exchange.end(trailers)


def _percent_encode(text: str) -> bytes:
    """UTF-8 with everything that does not print, and the percent sign, as %XX."""
    return b"".join(
        b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in text.encode("utf-8", "replace")
    )


def _call_error(group: BaseException) -> CallError:
    return next(leaf for leaf in leaves(group) if isinstance(leaf, CallError))
