"""DHCP (RFC 2131, RFC 2132), the client's side."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self, TypeAlias

import attrs

from .ipv4 import IPPROTO_UDP, Ipv4Header, parse_ipv4, parse_udp, udp_frame
from .link import (
    BROADCAST_IP,
    BROADCAST_MAC,
    ETHERTYPE_IPV4,
    GATEWAY_IP,
    GATEWAY_MAC,
    UNSPECIFIED_IP,
    EthernetHeader,
    Ip,
    Mac,
    ip_bytes,
    mac_bytes,
    parse_ethernet,
    parses,
)

DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68

_BOOTP = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_MAGIC_COOKIE = bytes([99, 130, 83, 99])


class DhcpMessageType(enum.IntEnum):
    """Option 53. Other numbers become members named UNKNOWN."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int) or not 0 <= value <= 255:
            return None
        member = int.__new__(cls, value)
        member._name_ = "UNKNOWN"
        member._value_ = value
        return member


class DhcpOption(enum.IntEnum):
    """The options that the tests speak of."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    DNS_SERVERS = 6
    INTERFACE_MTU = 26
    NTP_SERVERS = 42
    REQUESTED_IP = 50
    LEASE_TIME = 51
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETER_LIST = 55
    MESSAGE = 56
    MAX_MESSAGE_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_ID = 61
    CLASSLESS_ROUTES = 121
    CLASSLESS_ROUTES_MICROSOFT = 249
    END = 255


class DhcpRoute(NamedTuple):
    """An entry of option 121 (RFC 3442)."""

    destination: bytes
    prefix_length: int
    gateway: bytes


@attrs.frozen(kw_only=True)
class DhcpResponse:
    """A reply of a DHCP server. Absent options are None, or empty where there may be several.

    `server_ip` is option 54, or 0.0.0.0 without it; `options` holds all of them as they came, and
    `option_order` the order in which they came.
    """

    message_type: DhcpMessageType
    xid: int
    your_ip: bytes
    server_ip: bytes
    subnet_mask: bytes | None
    router: bytes | None
    dns_servers: list[bytes]
    lease_time: int | None
    t1: int | None
    t2: int | None
    mtu: int | None
    ntp_servers: list[bytes]
    routes: list[DhcpRoute]
    client_id: bytes | None
    options: Mapping[int, bytes]
    option_order: tuple[int, ...]
    client_ip: bytes
    next_server_ip: bytes
    relay_ip: bytes
    broadcast: bool
    client_mac: bytes
    message_size: int
    eth_src: bytes
    eth_dst: bytes
    src_ip: bytes
    dst_ip: bytes


DhcpOptions: TypeAlias = Mapping[int, bytes] | Sequence[tuple[int, bytes]]


def dhcp_message(
    client_mac: Mac,
    xid: int,
    options: DhcpOptions,
    *,
    broadcast: bool = True,
    client_ip: Ip = UNSPECIFIED_IP,
    relay_ip: Ip = UNSPECIFIED_IP,
    secs: int = 0,
    op: int = 1,
) -> bytes:
    """The DHCP message of a client, without the headers below it.

    Args:
        options: in the order of sending; a pair of the same number may come twice.
        broadcast: the flag that asks for broadcast replies.
        client_ip: ciaddr.
        relay_ip: giaddr.
    """
    chaddr = mac_bytes(client_mac).ljust(16, b"\0")
    flags = 0x8000 if broadcast else 0
    addresses = (ip_bytes(client_ip), UNSPECIFIED_IP, UNSPECIFIED_IP, ip_bytes(relay_ip))
    fixed = _BOOTP.pack(
        op, 1, 6, 0, xid, secs, flags, *addresses, chaddr, bytes(64), bytes(128), _MAGIC_COOKIE
    )
    return fixed + dhcp_options(options)


def dhcp_options(options: DhcpOptions) -> bytes:
    """The options in their wire form, with the end mark."""
    pairs = options.items() if isinstance(options, Mapping) else options
    encoded = [bytes([code, len(value)]) + value for code, value in pairs]
    return b"".join([*encoded, bytes([DhcpOption.END])])


def dhcp_frame(
    client_mac: Mac,
    message: bytes,
    *,
    src_ip: Ip = UNSPECIFIED_IP,
    dst_ip: Ip = BROADCAST_IP,
    dst_mac: Mac = BROADCAST_MAC,
) -> bytes:
    """A DHCP message in UDP from port 68 to port 67; broadcast unless told otherwise."""
    return udp_frame(
        client_mac, dst_mac, src_ip, dst_ip, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, message
    )


def dhcp_discover(
    client_mac: Mac, xid: int, *, broadcast: bool = True, options: DhcpOptions = ()
) -> bytes:
    """DHCPDISCOVER. `options` come after those of the message itself, here and below."""
    return _broadcast_message(
        client_mac, xid, DhcpMessageType.DISCOVER, [], options, broadcast=broadcast
    )


def dhcp_request(
    client_mac: Mac,
    xid: int,
    requested_ip: Ip,
    server_ip: Ip,
    *,
    broadcast: bool = True,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPREQUEST of a client in state SELECTING: it takes the offer of `server_ip`."""
    own = [
        (DhcpOption.REQUESTED_IP, ip_bytes(requested_ip)),
        (DhcpOption.SERVER_ID, ip_bytes(server_ip)),
    ]
    return _broadcast_message(
        client_mac, xid, DhcpMessageType.REQUEST, own, options, broadcast=broadcast
    )


def dhcp_init_reboot(
    client_mac: Mac,
    xid: int,
    requested_ip: Ip,
    *,
    broadcast: bool = True,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPREQUEST of a client that remembers its address: no server is named."""
    own = [(DhcpOption.REQUESTED_IP, ip_bytes(requested_ip))]
    return _broadcast_message(
        client_mac, xid, DhcpMessageType.REQUEST, own, options, broadcast=broadcast
    )


def dhcp_renew(
    client_mac: Mac,
    xid: int,
    client_ip: Ip,
    *,
    server_ip: Ip = GATEWAY_IP,
    server_mac: Mac = GATEWAY_MAC,
    broadcast: bool = False,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPREQUEST of a client in state RENEWING: unicast, with its address in ciaddr."""
    pairs = _with_type(DhcpMessageType.REQUEST, [], options)
    message = dhcp_message(client_mac, xid, pairs, broadcast=broadcast, client_ip=client_ip)
    return dhcp_frame(client_mac, message, src_ip=client_ip, dst_ip=server_ip, dst_mac=server_mac)


def dhcp_rebind(
    client_mac: Mac,
    xid: int,
    client_ip: Ip,
    *,
    broadcast: bool = False,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPREQUEST of a client in state REBINDING: broadcast, with its address in ciaddr."""
    pairs = _with_type(DhcpMessageType.REQUEST, [], options)
    message = dhcp_message(client_mac, xid, pairs, broadcast=broadcast, client_ip=client_ip)
    return dhcp_frame(client_mac, message, src_ip=client_ip)


def dhcp_decline(
    client_mac: Mac,
    xid: int,
    declined_ip: Ip,
    server_ip: Ip,
    *,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPDECLINE: the address is in use already."""
    own = [
        (DhcpOption.REQUESTED_IP, ip_bytes(declined_ip)),
        (DhcpOption.SERVER_ID, ip_bytes(server_ip)),
    ]
    return _broadcast_message(
        client_mac, xid, DhcpMessageType.DECLINE, own, options, broadcast=False
    )


def dhcp_release(
    client_mac: Mac,
    xid: int,
    client_ip: Ip,
    server_ip: Ip,
    *,
    server_mac: Mac = GATEWAY_MAC,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPRELEASE: the address is given up; unicast."""
    own = [(DhcpOption.SERVER_ID, ip_bytes(server_ip))]
    pairs = _with_type(DhcpMessageType.RELEASE, own, options)
    message = dhcp_message(client_mac, xid, pairs, broadcast=False, client_ip=client_ip)
    return dhcp_frame(client_mac, message, src_ip=client_ip, dst_ip=server_ip, dst_mac=server_mac)


def dhcp_inform(
    client_mac: Mac,
    xid: int,
    client_ip: Ip,
    *,
    broadcast: bool = False,
    options: DhcpOptions = (),
) -> bytes:
    """DHCPINFORM: the client has an address and wants to know the rest."""
    pairs = _with_type(DhcpMessageType.INFORM, [], options)
    message = dhcp_message(client_mac, xid, pairs, broadcast=broadcast, client_ip=client_ip)
    return dhcp_frame(client_mac, message, src_ip=client_ip)


def parse_dhcp_response(frame: bytes) -> DhcpResponse:
    """Parse a reply of a DHCP server (from port 67 to port 68)."""
    ethernet, header, message = _dhcp_reply(frame)
    _, _, _, _, xid, _, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, *_ = _BOOTP.unpack_from(
        message
    )
    pairs = _parse_options(message[_BOOTP.size :])
    options: dict[int, bytes] = {}
    for code, value in pairs:
        options[code] = options.get(code, b"") + value
    return DhcpResponse(
        message_type=_message_type(options),
        xid=xid,
        your_ip=yiaddr,
        server_ip=_first(_addresses(options, DhcpOption.SERVER_ID)) or UNSPECIFIED_IP,
        subnet_mask=_first(_addresses(options, DhcpOption.SUBNET_MASK)),
        router=_first(_addresses(options, DhcpOption.ROUTER)),
        dns_servers=_addresses(options, DhcpOption.DNS_SERVERS),
        lease_time=_number(options, DhcpOption.LEASE_TIME, 4),
        t1=_number(options, DhcpOption.RENEWAL_TIME, 4),
        t2=_number(options, DhcpOption.REBINDING_TIME, 4),
        mtu=_number(options, DhcpOption.INTERFACE_MTU, 2),
        ntp_servers=_addresses(options, DhcpOption.NTP_SERVERS),
        routes=_routes(options.get(DhcpOption.CLASSLESS_ROUTES, b"")),
        client_id=options.get(DhcpOption.CLIENT_ID),
        options=options,
        option_order=tuple(dict(pairs)),
        client_ip=ciaddr,
        next_server_ip=siaddr,
        relay_ip=giaddr,
        broadcast=bool(flags & 0x8000),
        client_mac=chaddr[:6],
        message_size=len(message),
        eth_src=ethernet.src,
        eth_dst=ethernet.dst,
        src_ip=header.src,
        dst_ip=header.dst,
    )


def is_dhcp_response(frame: bytes) -> bool:
    """Whether the frame is a reply of a DHCP server."""
    return parses(parse_dhcp_response, frame)


def _dhcp_reply(frame: bytes) -> tuple[EthernetHeader, Ipv4Header, bytes]:
    ethernet, packet = parse_ethernet(frame, ETHERTYPE_IPV4)
    header, datagram = parse_ipv4(packet, IPPROTO_UDP)
    src_port, dst_port, message = parse_udp(header, datagram)
    if (src_port, dst_port) != (DHCP_SERVER_PORT, DHCP_CLIENT_PORT):
        raise ValueError(f"UDP from port {src_port} to {dst_port} is no DHCP reply")
    if len(message) < _BOOTP.size:
        raise ValueError(f"{len(message)} bytes are no DHCP message")
    op, *_, cookie = _BOOTP.unpack_from(message)
    if op != 2 or cookie != _MAGIC_COOKIE:
        raise ValueError("not a DHCP reply")
    return ethernet, header, message


def _message_type(options: Mapping[int, bytes]) -> DhcpMessageType:
    value = options.get(DhcpOption.MESSAGE_TYPE, b"")
    if len(value) != 1:
        raise ValueError("the DHCP message type is missing or malformed")
    return DhcpMessageType(value[0])


def _with_type(
    kind: DhcpMessageType, own: list[tuple[DhcpOption, bytes]], options: DhcpOptions
) -> list[tuple[int, bytes]]:
    more = options.items() if isinstance(options, Mapping) else options
    return [(DhcpOption.MESSAGE_TYPE, bytes([kind])), *own, *more]


def _broadcast_message(
    client_mac: Mac,
    xid: int,
    kind: DhcpMessageType,
    own: list[tuple[DhcpOption, bytes]],
    options: DhcpOptions,
    *,
    broadcast: bool,
) -> bytes:
    pairs = _with_type(kind, own, options)
    return dhcp_frame(client_mac, dhcp_message(client_mac, xid, pairs, broadcast=broadcast))


def _parse_options(data: bytes) -> list[tuple[int, bytes]]:
    """All options up to the end mark, which has to be there."""
    pairs = []
    position = 0
    while position < len(data) and data[position] != DhcpOption.END:
        if data[position] == DhcpOption.PAD:
            position += 1
            continue
        if position + 1 == len(data) or position + 2 + data[position + 1] > len(data):
            raise ValueError("a DHCP option runs past the end of the message")
        end = position + 2 + data[position + 1]
        pairs.append((data[position], data[position + 2 : end]))
        position = end
    if position == len(data):
        raise ValueError("the DHCP options have no end mark")
    return pairs


def _addresses(options: Mapping[int, bytes], code: int) -> list[bytes]:
    value = options.get(code, b"")
    if len(value) % 4:
        raise ValueError(f"option {code} does not hold whole addresses")
    return [value[start : start + 4] for start in range(0, len(value), 4)]


def _number(options: Mapping[int, bytes], code: int, size: int) -> int | None:
    if code not in options:
        return None
    if len(options[code]) != size:
        raise ValueError(f"option {code} is not {size} bytes long")
    return int.from_bytes(options[code], "big")


def _routes(value: bytes) -> list[DhcpRoute]:
    """The routes of option 121: prefix length, the bytes of the prefix that matter, gateway."""
    routes = []
    while value:
        significant = (value[0] + 7) // 8
        if value[0] > 32 or len(value) < 1 + significant + 4:
            raise ValueError("option 121 is malformed")
        destination = value[1 : 1 + significant].ljust(4, b"\0")
        gateway = value[1 + significant : 5 + significant]
        routes.append(DhcpRoute(destination, value[0], gateway))
        value = value[5 + significant :]
    return routes


def _first(values: Iterable[bytes]) -> bytes | None:
    return next(iter(values), None)
