"""Listening, and handing each client to hypercorn's trio worker.

The data plane shares a thread with these interfaces, so no client may keep it, whatever it does or
leaves undone. HTTP is hypercorn's; what it leaves open is closed here, between it and the socket.
It reads small pieces, for one of 64 KiB may hold 2,000 requests, and nobody else would have a turn
before all of them were parsed; and of one client after another. A client that takes nothing of
what it asked for is cut off. There is a number of connections that are served at once, the others
wait in the kernel. Each connection is a task, and what hypercorn raises in there is the end of that
client only.

So hypercorn's `TCPServer`, which serves one connection, is what is used of it, and not its `serve`:
that one is ended by the first client that sends data on a stream which was answered already, and
does not end itself while a client reads nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import h2.errors
import h2.exceptions
import hypercorn.config
import hypercorn.protocol
import hypercorn.protocol.events
import hypercorn.protocol.h2
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState, LifespanState

from ..endpoints import Endpoint, TcpEndpoint, UnixEndpoint
from ..errors import SocketAccessError, SocketInUseError, SocketPathError, leaves
from ..log import get_logger
from ..model import SocketAccess
from ..peer import peer_credentials
from ..unix_listener import UnixListener, open_unix_listener
from .client_log import get_client_logger

MAX_CONNECTIONS = 64
"""Of one listener at a time."""
MAX_STREAMS = 32
"""Requests of one connection at a time, in HTTP/2."""
MAX_HEADERS = 16 << 10
"""Bytes of a request's first line and headers."""
READ_SIZE = 1024
"""Bytes that are looked at in one go: of the smallest frames that is up to 10 ms of work."""
HANG_UP_TIMEOUT = 1.0
"""Seconds in which everything must be over that a client had asked for which hung up."""
HANG_UP_INTERVAL = 10.0
"""Seconds between looks at whether a client has hung up of whom nothing is read."""
WRITE_TIMEOUT = 10.0
"""Seconds in which a client must take what is sent to it."""
ACCEPT_PAUSE = 0.1
"""Seconds to wait for descriptors when there are none."""

_TCP_BACKLOG = 128

App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""

_log = get_logger(__name__)


class Client:
    """A connection, as `TCPServer` uses a trio.SocketStream.

    What it sends it sends shielded from cancellation, so only `close` ends that before its time.

    Args:
        stream: the client's to close.
        turns: of all clients of a listener.
    """

    def __init__(self, stream: trio.SocketStream, turns: trio.Lock) -> None:
        self.socket = stream.socket
        self.scope = trio.CancelScope()
        """For `TCPServer`, which outlives a client that hangs up by its idle timeout."""
        self._stream = stream
        self._turns = turns

    async def receive_some(self, max_bytes: int) -> bytes:
        data = b""
        try:
            data = bytes(await self._stream.receive_some(min(max_bytes, READ_SIZE)))
            # One client for each turn of the event loop, in which everybody else has one, too.
            async with self._turns:
                await trio.lowlevel.checkpoint()
        finally:
            if not data:
                self._hang_up()
        return data

    async def look_for_hang_up(self) -> None:
        """Started with the client, ends with it, or when it has hung up.

        Hypercorn reads nothing while a request waits for the answer to the one before (HTTP/1.1,
        pipelining). If that has no end, as of a watcher, nobody would notice.
        """
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLRDHUP)
        while not poll.poll(0):  # noqa: ASYNC110  (trio cannot wait for that alone)
            await trio.sleep(HANG_UP_INTERVAL)
        self._hang_up()

    def _hang_up(self) -> None:
        self.scope.deadline = trio.current_time() + HANG_UP_TIMEOUT

    async def send_all(self, data: bytes) -> None:
        """Raises trio.BrokenResourceError also when the client takes too long."""
        with trio.move_on_after(WRITE_TIMEOUT):
            await self._stream.send_all(data)
            return
        self.close()
        raise trio.BrokenResourceError("takes too long to read")

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def close(self) -> None:
        """At once; whoever sends or receives gets a ClosedResourceError. May be called again."""
        self.socket.close()


class Listener(trio.abc.Listener[Any]):
    """A listening socket and its place; made by `open_listener`.

    Args:
        endpoint: as it was asked for; a port 0 is replaced by the one that it became.
        sock: what listens there.
        access: to a unix socket.
        unix: the owner of `sock`, if that is one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        sock: socket.socket,
        access: SocketAccess,
        unix: UnixListener | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._sock = sock
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._access = access
        self._unix = unix
        self._clients: set[Client] = set()
        self._turns = trio.Lock()
        self._slots = trio.Semaphore(MAX_CONNECTIONS)
        self._log = get_client_logger(__name__).bind(address=str(endpoint))

    async def serve(self, app: App, idle_timeout: float) -> None:
        """Serve clients until cancelled, which cuts them off.

        Args:
            app: the application.
            idle_timeout: seconds that a connection may have nothing to do.
        """
        handle = partial(self._serve_client, app, _config(idle_timeout))
        async with trio.open_nursery() as nursery:
            try:
                await trio.serve_listeners(handle, [self], handler_nursery=nursery)
            finally:
                for client in self._clients:
                    client.close()

    async def accept(self) -> Client:
        """The next client, when there is room for one."""
        if self._slots.value == 0:
            self._log.warning("all connections are taken, others wait", limit=MAX_CONNECTIONS)
        await self._slots.acquire()
        while True:
            try:
                return Client(await self._listener.accept(), self._turns)
            except OSError as error:
                self._log.warning("cannot accept", error=error.strerror)
                await trio.sleep(ACCEPT_PAUSE)

    async def _serve_client(self, app: App, config: hypercorn.config.Config, client: Any) -> None:
        """Started for each client; ends when either side has had enough."""
        self._clients.add(client)
        try:
            if self._may_connect(client):
                server = TCPServer(
                    ASGIWrapper(cast(ASGIFramework, app)),
                    config,
                    WorkerContext(None),
                    ConnectionState(LifespanState({})),
                    client,
                )
                with client.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(client.look_for_hang_up)
                        await server.run()
                        nursery.cancel_scope.cancel()
        except* Exception as error:
            # Not only bugs of ours end up here, so a client does not get a traceback for each.
            self._log.warning("client cut off", error=repr(next(leaves(error))))
            _log.debug("client cut off", exc_info=error)
        finally:
            client.close()
            self._clients.discard(client)
            self._slots.release()

    def _may_connect(self, client: Client) -> bool:
        if self._unix is None:
            return True
        with contextlib.suppress(OSError):
            peer = peer_credentials(client.socket)
            if peer.may_connect(self._access):
                return True
            self._log.warning("client sent away: it may not connect", uid=peer.uid, pid=peer.pid)
        return False

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; remove the socket file. May be called again."""
        if self._unix is not None:
            self._unix.close()
        elif self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


def open_listener(endpoint: Endpoint, access: SocketAccess) -> Listener:
    """Listen at `endpoint`; never blocks.

    Args:
        endpoint: where.
        access: to a unix socket.

    Raises:
        SocketInUseError: another process listens there.
        SocketAccessError: there is no permission.
        SocketPathError: it is not possible for another reason.
    """
    if isinstance(endpoint, UnixEndpoint):
        unix = open_unix_listener(endpoint.path, access)
        return Listener(endpoint, unix.sock, access, unix)
    try:
        sock = _bound(endpoint)
    except OSError as error:
        raise _reason(error)(f"{endpoint}: {error.strerror}") from error
    return Listener(TcpEndpoint(endpoint.host, sock.getsockname()[1]), sock, access)


def _bound(endpoint: TcpEndpoint) -> socket.socket:
    family = socket.AF_INET6 if endpoint.host.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # For our own connections that are in TIME-WAIT; one who listens still keeps us out.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(endpoint.host), endpoint.port))
        sock.listen(_TCP_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> type[Exception]:
    if error.errno == errno.EADDRINUSE:
        return SocketInUseError
    if error.errno in (errno.EACCES, errno.EPERM):
        return SocketAccessError
    return SocketPathError


def _config(idle_timeout: float) -> hypercorn.config.Config:
    config = hypercorn.config.Config()
    config.errorlog = logging.getLogger(f"{__package__}.hypercorn")
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEADERS
    config.h2_max_header_list_size = MAX_HEADERS
    config.h2_max_concurrent_streams = MAX_STREAMS
    config.keep_alive_timeout = idle_timeout
    # With the last request that it allows, hypercorn forgets the answers that are under way.
    config.keep_alive_max_requests = sys.maxsize
    return config


class _PatientBuffer(hypercorn.protocol.h2.StreamBuffer):
    """What waits to be sent on a stream of HTTP/2.

    Hypercorn's own lets an application go on when the client's window is closed, and so would hold
    as much as an application has to say to somebody who never listens.
    """

    async def pop(self, max_length: int) -> bytes:
        if max_length == 0 and self.buffer:
            return b""
        return await super().pop(max_length)


class _StrictProtocol(hypercorn.protocol.h2.H2Protocol):
    """HTTP/2, in which a limit holds that is told, and a stream ends whose answer does.

    Hypercorn's own tells clients how large their headers may be and takes 64 KiB all the same. It
    forgets the stream of an answer that breaks off, and the client would wait for ever. And when an
    answer is cancelled, it loses what it was about to send, of whichever stream.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection.decoder.max_header_list_size = self.config.h2_max_header_list_size

    async def stream_send(self, event: hypercorn.protocol.events.Event) -> None:
        await super().stream_send(event)
        if isinstance(event, hypercorn.protocol.events.StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer.complete:  # which it is when all is sent
                await self._reset(event.stream_id)

    async def _flush(self) -> None:
        """Nothing gets lost on the way: it may be of other streams, and without it the client can
        understand nothing that comes later. `Client` bounds how long it takes.
        """
        with trio.CancelScope(shield=True):
            await super()._flush()

    async def _reset(self, stream_id: int) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the client may have done so
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await self._flush()
        # By which the buffer is seen to belong to nobody, as when the client resets a stream.
        await self._window_updated(stream_id)


hypercorn.protocol.h2.StreamBuffer = _PatientBuffer  # type: ignore[misc]
hypercorn.protocol.H2Protocol = _StrictProtocol  # type: ignore[attr-defined,assignment]
