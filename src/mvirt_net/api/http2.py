"""The server's side of HTTP/2 (RFC 9113) on trio, over the sans-IO library h2.

**Theory of operation.** One task reads the connection and feeds h2, one writes what h2 produces;
each stream is a task of its own, started when its headers are there, which runs the handler inside
a cancel scope. A stream that the client resets is that scope cancelled, and so is every stream when
the connection ends: a handler needs to watch for nothing. Only the end of the connection cancels
the writer, so that no frame is ever cut short while others are to follow. Whoever makes h2 produce
bytes waits until they are written, the reader too, which therefore reads nothing from a client that
reads nothing. Sending waits for the client's flow control window; the client's own is given back
when a handler has taken what was received, so a connection buffers no more than one window.

What a client may do is bounded: streams at a time, size of headers, resets (each a stream that was
started for nothing), seconds without a stream, seconds without a window to send into.

HTTP/2 with prior knowledge only: no TLS, no upgrade from HTTP/1.1. No gRPC in here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio

from ..log import get_logger
from .transport import Connection, ConnectionLost

MAX_STREAMS = 64
"""Streams of a connection at a time."""
MAX_HEADERS = 16 << 10
"""Bytes of a request's headers (RFC 9113, 6.5.2)."""
PREFACE_TIMEOUT = 10.0
"""Seconds in which a client must have sent its preface and settings."""
IDLE_TIMEOUT = 300.0
"""Seconds without any stream after which a connection is closed."""
GOODBYE_TIMEOUT = 1.0
"""Seconds in which a client must take the last word."""
STALL_TIMEOUT = 30.0
"""Seconds that a stream waits for a window to send into."""
MAX_RESETS = 200
"""Streams that a client may reset before they were answered, until `RESET_REFILL` grants more."""
RESET_REFILL = 20.0
"""Resets a second."""

Headers = list[tuple[bytes, bytes]]
Handler = Callable[["Stream"], Awaitable[None]]

_Code = h2.settings.SettingCodes

_log = get_logger(__name__)


class StreamLost(Exception):
    """The client has no use for a stream any more, or does not take what is sent on it."""


class Stream:
    """One request and its answer; what a handler gets.

    Its methods raise StreamLost when nothing can be said on it any more, which a handler lets out.
    """

    def __init__(self, connection: Http2Connection, stream_id: int, headers: Headers) -> None:
        self.headers = dict(headers)
        """By their names; of one that is there twice the last value."""
        self.scope = trio.CancelScope()
        self.is_response_begun = False
        self.is_response_complete = False
        self._connection = connection
        self._id = stream_id
        self._chunks: list[bytes] = []
        self._unacknowledged = 0
        self._is_request_complete = False
        self._changed = trio.Event()
        """Replaced each time that it is set."""

    async def receive(self) -> bytes:
        """Some bytes of the request's body; none when it is complete."""
        while not self._chunks and not self._is_request_complete:
            await self._changed.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        size, self._unacknowledged = self._unacknowledged, 0
        await self._connection.acknowledge(self._id, size)
        return data

    async def send_headers(self, headers: Headers, *, end: bool = False) -> None:
        """The response's headers, or after data its trailers.

        Args:
            headers: ``:status`` first.
            end: whether that was all.
        """
        self.is_response_begun = True
        self.is_response_complete = end
        await self._connection.send_headers(self._id, headers, end)

    async def send_data(self, data: bytes) -> None:
        """Bytes of the response's body, as fast as the client takes them."""
        view = memoryview(data)
        while view:
            size = min(len(view), await self._wait_for_window())
            await self._connection.send_data(self._id, bytes(view[:size]))
            view = view[size:]

    async def _wait_for_window(self) -> int:
        with trio.move_on_after(STALL_TIMEOUT):
            while (window := self._connection.window(self._id)) <= 0:
                await self._changed.wait()
            return window
        raise StreamLost("no window to send into")

    # For the connection.

    def note_data(self, data: bytes, flow_controlled: int) -> None:
        self._unacknowledged += flow_controlled
        if data:
            self._chunks.append(data)
        self.note_change()

    def note_request_complete(self) -> None:
        self._is_request_complete = True
        self.note_change()

    def note_change(self) -> None:
        """Wake whoever waits for data, the end or a window."""
        self._changed.set()
        self._changed = trio.Event()

    @property
    def is_request_complete(self) -> bool:
        return self._is_request_complete

    def drop_data(self) -> int:
        """Forget what was not taken; how many bytes of the connection's window it holds."""
        self._chunks.clear()
        size, self._unacknowledged = self._unacknowledged, 0
        return size


class Http2Connection:
    """One client.

    Args:
        connection: not closed by this.
        handler: called in a task for each stream; it must complete the response, or the stream is
            reset.
    """

    def __init__(self, connection: Connection, handler: Handler) -> None:
        self._connection = connection
        self._handler = handler
        self._streams: dict[int, Stream] = {}
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                _Code.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                _Code.MAX_HEADER_LIST_SIZE: MAX_HEADERS,
            },
        )
        self._h2.decoder.max_header_list_size = MAX_HEADERS
        self._is_greeted = False
        self._resets = float(MAX_RESETS)
        self._reset_at = trio.current_time()
        self._idle = trio.CancelScope()
        """Around reading; it has a deadline while there is no stream."""
        self._wake_writer = trio.Event()
        self._written = trio.Event()
        """Both are replaced each time that they are set."""
        self._is_torn = False
        """Whether a part of something may have been sent."""

    async def serve(self) -> None:
        """Serve until the client goes, misbehaves or is idle for too long. Raises ConnectionLost."""
        self._h2.initiate_connection()
        self._idle.deadline = trio.current_time() + PREFACE_TIMEOUT
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                with self._idle:
                    await self._flush()
                    await self._read(nursery)
                nursery.cancel_scope.cancel()
        finally:
            await self._say_goodbye()

    # Reading.

    async def _read(self, nursery: trio.Nursery) -> None:
        while data := await self._connection.receive():
            try:
                events = self._h2.receive_data(data)
            except h2.exceptions.ProtocolError as error:
                _log.debug("client speaks no HTTP/2", why=str(error))
                return  # what h2 says to that goes out with the goodbye
            for event in events:
                self._handle(event, nursery)
            await self._flush()
            if self._resets < 0:
                self._close(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                return

    def _handle(self, event: h2.events.Event, nursery: trio.Nursery) -> None:
        match event:
            case h2.events.RequestReceived():
                self._open_stream(event.stream_id, event.headers, nursery)
            case h2.events.DataReceived():
                self._receive_data(event)
            case h2.events.StreamEnded():
                if stream := self._streams.get(event.stream_id):
                    stream.note_request_complete()
            case h2.events.StreamReset():
                self._count_reset()
                if stream := self._streams.get(event.stream_id):
                    stream.scope.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._note_window(event)

    def _open_stream(
        self, stream_id: int, headers: Iterable[tuple[bytes, bytes]], nursery: trio.Nursery
    ) -> None:
        stream = Stream(self, stream_id, [(bytes(name), bytes(value)) for name, value in headers])
        self._streams[stream_id] = stream
        self._idle.deadline = float("inf")
        nursery.start_soon(self._run_stream, stream_id, stream)

    def _receive_data(self, event: h2.events.DataReceived) -> None:
        if stream := self._streams.get(event.stream_id):
            stream.note_data(event.data, event.flow_controlled_length)
        else:
            # Answered already; the connection's window is for the others.
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _note_window(
        self, event: h2.events.WindowUpdated | h2.events.RemoteSettingsChanged
    ) -> None:
        if isinstance(event, h2.events.RemoteSettingsChanged) and not self._is_greeted:
            self._is_greeted = True
            if not self._streams:
                self._idle.deadline = trio.current_time() + IDLE_TIMEOUT
        for stream in self._streams.values():
            stream.note_change()

    def _count_reset(self) -> None:
        now = trio.current_time()
        refill = (now - self._reset_at) * RESET_REFILL
        self._resets = min(float(MAX_RESETS), self._resets + refill) - 1
        self._reset_at = now

    # Streams.

    async def _run_stream(self, stream_id: int, stream: Stream) -> None:
        """Started with the request's headers; ends with the response, a reset or the connection."""
        try:
            with stream.scope:
                await self._handler(stream)
        except StreamLost as lost:
            _log.debug("stream lost", why=str(lost))
        finally:
            del self._streams[stream_id]
            self._end_stream(stream_id, stream)
            if not self._streams:
                self._idle.deadline = trio.current_time() + IDLE_TIMEOUT
        await self._flush()

    def _end_stream(self, stream_id: int, stream: Stream) -> None:
        try:
            self._h2.acknowledge_received_data(stream.drop_data(), stream_id)
            if not stream.is_response_complete:
                self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            elif not stream.is_request_complete:
                # The rest of the request is of no use any more (RFC 9113, 8.1).
                self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        except h2.exceptions.ProtocolError:
            pass  # the client was faster, or the connection is over

    async def acknowledge(self, stream_id: int, size: int) -> None:
        """The handler of a stream has taken `size` bytes of its request."""
        if size:
            with _over_means_lost():
                self._h2.acknowledge_received_data(size, stream_id)
            await self._flush()

    def window(self, stream_id: int) -> int:
        """How many bytes may be sent on a stream in one frame now."""
        with _over_means_lost():
            return min(
                self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size
            )

    async def send_headers(self, stream_id: int, headers: Headers, end: bool) -> None:
        with _over_means_lost():
            self._h2.send_headers(stream_id, headers, end_stream=end)
        await self._flush()

    async def send_data(self, stream_id: int, data: bytes) -> None:
        with _over_means_lost():
            self._h2.send_data(stream_id, data)
        await self._flush()

    # Writing.

    async def _write(self) -> None:
        """Send what h2 has produced, whenever there is some."""
        while True:
            await self._wake_writer.wait()
            self._wake_writer = trio.Event()
            while data := self._h2.data_to_send():
                self._is_torn = True
                await self._connection.send(data)
                self._is_torn = False
            self._written.set()
            self._written = trio.Event()

    async def _flush(self) -> None:
        """Wait until all is sent that h2 has produced."""
        self._wake_writer.set()
        await self._written.wait()

    def _close(self, code: h2.errors.ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it is over already
            self._h2.close_connection(code)

    async def _say_goodbye(self) -> None:
        """Tell the client what was dealt with, so that it knows what to ask again elsewhere."""
        self._close(h2.errors.ErrorCodes.NO_ERROR)
        if not self._is_torn:
            with (
                trio.move_on_after(GOODBYE_TIMEOUT, shield=True),
                contextlib.suppress(ConnectionLost),
            ):
                await self._connection.send(self._h2.data_to_send())


class _over_means_lost:  # noqa: N801  (used like a function)
    """A stream or connection that is over raises StreamLost."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, h2.exceptions.ProtocolError):
            raise StreamLost(str(error)) from error
