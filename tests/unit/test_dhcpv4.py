"""DHCPv4, from both sides: requests as clients send them, replies as scapy decodes them.

Requests are built and option lists are read by this file's own few lines, whole replies by scapy;
neither knows anything of the code under test. P10 and P11 are rows of the list of hostile inputs.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from mvirt_net.dataplane.dhcpv4 import Dhcpv4Server, Option, fit_options
from mvirt_net.model import DropReason, MacAddress

from .fuzzing import fuzz, mutated

MAC = "52:54:00:12:34:56"
MAC_BYTES = bytes.fromhex("525400123456")
GATEWAY_MAC = "02:00:00:00:00:01"
ETHERNET_BROADCAST = "ff:ff:ff:ff:ff:ff"
OURS = "10.0.0.5"
GATEWAY = "169.254.0.1"
BROADCAST = "255.255.255.255"
NOBODY = "0.0.0.0"
FOREIGN = "192.168.1.77"
XID = 0x12345678

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)

MALFORMED = DropReason.DHCP_MALFORMED
IGNORED = DropReason.DHCP_IGNORED

ROUTES = bytes.fromhex("20 a9fe0001 00000000 00 a9fe0001")
LEASE_CODES = [51, 58, 59]
SETTINGS_CODES = [1, 121, 3, 6, 26]


def address(text: str) -> bytes:
    return IPv4Address(text).packed


def option(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


def kind(message_type: int) -> bytes:
    return option(53, bytes([message_type]))


def bootp(
    options: bytes = b"",
    *,
    op: int = 1,
    htype: int = 1,
    hlen: int = 6,
    xid: int = XID,
    flags: int = 0,
    ciaddr: str = NOBODY,
    giaddr: str = NOBODY,
    chaddr: bytes = MAC_BYTES,
    sname: bytes = b"",
    file: bytes = b"",
    cookie: bytes = bytes([99, 130, 83, 99]),
    end: bytes = b"\xff",
) -> bytes:
    """A client's message (RFC 2131, figure 1), padded to 300 bytes as most clients do."""
    fixed = struct.pack("!BBBBIHH", op, htype, hlen, 0, xid, 3, flags)
    addresses = address(ciaddr) + bytes(8) + address(giaddr)
    names = chaddr.ljust(16, b"\0") + sname.ljust(64, b"\0") + file.ljust(128, b"\0")
    return (fixed + addresses + names + cookie + options + end).ljust(300, b"\0")


def frame(
    message: bytes, *, src: str = NOBODY, dst: str = BROADCAST, sport: int = 68, **udp: Any
) -> bytes:
    """The message on its way from the guest, good but for the UDP fields given."""
    mac = ETHERNET_BROADCAST if dst == BROADCAST else GATEWAY_MAC
    return bytes(
        Ether(src=MAC, dst=mac)
        / IP(src=src, dst=dst)
        / UDP(**{"sport": sport, "dport": 67, **udp})
        / Raw(message)
    )


def server(**settings: Any) -> Dhcpv4Server:
    return Dhcpv4Server(MacAddress.parse(MAC), IPv4Address(OURS), **settings)


@attrs.frozen
class Reply:
    """A reply taken apart by scapy."""

    ether: Ether
    ip: IP
    bootp: BOOTP
    size: int
    """Of the DHCP message, in bytes."""
    options: dict[int, bytes]
    """In wire order."""

    @property
    def kind(self) -> int:
        return self.options[53][0]

    @property
    def to(self) -> tuple[str, str]:
        return self.ether.dst, self.ip.dst


def read_options(field: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    while field[0] != 255:
        code, size = field[0], field[1]
        assert code not in options
        options[code] = field[2 : 2 + size]
        assert len(options[code]) == size
        field = field[2 + size :]
    assert not any(field[1:]), "nothing but padding after the end"
    return options


def decode(reply: bytes | DropReason) -> Reply:
    """Every field, after a look at what is the same in each reply."""
    assert isinstance(reply, bytes)
    ether = Ether(reply)
    ip, udp, message = ether[IP], ether[UDP], ether[BOOTP]
    payload = reply[14 + 20 + 8 :]
    # Scapy's own rendering has its own lengths and checksums.
    again = (
        Ether(dst=ether.dst, src=GATEWAY_MAC)
        / IP(src=GATEWAY, dst=ip.dst, id=0, flags="DF", ttl=64)
        / UDP(sport=67, dport=68)
        / Raw(payload)
    )
    assert bytes(again) == reply
    assert udp.chksum != 0
    assert (message.op, message.htype, message.hlen, message.hops) == (2, 1, 6, 0)
    assert (message.secs, message.giaddr) == (0, NOBODY)
    assert message.chaddr == MAC_BYTES.ljust(16, b"\0")
    assert (message.sname, message.file) == (bytes(64), bytes(128))
    assert payload[236:240] == bytes([99, 130, 83, 99])
    assert len(payload) >= 300
    options = read_options(payload[240:])
    assert list(options)[:2] == [53, 54]
    assert options[54] == address(GATEWAY)
    return Reply(ether, ip, message, len(payload), options)


def ask(message: bytes, by: Dhcpv4Server | None = None, **on_the_way: Any) -> Reply:
    return decode((by or server()).handle(frame(message, **on_the_way)))


def refusal(message: bytes, **on_the_way: Any) -> bytes | DropReason:
    return server().handle(frame(message, **on_the_way))


def test_literal_offer() -> None:
    request = bytes.fromhex(
        "ffffffffffff 525400123456 0800"
        "4500 0110 0000 0000 40 11 79de 00000000 ffffffff"
        "0044 0043 00fc 0000"
        "01 01 06 00 12345678 0000 0000 00000000 00000000 00000000 00000000"
        "525400123456 00000000000000000000" + "00" * (64 + 128) + "63825363 350101 ff"
    )
    assert server().handle(request) == bytes.fromhex(
        "525400123456 020000000001 0800"
        "4500 0152 0000 4000 40 11 8597 a9fe0001 0a000005"
        "0043 0044 013e 52c0"
        "02 01 06 00 12345678 0000 0000 00000000 0a000005 a9fe0001 00000000"
        "525400123456 00000000000000000000" + "00" * (64 + 128) + "63825363"
        "35 01 02"
        "36 04 a9fe0001"
        "33 04 00015180"
        "3a 04 0000a8c0"
        "3b 04 00012750"
        "01 04 ffffffff"
        "79 0e 20 a9fe0001 00000000 00 a9fe0001"
        "03 04 a9fe0001"
        "06 08 01010101 08080808"
        "1a 02 05dc"
        "ff"
    )


# What each sends at its defaults; the parameter lists as seen on the wire or in their sources.
CLIENT_ID = option(61, b"\x01" + MAC_BYTES)
DUID = option(61, bytes.fromhex("ff 00123456 0002 0000ab11 0123456789abcdef"))
CLIENTS = {
    "dhclient": option(55, bytes([1, 28, 2, 3, 15, 6, 119, 12, 44, 47, 26, 121, 42])),
    "udhcpc": CLIENT_ID
    + option(57, b"\x02\x40")
    + option(55, bytes([1, 3, 6, 12, 15, 28, 42]))
    + option(60, b"udhcp 1.35.0"),
    "dhcpcd": DUID
    + option(55, bytes([1, 121, 33, 3, 6, 15, 26, 28, 51, 54, 58, 59, 119]))
    + option(57, b"\x05\xc0")
    + option(145, b"\x01"),
    "networkd": DUID
    + option(55, bytes([1, 3, 12, 15, 6, 33, 121, 26, 42, 120]))
    + option(57, b"\x05\xc0")
    + option(12, b"guest"),
    "windows": CLIENT_ID
    + option(12, b"DESKTOP-1234567")
    + option(60, b"MSFT 5.0")
    + option(55, bytes([1, 15, 3, 6, 44, 46, 47, 31, 33, 121, 249, 252, 43])),
    "nothing-asked": b"",
}


@pytest.mark.parametrize("flags", [0, 0x8000], ids=["unicast", "broadcast"])
@pytest.mark.parametrize("wishes", CLIENTS.values(), ids=CLIENTS)
class TestClients:
    def test_discover_and_request(self, wishes: bytes, flags: int) -> None:
        offer = ask(bootp(kind(DISCOVER) + wishes, flags=flags))
        chosen = option(50, address(offer.bootp.yiaddr)) + option(54, offer.options[54])
        ack = ask(bootp(kind(REQUEST) + chosen + wishes, flags=flags))
        for reply, message_type in ((offer, OFFER), (ack, ACK)):
            assert reply.kind == message_type
            assert (reply.bootp.xid, reply.bootp.flags) == (XID, flags)
            assert (reply.bootp.yiaddr, reply.bootp.siaddr) == (OURS, GATEWAY)
            assert reply.bootp.ciaddr == NOBODY
            assert reply.to == ((ETHERNET_BROADCAST, BROADCAST) if flags else (MAC, OURS))
        assert ack.options == offer.options | {53: bytes([ACK])}

    def test_lease_and_settings(self, wishes: bytes, flags: int) -> None:
        offer = ask(bootp(kind(DISCOVER) + wishes, flags=flags))
        decoded = {part[0]: part[1:] for part in offer.bootp[DHCP].options}
        assert decoded["lease_time"] == (86400,)
        assert decoded["renewal_time"] == (43200,)
        assert decoded["rebinding_time"] == (75600,)
        assert decoded["subnet_mask"] == (BROADCAST,)
        assert decoded["router"] == (GATEWAY,)
        assert decoded["name_server"] == ("1.1.1.1", "8.8.8.8")
        assert decoded["interface-mtu"] == (1500,)
        assert offer.options[121] == ROUTES

    def test_what_is_echoed_or_only_sent_when_asked_for(self, wishes: bytes, flags: int) -> None:
        offer = ask(bootp(kind(DISCOVER) + wishes, flags=flags))
        asked = read_options(wishes + b"\xff")
        assert offer.options.get(61) == asked.get(61)
        assert offer.options.get(249) == (ROUTES if 249 in asked.get(55, b"") else None)


def test_option_order() -> None:
    wishes = option(55, bytes([249, 1, 3])) + CLIENT_ID
    reply = ask(bootp(kind(DISCOVER) + wishes), server(ntp_servers=[IPv4Address("10.0.0.9")]))
    assert list(reply.options) == [53, 54, *LEASE_CODES, 1, 121, 3, 6, 26, 42, 61, 249]


class TestDiscover:
    @pytest.mark.parametrize("wanted", [OURS, FOREIGN, NOBODY, BROADCAST])
    def test_gets_its_own_whatever_it_asks_for(self, wanted: str) -> None:
        reply = ask(bootp(kind(DISCOVER) + option(50, address(wanted))))
        assert (reply.kind, reply.bootp.yiaddr) == (OFFER, OURS)

    def test_another_client_identifier_changes_nothing(self) -> None:
        first = ask(bootp(kind(DISCOVER) + option(61, b"\0first")))
        second = ask(bootp(kind(DISCOVER) + option(61, b"\0second")))
        assert first.bootp.yiaddr == second.bootp.yiaddr == OURS

    def test_to_the_gateway_itself(self) -> None:
        assert ask(bootp(kind(DISCOVER)), dst=GATEWAY).kind == OFFER

    def test_ciaddr_means_unicast_and_is_not_returned(self) -> None:
        reply = ask(bootp(kind(DISCOVER), ciaddr=OURS, flags=0x8000))
        assert (reply.to, reply.bootp.ciaddr) == ((MAC, OURS), NOBODY)

    @pytest.mark.parametrize("sport", [67, 68, 1024])
    def test_any_source_port_is_answered_on_68(self, sport: int) -> None:
        assert ask(bootp(kind(DISCOVER)), sport=sport).kind == OFFER


FOREIGN_SERVER = option(54, address("10.0.0.1"))
OUR_SERVER = option(54, address(GATEWAY))


class TestRequest:
    @pytest.mark.parametrize(
        ("message", "on_the_way"),
        [
            pytest.param(
                bootp(kind(REQUEST) + option(50, address(OURS)) + OUR_SERVER), {}, id="selecting"
            ),
            pytest.param(bootp(kind(REQUEST) + OUR_SERVER), {}, id="selecting-without-address"),
            pytest.param(
                bootp(kind(REQUEST) + option(50, bytes(4)) + OUR_SERVER), {}, id="selecting-0.0.0.0"
            ),
            pytest.param(
                bootp(kind(REQUEST) + option(50, address(OURS))), {}, id="dhclient-init-reboot"
            ),
            pytest.param(
                bootp(kind(REQUEST), ciaddr=OURS),
                {"src": OURS, "dst": GATEWAY},
                id="udhcpc-renewing",
            ),
            pytest.param(bootp(kind(REQUEST), ciaddr=OURS), {"src": OURS}, id="rebinding"),
            pytest.param(
                bootp(kind(REQUEST) + option(50, address(OURS)), ciaddr=OURS),
                {"src": OURS, "dst": GATEWAY},
                id="renewing-with-address",
            ),
        ],
    )
    def test_right_address_is_acknowledged(
        self, message: bytes, on_the_way: dict[str, Any]
    ) -> None:
        reply = ask(message, **on_the_way)
        assert (reply.kind, reply.bootp.yiaddr, reply.to) == (ACK, OURS, (MAC, OURS))
        assert reply.bootp.ciaddr == str(IPv4Address(message[12:16]))
        assert list(reply.options) == [53, 54, *LEASE_CODES, *SETTINGS_CODES]

    def test_renewing_goes_to_ciaddr_even_with_the_broadcast_flag(self) -> None:
        message = bootp(kind(REQUEST), ciaddr=OURS, flags=0x8000)
        reply = ask(message, src=OURS, dst=GATEWAY)
        assert (reply.to, reply.bootp.flags) == ((MAC, OURS), 0x8000)

    @pytest.mark.parametrize(
        ("message", "on_the_way"),
        [
            pytest.param(
                bootp(kind(REQUEST) + option(50, address(FOREIGN)) + OUR_SERVER + CLIENT_ID),
                {},
                id="selecting",
            ),
            pytest.param(
                bootp(kind(REQUEST) + option(50, address(FOREIGN)) + CLIENT_ID),
                {},
                id="dhclient-init-reboot",
            ),
            pytest.param(
                bootp(kind(REQUEST) + CLIENT_ID, ciaddr=FOREIGN),
                {"src": FOREIGN, "dst": GATEWAY},
                id="udhcpc-renewing",
            ),
            pytest.param(
                bootp(kind(REQUEST) + CLIENT_ID, ciaddr=FOREIGN), {"src": FOREIGN}, id="rebinding"
            ),
            pytest.param(
                bootp(kind(REQUEST) + option(50, address(OURS)) + CLIENT_ID, ciaddr=FOREIGN),
                {},
                id="one-right-one-wrong",
            ),
        ],
    )
    def test_wrong_address_gets_a_nak(self, message: bytes, on_the_way: dict[str, Any]) -> None:
        reply = ask(message, **on_the_way)
        assert (reply.kind, reply.to) == (NAK, (ETHERNET_BROADCAST, BROADCAST))
        assert (reply.bootp.ciaddr, reply.bootp.yiaddr, reply.bootp.siaddr) == (NOBODY,) * 3
        assert list(reply.options) == [53, 54, 56, 61]
        assert reply.options[61] == b"\x01" + MAC_BYTES

    @pytest.mark.parametrize("wanted", [OURS, FOREIGN])
    def test_silence_for_another_server(self, wanted: str) -> None:
        message = bootp(kind(REQUEST) + option(50, address(wanted)) + FOREIGN_SERVER)
        assert refusal(message) is IGNORED

    def test_silence_when_it_asks_for_nothing(self) -> None:
        assert refusal(bootp(kind(REQUEST))) is IGNORED


class TestInform:
    @pytest.mark.parametrize("flags", [0, 0x8000])
    def test_settings_without_lease(self, flags: int) -> None:
        reply = ask(bootp(kind(INFORM), ciaddr="10.0.1.9", flags=flags), src="10.0.1.9")
        assert (reply.kind, reply.to) == (ACK, (MAC, "10.0.1.9"))
        assert (reply.bootp.ciaddr, reply.bootp.yiaddr) == ("10.0.1.9", NOBODY)
        assert list(reply.options) == [53, 54, *SETTINGS_CODES]

    def test_without_ciaddr_goes_to_the_sender(self) -> None:
        reply = ask(bootp(kind(INFORM) + option(55, b"\xf9")), src="10.0.1.9")
        assert (reply.to, reply.bootp.ciaddr) == ((MAC, "10.0.1.9"), NOBODY)
        assert reply.options[249] == ROUTES

    @pytest.mark.parametrize("ciaddr", [NOBODY, "224.0.0.1", BROADCAST, "127.0.0.1", "0.0.0.7"])
    def test_silence_for_what_is_no_host(self, ciaddr: str) -> None:
        assert refusal(bootp(kind(INFORM), ciaddr=ciaddr)) is IGNORED


@pytest.mark.parametrize("message_type", [OFFER, DECLINE, ACK, NAK, RELEASE, 0, 9, 13, 255])
def test_silence_for_all_other_messages(message_type: int) -> None:
    named = option(50, address(OURS)) + OUR_SERVER
    assert refusal(bootp(kind(message_type) + named, ciaddr=OURS), src=OURS) is IGNORED


class TestSettings:
    def test_dns_servers_of_the_network(self) -> None:
        dns = [IPv6Address("2001:db8::53"), IPv4Address("9.9.9.9"), IPv4Address("10.0.0.53")]
        reply = ask(bootp(kind(DISCOVER)), server(dns_servers=dns))
        assert reply.options[6] == address("9.9.9.9") + address("10.0.0.53")

    def test_no_dns_option_when_the_network_has_ipv6_ones_only(self) -> None:
        reply = ask(bootp(kind(DISCOVER)), server(dns_servers=[IPv6Address("2001:db8::53")]))
        assert 6 not in reply.options

    def test_ntp_servers(self) -> None:
        ntp4, ntp6 = IPv4Address("10.0.0.123"), IPv6Address("2001:db8::123")
        reply = ask(bootp(kind(DISCOVER)), server(ntp_servers=[ntp4, ntp6]))
        assert reply.options[42] == ntp4.packed
        assert 42 not in ask(bootp(kind(DISCOVER)), server(ntp_servers=[ntp6])).options

    @pytest.mark.parametrize("mtu", [68, 1400, 9000, 65535])
    def test_mtu(self, mtu: int) -> None:
        reply = ask(bootp(kind(DISCOVER)), server(mtu=mtu))
        assert reply.options[26] == mtu.to_bytes(2, "big")

    def test_subnet_mode_names_a_router_in_the_subnet(self) -> None:
        reply = ask(bootp(kind(DISCOVER)), server(netmask=IPv4Address("255.255.255.0")))
        assert reply.options[1] == address("255.255.255.0")
        assert reply.options[3] == address("10.0.0.1")
        assert reply.options[121] == ROUTES

    @pytest.mark.parametrize(
        ("own", "netmask", "router"),
        [
            ("10.0.0.1", "255.255.255.0", "10.0.0.2"),
            ("10.0.0.4", "255.255.255.254", "10.0.0.5"),
            ("10.0.0.5", "255.255.255.255", GATEWAY),
        ],
    )
    def test_router_is_never_the_guest(self, own: str, netmask: str, router: str) -> None:
        mac, mask = MacAddress.parse(MAC), IPv4Address(netmask)
        reply = ask(bootp(kind(DISCOVER)), Dhcpv4Server(mac, IPv4Address(own), netmask=mask))
        assert reply.options[3] == address(router)


class TestSize:
    MANY = tuple(IPv4Address(0x0A010000 + number) for number in range(80))

    def test_576_holds_everything_usual(self) -> None:
        wishes = option(57, b"\x02\x40") + option(55, b"\xf9") + DUID
        by = server(dns_servers=self.MANY[:8], ntp_servers=self.MANY[:8])
        reply = ask(bootp(kind(DISCOVER) + wishes), by)
        assert set(reply.options) == {53, 54, *LEASE_CODES, *SETTINGS_CODES, 42, 61, 249}
        assert len(reply.options[6]) == len(reply.options[42]) == 32
        assert reply.ip.len <= 576

    @pytest.mark.parametrize(
        ("limit", "mtu", "most"),
        [
            pytest.param(None, 1500, 576, id="not-said"),
            pytest.param(0, 1500, 576, id="P11-0"),
            pytest.param(575, 1500, 576, id="P11-below-576"),
            pytest.param(576, 1500, 576, id="least"),
            pytest.param(700, 1500, 700, id="more"),
            pytest.param(65535, 700, 700, id="more-than-the-mtu"),
            pytest.param(65535, 68, 576, id="tiny-mtu"),
        ],
    )
    def test_limit_is_of_the_whole_datagram(self, limit: int | None, mtu: int, most: int) -> None:
        wishes = b"" if limit is None else option(57, limit.to_bytes(2, "big"))
        by = server(mtu=mtu, dns_servers=self.MANY, ntp_servers=self.MANY)
        reply = ask(bootp(kind(DISCOVER) + wishes), by)
        # Lists of four-byte addresses fill it to within a few bytes.
        assert most - 8 < reply.ip.len <= most

    def test_longest_duid_loses_nothing(self) -> None:
        # RFC 4361, 6.1: type, IAID and a DUID; RFC 8415, 11.1: 130 bytes at most.
        reply = ask(bootp(kind(DISCOVER) + option(55, b"\xf9") + option(61, bytes(135))))
        assert set(reply.options) == {53, 54, *LEASE_CODES, *SETTINGS_CODES, 61, 249}

    def test_p11_longest_client_identifier_leaves_what_is_needed_most(self) -> None:
        reply = ask(bootp(kind(DISCOVER) + option(61, bytes(range(255)))))
        assert list(reply.options) == [53, 54, 51, 1, 121, 3, 26, 61]
        assert reply.ip.len <= 576

    def test_room_for_one_list_of_63_at_most(self) -> None:
        wishes = option(57, b"\x05\xdc")
        reply = ask(bootp(kind(DISCOVER) + wishes), server(dns_servers=self.MANY))
        assert reply.options[6] == b"".join(server.packed for server in self.MANY[:63])

    @pytest.mark.parametrize("room", [0, 1, 2, 3])
    def test_fit_options_without_room(self, room: int) -> None:
        assert fit_options({Option.MESSAGE_TYPE: b"\1", Option.ROUTER: bytes(4)}, room) == {}

    def test_short_replies_are_padded(self) -> None:
        assert ask(bootp(kind(REQUEST) + option(50, address(FOREIGN)))).size == 300


class TestOptions:
    """P11: what may be wrong with the options of a request, and what is only unusual."""

    def test_p11_overload_of_file(self) -> None:
        message = bootp(option(52, b"\1"), file=kind(REQUEST) + option(50, address(FOREIGN)))
        assert ask(message).kind == NAK

    def test_p11_overload_of_sname(self) -> None:
        message = bootp(option(52, b"\2"), sname=kind(DISCOVER) + b"\xff", file=b"\x32\xff")
        assert ask(message).kind == OFFER

    def test_p11_overload_of_both_is_read_in_order_of_rfc_3396(self) -> None:
        wanted = address(OURS)
        message = bootp(
            kind(REQUEST) + option(50, wanted[:1]) + option(52, b"\3"),
            file=option(50, wanted[1:3]),
            sname=option(50, wanted[3:]),
        )
        assert ask(message).kind == ACK

    def test_p11_overload_loops(self) -> None:
        # Each field says that the options go on in the other.
        message = bootp(
            kind(DISCOVER) + option(52, b"\1"), file=option(52, b"\2"), sname=option(52, b"\3")
        )
        assert ask(message).kind == OFFER

    def test_p11_sname_and_file_are_names_without_overload(self) -> None:
        assert ask(bootp(kind(DISCOVER), sname=b"\x35\xff", file=b"\x36\xff")).kind == OFFER

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(bootp(kind(DISCOVER), end=b""), id="padding-for-end"),
            pytest.param(bootp(kind(DISCOVER), end=b"")[:243], id="nothing-for-end"),
            pytest.param(bootp(kind(DISCOVER), end=b"\xff\x35\xff"), id="rubbish-after-end"),
            pytest.param(bootp(bytes(1200) + kind(DISCOVER)), id="pad-flood"),
            pytest.param(bootp(kind(DISCOVER) + option(55, b"")), id="55-empty"),
            pytest.param(bootp(kind(DISCOVER) + option(55, bytes(range(255)))), id="55-with-255"),
            pytest.param(bootp(kind(DISCOVER) + option(61, b"")), id="61-empty"),
            pytest.param(bootp(kind(DISCOVER) + option(57, b"\0\0")), id="57-is-0"),
            pytest.param(bootp(kind(DISCOVER), xid=0), id="xid-0"),
            pytest.param(bootp(kind(DISCOVER) + option(12, b"") * 500), id="empty-option-flood"),
            pytest.param(bootp(kind(DISCOVER), chaddr=MAC_BYTES + b"\xff" * 10), id="chaddr-rest"),
            pytest.param(bootp(kind(DISCOVER), flags=0x7FFF), id="reserved-flags"),
        ],
    )
    def test_p11_unusual_but_answered(self, message: bytes) -> None:
        reply = ask(message)
        assert (reply.kind, reply.bootp.yiaddr) == (OFFER, OURS)
        assert 61 not in reply.options

    P11_MALFORMED = (
        ("fixed-part-short", bootp()[:239]),
        ("empty", b""),
        ("no-cookie", bootp(kind(DISCOVER), cookie=bytes(4))),
        ("wrong-cookie", bootp(kind(DISCOVER), cookie=bytes([99, 130, 83, 98]))),
        ("hlen-0", bootp(kind(DISCOVER), hlen=0)),
        ("hlen-5", bootp(kind(DISCOVER), hlen=5)),
        ("hlen-16", bootp(kind(DISCOVER), hlen=16)),
        ("hlen-255", bootp(kind(DISCOVER), hlen=255)),
        ("htype-0", bootp(kind(DISCOVER), htype=0)),
        ("htype-6", bootp(kind(DISCOVER), htype=6)),
        ("option-past-end", bootp(kind(DISCOVER) + b"\x0c\xff" + bytes(80))),
        ("option-without-length", bootp(kind(DISCOVER) + bytes(56), end=b"\x0c")),
        ("option-past-file", bootp(kind(DISCOVER) + option(52, b"\1"), file=bytes(127) + b"\x0c")),
        ("duplicate-53", bootp(kind(DISCOVER) * 2)),
        ("53-contradicts-itself", bootp(kind(DISCOVER) + kind(REQUEST))),
        ("53-length-0", bootp(option(53, b""))),
        ("53-length-2", bootp(option(53, b"\1\1"))),
        ("50-length-3", bootp(kind(DISCOVER) + option(50, bytes(3)))),
        ("50-length-5", bootp(kind(DISCOVER) + option(50, bytes(5)))),
        ("54-length-0", bootp(kind(REQUEST) + option(54, b""))),
        ("57-length-1", bootp(kind(DISCOVER) + option(57, b"\2"))),
        ("52-value-0", bootp(kind(DISCOVER) + option(52, b"\0"))),
        ("52-value-4", bootp(kind(DISCOVER) + option(52, b"\4"))),
        ("52-length-0", bootp(kind(DISCOVER) + option(52, b""))),
        ("52-length-2", bootp(kind(DISCOVER) + option(52, b"\1\1"))),
        ("61-of-256-bytes", bootp(kind(DISCOVER) + option(61, bytes(128)) * 2)),
        ("longer-than-any", bootp(kind(DISCOVER) + bytes(1472))),
    )

    @pytest.mark.parametrize(
        "message", [row[1] for row in P11_MALFORMED], ids=[f"P11-{row[0]}" for row in P11_MALFORMED]
    )
    def test_p11_malformed(self, message: bytes) -> None:
        assert refusal(message) is MALFORMED

    P11_IGNORED = (
        ("op-2", bootp(kind(DISCOVER), op=2)),
        ("op-0", bootp(kind(DISCOVER), op=0)),
        ("giaddr", bootp(kind(DISCOVER), giaddr="10.0.0.1")),
        ("chaddr", bootp(kind(DISCOVER), chaddr=bytes.fromhex("525400123457"))),
        ("chaddr-0", bootp(kind(DISCOVER), chaddr=b"")),
        ("no-53", bootp()),
        ("no-53-but-others", bootp(option(50, address(OURS)))),
    )

    @pytest.mark.parametrize(
        "message", [row[1] for row in P11_IGNORED], ids=[f"P11-{row[0]}" for row in P11_IGNORED]
    )
    def test_p11_ignored(self, message: bytes) -> None:
        assert refusal(message) is IGNORED


DISCOVER_FRAME = frame(bootp(kind(DISCOVER)))


class TestOnTheWay:
    def test_padding_of_the_frame_is_ignored(self) -> None:
        assert decode(server().handle(DISCOVER_FRAME + bytes(40))).kind == OFFER

    def test_p10_without_udp_checksum(self) -> None:
        assert ask(bootp(kind(DISCOVER)), chksum=0).kind == OFFER

    @pytest.mark.parametrize(
        "udp", [{"chksum": 1}, {"len": 7}, {"len": 309}], ids=["checksum", "len-7", "len-too-big"]
    )
    def test_p10_malformed(self, udp: dict[str, int]) -> None:
        assert refusal(bootp(kind(DISCOVER)), **udp) is MALFORMED

    @pytest.mark.parametrize(
        "request_frame",
        [
            pytest.param(b"", id="empty"),
            pytest.param(DISCOVER_FRAME[:100], id="truncated"),
            pytest.param(DISCOVER_FRAME[:11] + b"\x57" + DISCOVER_FRAME[12:], id="source-mac"),
            pytest.param(DISCOVER_FRAME[:14] + b"\x46" + DISCOVER_FRAME[15:], id="P8-ihl"),
            pytest.param(DISCOVER_FRAME[:24] + bytes(2) + DISCOVER_FRAME[26:], id="P8-checksum"),
            pytest.param(frame(bootp(kind(DISCOVER)), src="127.0.0.1"), id="P8-loopback"),
        ],
    )
    def test_p8_malformed(self, request_frame: bytes) -> None:
        assert server().handle(request_frame) is MALFORMED

    @pytest.mark.parametrize("dst", ["10.0.0.1", "10.0.0.255", "224.0.0.1"])
    def test_to_somebody_else(self, dst: str) -> None:
        assert refusal(bootp(kind(DISCOVER)), dst=dst) is IGNORED

    def test_to_another_port(self) -> None:
        assert refusal(bootp(kind(DISCOVER)), dport=68) is IGNORED

    def test_no_udp(self) -> None:
        ping = bytes(Ether(src=MAC, dst=GATEWAY_MAC) / IP(src=OURS, dst=GATEWAY) / ICMP())
        assert server().handle(ping) is IGNORED


def test_nothing_is_remembered() -> None:
    by = server()
    before = by.handle(DISCOVER_FRAME)
    for message in (
        bootp(kind(DECLINE) + option(50, address(OURS)) + OUR_SERVER),
        bootp(kind(RELEASE) + OUR_SERVER, ciaddr=OURS),
        bootp(kind(REQUEST) + option(50, address(FOREIGN))),
    ):
        by.handle(frame(message))
    assert by.handle(DISCOVER_FRAME) == before


GOOD_MESSAGES = [
    bootp(kind(DISCOVER) + CLIENTS["windows"]),
    bootp(kind(REQUEST) + option(50, address(FOREIGN)) + option(52, b"\3"), file=CLIENT_ID),
    bootp(kind(INFORM) + CLIENTS["dhcpcd"], ciaddr=OURS),
]


def check_any_reply(reply: bytes | DropReason) -> None:
    if isinstance(reply, bytes):
        decoded = decode(reply)
        assert decoded.ether.dst in (MAC, ETHERNET_BROADCAST)
        assert decoded.bootp.yiaddr in (OURS, NOBODY)
        assert decoded.ip.len <= 1500
    else:
        assert reply in (MALFORMED, IGNORED)


@fuzz
@given(st.binary(max_size=400) | mutated([frame(message) for message in GOOD_MESSAGES]))
def test_any_bytes_get_a_reply_to_the_guest_or_a_reason(request_frame: bytes) -> None:
    check_any_reply(server().handle(request_frame))


@fuzz
@given(st.binary(max_size=400) | mutated(GOOD_MESSAGES))
def test_any_message_in_a_good_datagram(message: bytes) -> None:
    check_any_reply(server().handle(frame(message)))


OPTIONS = st.builds(
    option, st.sampled_from([0, 12, 50, 51, 52, 53, 54, 55, 57, 61, 255]), st.binary(max_size=6)
)


@fuzz
@given(st.sampled_from([DISCOVER, REQUEST, INFORM]), st.lists(OPTIONS, max_size=8))
def test_any_options_in_a_good_message(message_type: int, options: list[bytes]) -> None:
    check_any_reply(server().handle(frame(bootp(kind(message_type) + b"".join(options)))))
