"""DHCPv4: gives the guest the address that its NIC was configured with.

An address belongs to a NIC, not to a client: there is nothing to allocate, to remember or to
expire. So the server has no lease database, no time and no state, a changed client identifier
changes nothing, and the same request always gets the same reply.

Which message is answered, and how (RFC 2131, 4.3):

    DISCOVER                                OFFER, whatever address it asks for
    REQUEST, another server's identifier    silence: the client chose somebody else
    REQUEST, an address that is not ours    NAK (SELECTING, INIT-REBOOT, RENEWING, REBINDING)
    REQUEST, ours                           ACK
    REQUEST, no address and no server       silence: it asks for nothing
    INFORM                                  ACK without address and lease
    DECLINE, RELEASE, all others            silence

A message of a relay (giaddr) or of another machine's hardware address is left alone: only the
guest of this NIC is on the other end of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Self, TypeVar

import attrs

from ..model import DEFAULT_DNS_SERVERS, GATEWAY_IPV4, DropReason, MacAddress
from .packet import (
    BOOTP_SIZE,
    BROADCAST_MAC,
    IPV4_HEADER_SIZE,
    PROTOCOL_UDP,
    UDP_HEADER_SIZE,
    BootpMessage,
    Cursor,
    Malformed,
    build_udp,
    parse_ipv4,
    parse_udp,
)

SERVER_PORT = 67
CLIENT_PORT = 68

LEASE_SECONDS = 86400
RENEWAL_SECONDS = LEASE_SECONDS // 2
"""T1 (RFC 2131, 4.4.5)."""
REBINDING_SECONDS = LEASE_SECONDS * 7 // 8
"""T2 (RFC 2131, 4.4.5)."""

MAX_REQUEST_SIZE = 1472
"""Bytes of a client's message: what an unfragmented Ethernet frame holds. No client sends more;
the bound keeps the work on a flood of tiny options small."""
MIN_REPLY_SIZE = 300
"""Bytes of a reply, by padding: BOOTP's size (RFC 951, 3), below which some clients discard it."""
MIN_DATAGRAM_LIMIT = 576
"""Bytes of an IP datagram that every client takes (RFC 2131, 2); less in option 57 is illegal."""

_BOOTREQUEST = 1
_BOOTREPLY = 2
_ETHERNET = (1, 6)
"""htype and hlen."""
_BROADCAST_FLAG = 0x8000
_BROADCAST = IPv4Address("255.255.255.255")
_UNSPECIFIED = IPv4Address(0)
_OVERLOADED_FILE = 1
_OVERLOADED_SNAME = 2
_NAK_TEXT = b"not the address of this NIC"


class MessageType(enum.IntEnum):
    """Option 53 (RFC 2132, 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(enum.IntEnum):
    """The options read or sent here (RFC 2132, RFC 3442, MS-DHCPE)."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DOMAIN_NAME_SERVER = 6
    INTERFACE_MTU = 26
    NTP_SERVERS = 42
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_IDENTIFIER = 54
    PARAMETER_REQUEST_LIST = 55
    MESSAGE = 56
    MAX_MESSAGE_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_IDENTIFIER = 61
    CLASSLESS_ROUTES = 121
    MICROSOFT_CLASSLESS_ROUTES = 249
    END = 255


_MOST_NEEDED_FIRST = (
    Option.MESSAGE_TYPE,
    Option.SERVER_IDENTIFIER,
    Option.CLIENT_IDENTIFIER,
    Option.LEASE_TIME,
    Option.SUBNET_MASK,
    Option.ROUTER,
    Option.CLASSLESS_ROUTES,
    Option.INTERFACE_MTU,
    Option.DOMAIN_NAME_SERVER,
    Option.NTP_SERVERS,
    Option.MICROSOFT_CLASSLESS_ROUTES,
    # A client that gets neither takes the same fractions of the lease by itself.
    Option.RENEWAL_TIME,
    Option.REBINDING_TIME,
    Option.MESSAGE,
)
"""Who gets the room of a reply. The router stands before the routes, for these never go alone:
udhcpc knows only the former, ISC dhclient uses only the latter when they are there."""
_LEASE: dict[Option, bytes] = {
    Option.LEASE_TIME: LEASE_SECONDS.to_bytes(4, "big"),
    Option.RENEWAL_TIME: RENEWAL_SECONDS.to_bytes(4, "big"),
    Option.REBINDING_TIME: REBINDING_SECONDS.to_bytes(4, "big"),
}
_ROUTES = b"\x20" + GATEWAY_IPV4.packed + _UNSPECIFIED.packed + b"\x00" + GATEWAY_IPV4.packed
"""The gateway on the link, then everything by the gateway (RFC 3442). In that order, and never the
second without the first: the gateway is outside the guest's subnet, and a client that gets this
option ignores the router."""
_ADDRESS_LISTS = frozenset({Option.DOMAIN_NAME_SERVER, Option.NTP_SERVERS})

_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Request:
    """What a client's message says, as far as it concerns this server. None: not said."""

    kind: int | None
    """Option 53; None for plain BOOTP."""
    xid: int
    flags: int
    source: IPv4Address
    """Of the IP packet."""
    ciaddr: IPv4Address | None
    requested: IPv4Address | None
    server: IPv4Address | None
    client_identifier: bytes
    """Empty when there is none: then there is none to be returned either."""
    parameters: bytes
    """The option codes that the client asks for."""
    datagram_limit: int
    """Bytes of the largest IP datagram that the client takes."""

    @classmethod
    def parse(cls, message: BootpMessage, source: bytes) -> Self:
        """Raises Malformed when an option that is read here has not its form."""
        options = parse_options(message)
        limit = _value(options, Option.MAX_MESSAGE_SIZE, Cursor.get_uint16) or 0
        identifier = options.get(Option.CLIENT_IDENTIFIER, b"")
        if len(identifier) > 255:
            raise Malformed("a client identifier that does not fit in one option")
        return cls(
            kind=_value(options, Option.MESSAGE_TYPE, Cursor.get_uint8),
            xid=message.xid,
            flags=message.flags,
            source=IPv4Address(source),
            ciaddr=_said(message.ciaddr),
            requested=_said(_value(options, Option.REQUESTED_ADDRESS, _get_address)),
            server=_value(options, Option.SERVER_IDENTIFIER, _get_address),
            client_identifier=identifier,
            parameters=options.get(Option.PARAMETER_REQUEST_LIST, b""),
            datagram_limit=max(limit, MIN_DATAGRAM_LIMIT),
        )


class Dhcpv4Server:
    """The DHCP server of one NIC; see the module's description.

    Args:
        mac: the NIC's MAC address.
        ipv4: the address to give.
        mtu: of the network, in bytes.
        netmask: what the guest is told; 255.255.255.255 unless the network is in subnet mode.
        dns_servers: IPv6 ones are left out; when the list is empty, `DEFAULT_DNS_SERVERS`.
        ntp_servers: IPv6 ones are left out.
        on_lease: called with each lease that is given or extended.
    """

    __slots__ = ("_dns_servers", "_ipv4", "_mac", "_mtu", "_netmask", "_ntp_servers", "_on_lease")

    def __init__(
        self,
        mac: MacAddress,
        ipv4: IPv4Address,
        *,
        mtu: int = 1500,
        netmask: IPv4Address = _BROADCAST,
        dns_servers: Iterable[IPv4Address | IPv6Address] = (),
        ntp_servers: Iterable[IPv4Address | IPv6Address] = (),
        on_lease: Callable[[], object] = lambda: None,
    ) -> None:
        self._mac = mac.packed
        self._on_lease = on_lease
        self._ipv4 = ipv4
        self._mtu = mtu
        self._netmask = netmask
        self._dns_servers = tuple(dns_servers) or DEFAULT_DNS_SERVERS
        self._ntp_servers = tuple(ntp_servers)

    def handle(self, frame: bytes) -> bytes | DropReason:
        """Answer one frame; see `Service`."""
        try:
            request = self._request_in(frame)
        except Malformed:
            return DropReason.DHCP_MALFORMED
        reply = None if request is None else self._answer(request)
        return DropReason.DHCP_IGNORED if reply is None else reply

    def _request_in(self, frame: bytes) -> Request | None:
        """The guest's DHCP request, None when it is not for this server. Raises Malformed."""
        packet = parse_ipv4(frame, self._mac)
        to_server = packet.destination in (_BROADCAST.packed, GATEWAY_IPV4.packed)
        if packet.protocol != PROTOCOL_UDP or not to_server:
            return None
        datagram = parse_udp(packet)
        if datagram.destination_port != SERVER_PORT:
            return None
        if len(datagram.payload) > MAX_REQUEST_SIZE:
            raise Malformed("longer than any client's message")
        message = BootpMessage.parse(datagram.payload)
        if message.op != _BOOTREQUEST or message.giaddr != _UNSPECIFIED:
            return None
        if (message.htype, message.hlen) != _ETHERNET:
            raise Malformed("no Ethernet address")
        if message.chaddr != self._mac:
            return None
        return Request.parse(message, packet.source)

    def _answer(self, request: Request) -> bytes | None:
        match request.kind:
            case MessageType.DISCOVER:
                return self._with_lease(request, MessageType.OFFER)
            case MessageType.REQUEST:
                return self._on_request(request)
            case MessageType.INFORM:
                return self._on_inform(request)
        return None

    def _on_request(self, request: Request) -> bytes | None:
        """RFC 2131, 4.3.2: the client's state shows in which addresses it names."""
        if request.server not in (None, GATEWAY_IPV4):
            return None
        named = {request.requested, request.ciaddr} - {None}
        if named - {self._ipv4}:
            return self._nak(request)
        if not named and request.server is None:
            return None
        self._on_lease()
        return self._with_lease(request, MessageType.ACK)

    def _with_lease(self, request: Request, kind: MessageType) -> bytes:
        """OFFER or ACK; addressed by RFC 2131, 4.1.

        When an ACK has a ciaddr it is ours, so unicast always goes to the same address.
        """
        broadcast = request.ciaddr is None and request.flags & _BROADCAST_FLAG
        ciaddr = request.ciaddr if kind == MessageType.ACK else None
        return self._reply(
            request,
            kind,
            _LEASE | self._settings(),
            destination=_BROADCAST if broadcast else self._ipv4,
            ciaddr=ciaddr or _UNSPECIFIED,
            yiaddr=self._ipv4,
            siaddr=GATEWAY_IPV4,
        )

    def _on_inform(self, request: Request) -> bytes | None:
        """ACK to the address that the client has by other means (RFC 2131, 4.3.5)."""
        destination = request.ciaddr or request.source
        if not _is_host(destination):
            return None
        return self._reply(
            request,
            MessageType.ACK,
            self._settings(),
            destination=destination,
            ciaddr=request.ciaddr or _UNSPECIFIED,
            siaddr=GATEWAY_IPV4,
        )

    def _settings(self) -> dict[Option, bytes]:
        """What every client is told. Made each time, for hundreds of guests seldom ask."""
        return {
            Option.SUBNET_MASK: self._netmask.packed,
            Option.CLASSLESS_ROUTES: _ROUTES,
            Option.ROUTER: _router(self._ipv4, self._netmask).packed,
            Option.DOMAIN_NAME_SERVER: _addresses(self._dns_servers),
            Option.INTERFACE_MTU: self._mtu.to_bytes(2, "big"),
            Option.NTP_SERVERS: _addresses(self._ntp_servers),
        }

    def _nak(self, request: Request) -> bytes:
        """Always broadcast: the client's address is wrong (RFC 2131, 4.1)."""
        return self._reply(
            request, MessageType.NAK, {Option.MESSAGE: _NAK_TEXT}, destination=_BROADCAST
        )

    def _reply(
        self,
        request: Request,
        kind: MessageType,
        options: Mapping[Option, bytes],
        *,
        destination: IPv4Address,
        ciaddr: IPv4Address = _UNSPECIFIED,
        yiaddr: IPv4Address = _UNSPECIFIED,
        siaddr: IPv4Address = _UNSPECIFIED,
    ) -> bytes:
        """The frame, with what every reply has (RFC 2131, table 3; RFC 6842 for option 61)."""
        whole = {
            Option.MESSAGE_TYPE: bytes([kind]),
            Option.SERVER_IDENTIFIER: GATEWAY_IPV4.packed,
            **options,
            Option.CLIENT_IDENTIFIER: request.client_identifier,
        }
        if Option.MICROSOFT_CLASSLESS_ROUTES in request.parameters:
            routes = options.get(Option.CLASSLESS_ROUTES, b"")
            whole[Option.MICROSOFT_CLASSLESS_ROUTES] = routes
        message = BootpMessage(
            op=_BOOTREPLY,
            xid=request.xid,
            flags=request.flags,
            ciaddr=ciaddr,
            yiaddr=yiaddr,
            siaddr=siaddr,
            chaddr=self._mac,
            options=_encode(fit_options(whole, self._room(request))),
        )
        return build_udp(
            BROADCAST_MAC if destination == _BROADCAST else self._mac,
            destination,
            bytes(message).ljust(MIN_REPLY_SIZE, b"\0"),
            source_port=SERVER_PORT,
            destination_port=CLIENT_PORT,
        )

    def _room(self, request: Request) -> int:
        """Bytes for options and their end. Option 57 is read as ISC's server does, with headers."""
        limit = max(min(request.datagram_limit, self._mtu), MIN_DATAGRAM_LIMIT)
        return limit - IPV4_HEADER_SIZE - UDP_HEADER_SIZE - BOOTP_SIZE


def parse_options(message: BootpMessage) -> dict[int, bytes]:
    """All options of a message, those in its overloaded fields included, by code.

    An option that comes several times is one that was split (RFC 3396). The fields are read in
    that RFC's order, each at most once, whatever they say of overloading themselves. A missing end
    option is forgiven.

    Raises:
        Malformed: an option that goes past the end, or an overload that does not exist.
    """
    options: dict[int, bytes] = {}
    _collect_options(message.options, options)
    overload = _value(options, Option.OVERLOAD, Cursor.get_uint8)
    if overload is None:
        return options
    if not 1 <= overload <= _OVERLOADED_FILE | _OVERLOADED_SNAME:
        raise Malformed(f"option overload {overload}")
    if overload & _OVERLOADED_FILE:
        _collect_options(message.file, options)
    if overload & _OVERLOADED_SNAME:
        _collect_options(message.sname, options)
    return options


def _collect_options(field: bytes, options: dict[int, bytes]) -> None:
    cursor = Cursor(field)
    while cursor.remaining():
        code = cursor.get_uint8()
        if code == Option.END:
            return
        if code != Option.PAD:
            value = cursor.get_bytes(cursor.get_uint8())
            options[code] = options.get(code, b"") + value


def _value(options: Mapping[int, bytes], code: Option, get: Callable[[Cursor], _T]) -> _T | None:
    """The option's one value of fixed size, None without the option. Raises Malformed."""
    if code not in options:
        return None
    cursor = Cursor(options[code])
    value = get(cursor)
    cursor.finish()
    return value


def _get_address(cursor: Cursor) -> IPv4Address:
    return IPv4Address(cursor.get_uint32())


def _said(address: IPv4Address | None) -> IPv4Address | None:
    """An address field of a client; 0.0.0.0 says as little as leaving it out."""
    return None if address == _UNSPECIFIED else address


def fit_options(options: Mapping[Option, bytes], room: int) -> dict[Option, bytes]:
    """As many of the options as `room` bytes hold with their end, in the order given.

    The most needed ones are kept. A list of addresses is cut short rather than left out: its best
    ones come first (RFC 2132, 3.8 and 8.3). Empty options are left out.
    """
    room -= 1
    kept: dict[Option, bytes] = {}
    for code in _MOST_NEEDED_FIRST:
        space = max(0, min(room - 2, 255))
        value = options.get(code, b"")
        if code in _ADDRESS_LISTS:
            value = value[: space // 4 * 4]
        if value and len(value) <= space:
            kept[code] = value
            room -= 2 + len(value)
    return {code: kept[code] for code in options if code in kept}


def _encode(options: Mapping[Option, bytes]) -> bytes:
    fields = (bytes((code, len(value))) + value for code, value in options.items())
    return b"".join(fields) + bytes([Option.END])


def _router(ipv4: IPv4Address, netmask: IPv4Address) -> IPv4Address:
    """What option 3 names: the gateway, but in subnet mode an address inside the subnet.

    The subnet's mask is for clients that insist on a router within it. Any address there will do
    but the guest's own, for ARP gives the gateway's MAC address for all of them: the lowest.
    """
    hosts = IPv4Network(f"{ipv4}/{netmask}", strict=False).hosts()
    return next((host for host in hosts if host != ipv4), GATEWAY_IPV4)


def _addresses(servers: Iterable[IPv4Address | IPv6Address]) -> bytes:
    return b"".join(server.packed for server in servers if server.version == 4)


def _is_host(address: IPv4Address) -> bool:
    """Whether one machine can have this address (RFC 1122, 3.2.1.3)."""
    return 0 < address.packed[0] < 224 and not address.is_loopback
