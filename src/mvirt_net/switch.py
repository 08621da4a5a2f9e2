"""Networks and NICs that come and go while their neighbours run.

A `Switch` owns a nursery, in which each connected frontend has its tasks, and all NICs together
have some. What may be in a switch together is decided by its `registry.Registry`; here is when
things begin and end. A NIC is entered in the registry before its socket exists and leaves it after
the socket is gone, so that two callers never fight for a name, an address or a path.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Container, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import MappingProxyType

import trio

from .capture import MAX_CAPTURES, Capture, Captured, check_bounds, open_capture_file
from .dataplane import Lookout, RequestTimes, Workers
from .errors import NotFoundError, TooManyCapturesError
from .ffi import MAX_FRAME, MAX_TAPS, Network, events_never_block
from .log import get_logger
from .model import Netmask, NetworkSpec, NicSpec, PollingSpec
from .nic import Nic, NicEvent, Surroundings
from .registry import Registry
from .turns import InTurns

EVENT_BACKLOG = 1024
"""Events that a subscriber may be behind."""
PLACE_INTERVAL = 60.0
"""Seconds in which the switch looks whether the socket file of each NIC is still there: nobody
tells us when it goes, and who finds no socket looks into the log. With 512 NICs that is 40 ms,
0.07 % of a processor, and no guest is served meanwhile: so NIC by NIC, one after another."""

_log = get_logger(__name__)


class Switch:
    """Isolated layer-3 networks and the NICs in them; made by `open_switch`.

    Args:
        nursery: where connections run, and what serves them. None of it fails in it.
        admission, polling, reserved: as of `open_switch`.

    Raises:
        OSError: no descriptor is left.
        CoreError: out of memory.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        admission: trio.Event | None = None,
        polling: PollingSpec = PollingSpec(),  # noqa: B008  (frozen)
        reserved: Mapping[Path, str] = MappingProxyType({}),
    ) -> None:
        self._nursery = nursery
        self._workers = Workers(polling, nursery)
        self.request_times = RequestTimes()
        """What requests of frontends have taken."""
        self._surroundings = Surroundings(
            nursery=nursery,
            lookout=Lookout(nursery),
            workers=self._workers,
            times=self.request_times,
            publish=self._publish,
            admission=admission,
        )
        nursery.start_soon(self._look_at_places)
        self._registry = Registry(reserved)
        self._routes: dict[str, Network] = {}
        """By the name of the network."""
        self._nics: dict[str, Nic] = {}
        self._subscribers: set[trio.MemorySendChannel[NicEvent]] = set()
        self._captures: dict[Capture, bool] = {}
        """Those that have not ended, and whether they are of NICs to come, too."""
        self._captured = Captured()
        """By those that have."""
        self._starting_capture = trio.Lock()
        """Held from the check that a NIC may have one more until it has it."""
        self._closed = False
        self._closing = trio.Lock()
        """Held while all NICs are removed."""

    @property
    def networks(self) -> Mapping[str, NetworkSpec]:
        """A live, read-only view: name → network."""
        return self._registry.networks

    @property
    def nics(self) -> Mapping[str, Nic]:
        """A live, read-only view: name → NIC, those that are complete."""
        return MappingProxyType(self._nics)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is being closed."""
        return self._closed

    @property
    def hot_rings(self) -> int:
        """How many TX rings worker threads poll just now."""
        return self._workers.hot_rings

    @property
    def thread_seconds(self) -> Mapping[str, float]:
        """Processor time of the threads that drain rings, by their names."""
        return self._workers.cpu_seconds

    @property
    def captures(self) -> tuple[Capture, ...]:
        """Those under way."""
        return tuple(self._captures)

    @property
    def captured(self) -> Captured:
        """Of all captures since the beginning."""
        total = self._captured
        for capture in self._captures:
            total += capture.captured
        return total

    async def add_network(self, spec: NetworkSpec) -> NetworkSpec:
        """Add a network without NICs. A checkpoint.

        Raises:
            DuplicateError: there is one of that name.
            ConfigError: its subnet, prefix or MTU cannot be used.
            CoreError: out of memory.
            trio.ClosedResourceError: the switch was closed.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        kept = self._registry.add_network(spec)
        try:
            self._routes[kept.name] = Network(kept.mtu, kept.subnets)
        except BaseException:
            self._registry.remove_network(kept.name)
            raise
        return kept

    async def update_network(
        self,
        name: str,
        *,
        dns_servers: Iterable[IPv4Address | IPv6Address | str] | None = None,
        ntp_servers: Iterable[IPv4Address | IPv6Address | str] | None = None,
        ipv4_netmask: Netmask | str | None = None,
        is_public: bool | None = None,
    ) -> NetworkSpec:
        """Change what a network tells its guests, while they run. A checkpoint.

        They hear of it when they ask next: by DHCP, when they renew their lease; of DNS servers
        also by router advertisements, which begin anew.

        Args:
            name: of the network.
            dns_servers, ntp_servers, ipv4_netmask, is_public: as of `NetworkSpec`; None: as it is.

        Returns:
            The network's specification from now on.

        Raises:
            NotFoundError: there is no network of that name.
            ConfigError: a value is wrong; the key names the field. Nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        spec = self._registry.update_network(
            name,
            dns_servers=dns_servers,
            ntp_servers=ntp_servers,
            ipv4_netmask=ipv4_netmask,
            is_public=is_public,
        )
        for nic in self._nics.values():
            if nic.spec.network == name:
                nic.update_network(spec)
        return spec

    async def remove_network(self, name: str) -> None:
        """Remove a network. A checkpoint.

        Raises:
            NotFoundError: there is none of that name.
            ConfigError: there still are NICs in it.
        """
        await trio.lowlevel.checkpoint()
        self._registry.remove_network(name)
        if name in self._routes:
            self._routes.pop(name).close()

    async def add_nic(
        self,
        spec: NicSpec,
        avoid: Container[IPv4Address | IPv6Address] = frozenset(),
        *,
        listener: socket.socket | None = None,
    ) -> Nic:
        """Add a NIC and let frontends connect to it.

        Args:
            spec: of the NIC.
            avoid: addresses that it is not given, though they are free.
            listener: a listening unix stream socket for it, in place of one that it would make at
                `socket_path`, which is only a name then. Owned by the switch from here on, but not
                its file.

        Returns:
            The NIC, its socket listening; `Nic.spec` has all addresses.

        Raises:
            DuplicateError: its name, MAC address, IP address or socket path is taken.
            ExhaustedError: there is no address left for it.
            ConfigError: anything else about the specification; the key names the field.
            SocketInUseError: another process listens on the socket path.
            SocketAccessError: there is no permission for the socket path.
            SocketPathError: it cannot be listened on for another reason.
            CoreError: out of memory.
            trio.ClosedResourceError: the switch was closed.
        """
        with contextlib.ExitStack() as unused:
            if listener is not None:
                unused.enter_context(listener)
            nic = await self._start_nic(spec, avoid, listener)
            unused.pop_all()
        self._nics[spec.name] = nic
        return nic

    async def _start_nic(
        self,
        spec: NicSpec,
        avoid: Container[IPv4Address | IPv6Address],
        listener: socket.socket | None,
    ) -> Nic:
        """A NIC that listens, entered in the registry; not in `nics` yet. A checkpoint."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        complete = self._registry.add_nic(spec, avoid)
        nic = None
        try:
            network = complete.network
            nic = Nic(complete, self.networks[network], self._routes[network], self._surroundings)
            nic.listen(listener)
            # Last, and nobody has a turn before it is in `nics`: one that begins has it, or this.
            self._add_to_captures(nic)
        except BaseException:
            if nic is None:
                self._registry.remove_nic(spec.name)
            else:
                await self._end(nic)
            raise
        return nic

    async def update_nic(
        self,
        name: str,
        *,
        routed_ipv4_prefixes: Iterable[IPv4Network | str] | None = None,
        routed_ipv6_prefixes: Iterable[IPv6Network | str] | None = None,
        allow_uid: Iterable[int | str] | None = None,
        allow_gid: Iterable[int | str] | None = None,
    ) -> NicSpec:
        """Replace the prefixes that are routed to a NIC, while packets flow. A checkpoint.

        Each packet meets either all of the old prefixes or all of the new ones.

        Args:
            name: of the NIC.
            routed_ipv4_prefixes, routed_ipv6_prefixes: all that it is to have of either family;
                None: as they are.
            allow_uid, allow_gid: who may connect from now on; whoever is connected stays.

        Returns:
            The NIC's specification from now on, which is also `Nic.spec`.

        Raises:
            NotFoundError: there is no NIC of that name.
            ConfigError: a prefix is none, is never routed, or overlaps another's; the key names
                the field. Nothing has changed.
            CoreError: out of memory; nothing has changed.
        """
        await trio.lowlevel.checkpoint()
        if name not in self._nics:
            raise NotFoundError(f"there is no NIC {name!r}")
        nic = self._nics[name]
        spec = self._registry.update_nic(
            name,
            routed_ipv4_prefixes=routed_ipv4_prefixes,
            routed_ipv6_prefixes=routed_ipv6_prefixes,
            allow_uid=allow_uid,
            allow_gid=allow_gid,
        )
        try:
            nic.update(spec)
        except BaseException:
            self._registry.put_back(nic.spec)
            raise
        return spec

    async def remove_nic(self, name: str) -> None:
        """Remove a NIC; once begun, it is carried through, cancelled or not.

        At the return its frontend is disconnected, the guest's memory unmapped, the socket file
        gone, and all that the NIC had is free for another.

        Raises:
            NotFoundError: there is none of that name.
        """
        nic = self._nics.pop(name, None)
        if nic is None:
            raise NotFoundError(f"there is no NIC {name!r}")
        await self._end(nic)
        await trio.lowlevel.checkpoint()

    async def start_capture(
        self,
        target: Path | str | int,
        *,
        nics: Iterable[str] | None = None,
        snaplen: int = MAX_FRAME,
        limit: int | None = None,
        name: str | None = None,
    ) -> Capture:
        """Write what guests send and receive into a pcapng file, until the capture is closed.

        It also ends with the switch, at its limit, and when the file cannot be written any more,
        which is one line in the log and nobody else's trouble.

        Args:
            target: where the file is to be; one that is there is written anew, but a symbolic link
                is not followed. Or an open descriptor, owned from here on unless this raises.
            nics: names; None: all, those that are added later too.
            snaplen: bytes of each frame at most.
            limit: no packet is written that would make the file larger than so many bytes. It may
                be larger by what is written besides: 200 bytes or so for each NIC. None: as many
                as come.
            name: what the log calls it; None: the target.

        Returns:
            The capture, to be closed by its `aclose`. A checkpoint.

        Raises:
            ConfigError: `snaplen` or `limit` is out of bounds; the key names it.
            NotFoundError: there is no NIC of one of these names.
            OSError: the file cannot be made.
            TooManyCapturesError: a NIC has four already, or there are `MAX_CAPTURES`.
            CoreError: out of memory.
            trio.ClosedResourceError: the switch was closed.
        """
        check_bounds(snaplen, limit)
        async with self._starting_capture:
            self._check_open()
            names = list(self._nics) if nics is None else list(dict.fromkeys(nics))
            for wanted in names:
                if wanted not in self._nics:
                    raise NotFoundError(f"there is no NIC {wanted!r}")
            self._check_captures(names, of_all=nics is None)
            fd = target if isinstance(target, int) else open_capture_file(Path(target))
            try:
                capture = Capture(fd, name or str(target), snaplen=snaplen, limit=limit)
            except BaseException:
                if not isinstance(target, int):
                    os.close(fd)
                raise
            # NICs that are made meanwhile are not forgotten, and not added twice.
            tapped = [self._nics[wanted] for wanted in names]
            self._captures[capture] = nics is None
            try:
                await self._tap(tapped, capture)
            except BaseException:
                capture.abandon(close_file=not isinstance(target, int))
                self._forget_capture(capture)
                raise
            self._nursery.start_soon(capture.run, partial(self._forget_capture, capture))
        return capture

    async def _tap(self, nics: Iterable[Nic], capture: Capture) -> None:
        """Those that are still there when it is their turn."""

        def tap(nic: Nic) -> None:
            self._check_open()
            if self._nics.get(nic.spec.name) is nic:
                nic.add_to(capture)

        async for _nothing in InTurns[None](nics, tap):
            pass
        self._check_open()

    def _check_captures(self, names: Iterable[str], *, of_all: bool) -> None:
        """Whether one more can have these NICs, and all that come. Raises TooManyCapturesError."""
        if len(self._captures) == MAX_CAPTURES:
            raise TooManyCapturesError(f"there are {MAX_CAPTURES} captures already")
        if of_all and sum(self._captures.values()) == MAX_TAPS:
            raise TooManyCapturesError(f"there are {MAX_TAPS} captures of all NICs already")
        for name in names:
            if self._nics[name].captures == MAX_TAPS:
                raise TooManyCapturesError(f"NIC {name!r} has {MAX_TAPS} captures already")

    def _forget_capture(self, capture: Capture) -> None:
        del self._captures[capture]
        self._captured += capture.captured

    def _add_to_captures(self, nic: Nic) -> None:
        """Those of all NICs have the new one, too."""
        for capture, of_all in self._captures.items():
            if of_all:
                nic.add_to(capture)

    def events(self) -> trio.MemoryReceiveChannel[NicEvent]:
        """Subscribe to what happens to the NICs from now on.

        Returns:
            An async iterator of events, to be closed when it is not wanted any more::

                async with switch.events() as events:
                    async for event in events:
                        ...

            It ends with the switch, at once if that was closed before, or when it has fallen
            `EVENT_BACKLOG` events behind.
        """
        send, receive = trio.open_memory_channel[NicEvent](EVENT_BACKLOG)
        if self._closed:
            send.close()
        else:
            self._subscribers.add(send)
        return receive

    async def aclose(self) -> None:
        """Remove all NICs and end all subscriptions; carried through, cancelled or not.

        May be called again, also while the first call is under way, for which it waits then.
        """
        self._closed = True
        with trio.CancelScope(shield=True):
            async with self._closing:
                try:
                    # Others may remove NICs meanwhile.
                    while self._nics:
                        _name, nic = self._nics.popitem()
                        await self._end(nic)
                finally:
                    self._end_subscriptions()
                    self._workers.close()
                    self._surroundings.lookout.close()
                    await self._end_captures()
                while self._routes:
                    _network, routes = self._routes.popitem()
                    routes.close()
        await trio.lowlevel.checkpoint()

    async def _end_captures(self) -> None:
        """All at a time, so that readers that do not read take a second together, not each."""
        async with trio.open_nursery() as nursery:
            for capture in self._captures:
                nursery.start_soon(capture.aclose)

    async def _end(self, nic: Nic) -> None:
        """Close a NIC that is not, or no longer, in `nics`, then give its names and addresses free.

        Never cut short by a cancellation, which the caller's next checkpoint will notice.
        """
        with trio.CancelScope(shield=True):
            try:
                await nic.aclose()
            finally:
                self._registry.remove_nic(nic.spec.name)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the switch was closed")

    async def _look_at_places(self) -> None:
        """Started with the switch, and ends with it."""
        while True:
            nics = list(self._nics.values())
            pause = PLACE_INTERVAL / max(1, len(nics))
            for nic in nics:
                await trio.sleep(pause)
                nic.look_at_place()
            if not nics:
                await trio.sleep(pause)

    def _publish(self, event: NicEvent) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.send_nowait(event)
            except trio.BrokenResourceError:
                self._unsubscribe(subscriber)
            except trio.WouldBlock:
                _log.warning("subscriber to events is too slow and gets no more")
                self._unsubscribe(subscriber)

    def _end_subscriptions(self) -> None:
        for subscriber in self._subscribers:
            subscriber.close()
        self._subscribers.clear()

    def _unsubscribe(self, subscriber: trio.MemorySendChannel[NicEvent]) -> None:
        self._subscribers.remove(subscriber)
        subscriber.close()


@contextlib.asynccontextmanager
async def open_switch(
    *,
    admission: trio.Event | None = None,
    polling: PollingSpec = PollingSpec(),  # noqa: B008  (frozen)
    reserved: Mapping[Path, str] = MappingProxyType({}),
) -> AsyncIterator[Switch]:
    """A switch without networks, for the length of an ``async with`` block.

    Args:
        admission: frontends can connect to the sockets of NICs at once, but are only served when
            this is set; by default at once.
        polling: of busy TX rings, by default in one thread, which is started with the first of
            them; another thread waits for the kicks of the others. ``PollingSpec(workers=0)`` has
            everything done in trio's own.
        reserved: socket paths that no NIC may have, because a control interface of that name has
            them.

    At the end of the block its NICs are removed. What the block raises comes out as it is: a switch
    has no exceptions of its own, for the failure of a NIC stays that NIC's.

    Raises:
        OSError: no descriptor is left.
        CoreError: out of memory.
    """
    if not events_never_block():
        _log.warning("no asynchronous I/O (io_setup): a hostile frontend could stop this process")
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            switch = Switch(nursery, admission, polling, reserved)
            try:
                yield switch
            finally:
                with trio.CancelScope(shield=True):
                    await switch.aclose()
        except BaseException as error:
            # Through the nursery it would come out in a group.
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
