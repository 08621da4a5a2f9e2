"""HTTP for those who answer one request at a time: an ASGI application around a handler.

The whole request is read, within bounds of size and time, then the handler is called, then the
response goes out, which may be a stream of any length.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import trio

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

MAX_BODY = 256 << 10
REQUEST_TIMEOUT = 10.0
"""Seconds in which a client must have sent a request that it has begun."""

PROBLEM = "application/problem+json"
"""What errors are told in (RFC 9457)."""

_ONCE = (b"content-type", b"host", b"origin")
"""Headers that decide something, and so may not be there twice."""
_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

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
    """Either all of it or, opened when it is wanted, an iterator; each item is sent at once.
    To open it may raise HttpError."""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    etag: str | None = None
    """What tells this body from others of the same target, quoted (RFC 9110, 8.8.3)."""


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
    """JSON in UTF-8 with a line feed at its end, for those who look at it in a terminal.

    Half a surrogate pair, which UTF-8 cannot say, is written as both JSON and Python do, by its
    number.
    """
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


@attrs.frozen
class HttpApp:
    """The ASGI application."""

    handler: Handler
    """What it raises, HttpError apart, is answered with 500 and logged."""
    is_tcp: bool
    """Of each `Request`."""
    budget: Budget
    _log: Any = attrs.field(factory=partial(get_client_logger, __name__), init=False)

    async def __call__(self, scope: Any, receive: AsgiReceive, send: AsgiSend) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await Exchange(scope, send, self.budget, MAX_BODY).run(receive, self._answer)

    async def _answer(self, exchange: Exchange) -> None:
        response = await self._response(exchange)
        await exchange.drain()
        try:
            if isinstance(response.body, bytes):
                with exchange.room_for(response.body):
                    await _send(exchange, response, response.body)
            else:
                await self._stream(exchange, response, response.body)
        except Overloaded:
            response = _overloaded().response()
            await _send(exchange, response, response.body)

    async def _response(self, exchange: Exchange) -> Response:
        try:
            request = await self._request(exchange)
            return _unless_known(request, await self.handler(request))
        except HttpError as error:
            return error.response()
        except TooLarge:
            return HttpError(413, f"the body has more than {MAX_BODY} bytes").response()
        except Overloaded:
            return _overloaded().response()
        except Exception as error:
            self._log.error("request failed", path=exchange.scope["path"], exc_info=error)
            return HttpError(500, "internal error, see the daemon's log").response()

    async def _stream(self, exchange: Exchange, response: Response, body: Chunks) -> None:
        """What goes wrong in the middle costs the answer its end, which the client misses."""
        try:
            try:
                await _send_chunks(exchange, response, body)
            except HttpError as error:
                refusal = error.response()
                await _send(exchange, refusal, refusal.body)
        except* Overloaded:
            pass
        except* Stalled:
            raise
        except* Exception as group:
            self._log.error("request failed", path=exchange.scope["path"], exc_info=group)

    async def _request(self, exchange: Exchange) -> Request:
        """Raises HttpError, TooLarge, Overloaded."""
        scope = exchange.scope
        names = [name for name, _value in scope["headers"]]
        for name in _ONCE:
            if names.count(name) > 1:
                raise HttpError(400, f"two headers {name.decode()}")
        headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in exchange.headers.items()}
        query = scope["query_string"].decode("latin-1")
        body = await _body(exchange)
        return Request(scope["method"], _path(scope), query, headers, body, self.is_tcp)


async def _body(exchange: Exchange) -> bytes:
    with trio.move_on_after(REQUEST_TIMEOUT):
        return await exchange.take(MAX_BODY + 1)
    raise HttpError(408, f"no complete request in {REQUEST_TIMEOUT:g} s")


def _path(scope: Mapping[str, Any]) -> str:
    """Of the request's target, which may be a whole URL (RFC 9112, 3.2.2). Raises HttpError."""
    target = scope["raw_path"].decode("latin-1")
    try:
        path = target if target.startswith("/") else urlsplit(target).path
        return unquote(path, errors="strict")
    except ValueError as error:
        raise HttpError(400, "the target is no path") from error


def _unless_known(request: Request, response: Response) -> Response:
    """What the client has already is not sent again (RFC 9110, 13.1.2)."""
    known = request.headers.get("if-none-match")
    if known is None or response.etag is None or request.method not in ("GET", "HEAD"):
        return response
    tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
    if response.etag not in tags and tags != ["*"]:
        return response
    return attrs.evolve(response, status=HTTPStatus.NOT_MODIFIED, body=b"", content_type=None)


def _overloaded() -> HttpError:
    return HttpError(503, "too much is asked for at a time", headers=(("retry-after", "1"),))


async def _send(exchange: Exchange, response: Response, body: Any) -> None:
    more = [] if response.status in _WITHOUT_BODY else [("content-length", str(len(body)))]
    await exchange.begin(response.status, _headers(response, *more))
    await exchange.send(body, more=False)


async def _send_chunks(exchange: Exchange, response: Response, body: Chunks) -> None:
    """Raises HttpError, before anything is sent, when the body cannot be opened."""
    if exchange.scope["method"] == "HEAD":
        await exchange.begin(response.status, _headers(response))
    else:
        async with body as chunks:
            await exchange.begin(response.status, _headers(response))
            async for chunk in chunks:
                with exchange.room_for(chunk):
                    await exchange.send(chunk)
    await exchange.send(b"", more=False)


def _headers(response: Response, *more: tuple[str, str]) -> Headers:
    headers = [*response.headers, *more]
    if response.etag is not None:
        headers.append(("etag", response.etag))
    if response.content_type is not None:
        headers.append(("content-type", response.content_type))
    return [(name.encode(), value.encode("latin-1")) for name, value in headers]
