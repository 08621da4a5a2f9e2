"""The verbs by which a daemon is controlled while it runs.

**Theory of operation.** `Control` keeps the list of all networks and NICs, by id: those of the
configuration file and those that verbs made (`inventory` has the rule for both together), served by
the switch or not. One verb at a time changes anything; reading never waits. A verb changes the
switch, the store and the list, in an order such that a failure of one leaves all as they were:

* What is created is served first, then stored: whether it can be served, the store does not know.
  Nobody has been told of it yet when the store refuses, and it is taken back.
* What is deleted leaves the store first. What comes then cannot fail.

From the moment that the first of them has changed, a verb is carried through, cancelled or not. So
whoever was answered finds what was answered, and whoever was not finds all of it or nothing.

The order in which values are looked at is upstream's, the words of refusals are not.
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence, Sized
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import attrs
import trio

from .errors import ConfigError, DuplicateError, StoreError
from .inventory import NetworkEntry, NicEntry, is_file_id
from .log import get_logger
from .model import DaemonConfig, NetworkSpec, NicSpec, NicStats, SocketAccess
from .nic import NicEventKind
from .records import Change, NetworkRecord, NicRecord, NicState
from .refusals import ControlError, ErrorKind, refusals
from .roster import Roster, with_given
from .store import Keeper, NoStore
from .switch import Switch
from .turns import InTurns
from .watching import WATCH_BACKLOG, Watch, Watchers

__all__ = [
    "MAX_PREFIXES",
    "MAX_SERVERS",
    "WATCH_BACKLOG",
    "Change",
    "Control",
    "ControlError",
    "ErrorKind",
    "NetworkRecord",
    "NicRecord",
    "NicState",
]

MAX_SERVERS = 16
"""Of a kind that a verb may give to a network."""
MAX_PREFIXES = 256
"""Of a family that a verb may have routed to a NIC: packets wait while they are checked."""

_SERVERS = frozenset({"dns_servers", "ntp_servers"})
_PREFIXES = frozenset({"routed_ipv4_prefixes", "routed_ipv6_prefixes"})

_log = get_logger(__name__)

_Spec = TypeVar("_Spec", NetworkSpec, NicSpec)
_Entry = TypeVar("_Entry", NetworkEntry, NicEntry)


class Control:
    """The verbs of one switch. What others put into it they leave alone, and know nothing of.

    Whatever takes a `ref` takes an id or a name. Of two of the same name, the one that is served is
    meant. All verbs raise ControlError and nothing else, but for trio.ClosedResourceError after
    `aclose`.

    Args:
        switch: what they change.
        socket_dir: where NICs get their sockets that name none, and what relative paths start from.
        store: what keeps what they make; by default nothing does.
        defaults: who may connect to NICs that do not say.
        now: the time.
    """

    def __init__(
        self,
        switch: Switch,
        socket_dir: Path,
        store: Keeper | None = None,
        defaults: SocketAccess = SocketAccess(),  # noqa: B008  (frozen)
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._switch = switch
        self._socket_dir = socket_dir
        self._store = NoStore() if store is None else store
        self._defaults = defaults
        self._now = now
        self._roster = Roster(switch, now)
        self._watchers = Watchers()
        self._unsaved: set[str] = set()
        """NICs whose addresses a reload has given, and the store has not got yet: ids."""
        self._lock = trio.Lock()
        self._closed = False

    # Beginning, reloading, the end.

    async def start(
        self, config: DaemonConfig, listeners: Mapping[str, socket.socket] = MappingProxyType({})
    ) -> None:
        """Serve what the file has, and what is stored as far as it fits.

        No thread is made. What is stored and cannot be served is in the log, and in its record.

        Args:
            config: what the file says, without anything that is given to NICs that do not ask.
            listeners: sockets that others opened for NICs of the file, by name. They stay the
                caller's, and are used until `aclose`, by whatever NIC is at the same path.

        Raises:
            ConfigError: the first thing that is wrong with the file; nothing is served then.
            StoreError: the store cannot be read.
            SocketInUseError, SocketAccessError, SocketPathError, CoreError: as `Switch.add_nic`, of
                a NIC of the file.
        """
        self._roster.begin(self._store.load())
        self._roster.borrow(listeners, config.nics)
        given = await self._bring_about(config, strict=True)
        for entry in given:
            self._store.put_nic_blocking(entry, in_stored_network=self._roster.is_stored(entry))

    async def reload(self, config: DaemonConfig) -> None:
        """Go over to another file: what it has no more goes, what is new comes, what has changed is
        changed, under its guests where that can be done. What has not is not touched.

        NICs that cannot be served, as when another process listens on the socket, are so recorded.
        Once begun it is carried through, cancelled or not.

        Args:
            config: as of `start`.

        Raises:
            ConfigError: the first thing that is wrong with it; nothing has changed.
            trio.ClosedResourceError: after `aclose`.
        """
        async with self._exclusively():
            with trio.CancelScope(shield=True):
                given = await self._bring_about(config, strict=False)
                self._defaults = config.defaults
                self._unsaved.update(entry.id for entry in given)
                try:
                    await self._save_given()
                except StoreError as error:
                    _log.error("addresses not stored", nics=len(self._unsaved), reason=str(error))

    async def aclose(self) -> None:
        """Refuse all verbs from now on, when the one under way is through. Never cut short."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                self._closed = True
        self._watchers.close()

    async def run(self) -> None:
        """Pass on what frontends do, until cancelled or the switch is closed."""
        while not self._switch.closed:
            async with self._switch.events() as events:
                # Some may have been missed before, or by falling behind.
                async for record in self.each_nic():
                    self._publish(record)
                async for event in events:
                    if event.kind in (NicEventKind.CONNECTED, NicEventKind.DISCONNECTED):
                        self._tell_served_nic(event.nic)

    # Networks.

    def list_networks(self) -> list[NetworkRecord]:
        """All networks, those of the file first, then by age."""
        return [self._roster.network_record(entry) for entry in self._roster.networks.values()]

    def each_network(self) -> AsyncIterator[NetworkRecord]:
        """As `list_networks`, without keeping others waiting.

        Each is told of as it is when its turn comes; what goes meanwhile is left out, and so is
        what comes.
        """
        return InTurns(list(self._roster.networks), self._roster.find_network)

    def get_network(self, ref: str) -> NetworkRecord:
        """The network that `ref` means."""
        return self._roster.network_record(self._roster.network(ref))

    async def create_network(
        self,
        fields: Mapping[str, Any],
        id: str | None = None,  # noqa: A002
    ) -> NetworkRecord:
        """Make a network.

        Args:
            fields: of a `NetworkSpec`.
            id: a UUID; by default a random one.
        """
        async with self._exclusively():
            with refusals():
                spec = self._new_network_spec(fields)
                id_ = self._new_id(id)
                await self._switch.add_network(spec)
            now = self._now()
            entry = NetworkEntry(id=id_, spec=spec, in_file=False, created_at=now, updated_at=now)
            async with self._taking_back(self._switch.remove_network, spec.name):
                await self._store.put_network(entry)
            self._roster.put_network(entry)
            _log.info("network created", network=spec.name)
            return self._tell_network(entry)

    async def update_network(
        self,
        ref: str,
        *,
        dns_servers: Sequence[str] | None = None,
        ntp_servers: Sequence[str] | None = None,
    ) -> NetworkRecord:
        """Have the guests of a network told other servers, when they ask next.

        Args:
            ref: of the network.
            dns_servers, ntp_servers: all of them; None: as they are.
        """
        async with self._exclusively():
            entry = self._changeable(self._roster.network(ref))
            changes = {"dns_servers": dns_servers, "ntp_servers": ntp_servers}
            changed = self._evolved(entry, changes)
            if not entry.error:
                with refusals():
                    await self._switch.update_network(entry.spec.name, **_said(changes))
            async with self._taking_back(self._restore_network, entry):
                await self._store.put_network(changed)
            self._roster.put_network(changed)
            _log.info("network updated", network=entry.spec.name)
            return self._tell_network(changed)

    async def delete_network(self, ref: str, *, force: bool = False) -> int:
        """Delete a network.

        Args:
            ref: of the network.
            force: delete the NICs in it, too; their frontends are disconnected.

        Returns:
            How many NICs were deleted.
        """
        async with self._exclusively():
            entry = self._changeable(self._roster.network(ref))
            nics = list(self._roster.nics_in(entry.id))
            if nics and not force:
                raise ControlError(
                    ErrorKind.FAILED_PRECONDITION,
                    f"network has {len(nics)} NICs, use force=true to delete",
                )
            with trio.CancelScope(shield=True), refusals():
                await self._store.delete_network(entry.id)
                for nic in nics:
                    await self._forget_nic(nic)
                if not entry.error:
                    await self._switch.remove_network(entry.spec.name)
                self._roster.remove_network(entry)
                self._publish_end("network", entry.id)
            _log.info("network deleted", network=entry.spec.name, nics=len(nics))
            return len(nics)

    # NICs.

    def list_nics(self, network: str | None = None) -> list[NicRecord]:
        """All NICs, those of the file first, then by age; or those of one network.

        Args:
            network: a ref of that.
        """
        return [self._roster.nic_record(entry) for entry in self._nics_in(network)]

    def each_nic(self, network: str | None = None) -> AsyncIterator[NicRecord]:
        """As `list_nics`, in the way of `each_network`."""
        return InTurns([entry.id for entry in self._nics_in(network)], self._roster.find_nic)

    def _nics_in(self, network: str | None) -> Collection[NicEntry]:
        if network is None:
            return self._roster.nics.values()
        return self._roster.nics_in(self._roster.network(network).id)

    def get_nic(self, ref: str) -> NicRecord:
        """The NIC that `ref` means."""
        return self._roster.nic_record(self._roster.nic(ref))

    async def create_nic(
        self,
        fields: Mapping[str, Any],
        id: str | None = None,  # noqa: A002
    ) -> NicRecord:
        """Make a NIC and let frontends connect to it.

        Args:
            fields: of a `NicSpec`, `network` being a ref. Without a name it gets one of its id.
            id: a UUID; by default a random one.
        """
        async with self._exclusively():
            with refusals():
                network = self._network_for_nic(fields.get("network"))
                id_ = self._new_id(id)
                spec = self._new_nic_spec(fields, network, id_)
                nic = await self._roster.add_nic(
                    spec.with_defaults(self._defaults), self._roster.needed_by_others(network)
                )
            now = self._now()
            entry = NicEntry(
                id=id_,
                network_id=network.id,
                spec=with_given(spec, nic.spec),
                in_file=False,
                created_at=now,
                updated_at=now,
            )
            async with self._taking_back(self._switch.remove_nic, spec.name):
                await self._put_nic(entry)
            self._roster.put_nic(entry)
            _log.info("NIC created", nic=spec.name)
            return self._tell_nic(entry)

    async def update_nic(
        self,
        ref: str,
        *,
        routed_ipv4_prefixes: Sequence[str] | None = None,
        routed_ipv6_prefixes: Sequence[str] | None = None,
    ) -> NicRecord:
        """Route other prefixes to a NIC, from the next packet on.

        Args:
            ref: of the NIC.
            routed_ipv4_prefixes, routed_ipv6_prefixes: all of either family; None: as they are.
        """
        async with self._exclusively():
            entry = self._changeable(self._roster.nic(ref))
            changes = {
                "routed_ipv4_prefixes": routed_ipv4_prefixes,
                "routed_ipv6_prefixes": routed_ipv6_prefixes,
            }
            changed = self._evolved(entry, changes)
            if not entry.error:
                with refusals():
                    await self._switch.update_nic(entry.spec.name, **_said(changes))
            async with self._taking_back(self._restore_nic, entry):
                await self._put_nic(changed)
            self._roster.put_nic(changed)
            _log.info("NIC updated", nic=entry.spec.name)
            return self._tell_nic(changed)

    async def delete_nic(self, ref: str) -> None:
        """Delete a NIC: its frontend is disconnected, and all that it had is free for another."""
        async with self._exclusively():
            entry = self._changeable(self._roster.nic(ref))
            with trio.CancelScope(shield=True), refusals():
                await self._store.delete_nic(entry.id)
                await self._forget_nic(entry)
            _log.info("NIC deleted", nic=entry.spec.name)

    def each_stats(self) -> AsyncIterator[tuple[str, NicStats]]:
        """The counters of all NICs that are served, by name; in the way of `each_network`."""

        def stats(name: str) -> tuple[str, NicStats] | None:
            try:
                return name, self._switch.nics[name].stats()
            except (KeyError, trio.ClosedResourceError):
                return None  # it has gone, or goes just now

        return InTurns(list(self._switch.nics), stats)

    # Watching.

    def each(self) -> AsyncIterator[NetworkRecord | NicRecord]:
        """All networks, then all NICs, in the way of `each_network`."""
        return InTurns([*self._roster.networks, *self._roster.nics], self._roster.find)

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[Watch]:
        """What changes from now on. No checkpoint.

        It ends with `aclose`, or when the watcher is more than `WATCH_BACKLOG` changes behind and
        does not read, or too far behind in any case (`WATCH_LIMIT`).
        """
        with self._watchers.watch() as changes:
            yield changes

    def _publish(self, record: NetworkRecord | NicRecord) -> None:
        self._watchers.tell(Change(record.resource, record.id, self._now(), record))

    def _publish_end(self, resource: str, id_: str) -> None:
        self._watchers.tell(Change(resource, id_, self._now(), None))

    def _tell_network(self, entry: NetworkEntry) -> NetworkRecord:
        record = self._roster.network_record(entry)
        self._publish(record)
        return record

    def _tell_nic(self, entry: NicEntry) -> NicRecord:
        record = self._roster.nic_record(entry)
        self._publish(record)
        return record

    def _tell_served_nic(self, name: str) -> None:
        """Tell of the NIC that is served by that name, unless it is gone by now."""
        if (entry := self._roster.served_nic(name)) is not None:
            self._tell_nic(entry)

    async def _tell_differences(self, before: Mapping[str, NetworkRecord | NicRecord]) -> None:
        gone = [record for id_, record in before.items() if not self._roster.has(id_)]
        gone.sort(key=lambda record: isinstance(record, NetworkRecord))
        async for record in InTurns[NetworkRecord | NicRecord](gone, _itself):
            self._publish_end(record.resource, record.id)
        # Of each in the turn in which it is looked at: a frontend may come or go at any checkpoint.
        async for record in self.each():
            if before.get(record.id) != record:
                self._publish(record)

    # What the verbs have in common.

    async def _bring_about(self, config: DaemonConfig, *, strict: bool) -> list[NicEntry]:
        """As of `Roster`, and tell what has changed by it."""
        before = {record.id: record async for record in self.each()}
        given = await self._roster.bring_about(config, strict=strict)
        await self._tell_differences(before)
        return given

    @contextlib.asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        async with self._lock:
            if self._closed:
                raise trio.ClosedResourceError("the control was closed")
            with contextlib.suppress(StoreError):
                # Whoever called now hears of it from what its own verb does.
                await self._save_given()
            yield

    @contextlib.asynccontextmanager
    async def _taking_back(
        self, undo: Callable[[Any], Any], what: NetworkEntry | NicEntry | str
    ) -> AsyncIterator[None]:
        """For the time in which what the switch has done already is stored; else it is undone."""
        with trio.CancelScope(shield=True), refusals():
            try:
                yield
            except BaseException:
                await undo(what)
                raise

    async def _restore_network(self, entry: NetworkEntry) -> None:
        if not entry.error:
            await self._switch.update_network(
                entry.spec.name,
                dns_servers=entry.spec.dns_servers,
                ntp_servers=entry.spec.ntp_servers,
            )

    async def _restore_nic(self, entry: NicEntry) -> None:
        if not entry.error:
            await self._switch.update_nic(
                entry.spec.name,
                routed_ipv4_prefixes=entry.spec.routed_ipv4_prefixes,
                routed_ipv6_prefixes=entry.spec.routed_ipv6_prefixes,
            )

    async def _put_nic(self, entry: NicEntry) -> None:
        await self._store.put_nic(entry, in_stored_network=self._roster.is_stored(entry))

    async def _save_given(self) -> None:
        """Store addresses that were given and are not stored yet. Raises StoreError."""
        failed: StoreError | None = None
        for id_ in sorted(self._unsaved):
            try:
                if id_ in self._roster.nics:
                    await self._put_nic(self._roster.nics[id_])
            except StoreError as error:
                failed = error  # which may be about this one alone
            else:
                self._unsaved.remove(id_)
        if failed is not None:
            raise failed

    async def _forget_nic(self, entry: NicEntry) -> None:
        """Of a NIC that is not in the store any more."""
        if not entry.error:
            await self._switch.remove_nic(entry.spec.name)
        self._roster.remove_nic(entry)
        self._publish_end("nic", entry.id)

    def _changeable(self, entry: _Entry) -> _Entry:
        if entry.in_file:
            raise ControlError(
                ErrorKind.FAILED_PRECONDITION,
                f"{entry.spec.name!r} is in the configuration file: change it there and reload"
                " (SIGHUP)",
            )
        return entry

    def _evolved(self, entry: _Entry, changes: Mapping[str, Any]) -> _Entry:
        with refusals():
            _check_lengths(changes)
            spec: Any = attrs.evolve(entry.spec, **_said(changes))
        return attrs.evolve(entry, spec=spec, updated_at=self._now())

    def _new_id(self, given: str | None) -> str:
        if given is None:
            return str(uuid.uuid4())
        try:
            id_ = uuid.UUID(given)
        except (ValueError, AttributeError, TypeError):
            raise ConfigError("id", f"{given!r} is not a UUID") from None
        if is_file_id(id_):
            raise ConfigError(
                "id", f"{id_} is of version {id_.version}, as those of the configuration file"
            )
        if self._roster.has(str(id_)):
            raise DuplicateError("id", f"id {id_} already exists")
        return str(id_)

    def _new_network_spec(self, fields: Mapping[str, Any]) -> NetworkSpec:
        """Of a network to be made. Raises ConfigError; in upstream's order."""
        name = fields.get("name")
        if not name or (isinstance(name, str) and not name.strip()):
            raise ConfigError("name", "name is required")
        if not (fields.get("ipv4_subnet") or fields.get("ipv6_prefix")):
            raise ConfigError("", "at least one of ipv4_subnet and ipv6_prefix is required")
        spec = _spec(NetworkSpec, fields)
        self._roster.check_new_network(spec)
        return spec

    def _network_for_nic(self, ref: Any) -> NetworkEntry:
        if not ref:
            raise ConfigError("network", "network is required")
        network = self._roster.network(str(ref))
        if network.error:
            raise ControlError(
                ErrorKind.FAILED_PRECONDITION,
                f"network {network.spec.name!r} is not served: {network.error}",
                "network",
            )
        return network

    def _new_nic_spec(self, fields: Mapping[str, Any], network: NetworkEntry, id_: str) -> NicSpec:
        """Of a NIC to be made. Raises ConfigError."""
        said = {**fields, "network": network.spec.name}
        if not said.get("name"):
            said["name"] = f"nic-{id_[:8]}"
        if not said.get("socket_path"):
            said["socket_path"] = f"{said['name']}.sock"
        spec = _spec(NicSpec, said)
        assert spec.socket_path is not None
        # The daemon may be started from another folder next time.
        path = (self._socket_dir / spec.socket_path).absolute()
        spec = attrs.evolve(spec, socket_path=path)
        self._roster.check_new_nic(spec, network)
        return spec


def _itself(record: NetworkRecord | NicRecord) -> NetworkRecord | NicRecord:
    return record


def _said(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}


def _spec(cls: type[_Spec], fields: Mapping[str, Any]) -> _Spec:
    """Raises ConfigError."""
    known = {field.name for field in attrs.fields(cls)}
    for key in fields:
        if key not in known:
            raise ConfigError(str(key), "there is no such field")
    _check_lengths(fields)
    return cls(**fields)


def _check_lengths(fields: Mapping[str, Any]) -> None:
    """Before anything is made of them: packets wait meanwhile. Raises ConfigError."""
    for keys, most in ((_SERVERS, MAX_SERVERS), (_PREFIXES, MAX_PREFIXES)):
        for key in keys & fields.keys():
            if isinstance(fields[key], Sized) and len(fields[key]) > most:
                raise ConfigError(key, f"more than {most}")
