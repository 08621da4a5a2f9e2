"""Neighbour discovery (RFC 4861): the guest finds its gateway, and learns what it needs to begin.

The guest asks for the gateway's MAC address (neighbour solicitation) and for a router (router
solicitation). Nothing is learnt from what it says, for the switch knows its MAC address, and
nothing is ever answered for the guest's own addresses: that would make its duplicate address
detection fail. The gateway's own address is defended.

A router advertisement names no prefix. All addresses come by DHCPv6 and are /128, so there is
nobody else on the link, and whatever the guest sends goes to the gateway.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

import attrs

from ..model import GATEWAY_IPV6, GATEWAY_MAC, DropReason, MacAddress
from .packet import Cursor, Malformed
from .packet6 import (
    ALL_NODES,
    UNSPECIFIED,
    Ipv6Packet,
    build_icmpv6,
    group_mac,
    icmpv6_message,
    is_multicast,
    parse_ipv6,
)

ROUTER_LIFETIME = 1800
"""Seconds for which the gateway stays a default router: three times the longest interval between
advertisements (RFC 4861, 6.2.1)."""
MAX_INTERVAL = 600.0
MIN_INTERVAL = 200.0
"""Seconds between unsolicited advertisements (RFC 4861, 6.2.1)."""
INITIAL_ADVERTISEMENTS = 3
INITIAL_INTERVAL = 16.0
"""How many come sooner after a link has come up, and how soon at most (RFC 4861, 10)."""
MIN_DELAY = 3.0
"""Seconds between two advertisements to all nodes (RFC 4861, 10)."""
MAX_SOLICITED_DELAY = 0.5
"""Seconds that a solicited advertisement to all nodes may take (RFC 4861, 10)."""

HOP_LIMIT = 255
"""Of every message: proof that no router has passed it on (RFC 4861, 6.1 and 7.1)."""

SOLICITED_NODE = bytes.fromhex("ff02" + "00" * 9 + "01ff000001")
"""The solicited-node group of fe80::1 (RFC 4291, 2.7.1)."""
ALL_ROUTERS = bytes.fromhex("ff02" + "00" * 13 + "02")

MAX_OPTIONS = 16
"""Options of one message that are looked at; guests send one or two."""

_MANAGED = 0x80
_OTHER = 0x40
_ADVERTISED_HOP_LIMIT = 64
_ROUTER = 0x80000000
_SOLICITED = 0x40000000
_OVERRIDE = 0x20000000

_RA = struct.Struct("!BBHII")
_GATEWAY = GATEWAY_IPV6.packed


class Message(enum.IntEnum):
    """ICMPv6 types (RFC 4861, 4)."""

    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOR_SOLICITATION = 135
    NEIGHBOR_ADVERTISEMENT = 136
    REDIRECT = 137


class Option(enum.IntEnum):
    """Options (RFC 4861, 4.6; RFC 8106, 5.1)."""

    SOURCE_LINK_LAYER = 1
    TARGET_LINK_LAYER = 2
    MTU = 5
    RDNSS = 25


class NdpResponder:
    """Answers solicitations for the gateway.

    Args:
        mac: the NIC's MAC address.
        mtu: of the network, in bytes.
        dns_servers: for the RDNSS option; IPv4 ones are left out.
    """

    __slots__ = ("_mac", "_router", "on_solicited")

    def __init__(
        self,
        mac: MacAddress,
        *,
        mtu: int = 1500,
        dns_servers: Iterable[IPv4Address | IPv6Address] = (),
    ) -> None:
        self.on_solicited: Callable[[], None] = _nobody
        """Called when the guest wants an advertisement, but has no address to send it to (see
        `RaSchedule.solicited`)."""
        self._mac = mac.packed
        self._router = _router_advertisement(
            mtu, [server.packed for server in dns_servers if server.version == 6]
        )

    def handle(self, frame: bytes) -> bytes | DropReason | None:
        """Answer one frame; see `Service`."""
        try:
            packet = parse_ipv6(frame, self._mac)
            message = icmpv6_message(packet)
            if packet.hop_limit != HOP_LIMIT or message[1] != 0:
                raise Malformed("it may have come through a router, or has a code")
            match message[0]:
                case Message.NEIGHBOR_SOLICITATION:
                    return self._on_neighbor_solicitation(packet, message)
                case Message.ROUTER_SOLICITATION:
                    return self._on_router_solicitation(packet, message)
        except Malformed:
            return DropReason.NDP_MALFORMED
        # Advertisements teach us nothing, and a guest is neither router nor redirects.
        return DropReason.NDP_IGNORED

    def advertisement(self) -> bytes:
        """The router advertisement to all nodes, as a whole frame."""
        return self._send_router(group_mac(ALL_NODES), ALL_NODES)

    def _on_neighbor_solicitation(self, packet: Ipv6Packet, message: bytes) -> bytes | DropReason:
        """RFC 4861, 7.1.1 and 7.2.4."""
        cursor = Cursor(message[4:])
        cursor.get_bytes(4)
        target = cursor.get_bytes(16)
        has_source_option = Option.SOURCE_LINK_LAYER in options_in(cursor)
        if is_multicast(target):
            raise Malformed("a group as target")
        if packet.source == UNSPECIFIED:
            if packet.destination != SOLICITED_NODE or has_source_option:
                raise Malformed("duplicate address detection that was not sent as such")
        elif packet.destination not in (_GATEWAY, SOLICITED_NODE):
            return DropReason.NDP_IGNORED
        if target != _GATEWAY:
            return DropReason.NDP_IGNORED
        if packet.source == UNSPECIFIED:
            # The guest wants our address for itself: everybody hears that it is taken.
            return self._send_neighbor(group_mac(ALL_NODES), ALL_NODES, _ROUTER | _OVERRIDE)
        return self._send_neighbor(self._mac, packet.source, _ROUTER | _SOLICITED | _OVERRIDE)

    def _on_router_solicitation(
        self, packet: Ipv6Packet, message: bytes
    ) -> bytes | DropReason | None:
        """RFC 4861, 6.1.1 and 6.2.6; the delay there keeps routers apart, and there is only one."""
        cursor = Cursor(message[4:])
        cursor.get_bytes(4)
        options = options_in(cursor)
        if packet.destination not in (ALL_ROUTERS, _GATEWAY):
            return DropReason.NDP_IGNORED
        if packet.source != UNSPECIFIED:
            return self._send_router(self._mac, packet.source)
        if Option.SOURCE_LINK_LAYER in options:
            raise Malformed("a link-layer address without an address")
        self.on_solicited()
        return None

    def _send_neighbor(self, mac: bytes, destination: bytes, flags: int) -> bytes:
        body = struct.pack("!I", flags) + _GATEWAY + _link_layer(Option.TARGET_LINK_LAYER)
        return self._send(mac, destination, Message.NEIGHBOR_ADVERTISEMENT, body)

    def _send_router(self, mac: bytes, destination: bytes) -> bytes:
        return self._send(mac, destination, Message.ROUTER_ADVERTISEMENT, self._router)

    @staticmethod
    def _send(mac: bytes, destination: bytes, message: Message, body: bytes) -> bytes:
        return build_icmpv6(mac, destination, message, 0, body, hop_limit=HOP_LIMIT)


def _nobody() -> None:
    """Who is told of solicitations while nobody advertises."""


def options_in(cursor: Cursor) -> dict[int, bytes]:
    """All options up to the end, by type, the first of each (RFC 4861, 4.6).

    Raises:
        Malformed: an option of length 0, or past the end, or too many of them.
    """
    options: dict[int, bytes] = {}
    for _ in range(MAX_OPTIONS):
        if not cursor.remaining():
            return options
        kind, units = cursor.get_uint8(), cursor.get_uint8()
        if units == 0:
            raise Malformed("an option of length 0")
        options.setdefault(kind, cursor.get_bytes(8 * units - 2))
    if cursor.remaining():
        raise Malformed(f"more than {MAX_OPTIONS} options")
    return options


def _link_layer(kind: Option) -> bytes:
    return bytes((kind, 1)) + GATEWAY_MAC.packed


def _router_advertisement(mtu: int, dns_servers: list[bytes]) -> bytes:
    """What follows the checksum (RFC 4861, 4.2; RFC 8106, 5.1)."""
    fixed = _RA.pack(_ADVERTISED_HOP_LIMIT, _MANAGED | _OTHER, ROUTER_LIFETIME, 0, 0)
    options = [
        _link_layer(Option.SOURCE_LINK_LAYER),
        struct.pack("!BBxxI", Option.MTU, 1, mtu),
        *_rdnss(dns_servers),
    ]
    return fixed + b"".join(options)


def _rdnss(servers: list[bytes]) -> Iterator[bytes]:
    """One option holds as many addresses as its length of eight bits allows."""
    for first in range(0, len(servers), 127):
        some = servers[first : first + 127]
        head = struct.pack("!BBxxI", Option.RDNSS, 1 + 2 * len(some), ROUTER_LIFETIME)
        yield head + b"".join(some)


@attrs.define(eq=False)
class RaSchedule:
    """When to advertise to all nodes (RFC 4861, 6.2.4 and 6.2.6); times are seconds of any clock.

    Args:
        random: uniform from 0 to 1, as `random.random`.
    """

    _random: Callable[[], float]
    _next: float | None = attrs.field(default=None, init=False)
    _sent: float | None = attrs.field(default=None, init=False)
    _initial: int = attrs.field(default=0, init=False)
    """Advertisements of the initial ones that are still to come."""

    @property
    def next_at(self) -> float | None:
        """When the next one is due; None: the link is down."""
        return self._next

    def start(self, now: float) -> None:
        """The guest's link has come up, for the first time or again.

        A guest solicits as soon as its interface is up, so the first one need not hurry.
        """
        self._initial = INITIAL_ADVERTISEMENTS
        self._next = now + INITIAL_INTERVAL

    def changed(self, now: float) -> None:
        """What is advertised is another one: it is told at once, and as often as at the start."""
        if self._next is not None:
            self._initial = INITIAL_ADVERTISEMENTS
            self._next = min(self._next, self._earliest(now))

    def stop(self) -> None:
        """The link is down."""
        self._next = None

    def solicited(self, now: float) -> None:
        """Somebody without an address asks for one."""
        if self._next is not None:
            soon = self._earliest(now + self._random() * MAX_SOLICITED_DELAY)
            self._next = min(self._next, soon)

    def sent(self, now: float) -> None:
        """The one that was due has been sent."""
        self._sent = now
        self._initial = max(0, self._initial - 1)
        interval = MIN_INTERVAL + self._random() * (MAX_INTERVAL - MIN_INTERVAL)
        if self._initial:
            interval = min(interval, INITIAL_INTERVAL)
        self._next = now + interval

    def _earliest(self, wanted: float) -> float:
        return wanted if self._sent is None else max(wanted, self._sent + MIN_DELAY)
