"""Values that every part of the package may use; nothing here does I/O, but for the names of users
and groups, which are looked up when a value that has one is made.

Directions are the guest's everywhere: **TX** is what the guest sends (queue 1), **RX** what it
receives (queue 0).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import attrs

from .accounts import group_id, user_id
from .endpoints import Endpoint, UnixEndpoint, parse_endpoints
from .errors import ConfigError
from .netmask import Netmask as Netmask

RX_QUEUE = 0
"""The receive queue of the first queue pair (virtio 1.2, 5.1.2)."""
TX_QUEUE = 1
"""The transmit queue of the first queue pair (virtio 1.2, 5.1.2)."""


def pair_of(queue: int) -> int:
    """The number of the queue pair that a queue belongs to."""
    return queue // 2


def rx_of(pair: int) -> int:
    """The receive queue of a queue pair."""
    return 2 * pair + RX_QUEUE


def tx_of(pair: int) -> int:
    """The transmit queue of a queue pair."""
    return 2 * pair + TX_QUEUE


MIN_MTU = 68
"""Least MTU of an IPv4 link (RFC 791, 3.2) and of virtio-net (virtio 1.2, 5.1.4.1)."""
MIN_IPV6_MTU = 1280
"""Of a link that carries IPv6 (RFC 8200, 5)."""
MAX_MTU = 65535

MAX_WORKERS = 64
MAX_BUSY_POLL = 1_000_000
"""Microseconds: a second."""
MAX_CPU = 1023
"""The last one of a cpu_set_t."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_MAC_TEXT = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}", re.ASCII)
_MODE_TEXT = re.compile(r"0?[0-7]{3}", re.ASCII)


@attrs.frozen(order=True)
class MacAddress:
    """A 48-bit MAC address; `packed` holds its six bytes in wire order."""

    packed: bytes = attrs.field()

    @packed.validator
    def _six_bytes(self, _attribute: object, value: bytes) -> None:
        if len(value) != 6:
            raise ValueError(f"a MAC address has 6 bytes, not {len(value)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``52:54:00:12:34:56``. Raises ValueError for any other form."""
        if not _MAC_TEXT.fullmatch(text):
            raise ValueError(f"{text!r} is not a MAC address like 52:54:00:12:34:56")
        return cls(bytes.fromhex(text.replace(":", "")))

    @property
    def is_multicast(self) -> bool:
        """Whether the group bit is set (IEEE 802, also true of the broadcast address)."""
        return bool(self.packed[0] & 1)

    def __str__(self) -> str:
        return self.packed.hex(":")


@attrs.frozen
class FileMode:
    """The permissions of a file, the last nine bits of its mode (inode(7))."""

    bits: int = attrs.field(validator=attrs.validators.in_(range(0o1000)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``0660`` or ``660``: octal, as for chmod(1). Raises ValueError for any other form.

        Numbers are refused, for one would have to guess whether 440 was meant to be octal.
        """
        if not isinstance(text, str) or not _MODE_TEXT.fullmatch(text):
            raise ValueError(f"{text!r} is not a mode like '0660'")
        return cls(int(text, 8))

    def __str__(self) -> str:
        return f"{self.bits:04o}"


DEFAULT_SOCKET_MODE = FileMode.parse("0660")
"""Whoever may write to a socket may be the guest: its owner and its group."""

GATEWAY_MAC = MacAddress.parse("02:00:00:00:00:01")
GATEWAY_IPV4 = IPv4Address("169.254.0.1")
GATEWAY_IPV6 = IPv6Address("fe80::1")
DEFAULT_DNS_SERVERS: tuple[IPv4Address | IPv6Address, ...] = (
    IPv4Address("1.1.1.1"),
    IPv4Address("8.8.8.8"),
    IPv6Address("2606:4700:4700::1111"),
    IPv6Address("2001:4860:4860::8888"),
)
"""Of a network that names none: those of Cloudflare and Google."""


class DropReason(enum.IntEnum):
    """Why a frame went no further. The numbers are those of ``enum mv_drop`` in ``ffi/mvirt.h``."""

    RING_DISABLED = 0
    """Sent while the TX ring was started but disabled (vhost-user, "Ring states")."""
    TX_BUFFER_INVALID = 1
    """A TX descriptor that is write-only or points outside guest memory."""
    TX_TOO_SHORT = 2
    """Less than a virtio_net_hdr and an Ethernet header."""
    TX_TOO_LONG = 3
    """More than a virtio_net_hdr, an Ethernet header and 65,535 bytes."""
    OFFLOAD_NOT_NEGOTIATED = 4
    """The virtio_net_hdr asks for a checksum or segmentation that was not negotiated."""
    SOURCE_MAC = 5
    """The source MAC address is not the NIC's."""
    DESTINATION_MAC = 6
    """Unicast to a MAC address that is not the gateway's."""
    ETHERTYPE = 7
    """Not a protocol that this network carries (VLAN tags and 802.3 included)."""
    MULTICAST = 8
    """Broadcast or multicast that no service answers; it never leaves the NIC."""
    IP_MALFORMED = 9
    """An IP header that contradicts itself or the frame."""
    NO_ROUTE = 10
    """No route to the destination address."""
    FRAGMENT = 11
    """A fragment addressed to the gateway."""
    RX_RING_DOWN = 12
    """For a guest whose RX ring is not started and enabled."""
    RX_BACKLOG_FULL = 13
    """For a guest that gives no RX buffers, past the bound of its backlog."""
    RX_BUFFER_TOO_SMALL = 14
    """The frame does not fit in the RX buffers (virtio 1.2, 5.1.6.3.1)."""
    RX_BUFFER_INVALID = 15
    """An RX descriptor that is read-only or points outside guest memory."""
    ARP_MALFORMED = 16
    ARP_IGNORED = 17
    """An ARP packet that asks nothing of the gateway."""
    DHCP_MALFORMED = 18
    DHCP_IGNORED = 19
    """A DHCP message that RFC 2131 leaves unanswered, or no DHCP on this NIC."""
    ICMP_MALFORMED = 20
    ICMP_IGNORED = 21
    """An ICMP message to the gateway that is no echo request."""
    PUNT_LIMIT = 22
    """For a service, but beyond the rate at which one guest is answered."""
    OFFLOAD_INVALID = 23
    """The virtio_net_hdr contradicts the frame (virtio 1.2, 5.1.6.2)."""
    SOURCE_ADDRESS = 24
    """The source address is neither the NIC's nor in a prefix that is routed to it."""
    TTL_EXCEEDED = 25
    """The time to live, or hop limit, is used up."""
    HOST_UNREACHABLE = 26
    """An address of the network that no NIC has, or a packet back to where it came from."""
    ADMIN_PROHIBITED = 27
    """To an address that is never routed, such as another link-local one."""
    TOO_BIG = 28
    """Larger than the MTU of its destination, and not to be fragmented."""
    IP_OPTION = 29
    """A source route, record route or timestamp option; a routing header of type 0."""
    NOT_SERVED = 30
    """To the gateway itself, by a protocol or to a port that nothing there listens on."""
    NDP_MALFORMED = 31
    NDP_IGNORED = 32
    """A neighbour discovery message that asks nothing of the gateway."""
    DHCPV6_MALFORMED = 33
    DHCPV6_IGNORED = 34
    """A DHCPv6 message that RFC 8415 leaves unanswered, or no DHCPv6 on this NIC."""
    NO_MEMORY = 35
    """The daemon has no memory left for it."""


class PuntKind(enum.IntEnum):
    """Which service a slow-path frame is for: ``enum mv_punt_kind`` in ``ffi/mvirt.h``."""

    ARP = 0
    DHCPV4 = 1
    """UDP to port 67, to broadcast or to the gateway; not a fragment."""
    ICMPV4 = 2
    """ICMP to the gateway; not a fragment."""
    NDP = 3
    """ICMPv6 types 133 to 137 to the gateway or to a group that it is in; not a fragment."""
    ICMPV6 = 4
    """Any other ICMPv6 to the gateway's own address; not a fragment."""
    DHCPV6 = 5
    """UDP to port 547, to the gateway or to ff02::1:2; not a fragment."""
    ICMP_ERROR = 6
    """A packet that was dropped and counted, and whose sender is to hear why. Cut to what an
    ICMP message quotes of it."""


class IcmpError(enum.IntEnum):
    """What the sender of a dropped packet hears: ``enum mv_icmp_error`` in ``ffi/mvirt.h``."""

    TIME_EXCEEDED = 0
    NET_UNREACHABLE = 1
    """No route to the destination."""
    HOST_UNREACHABLE = 2
    """An address of the network that no NIC has, or whose NIC is down."""
    ADMIN_PROHIBITED = 3
    PROTOCOL_UNREACHABLE = 4
    """To the gateway itself, by a protocol that it does not speak."""
    PORT_UNREACHABLE = 5
    """To a UDP port of the gateway itself on which nothing listens."""
    TOO_BIG = 6
    """Comes with the MTU that it was too big for."""


@attrs.frozen
class MemoryRegion:
    """One region of guest memory as the frontend describes it, in bytes.

    Ring addresses are user addresses, descriptor addresses are guest addresses
    (vhost-user, "Memory region description").
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int


@attrs.frozen
class VringAddr:
    """Where the three parts of a split ring are, as user addresses."""

    desc: int
    used: int
    avail: int


@attrs.frozen
class NicStats:
    """Counters of one NIC since it was added. `tx_frames` counts dropped frames too."""

    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int
    kicks: int
    """Drains of the TX ring that a kick (or a poll) began."""
    calls: int
    """Interrupts signalled to the driver."""
    punts: int
    """TX frames handed to the services."""
    routed: int
    """TX frames sent on to other NICs of the network."""
    icmp_errors: int
    """Dropped TX frames whose sender was told why by ICMP."""
    slow_signals: int
    """Of its call and err eventfds, and counts of its kick eventfds taken, that its frontend had
    made to take some milliseconds each."""
    drops: Mapping[DropReason, int]
    """Only the reasons seen so far."""
    refused_frontends: int = 0
    """Those sent away because they are not among those that may connect."""
    takeovers: int = 0
    """How often a worker thread took the TX ring over because it was busy."""
    leases: int = 0
    """Answers of the DHCP servers that gave addresses, or let the guest keep them."""
    connections: int = 0
    """Frontends that connected and sent a request."""


_T = TypeVar("_T")


def _name_their_field(_cls: type, fields: list[Any]) -> list[Any]:
    """An attrs field transformer: a converter's refusal becomes a ConfigError for its field."""

    def named(key: str, convert: Callable[[Any], _T]) -> Callable[[Any], _T]:
        def converter(value: Any) -> _T:
            try:
                return convert(value)
            except (ValueError, TypeError) as error:
                raise ConfigError(key, str(error)) from error

        return converter

    return [
        field.evolve(converter=named(field.name, field.converter)) if field.converter else field
        for field in fields
    ]


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name (1 to 64 ASCII letters, digits, '.', '_', '-'; not '.' first)"
        )
    return value


def _mac(value: MacAddress | str | bytes) -> MacAddress:
    if isinstance(value, bytes):
        mac = MacAddress(value)
    else:
        mac = value if isinstance(value, MacAddress) else MacAddress.parse(_no_number(value))
    if mac.is_multicast or not any(mac.packed):
        raise ValueError(f"{mac} is not a unicast MAC address")
    if mac == GATEWAY_MAC:
        raise ValueError(f"{mac} is the gateway's")
    return mac


def _no_number(value: Any) -> Any:
    """`ipaddress` takes numbers and bytes for addresses; nobody who writes one here means that."""
    if isinstance(value, int | bytes):
        raise TypeError(f"{value!r} is not text")
    return value


def _ip(value: Any) -> IPv4Address | IPv6Address:
    address = ip_address(_no_number(value))
    return address if isinstance(address, IPv4Address) else _ipv6(address)


# What is a value already stays the same object: there are several specifications of one NIC.


def _ipv4(value: Any) -> IPv4Address:
    return value if isinstance(value, IPv4Address) else IPv4Address(_no_number(value))


def _ipv6(value: Any) -> IPv6Address:
    address = value if isinstance(value, IPv6Address) else IPv6Address(_no_number(value))
    if address.scope_id is not None:
        raise ValueError(f"{str(address)!r} has a zone, which means something on its own host only")
    return address


def _ipv4_network(value: Any) -> IPv4Network:
    return IPv4Network(_no_number(value))


def _ipv6_network(value: Any) -> IPv6Network:
    return IPv6Network(_no_number(value))


def _each(convert: Callable[[Any], _T], values: Iterable[Any]) -> tuple[_T, ...]:
    # Text and tables can be iterated over, but who writes one here does not mean its parts.
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{values!r} is not a list")
    return tuple(convert(value) for value in values)


def _ips(values: Iterable[Any]) -> tuple[IPv4Address | IPv6Address, ...]:
    return _each(_ip, values)


def _ipv4_networks(values: Iterable[Any]) -> tuple[IPv4Network, ...]:
    return _each(_ipv4_network, values)


def _ipv6_networks(values: Iterable[Any]) -> tuple[IPv6Network, ...]:
    return _each(_ipv6_network, values)


def _path(value: Any) -> Path:
    if not isinstance(value, str | PathLike):
        raise TypeError(f"{value!r} is not text")
    return value if isinstance(value, Path) else Path(value)


def _mode(value: Any) -> FileMode:
    return value if isinstance(value, FileMode) else FileMode.parse(value)


def _users(values: Iterable[Any]) -> frozenset[int]:
    return _not_empty(_each(user_id, values))


def _groups(values: Iterable[Any]) -> frozenset[int]:
    return _not_empty(_each(group_id, values))


def _not_empty(ids: tuple[int, ...]) -> frozenset[int]:
    if not ids:
        raise ValueError("an empty list lets nobody in; leave it out to let in everybody")
    return frozenset(ids)


def _mtu(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_MTU <= value <= MAX_MTU:
        raise ValueError(f"{value!r} is not an MTU from {MIN_MTU} to {MAX_MTU}")
    return value


def _whole(value: Any, most: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not {what} from 0 to {most}")
    return value


def _workers(value: Any) -> int:
    return _whole(value, MAX_WORKERS, "a number")


def _busy_poll(value: Any) -> int:
    return _whole(value, MAX_BUSY_POLL, "a number of microseconds")


def _cpus(values: Iterable[Any]) -> tuple[int, ...]:
    return _each(lambda value: _whole(value, MAX_CPU, "the number of a processor"), values)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _netmask(value: Any) -> Netmask:
    try:
        return Netmask(value)
    except ValueError:
        choices = " or ".join(repr(str(choice)) for choice in Netmask)
        raise ValueError(f"{value!r} is not {choices}") from None


@attrs.frozen(kw_only=True, field_transformer=_name_their_field)
class NetworkSpec:
    """One isolated layer-3 network, as a user asks for it.

    Text is converted; a wrong value raises ConfigError with the field's name as its key. With
    neither subnet nor prefix its NICs have no address and no services.
    """

    name: str = attrs.field(converter=_name)
    ipv4_subnet: IPv4Network | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_ipv4_network),
    )
    ipv6_prefix: IPv6Network | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_ipv6_network),
    )
    ipv4_netmask: Netmask = attrs.field(default=Netmask.HOST, converter=_netmask)
    dns_servers: tuple[IPv4Address | IPv6Address, ...] = attrs.field(
        default=(),
        converter=_ips,
    )
    """What DHCP names; empty means `DEFAULT_DNS_SERVERS`."""
    ntp_servers: tuple[IPv4Address | IPv6Address, ...] = attrs.field(
        default=(),
        converter=_ips,
    )
    mtu: int = attrs.field(default=1500, converter=_mtu)
    is_public: bool = attrs.field(default=False, converter=_flag)
    """Whether its addresses mean the same outside: those of public networks may not overlap."""

    @property
    def subnets(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The addresses that are the network's own, whether a NIC has them or not."""
        return tuple(net for net in (self.ipv4_subnet, self.ipv6_prefix) if net is not None)


@attrs.frozen(kw_only=True, field_transformer=_name_their_field)
class SocketAccess:
    """Who may connect to the socket of a NIC: what a NIC may say, and the defaults for it.

    Users and groups are names or numbers; a wrong one raises ConfigError with the field's name
    as its key.
    """

    socket_mode: FileMode | None = attrs.field(
        default=None, converter=attrs.converters.optional(_mode)
    )
    """Permissions of the socket file; absent: `DEFAULT_SOCKET_MODE`."""
    socket_owner: int | None = attrs.field(
        default=None, converter=attrs.converters.optional(user_id)
    )
    """Owner of the socket file; absent: the user that this process runs as."""
    socket_group: int | None = attrs.field(
        default=None, converter=attrs.converters.optional(group_id)
    )
    """Group of the socket file; absent: the group that this process runs as."""
    allow_uid: frozenset[int] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_users)
    )
    """Users whose processes may connect, apart from `allow_gid`; with neither, all may."""
    allow_gid: frozenset[int] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_groups)
    )
    """Groups whose processes may connect, apart from `allow_uid`; supplementary ones count."""

    @property
    def mode(self) -> FileMode:
        """Permissions of the socket file."""
        return self.socket_mode or DEFAULT_SOCKET_MODE

    def with_defaults(self, defaults: SocketAccess) -> Self:
        """The same, what is absent taken from `defaults`.

        Both lists are one thing: whoever gives one of them does not get the other one as a default,
        which would let in more than was asked for.
        """
        missing = {
            name: getattr(defaults, name)
            for name in ("socket_mode", "socket_owner", "socket_group")
            if getattr(self, name) is None
        }
        if self.allow_uid is None and self.allow_gid is None:
            missing |= {"allow_uid": defaults.allow_uid, "allow_gid": defaults.allow_gid}
        return attrs.evolve(self, **missing)


@attrs.frozen(kw_only=True, field_transformer=_name_their_field)
class NicSpec(SocketAccess):
    """One virtual NIC, as a user asks for it; a `Switch` fills in what is absent.

    Text is converted; a wrong value raises ConfigError with the field's name as its key.
    """

    name: str = attrs.field(converter=_name)
    network: str = attrs.field(converter=_name)
    mac_address: MacAddress | None = attrs.field(
        default=None, converter=attrs.converters.optional(_mac)
    )
    """Absent: derived from the names of network and NIC, the same each time."""
    ipv4_address: IPv4Address | None = attrs.field(
        default=None, converter=attrs.converters.optional(_ipv4)
    )
    """Absent: the lowest free host address of the subnet that ends neither in .0 nor in .255."""
    ipv6_address: IPv6Address | None = attrs.field(
        default=None, converter=attrs.converters.optional(_ipv6)
    )
    routed_ipv4_prefixes: tuple[IPv4Network, ...] = attrs.field(
        default=(),
        converter=_ipv4_networks,
    )
    routed_ipv6_prefixes: tuple[IPv6Network, ...] = attrs.field(
        default=(),
        converter=_ipv6_networks,
    )
    socket_path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(_path))
    """Where frontends connect; absent for a NIC that serves an already connected socket."""

    @property
    def routes(self) -> frozenset[IPv4Network | IPv6Network]:
        """All prefixes that are routed to the NIC: its addresses, and what is behind its guest."""
        own = (self.ipv4_address, self.ipv6_address)
        return frozenset(
            (
                *(ip_network(address) for address in own if address is not None),
                *self.routed_ipv4_prefixes,
                *self.routed_ipv6_prefixes,
            )
        )


@attrs.frozen(kw_only=True, field_transformer=_name_their_field)
class PollingSpec:
    """How TX rings that are too busy to wait for kicks are polled.

    A wrong value raises ConfigError with the field's name as its key.
    """

    workers: int = attrs.field(default=1, converter=_workers)
    """Threads for it, each of which is only started when it is needed; 0: rings are not polled,
    and no thread waits for kicks either."""
    busy_poll: int = attrs.field(default=50, converter=_busy_poll)
    """Microseconds for which a ring that has become empty is polled on, up to a millisecond longer
    after it was busy for long; 0: not at all."""
    worker_cpus: tuple[int, ...] = attrs.field(default=(), converter=_cpus)
    """The processors that the workers stay on, one after another, and the thread that waits for
    kicks on all of them; none: wherever they like."""


@attrs.frozen(kw_only=True, field_transformer=_name_their_field)
class ApiSpec(SocketAccess):
    """Where the daemon can be controlled while it runs, and by whom.

    The access is that to the unix sockets, and has nothing to do with that to the NICs': whoever
    may be a guest must not for that be able to make others. A wrong value raises ConfigError with
    the field's name as its key.
    """

    grpc: tuple[Endpoint, ...] = attrs.field(default=(), converter=parse_endpoints)
    http: tuple[Endpoint, ...] = attrs.field(default=(), converter=parse_endpoints)

    @property
    def is_wanted(self) -> bool:
        """Whether there is any of them."""
        return bool(self.grpc or self.http)

    @property
    def socket_paths(self) -> Mapping[Path, str]:
        """Of its unix sockets, and which interface each of them is of."""
        return {
            endpoint.path: name
            for name, endpoints in (("grpc", self.grpc), ("http", self.http))
            for endpoint in endpoints
            if isinstance(endpoint, UnixEndpoint)
        }


@attrs.frozen
class DaemonConfig:
    """Everything that `serve` needs to know: networks first, then NICs, in the order given."""

    networks: tuple[NetworkSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    polling: PollingSpec = attrs.field(factory=PollingSpec)
    defaults: SocketAccess = attrs.field(factory=SocketAccess)
    """Of NICs that are created while the daemon runs; those in `nics` have theirs."""
    socket_dir: Path = Path()
    """Where such NICs get their sockets."""
    state: Path | Literal[False] | None = None
    """The file that keeps such networks and NICs; False or None: they last as long as the daemon.
    Which of the two tells one who has a default for it whether anything else was asked for."""
    api: ApiSpec = attrs.field(factory=ApiSpec)
