"""One virtual NIC: its port, its socket, and one frontend after another.

A `Nic` outlives its frontends: a guest may reboot, migrate away or crash, and the next frontend
finds the same socket file, the same addresses and the same counters. At most one frontend is served
at a time. Another one that connects meanwhile waits `TURN_TIME_LIMIT` for its turn, which is what
one that reconnects before we saw it leave needs. Then one of the two is sent away: the newcomer,
unless the other has not made a single request yet. There is nothing wrong with being silent (QEMU
connects when its chardev is made, and speaks when its network card is), but whoever is must not
keep the NIC from all others for ever. A process that is not among those that may connect
(`SocketAccess.allow_uid`, `allow_gid`) never gets into that line.

This module is also where everything that can go wrong with one connection ends: it is logged, once,
and costs that connection and nothing else.
"""

from __future__ import annotations

import enum
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from types import TracebackType

import attrs
import trio

from .capture import Capture
from .dataplane import (
    Lookout,
    RequestTimes,
    Service,
    VhostNetBackend,
    Workers,
    services_for,
    settle_debt,
)
from .errors import ConnectionBroken, CoreError, GuestMemoryLost, leaves
from .ffi import Network, Port, RingState
from .log import Limited, LineRate, get_logger
from .model import MacAddress, NetworkSpec, NicSpec, NicStats, PuntKind
from .peer import PeerCredentials, peer_credentials
from .unix_listener import Listener, open_unix_listener

TURN_TIME_LIMIT = 1.0
"""Seconds that a second frontend waits for the first one to go."""
ACCEPT_PAUSE = 0.1
"""Seconds before the next attempt when a connection cannot be accepted, as without descriptors."""
REFUSAL_INTERVAL = 1.0
"""Seconds between two lines in the log, and two events, about processes that may not connect. They
can try as fast as they like, and must neither fill the disk nor drown other events."""

LINE_RATE, LINE_BURST = 0.5, 100.0
"""Lines in the log about one NIC: in each second, and at once after a while without. Its frontend
can come and go as fast as it likes, and its guest break rings."""

_BUGS = frozenset({errno.EBADF, errno.EINVAL, errno.EFAULT})
"""Errors that say that the call was wrong; all others, that the system would not carry it out."""


class NicEventKind(enum.StrEnum):
    """What can happen to a NIC."""

    CONNECTED = "connected"
    """A frontend has sent its first request."""
    DISCONNECTED = "disconnected"
    """That frontend is gone, or was sent away; the NIC listens again."""
    FAULTED = "faulted"
    """The guest broke a ring or took its memory back, or there is a bug of ours; see `detail`."""
    REFUSED = "refused"
    """A process that may not connect was sent away; one event a second at most, for all of them."""


@attrs.frozen
class NicEvent:
    """Something that happened to the NIC named `nic`; `detail` is one line, or empty."""

    nic: str
    kind: NicEventKind
    detail: str = ""


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a NIC shares with the others of its switch."""

    nursery: trio.Nursery
    """Where its connections run; none of them fails in it."""
    lookout: Lookout
    """What they wait for."""
    workers: Workers | None = None
    """Who may poll the TX rings of guests; None: nobody."""
    times: RequestTimes = attrs.field(factory=RequestTimes)
    """What requests of frontends take is added to it."""
    publish: Callable[[NicEvent], None] = lambda _event: None
    """Called with each event of the NIC, in their order; must not raise or wait."""
    admission: trio.Event | None = None
    """Frontends that come to the NIC's socket wait until it is set; None: they do not."""


class _Use:
    """The time in which something uses the port of a NIC: `Nic.aclose` ends it, and waits for that.

    Args:
        nic: open.

    Raises:
        trio.ClosedResourceError: at the beginning of the block, if it was closed.
    """

    # With a generator each connection would take half a KiB more.
    __slots__ = ("_nic", "_scope")

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._scope = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        self._nic._check_open()
        self._nic._scopes.append(self._scope)
        return self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            return self._scope.__exit__(kind, error, traceback)
        finally:
            self._nic._scopes.remove(self._scope)
            self._nic._notify()


class Nic:
    """A NIC of a `Switch`, which makes it; `spec` has its addresses filled in.

    Args:
        spec: with its MAC address filled in.
        network: the one that it is in.
        routes: of that network; this NIC's are in it until it is closed.
        surroundings: what it shares.

    Raises:
        CoreError: out of memory.
    """

    __slots__ = (
        "_accept_fails",
        "_backend",
        "_changed",
        "_closed",
        "_connected",
        "_connections",
        "_debt_told",
        "_in_place",
        "_leases",
        "_line",
        "_lines",
        "_listener",
        "_log",
        "_mac",
        "_network",
        "_port",
        "_refusal_told_at",
        "_refused",
        "_scopes",
        "_surroundings",
        "spec",
    )

    def __init__(
        self, spec: NicSpec, network: NetworkSpec, routes: Network, surroundings: Surroundings
    ) -> None:
        if spec.mac_address is None:
            raise ValueError(f"NIC {spec.name!r} has no MAC address yet")
        self.spec = spec
        self._mac: MacAddress = spec.mac_address
        self._network = network
        self._surroundings = surroundings
        self._leases = 0
        self._connections = 0
        self._lines = LineRate(LINE_RATE, LINE_BURST)
        self._log = get_logger(__name__, Limited(self._may_log)).bind(nic=spec.name)
        self._port = Port(routes, self._mac)
        try:
            self._port.set_routes(spec.routes)
        except BaseException:
            self._port.close()
            raise
        self._listener: Listener | None = None
        self._accept_fails = False
        """Whether the last attempt to accept a frontend has failed."""
        self._in_place = True
        """Whether the socket file was there at the last look."""
        self._line: list[trio.CancelScope] = []
        """Of connections, by arrival: the first one has its turn, which its scope ends."""
        self._backend: VhostNetBackend | None = None
        self._connected = False
        self._refused = 0
        """Processes that were not allowed to connect."""
        self._refusal_told_at: float | None = None
        self._debt_told = False
        """Whether the log says why its frontends wait now."""
        self._scopes: list[trio.CancelScope] = []
        """Of all that uses the port, see `_Use`."""
        self._closed = False
        self._changed: trio.Event | None = None
        """What `_wait_change` waits for, while anybody does."""

    @property
    def connected(self) -> bool:
        """Whether there is a frontend that has sent a request."""
        return self._connected

    @property
    def hot(self) -> bool:
        """Whether worker threads poll TX rings of the guest, because those are busy."""
        return bool(self._port.hot_pairs)

    async def wait_connected(self) -> None:
        """Wait for a frontend that has sent a request. A checkpoint.

        Its guest's driver, and with it the rings, may come much later.

        Raises:
            trio.ClosedResourceError: the NIC was closed.
        """
        await trio.lowlevel.checkpoint()
        while not self._connected:
            self._check_open()
            await self._wait_change()

    def stats(self) -> NicStats:
        """The counters since the NIC was made. Raises trio.ClosedResourceError."""
        self._check_open()
        return attrs.evolve(
            self._port.stats(),
            refused_frontends=self._refused,
            takeovers=self._port.takeovers,
            leases=self._leases,
            connections=self._connections,
        )

    @property
    def backlog(self) -> int:
        """Frames that wait for the guest to give buffers. Raises trio.ClosedResourceError."""
        self._check_open()
        return self._port.backlog

    @property
    def hot_rings(self) -> int:
        """How many TX rings of the guest worker threads poll."""
        return len(self._port.hot_pairs)

    def update(self, spec: NicSpec) -> None:
        """Go on with other routed prefixes, from the next packet on, and lists of who may connect.

        Args:
            spec: what the registry has made of `spec`.

        Raises:
            trio.ClosedResourceError: the NIC was closed.
        """
        self._check_open()
        self._port.set_routes(spec.routes)
        self.spec = spec
        if self._backend is not None:
            self._backend.renew_services()

    def rings(self) -> Iterator[RingState]:
        """The guest's rings, those that run or are enabled. Raises trio.ClosedResourceError."""
        self._check_open()
        return self._port.rings()

    @property
    def captures(self) -> int:
        """How many captures have what the guest sends and receives."""
        return self._port.taps

    def add_to(self, capture: Capture) -> None:
        """Have a capture record what the guest sends and receives.

        Raises:
            CoreError: it does already, or `MAX_TAPS` others do.
            trio.ClosedResourceError: the NIC was closed.
        """
        self._check_open()
        capture.add(self._port, self.spec)

    def update_network(self, network: NetworkSpec) -> None:
        """Tell the guest other things about its network, from the next question on.

        Args:
            network: the one that it is in, with the same addresses and MTU as before.

        Raises:
            trio.ClosedResourceError: the NIC was closed.
        """
        self._check_open()
        self._network = network
        if self._backend is not None:
            self._backend.renew_services(advertise=True)

    def inject(self, frame: bytes) -> bool:
        """Put a whole Ethernet frame, without FCS, on its way to the guest.

        Returns:
            False when it was dropped and counted: there is no guest that takes frames, or it has
            too many waiting.

        Raises:
            CoreError: the frame has fewer than 14 or more than 65,549 bytes.
            trio.ClosedResourceError: the NIC was closed.
        """
        self._check_open()
        if self._backend is None:
            return self._port.enqueue(frame)
        return self._backend.inject(frame)

    def listen(self, inherited: socket.socket | None = None) -> None:
        """Let frontends connect to the NIC's socket, until it is closed.

        A NIC without socket path has none, and then this does nothing.

        Args:
            inherited: a listening unix stream socket in place of one of our own; owned from here
                on, but not its file.

        Raises:
            SocketInUseError: another process listens on the path.
            SocketAccessError: there is no permission for the path.
            SocketPathError: it cannot be listened on for another reason.
            trio.ClosedResourceError: the NIC was closed before.
        """
        self._check_open()
        if inherited is not None:
            self._listener = Listener(inherited)
        elif self.spec.socket_path is not None:
            self._listener = open_unix_listener(self.spec.socket_path, self.spec)
        else:
            return
        admission = self._surroundings.admission
        if admission is None or admission.is_set():
            self._await_frontend()
        else:
            self._surroundings.nursery.start_soon(self._await_frontend_after, admission.wait)

    async def serve_connection(self, sock: trio.socket.SocketType) -> None:
        """Serve one connected frontend until it goes, after the one before has gone.

        However the connection ends, this returns; the log and the events say why it did. One that
        has made no request yet makes way for another that has waited `TURN_TIME_LIMIT` seconds.

        Args:
            sock: a connected unix stream socket; owned from here on. If the NIC's `allow_uid` and
                `allow_gid` do not let its other end in, it is sent away.

        Raises:
            trio.ClosedResourceError: the NIC was closed before.
        """
        with _standard_socket(sock) as standard:
            await self._serve_in_turn(standard, _nothing)

    def look_at_place(self) -> None:
        """Say it once when the socket file is gone.

        The NIC stays, for the frontend that it may have, and because the file may come back.
        """
        if self._listener is None or self._closed:
            return
        was_in_place, self._in_place = self._in_place, self._listener.is_in_place
        if was_in_place and not self._in_place:
            self._log.warning("socket was removed or replaced", path=str(self.spec.socket_path))

    async def aclose(self) -> None:
        """End all that serves this NIC and free the port. Always runs to its end, which is near."""
        self._closed = True
        self._notify()
        if self._listener is not None:
            self._surroundings.lookout.forget(self._listener.sock.fileno())
        for scope in self._scopes:
            scope.cancel()
        with trio.CancelScope(shield=True):
            while self._scopes:
                await self._wait_change()
        if self._listener is not None:
            self._listener.close()
        self._port.close()
        await trio.lowlevel.checkpoint()

    def _may_log(self) -> bool:
        return self._lines.take(trio.current_time())

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"NIC {self.spec.name!r} was closed")

    async def _wait_change(self) -> None:
        """Until `_connected`, `_line`, `_scopes` or `_closed` change. A checkpoint."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _event(self, kind: NicEventKind, detail: str = "") -> None:
        self._surroundings.publish(NicEvent(self.spec.name, kind, detail))

    # Listening. No task is needed for it while nobody comes: with one, a NIC that waits would take
    # twice the memory. Frontends are accepted one by one: whoever has to wait its turn holds up
    # those behind it.

    def _await_frontend(self) -> None:
        """Have the next frontend accepted."""
        if self._closed:
            return
        assert self._listener is not None
        try:
            self._surroundings.lookout.watch(self._listener.sock.fileno(), self._accept)
        except OSError as error:
            self._accept_later(error)

    def _accept(self) -> None:
        """A frontend has come; it may have gone again."""
        assert self._listener is not None
        try:
            sock = self._listener.accept_nowait()
        except OSError as error:
            self._accept_later(error)
            return
        self._accept_fails = False
        if sock is None:
            self._await_frontend()
        else:
            self._surroundings.nursery.start_soon(self._serve_accepted, sock)

    def _accept_later(self, error: OSError) -> None:
        """The resources for it may be there by then."""
        if not self._accept_fails:
            self._accept_fails = True
            self._log.warning("cannot accept a frontend", reason=error.strerror)
        pause = partial(trio.sleep, ACCEPT_PAUSE)
        self._surroundings.nursery.start_soon(self._await_frontend_after, pause)

    async def _await_frontend_after(self, pause: Callable[[], Awaitable[object]]) -> None:
        """Started when nobody can be accepted yet; ends when that changes, or with the NIC."""
        if not self._closed:
            with _Use(self):
                await pause()
                self._await_frontend()

    async def _serve_accepted(self, sock: socket.socket) -> None:
        """Started by `_accept`, for each connection; ends with it."""
        with sock:
            if not self._closed:
                await self._serve_in_turn(sock, self._await_frontend)
        self.look_at_place()

    # One connection.

    async def _serve_in_turn(self, sock: socket.socket, settled: Callable[[], None]) -> None:
        """Serve a frontend, or send it away; `settled` is called as soon as it is clear which."""
        with _Use(self) as turn:
            if not self._admits(sock):
                settled()
                return
            self._line.append(turn)
            try:
                has_turn = await self._wait_turn(turn)
                settled()
                if has_turn:
                    await self._serve_frontend(sock)
                else:
                    self._log.warning("frontend sent away: another one is connected")
            finally:
                self._line.remove(turn)
                self._notify()

    def _admits(self, sock: socket.socket) -> bool:
        """Whether a process may connect. If not, count it, and say it if that was not just done."""
        try:
            peer = peer_credentials(sock)
        except OSError as error:
            self._log.error("connection failed", reason=error.strerror)
            return False
        if peer.may_connect(self.spec):
            return True
        self._refused += 1
        now = trio.current_time()
        if self._refusal_told_at is None or now - self._refusal_told_at >= REFUSAL_INTERVAL:
            self._refusal_told_at = now
            self._log.warning(
                "frontend sent away: it may not connect", **_named(peer), refused=self._refused
            )
            self._event(NicEventKind.REFUSED, f"process {peer.pid} of user {peer.uid}")
        return False

    async def _wait_turn(self, turn: trio.CancelScope) -> bool:
        """Wait to be the first in line, and end the turn of a silent one that is in the way.

        Nobody loses their place by that, so those who came together have their turns by and by,
        each for `TURN_TIME_LIMIT` unless it speaks.

        Returns:
            False when a frontend that speaks did not go in time.
        """
        while (holder := self._line[0]) is not turn:
            with trio.move_on_after(TURN_TIME_LIMIT) as waiting:
                while self._line[0] is holder:
                    await self._wait_change()
            if waiting.cancelled_caught and self._line[0] is holder:
                if self._connected:
                    return False
                self._end_turn(holder)
        return True

    def _end_turn(self, holder: trio.CancelScope) -> None:
        """Send away the one that is served; several that wait for it may do so at once."""
        if not holder.cancel_called:
            self._log.warning("frontend sent away: it made no request, and another one waits")
            holder.cancel()

    async def _serve_frontend(self, sock: socket.socket) -> None:
        """Serve a frontend whose turn it is; all its failures end here."""
        reason = ""
        try:
            await self._settle_debt()
            self._backend = self._make_backend(sock)
            await self._backend.serve()
        except* ConnectionBroken as group:
            reason = str(group.exceptions[0])
            self._log.warning("connection broken", reason=reason)
        except* GuestMemoryLost as group:
            reason = str(group.exceptions[0])
            self._log.warning("guest memory lost", reason=reason)
            self._set_faulted(reason)
        except* Exception as group:
            reason = self._say_failure(group)
        finally:
            self._backend = None
            self._set_disconnected(reason)

    async def _settle_debt(self) -> None:
        """Wait while the frontends of this NIC have taken more than their share of the time.

        Each may go and come back, and would take it again.
        """
        if (owes := self._port.owes) and not self._debt_told:
            self._debt_told = True
            self._log.warning(
                "frontend has to wait: this NIC has held up all others", seconds=round(owes, 1)
            )
        await settle_debt(self._port)
        self._debt_told = False

    def _say_failure(self, group: ExceptionGroup) -> str:
        """Log what ended a connection through no fault of its frontend; returns one line."""
        denied, bugs = group.split(_is_denied)
        if bugs is not None:
            self._log.error("connection failed", exc_info=bugs)
            self._set_faulted("internal error")
            return "internal error"
        assert denied is not None
        reason = _reason(next(leaves(denied)))
        self._log.error("connection failed", reason=reason)
        return reason

    def _make_backend(self, sock: socket.socket) -> VhostNetBackend:
        return VhostNetBackend(
            sock,
            self._port,
            mac=self._mac,
            mtu=self._network.mtu,
            services=self._services,
            lookout=self._surroundings.lookout,
            workers=self._surroundings.workers,
            on_connected=partial(self._set_connected, peer_credentials(sock)),
            on_fault=self._set_faulted,
            times=self._surroundings.times,
            log=self._log,
        )

    def _services(self, mtu: int) -> Mapping[PuntKind, Service]:
        return services_for(self.spec, self._network, mtu, self._count_lease)

    def _count_lease(self) -> None:
        self._leases += 1

    def _set_connected(self, peer: PeerCredentials) -> None:
        self._connected = True
        self._connections += 1
        self._notify()
        self._log.info("frontend connected", **_named(peer))
        self._event(NicEventKind.CONNECTED)

    def _set_faulted(self, detail: str) -> None:
        self._event(NicEventKind.FAULTED, detail)

    def _set_disconnected(self, reason: str) -> None:
        if self._connected:
            self._connected = False
            self._log.info("frontend disconnected")
            self._event(NicEventKind.DISCONNECTED, reason)


def _standard_socket(sock: trio.socket.SocketType) -> socket.socket:
    """The same socket for the standard library, which owns it now; it does not block."""
    standard = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    standard.setblocking(False)
    return standard


def _nothing() -> None:
    """What is done when a connection that came by other ways than a listener has its turn."""


def _named(peer: PeerCredentials) -> dict[str, int]:
    """What the log says of the process at the other end."""
    return {"pid": peer.pid, "uid": peer.uid, "gid": peer.gid}


def _is_denied(error: BaseException) -> bool:
    """Whether the system had not the descriptors, memory or whatever else for it."""
    return isinstance(error, OSError | CoreError) and error.errno not in _BUGS


def _reason(error: BaseException) -> str:
    """One line for the log."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
