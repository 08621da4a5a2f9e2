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

import contextlib
import enum
import errno
import socket
import zlib
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import trio

from .capture import Capture
from .dataplane import (
    RequestTimes,
    VhostNetBackend,
    Workers,
    WorkLimit,
    services_for,
    settle_debt,
)
from .errors import ConnectionBroken, CoreError, GuestMemoryLost, leaves
from .ffi import Network, Port, RingState
from .log import Limited, get_logger
from .model import MacAddress, NetworkSpec, NicSpec, NicStats
from .peer import PeerCredentials, peer_credentials
from .unix_listener import UnixListener, open_unix_listener

TURN_TIME_LIMIT = 1.0
"""Seconds that a second frontend waits for the first one to go."""
PLACE_INTERVAL = 60.0
"""Seconds between looks at whether the socket file is still there: nobody tells us when it goes,
and who finds no socket looks into the log. With 512 NICs that is 40 ms, 0.07 % of a processor, and
no guest is served meanwhile: each NIC looks at a moment of its own."""
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


@attrs.frozen
class _InheritedListener:
    """A listening socket that somebody else has made; its file, if it has one, is theirs."""

    sock: trio.socket.SocketType

    async def accept(self) -> trio.socket.SocketType:
        """As `UnixListener.accept`."""
        connection, _ = await self.sock.accept()
        return connection


class Nic:
    """A NIC of a `Switch`, which makes it; `spec` has its addresses filled in.

    Args:
        spec: with its MAC address filled in.
        network: the one that it is in.
        routes: of that network; this NIC's are in it until it is closed.
        publish: called with each of its events, in their order; must not raise or wait.
        admission: frontends that come to the NIC's socket wait until it is set; None: they do not.
        workers: who may poll its guest's TX ring; None: nobody.
        times: what requests of its frontends take is added to it.

    Raises:
        CoreError: out of memory.
    """

    def __init__(
        self,
        spec: NicSpec,
        network: NetworkSpec,
        routes: Network,
        publish: Callable[[NicEvent], None] = lambda _event: None,
        admission: trio.Event | None = None,
        workers: Workers | None = None,
        times: RequestTimes | None = None,
    ) -> None:
        if spec.mac_address is None:
            raise ValueError(f"NIC {spec.name!r} has no MAC address yet")
        self.spec = spec
        self._mac: MacAddress = spec.mac_address
        self._network = network
        self._publish = publish
        self._admission = admission
        self._workers = workers
        self._times = times
        self._leases = 0
        self._connections = 0
        lines = WorkLimit(LINE_RATE, LINE_BURST)
        limit = Limited(lambda: lines.take(1, trio.current_time()))
        self._log = get_logger(__name__, limit).bind(nic=spec.name)
        self._port = Port(routes, self._mac)
        try:
            self._port.set_routes(spec.routes)
        except BaseException:
            self._port.close()
            raise
        self._line: list[trio.CancelScope] = []
        """Of connections, by arrival: the first one has its turn, which its scope ends."""
        self._in_place = True
        """Whether the socket file was there at the last look."""
        self._backend: VhostNetBackend | None = None
        self._connected = False
        self._refused = 0
        """Processes that were not allowed to connect."""
        self._refusal_told_at: float | None = None
        self._debt_told = False
        """Whether the log says why its frontends wait now."""
        self._scopes: set[trio.CancelScope] = set()
        """Of all that uses the port: `serve` and each connection."""
        self._closed = False
        self._changed = trio.Event()
        """Set, and replaced, when `_connected`, `_line`, `_scopes` or `_closed` change."""

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
            await self._changed.wait()

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

    async def serve(
        self,
        listener: socket.socket | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on the NIC's socket path and serve frontends, until cancelled or closed.

        A NIC without socket path only waits for its end. `task_status.started` is called when
        frontends can connect; nothing but a cancellation is raised after that.

        Args:
            listener: a listening unix stream socket in place of one of our own; owned from here
                on, but not its file.

        Raises:
            SocketInUseError: another process listens on the path.
            SocketAccessError: there is no permission for the path.
            SocketPathError: it cannot be listened on for another reason.
            trio.ClosedResourceError: the NIC was closed before.
        """
        with self._using_port():
            if listener is not None:
                with trio.socket.from_stdlib_socket(listener) as sock:
                    task_status.started()
                    del task_status
                    await self._serve_listener(_InheritedListener(sock))
            elif self.spec.socket_path is None:
                task_status.started()
                del task_status  # which holds on to all that was needed for waiting for us
                await trio.sleep_forever()
            else:
                with open_unix_listener(self.spec.socket_path, self.spec) as own:
                    task_status.started()
                    del task_status
                    await self._serve_listener(own, partial(self._look_at_place, own))

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
        with sock, self._using_port():
            await self._admit(sock, settled=trio.Event())

    async def serve_listener(self, sock: trio.socket.SocketType) -> None:
        """Serve the frontends that come to `sock`, until cancelled or closed.

        Args:
            sock: a listening unix stream socket; owned from here on, but not its file.

        Raises:
            trio.ClosedResourceError: the NIC was closed before.
        """
        with sock, self._using_port():
            await self._serve_all(_InheritedListener(sock))

    async def aclose(self) -> None:
        """End all that serves this NIC and free the port. Always runs to its end, which is near."""
        self._closed = True
        self._notify()
        for scope in self._scopes:
            scope.cancel()
        with trio.CancelScope(shield=True):
            while self._scopes:
                await self._changed.wait()
        self._port.close()
        await trio.lowlevel.checkpoint()

    @contextlib.contextmanager
    def _using_port(self) -> Iterator[None]:
        """For the time in which `aclose` must wait; it cancels the body."""
        self._check_open()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.remove(scope)
                self._notify()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"NIC {self.spec.name!r} was closed")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _event(self, kind: NicEventKind, detail: str = "") -> None:
        self._publish(NicEvent(self.spec.name, kind, detail))

    # Listening.

    async def _serve_listener(
        self,
        listener: UnixListener | _InheritedListener,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`_serve_all`, as soon as anybody is to be served."""
        if self._admission is not None:
            await self._admission.wait()
        await self._serve_all(listener, look)

    async def _serve_all(
        self,
        listener: UnixListener | _InheritedListener,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Accept frontends one by one: whoever has to wait its turn holds up those behind it.

        Args:
            listener: where they come from.
            look: called at the end of each, and every `PLACE_INTERVAL` while none comes.
        """
        async with trio.open_nursery() as nursery:
            while True:
                # Not in a task of its own: that would be half of what a waiting NIC takes.
                with trio.CancelScope(deadline=self._next_look()) as waiting:
                    sock = await self._accept(listener)
                if waiting.cancelled_caught:
                    look()
                    continue
                settled = trio.Event()
                nursery.start_soon(self._serve_accepted, sock, settled, look)
                await settled.wait()
                del sock, settled

    async def _accept(self, listener: UnixListener | _InheritedListener) -> trio.socket.SocketType:
        """The next connection, as soon as there are the resources for it."""
        failing = False
        while True:
            try:
                return await listener.accept()
            except OSError as error:
                if not failing:
                    self._log.warning("cannot accept a frontend", reason=error.strerror)
                failing = True
            await trio.sleep(ACCEPT_PAUSE)

    async def _serve_accepted(
        self, sock: trio.socket.SocketType, settled: trio.Event, look: Callable[[], None]
    ) -> None:
        """Started by `_serve_all`, for each connection; ends with it."""
        with sock:
            await self._admit(sock, settled)
        look()

    async def _admit(self, sock: trio.socket.SocketType, settled: trio.Event) -> None:
        """Serve a frontend in its turn, if it may connect."""
        peer = peer_credentials(sock)
        if peer.may_connect(self.spec):
            await self._serve_in_turn(sock, settled)
        else:
            self._refuse(peer)
            settled.set()

    def _refuse(self, peer: PeerCredentials) -> None:
        """Count it, and say it if that was not done just now."""
        self._refused += 1
        now = trio.current_time()
        if self._refusal_told_at is None or now - self._refusal_told_at >= REFUSAL_INTERVAL:
            self._refusal_told_at = now
            self._log.warning(
                "frontend sent away: it may not connect", **_named(peer), refused=self._refused
            )
            self._event(NicEventKind.REFUSED, f"process {peer.pid} of user {peer.uid}")

    def _next_look(self) -> float:
        """When to look at the place of the socket: NICs that were made together do not together."""
        phase = zlib.crc32(self._mac.packed) / 2**32 * PLACE_INTERVAL
        return phase + ((trio.current_time() - phase) // PLACE_INTERVAL + 1) * PLACE_INTERVAL

    def _look_at_place(self, listener: UnixListener) -> None:
        """Say it once when the socket file is gone.

        The NIC stays, for the frontend that it may have, and because the file may come back.
        """
        was_in_place, self._in_place = self._in_place, listener.is_in_place
        if was_in_place and not self._in_place:
            self._log.warning("socket was removed or replaced", path=str(listener.path))

    # One connection.

    async def _serve_in_turn(self, sock: trio.socket.SocketType, settled: trio.Event) -> None:
        """Serve a frontend, or send it away; `settled` is set as soon as it is clear which."""
        turn = trio.CancelScope()
        self._line.append(turn)
        try:
            has_turn = await self._wait_turn(turn)
            settled.set()
            if has_turn:
                with turn:
                    await self._serve_frontend(sock)
            else:
                self._log.warning("frontend sent away: another one is connected")
        finally:
            self._line.remove(turn)
            self._notify()

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
                    await self._changed.wait()
            if waiting.cancelled_caught:
                if self._connected:
                    return False
                self._end_turn(holder)
        return True

    def _end_turn(self, holder: trio.CancelScope) -> None:
        """Send away the one that is served; several that wait for it may do so at once."""
        if not holder.cancel_called:
            self._log.warning("frontend sent away: it made no request, and another one waits")
            holder.cancel()

    async def _serve_frontend(self, sock: trio.socket.SocketType) -> None:
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
            self._event(NicEventKind.FAULTED, reason)
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
            self._event(NicEventKind.FAULTED, "internal error")
            return "internal error"
        assert denied is not None
        reason = _reason(next(leaves(denied)))
        self._log.error("connection failed", reason=reason)
        return reason

    def _make_backend(self, sock: trio.socket.SocketType) -> VhostNetBackend:
        peer = peer_credentials(sock)
        return VhostNetBackend(
            sock,
            self._port,
            mac=self._mac,
            mtu=self._network.mtu,
            services=lambda mtu: services_for(self.spec, self._network, mtu, self._count_lease),
            workers=self._workers,
            on_connected=partial(self._set_connected, peer),
            on_fault=partial(self._event, NicEventKind.FAULTED),
            times=self._times,
            log=self._log,
        )

    def _count_lease(self) -> None:
        self._leases += 1

    def _set_connected(self, peer: PeerCredentials) -> None:
        self._connected = True
        self._connections += 1
        self._notify()
        self._log.info("frontend connected", **_named(peer))
        self._event(NicEventKind.CONNECTED)

    def _set_disconnected(self, reason: str) -> None:
        if self._connected:
            self._connected = False
            self._log.info("frontend disconnected")
            self._event(NicEventKind.DISCONNECTED, reason)


def _named(peer: PeerCredentials) -> dict[str, int]:
    """What the log says of the process at the other end."""
    return {"pid": peer.pid, "uid": peer.uid, "gid": peer.gid}


def _is_denied(error: BaseException) -> bool:
    """Whether the system had not the descriptors, memory or whatever else for it."""
    return isinstance(error, OSError | CoreError) and error.errno not in _BUGS


def _reason(error: BaseException) -> str:
    """One line for the log."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
