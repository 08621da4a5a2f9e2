"""The list of all networks and NICs, and how it follows the configuration file.

`Roster` has an entry for each, by id: those of the file first, then those that verbs made, by age.
It knows which of them the switch serves. `bring_about` has the switch go over to what the file and
the verbs want together (`inventory`), and makes the list anew.
"""

from __future__ import annotations

import collections
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

import attrs

from .errors import DuplicateError, MvirtNetError
from .inventory import NetworkEntry, NicEntry, Target, file_id, reconcile, steps
from .log import get_logger
from .model import DaemonConfig, NetworkSpec, NicSpec
from .nic import Nic
from .records import NetworkRecord, NicRecord, NicState
from .refusals import ControlError, ErrorKind
from .registry import check_public_overlap
from .switch import Switch

_log = get_logger(__name__)

_Entry = TypeVar("_Entry", NetworkEntry, NicEntry)


class Roster:
    """What there is.

    Args:
        switch: serves it. What others put there is not in the list.
        now: the time.
    """

    def __init__(self, switch: Switch, now: Callable[[], datetime]) -> None:
        self._switch = switch
        self._now = now
        self.networks: dict[str, NetworkEntry] = {}
        self.nics: dict[str, NicEntry] = {}

    def network(self, ref: str) -> NetworkEntry:
        """The network that an id or name means. Raises ControlError."""
        return _find(self.networks, ref, "network")

    def nic(self, ref: str) -> NicEntry:
        """The NIC that an id or name means. Raises ControlError."""
        return _find(self.nics, ref, "NIC")

    def network_record(self, entry: NetworkEntry) -> NetworkRecord:
        """What is told of it now."""
        return _network_record(entry, sum(nic.network_id == entry.id for nic in self.nics.values()))

    def network_records(self) -> list[NetworkRecord]:
        """What is told of all of them now; their NICs are counted in one go."""
        counts = collections.Counter(nic.network_id for nic in self.nics.values())
        return [_network_record(entry, counts[entry.id]) for entry in self.networks.values()]

    def nic_record(self, entry: NicEntry) -> NicRecord:
        """What is told of it now."""
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
        for entry in self.networks.values():
            if entry.spec.name == spec.name:
                raise DuplicateError("name", f"network {spec.name!r} already exists")
            if entry.error:
                check_public_overlap(spec, entry.spec)

    def check_new_nic(self, spec: NicSpec, network: NetworkEntry) -> None:
        """As `check_new_network`, of a NIC in `network`. Raises DuplicateError."""
        for entry in self.nics.values():
            if entry.spec.name == spec.name:
                raise DuplicateError("name", f"NIC {spec.name!r} already exists")
            if entry.error:
                _check_apart(spec, entry, same_network=entry.network_id == network.id)

    def needed_by_others(self, network: NetworkEntry) -> set[IPv4Address | IPv6Address]:
        """Addresses of NICs that are not served, and may be again."""
        return {
            address
            for entry in self.nics.values()
            if entry.error and entry.network_id == network.id
            for address in (entry.spec.ipv4_address, entry.spec.ipv6_address)
            if address is not None
        }

    # Following the file.

    async def bring_about(
        self, config: DaemonConfig, *, strict: bool, listeners: Mapping[str, socket.socket]
    ) -> list[NicEntry]:
        """Serve what `config` and the list say together, and bring the list up to that.

        Args:
            config: of the file.
            strict: let the failure of a NIC of the file out; else it is recorded.
            listeners: as of `daemon.serve`.

        Returns:
            NICs that a verb made and that have been given an address since, to be stored.

        Raises:
            ConfigError: the first thing that is wrong with `config`; nothing has changed.
        """
        networks = [entry for entry in self.networks.values() if not entry.in_file]
        nics = [entry for entry in self.nics.values() if not entry.in_file]
        names = {entry.spec.name for entry in self.nics.values() if entry.in_file}
        kept = {name: spec for name, spec in self._served_nics().items() if name in names}
        target = reconcile(config, networks, nics, kept)
        for problem in target.plan.problems:
            raise problem
        failed = await self._serve(target, listeners, strict=strict)
        return self._take_stock(target, networks, nics, failed)

    async def _serve(
        self, target: Target, listeners: Mapping[str, socket.socket], *, strict: bool
    ) -> dict[tuple[str, str], str]:
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
            *(
                ("nic", spec, partial(switch.add_nic, listener=listeners.get(spec.name)))
                for spec in todo.added_nics
            ),
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
        self.networks = {
            **self._file_networks(target, failed),
            **{e.id: self._judged(e, "network", target, failed) for e in networks},
        }
        self.nics = self._file_nics(target, failed)
        wanted = {spec.name: spec for spec in target.nics}
        to_store = []
        for entry in nics:
            judged = self._judged(entry, "nic", target, failed)
            if not judged.error:
                filled = with_given(entry.spec, wanted[entry.spec.name])
                if filled != entry.spec:
                    judged = attrs.evolve(judged, spec=filled)
                    to_store.append(judged)
            self.nics[entry.id] = judged
        return to_store

    def _file_networks(
        self, target: Target, failed: Mapping[tuple[str, str], str]
    ) -> dict[str, NetworkEntry]:
        entries = {}
        for spec in target.plan.config.networks:
            id_ = file_id("network", spec.name)
            created_at, updated_at = self._times(self.networks.get(id_), spec)
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
            created_at, updated_at = self._times(self.nics.get(id_), spec)
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


def _find(entries: Mapping[str, _Entry], ref: str, what: str) -> _Entry:
    if ref in entries:
        return entries[ref]
    named = [entry for entry in entries.values() if entry.spec.name == ref]
    if not named:
        raise ControlError(ErrorKind.NOT_FOUND, f"{what} not found")
    return min(named, key=lambda entry: bool(entry.error))


def _network_record(entry: NetworkEntry, nic_count: int) -> NetworkRecord:
    return NetworkRecord(
        id=entry.id,
        spec=entry.spec,
        nic_count=nic_count,
        created_at=entry.created_at,
        updated_at=entry.updated_at,
        in_file=entry.in_file,
        error=entry.error,
    )


def _state(nic: Nic | None) -> NicState:
    if nic is None:
        return NicState.ERROR
    return NicState.ACTIVE if nic.connected else NicState.CREATED


def with_given(spec: NicSpec, served: NicSpec) -> NicSpec:
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
