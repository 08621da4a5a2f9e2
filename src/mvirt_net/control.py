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

The wording of refusals that upstream has, too, is upstream's.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from .errors import (
    ConfigError,
    CoreError,
    DuplicateError,
    ExhaustedError,
    MvirtNetError,
    NotFoundError,
    SocketAccessError,
    SocketInUseError,
    SocketPathError,
)
from .inventory import NetworkEntry, NicEntry, Target, file_id, reconcile, steps
from .log import get_logger
from .model import DaemonConfig, NetworkSpec, NicSpec, NicStats, SocketAccess
from .nic import Nic, NicEventKind
from .registry import check_public_overlap
from .store import Keeper, NoStore, StoreError
from .switch import Switch

WATCH_BACKLOG = 256
"""Changes that a watcher may be behind."""

_log = get_logger(__name__)

_Spec = TypeVar("_Spec", NetworkSpec, NicSpec)
_Entry = TypeVar("_Entry", NetworkEntry, NicEntry)


class ErrorKind(enum.Enum):
    """What a caller can do about it; the names are those of gRPC's codes."""

    INVALID_ARGUMENT = enum.auto()
    NOT_FOUND = enum.auto()
    ALREADY_EXISTS = enum.auto()
    FAILED_PRECONDITION = enum.auto()
    RESOURCE_EXHAUSTED = enum.auto()
    INTERNAL = enum.auto()


class ControlError(MvirtNetError):
    """A verb was refused; nothing has changed.

    Args:
        kind: what a caller can do about it.
        message: one line, without the field.
        field: what it is about, the name of a field of a specification; may be empty.
    """

    def __init__(self, kind: ErrorKind, message: str, field: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field


class NicState(enum.Enum):
    """What a NIC does."""

    CREATED = "created"
    """It waits for a frontend."""
    ACTIVE = "active"
    """It has one that has made a request."""
    ERROR = "error"
    """It is not served; `NicRecord.error` says why."""


@attrs.frozen(kw_only=True)
class NetworkRecord:
    """A network as it is at a moment."""

    id: str
    spec: NetworkSpec
    nic_count: int
    created_at: datetime
    updated_at: datetime
    in_file: bool = False
    """Whether the configuration file has it; no verb changes it then."""
    error: str = ""
    """Why it is not served; empty: it is."""


@attrs.frozen(kw_only=True)
class NicRecord:
    """A NIC as it is at a moment."""

    id: str
    network_id: str
    spec: NicSpec
    state: NicState
    created_at: datetime
    updated_at: datetime
    in_file: bool = False
    error: str = ""


@attrs.frozen
class Change:
    """Something was created or updated, or is gone (`record` is None)."""

    resource: str
    """``network`` or ``nic``."""
    id: str
    at: datetime
    record: NetworkRecord | NicRecord | None


class Control:
    """The verbs of one switch, which nobody else changes.

    Whatever takes a `ref` takes an id or a name. Of two of the same name, the one that is served is
    meant. All verbs raise ControlError and nothing else, but for trio.ClosedResourceError after
    `aclose`.

    Args:
        switch: what they change; empty at first.
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
        self._networks: dict[str, NetworkEntry] = {}
        """By id, those of the file first, then by age; so are the NICs."""
        self._nics: dict[str, NicEntry] = {}
        self._watchers: set[trio.MemorySendChannel[Change]] = set()
        self._lock = trio.Lock()
        self._closed = False

    # Beginning, reloading, the end.

    async def start(self, config: DaemonConfig) -> None:
        """Serve what the file has, and what is stored as far as it fits.

        No thread is made. What is stored and cannot be served is in the log, and in its record.

        Args:
            config: what the file says, without anything that is given to NICs that do not ask.

        Raises:
            ConfigError: the first thing that is wrong with the file; nothing is served then.
            StoreError: the store cannot be read.
            SocketInUseError, SocketAccessError, SocketPathError, CoreError: as `Switch.add_nic`, of
                a NIC of the file.
        """
        stored = self._store.load()
        self._networks = {entry.id: entry for entry in stored.networks}
        self._nics = {entry.id: entry for entry in stored.nics}
        given = await self._bring_about(config, strict=True)
        for entry in given:
            self._store.put_nic_blocking(entry, in_stored_network=self._is_stored(entry))

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
                self._defaults = config.defaults
                for entry in await self._bring_about(config, strict=False):
                    try:
                        await self._put_nic(entry)
                    except StoreError as error:
                        _log.error("addresses not stored", nic=entry.spec.name, reason=str(error))

    async def aclose(self) -> None:
        """Refuse all verbs from now on, when the one under way is through. Never cut short."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                self._closed = True
        for watcher in list(self._watchers):
            self._end_watch(watcher)

    async def run(self) -> None:
        """Pass on what frontends do, until cancelled or the switch is closed."""
        while not self._switch.closed:
            async with self._switch.events() as events:
                # Some may have been missed before, or by falling behind.
                for entry in self._nics.values():
                    self._tell_nic(entry)
                async for event in events:
                    if event.kind in (NicEventKind.CONNECTED, NicEventKind.DISCONNECTED):
                        self._tell_served_nic(event.nic)

    # Networks.

    def list_networks(self) -> list[NetworkRecord]:
        """All networks, those of the file first, then by age."""
        return [self._network_record(entry) for entry in self._networks.values()]

    def get_network(self, ref: str) -> NetworkRecord:
        """The network that `ref` means."""
        return self._network_record(self._network(ref))

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
            with _refusals():
                spec = self._new_network_spec(fields)
                id_ = self._new_id(id)
                await self._switch.add_network(spec)
            now = self._now()
            entry = NetworkEntry(id=id_, spec=spec, in_file=False, created_at=now, updated_at=now)
            async with self._taking_back(self._switch.remove_network, spec.name):
                await self._store.put_network(entry)
            self._networks[id_] = entry
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
            entry = self._changeable(self._network(ref))
            changes = {"dns_servers": dns_servers, "ntp_servers": ntp_servers}
            changed = self._evolved(entry, changes)
            if not entry.error:
                with _refusals():
                    await self._switch.update_network(entry.spec.name, **_said(changes))
            async with self._taking_back(self._restore_network, entry):
                await self._store.put_network(changed)
            self._networks[entry.id] = changed
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
            entry = self._changeable(self._network(ref))
            nics = [nic for nic in self._nics.values() if nic.network_id == entry.id]
            if nics and not force:
                raise ControlError(
                    ErrorKind.FAILED_PRECONDITION,
                    f"network has {len(nics)} NICs, use force=true to delete",
                )
            with trio.CancelScope(shield=True), _refusals():
                await self._store.delete_network(entry.id)
                for nic in nics:
                    await self._forget_nic(nic)
                if not entry.error:
                    await self._switch.remove_network(entry.spec.name)
                del self._networks[entry.id]
                self._publish("network", entry.id, None)
            _log.info("network deleted", network=entry.spec.name, nics=len(nics))
            return len(nics)

    # NICs.

    def list_nics(self, network: str | None = None) -> list[NicRecord]:
        """All NICs, those of the file first, then by age; or those of one network.

        Args:
            network: a ref of that.
        """
        wanted = None if network is None else self._network(network).id
        return [
            self._nic_record(entry)
            for entry in self._nics.values()
            if wanted in (None, entry.network_id)
        ]

    def get_nic(self, ref: str) -> NicRecord:
        """The NIC that `ref` means."""
        return self._nic_record(self._nic(ref))

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
            with _refusals():
                network = self._network_for_nic(fields.get("network"))
                id_ = self._new_id(id)
                spec = self._new_nic_spec(fields, network, id_)
                nic = await self._switch.add_nic(
                    spec.with_defaults(self._defaults), self._needed_by_others(network)
                )
            now = self._now()
            entry = NicEntry(
                id=id_,
                network_id=network.id,
                spec=_with_given(spec, nic.spec),
                in_file=False,
                created_at=now,
                updated_at=now,
            )
            async with self._taking_back(self._switch.remove_nic, spec.name):
                await self._put_nic(entry)
            self._nics[id_] = entry
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
            entry = self._changeable(self._nic(ref))
            changes = {
                "routed_ipv4_prefixes": routed_ipv4_prefixes,
                "routed_ipv6_prefixes": routed_ipv6_prefixes,
            }
            changed = self._evolved(entry, changes)
            if not entry.error:
                with _refusals():
                    await self._switch.update_nic(entry.spec.name, **_said(changes))
            async with self._taking_back(self._restore_nic, entry):
                await self._put_nic(changed)
            self._nics[entry.id] = changed
            _log.info("NIC updated", nic=entry.spec.name)
            return self._tell_nic(changed)

    async def delete_nic(self, ref: str) -> None:
        """Delete a NIC: its frontend is disconnected, and all that it had is free for another."""
        async with self._exclusively():
            entry = self._changeable(self._nic(ref))
            with trio.CancelScope(shield=True), _refusals():
                await self._store.delete_nic(entry.id)
                await self._forget_nic(entry)
            _log.info("NIC deleted", nic=entry.spec.name)

    def stats(self) -> dict[str, NicStats]:
        """The counters of all NICs that are served, by name."""
        return {name: nic.stats() for name, nic in self._switch.nics.items()}

    # Watching.

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[Change]]:
        """What changes from now on. No checkpoint.

        The channel ends with `aclose`, or when the watcher is more than `WATCH_BACKLOG` changes
        behind.
        """
        send, receive = trio.open_memory_channel[Change](WATCH_BACKLOG)
        if self._closed:
            send.close()
        else:
            self._watchers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._end_watch(send)

    def _publish(self, resource: str, id_: str, record: NetworkRecord | NicRecord | None) -> None:
        change = Change(resource, id_, self._now(), record)
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait(change)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._end_watch(watcher)

    def _end_watch(self, watcher: trio.MemorySendChannel[Change]) -> None:
        self._watchers.discard(watcher)
        watcher.close()

    def _tell_network(self, entry: NetworkEntry) -> NetworkRecord:
        record = self._network_record(entry)
        self._publish("network", entry.id, record)
        return record

    def _tell_nic(self, entry: NicEntry) -> NicRecord:
        record = self._nic_record(entry)
        self._publish("nic", entry.id, record)
        return record

    def _tell_served_nic(self, name: str) -> None:
        """Tell of the NIC that is served by that name, unless it is gone by now."""
        for entry in self._nics.values():
            if entry.spec.name == name and not entry.error:
                self._tell_nic(entry)

    # What there is.

    def _network(self, ref: str) -> NetworkEntry:
        return _find(self._networks, ref, "network")

    def _nic(self, ref: str) -> NicEntry:
        return _find(self._nics, ref, "NIC")

    def _network_record(self, entry: NetworkEntry) -> NetworkRecord:
        return NetworkRecord(
            id=entry.id,
            spec=entry.spec,
            nic_count=sum(nic.network_id == entry.id for nic in self._nics.values()),
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            in_file=entry.in_file,
            error=entry.error,
        )

    def _nic_record(self, entry: NicEntry) -> NicRecord:
        nic = None if entry.error else self._switch.nics.get(entry.spec.name)
        return NicRecord(
            id=entry.id,
            network_id=entry.network_id,
            spec=entry.spec if nic is None else nic.spec,
            state=_state(nic),
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            in_file=entry.in_file,
            error=entry.error,
        )

    def _is_stored(self, nic: NicEntry) -> bool:
        """Whether the network of a NIC is one that a verb made."""
        network = self._networks.get(nic.network_id)
        return network is not None and not network.in_file

    # What the verbs have in common.

    @contextlib.asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        async with self._lock:
            if self._closed:
                raise trio.ClosedResourceError("the control was closed")
            yield

    @contextlib.asynccontextmanager
    async def _taking_back(
        self, undo: Callable[[Any], Any], what: NetworkEntry | NicEntry | str
    ) -> AsyncIterator[None]:
        """For the time in which what the switch has done already is stored; else it is undone."""
        with trio.CancelScope(shield=True), _refusals():
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
        await self._store.put_nic(entry, in_stored_network=self._is_stored(entry))

    async def _forget_nic(self, entry: NicEntry) -> None:
        """Of a NIC that is not in the store any more."""
        if not entry.error:
            await self._switch.remove_nic(entry.spec.name)
        del self._nics[entry.id]
        self._publish("nic", entry.id, None)

    def _changeable(self, entry: _Entry) -> _Entry:
        if entry.in_file:
            raise ControlError(
                ErrorKind.FAILED_PRECONDITION,
                f"{entry.spec.name!r} is in the configuration file: change it there and reload"
                " (SIGHUP)",
            )
        return entry

    def _evolved(self, entry: _Entry, changes: Mapping[str, Any]) -> _Entry:
        with _refusals():
            spec: Any = attrs.evolve(entry.spec, **_said(changes))
        return attrs.evolve(entry, spec=spec, updated_at=self._now())

    def _new_id(self, given: str | None) -> str:
        if given is None:
            return str(uuid.uuid4())
        try:
            id_ = str(uuid.UUID(given))
        except (ValueError, AttributeError, TypeError):
            raise ConfigError("id", f"{given!r} is not a UUID") from None
        if id_ in self._networks or id_ in self._nics:
            raise DuplicateError("id", f"id {id_} already exists")
        return id_

    def _new_network_spec(self, fields: Mapping[str, Any]) -> NetworkSpec:
        """Of a network to be made. Raises ConfigError; in upstream's order."""
        name = fields.get("name")
        if not name or (isinstance(name, str) and not name.strip()):
            raise ConfigError("name", "name is required")
        if not (fields.get("ipv4_subnet") or fields.get("ipv6_prefix")):
            raise ConfigError("", "at least one of ipv4_subnet and ipv6_prefix is required")
        spec = _spec(NetworkSpec, fields)
        for entry in self._networks.values():
            if entry.spec.name == spec.name:
                raise DuplicateError("name", f"network {spec.name!r} already exists")
            if entry.error:
                check_public_overlap(spec, entry.spec)
        return spec

    def _network_for_nic(self, ref: Any) -> NetworkEntry:
        if not ref:
            raise ConfigError("network", "network is required")
        network = self._network(str(ref))
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
        for entry in self._nics.values():
            if entry.spec.name == spec.name:
                raise DuplicateError("name", f"NIC {spec.name!r} already exists")
            if entry.error:
                _check_apart(spec, entry, same_network=entry.network_id == network.id)
        return spec

    def _needed_by_others(self, network: NetworkEntry) -> set[IPv4Address | IPv6Address]:
        """Addresses of NICs that are not served, and may be again."""
        return {
            address
            for entry in self._nics.values()
            if entry.error and entry.network_id == network.id
            for address in (entry.spec.ipv4_address, entry.spec.ipv6_address)
            if address is not None
        }

    # Bringing file, store and switch together.

    async def _bring_about(self, config: DaemonConfig, *, strict: bool) -> list[NicEntry]:
        """Serve what `config` and the list say together, and bring the list up to that.

        Args:
            config: of the file.
            strict: let the failure of a NIC of the file out; else it is recorded.

        Returns:
            NICs that a verb made and that have been given an address since, to be stored.
        """
        before = self._records()
        networks = [entry for entry in self._networks.values() if not entry.in_file]
        nics = [entry for entry in self._nics.values() if not entry.in_file]
        served = {name: nic.spec for name, nic in self._switch.nics.items()}
        target = reconcile(config, networks, nics, served)
        for problem in target.plan.problems:
            raise problem
        failed = await self._serve(target, strict=strict)
        given = self._take_stock(target, networks, nics, failed)
        self._tell_differences(before)
        return given

    async def _serve(self, target: Target, *, strict: bool) -> dict[tuple[str, str], str]:
        """Go from what is served to `target`.

        Returns:
            What could not be done, by kind and name.
        """
        switch = self._switch
        nics = {name: nic.spec for name, nic in switch.nics.items()}
        todo = steps(dict(switch.networks), nics, target)
        for name in todo.removed_nics:
            await switch.remove_nic(name)
        for name in todo.removed_networks:
            await switch.remove_network(name)
        for name, changes in todo.narrowed.items():
            await switch.update_nic(name, **changes)
        for name, changes in todo.changed_networks.items():
            await switch.update_network(name, **changes)
        for name, changes in todo.changed_nics.items():
            await switch.update_nic(name, **changes)
        failed: dict[tuple[str, str], str] = {}
        of_file = {("network", spec.name) for spec in target.plan.config.networks}
        of_file |= {("nic", spec.name) for spec in target.plan.config.nics}
        additions: list[tuple[str, NetworkSpec | NicSpec, Callable[[Any], Awaitable[object]]]] = [
            *(("network", spec, switch.add_network) for spec in todo.added_networks),
            *(("nic", spec, switch.add_nic) for spec in todo.added_nics),
        ]
        for kind, spec, add in additions:
            try:
                await add(spec)
            except MvirtNetError as error:
                if strict and (kind, spec.name) in of_file:
                    raise
                failed[kind, spec.name] = str(error)
        return failed

    def _take_stock(
        self,
        target: Target,
        networks: Iterable[NetworkEntry],
        nics: Iterable[NicEntry],
        failed: Mapping[tuple[str, str], str],
    ) -> list[NicEntry]:
        """Make the list anew; returns what is to be stored."""
        self._networks = {
            **self._file_networks(target, failed),
            **{e.id: self._judged(e, "network", target, failed) for e in networks},
        }
        self._nics = self._file_nics(target, failed)
        wanted = {spec.name: spec for spec in target.nics}
        to_store = []
        for entry in nics:
            judged = self._judged(entry, "nic", target, failed)
            if not judged.error:
                filled = _with_given(entry.spec, wanted[entry.spec.name])
                if filled != entry.spec:
                    judged = attrs.evolve(judged, spec=filled)
                    to_store.append(judged)
            self._nics[entry.id] = judged
        return to_store

    def _file_networks(
        self, target: Target, failed: Mapping[tuple[str, str], str]
    ) -> dict[str, NetworkEntry]:
        entries = {}
        for spec in target.plan.config.networks:
            id_ = file_id("network", spec.name)
            created_at, updated_at = self._times(self._networks.get(id_), spec)
            entries[id_] = NetworkEntry(
                id=id_,
                spec=spec,
                in_file=True,
                created_at=created_at,
                updated_at=updated_at,
                error=failed.get(("network", spec.name), ""),
            )
        return entries

    def _file_nics(
        self, target: Target, failed: Mapping[tuple[str, str], str]
    ) -> dict[str, NicEntry]:
        entries = {}
        for spec in target.plan.config.nics:
            id_ = file_id("nic", spec.name)
            created_at, updated_at = self._times(self._nics.get(id_), spec)
            entries[id_] = NicEntry(
                id=id_,
                network_id=file_id("network", spec.network),
                spec=spec,
                in_file=True,
                created_at=created_at,
                updated_at=updated_at,
                error=self._said_failure("nic", spec.name, failed.get(("nic", spec.name), "")),
            )
        return entries

    def _times(
        self, before: NetworkEntry | NicEntry | None, spec: NetworkSpec | NicSpec
    ) -> tuple[datetime, datetime]:
        """Since when something of the file is there, and is as it is."""
        now = self._now()
        if before is None:
            return now, now
        return before.created_at, before.updated_at if before.spec == spec else now

    def _judged(
        self, entry: _Entry, kind: str, target: Target, failed: Mapping[tuple[str, str], str]
    ) -> _Entry:
        """What a verb made, with the reason why it is not served, if it is not."""
        error = target.refused.get(entry.id, "")
        # What is refused may have the name of another one, which is not.
        error = error or failed.get((kind, entry.spec.name), "")
        if error != entry.error:
            self._said_failure(kind, entry.spec.name, error)
        return attrs.evolve(entry, error=error)

    def _said_failure(self, kind: str, name: str, error: str) -> str:
        if error:
            _log.warning("not served", reason=error, **{kind: name})
        return error

    def _records(self) -> dict[str, NetworkRecord | NicRecord]:
        records: list[NetworkRecord | NicRecord] = [*self.list_networks(), *self.list_nics()]
        return {record.id: record for record in records}

    def _tell_differences(self, before: Mapping[str, NetworkRecord | NicRecord]) -> None:
        after = self._records()
        gone = [record for id_, record in before.items() if id_ not in after]
        for record in sorted(gone, key=lambda record: isinstance(record, NetworkRecord)):
            self._publish(_resource(record), record.id, None)
        for id_, record in after.items():
            if before.get(id_) != record:
                self._publish(_resource(record), id_, record)


def _find(entries: Mapping[str, _Entry], ref: str, what: str) -> _Entry:
    if ref in entries:
        return entries[ref]
    named = [entry for entry in entries.values() if entry.spec.name == ref]
    if not named:
        raise ControlError(ErrorKind.NOT_FOUND, f"{what} not found")
    return min(named, key=lambda entry: bool(entry.error))


def _resource(record: NetworkRecord | NicRecord) -> str:
    return "network" if isinstance(record, NetworkRecord) else "nic"


def _state(nic: Nic | None) -> NicState:
    if nic is None:
        return NicState.ERROR
    return NicState.ACTIVE if nic.connected else NicState.CREATED


def _said(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}


def _spec(cls: type[_Spec], fields: Mapping[str, Any]) -> _Spec:
    """Raises ConfigError."""
    known = {field.name for field in attrs.fields(cls)}
    for key in fields:
        if key not in known:
            raise ConfigError(str(key), "there is no such field")
    return cls(**fields)


def _with_given(spec: NicSpec, served: NicSpec) -> NicSpec:
    """`spec` with the addresses of the NIC that it has become."""
    return attrs.evolve(
        spec,
        mac_address=served.mac_address,
        ipv4_address=served.ipv4_address,
        ipv6_address=served.ipv6_address,
    )


def _check_apart(spec: NicSpec, kept: NicEntry, *, same_network: bool) -> None:
    """Whether `spec` leaves what a NIC has that is not served, and may be again.

    Raises:
        DuplicateError: it does not.
    """
    keys = ["mac_address", "socket_path"]
    keys += ["ipv4_address", "ipv6_address"] if same_network else []
    for key in keys:
        value = getattr(spec, key)
        if value is not None and value == getattr(kept.spec, key):
            raise DuplicateError(key, f"{value} is taken by NIC {kept.spec.name!r}")


_KINDS: Mapping[type[MvirtNetError], ErrorKind] = {
    DuplicateError: ErrorKind.ALREADY_EXISTS,
    ExhaustedError: ErrorKind.RESOURCE_EXHAUSTED,
    ConfigError: ErrorKind.INVALID_ARGUMENT,
    NotFoundError: ErrorKind.NOT_FOUND,
    SocketInUseError: ErrorKind.FAILED_PRECONDITION,
    SocketAccessError: ErrorKind.FAILED_PRECONDITION,
    SocketPathError: ErrorKind.FAILED_PRECONDITION,
}
"""The first class that an exception belongs to counts; anything else is INTERNAL."""
_SOCKET_ERRORS = (SocketInUseError, SocketAccessError, SocketPathError)
_NO_RESOURCES = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC})


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What switch and store raise, as refusals of a verb."""
    try:
        yield
    except ControlError:
        raise
    except MvirtNetError as error:
        field = error.key if isinstance(error, ConfigError) else ""
        if isinstance(error, _SOCKET_ERRORS):
            field = "socket_path"
        message = error.problem if isinstance(error, ConfigError) else str(error)
        raise ControlError(_kind(error), message, field) from error


def _kind(error: MvirtNetError) -> ErrorKind:
    if isinstance(error, CoreError) and error.errno in _NO_RESOURCES:
        return ErrorKind.RESOURCE_EXHAUSTED
    return next(
        (kind for cls, kind in _KINDS.items() if isinstance(error, cls)), ErrorKind.INTERNAL
    )
