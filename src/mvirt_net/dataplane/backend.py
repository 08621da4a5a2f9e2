"""One connection of a frontend: its conversation and its rings, in one nursery.

Three tasks or four, and two more for each further queue pair that the frontend starts. None
outlives `VhostNetBackend.serve`:

* **control**, the task that serves the connection, reads requests, has the session carry them out,
  writes replies;
* **tx_kicks** empties a TX ring when the driver kicks, and has the services answer; while the
  ring is hot a worker empties it, and the task does what that leaves to do;
* **rx_injection** moves frames to an RX ring as the driver gives buffers;
* the **advertiser** tells the guest of its router, unasked, while it can receive; a NIC without
  IPv6 has none.

There may be hundreds of connections with nothing to do, and each of these tasks takes 3 KiB then.
So what hardly ever happens, that guest memory vanishes, is waited for by the `Lookout` of all NICs.

The ring tasks know nothing of the vhost-user state. They call the core, which does as much as the
state of its ring allows, and sleep on what it says comes next; whoever changes a ring rings the
`Doorbell` of its task. A change between that answer and the sleep is not missed, as the bell
remembers it, and neither is a kick, as the eventfd does.

This module, `channel`, `mapping`, `doorbell`, `lookout`, `advertiser`, `workers`, `kicks` and
`threads` are the only ones in this package that know of trio.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import assert_never

import structlog
import trio

from ..errors import ConnectionBroken, GuestMemoryLost, MvirtNetError
from ..ffi import Drained, HotRing, NextStep, Port, Punt, Watch, read_event, work_of
from ..log import get_logger
from ..model import MacAddress, PuntKind, pair_of, rx_of, tx_of
from ..vhost_user.session import Session
from .advertiser import RouterAdvertiser
from .channel import Message, MessageChannel
from .device import VhostDevice
from .doorbell import Doorbell
from .fds import close_fd, close_fds
from .heat import Heat
from .latency import RequestTimes
from .lookout import Lookout
from .mapping import map_prepared
from .ndp import NdpResponder
from .packet import Service
from .slowpath import SlowPath
from .workers import Workers

POLL_INTERVAL = 0.005
"""Seconds between looks at a ring whose driver does not kick (no-descriptor bit of
SET_VRING_KICK): a delay that a ping can bear, for 200 wake-ups a second."""
STARVED_LIMIT = 0.1
"""Seconds that a frame may wait for a driver that gives buffers, but not enough for it. Nothing
else is delivered meanwhile; no driver that is alive takes so long."""
WORK_PER_TURN = 100.0
"""Microseconds of answers, and one at least, before other tasks get a turn."""
REFUSALS_LOGGED = 20
"""Refused requests that get a line in the log, per connection."""
BREAKS_LOGGED = 20
"""Broken rings that get a line in the log, per connection: each restart lets a guest break one."""


def _queue_name(index: int) -> str:
    """For the log; the number of the pair only where it matters."""
    name = "TX" if index == tx_of(pair_of(index)) else "RX"
    return f"{name} {pair_of(index)}" if pair_of(index) else name


class BoundedLog:
    """Warnings that a hostile peer can cause at will, and must not fill the log with.

    Args:
        log: where they go.
        limit: how many of them; after the last one a line says that there will be no more.
        what: they are about, in the plural.
    """

    __slots__ = ("_left", "_log", "_what")

    def __init__(self, log: structlog.stdlib.BoundLogger, limit: int, what: str) -> None:
        self._log = log
        self._left = limit
        self._what = what

    def warning(self, event: str, **fields: str) -> None:
        """Log it if it is not one too many."""
        if self._left == 0:
            return
        self._left -= 1
        self._log.warning(event, **fields)
        if self._left == 0:
            self._log.warning(f"further {self._what} of this connection are not logged")


class VhostNetBackend:
    """Serves one connected frontend on a port that nobody else uses meanwhile.

    Args:
        sock: a connected unix stream socket that does not block; `serve` closes it.
        port: the NIC's; borrowed until `serve` ends.
        mac: the NIC's MAC address, for the configuration space.
        mtu: of the network, in bytes, for the configuration space.
        services: makes those who answer slow-path frames on a link of a given MTU: at first the
            network's, then a smaller one if the frontend sets it.
        lookout: waits for the loss of guest memory.
        workers: who may poll TX rings while they are hot; None: nobody.
        on_connected: called once, when the frontend has sent its first request.
        on_fault: called with one line when the guest breaks a ring.
        times: what requests take is added to it.
        log: where events go, bound to what names the NIC.
    """

    __slots__ = (
        "_advertiser",
        "_bells",
        "_break_log",
        "_broken",
        "_end",
        "_hinted_at_memory",
        "_log",
        "_lookout",
        "_mac",
        "_make_services",
        "_mtu",
        "_mtu_of_guest",
        "_nursery",
        "_on_connected",
        "_on_fault",
        "_port",
        "_refusal_log",
        "_slow_path",
        "_sock",
        "_starved_until",
        "_times",
        "_watches",
        "_workers",
    )

    def __init__(
        self,
        sock: socket.socket,
        port: Port,
        *,
        mac: MacAddress,
        mtu: int,
        services: Callable[[int], Mapping[PuntKind, Service]],
        lookout: Lookout,
        workers: Workers | None = None,
        on_connected: Callable[[], None] = lambda: None,
        on_fault: Callable[[str], None] = lambda _detail: None,
        times: RequestTimes | None = None,
        log: structlog.stdlib.BoundLogger | None = None,
    ) -> None:
        self._sock = sock
        self._port = port
        self._mac = mac
        self._mtu = mtu
        self._mtu_of_guest = mtu
        self._make_services = services
        self._lookout = lookout
        self._workers = workers
        self._on_connected = on_connected
        self._on_fault = on_fault
        self._times = times or RequestTimes()
        self._log = log or get_logger(__name__)
        self._bells: dict[int, Doorbell] = {}
        """Of the rings whose pair has its tasks."""
        self._nursery: trio.Nursery
        self._watches: dict[int, Watch] = {}
        """By the kick eventfd that is waited for."""
        self._broken: tuple[int, ...] = ()
        self._slow_path = SlowPath(mac, {}, port.enqueue, self._log)
        self._advertiser: RouterAdvertiser | None = None
        """Of a NIC with IPv6, which it has or not, for good."""
        self._starved_until: dict[int, float] = {}
        """When the frame that needs more buffers than there are will be given up, by RX ring."""
        self._refusal_log = BoundedLog(self._log, REFUSALS_LOGGED, "refused requests")
        self._break_log = BoundedLog(self._log, BREAKS_LOGGED, "broken rings")
        self._hinted_at_memory = False
        self._end: MvirtNetError | None = None

    async def serve(self) -> None:
        """Serve until the frontend closes the connection.

        Whatever ends it, at the return the rings are stopped, the guest's memory is unmapped and
        all descriptors are closed.

        Raises:
            ConnectionBroken: the conversation cannot go on.
            GuestMemoryLost: the frontend took its memory back.
            OSError, CoreError: no descriptor or no memory is left to begin with.
            ExceptionGroup: of the same kinds, when it happens later; of anything else, which is a
                bug.
        """
        with self._sock, self._make_device() as device:
            self._lookout.watch(device.fault_fd, self._lose_memory)
            self.renew_services()
            # From here on other NICs' tasks may find frames for this guest.
            self._port.wake = self._wake_pair
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._serve_pair(device, 0)
                    if self._advertiser is not None:
                        nursery.start_soon(self._advertiser.run)
                    await self._control(device)
                    nursery.cancel_scope.cancel()
            finally:
                self._port.wake = _nobody
                self._port.set_mtu(self._mtu)
        if self._end is not None:
            raise self._end

    def _make_device(self) -> VhostDevice:
        return VhostDevice(
            self._port,
            wake=self._ring_changed,
            on_start=self._serve_ring,
            on_mtu=self._limit_mtu,
            release_fd=self._release_fd,
        )

    def inject(self, frame: bytes) -> bool:
        """Put a whole Ethernet frame on its way to the guest.

        Returns:
            False when it was dropped and counted: the ring is down or the backlog full.

        Raises:
            CoreError: the frame is shorter than its header or longer than 65,549 bytes.
        """
        taken = self._port.enqueue(frame)
        self._wake_rx()
        return taken

    def renew_services(self, *, advertise: bool = False) -> None:
        """Make the services anew, of what they are made of now.

        Args:
            advertise: tell the guest unasked what a router advertisement says now.
        """
        services = self._make_services(self._mtu_of_guest)
        self._slow_path.services = services
        ndp = services.get(PuntKind.NDP)
        if isinstance(ndp, NdpResponder):
            if self._advertiser is None:
                self._advertiser = RouterAdvertiser(ndp, self._can_receive, self.inject)
            else:
                self._advertiser.use(ndp)
            if advertise:
                self._advertiser.begin_anew()

    def _can_receive(self) -> bool:
        return self._port.is_up

    def _follow_link(self) -> None:
        """The guest may have begun to receive, or have ended that."""
        if self._advertiser is not None:
            self._advertiser.follow_link()

    def _serve_ring(self, device: VhostDevice, index: int) -> None:
        """The first ring of a pair that starts brings the tasks of both."""
        self._serve_pair(device, pair_of(index))

    def _serve_pair(self, device: VhostDevice, pair: int) -> None:
        """Start the tasks of a queue pair, unless it has them."""
        if rx_of(pair) in self._bells:
            return
        self._bells[rx_of(pair)] = Doorbell()
        self._bells[tx_of(pair)] = Doorbell()
        self._nursery.start_soon(self._tx_kicks, device, pair)
        self._nursery.start_soon(self._rx_injection, device, pair)

    # The tasks. `serve` starts each or is it, or the first start of a ring of its pair does. Each
    # runs until the connection ends.

    async def _control(self, device: VhostDevice) -> None:
        """Talk with the frontend, to the end of the conversation."""
        channel = MessageChannel(self._sock)
        session = Session(device, mac=self._mac, mtu=self._mtu)
        try:
            while (message := await channel.receive()) is not None:
                began = trio.current_time()
                reply = await self._handle(session, device, message)
                self._times.observe(trio.current_time() - began)
                self._hint_at_memory(session)
                self._on_connected()
                self._on_connected = _nothing
                if reply is not None:
                    await channel.send(reply)
                # Nothing is kept while the frontend is silent, for hundreds may be.
                del message, reply
        except ConnectionBroken as error:
            self._end = error

    async def _tx_kicks(self, device: VhostDevice, pair: int) -> None:
        """Take what the guest sends, and have the services answer it."""
        queue = tx_of(pair)
        heat = None if self._workers is None else self._workers.new_heat()
        with self._watching(pair) as watch:
            while True:
                drained = self._port.drain(trio.current_time(), pair)
                self._look_for_break(queue, drained.next)
                await self._finish(drained, heat)
                if heat is not None and heat.is_hot and await self._while_hot(heat, device, pair):
                    continue
                if drained.next is NextStep.KICK and watch is not None and heat is not None:
                    await self._while_watched(watch, heat, device, pair)
                else:
                    await self._until_next(queue, drained.next, device)

    async def _rx_injection(self, device: VhostDevice, pair: int) -> None:
        """Hand the backlog to the guest."""
        queue = rx_of(pair)
        while True:
            step = self._port.flush(pair)
            if step is not NextStep.MORE_BUFFERS:
                self._starved_until.pop(queue, None)
            self._look_for_break(queue, step)
            if pair:
                # Its first buffers may have come, and the guest have no other pair.
                self._follow_link()
            await self._until_next(queue, step, device)

    def _lose_memory(self) -> None:
        """The core says that guest memory has vanished, which ends the connection."""
        self._end = GuestMemoryLost("the frontend shrank the file behind guest memory")
        self._nursery.cancel_scope.cancel()

    # What they are made of.

    def _watching(self, pair: int) -> contextlib.AbstractContextManager[Watch | None]:
        """For the time in which a TX ring has its task."""
        if self._workers is None:
            return contextlib.nullcontext()
        return self._workers.watching(self._port, pair, self._bells[tx_of(pair)].ring)

    async def _while_watched(
        self, watch: Watch, heat: Heat, device: VhostDevice, pair: int
    ) -> None:
        """Have kicks waited for elsewhere, where that is possible; until the task is needed.

        The ring must be drained next: since the last drain there may have been kicks that nobody
        has followed, and it may be another ring than it was.
        """
        queue = tx_of(pair)
        kick = device.fds(queue).kick
        if kick is None or not _begin(watch, kick, heat):
            await self._next_kick(queue, device)
            return
        self._watches[kick] = watch
        try:
            await self._bells[queue].wait()
        finally:
            watched = watch.end()
            # By now it may be closed, and its number be that of another ring's.
            if self._watches.get(kick) is watch:
                del self._watches[kick]
        device.take_kick(queue)
        if watched is not None:
            if watched.quick:
                heat.kicked_quickly()
            await self._finish(watched.drained, heat)

    async def _while_hot(self, heat: Heat, device: VhostDevice, pair: int) -> bool:
        """Have a worker poll a TX ring until it is idle, stopped or broken. A checkpoint.

        Returns:
            Whether one had the ring. It must be drained next, for nobody has asked for a kick.
        """
        assert self._workers is not None
        before = self._port.tx_frames(pair)
        with self._workers.polling(self._port, pair) as ring:
            if ring is not None:
                await self._serve_hot(ring)
        heat.cooled(self._port.tx_frames(pair) - before)
        if ring is None:
            return False
        # A kick up to here needs no drain but the next.
        device.take_kick(tx_of(pair))
        return True

    async def _serve_hot(self, ring: HotRing) -> None:
        """Do what a worker leaves to do, until it has released the ring. A checkpoint."""
        while True:
            await trio.lowlevel.wait_readable(ring.fd)
            read_event(ring.fd)
            released = ring.released
            while (drained := ring.take()) is not None:
                await self._finish(drained, hot=ring)
                await trio.lowlevel.checkpoint()
            if released:
                return

    async def _finish(
        self, drained: Drained, heat: Heat | None = None, hot: HotRing | None = None
    ) -> None:
        """Do what a drain of a TX ring has left to do.

        Args:
            heat: of the ring, if that is COLD and may be another.
            hot: the ring, if that is HOT.
        """
        if heat is not None:
            left = drained.next is NextStep.CALL_AGAIN
            heat.drained(left=left, punts=len(drained.punts))
        _wake_all(drained.woken)
        await self._answer(drained.punts, hot)

    async def _handle(
        self, session: Session, device: VhostDevice, message: Message
    ) -> bytes | None:
        """Have a request carried out. A checkpoint only where mapping memory has to wait."""
        header, payload, fds = message.header, message.payload, message.fds
        try:
            prepared = device.prepare(session.memory_wanted(header, payload, fds))
            if prepared:
                await map_prepared(prepared, self._port)
            with device.using(prepared):
                outcome = session.handle(header, payload, fds)
        finally:
            close_fds(message.fds)
        if outcome.refused is not None:
            self._refusal_log.warning("request refused", reason=outcome.refused)
        return outcome.reply

    def _hint_at_memory(self, session: Session) -> None:
        """QEMU starts rings without a word when it was not told to share the VM's memory."""
        if session.lacks_memory and not self._hinted_at_memory:
            self._hinted_at_memory = True
            self._log.warning("no guest memory yet: the VM's memory has to be shared (share=on)")

    def _limit_mtu(self, mtu: int) -> None:
        """The frontend has told the driver another MTU, and the services must not promise more.

        As the driver expects no larger packets either, none are routed to it.
        """
        self._mtu_of_guest = min(mtu, self._mtu)
        self._port.set_mtu(mtu)
        self.renew_services()

    def _ring_changed(self, index: int) -> None:
        """The frontend did something to a ring.

        A start mends a ring that was broken. The ring's task may find it broken anew when it looks
        for the first time, so it must be noted here that this is another break.
        """
        if index in self._broken and not self._port.ring_broken(index):
            self._broken = tuple(other for other in self._broken if other != index)
        self._follow_link()
        self._wake(index)

    def _wake(self, index: int) -> None:
        """Nobody waits for a ring that never was started."""
        if index in self._bells:
            self._bells[index].ring()

    def _wake_pair(self, pair: int) -> None:
        """Its RX ring has something to do."""
        self._wake(rx_of(pair))

    def _wake_rx(self) -> None:
        """Any RX ring may be the one that has something to do."""
        for index, bell in self._bells.items():
            if index == rx_of(pair_of(index)):
                bell.ring()

    def _release_fd(self, fd: int) -> None:
        """Close a descriptor on which a task of ours, the watcher or the lookout may be waiting."""
        if (watch := self._watches.pop(fd, None)) is not None:
            watch.end()
        self._lookout.forget(fd)
        trio.lowlevel.notify_closing(fd)
        close_fd(fd)

    async def _until_next(self, index: int, step: NextStep, device: VhostDevice) -> None:
        """Sleep until the ring's task should call the core again. A checkpoint."""
        match step:
            case NextStep.CALL_AGAIN:
                await trio.lowlevel.checkpoint()
            case NextStep.NOTHING:
                await self._bells[index].wait()
            case NextStep.KICK:
                await self._next_kick(index, device)
            case NextStep.MORE_BUFFERS:
                await self._more_buffers(index, device)
            case _:
                assert_never(step)

    async def _more_buffers(self, index: int, device: VhostDevice) -> None:
        """Until the driver gives more buffers, or has been asked for them too long ago."""
        until = self._starved_until.setdefault(index, trio.current_time() + STARVED_LIMIT)
        with trio.CancelScope(deadline=until) as waiting:
            await self._next_kick(index, device)
        if waiting.cancelled_caught:
            del self._starved_until[index]
            self._port.drop_first(pair_of(index))

    async def _next_kick(self, index: int, device: VhostDevice) -> None:
        """Until the driver kicks, may have changed the ring without, or the ring changes hands."""
        ring, bell = device.fds(index), self._bells[index]
        if ring.kick is not None:
            await bell.wait_or_readable(ring.kick)
            device.take_kick(index)
        elif ring.polled:
            with trio.move_on_after(POLL_INTERVAL):
                await bell.wait()
        else:
            await bell.wait()

    async def _answer(self, punts: list[Punt], hot: HotRing | None) -> None:
        """Have the services answer slow-path frames, a few at a time.

        Args:
            hot: whose worker may find more to wake meanwhile, who must not wait for the answers.
        """
        if not punts:
            # Nearly always, and eight RX tasks that wake for nothing take 0.2 ms.
            return
        work = 0.0
        for punt in punts:
            if work >= WORK_PER_TURN:
                self._wake_rx()
                if hot is not None:
                    _wake_all(hot.take_woken())
                await trio.lowlevel.checkpoint()
                work = 0.0
            work += work_of(punt.kind, len(punt.frame))
            reason = self._slow_path.answer(punt)
            if reason is not None:
                self._port.count_drop(reason)
            # What an error was about has been recorded with the reason for it.
            if punt.kind is not PuntKind.ICMP_ERROR:
                self._port.record_punt(punt.frame, reason)
        self._wake_rx()

    def _look_for_break(self, index: int, step: NextStep) -> None:
        """Say it once when a driver has broken its ring; a restart of the ring mends it.

        Args:
            step: what the core said last: of a broken ring, that there is NOTHING to do. Otherwise
                the ring's lock is not worth waiting for. (Of an RX ring that is what it nearly
                always says, of a TX ring that drains well never.)
        """
        if step is not NextStep.NOTHING or index in self._broken:
            return
        if not self._port.ring_broken(index):
            return
        self._broken += (index,)
        self._break_log.warning("ring broken", queue=_queue_name(index))
        self._on_fault(f"the guest's driver broke its {_queue_name(index)} ring")


def _nothing() -> None:
    """What is left of `on_connected` once it has been called."""


def _nobody(_pair: int) -> None:
    """Who is woken after the end."""


def _wake_all(woken: list[tuple[Port, int]]) -> None:
    """Have their tasks flush them."""
    for port, pair in woken:
        port.wake(pair)


def _begin(watch: Watch, kick: int, heat: Heat) -> bool:
    """Have a ring watched, if that can be."""
    try:
        watch.begin(kick, *heat.burst)
    except OSError:
        return False
    return True
