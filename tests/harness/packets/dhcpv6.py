"""DHCPv6 (RFC 8415), the client's side."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence

import attrs

from .ipv4 import IPPROTO_UDP
from .ipv6 import group_mac, parse_ipv6, parse_udp6, udp_frame6
from .link import ETHERTYPE_IPV6, Ip, Mac, ipv6_bytes, mac_bytes, parse_ethernet, parses

DHCPV6_CLIENT_PORT = 546
DHCPV6_SERVER_PORT = 547
ALL_DHCP_AGENTS = ipv6_bytes("ff02::1:2")


class Dhcpv6MessageType(enum.IntEnum):
    """RFC 8415, 7.3."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    INFORMATION_REQUEST = 11


class Dhcpv6Option(enum.IntEnum):
    """The options that the tests speak of (RFC 8415, 21)."""

    CLIENT_ID = 1
    SERVER_ID = 2
    IA_NA = 3
    IA_ADDRESS = 5
    OPTION_REQUEST = 6
    PREFERENCE = 7
    ELAPSED_TIME = 8
    STATUS_CODE = 13
    RAPID_COMMIT = 14
    DNS_SERVERS = 23
    IA_PD = 25
    IA_PREFIX = 26
    INFORMATION_REFRESH_TIME = 32
    NTP_SERVER = 56


def duid_ll(mac: Mac) -> bytes:
    """The DUID of a host made of its MAC address (RFC 8415, 11.4)."""
    return struct.pack("!HH", 3, 1) + mac_bytes(mac)


def dhcpv6_option(code: int, value: bytes) -> bytes:
    """An option in its wire form."""
    return struct.pack("!HH", code, len(value)) + value


def ia_na(iaid: int, addresses: Sequence[Ip] = ()) -> bytes:
    """An IA_NA option that names addresses."""
    inner = b"".join(
        dhcpv6_option(Dhcpv6Option.IA_ADDRESS, ipv6_bytes(address) + bytes(8))
        for address in addresses
    )
    return dhcpv6_option(Dhcpv6Option.IA_NA, struct.pack("!III", iaid, 0, 0) + inner)


def ia_pd(iaid: int, prefixes: Sequence[tuple[Ip, int]] = ()) -> bytes:
    """An IA_PD option that names prefixes, each an address and a length."""
    inner = b"".join(
        dhcpv6_option(Dhcpv6Option.IA_PREFIX, bytes(8) + bytes([length]) + ipv6_bytes(prefix))
        for prefix, length in prefixes
    )
    return dhcpv6_option(Dhcpv6Option.IA_PD, struct.pack("!III", iaid, 0, 0) + inner)


def dhcpv6_message(
    client_mac: Mac,
    src_ip: Ip,
    kind: int,
    xid: int | bytes,
    options: bytes = b"",
    *,
    client_id: bytes | None = None,
    server_id: bytes | None = None,
    dst_ip: Ip = ALL_DHCP_AGENTS,
    dst_mac: Mac | None = None,
) -> bytes:
    """Any message of a client in a frame.

    Args:
        options: further ones, in their wire form.
        client_id: by default made of the MAC address; empty: none.
        server_id: none by default.
    """
    transaction = xid if isinstance(xid, bytes) else xid.to_bytes(3, "big")
    message = bytes([kind]) + bytes(transaction)
    client_id = duid_ll(client_mac) if client_id is None else client_id
    if client_id:
        message += dhcpv6_option(Dhcpv6Option.CLIENT_ID, client_id)
    if server_id is not None:
        message += dhcpv6_option(Dhcpv6Option.SERVER_ID, server_id)
    message += dhcpv6_option(Dhcpv6Option.ELAPSED_TIME, bytes(2)) + options
    return udp_frame6(
        client_mac,
        group_mac(dst_ip) if dst_mac is None else dst_mac,
        src_ip,
        dst_ip,
        DHCPV6_CLIENT_PORT,
        DHCPV6_SERVER_PORT,
        message,
        hop_limit=1,
    )


def dhcpv6_solicit(
    client_mac: Mac, src_ip: Ip, xid: int | bytes, iaid: int, *, options: bytes = b""
) -> bytes:
    """SOLICIT for one address."""
    return dhcpv6_message(client_mac, src_ip, Dhcpv6MessageType.SOLICIT, xid, ia_na(iaid) + options)


def dhcpv6_request(
    client_mac: Mac,
    src_ip: Ip,
    xid: int | bytes,
    server_duid: bytes,
    iaid: int,
    *,
    addresses: Sequence[Ip] = (),
    options: bytes = b"",
) -> bytes:
    """REQUEST for the address that a server has advertised."""
    return dhcpv6_message(
        client_mac,
        src_ip,
        Dhcpv6MessageType.REQUEST,
        xid,
        ia_na(iaid, addresses) + options,
        server_id=server_duid,
    )


@attrs.frozen
class Association:
    """An identity association in a reply: addresses (or prefixes) with their lifetimes."""

    iaid: int
    t1: int
    t2: int
    addresses: tuple[tuple[bytes, int, int], ...]
    """Address, preferred and valid lifetime."""
    prefixes: tuple[tuple[bytes, int, int, int], ...]
    """Prefix, its length, preferred and valid lifetime."""
    status: int | None


@attrs.frozen(kw_only=True)
class Dhcpv6Response:
    """A message of a DHCPv6 server. Absent options are None, or empty where there may be several.

    `iaid`, `assigned_ip` and the lifetimes are those of the first address.
    """

    message_type: int
    xid: bytes
    server_duid: bytes | None
    client_duid: bytes | None
    iaid: int | None
    assigned_ip: bytes | None
    preferred_lifetime: int | None
    valid_lifetime: int | None
    dns_servers: list[bytes]
    addresses: list[Association]
    prefixes: list[Association]
    status: int | None
    options: Mapping[int, bytes]
    src_ip: bytes
    dst_ip: bytes
    eth_src: bytes
    eth_dst: bytes


def _read_options(data: bytes) -> list[tuple[int, bytes]]:
    options = []
    while data:
        if len(data) < 4:
            raise ValueError("half a DHCPv6 option")
        code, length = struct.unpack_from("!HH", data)
        if length > len(data) - 4:
            raise ValueError("a DHCPv6 option runs past the end of the message")
        options.append((code, data[4 : 4 + length]))
        data = data[4 + length :]
    return options


def _status(options: Sequence[tuple[int, bytes]]) -> int | None:
    for code, value in options:
        if code == Dhcpv6Option.STATUS_CODE:
            return int.from_bytes(value[:2], "big")
    return None


def _association(value: bytes) -> Association:
    if len(value) < 12:
        raise ValueError("an identity association that is too short")
    iaid, t1, t2 = struct.unpack_from("!III", value)
    options = _read_options(value[12:])
    addresses, prefixes = [], []
    for code, inner in options:
        if code == Dhcpv6Option.IA_ADDRESS:
            address, preferred, valid = struct.unpack("!16sII", inner[:24])
            addresses.append((address, preferred, valid))
        elif code == Dhcpv6Option.IA_PREFIX:
            preferred, valid, length, prefix = struct.unpack("!IIB16s", inner[:25])
            prefixes.append((prefix, length, preferred, valid))
    return Association(iaid, t1, t2, tuple(addresses), tuple(prefixes), _status(options))


def parse_dhcpv6_response(frame: bytes) -> Dhcpv6Response:
    """Parse a message of a DHCPv6 server (from port 547 to port 546)."""
    ethernet, packet = parse_ethernet(frame, ETHERTYPE_IPV6)
    header, datagram = parse_ipv6(packet, IPPROTO_UDP)
    src_port, dst_port, message = parse_udp6(header, datagram)
    if (src_port, dst_port) != (DHCPV6_SERVER_PORT, DHCPV6_CLIENT_PORT) or len(message) < 4:
        raise ValueError(f"UDP from port {src_port} to {dst_port} is no DHCPv6 reply")
    pairs = _read_options(message[4:])
    options = dict(pairs)
    addresses = [_association(value) for code, value in pairs if code == Dhcpv6Option.IA_NA]
    found = [(ia.iaid, *address) for ia in addresses for address in ia.addresses]
    iaid, assigned, preferred, valid = found[0] if found else (None, None, None, None)
    if iaid is None and addresses:
        iaid = addresses[0].iaid
    dns = options.get(Dhcpv6Option.DNS_SERVERS, b"")
    return Dhcpv6Response(
        message_type=message[0],
        xid=message[1:4],
        server_duid=options.get(Dhcpv6Option.SERVER_ID),
        client_duid=options.get(Dhcpv6Option.CLIENT_ID),
        iaid=iaid,
        assigned_ip=assigned,
        preferred_lifetime=preferred,
        valid_lifetime=valid,
        dns_servers=[dns[start : start + 16] for start in range(0, len(dns), 16)],
        addresses=addresses,
        prefixes=[_association(value) for code, value in pairs if code == Dhcpv6Option.IA_PD],
        status=_status(pairs),
        options=options,
        src_ip=header.src,
        dst_ip=header.dst,
        eth_src=ethernet.src,
        eth_dst=ethernet.dst,
    )


def is_dhcpv6_response(frame: bytes) -> bool:
    """Whether the frame is a message of a DHCPv6 server."""
    return parses(parse_dhcpv6_response, frame)
