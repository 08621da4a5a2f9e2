"""What there is to be served: what the configuration file lists, and what was created by verbs.

**Theory of operation.** Both have networks and NICs, and they may not fit together: the file may be
changed while the daemon does not run, and nobody who edits it sees what was created. The rule:

1. What is in the file is served, or the file is wrong as a whole.
2. What was created is served as far as it fits with the file. What does not is kept, with the
   reason (`error`), until it does.
3. Among the created ones, those that are served already come first, then the older.
4. Who runs already keeps what it was given, and nobody is given what one that is kept would need.

`reconcile` makes one list of what is to be served out of both, and `steps` what has to be done to
get there from what is being served, so that whoever is in both lists is not touched. Nothing here
does I/O or knows the time.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

import attrs

from .errors import ConfigError
from .model import DaemonConfig, NetworkSpec, NicSpec
from .registry import LIVE_NETWORK_FIELDS, LIVE_NIC_FIELDS, Avoided, Plan, Registry, plan

_FILE_VERSION: Final = 8
"""Of the ids of what is in the configuration file: UUIDs of a form of our own (RFC 9562, 5.8)."""

_Spec = TypeVar("_Spec", NetworkSpec, NicSpec)


@attrs.frozen(kw_only=True)
class NetworkEntry:
    """A network that there is, served or not."""

    id: str
    spec: NetworkSpec
    in_file: bool
    """Whether the configuration file has it; else a verb made it."""
    created_at: datetime
    updated_at: datetime
    error: str = ""
    """Why it is not served."""


@attrs.frozen(kw_only=True)
class NicEntry:
    """A NIC that there is, served or not."""

    id: str
    network_id: str
    spec: NicSpec
    """As it is kept: with all its addresses, and without what it has from the defaults."""
    in_file: bool
    created_at: datetime
    updated_at: datetime
    error: str = ""


def file_id(kind: str, name: str) -> str:
    """The id of what the configuration file calls `name`: the same one each time, and one that
    nothing else may have (`is_file_id`), whatever the file will call something some day.

    Args:
        kind: ``network`` or ``nic``.
        name: unique among those.
    """
    digest = hashlib.sha256(f"mvirt-net/{kind}/{name}".encode()).digest()
    bits = int.from_bytes(digest[:16], "big")
    bits = bits & ~(0xF << 76) | _FILE_VERSION << 76
    bits = bits & ~(0b11 << 62) | 0b10 << 62  # the variant of RFC 9562
    return str(uuid.UUID(int=bits))


def is_file_id(id_: uuid.UUID) -> bool:
    """Whether it may be what `file_id` returns for some name."""
    return id_.version == _FILE_VERSION


@attrs.frozen
class Target:
    """What is to be served."""

    plan: Plan
    """Of the file."""
    networks: tuple[NetworkSpec, ...]
    """All of them, those of the file first."""
    nics: tuple[NicSpec, ...]
    """All of them, filled in."""
    refused: Mapping[str, str]
    """Why those of the created ones that are not among them are not: by id."""


def reconcile(
    config: DaemonConfig,
    networks: Iterable[NetworkEntry],
    nics: Iterable[NicEntry],
    running: Mapping[str, NicSpec],
) -> Target:
    """Bring the file and what was created together.

    Args:
        config: what the file says, without anything that is given.
        networks, nics: what was created, the oldest first.
        running: those NICs of the file that are served now, by name.
    """
    network_entries = sorted(networks, key=_is_refused)
    nic_entries = sorted(nics, key=_is_refused)
    claims = _Claims(config, network_entries, nic_entries)
    planned = plan(config, partial(claims.make, running))
    if planned.problems:
        # Is it the file, or what was created, that has taken what the file needs?
        alone = plan(config, partial(_Claims(config, (), ()).make, running))
        if alone.problems:
            return Target(alone, (), (), {})
        claims = _Claims(config, network_entries, nic_entries)
        planned = plan(alone.config, partial(claims.make, running))
    return Target(
        planned,
        (*planned.config.networks, *claims.networks),
        (*planned.config.nics, *claims.nics),
        claims.refused,
    )


class _Claims:
    """What the created networks and NICs claim of what the file has left."""

    def __init__(
        self,
        config: DaemonConfig,
        network_entries: Sequence[NetworkEntry],
        nic_entries: Sequence[NicEntry],
    ) -> None:
        self._config = config
        self._network_entries = network_entries
        self._nic_entries = nic_entries
        self._names = {file_id("network", spec.name): spec.name for spec in config.networks}
        """Of the networks that are served, by id."""
        self.networks: list[NetworkSpec] = []
        self.nics: list[NicSpec] = []
        self.refused: dict[str, str] = {}

    def make(self, running: Mapping[str, NicSpec], registry: Registry) -> Mapping[str, Avoided]:
        """Make all claims in `registry`, which has those of the file."""
        for name in list(registry.nics):
            if name in running:
                registry.adopt(name, running[name])
        for network in self._network_entries:
            self._claim_network(network, registry)
        claimed = [nic for nic in self._nic_entries if self._claim_nic(nic, registry)]
        avoid = self._needed_by_refused()
        for nic in claimed:
            self._fill_nic(nic, registry, avoid.get(nic.spec.network, ()))
        return avoid

    def _claim_network(self, entry: NetworkEntry, registry: Registry) -> None:
        try:
            self.networks.append(registry.add_network(entry.spec))
        except ConfigError as error:
            self.refused[entry.id] = str(error)
        else:
            self._names[entry.id] = entry.spec.name

    def _claim_nic(self, entry: NicEntry, registry: Registry) -> bool:
        if entry.network_id not in self._names:
            self.refused[entry.id] = self._network_problem(entry)
            return False
        try:
            registry.claim_nic(entry.spec.with_defaults(self._config.defaults))
        except ConfigError as error:
            self.refused[entry.id] = str(error)
            return False
        return True

    def _fill_nic(self, entry: NicEntry, registry: Registry, avoid: Avoided) -> None:
        """Its network may have a family by now that it had not when the NIC was created."""
        try:
            self.nics.append(registry.fill_nic(entry.spec.name, avoid))
        except ConfigError as error:
            registry.remove_nic(entry.spec.name)
            self.refused[entry.id] = str(error)

    def _network_problem(self, entry: NicEntry) -> str:
        name = entry.spec.network
        if entry.network_id in self.refused:
            return f"network: {name!r} is not served: {self.refused[entry.network_id]}"
        return f"network: {name!r} is not in the configuration file any more"

    def _needed_by_refused(self) -> Mapping[str, Avoided]:
        needed: dict[str, set[Any]] = {}
        for entry in self._nic_entries:
            if entry.id in self.refused and entry.network_id in self._names:
                addresses = needed.setdefault(self._names[entry.network_id], set())
                addresses |= {entry.spec.ipv4_address, entry.spec.ipv6_address}
        return needed


def _is_refused(entry: NetworkEntry | NicEntry) -> bool:
    return bool(entry.error)


@attrs.frozen(kw_only=True)
class Steps:
    """What has to be done, in this order; nothing in it fails for what is still in the way.

    After the removals and `narrowed`, what is served is a part of what is to be, and all further
    steps only add to it.
    """

    removed_nics: tuple[str, ...]
    removed_networks: tuple[str, ...]
    narrowed: Mapping[str, Mapping[str, Any]]
    """NICs by name: the prefixes that are routed to them before and after."""
    changed_networks: Mapping[str, Mapping[str, Any]]
    """By name: the fields that change while NICs are in them."""
    changed_nics: Mapping[str, Mapping[str, Any]]
    """By name: the fields that change while a frontend is connected."""
    added_networks: tuple[NetworkSpec, ...]
    added_nics: tuple[NicSpec, ...]


def steps(
    networks: Mapping[str, NetworkSpec], nics: Mapping[str, NicSpec], target: Target
) -> Steps:
    """How to get from what is served (by name) to `target`."""
    wanted_networks = {spec.name: spec for spec in target.networks}
    wanted_nics = {spec.name: spec for spec in target.nics}
    kept_networks = _live_changes(networks, wanted_networks, LIVE_NETWORK_FIELDS)
    kept_nics = {
        name: changes
        for name, changes in _live_changes(nics, wanted_nics, LIVE_NIC_FIELDS).items()
        if nics[name].network in kept_networks
    }
    # Whoever has nothing to change is not touched: guests would hear of it.
    changed_nics = {name: changes for name, changes in kept_nics.items() if changes}
    changed_networks = {name: changes for name, changes in kept_networks.items() if changes}
    # Whoever gives up being public makes room for the others.
    ordered = sorted(changed_networks, key=lambda name: wanted_networks[name].is_public)
    return Steps(
        removed_nics=tuple(name for name in nics if name not in kept_nics),
        removed_networks=tuple(name for name in networks if name not in kept_networks),
        narrowed={
            name: common
            for name in changed_nics
            if (common := _common_prefixes(nics[name], wanted_nics[name]))
        },
        changed_networks={name: changed_networks[name] for name in ordered},
        changed_nics=changed_nics,
        added_networks=tuple(s for s in target.networks if s.name not in kept_networks),
        added_nics=tuple(s for s in target.nics if s.name not in kept_nics),
    )


def _live_changes(
    now: Mapping[str, _Spec], wanted: Mapping[str, _Spec], live: frozenset[str]
) -> dict[str, dict[str, Any]]:
    """For those that can go on: what changes, which may be nothing."""
    changes = {}
    for name, spec in now.items():
        if name in wanted:
            changed = _changed_fields(spec, wanted[name])
            # None stands for "as it is" in an update, and cannot be said.
            if live.issuperset(changed) and None not in changed.values():
                changes[name] = changed
    return changes


def _changed_fields(now: _Spec, wanted: _Spec) -> dict[str, Any]:
    return {
        field.name: getattr(wanted, field.name)
        for field in attrs.fields(type(now))
        if getattr(wanted, field.name) != getattr(now, field.name)
    }


def _common_prefixes(now: NicSpec, wanted: NicSpec) -> dict[str, Any]:
    """What `now` has to give up of its prefixes before others can have it; empty: nothing."""
    common = {}
    for key in ("routed_ipv4_prefixes", "routed_ipv6_prefixes"):
        kept = tuple(prefix for prefix in getattr(now, key) if prefix in getattr(wanted, key))
        if kept != getattr(now, key):
            common[key] = kept
    return common
