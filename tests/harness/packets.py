"""Builders and parsers of the frames that a guest sends and gets, written from the RFCs.

Builders take MAC and IP addresses as bytes, as text or as a list of numbers, and return a whole
Ethernet frame without padding. Parsers take a whole frame, check every length and checksum, give
addresses as bytes, and raise ValueError for a frame that is not what they parse.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self, TypeAlias

import attrs

GATEWAY_MAC = bytes([0x02, 0x00, 0x00, 0x00, 0x00, 0x01])
GATEWAY_IP = bytes([169, 254, 0, 1])
BROADCAST_MAC = b"\xff" * 6
BROADCAST_IP = b"\xff" * 4
UNSPECIFIED_IP = bytes(4)

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ARP_REQUEST = 1
ARP_REPLY = 2
IPPROTO_ICMP = 1
IPPROTO_UDP = 17
DHCP_SERVER_PORT = 67
DHCP_CLIENT_PORT = 68

Mac: TypeAlias = bytes | str | Sequence[int]
Ip: TypeAlias = bytes | str | Sequence[int]
Parser: TypeAlias = Callable[[bytes], object]

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_ECHO = struct.Struct("!BBHHH")
_BOOTP = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_MAGIC_COOKIE = bytes([99, 130, 83, 99])


def mac_bytes(mac: Mac) -> bytes:
    """The six bytes of a MAC address in any of its forms."""
    packed = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else bytes(mac)
    if len(packed) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return packed


def ip_bytes(ip: Ip) -> bytes:
    """The four bytes of an IPv4 address in any of its forms."""
    packed = ipaddress.IPv4Address(ip).packed if isinstance(ip, str) else bytes(ip)
    if len(packed) != 4:
        raise ValueError(f"{ip!r} is not an IPv4 address")
    return packed


def internet_checksum(data: bytes) -> int:
    """The checksum of RFC 1071; 0 for data that holds its own correct checksum."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# Ethernet


class EthernetHeader(NamedTuple):
    """The 14 bytes in front of every frame."""

    dst: bytes
    src: bytes
    ethertype: int


def ethernet_frame(dst: Mac, src: Mac, ethertype: int, payload: bytes) -> bytes:
    """A raw Ethernet frame."""
    return _ETHERNET.pack(mac_bytes(dst), mac_bytes(src), ethertype) + payload


def parse_ethernet(frame: bytes, ethertype: int | None = None) -> tuple[EthernetHeader, bytes]:
    """Header and payload. ValueError: too short, or of another type than `ethertype`."""
    if len(frame) < _ETHERNET.size:
        raise ValueError(f"{len(frame)} bytes are no Ethernet frame")
    header = EthernetHeader(*_ETHERNET.unpack_from(frame))
    if ethertype not in (None, header.ethertype):
        raise ValueError(f"ethertype is {header.ethertype:#06x}, not {ethertype:#06x}")
    return header, frame[_ETHERNET.size :]


# ARP (RFC 826)


@attrs.frozen
class ArpReply:
    """What an ARP reply says, and the Ethernet addresses that carried it."""

    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes
    eth_src: bytes
    eth_dst: bytes


def arp_packet(
    operation: int,
    sender_mac: Mac,
    sender_ip: Ip,
    target_mac: Mac,
    target_ip: Ip,
    *,
    dst: Mac = BROADCAST_MAC,
) -> bytes:
    """Any ARP packet for IPv4 over Ethernet; the Ethernet source is `sender_mac`."""
    payload = _ARP.pack(
        1,
        ETHERTYPE_IPV4,
        6,
        4,
        operation,
        mac_bytes(sender_mac),
        ip_bytes(sender_ip),
        mac_bytes(target_mac),
        ip_bytes(target_ip),
    )
    return ethernet_frame(dst, sender_mac, ETHERTYPE_ARP, payload)


def arp_request(
    sender_mac: Mac, sender_ip: Ip, target_ip: Ip, *, dst: Mac = BROADCAST_MAC
) -> bytes:
    """An ARP request: who has `target_ip`? A probe has the sender address 0.0.0.0 (RFC 5227)."""
    return arp_packet(ARP_REQUEST, sender_mac, sender_ip, bytes(6), target_ip, dst=dst)


def parse_arp_reply(frame: bytes) -> ArpReply:
    """Parse an ARP reply; anything behind the 28 bytes is padding."""
    ethernet, payload = parse_ethernet(frame, ETHERTYPE_ARP)
    if len(payload) < _ARP.size:
        raise ValueError(f"{len(payload)} bytes are no ARP packet")
    *kinds, smac, sip, tmac, tip = _ARP.unpack_from(payload)
    if kinds != [1, ETHERTYPE_IPV4, 6, 4, ARP_REPLY]:
        raise ValueError(f"not an ARP reply for IPv4 over Ethernet: {kinds}")
    return ArpReply(smac, sip, tmac, tip, ethernet.src, ethernet.dst)


def is_arp_reply(frame: bytes) -> bool:
    """Whether the frame is an ARP reply."""
    return _parses(parse_arp_reply, frame)


# IPv4 (RFC 791) and UDP (RFC 768)


class Ipv4Header(NamedTuple):
    """The fields of an IPv4 header that tests look at."""

    src: bytes
    dst: bytes
    protocol: int
    ttl: int


def ipv4_packet(
    src: Ip,
    dst: Ip,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    ident: int = 0,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet with a right checksum.

    Args:
        fragment: flags and fragment offset, as they stand in the header.
        options: header options; their length is a multiple of four.
    """
    size = _IPV4.size + len(options)
    fields = (4 << 4 | size // 4, 0, size + len(payload), ident, fragment, ttl, protocol)
    addresses = (ip_bytes(src), ip_bytes(dst))
    checksum = internet_checksum(_IPV4.pack(*fields, 0, *addresses) + options)
    return _IPV4.pack(*fields, checksum, *addresses) + options + payload


def parse_ipv4(packet: bytes, protocol: int | None = None) -> tuple[Ipv4Header, bytes]:
    """Header and payload of an unfragmented packet, without what Ethernet padded behind it."""
    if len(packet) < _IPV4.size:
        raise ValueError(f"{len(packet)} bytes are no IPv4 packet")
    first, _, total, _, fragment, ttl, found, _, src, dst = _IPV4.unpack_from(packet)
    size = (first & 15) * 4
    if first >> 4 != 4 or not _IPV4.size <= size <= total <= len(packet):
        raise ValueError("the lengths of the IPv4 header contradict each other")
    if internet_checksum(packet[:size]):
        raise ValueError("the IPv4 header checksum is wrong")
    if fragment & 0x3FFF:
        raise ValueError("a fragment")
    if protocol not in (None, found):
        raise ValueError(f"IP protocol is {found}, not {protocol}")
    return Ipv4Header(src, dst, found, ttl), packet[size:total]


def udp_datagram(
    src: Ip, dst: Ip, src_port: int, dst_port: int, payload: bytes, *, checksum: bool = True
) -> bytes:
    """A UDP datagram; without `checksum` the field is 0, which IPv4 allows."""
    length = _UDP.size + len(payload)
    value = 0
    if checksum:
        datagram = _UDP.pack(src_port, dst_port, length, 0) + payload
        value = internet_checksum(_pseudo_header(ip_bytes(src), ip_bytes(dst), length) + datagram)
        value = value or 0xFFFF
    return _UDP.pack(src_port, dst_port, length, value) + payload


def udp_frame(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    src_port: int,
    dst_port: int,
    payload: bytes,
) -> bytes:
    """A UDP datagram in IPv4 in Ethernet."""
    datagram = udp_datagram(src_ip, dst_ip, src_port, dst_port, payload)
    packet = ipv4_packet(src_ip, dst_ip, IPPROTO_UDP, datagram)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV4, packet)


def parse_udp(header: Ipv4Header, datagram: bytes) -> tuple[int, int, bytes]:
    """Source port, destination port and payload; the checksum must be there and right."""
    if len(datagram) < _UDP.size:
        raise ValueError(f"{len(datagram)} bytes are no UDP datagram")
    src_port, dst_port, length, checksum = _UDP.unpack_from(datagram)
    if length != len(datagram):
        raise ValueError(f"UDP length {length} in a payload of {len(datagram)} bytes")
    pseudo = _pseudo_header(header.src, header.dst, length)
    if not checksum or internet_checksum(pseudo + datagram):
        raise ValueError("the UDP checksum is missing or wrong")
    return src_port, dst_port, datagram[_UDP.size :]


def _pseudo_header(src: bytes, dst: bytes, length: int) -> bytes:
    return src + dst + struct.pack("!HH", IPPROTO_UDP, length)


# ICMP echo (RFC 792)


@attrs.frozen
class IcmpEchoReply:
    """What an echo reply says, and the addresses that carried it."""

    src_ip: bytes
    dst_ip: bytes
    ident: int
    seq_no: int
    data: bytes
    src_mac: bytes
    dst_mac: bytes
    ttl: int


@attrs.frozen
class IcmpEchoRequest:
    """What an echo request says, and the addresses that carried it."""

    src_mac: bytes
    dst_mac: bytes
    src_ip: bytes
    dst_ip: bytes
    ident: int
    seq_no: int
    data: bytes


def icmp_echo_request(
    src_mac: Mac,
    dst_mac: Mac,
    src_ip: Ip,
    dst_ip: Ip,
    ident: int,
    seq_no: int,
    data: bytes,
) -> bytes:
    """A ping."""
    message = _ECHO.pack(8, 0, 0, ident, seq_no) + data
    message = _ECHO.pack(8, 0, internet_checksum(message), ident, seq_no) + data
    packet = ipv4_packet(src_ip, dst_ip, IPPROTO_ICMP, message)
    return ethernet_frame(dst_mac, src_mac, ETHERTYPE_IPV4, packet)


def parse_icmp_echo_reply(frame: bytes) -> IcmpEchoReply:
    """Parse the answer to a ping."""
    ethernet, header, ident, seq_no, data = _parse_echo(frame, 0)
    return IcmpEchoReply(
        header.src, header.dst, ident, seq_no, data, ethernet.src, ethernet.dst, header.ttl
    )


def parse_icmp_echo_request(frame: bytes) -> IcmpEchoRequest:
    """Parse a ping."""
    ethernet, header, ident, seq_no, data = _parse_echo(frame, 8)
    return IcmpEchoRequest(ethernet.src, ethernet.dst, header.src, header.dst, ident, seq_no, data)


def is_icmp_echo_reply(frame: bytes) -> bool:
    """Whether the frame is the answer to a ping."""
    return _parses(parse_icmp_echo_reply, frame)


def is_icmp_echo_request(frame: bytes) -> bool:
    """Whether the frame is a ping."""
    return _parses(parse_icmp_echo_request, frame)


def _parse_echo(frame: bytes, kind: int) -> tuple[EthernetHeader, Ipv4Header, int, int, bytes]:
    ethernet, packet = parse_ethernet(frame, ETHERTYPE_IPV4)
    header, message = parse_ipv4(packet, IPPROTO_ICMP)
    if len(message) < _ECHO.size or internet_checksum(message):
        raise ValueError("an ICMP message that is too short, or whose checksum is wrong")
    found, code, _, ident, seq_no = _ECHO.unpack_from(message)
    if (found, code) != (kind, 0):
        raise ValueError(f"ICMP type {found}, code {code}")
    return ethernet, header, ident, seq_no, message[_ECHO.size :]


# DHCP (RFC 2131, RFC 2132)


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
    return _parses(parse_dhcp_response, frame)


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


def _parses(parse: Parser, frame: bytes) -> bool:
    try:
        parse(frame)
    except ValueError:
        return False
    return True
