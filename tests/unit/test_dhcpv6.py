"""The DHCPv6 server: which messages are answered, and with what."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptDNSServers,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptPref,
    DHCP6OptServerId,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from mvirt_net.dataplane.dhcpv6 import MAX_MESSAGE, Dhcpv6Server
from mvirt_net.model import DropReason, MacAddress
from tests.harness.packets import (
    ALL_DHCP_AGENTS,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    Dhcpv6MessageType,
    Dhcpv6Option,
    Dhcpv6Response,
    dhcpv6_message,
    dhcpv6_option,
    duid_ll,
    group_mac,
    ia_na,
    ia_pd,
    ipv6_bytes,
    link_local,
    parse_dhcpv6_response,
    udp_frame6,
)

from .fuzzing import mutated

MAC = "52:54:00:12:34:56"
LINK_LOCAL = link_local(MAC)
OWN = "fd00::5"
SERVER = duid_ll(GATEWAY_MAC)
OTHER_SERVER = duid_ll("02:00:00:00:00:02")
PREFIXES = ("2001:db8:1::/48", "2001:db8:2::/56")

Kind = Dhcpv6MessageType
NO_ADDRESSES, NO_BINDING, NOT_ON_LINK, NO_PREFIX = 2, 3, 4, 6


def server(**options: Any) -> Dhcpv6Server:
    return Dhcpv6Server(MacAddress.parse(MAC), IPv6Address(OWN), **options)


def delegating() -> Dhcpv6Server:
    return server(prefixes=[IPv6Network(prefix) for prefix in PREFIXES])


def message(kind: int, options: bytes = b"", **how: Any) -> bytes:
    """With the server's identifier where the message needs one."""
    needs = kind in (Kind.REQUEST, Kind.RENEW, Kind.RELEASE, Kind.DECLINE)
    how = {"server_id": SERVER if needs else None, **how}
    return dhcpv6_message(MAC, LINK_LOCAL, kind, 0x010203, options, **how)


def ask(frame: bytes, by: Dhcpv6Server | None = None) -> Dhcpv6Response:
    reply = (by or server()).handle(frame)
    assert isinstance(reply, bytes), reply
    return parse_dhcpv6_response(reply)


def given_address(reply: Dhcpv6Response) -> list[tuple[bytes, int, int]]:
    return [address for ia in reply.addresses for address in ia.addresses]


# What is answered


def test_solicit_is_advertised() -> None:
    reply = ask(message(Kind.SOLICIT, ia_na(0xDEADBEEF)))
    assert (reply.message_type, reply.xid) == (Kind.ADVERTISE, b"\1\2\3")
    assert (reply.server_duid, reply.client_duid) == (SERVER, duid_ll(MAC))
    assert given_address(reply) == [(ipv6_bytes(OWN), 86400, 172800)]
    (ia,) = reply.addresses
    assert (ia.iaid, ia.t1, ia.t2) == (0xDEADBEEF, 43200, 69120)
    assert reply.options[Dhcpv6Option.PREFERENCE] == b"\xff"
    assert (reply.src_ip, reply.dst_ip) == (GATEWAY_IPV6, LINK_LOCAL)
    assert (reply.eth_src, reply.eth_dst) == (GATEWAY_MAC, MacAddress.parse(MAC).packed)


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.RENEW, Kind.REBIND])
def test_address_is_given(kind: int) -> None:
    reply = ask(message(kind, ia_na(7, [OWN])))
    assert reply.message_type == Kind.REPLY
    assert given_address(reply) == [(ipv6_bytes(OWN), 86400, 172800)]
    assert Dhcpv6Option.PREFERENCE not in reply.options


def test_rapid_commit() -> None:
    reply = ask(message(Kind.SOLICIT, dhcpv6_option(14, b"") + ia_na(1)))
    assert reply.message_type == Kind.REPLY
    assert reply.options[Dhcpv6Option.RAPID_COMMIT] == b""
    assert reply.assigned_ip == ipv6_bytes(OWN)


@pytest.mark.parametrize("kind", [Kind.RENEW, Kind.REBIND])
def test_wrong_address_is_taken_away(kind: int) -> None:
    """RFC 8415, 18.3.4: with lifetimes of 0."""
    reply = ask(message(kind, ia_na(7, ["fd00::66", OWN])))
    assert given_address(reply) == [
        (ipv6_bytes(OWN), 86400, 172800),
        (ipv6_bytes("fd00::66"), 0, 0),
    ]


def test_hint_in_a_solicit_is_no_more_than_that() -> None:
    reply = ask(message(Kind.SOLICIT, ia_na(7, ["fd00::66"])))
    assert given_address(reply) == [(ipv6_bytes(OWN), 86400, 172800)]


@pytest.mark.parametrize("addresses", [["fd00::66"], [OWN, "fd00::66"]])
def test_request_for_another_address(addresses: list[str]) -> None:
    """RFC 8415, 18.3.2."""
    (ia,) = ask(message(Kind.REQUEST, ia_na(7, addresses))).addresses
    assert (ia.iaid, ia.addresses, ia.status, ia.t1) == (7, (), NOT_ON_LINK, 0)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Kind.SOLICIT, NO_ADDRESSES),
        (Kind.REQUEST, NO_ADDRESSES),
        (Kind.RENEW, NO_BINDING),
        (Kind.REBIND, NO_BINDING),
    ],
)
def test_second_association_gets_nothing(kind: int, status: int) -> None:
    reply = ask(message(kind, ia_na(1) + ia_na(2)))
    first, second = reply.addresses
    assert (first.iaid, second.iaid) == (1, 2)
    assert (len(first.addresses), first.status) == (1, None)
    assert (second.addresses, second.status, second.t1) == ((), status, 0)


@pytest.mark.parametrize("kind", [Kind.SOLICIT, Kind.REQUEST, Kind.RENEW, Kind.REBIND])
def test_prefixes_are_delegated(kind: int) -> None:
    reply = ask(message(kind, ia_na(1) + ia_pd(9)), delegating())
    assert reply.assigned_ip == ipv6_bytes(OWN)
    (ia,) = reply.prefixes
    assert (ia.iaid, ia.t1, ia.t2) == (9, 43200, 69120)
    assert ia.prefixes == (
        (ipv6_bytes("2001:db8:1::"), 48, 86400, 172800),
        (ipv6_bytes("2001:db8:2::"), 56, 86400, 172800),
    )


def test_no_prefix() -> None:
    (ia,) = ask(message(Kind.SOLICIT, ia_pd(9))).prefixes
    assert (ia.prefixes, ia.status) == ((), NO_PREFIX)


def test_prefix_that_is_gone_is_taken_away() -> None:
    (ia,) = ask(message(Kind.RENEW, ia_pd(9, [("2001:db8:9::", 48)])), delegating()).prefixes
    assert (ipv6_bytes("2001:db8:9::"), 48, 0, 0) in ia.prefixes
    assert len(ia.prefixes) == 3


def test_confirm() -> None:
    assert ask(message(Kind.CONFIRM, ia_na(1, [OWN]))).status == 0
    for addresses in (["fd00::66"], [OWN, "fd00::66"]):
        assert ask(message(Kind.CONFIRM, ia_na(1, addresses))).status == NOT_ON_LINK
    assert server().handle(message(Kind.CONFIRM, ia_na(1))) is DropReason.DHCPV6_IGNORED


@pytest.mark.parametrize("kind", [Kind.RELEASE, Kind.DECLINE])
def test_release_and_decline(kind: int) -> None:
    reply = ask(message(kind, ia_na(1, [OWN]) + ia_na(2, ["fd00::66"]) + ia_pd(3)))
    assert (reply.message_type, reply.status) == (Kind.REPLY, 0)
    (foreign,) = reply.addresses
    assert (foreign.iaid, foreign.status) == (2, NO_BINDING)
    # It is the NIC's all the same.
    assert ask(message(Kind.SOLICIT, ia_na(1))).assigned_ip == ipv6_bytes(OWN)


def test_information_request() -> None:
    by = server(dns_servers=[ip_address("2001:db8::53")])
    for how in ({}, {"client_id": b""}, {"server_id": SERVER}):
        reply = ask(message(Kind.INFORMATION_REQUEST, **how), by)
        assert reply.dns_servers == [ipv6_bytes("2001:db8::53")]
        assert reply.addresses == []
        refresh = reply.options[Dhcpv6Option.INFORMATION_REFRESH_TIME]
        assert refresh == struct.pack("!I", 86400)
    asks_for_more = message(Kind.INFORMATION_REQUEST, ia_na(1))
    assert by.handle(asks_for_more) is DropReason.DHCPV6_IGNORED


def test_servers() -> None:
    by = server(
        dns_servers=[ip_address(ip) for ip in ("1.1.1.1", "2001:db8::53", "2001:db8::54")],
        ntp_servers=[ip_address(ip) for ip in ("10.0.0.1", "2001:db8::7b")],
    )
    reply = ask(message(Kind.SOLICIT, ia_na(1)), by)
    assert reply.dns_servers == [ipv6_bytes("2001:db8::53"), ipv6_bytes("2001:db8::54")]
    ntp = reply.options[Dhcpv6Option.NTP_SERVER]
    assert ntp == struct.pack("!HH", 1, 16) + ipv6_bytes("2001:db8::7b")
    assert 31 not in reply.options
    wants_sntp = dhcpv6_option(Dhcpv6Option.OPTION_REQUEST, b"\0\x17\0\x1f")
    reply = ask(message(Kind.SOLICIT, ia_na(1) + wants_sntp), by)
    assert reply.options[31] == ipv6_bytes("2001:db8::7b")


def test_reply_fits_into_the_least_mtu() -> None:
    """Every identity association is answered; servers that find no room are left out."""
    by = server(
        prefixes=[IPv6Network(f"2001:db8:{i:x}::/48") for i in range(100)],
        dns_servers=[ip_address(f"2001:db8::{i:x}") for i in range(1, 100)],
    )
    strange = [f"2001:db9:{i}::" for i in range(8)]
    addresses = ia_na(1, [OWN, *strange]) + b"".join(ia_na(i) for i in range(2, 5))
    prefixes = ia_pd(1, [(prefix, 48) for prefix in strange]) + b"".join(
        ia_pd(i) for i in range(2, 5)
    )
    duid = bytes([0, 4]) + bytes(range(128))
    frame = by.handle(message(Kind.RENEW, prefixes + addresses, client_id=duid))
    assert isinstance(frame, bytes)
    assert 14 + 40 + 8 + MAX_MESSAGE - 16 < len(frame) <= 14 + 40 + 8 + MAX_MESSAGE
    reply = parse_dhcpv6_response(frame)
    assert reply.assigned_ip == ipv6_bytes(OWN)
    assert len(reply.addresses) == len(reply.prefixes) == 4
    assert len(reply.prefixes[0].prefixes) == 12 + 3
    assert len(reply.dns_servers) == 8


def test_as_many_servers_as_fit() -> None:
    servers = [ip_address(f"2001:db8::{i:x}") for i in range(1, 100)]
    reply = ask(message(Kind.SOLICIT, ia_na(1)), server(dns_servers=servers))
    assert len(reply.dns_servers) == 71


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.RENEW, Kind.REBIND])
def test_unspecified_address_asks_for_any(kind: int) -> None:
    assert given_address(ask(message(kind, ia_na(7, ["::"])))) == [(ipv6_bytes(OWN), 86400, 172800)]


@pytest.mark.parametrize("kind", [Kind.RENEW, Kind.REBIND])
def test_unspecified_prefix_asks_for_any(kind: int) -> None:
    request = message(kind, ia_na(1, [OWN]) + ia_pd(2, [("::", 56)]))
    (ia,) = ask(request, delegating()).prefixes
    assert len(ia.prefixes) == len(PREFIXES)
    (ia,) = ask(request).prefixes
    assert (ia.prefixes, ia.status) == ((), 3)


def test_prefix_taken_away_leaves_nothing_to_renew() -> None:
    (ia,) = ask(message(Kind.RENEW, ia_pd(2, [("2001:db9::", 48)]))).prefixes
    assert len(ia.prefixes) == 1
    assert (ia.t1, ia.t2) == (0, 0)


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.RENEW, Kind.REBIND])
def test_association_that_has_the_address_keeps_it(kind: int) -> None:
    without, having = ask(message(kind, ia_na(1) + ia_na(2, [OWN]))).addresses
    assert without.addresses == ()
    assert having.addresses == ((ipv6_bytes(OWN), 86400, 172800),)


# What is not


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(message(Kind.SOLICIT, ia_na(1), client_id=b""), id="solicit-no-client"),
        pytest.param(message(Kind.SOLICIT, ia_na(1), server_id=SERVER), id="solicit-server"),
        pytest.param(message(Kind.CONFIRM, ia_na(1, [OWN]), server_id=SERVER), id="confirm-server"),
        pytest.param(message(Kind.REBIND, ia_na(1), server_id=SERVER), id="rebind-server"),
        *(
            pytest.param(message(kind, ia_na(1), server_id=other), id=f"{kind.name}-{name}")
            for kind in (Kind.REQUEST, Kind.RENEW, Kind.RELEASE, Kind.DECLINE)
            for name, other in (("no-server", None), ("other-server", OTHER_SERVER))
        ),
        pytest.param(
            message(Kind.INFORMATION_REQUEST, server_id=OTHER_SERVER), id="information-other-server"
        ),
        pytest.param(
            message(Kind.REQUEST, ia_na(1), dst_ip=GATEWAY_IPV6, dst_mac=GATEWAY_MAC),
            id="p14-unicast",
        ),
        pytest.param(message(12), id="p14-relay-forward"),
        pytest.param(message(2, ia_na(1)), id="advertise"),
        pytest.param(message(7, ia_na(1)), id="reply"),
        pytest.param(message(0), id="type-0"),
        pytest.param(message(255), id="type-255"),
    ],
)
def test_ignored(frame: bytes) -> None:
    assert server().handle(frame) is DropReason.DHCPV6_IGNORED


def raw(payload: bytes, source: str | bytes = LINK_LOCAL) -> bytes:
    return udp_frame6(MAC, group_mac(ALL_DHCP_AGENTS), source, ALL_DHCP_AGENTS, 546, 547, payload)


CLIENT = dhcpv6_option(1, duid_ll(MAC))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(raw(b""), id="p14-empty"),
        pytest.param(raw(b"\1\0\0"), id="p14-half-a-header"),
        pytest.param(raw(b"\1\0\0\0" + CLIENT[:-1]), id="p14-option-past-end"),
        pytest.param(raw(b"\1\0\0\0" + CLIENT + b"\0"), id="p14-half-an-option"),
        pytest.param(raw(b"\1\0\0\0" + dhcpv6_option(1, b"")), id="p14-duid-0"),
        pytest.param(raw(b"\1\0\0\0" + dhcpv6_option(1, b"\0\3")), id="p14-duid-2"),
        pytest.param(raw(b"\1\0\0\0" + dhcpv6_option(1, bytes(131))), id="p14-duid-131"),
        pytest.param(raw(b"\1\0\0\0" + CLIENT * 2), id="two-clients"),
        pytest.param(raw(b"\1\0\0\0" + CLIENT + dhcpv6_option(6, b"\0")), id="p14-odd-oro"),
        pytest.param(raw(b"\1\0\0\0" + CLIENT + dhcpv6_option(3, bytes(11))), id="p14-short-ia"),
        pytest.param(
            raw(b"\1\0\0\0" + CLIENT + dhcpv6_option(3, bytes(12) + dhcpv6_option(5, bytes(23)))),
            id="p14-short-address",
        ),
        pytest.param(
            raw(b"\1\0\0\0" + CLIENT + dhcpv6_option(3, bytes(12) + b"\0\5\0\x20")),
            id="p14-nested-past-end",
        ),
        pytest.param(
            raw(
                b"\1\0\0\0"
                + CLIENT
                + dhcpv6_option(25, bytes(12) + dhcpv6_option(26, bytes(8) + b"\x81" + bytes(16)))
            ),
            id="prefix-129",
        ),
        pytest.param(raw(b"\1\0\0\0" + CLIENT + ia_na(1) * 9), id="p14-9-associations"),
        pytest.param(
            raw(b"\1\0\0\0" + CLIENT + bytes.fromhex("00100000") * 64), id="p14-65-options"
        ),
        pytest.param(
            raw(
                b"\1\0\0\0" + CLIENT + dhcpv6_option(3, bytes(12) + bytes.fromhex("00100000") * 65)
            ),
            id="p14-65-options-in-an-association",
        ),
        pytest.param(
            raw(b"\1\0\0\0" + CLIENT + dhcpv6_option(16, bytes(1472))), id="p14-longer-than-a-frame"
        ),
        pytest.param(raw(b"\1\0\0\0" + CLIENT + ia_na(1, ["fd00::1"] * 40)), id="p14-40-addresses"),
        pytest.param(
            raw(b"\1\0\0\0" + CLIENT + ia_na(1), source="fd00::5"), id="p14-not-link-local"
        ),
        pytest.param(raw(b"\1\0\0\0" + CLIENT + ia_na(1), source="::"), id="p14-unspecified"),
        pytest.param(message(Kind.SOLICIT, ia_na(1))[:-1] + b"\xff", id="checksum"),
    ],
)
def test_malformed(frame: bytes) -> None:
    assert server().handle(frame) is DropReason.DHCPV6_MALFORMED


def test_deep_nesting_is_not_followed() -> None:
    inner = b""
    for _ in range(80):
        inner = dhcpv6_option(3, bytes(12) + inner)
    reply = ask(message(Kind.SOLICIT, inner))
    assert len(reply.addresses) == 1


def test_longest_duid_is_echoed() -> None:
    duid = bytes([0, 4]) + bytes(range(128))
    assert ask(message(Kind.SOLICIT, ia_na(1), client_id=duid)).client_duid == duid


# A second opinion


def test_scapy_as_client_and_decoder() -> None:
    solicit = (
        Ether(src=MAC, dst="33:33:00:01:00:02")
        / IPv6(src="fe80::5054:ff:fe12:3456", dst="ff02::1:2")
        / UDP(sport=546, dport=547)
        / DHCP6_Solicit(trid=0x123456)
        / DHCP6OptClientId(duid=DUID_LL(lladdr=MAC))
        / DHCP6OptIA_NA(iaid=77)
    )
    frame = server(dns_servers=[ip_address("2001:db8::53")]).handle(bytes(solicit))
    assert isinstance(frame, bytes)
    packet = Ether(frame)
    assert packet[DHCP6_Advertise].trid == 0x123456
    assert packet[DHCP6OptServerId].duid.lladdr == "02:00:00:00:00:01"
    assert packet[DHCP6OptClientId].duid.lladdr == MAC
    assert packet[DHCP6OptPref].prefval == 255
    assert packet[DHCP6OptIA_NA].iaid == 77
    assert packet[DHCP6OptIAAddress].addr == OWN
    assert packet[DHCP6OptDNSServers].dnsservers == ["2001:db8::53"]
    assert (packet[IPv6].src, packet[UDP].sport, packet[UDP].dport) == ("fe80::1", 547, 546)
    del packet[UDP].chksum, packet[UDP].len, packet[IPv6].plen
    assert bytes(packet) == frame


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    kind=st.integers(0, 13),
    options=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 5, 6, 8, 13, 14, 25, 26, 39]), st.binary(max_size=60)),
        max_size=8,
    ),
    tail=st.binary(max_size=10),
)
def test_nothing_is_raised(kind: int, options: list[tuple[int, bytes]], tail: bytes) -> None:
    payload = bytes([kind, 1, 2, 3])
    payload += b"".join(dhcpv6_option(code, value) for code, value in options) + tail
    answer = delegating().handle(raw(payload))
    if isinstance(answer, bytes):
        parse_dhcpv6_response(answer)
    else:
        assert answer in (DropReason.DHCPV6_MALFORMED, DropReason.DHCPV6_IGNORED)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    payload=mutated(
        [
            message(Kind.RENEW, ia_na(1, [OWN]) + ia_pd(2, [("2001:db8:1::", 48)]))[62:],
            message(Kind.SOLICIT, dhcpv6_option(14, b"") + ia_na(1))[62:],
            message(Kind.RELEASE, ia_na(1, ["fd00::66"]))[62:],
        ]
    )
)
def test_mutated_messages_in_good_datagrams(payload: bytes) -> None:
    assert isinstance(delegating().handle(raw(payload)), bytes | DropReason)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(frame=mutated([message(Kind.RENEW, ia_na(1, [OWN]))]))
def test_mutated_frames(frame: bytes) -> None:
    assert isinstance(delegating().handle(frame), bytes | DropReason)
