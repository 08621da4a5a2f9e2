"""The harness's packet codecs, held against literal bytes and against scapy."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from mvirt_net import model
from tests.harness import packets
from tests.harness.packets import (
    GATEWAY_IP,
    GATEWAY_MAC,
    DhcpMessageType,
    DhcpRoute,
    arp_packet,
    arp_request,
    dhcp_decline,
    dhcp_discover,
    dhcp_frame,
    dhcp_inform,
    dhcp_init_reboot,
    dhcp_message,
    dhcp_rebind,
    dhcp_release,
    dhcp_renew,
    dhcp_request,
    ethernet_frame,
    icmp_echo_request,
    internet_checksum,
    ip_bytes,
    ipv4_packet,
    is_arp_reply,
    is_dhcp_response,
    is_icmp_echo_reply,
    is_icmp_echo_request,
    mac_bytes,
    parse_arp_reply,
    parse_dhcp_response,
    parse_icmp_echo_reply,
    parse_icmp_echo_request,
    udp_frame,
)

MAC = "52:54:00:12:34:56"
MAC_BYTES = bytes([0x52, 0x54, 0x00, 0x12, 0x34, 0x56])
IP5 = bytes([10, 0, 0, 5])


def server_frame(options: list[tuple[int, bytes]], *, op: int = 2, xid: int = 7) -> bytes:
    """A DHCP reply of a server, made of the client's builder and the server's ports."""
    message = dhcp_message(MAC, xid, options, op=op)
    return udp_frame(GATEWAY_MAC, MAC, GATEWAY_IP, IP5, 67, 68, message)


def test_gateway_is_the_products() -> None:
    assert model.GATEWAY_MAC.packed == GATEWAY_MAC
    assert model.GATEWAY_IPV4.packed == GATEWAY_IP


@pytest.mark.parametrize("form", [MAC, MAC_BYTES, list(MAC_BYTES)])
def test_mac_forms(form: packets.Mac) -> None:
    assert mac_bytes(form) == MAC_BYTES


@pytest.mark.parametrize("form", ["10.0.0.5", IP5, [10, 0, 0, 5]])
def test_ip_forms(form: packets.Ip) -> None:
    assert ip_bytes(form) == IP5


def test_wrong_addresses() -> None:
    with pytest.raises(ValueError, match="MAC"):
        mac_bytes([1, 2, 3])
    with pytest.raises(ValueError, match="IPv4"):
        ip_bytes(b"\1\2\3")


def test_checksum_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D
    assert internet_checksum(b"\x01") == 0xFEFF


def test_ethernet_frame() -> None:
    frame = ethernet_frame("ff:ff:ff:ff:ff:ff", MAC, 0x0800, bytes(64))
    assert frame == b"\xff" * 6 + MAC_BYTES + b"\x08\x00" + bytes(64)


# ARP


def test_arp_request_bytes() -> None:
    frame = arp_request(list(MAC_BYTES), [10, 0, 0, 100], [169, 254, 0, 1])
    assert frame.hex() == (
        "ffffffffffff" "525400123456" "0806"
        "0001" "0800" "06" "04" "0001"
        "525400123456" "0a000064" "000000000000" "a9fe0001"
    )  # fmt: skip


def test_parse_arp_reply() -> None:
    reply = bytes(
        Ether(src="02:00:00:00:00:01", dst=MAC)
        / ARP(op=2, hwsrc="02:00:00:00:00:01", psrc="169.254.0.1", hwdst=MAC, pdst="10.0.0.5")
    )
    arp = parse_arp_reply(reply + bytes(18))
    assert arp.sender_mac == arp.eth_src == GATEWAY_MAC
    assert arp.sender_ip == GATEWAY_IP
    assert arp.target_mac == arp.eth_dst == MAC_BYTES
    assert arp.target_ip == IP5
    assert is_arp_reply(reply)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        arp_request(MAC, IP5, GATEWAY_IP),
        arp_packet(2, MAC, IP5, MAC, IP5)[:-1],
        arp_packet(2, MAC, IP5, MAC, IP5)[:12] + b"\x08\x00" + bytes(28),
    ],
    ids=["empty", "request", "truncated", "not ARP"],
)
def test_no_arp_reply(frame: bytes) -> None:
    assert not is_arp_reply(frame)
    with pytest.raises(ValueError, match=r"."):
        parse_arp_reply(frame)


# ICMP


def test_icmp_echo_request_is_what_scapy_makes() -> None:
    frame = icmp_echo_request(MAC, GATEWAY_MAC, IP5, GATEWAY_IP, 0x1234, 1, b"ping test")
    expected = (
        Ether(dst="02:00:00:00:00:01", src=MAC)
        / IP(src="10.0.0.5", dst="169.254.0.1", id=0)
        / ICMP(id=0x1234, seq=1)
        / b"ping test"
    )
    assert frame == bytes(expected)
    ping = parse_icmp_echo_request(frame)
    assert (ping.src_mac, ping.dst_mac) == (MAC_BYTES, GATEWAY_MAC)
    assert (ping.src_ip, ping.dst_ip) == (IP5, GATEWAY_IP)
    assert (ping.ident, ping.seq_no, ping.data) == (0x1234, 1, b"ping test")
    assert is_icmp_echo_request(frame)
    assert not is_icmp_echo_reply(frame)


def test_parse_icmp_echo_reply() -> None:
    frame = bytes(
        Ether(dst=MAC, src="02:00:00:00:00:01")
        / IP(src="169.254.0.1", dst="10.0.0.5", ttl=63)
        / ICMP(type=0, id=9, seq=8)
        / b"odd"
    )
    reply = parse_icmp_echo_reply(frame + bytes(15))
    assert (reply.src_ip, reply.dst_ip, reply.ttl) == (GATEWAY_IP, IP5, 63)
    assert (reply.ident, reply.seq_no, reply.data) == (9, 8, b"odd")
    assert (reply.src_mac, reply.dst_mac) == (GATEWAY_MAC, MAC_BYTES)


def test_a_wrong_byte_anywhere_is_seen() -> None:
    frame = icmp_echo_request(MAC, GATEWAY_MAC, IP5, GATEWAY_IP, 1, 1, b"payload!")
    for position in range(12, len(frame)):
        damaged = bytearray(frame)
        damaged[position] ^= 0x55
        assert not is_icmp_echo_request(bytes(damaged)), position


def test_fragments_and_other_protocols_are_not_parsed() -> None:
    echo = bytes.fromhex("0000ffff00000000")
    fragment = ipv4_packet(IP5, GATEWAY_IP, 1, echo, fragment=0x2000)
    udp = ipv4_packet(IP5, GATEWAY_IP, 17, echo)
    optioned = ipv4_packet(IP5, GATEWAY_IP, 1, echo, options=bytes(4))
    assert not is_icmp_echo_reply(ethernet_frame(MAC, MAC, 0x0800, fragment))
    assert not is_icmp_echo_reply(ethernet_frame(MAC, MAC, 0x0800, udp))
    assert is_icmp_echo_reply(ethernet_frame(MAC, MAC, 0x0800, optioned))


# DHCP


def scapy_options(frame: bytes) -> dict[str, object]:
    options = Ether(frame)[DHCP].options
    return {name: value for name, *rest in (o for o in options if o != "end") for value in rest}


def test_discover_in_scapys_eyes() -> None:
    packet = Ether(dhcp_discover(MAC, 0x12345678))
    assert (packet.src, packet.dst) == (MAC, "ff:ff:ff:ff:ff:ff")
    assert (packet[IP].src, packet[IP].dst) == ("0.0.0.0", "255.255.255.255")
    assert (packet[UDP].sport, packet[UDP].dport) == (68, 67)
    assert packet[BOOTP].xid == 0x12345678
    assert packet[BOOTP].flags == "B"
    assert packet[BOOTP].chaddr == MAC_BYTES + bytes(10)
    assert packet[DHCP].options[0] == ("message-type", 1)


def test_checksums_are_right_in_scapys_eyes() -> None:
    frame = dhcp_discover(MAC, 1)
    packet = Ether(frame)
    del packet[IP].chksum, packet[UDP].chksum
    assert bytes(packet) == frame


def test_broadcast_flag_can_be_cleared() -> None:
    assert Ether(dhcp_discover(MAC, 1, broadcast=False))[BOOTP].flags == 0


def test_request_names_address_and_server() -> None:
    options = scapy_options(dhcp_request(MAC, 2, "10.0.0.5", GATEWAY_IP))
    assert options == {
        "message-type": 3,
        "requested_addr": "10.0.0.5",
        "server_id": "169.254.0.1",
    }


def test_options_follow_in_order_and_may_repeat() -> None:
    frame = dhcp_discover(MAC, 1, options=[(61, b"\1abc"), (55, b"\1\3"), (61, b"d")])
    assert frame.endswith(bytes.fromhex("3501013d0401616263370201033d0164ff"))


def test_renew_is_unicast_and_rebind_is_not() -> None:
    renew = Ether(dhcp_renew(MAC, 3, "10.0.0.5"))
    rebind = Ether(dhcp_rebind(MAC, 3, "10.0.0.5"))
    assert (renew.dst, renew[IP].dst) == ("02:00:00:00:00:01", "169.254.0.1")
    assert (rebind.dst, rebind[IP].dst) == ("ff:ff:ff:ff:ff:ff", "255.255.255.255")
    for packet in (renew, rebind):
        assert packet[IP].src == packet[BOOTP].ciaddr == "10.0.0.5"
        assert scapy_options(bytes(packet)) == {"message-type": 3}
        assert packet[BOOTP].flags == 0


def test_init_reboot_names_no_server() -> None:
    options = scapy_options(dhcp_init_reboot(MAC, 3, "10.0.0.9"))
    assert options == {"message-type": 3, "requested_addr": "10.0.0.9"}


def test_decline_release_inform() -> None:
    decline = Ether(dhcp_decline(MAC, 4, "10.0.0.5", GATEWAY_IP))
    release = Ether(dhcp_release(MAC, 5, "10.0.0.5", GATEWAY_IP))
    inform = Ether(dhcp_inform(MAC, 6, "10.0.0.5"))
    kinds = [scapy_options(bytes(p))["message-type"] for p in (decline, release, inform)]
    assert kinds == [4, 7, 8]
    assert decline[IP].src == "0.0.0.0"
    assert release[IP].dst == "169.254.0.1"
    assert release[BOOTP].ciaddr == inform[BOOTP].ciaddr == "10.0.0.5"


def test_parse_dhcp_response_of_scapy() -> None:
    frame = bytes(
        Ether(src="02:00:00:00:00:01", dst=MAC)
        / IP(src="169.254.0.1", dst="10.0.0.5")
        / UDP(sport=67, dport=68)
        / BOOTP(op=2, xid=0xDEADBEEF, yiaddr="10.0.0.5", siaddr="169.254.0.1", chaddr=MAC_BYTES)
        / DHCP(
            options=[
                ("message-type", "offer"),
                ("server_id", "169.254.0.1"),
                ("lease_time", 86400),
                ("renewal_time", 43200),
                ("rebinding_time", 75600),
                ("subnet_mask", "255.255.255.255"),
                ("router", "169.254.0.1"),
                ("name_server", "1.1.1.1", "8.8.8.8"),
                ("interface-mtu", 1400),
                ("NTP_server", "192.0.2.1"),
                ("client_id", b"\1abc"),
                "end",
                "pad",
            ]
        )
    )
    dhcp = parse_dhcp_response(frame)
    assert dhcp.message_type is DhcpMessageType.OFFER
    assert dhcp.xid == 0xDEADBEEF
    assert dhcp.your_ip == dhcp.dst_ip == IP5
    assert dhcp.server_ip == dhcp.router == dhcp.next_server_ip == dhcp.src_ip == GATEWAY_IP
    assert dhcp.subnet_mask == b"\xff" * 4
    assert dhcp.dns_servers == [b"\1\1\1\1", b"\x08\x08\x08\x08"]
    assert (dhcp.lease_time, dhcp.t1, dhcp.t2, dhcp.mtu) == (86400, 43200, 75600, 1400)
    assert dhcp.ntp_servers == [bytes([192, 0, 2, 1])]
    assert dhcp.client_id == b"\1abc"
    assert dhcp.client_mac == dhcp.eth_dst == MAC_BYTES
    assert dhcp.option_order[:2] == (53, 54)
    assert dhcp.eth_src == GATEWAY_MAC


def test_absent_options() -> None:
    dhcp = parse_dhcp_response(server_frame([(53, b"\6")]))
    assert dhcp.message_type is DhcpMessageType.NAK
    assert dhcp.server_ip == bytes(4)
    assert (dhcp.subnet_mask, dhcp.router, dhcp.lease_time, dhcp.mtu) == (None, None, None, None)
    assert (dhcp.dns_servers, dhcp.routes, dhcp.client_id) == ([], [], None)


def test_routes_of_option_121() -> None:
    routes = bytes.fromhex("20a9fe00010000000000a9fe0001120a40000a000001")
    dhcp = parse_dhcp_response(server_frame([(53, b"\5"), (121, routes)]))
    assert dhcp.routes == [
        DhcpRoute(GATEWAY_IP, 32, bytes(4)),
        DhcpRoute(bytes(4), 0, GATEWAY_IP),
        DhcpRoute(bytes([10, 64, 0, 0]), 18, bytes([10, 0, 0, 1])),
    ]


def test_split_options_are_joined() -> None:
    dhcp = parse_dhcp_response(server_frame([(53, b"\5"), (6, IP5), (6, GATEWAY_IP)]))
    assert dhcp.dns_servers == [IP5, GATEWAY_IP]


def test_unknown_message_type() -> None:
    kind = parse_dhcp_response(server_frame([(53, b"\x63")])).message_type
    assert (kind.name, kind.value) == ("UNKNOWN", 99)


@pytest.mark.parametrize(
    "frame",
    [
        dhcp_discover(MAC, 1),
        server_frame([]),
        server_frame([(53, b"\5\5")]),
        server_frame([(53, b"\5")], op=1),
        server_frame([(53, b"\5"), (51, b"\0")]),
        server_frame([(53, b"\5"), (6, b"\1\1\1")]),
        server_frame([(53, b"\5"), (121, b"\x21\0\0\0\0\0\0\0\0\0")]),
        udp_frame(GATEWAY_MAC, MAC, GATEWAY_IP, IP5, 67, 68, bytes(239)),
        udp_frame(
            GATEWAY_MAC,
            MAC,
            GATEWAY_IP,
            IP5,
            67,
            68,
            dhcp_message(MAC, 1, [(53, b"\5")], op=2)[:-1],
        ),
        udp_frame(
            GATEWAY_MAC,
            MAC,
            GATEWAY_IP,
            IP5,
            67,
            68,
            dhcp_message(MAC, 1, [(53, b"\5")], op=2)[:-2],
        ),
    ],
    ids=[
        "of a client",
        "no type",
        "long type",
        "op",
        "short number",
        "cut address",
        "route",
        "short",
        "no end",
        "cut option",
    ],
)
def test_no_dhcp_response(frame: bytes) -> None:
    assert not is_dhcp_response(frame)


def test_udp_checksum_must_be_there() -> None:
    message = dhcp_message(MAC, 1, [(53, b"\5")], op=2)
    datagram = packets.udp_datagram(GATEWAY_IP, IP5, 67, 68, message, checksum=False)
    packet = ipv4_packet(GATEWAY_IP, IP5, 17, datagram)
    with pytest.raises(ValueError, match="UDP checksum"):
        parse_dhcp_response(ethernet_frame(MAC, GATEWAY_MAC, 0x0800, packet))


def test_dhcp_frame_to_anyone() -> None:
    frame = dhcp_frame(MAC, b"x", dst_ip="192.0.2.7", dst_mac=GATEWAY_MAC)
    assert Ether(frame)[IP].dst == str(IPv4Address("192.0.2.7"))


PARSERS = [
    parse_arp_reply,
    parse_dhcp_response,
    parse_icmp_echo_reply,
    parse_icmp_echo_request,
]


@pytest.mark.parametrize("parse", PARSERS)
@given(
    data=st.binary(max_size=400),
    cut=st.integers(0, 400),
    frame=st.sampled_from([server_frame([(53, b"\2"), (121, b"\0\1\2\3\4")]), b""]),
)
def test_parsers_raise_nothing_but_value_error(
    parse: packets.Parser, data: bytes, cut: int, frame: bytes
) -> None:
    with contextlib.suppress(ValueError):
        parse(frame[:cut] + data)
