"""Sockets of the control interfaces, and what a client may cost.

The data plane shares a thread with these interfaces, so no client may keep it, whatever it does or
leaves undone: a listener has a number of connections that it serves at once, no read takes more
than some kilobytes, what is buffered of all requests together has a limit, and a client that does
not read what it asked for is cut off. Each connection is a task; what it raises is its own end and
nobody else's.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable

import attrs
import trio

from ..endpoints import Endpoint, TcpEndpoint, UnixEndpoint
from ..errors import SocketAccessError, SocketInUseError, SocketPathError
from ..log import get_logger
from ..model import SocketAccess
from ..peer import peer_credentials
from ..unix_listener import UnixListener, open_unix_listener

MAX_CONNECTIONS = 64
"""Of one listener at a time; more are closed as they come."""
READ_SIZE = 4096
"""Bytes that are looked at in one go: of the smallest frames that is about 5 ms of work."""
WRITE_TIMEOUT = 10.0
"""Seconds in which a client must take what is sent to it."""
MAX_BUFFERED = 32 << 20
"""Bytes of unfinished requests, of all clients together."""
ACCEPT_PAUSE = 0.1
"""Seconds to wait for descriptors when there are none."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_TCP_BACKLOG = 128

_log = get_logger(__name__)


class ConnectionLost(Exception):
    """The client went away, or takes too long."""


@attrs.define(eq=False)
class Budget:
    """How many bytes of requests may be in memory."""

    left: int = MAX_BUFFERED

    def take(self, size: int) -> bool:
        """False, and nothing taken, when there is not enough left."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give(self, size: int) -> None:
        self.left += size


class Connection:
    """A connected stream socket whose reads are small and whose writes end.

    Args:
        sock: the connection's to close.
        is_tcp: whether any program of this host can be at the other end, a browser among them.
    """

    def __init__(self, sock: trio.socket.SocketType, *, is_tcp: bool) -> None:
        self.is_tcp = is_tcp
        self._stream = trio.SocketStream(sock)
        self._sending = trio.Lock()

    async def receive(self) -> bytes:
        """Some bytes; none at the end. Raises ConnectionLost."""
        try:
            return bytes(await self._stream.receive_some(READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost("reset") from error

    async def send(self, data: bytes) -> None:
        """Send all of `data`, after what others are sending. Raises ConnectionLost.

        Cancelled, it may have sent a part, after which only closing makes sense.
        """
        try:
            with trio.fail_after(WRITE_TIMEOUT):
                async with self._sending:
                    await self._stream.send_all(data)
        except trio.TooSlowError as error:
            raise ConnectionLost("takes too long to read") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost("reset") from error

    async def aclose(self) -> None:
        """Close it at once, without waiting for anything."""
        await trio.aclose_forcefully(self._stream)


@attrs.define(eq=False)
class Listener:
    """A listening socket and its place; made by `open_listener`."""

    endpoint: Endpoint
    """As it was asked for; a port 0 is replaced by the one that it became."""
    _access: SocketAccess
    _sock: socket.socket | None = None
    _unix: UnixListener | None = None
    _connections: int = 0

    async def serve(self, handle: Callable[[Connection], Awaitable[None]]) -> None:
        """Accept connections and have each one handled in a task, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                sock = await self._accept()
                if self._is_welcome(sock):
                    self._connections += 1
                    nursery.start_soon(self._serve_one, sock, handle)
                else:
                    sock.close()

    async def _accept(self) -> trio.socket.SocketType:
        while True:
            try:
                if self._unix is not None:
                    return await self._unix.accept()
                assert self._sock is not None
                await trio.lowlevel.wait_readable(self._sock)
                sock, _address = self._sock.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return trio.socket.from_stdlib_socket(sock)
            except BlockingIOError:
                continue
            except OSError as error:
                # Also what the connection had died of while it waited (accept(2)).
                if error.errno in _OUT_OF_RESOURCES:
                    _log.warning("cannot accept", address=str(self.endpoint), error=str(error))
                    await trio.sleep(ACCEPT_PAUSE)

    def _is_welcome(self, sock: trio.socket.SocketType) -> bool:
        if self._connections >= MAX_CONNECTIONS:
            _log.warning("too many clients", address=str(self.endpoint), limit=MAX_CONNECTIONS)
            return False
        if self._unix is None:
            return True
        with contextlib.suppress(OSError):
            peer = peer_credentials(sock)
            if peer.may_connect(self._access):
                return True
            _log.warning("client refused", address=str(self.endpoint), uid=peer.uid, pid=peer.pid)
        return False

    async def _serve_one(
        self, sock: trio.socket.SocketType, handle: Callable[[Connection], Awaitable[None]]
    ) -> None:
        connection = Connection(sock, is_tcp=isinstance(self.endpoint, TcpEndpoint))
        try:
            await handle(connection)
        except* ConnectionLost as lost:
            _log.debug("client lost", address=str(self.endpoint), why=str(lost.exceptions[0]))
        except* Exception as error:
            # A bug of ours; the daemon is more than this client's.
            _log.error("client cut off", address=str(self.endpoint), exc_info=error)
        finally:
            self._connections -= 1
            with trio.CancelScope(shield=True):
                await connection.aclose()

    def close(self) -> None:
        """Stop listening; remove the socket file. May be called again."""
        if self._unix is not None:
            self._unix.close()
        if self._sock is not None and self._sock.fileno() >= 0:
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
        return Listener(endpoint, access, unix=open_unix_listener(endpoint.path, access))
    try:
        sock = _bound(endpoint)
    except OSError as error:
        raise _reason(error)(f"{endpoint}: {error.strerror}") from error
    return Listener(TcpEndpoint(endpoint.host, sock.getsockname()[1]), access, sock=sock)


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
