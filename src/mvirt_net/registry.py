"""Who is in which network: names, MAC addresses, IP addresses, routed prefixes and socket paths.

Everything that makes a network or NIC acceptable, beyond the form of its single values (`model`
sees to that), is decided here and nowhere else, so that checking a configuration and running it
cannot disagree. A `Registry` is pure book-keeping: no socket, no time, no randomness, and each of
its methods either does all it says or raises and leaves everything as it was.

What a NIC gives itself (its *claim*) is told apart from what it leaves to us (its *fill*). One NIC
at a time, `Registry.add_nic` does both. For a whole configuration `plan` makes all the claims
first, so that an address handed out never collides with one that stands further down in the file.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

import attrs

from .endpoints import MAX_SOCKET_PATH, Endpoint, TcpEndpoint
from .errors import ConfigError, DuplicateError, ExhaustedError, NotFoundError
from .model import (
    GATEWAY_MAC,
    MIN_IPV6_MTU,
    ApiSpec,
    DaemonConfig,
    MacAddress,
    NetworkSpec,
    NicSpec,
)

LIVE_NETWORK_FIELDS: Final = frozenset({"dns_servers", "ntp_servers", "ipv4_netmask", "is_public"})
"""Of a network: what may change under its NICs."""
LIVE_NIC_FIELDS: Final = frozenset(
    {"routed_ipv4_prefixes", "routed_ipv6_prefixes", "allow_uid", "allow_gid"}
)
"""Of a NIC: what may change under its frontend."""

Avoided = Container[IPv4Address | IPv6Address]
"""Addresses that are not to be given to anybody."""

_UNROUTABLE: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network" (RFC 1122, 3.2.1.3)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, the gateway's own address among it (RFC 3927, 2.7)
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, limited broadcast
        "::/127",  # unspecified and loopback
        "fe80::/10",  # link-local
        "ff00::/8",  # multicast
    )
)


_Spec = TypeVar("_Spec", NetworkSpec, NicSpec)


class Registry:
    """The networks and NICs of one switch.

    NIC names, MAC addresses and socket paths are unique in the whole registry; IP addresses and
    routed prefixes are unique in their network, for networks do not see each other.

    Args:
        reserved: control interfaces by the paths of their sockets, which no NIC may have.
    """

    def __init__(self, reserved: Mapping[Path, str] = MappingProxyType({})) -> None:
        self._networks: dict[str, NetworkSpec] = {}
        self._nics: dict[str, NicSpec] = {}
        self._spaces: dict[str, tuple[_Space[IPv4Address], _Space[IPv6Address]]] = {}
        self._macs: dict[MacAddress, str] = {}
        self._sockets = {
            path_key(path): f"the control interface {interface}"
            for path, interface in reserved.items()
        }
        """Whose they are, by the key of the path; and the other way round, for a relative path has
        another key in another folder."""
        self._socket_of: dict[str, str] = {}

    @property
    def networks(self) -> Mapping[str, NetworkSpec]:
        """A live, read-only view: name → network."""
        return MappingProxyType(self._networks)

    @property
    def nics(self) -> Mapping[str, NicSpec]:
        """A live, read-only view: name → NIC, all filled in."""
        return MappingProxyType(self._nics)

    def add_network(self, spec: NetworkSpec) -> NetworkSpec:
        """Take in a network.

        Returns:
            The network as it is kept.

        Raises:
            DuplicateError: the name is taken.
            ConfigError: its subnet, prefix or MTU cannot be used, or it is public and overlaps
                another public one.
        """
        if spec.name in self._networks:
            raise DuplicateError("name", f"there is a network {spec.name!r} already")
        _check_routable("ipv4_subnet", spec.ipv4_subnet)
        _check_routable("ipv6_prefix", spec.ipv6_prefix)
        if spec.ipv6_prefix is not None and spec.mtu < MIN_IPV6_MTU:
            raise ConfigError("mtu", f"{spec.mtu} is too small for IPv6, which needs 1280")
        self._check_public(spec)
        self._networks[spec.name] = spec
        self._spaces[spec.name] = (
            _Space(
                IPv4Address, spec.ipv4_subnet, "ipv4_subnet", "ipv4_address", "routed_ipv4_prefixes"
            ),
            _Space(
                IPv6Address, spec.ipv6_prefix, "ipv6_prefix", "ipv6_address", "routed_ipv6_prefixes"
            ),
        )
        return spec

    def update_network(self, name: str, **changes: Any) -> NetworkSpec:
        """Change what may change while NICs are in a network.

        Args:
            name: of the network.
            changes: fields of `LIVE_NETWORK_FIELDS`; None leaves one as it is.

        Returns:
            The network as it is kept now.

        Raises:
            NotFoundError: there is none of that name.
            ConfigError: a value is wrong, or it becomes public and overlaps another public one.
        """
        if name not in self._networks:
            raise NotFoundError(f"there is no network {name!r}")
        spec = _evolved(self._networks[name], LIVE_NETWORK_FIELDS, changes)
        self._check_public(spec)
        self._networks[name] = spec
        return spec

    def remove_network(self, name: str) -> None:
        """Forget a network.

        Raises:
            NotFoundError: there is none of that name.
            ConfigError: a NIC is still in it.
        """
        if name not in self._networks:
            raise NotFoundError(f"there is no network {name!r}")
        for nic in self._nics.values():
            if nic.network == name:
                raise ConfigError("name", f"network {name!r} still has the NIC {nic.name!r}")
        del self._networks[name], self._spaces[name]

    def add_nic(self, spec: NicSpec, avoid: Avoided = frozenset()) -> NicSpec:
        """Take in a NIC and give it what it does not bring along.

        Args:
            spec: of the NIC.
            avoid: addresses that it is not given, though they are free.

        Returns:
            The NIC as it is kept: its MAC address always set, its IP addresses set where its
            network has a subnet or prefix.

        Raises:
            DuplicateError: name, MAC address, IP address or socket path are taken.
            ConfigError: anything else, the key names the field (``network`` when it is unknown).
        """
        self.claim_nic(spec)
        try:
            return self.fill_nic(spec.name, avoid)
        except ConfigError:
            self.remove_nic(spec.name)
            raise

    def claim_nic(self, spec: NicSpec) -> None:
        """Take in what a NIC brings along; `fill_nic` must follow. Raises like `add_nic`."""
        if spec.name in self._nics:
            raise DuplicateError("name", f"there is a NIC {spec.name!r} already")
        if spec.network not in self._networks:
            raise ConfigError("network", f"there is no network {spec.network!r}")
        if spec.mac_address in self._macs:
            owner = self._macs[spec.mac_address]
            raise DuplicateError("mac_address", f"{spec.mac_address} is taken by NIC {owner!r}")
        socket = _socket_key(spec.socket_path)
        _check_socket_file(spec)
        if socket in self._sockets:
            owner = self._sockets[socket]
            raise DuplicateError("socket_path", f"{spec.socket_path} is taken by {owner}")
        ipv4, ipv6 = self._spaces[spec.network]
        ipv4.check(spec.ipv4_address, spec.routed_ipv4_prefixes)
        ipv6.check(spec.ipv6_address, spec.routed_ipv6_prefixes)

        ipv4.take(spec.name, spec.ipv4_address, spec.routed_ipv4_prefixes)
        ipv6.take(spec.name, spec.ipv6_address, spec.routed_ipv6_prefixes)
        if spec.mac_address is not None:
            self._macs[spec.mac_address] = spec.name
        if socket is not None:
            self._sockets[socket] = f"NIC {spec.name!r}"
            self._socket_of[spec.name] = socket
        self._nics[spec.name] = spec

    def adopt(self, name: str, earlier: NicSpec) -> None:
        """Let a claimed NIC keep what it was given earlier, as far as that is still free."""
        spec = self._nics[name]
        if earlier.network != spec.network:
            return
        ipv4, ipv6 = self._spaces[spec.network]
        kept: dict[str, Any] = {}
        if spec.mac_address is None and earlier.mac_address not in self._macs:
            kept["mac_address"] = earlier.mac_address
        if spec.ipv4_address is None and ipv4.may_keep(earlier.ipv4_address):
            kept["ipv4_address"] = earlier.ipv4_address
        if spec.ipv6_address is None and ipv6.may_keep(earlier.ipv6_address):
            kept["ipv6_address"] = earlier.ipv6_address

        if mac := kept.get("mac_address"):
            self._macs[mac] = name
        ipv4.take(name, kept.get("ipv4_address"))
        ipv6.take(name, kept.get("ipv6_address"))
        self._nics[name] = attrs.evolve(spec, **kept)

    def fill_nic(self, name: str, avoid: Avoided = frozenset()) -> NicSpec:
        """Give a claimed NIC the addresses it lacks, but for those in `avoid`.

        Raises:
            ExhaustedError: its network has none left; the claim stays, `remove_nic` undoes it.
        """
        spec = self._nics[name]
        ipv4, ipv6 = self._spaces[spec.network]
        mac = spec.mac_address or self._free_mac(spec)
        ipv4_address = spec.ipv4_address or ipv4.lowest_free(avoid)
        ipv6_address = spec.ipv6_address or ipv6.lowest_free(avoid)

        self._macs[mac] = name
        ipv4.take(name, ipv4_address)
        ipv6.take(name, ipv6_address)
        filled = attrs.evolve(
            spec, mac_address=mac, ipv4_address=ipv4_address, ipv6_address=ipv6_address
        )
        if filled != spec:  # else one specification is enough, for there may be hundreds
            self._nics[name] = filled
        return self._nics[name]

    def update_nic(self, name: str, **changes: Any) -> NicSpec:
        """Change what may change while a frontend is connected.

        Args:
            name: of the NIC.
            changes: fields of `LIVE_NIC_FIELDS`; None leaves one as it is.

        Returns:
            The NIC as it is kept now.

        Raises:
            NotFoundError: there is none of that name.
            ConfigError: no prefix, not routable, or an overlap; the key names the field.
        """
        if name not in self._nics:
            raise NotFoundError(f"there is no NIC {name!r}")
        spec = _evolved(self._nics[name], LIVE_NIC_FIELDS, changes)
        ipv4, ipv6 = self._spaces[spec.network]
        ipv4.check_prefixes(spec.routed_ipv4_prefixes, owner=name)
        ipv6.check_prefixes(spec.routed_ipv6_prefixes, owner=name)
        self.put_back(spec)
        return spec

    def put_back(self, spec: NicSpec) -> None:
        """Keep a NIC as it was before `update_nic`."""
        had = self._nics[spec.name]
        ipv4, ipv6 = self._spaces[spec.network]
        ipv4.replace_prefixes(spec.name, had.routed_ipv4_prefixes, spec.routed_ipv4_prefixes)
        ipv6.replace_prefixes(spec.name, had.routed_ipv6_prefixes, spec.routed_ipv6_prefixes)
        self._nics[spec.name] = spec

    def remove_nic(self, name: str) -> None:
        """Forget a NIC; all it had is free again. Raises NotFoundError."""
        spec = self._nics.pop(name, None)
        if spec is None:
            raise NotFoundError(f"there is no NIC {name!r}")
        ipv4, ipv6 = self._spaces[spec.network]
        ipv4.release(spec.ipv4_address, spec.routed_ipv4_prefixes)
        ipv6.release(spec.ipv6_address, spec.routed_ipv6_prefixes)
        if spec.mac_address is not None:
            del self._macs[spec.mac_address]
        if name in self._socket_of:
            del self._sockets[self._socket_of.pop(name)]

    def _check_public(self, spec: NetworkSpec) -> None:
        """Raise ConfigError when `spec` is public and overlaps another public network."""
        if spec.is_public:
            for other in self._networks.values():
                if other.name != spec.name:
                    check_public_overlap(spec, other)

    def _free_mac(self, spec: NicSpec) -> MacAddress:
        """The first of `generated_macs` that nobody has."""
        macs = generated_macs(spec.network, spec.name)
        return next(mac for mac in macs if mac != GATEWAY_MAC and mac not in self._macs)


def check_public_overlap(spec: NetworkSpec, other: NetworkSpec) -> None:
    """Raise ConfigError when both networks are public and have addresses in common."""
    if not (spec.is_public and other.is_public):
        return
    for key in ("ipv4_subnet", "ipv6_prefix"):
        ours, theirs = getattr(spec, key), getattr(other, key)
        if ours is not None and theirs is not None and ours.overlaps(theirs):
            raise ConfigError(key, f"{ours} overlaps {theirs} of the public network {other.name!r}")


def _evolved(spec: _Spec, live: frozenset[str], changes: Mapping[str, Any]) -> _Spec:
    """`spec` with those of `changes` that are not None; all of them must be in `live`."""
    assert live.issuperset(changes), changes
    return attrs.evolve(spec, **{key: value for key, value in changes.items() if value is not None})


def generated_macs(network: str, nic: str) -> Iterator[MacAddress]:
    """MAC addresses for the NIC `nic` of `network`, the same ones each time, without an end.

    They are locally administered and unicast (IEEE 802, 8.2): 46 bits of a hash of both names.
    All but the first are for the case that it is taken.
    """
    for attempt in itertools.count():
        digest = hashlib.sha256(f"{network}/{nic}/{attempt}".encode()).digest()
        yield MacAddress(bytes([digest[0] & 0xFC | 0x02]) + digest[1:6])


@attrs.frozen
class Plan:
    """What `plan` made of a configuration."""

    config: DaemonConfig
    """The networks and NICs without a problem, the NICs filled in."""
    problems: tuple[ConfigError, ...]
    """Their keys are whole paths, ``nic[1].mac_address``, counted from 0 in the order given."""


def _nothing_more(_registry: Registry) -> Mapping[str, Avoided]:
    return {}


def plan(
    config: DaemonConfig,
    claim_more: Callable[[Registry], Mapping[str, Avoided]] = _nothing_more,
) -> Plan:
    """Check a whole configuration and give each NIC what it lacks, in the order given.

    Planning the result once more changes nothing, and adding its parts to a `Registry` one by one
    cannot fail.

    Args:
        config: what is asked for.
        claim_more: called when all that `config` asks for by name is claimed, and before anything
            is given to those that did not ask; may claim more in the registry that it is called
            with, and returns for networks the addresses that are not to be given there.
    """
    registry = Registry(config.api.socket_paths)
    problems = list(api_problems(config.api))

    def succeeds(path: str, step: Callable[[], object]) -> bool:
        try:
            step()
        except ConfigError as error:
            problems.append(type(error)(f"{path}.{error.key}", error.problem))
            return False
        return True

    networks = [
        spec
        for index, spec in enumerate(config.networks)
        if succeeds(f"network[{index}]", partial(registry.add_network, spec))
    ]
    # A NIC is not to blame for its network's problem.
    refused = {spec.name for spec in config.networks} - registry.networks.keys()
    claimed = [
        (index, spec.name)
        for index, spec in enumerate(config.nics)
        if spec.network not in refused
        and succeeds(f"nic[{index}]", partial(registry.claim_nic, spec))
    ]
    avoid = claim_more(registry)
    nics = [
        registry.nics[name]
        for index, name in claimed
        if succeeds(
            f"nic[{index}]",
            partial(registry.fill_nic, name, avoid.get(registry.nics[name].network, ())),
        )
    ]
    planned = attrs.evolve(config, networks=tuple(networks), nics=tuple(nics))
    return Plan(planned, tuple(problems))


def api_problems(api: ApiSpec) -> Iterator[ConfigError]:
    """What is wrong with the control interfaces together."""
    taken = {_place(endpoint) for endpoint in api.grpc if not _is_any(endpoint)}
    for index, endpoint in enumerate(api.http):
        if _place(endpoint) in taken:
            yield DuplicateError(f"api.http[{index}]", f"{endpoint} is among api.grpc, too")


def _is_any(endpoint: Endpoint) -> bool:
    """Whether the port is chosen when it is listened on."""
    return isinstance(endpoint, TcpEndpoint) and endpoint.port == 0


def _place(endpoint: Endpoint) -> str:
    """What two ways to write one endpoint have in common."""
    return str(endpoint) if isinstance(endpoint, TcpEndpoint) else path_key(endpoint.path)


_Address = TypeVar("_Address", bound=IPv4Address | IPv6Address)
_AnyNetwork = IPv4Network | IPv6Network


class _Route(NamedTuple):
    """A routed prefix, its bounds as integers, by which it is sorted; both belong to it."""

    first: int
    last: int
    owner: str


class _Space(Generic[_Address]):
    """The addresses of one family in one network: who has which, and which is free.

    Addresses are integers here, and both lists are sorted. Routed prefixes never overlap, so the
    last one that begins at or before an address is the only one that can hold it.

    Args:
        family: the class of its addresses.
        subnet: what NICs get their addresses from; None when the network has none.
        subnet_key: the field that gives `subnet`, for messages.
        address_key: the field that gives a NIC's address.
        prefixes_key: the field that gives a NIC's routed prefixes.
    """

    def __init__(
        self,
        family: type[_Address],
        subnet: _AnyNetwork | None,
        subnet_key: str,
        address_key: str,
        prefixes_key: str,
    ) -> None:
        self._family = family
        self._subnet = subnet
        self._subnet_key = subnet_key
        self._address_key = address_key
        self._prefixes_key = prefixes_key
        self._owners: dict[int, str] = {}
        self._addresses: list[int] = []
        self._routes: list[_Route] = []
        self._lowest = 0
        """Nothing below it is free."""

    def check(self, address: _Address | None, prefixes: Sequence[_AnyNetwork]) -> None:
        """Whether a NIC that has nothing in here yet may have `address` and `prefixes`.

        Raises:
            DuplicateError: somebody has the address.
            ConfigError: not in the subnet, not a host's, or an overlap.
        """
        if address is not None:
            self._check_address(address)
        self.check_prefixes(prefixes)

    def check_prefixes(self, prefixes: Sequence[_AnyNetwork], owner: str | None = None) -> None:
        """Whether `owner` may have these, in place of those it has. Raises ConfigError."""
        keys = [f"{self._prefixes_key}[{index}]" for index in range(len(prefixes))]
        bounds = [_bounds(prefix) for prefix in prefixes]
        for key, prefix, (first, last) in zip(keys, prefixes, bounds, strict=True):
            self._check_prefix(key, prefix, first, last, owner)
        # Sorted, and the wider of two before the other, each can overlap only the one before it.
        order = sorted(range(len(bounds)), key=lambda index: (bounds[index][0], -bounds[index][1]))
        for before, after in itertools.pairwise(order):
            if bounds[after][0] <= bounds[before][1]:
                raise ConfigError(keys[after], f"{prefixes[after]} overlaps {prefixes[before]}")

    def take(
        self, nic: str, address: _Address | None, prefixes: Sequence[_AnyNetwork] = ()
    ) -> None:
        """Enter what `check` or `lowest_free` found good; what `nic` has already stays its own."""
        if address is not None and int(address) not in self._owners:
            self._owners[int(address)] = nic
            bisect.insort(self._addresses, int(address))
        for prefix in prefixes:
            bisect.insort(self._routes, _Route(*_bounds(prefix), nic))

    def replace_prefixes(
        self, nic: str, had: Sequence[_AnyNetwork], wanted: Sequence[_AnyNetwork]
    ) -> None:
        """Enter what `check_prefixes` found good, in place of those that `nic` had."""
        self.release(None, had)
        self.take(nic, None, wanted)

    def release(self, address: _Address | None, prefixes: Sequence[_AnyNetwork]) -> None:
        """Take out what a NIC has."""
        if address is not None:
            self._lowest = min(self._lowest, int(address))
            del self._owners[int(address)]
            del self._addresses[bisect.bisect_left(self._addresses, int(address))]
        for prefix in prefixes:
            first, _last = _bounds(prefix)
            self._lowest = min(self._lowest, first)
            del self._routes[bisect.bisect_left(self._routes, (first,))]

    def may_keep(self, address: _Address | None) -> bool:
        """Whether somebody who had `address` may go on having it, if it is one at all."""
        try:
            self.check(address, ())
        except ConfigError:
            return False
        return address is not None

    def lowest_free(self, avoid: Avoided) -> _Address | None:
        """The lowest address that a NIC may be given; None where there is no subnet.

        Raises:
            ExhaustedError: none is left.
        """
        if self._subnet is None:
            return None
        first, last = _bounds(self._subnet)
        # Each turn passes an address somebody has or is to have, a whole prefix, or one of a few in
        # 256.
        candidate = max(first, self._lowest)
        avoided = 0
        while candidate <= last:
            if (route := self._route_at_or_before(candidate)) and route.last >= candidate:
                candidate = route.last + 1
            elif candidate in self._owners or not _is_assignable(self._subnet, candidate):
                candidate += 1
            elif (address := self._family(candidate)) in avoid:
                # Free all the same, so it must be found again by others.
                avoided = avoided or candidate
                candidate += 1
            else:
                self._lowest = avoided or candidate
                return address
        raise ExhaustedError(self._address_key, f"no address of {self._subnet} is free")

    def _check_address(self, address: _Address) -> None:
        key, subnet = self._address_key, self._subnet
        if subnet is None:
            raise ConfigError(key, f"{address} is given, but the network has no {self._subnet_key}")
        if address not in subnet:
            raise ConfigError(key, f"{address} is not in the network's {subnet}")
        if not _is_host(subnet, int(address)):
            raise ConfigError(key, f"{address} is not a host's address in {subnet}")
        if (owner := self._owners.get(int(address))) is not None:
            raise DuplicateError(key, f"{address} is taken by NIC {owner!r}")
        if (route := self._route_at_or_before(int(address))) and route.last >= int(address):
            raise ConfigError(key, f"{address} is in a prefix routed to NIC {route.owner!r}")

    def _check_prefix(
        self, key: str, prefix: _AnyNetwork, first: int, last: int, owner: str | None
    ) -> None:
        _check_routable(key, prefix)
        for route in self._routes_within(first, last):
            if route.owner != owner:
                raise ConfigError(key, f"{prefix} overlaps a prefix routed to NIC {route.owner!r}")
        for other in self._owners_within(first, last):
            if other != owner:
                raise ConfigError(key, f"{prefix} holds the address of NIC {other!r}")

    def _routes_within(self, first: int, last: int) -> Iterator[_Route]:
        """Those that have an address from `first` to `last`, the last of them first."""
        index = bisect.bisect_left(self._routes, (last + 1,))
        while index and self._routes[index - 1].last >= first:
            index -= 1
            yield self._routes[index]

    def _owners_within(self, first: int, last: int) -> Iterator[str]:
        """The NICs with an address from `first` to `last`."""
        index = bisect.bisect_left(self._addresses, first)
        while index < len(self._addresses) and self._addresses[index] <= last:
            yield self._owners[self._addresses[index]]
            index += 1

    def _route_at_or_before(self, address: int) -> _Route | None:
        index = bisect.bisect_left(self._routes, (address + 1,))
        return self._routes[index - 1] if index else None


def _check_routable(key: str, network: _AnyNetwork | None) -> None:
    """Raise ConfigError when a part of `network` may not be routed at all."""
    if network is None:
        return
    first, last = _bounds(network)
    for special_first, special_last, special in _UNROUTABLE_BOUNDS[network.version]:
        if first <= special_last and special_first <= last:
            raise ConfigError(key, f"{network} overlaps {special}, which is never routed")


def _is_host(subnet: _AnyNetwork, address: int) -> bool:
    """Whether a host of `subnet` may have `address`, which lies in it.

    IPv4 keeps the first and the last address for itself (RFC 1122, 3.2.1.3), IPv6 the first
    (RFC 4291, 2.6.1), but neither does on a link of two (RFC 3021, RFC 6164) or one.
    """
    first, last = _bounds(subnet)
    if last - first <= 1:
        return True
    return address != first and (subnet.version == 6 or address != last)


def _is_assignable(subnet: _AnyNetwork, address: int) -> bool:
    """Whether to give `address` to a NIC that did not ask for one.

    Users and old software take an IPv4 address that ends in .0 or .255 for a mistake, and
    an IPv6 address that ends in ::1 for the router.
    """
    first, last = _bounds(subnet)
    if last - first <= 1:
        return True
    if subnet.version == 6:
        return address >= first + 2
    return _is_host(subnet, address) and address & 0xFF not in (0, 0xFF)


def _bounds(network: _AnyNetwork) -> tuple[int, int]:
    """The first and last address."""
    first = int(network.network_address)
    return first, first | (1 << network.max_prefixlen - network.prefixlen) - 1


_UNROUTABLE_BOUNDS: Final = {
    version: [(*_bounds(special), special) for special in _UNROUTABLE if special.version == version]
    for version in (4, 6)
}
"""By the version of IP: the first and last address of each, and it itself."""


def _socket_key(path: Path | None) -> str | None:
    """What two paths of one socket have in common. Raises ConfigError when it cannot be one."""
    if path is None:
        return None
    if not path.name or "\0" in str(path):
        raise ConfigError("socket_path", f"{str(path)!r} does not name a file")
    if (length := len(os.fsencode(path))) > MAX_SOCKET_PATH:
        raise ConfigError("socket_path", f"{path} has {length} bytes, more than {MAX_SOCKET_PATH}")
    return path_key(path)


def path_key(path: Path) -> str:
    """The same for each way to write a path."""
    return os.path.abspath(path)  # noqa: PTH100  (Path.absolute keeps "..")


def _check_socket_file(spec: NicSpec) -> None:
    """Raise ConfigError when a file is described that there will not be."""
    for key in ("socket_mode", "socket_owner", "socket_group"):
        if spec.socket_path is None and getattr(spec, key) is not None:
            raise ConfigError(key, "there is no socket path whose file could have it")
