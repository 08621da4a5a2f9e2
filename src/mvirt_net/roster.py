"""The list of all networks and NICs, and how it follows the configuration file.

`Roster` has an entry for each: those of the file first, then those that verbs made, by age. It
knows which of them the switch serves. `bring_about` has the switch go over to what the file and the
verbs want together (`inventory`), and makes the list anew.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Generic, TypeVar

import attrs
import trio

from .errors import DuplicateError, MvirtNetError, SocketPathError
from .inventory import NetworkEntry, NicEntry, Target, file_id, reconcile, steps
from .log import get_logger
from .model import DaemonConfig, NetworkSpec, NicSpec
from .nic import Nic
from .records import NetworkRecord, NicRecord, NicState
from .refusals import ControlError, ErrorKind
from .registry import check_public_overlap, path_key
from .store import StoredState
from .switch import Switch

_log = get_logger(__name__)

_Entry = TypeVar("_Entry", NetworkEntry, NicEntry)


class _Table(Generic[_Entry]):
    """Networks or NICs in their order.

    Args:
        what: one of them is called.
        entries: those that there are.
    """

    def __init__(self, what: str, entries: Iterable[_Entry] = ()) -> None:
        self._what = what
        self.by_id: dict[str, _Entry] = {}
        self.refused: dict[str, _Entry] = {}
        """Those of them that are not served."""
        self._by_name: dict[str, dict[str, _Entry]] = {}
        for entry in entries:
            self.put(entry)

    def put(self, entry: _Entry) -> None:
        """Enter one, in place of the one of that id, which has the same name."""
        self.by_id[entry.id] = entry
        self._by_name.setdefault(entry.spec.name, {})[entry.id] = entry
        if entry.error:
            self.refused[entry.id] = entry
        else:
            self.refused.pop(entry.id, None)

    def remove(self, entry: _Entry) -> None:
        del self.by_id[entry.id]
        self.refused.pop(entry.id, None)
        namesakes = self._by_name[entry.spec.name]
        del namesakes[entry.id]
        if not namesakes:
            del self._by_name[entry.spec.name]

    def named(self, name: str) -> Collection[_Entry]:
        """Several, where some are not served."""
        return self._by_name.get(name, {}).values()

    def find(self, ref: str) -> _Entry:
        """The one that an id or name means. Raises ControlError."""
        for id_ in (ref, _canonical(ref)):
            if id_ in self.by_id:
                return self.by_id[id_]
        if not (named := self.named(ref)):
            raise ControlError(ErrorKind.NOT_FOUND, f"{self._what} not found")
        return min(named, key=lambda entry: bool(entry.error))


class Roster:
    """What there is.

    Args:
        switch: serves it. What others put there is not in the list.
        now: the time.
    """

    def __init__(self, switch: Switch, now: Callable[[], datetime]) -> None:
        self._switch = switch
        self._now = now
        self._networks = _Table[NetworkEntry]("network")
        self._nics = _Table[NicEntry]("NIC")
        self._members: dict[str, dict[str, NicEntry]] = {}
        """NICs by the id of their network, and their own."""
        self._listeners: dict[str, socket.socket] = {}
        """What others opened, by the place of the NIC that it is for."""

    @property
    def networks(self) -> Mapping[str, NetworkEntry]:
        """By id, in their order."""
        return self._networks.by_id

    @property
    def nics(self) -> Mapping[str, NicEntry]:
        """By id, in their order."""
        return self._nics.by_id

    def network(self, ref: str) -> NetworkEntry:
        """The network that an id or name means. Raises ControlError."""
        return self._networks.find(ref)

    def nic(self, ref: str) -> NicEntry:
        """The NIC that an id or name means. Raises ControlError."""
        return self._nics.find(ref)

    def has(self, id_: str) -> bool:
        """Whether there is a network or NIC with that id."""
        return id_ in self.networks or id_ in self.nics

    def find_network(self, id_: str) -> NetworkRecord | None:
        """What is told now of the network with that id, if there is one."""
        entry = self.networks.get(id_)
        return None if entry is None else self.network_record(entry)

    def find_nic(self, id_: str) -> NicRecord | None:
        """What is told now of the NIC with that id, if there is one."""
        entry = self.nics.get(id_)
        return None if entry is None else self.nic_record(entry)

    def find(self, id_: str) -> NetworkRecord | NicRecord | None:
        """What is told now of whatever has that id."""
        return self.find_network(id_) or self.find_nic(id_)

    def served_nic(self, name: str) -> NicEntry | None:
        """The NIC of that name that is served, and not on its way to its end."""
        if name not in self._switch.nics:
            return None
        return next((entry for entry in self._nics.named(name) if not entry.error), None)

    def nics_in(self, network_id: str) -> Collection[NicEntry]:
        """The NICs of a network, in their order."""
        return self._members.get(network_id, {}).values()

    def begin(self, stored: StoredState) -> None:
        """Have the list of what was stored."""
        self._list(stored.networks, stored.nics)

    def put_network(self, entry: NetworkEntry) -> None:
        """Have a network in the list, new or changed."""
        self._networks.put(entry)

    def put_nic(self, entry: NicEntry) -> None:
        """Have a NIC in the list, new or changed."""
        self._nics.put(entry)
        self._members.setdefault(entry.network_id, {})[entry.id] = entry

    def remove_network(self, entry: NetworkEntry) -> None:
        """Take a network without NICs from the list."""
        self._networks.remove(entry)

    def remove_nic(self, entry: NicEntry) -> None:
        """Take a NIC from the list."""
        self._nics.remove(entry)
        members = self._members[entry.network_id]
        del members[entry.id]
        if not members:
            del self._members[entry.network_id]

    def _list(self, networks: Iterable[NetworkEntry], nics: Iterable[NicEntry]) -> None:
        """Make the list anew."""
        self._networks = _Table("network", networks)
        self._nics = _Table("NIC")
        self._members = {}
        for entry in nics:
            self.put_nic(entry)

    def network_record(self, entry: NetworkEntry) -> NetworkRecord:
        """What is told of it now."""
        return NetworkRecord(
            id=entry.id,
            spec=entry.spec,
            nic_count=len(self.nics_in(entry.id)),
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            in_file=entry.in_file,
            error=entry.error,
        )

    def nic_record(self, entry: NicEntry) -> NicRecord:
        """What is told of it now."""
        nic = None if entry.error else self._switch.nics.get(entry.spec.name)
        return NicRecord(
            id=entry.id,
            network_id=entry.network_id,
            spec=entry.spec if nic is None else nic.spec,
            state=_state(entry, nic),
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            in_file=entry.in_file,
            error=entry.error,
        )

    def is_stored(self, nic: NicEntry) -> bool:
        """Whether the network of a NIC is one that a verb made."""
        network = self.networks.get(nic.network_id)
        return network is not None and not network.in_file

    def check_new_network(self, spec: NetworkSpec) -> None:
        """Whether a network takes anything from one that is not served, and may be again.

        Raises:
            DuplicateError: it has the name of another one, served or not.
            ConfigError: both are public, and overlap.
        """
        if self._networks.named(spec.name):
            raise DuplicateError("name", f"network {spec.name!r} already exists")
        for entry in self._networks.refused.values():
            check_public_overlap(spec, entry.spec)

    def check_new_nic(self, spec: NicSpec, network: NetworkEntry) -> None:
        """As `check_new_network`, of a NIC in `network`. Raises DuplicateError."""
        if self._nics.named(spec.name):
            raise DuplicateError("name", f"NIC {spec.name!r} already exists")
        for entry in self._nics.refused.values():
            _check_apart(spec, entry, same_network=entry.network_id == network.id)

    def needed_by_others(self, network: NetworkEntry) -> set[IPv4Address | IPv6Address]:
        """Addresses of NICs that are not served, and may be again."""
        return {
            address
            for entry in self._nics.refused.values()
            if entry.network_id == network.id
            for address in (entry.spec.ipv4_address, entry.spec.ipv6_address)
            if address is not None
        }

    # Sockets of whoever started us.

    def borrow(self, listeners: Mapping[str, socket.socket], nics: Iterable[NicSpec]) -> None:
        """Have sockets that others opened for NICs, by name; they stay theirs to close.

        From now on each is for whatever NIC has the socket path that the named one among `nics`
        has, so that one that is made anew has it again.
        """
        for spec in nics:
            if (listener := listeners.get(spec.name)) is not None:
                # Once for all its duplicates, of which one may be in use when the next is made.
                listener.setblocking(False)
                self._listeners[_place(spec)] = listener

    async def add_nic(
        self, spec: NicSpec, avoid: Container[IPv4Address | IPv6Address] = frozenset()
    ) -> Nic:
        """As `Switch.add_nic`, with the socket that others opened for it, if one did."""
        listener = self._listener_for(spec)
        return await self._switch.add_nic(spec, avoid=avoid, listener=listener)

    def _listener_for(self, spec: NicSpec) -> socket.socket | None:
        """A duplicate, the caller's to close. Raises SocketPathError."""
        listener = self._listeners.get(_place(spec))
        try:
            return None if listener is None else listener.dup()
        except OSError as error:
            raise SocketPathError(f"{_place(spec)}: {error.strerror}") from error

    # Following the file.

    async def bring_about(self, config: DaemonConfig, *, strict: bool) -> list[NicEntry]:
        """Serve what `config` and the list say together, and bring the list up to that.

        Args:
            config: of the file.
            strict: as at the start, let the failure of a NIC of the file out, and make no thread;
                else it is recorded.

        Returns:
            NICs that a verb made and that have been given an address since, to be stored.

        Raises:
            ConfigError: the first thing that is wrong with `config`; nothing has changed.
        """
        networks = [entry for entry in self.networks.values() if not entry.in_file]
        nics = [entry for entry in self.nics.values() if not entry.in_file]
        names = {entry.spec.name for entry in self.nics.values() if entry.in_file}
        kept = {name: spec for name, spec in self._served_nics().items() if name in names}
        compare = partial(reconcile, config, networks, nics, kept)
        # With thousands of NICs it takes a second.
        target = compare() if strict else await trio.to_thread.run_sync(compare)
        for problem in target.plan.problems:
            raise problem
        failed = await self._serve(target, strict=strict)
        return self._take_stock(target, networks, nics, failed)

    async def _serve(self, target: Target, *, strict: bool) -> dict[tuple[str, str], str]:
        """Go from what is served to `target`.

        Returns:
            What could not be done, by kind and name.
        """
        switch = self._switch
        todo = steps(self._served_networks(), self._served_nics(), target)
        for name in todo.removed_nics:
            await switch.remove_nic(name)
        for name in todo.removed_networks:
            await switch.remove_network(name)
        failed: dict[tuple[str, str], str] = {}
        await self._change_nics(todo.narrowed, failed)
        for name, changes in todo.changed_networks.items():
            await switch.update_network(name, **changes)
        await self._change_nics(todo.changed_nics, failed)
        of_file = {("network", spec.name) for spec in target.plan.config.networks}
        of_file |= {("nic", spec.name) for spec in target.plan.config.nics}
        additions: list[tuple[str, NetworkSpec | NicSpec, Callable[[Any], Awaitable[object]]]] = [
            *(("network", spec, switch.add_network) for spec in todo.added_networks),
            *(("nic", spec, self.add_nic) for spec in todo.added_nics),
        ]
        for kind, spec, add in additions:
            try:
                await add(spec)
            except MvirtNetError as error:
                if strict and (kind, spec.name) in of_file:
                    raise
                failed[kind, spec.name] = str(error)
        return failed

    async def _change_nics(
        self, all_changes: Mapping[str, Mapping[str, Any]], failed: dict[tuple[str, str], str]
    ) -> None:
        """Change NICs that are served; one that cannot be, for want of memory, is not any more."""
        for name, changes in all_changes.items():
            if ("nic", name) not in failed:
                try:
                    await self._switch.update_nic(name, **changes)
                except MvirtNetError as error:
                    await self._switch.remove_nic(name)
                    failed["nic", name] = str(error)

    def _served_networks(self) -> dict[str, NetworkSpec]:
        """By name; networks that somebody else put into the switch are none of our business."""
        names = {e.spec.name for e in self.networks.values() if not e.error}
        return {name: spec for name, spec in self._switch.networks.items() if name in names}

    def _served_nics(self) -> dict[str, NicSpec]:
        """As `_served_networks`."""
        names = {e.spec.name for e in self.nics.values() if not e.error}
        return {name: nic.spec for name, nic in self._switch.nics.items() if name in names}

    def _take_stock(
        self,
        target: Target,
        networks: Iterable[NetworkEntry],
        nics: Iterable[NicEntry],
        failed: Mapping[tuple[str, str], str],
    ) -> list[NicEntry]:
        """Make the list anew; returns what is to be stored."""
        all_networks = [
            *self._file_networks(target, failed),
            *(self._judged(entry, "network", target, failed) for entry in networks),
        ]
        all_nics = list(self._file_nics(target, failed))
        wanted = {spec.name: spec for spec in target.nics}
        to_store = []
        for entry in nics:
            judged = self._judged(entry, "nic", target, failed)
            if not judged.error:
                filled = with_given(entry.spec, wanted[entry.spec.name])
                if filled != entry.spec:
                    judged = attrs.evolve(judged, spec=filled)
                    to_store.append(judged)
            all_nics.append(judged)
        self._list(all_networks, all_nics)
        return to_store

    def _file_networks(
        self, target: Target, failed: Mapping[tuple[str, str], str]
    ) -> Iterator[NetworkEntry]:
        for spec in target.plan.config.networks:
            id_ = file_id("network", spec.name)
            created_at, updated_at = self._times(self.networks.get(id_), spec)
            yield NetworkEntry(
                id=id_,
                spec=spec,
                in_file=True,
                created_at=created_at,
                updated_at=updated_at,
                error=failed.get(("network", spec.name), ""),
            )

    def _file_nics(
        self, target: Target, failed: Mapping[tuple[str, str], str]
    ) -> Iterator[NicEntry]:
        for spec in target.plan.config.nics:
            id_ = file_id("nic", spec.name)
            created_at, updated_at = self._times(self.nics.get(id_), spec)
            yield NicEntry(
                id=id_,
                network_id=file_id("network", spec.network),
                spec=spec,
                in_file=True,
                created_at=created_at,
                updated_at=updated_at,
                error=self._said_failure("nic", spec.name, failed.get(("nic", spec.name), "")),
            )

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
        return entry if error == entry.error else attrs.evolve(entry, error=error)

    def _said_failure(self, kind: str, name: str, error: str) -> str:
        if error:
            _log.warning("not served", reason=error, **{kind: name})
        return error


def _canonical(ref: str) -> str:
    """A UUID as ids are written, whichever way it is; anything else as it is."""
    try:
        return str(uuid.UUID(ref))
    except ValueError:
        return ref


def _place(spec: NicSpec) -> str:
    """Where frontends find a NIC, if only by its name."""
    return spec.name if spec.socket_path is None else path_key(spec.socket_path)


def _state(entry: NicEntry, nic: Nic | None) -> NicState:
    if entry.error:
        return NicState.ERROR
    # One that is not in the switch just now is on its way there, or to its end.
    return NicState.ACTIVE if nic is not None and nic.connected else NicState.CREATED


def with_given(spec: NicSpec, served: NicSpec) -> NicSpec:
    """`spec` with the addresses of the NIC that it has become."""
    keys = ("mac_address", "ipv4_address", "ipv6_address")
    given = {
        key: getattr(served, key) for key in keys if getattr(served, key) != getattr(spec, key)
    }
    return attrs.evolve(spec, **given) if given else spec


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
