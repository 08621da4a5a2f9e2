"""One request and its answer, from inside an ASGI application (asgi.readthedocs.io).

A task of its own takes what the client sends, always: only so it is seen at once when the client
goes away, which cancels the answer. What the answer has not asked for yet is held, within a limit
for the request and one for all requests together, and what is too much is thrown away. Hypercorn
drops a client that still sends when its answer is complete, so an answer that knows enough early
still waits a while for the end of the request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import attrs
import trio

from ..log import get_logger

MAX_HELD = 32 << 20
"""Bytes of requests and answers in memory, of all clients together."""
DRAIN_TIMEOUT = 5.0
"""Seconds in which a client that got its answer early must have sent the rest of its request."""
ENDING_TIMEOUT = 1.0
"""Seconds in which hypercorn must have done what it does after an answer. It tells us of that as if
the client had gone, and would leave it undone if that cancelled the answer."""
STALL_TIMEOUT = 30.0
"""Seconds in which a client must take a part of an answer."""

AsgiReceive = Callable[[], Awaitable[Any]]
AsgiSend = Callable[[Any], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_log = get_logger(__name__)


class TooLarge(Exception):
    """A request is larger than it may be."""


class Overloaded(Exception):
    """There is no room for a request or an answer."""


class Stalled(Exception):
    """The client does not take its answer. To be let out of what `Exchange.run` calls."""


@attrs.define(eq=False)
class Budget:
    """How many bytes may be in memory."""

    left: int = MAX_HELD

    def take(self, size: int) -> bool:
        """False, and nothing taken, when there is not enough left."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        self.left += size


class Exchange:
    """A request, its body as it comes, and the means to answer it.

    Args:
        scope: what ASGI tells of the request.
        send: ASGI's.
        budget: for what is held.
        limit: bytes of the body that are held.
    """

    def __init__(self, scope: Any, send: AsgiSend, budget: Budget, limit: int) -> None:
        self.scope: Mapping[str, Any] = scope
        self.headers = {bytes(name): bytes(value) for name, value in scope["headers"]}
        """By their names in lower case; of one that is there twice the last value."""
        self.is_begun = False
        """Whether the client was told a part of the answer."""
        self._has_trailers = False
        self._is_ending = False
        """Whether the client was told all of the answer."""
        self._send = send
        self._budget = budget
        self._limit = limit
        self._body = bytearray()
        self._is_complete = False
        self._refusal: type[Exception] | None = None
        """What whoever reads the body is told."""
        self._is_wanted = True
        """Whether somebody is going to read the body."""
        self._changed = trio.lowlevel.ParkingLot()

    async def run(
        self, receive: AsgiReceive, answer: Callable[[Exchange], Awaitable[None]]
    ) -> None:
        """Have `answer` answer; it is cancelled when the client goes away."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_in, receive, nursery.cancel_scope)
                await answer(self)
                nursery.cancel_scope.cancel()
        except* Stalled:
            _log.debug("client does not take its answer", path=self.scope["path"])
        finally:
            self._forget()

    # The request.

    async def wait(self) -> bool:
        """Wait for a byte of the body; False: there are no more. Raises TooLarge, Overloaded."""
        while not self._body and not self._is_complete and self._refusal is None:
            await self._changed.park()
        self._check()
        return bool(self._body)

    async def take(self, size: int) -> bytes:
        """The next `size` bytes of the body, fewer at its end. Raises TooLarge, Overloaded."""
        while len(self._body) < size and not self._is_complete and self._refusal is None:
            await self._changed.park()
        self._check()
        data = bytes(self._body[:size])
        del self._body[:size]
        self._budget.give(len(data))
        return data

    async def drain(self) -> None:
        """Throw the rest of the body away, when it has come."""
        self._is_wanted = False
        self._forget()
        with trio.move_on_after(DRAIN_TIMEOUT):
            while not self._is_complete:
                await self._changed.park()

    async def _take_in(self, receive: AsgiReceive, answering: trio.CancelScope) -> None:
        """Started with the request; ends with the answer, or ends it."""
        while (message := await receive())["type"] == "http.request":
            self._hold(message["body"])
            self._is_complete = not message["more_body"]
            self._changed.unpark_all()
        if self._is_ending:
            answering.deadline = trio.current_time() + ENDING_TIMEOUT
        else:
            answering.cancel()

    def _hold(self, data: bytes) -> None:
        if not self._is_wanted or self._refusal is not None:
            return
        if len(self._body) + len(data) > self._limit:
            self._refusal = TooLarge
        elif not self._budget.take(len(data)):
            self._refusal = Overloaded
        else:
            self._body += data
            return
        self._forget()

    def _check(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _forget(self) -> None:
        self._budget.give(len(self._body))
        self._body.clear()

    # The answer.

    @contextlib.contextmanager
    def room_for(self, data: bytes) -> Iterator[None]:
        """While it is sent. Raises Overloaded."""
        if not self._budget.take(len(data)):
            raise Overloaded
        try:
            yield
        finally:
            self._budget.give(len(data))

    async def begin(self, status: int, headers: Headers, *, trailers: bool = False) -> None:
        """Tell the client the status and the headers."""
        self.is_begun = True
        self._has_trailers = trailers
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await self._tell({**start, "trailers": trailers})

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body, with `more` not the last, as fast as the client takes it."""
        self._is_ending = not (more or self._has_trailers)
        await self._tell({"type": "http.response.body", "body": data, "more_body": more})

    async def end(self, trailers: Headers) -> None:
        """Send the trailers that `begin` has promised."""
        await self.send(b"", more=False)
        self._is_ending = True
        await self._tell({"type": "http.response.trailers", "headers": trailers})

    async def _tell(self, message: dict[str, Any]) -> None:
        with trio.move_on_after(STALL_TIMEOUT):
            await self._send(message)
            return
        raise Stalled
