"""The server's side of HTTP/1.1 (RFC 9112) on trio, over the sans-IO library h11.

One task serves a connection, one request after the other: the whole request is read, within bounds
of size and time, then the handler is called, then the response goes out. A response may be a stream
of any length; while it runs a second task reads, for that is how a client shows that it went away.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import h11
import trio

from ..log import get_logger
from .transport import Connection

MAX_HEADERS = 16 << 10
"""Bytes of a request's first line and headers."""
MAX_BODY = 256 << 10
REQUEST_TIMEOUT = 10.0
"""Seconds in which a client must have sent a request that it has begun."""
IDLE_TIMEOUT = 60.0
"""Seconds that a connection may wait for a request."""

PROBLEM = "application/problem+json"
"""What errors are told in (RFC 9457)."""

_log = get_logger(__name__)

Chunks = AbstractAsyncContextManager[AsyncIterator[bytes]]


@attrs.frozen
class Request:
    """A request, complete."""

    method: str
    path: str
    """Decoded, without the query."""
    query: str
    """Not decoded."""
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    is_tcp: bool
    """Whether any program of this host may have sent it, a browser among them."""


@attrs.frozen
class Response:
    """What to answer."""

    status: int = 200
    body: bytes | Chunks = b""
    """Either all of it or, opened when it is wanted, an iterator; each item is sent at once."""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


class HttpError(Exception):
    """A request is answered with a problem (RFC 9457).

    Args:
        status: HTTP's.
        detail: for a person.
        headers: of the response.
        more: members of the problem, beyond those of the RFC.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.more = more or {}

    def response(self) -> Response:
        problem = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(self.status, json_body(problem), PROBLEM, self.headers)


def json_body(value: Any) -> bytes:
    """JSON in UTF-8 with a line feed at its end, for those who look at it in a terminal."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


class Http1Connection:
    """One client.

    Args:
        connection: not closed by this.
        handler: what it raises, HttpError apart, is answered with 500 and logged.
    """

    def __init__(self, connection: Connection, handler: Handler) -> None:
        self._connection = connection
        self._handler = handler
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._is_head = False
        """Whether the request wants no body."""

    async def serve(self) -> None:
        """Serve until the client goes or has to. Raises ConnectionLost."""
        is_open = True
        while is_open:
            try:
                request = await self._receive()
                if request is None:
                    return
                response = await self._answer(request)
            except h11.RemoteProtocolError as error:
                response = HttpError(error.error_status_hint, f"bad request: {error}").response()
            except HttpError as error:
                response = error.response()
            is_open = await self._respond(response)

    # Receiving.

    async def _receive(self) -> Request | None:
        """A request; None when there are no more. Raises HttpError, h11.RemoteProtocolError."""
        has_some = False
        with trio.move_on_after(IDLE_TIMEOUT):
            has_some = await self._wait_for_some()
        if not has_some:
            return None
        with trio.move_on_after(REQUEST_TIMEOUT):
            return await self._receive_begun()
        raise HttpError(408, f"no complete request in {REQUEST_TIMEOUT:g} s")

    async def _wait_for_some(self) -> bool:
        """Wait for the first bytes of a request. Returns whether there are any."""
        if self._h11.trailing_data[0]:
            return True  # they came with those of the request before
        data = await self._connection.receive()
        self._h11.receive_data(data)
        return bool(data)

    async def _receive_begun(self) -> Request | None:
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        headers = _headers(event)
        body = bytearray()
        while isinstance(data := await self._next_event(), h11.Data):
            body += data.data
            if len(body) > MAX_BODY:
                raise HttpError(413, f"the body has more than {MAX_BODY} bytes")
        if not isinstance(data, h11.EndOfMessage):
            return None
        try:
            target = urlsplit(event.target.decode("ascii"))
            path = unquote(target.path, errors="strict")
        except ValueError as error:
            raise HttpError(400, "the target is no path") from error
        method = event.method.decode("ascii")
        self._is_head = method == "HEAD"
        return Request(
            method, path, target.query, headers, bytes(body), self._connection.is_tcp
        )

    async def _next_event(self) -> Any:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._h11.receive_data(await self._connection.receive())
        return event

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except HttpError as error:
            return error.response()
        except Exception as error:
            _log.error("request failed", path=request.path, exc_info=error)
            return HttpError(500, "internal error, see the daemon's log").response()

    # Sending.

    async def _respond(self, response: Response) -> bool:
        """Send a response. Returns whether another request may follow on this connection."""
        headers = [("date", formatdate(usegmt=True)), *response.headers]
        if response.content_type is not None:
            headers += [("content-type", response.content_type)]
        if isinstance(response.body, bytes):
            headers += [("content-length", str(len(response.body)))]
        if self._h11.their_state in (h11.SEND_BODY, h11.ERROR):
            headers += [("connection", "close")]  # the rest of this request is not waited for
        reason = HTTPStatus(response.status).phrase
        await self._send(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if self._is_head:
            pass
        elif isinstance(response.body, bytes):
            await self._send(h11.Data(data=response.body))
        elif not await self._send_chunks(response.body):
            return False
        await self._send(h11.EndOfMessage())
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False

    async def _send_chunks(self, body: Chunks) -> bool:
        """Returns whether they came to an end before the client went away."""
        ended = False
        async with trio.open_nursery() as nursery, body as chunks:
            nursery.start_soon(self._wait_for_loss, nursery.cancel_scope)
            async for chunk in chunks:
                await self._send(h11.Data(data=chunk))
            ended = True
            nursery.cancel_scope.cancel()
        return ended

    async def _wait_for_loss(self, scope: trio.CancelScope) -> None:
        """Read while a response goes out; whoever sends more meanwhile is not served any further."""
        await self._connection.receive()
        scope.cancel()

    async def _send(self, event: Any) -> None:
        with contextlib.suppress(h11.LocalProtocolError):
            if data := self._h11.send(event):
                await self._connection.send(data)


def _headers(request: h11.Request) -> dict[str, str]:
    """Of a request, by name. Raises HttpError when one is there twice that decides something."""
    headers: dict[str, str] = {}
    for name, value in request.headers:
        key = name.decode("ascii")
        if key in headers and key in ("host", "origin", "content-type"):
            raise HttpError(400, f"two headers {key}")
        headers[key] = value.decode("latin-1")
    return headers
