"""Networks and NICs that come and go while their neighbours run.

A `Switch` owns a nursery, in which each NIC is one task. What may be in it together is decided by
its `registry.Registry`; here is when things begin and end. A NIC is entered in the registry before
its socket exists and leaves it after the socket is gone, so that two callers never fight for a
name, an address or a path.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Container, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType

import trio

from .dataplane import Workers
from .errors import NotFoundError
from .ffi import Network, events_never_block
from .log import get_logger
from .model import Netmask, NetworkSpec, NicSpec, PollingSpec
from .nic import Nic, NicEvent
from .registry import Registry

EVENT_BACKLOG = 1024
"""Events that a subscriber may be behind."""

_log = get_logger(__name__)


class Switch:
    """Isolated layer-3 networks and the NICs in them; made by `open_switch`.

    Args:
        nursery: where NICs run. They never fail in it.
        admission, polling: as of `open_switch`.

    Raises:
        CoreError: out of memory.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        admission: trio.Event | None = None,
        polling: PollingSpec = PollingSpec(),  # noqa: B008  (frozen)
    ) -> None:
        self._nursery = nursery
        self._admission = admission
        self._workers = Workers(polling, nursery)
        self._registry = Registry()
        self._routes: dict[str, Network] = {}
        """By the name of the network."""
        self._nics: dict[str, Nic] = {}
        self._subscribers: set[trio.MemorySendChannel[NicEvent]] = set()
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
        self, spec: NicSpec, avoid: Container[IPv4Address | IPv6Address] = frozenset()
    ) -> Nic:
        """Add a NIC and let frontends connect to it.

        Args:
            spec: of the NIC.
            avoid: addresses that it is not given, though they are free.

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
        self._check_open()
        complete = self._registry.add_nic(spec, avoid)
        nic = None
        try:
            network = complete.network
            nic = Nic(
                complete,
                self.networks[network],
                self._routes[network],
                self._publish,
                self._admission,
                self._workers,
            )
            await self._nursery.start(nic.serve)
            self._check_open()
        except BaseException:
            if nic is None:
                self._registry.remove_nic(spec.name)
            else:
                await self._end(nic)
            raise
        self._nics[spec.name] = nic
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
                while self._routes:
                    _network, routes = self._routes.popitem()
                    routes.close()
        await trio.lowlevel.checkpoint()

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
) -> AsyncIterator[Switch]:
    """A switch without networks, for the length of an ``async with`` block.

    Args:
        admission: frontends can connect to the sockets of NICs at once, but are only served when
            this is set; by default at once.
        polling: of busy TX rings, by default in one thread, which is started with the first of
            them; another thread waits for the kicks of the others. ``PollingSpec(workers=0)`` has
            everything done in trio's own.

    At the end of the block its NICs are removed. What the block raises comes out as it is: a switch
    has no exceptions of its own, for the failure of a NIC stays that NIC's.
    """
    if not events_never_block():
        _log.warning("no asynchronous I/O (io_setup): a hostile frontend could stop this process")
    raised: BaseException | None = None
    async with trio.open_nursery() as nursery:
        switch = Switch(nursery, admission, polling)
        try:
            yield switch
        except BaseException as error:
            # Through the nursery it would come out in a group.
            raised = error
        finally:
            with trio.CancelScope(shield=True):
                await switch.aclose()
    if raised is not None:
        raise raised
