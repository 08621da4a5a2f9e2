"""The bytes under the services; the P rows are those of the list of hostile inputs."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Any

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption, IPOption_LSRR, IPOption_NOP, IPOption_SSRR
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum

from mvirt_net.dataplane.packet import (
    BootpMessage,
    Cursor,
    Ipv4Packet,
    Malformed,
    build_udp,
    internet_checksum,
    parse_ipv4,
    parse_udp,
)

from .fuzzing import fuzz, mutated

MAC = bytes.fromhex("525400123456")
GATEWAY_MAC = bytes.fromhex("020000000001")
GUEST = "10.0.0.5"
GATEWAY = "169.254.0.1"


def ipv4_frame(payload: bytes = b"payload", **fields: Any) -> bytes:
    """A good frame from guest to gateway, but for `fields`; the checksum fits unless given."""
    header = IP(**{"src": GUEST, "dst": GATEWAY, "proto": 17, **fields})
    return bytes(Ether(src=MAC, dst=GATEWAY_MAC) / header / Raw(payload))


def patched(frame: bytes, offset: int, new: bytes) -> bytes:
    """`frame` with `new` at `offset` and an IPv4 header checksum that fits again."""
    changed = bytearray(frame)
    changed[offset : offset + len(new)] = new
    size = (changed[14] & 0xF) * 4
    changed[24:26] = b"\0\0"
    changed[24:26] = scapy_checksum(bytes(changed[14 : 14 + size])).to_bytes(2, "big")
    return bytes(changed)


class TestCursor:
    def test_reads_forward_in_network_order(self) -> None:
        cursor = Cursor(bytes.fromhex("01 0203 04050607 08"))
        assert (cursor.get_uint8(), cursor.get_uint16()) == (1, 0x0203)
        assert cursor.get_uint32() == 0x04050607
        assert cursor.remaining() == 1
        assert cursor.get_bytes(1) == b"\x08"
        cursor.finish()

    @pytest.mark.parametrize("read", [Cursor.get_uint8, Cursor.get_uint16, Cursor.get_uint32])
    def test_never_reads_past_the_end(self, read: object) -> None:
        assert callable(read)
        with pytest.raises(Malformed):
            read(Cursor(b""))

    def test_a_failed_read_takes_nothing(self) -> None:
        cursor = Cursor(b"abc")
        with pytest.raises(Malformed, match="4 bytes wanted, 3 left"):
            cursor.get_bytes(4)
        assert cursor.get_bytes(3) == b"abc"

    def test_finish_complains_of_what_is_left(self) -> None:
        with pytest.raises(Malformed, match="1 bytes too many"):
            Cursor(b"a").finish()


class TestInternetChecksum:
    def test_example_of_rfc_1071(self) -> None:
        # RFC 1071, 3: these words sum up to ddf2.
        assert internet_checksum(bytes.fromhex("0001 f203 f4f5 f6f7")) == 0xFFFF - 0xDDF2

    @pytest.mark.parametrize(
        ("data", "checksum"),
        [
            ("", 0xFFFF),
            ("0000", 0xFFFF),
            ("ffff", 0),
            ("ffffffff", 0),
            ("0001fffe", 0),
            ("01", 0xFEFF),
        ],
    )
    def test_both_zeros_of_ones_complement(self, data: str, checksum: int) -> None:
        assert internet_checksum(bytes.fromhex(data)) == checksum

    @fuzz
    @given(st.binary(max_size=80))
    def test_agrees_with_scapy(self, data: bytes) -> None:
        assert internet_checksum(data) == scapy_checksum(data)


class TestParseIpv4:
    def test_good_packet(self) -> None:
        packet = parse_ipv4(ipv4_frame(tos=0xB8), MAC)
        assert packet == Ipv4Packet(
            destination_mac=GATEWAY_MAC,
            tos=0xB8,
            protocol=17,
            source=IPv4Address(GUEST).packed,
            destination=IPv4Address(GATEWAY).packed,
            payload=b"payload",
        )

    def test_padding_is_no_payload(self) -> None:
        assert parse_ipv4(ipv4_frame() + bytes(32), MAC).payload == b"payload"

    def test_empty_payload(self) -> None:
        assert parse_ipv4(ipv4_frame(b""), MAC).payload == b""

    @pytest.mark.parametrize("ttl", [1, 255])
    def test_ttl_1_may_end_here(self, ttl: int) -> None:
        parse_ipv4(ipv4_frame(ttl=ttl), MAC)

    def test_source_0_is_left_to_the_service(self) -> None:
        assert parse_ipv4(ipv4_frame(src="0.0.0.0"), MAC).source == bytes(4)

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param([IPOption_NOP(), IPOption_NOP()], id="no-operations"),
            pytest.param([IPOption(b"\x07\x07\x04\0\0\0\0")], id="record-route"),
            pytest.param([IPOption(b"\x44\x08\x05\x00\0\0\0\0")], id="timestamp"),
            pytest.param([IPOption(b"\x94\x04\0\0")], id="router-alert"),
        ],
    )
    def test_well_formed_options_are_skipped(self, options: list[object]) -> None:
        assert parse_ipv4(ipv4_frame(options=options), MAC).payload == b"payload"

    def test_nothing_counts_after_the_end_of_options(self) -> None:
        frame = patched(ipv4_frame(options=[IPOption_NOP()] * 4), 34, b"\x00\x83\x83\x83")
        assert parse_ipv4(frame, MAC).payload == b"payload"

    P8 = (
        ("version", patched(ipv4_frame(), 14, b"\x65")),
        ("ihl-4", patched(ipv4_frame(), 14, b"\x44")),
        ("ihl-0", patched(ipv4_frame(), 14, b"\x40")),
        ("ihl-beyond-length", patched(ipv4_frame(), 14, b"\x47")),
        ("ihl-beyond-frame", ipv4_frame(b"")[:14] + b"\x4f" + ipv4_frame(b"")[15:]),
        ("length-beyond-frame", patched(ipv4_frame(), 16, b"\x00\x1c")),
        ("length-65535", patched(ipv4_frame(), 16, b"\xff\xff")),
        ("length-below-header", patched(ipv4_frame(), 16, b"\x00\x13")),
        ("length-0", patched(ipv4_frame(), 16, b"\x00\x00")),
        ("checksum", ipv4_frame(chksum=0x1234)),
        ("checksum-0", ipv4_frame(chksum=0)),
        ("ttl-0", ipv4_frame(ttl=0)),
        ("first-fragment", ipv4_frame(flags="MF")),
        ("later-fragment", ipv4_frame(frag=1)),
        ("last-offset", ipv4_frame(frag=0x1FFF)),
        ("loose-source-route", ipv4_frame(options=[IPOption_LSRR(routers=["10.0.0.9"])])),
        ("strict-source-route", ipv4_frame(options=[IPOption_SSRR(routers=["10.0.0.9"])])),
        ("option-length-0", patched(ipv4_frame(options=[IPOption_NOP()] * 4), 34, b"\x07\x00")),
        ("option-length-1", patched(ipv4_frame(options=[IPOption_NOP()] * 4), 34, b"\x07\x01")),
        ("option-past-end", patched(ipv4_frame(options=[IPOption_NOP()] * 4), 34, b"\x07\x05")),
        ("option-cut-off", patched(ipv4_frame(options=[IPOption_NOP()] * 4), 37, b"\x07")),
        ("source-multicast", ipv4_frame(src="224.0.0.1")),
        ("source-broadcast", ipv4_frame(src="255.255.255.255")),
        ("source-loopback", ipv4_frame(src="127.0.0.1")),
        ("source-gateway", ipv4_frame(src=GATEWAY)),
        ("source-mac", ipv4_frame()[:11] + b"\x57" + ipv4_frame()[12:]),
        ("ethertype", ipv4_frame()[:12] + b"\x86\xdd" + ipv4_frame()[14:]),
        ("vlan", ipv4_frame()[:12] + b"\x81\x00\x00\x01" + ipv4_frame()[12:]),
        ("cut-in-header", ipv4_frame()[:33]),
        ("no-header", ipv4_frame()[:14]),
        ("empty", b""),
    )

    @pytest.mark.parametrize(
        "frame", [frame for _, frame in P8], ids=[f"P8-{row}" for row, _ in P8]
    )
    def test_p8_bad_packet(self, frame: bytes) -> None:
        with pytest.raises(Malformed):
            parse_ipv4(frame, MAC)

    @fuzz
    @given(mutated([ipv4_frame(), ipv4_frame(options=[IPOption_NOP()] * 8)]) | st.binary())
    def test_only_malformed_gets_out(self, frame: bytes) -> None:
        try:
            packet = parse_ipv4(frame, MAC)
        except Malformed:
            return
        assert packet.payload in frame


def udp_packet(datagram: bytes) -> Ipv4Packet:
    return parse_ipv4(ipv4_frame(datagram), MAC)


def datagram(**fields: Any) -> bytes:
    """UDP with a checksum for GUEST → GATEWAY, but for `fields`."""
    udp = UDP(**{"sport": 68, "dport": 67, **fields})
    return bytes(IP(bytes(IP(src=GUEST, dst=GATEWAY) / udp / Raw(b"payload")))[UDP])


class TestParseUdp:
    def test_good_datagram(self) -> None:
        udp = parse_udp(udp_packet(datagram()))
        assert (udp.source_port, udp.destination_port, udp.payload) == (68, 67, b"payload")

    def test_p10_checksum_0_means_none(self) -> None:
        assert parse_udp(udp_packet(datagram(chksum=0))).payload == b"payload"

    def test_what_follows_the_datagram_is_no_payload(self) -> None:
        assert parse_udp(udp_packet(datagram() + b"more")).payload == b"payload"

    P10 = (
        ("length-7", datagram(len=7)),
        ("length-0", datagram(len=0)),
        ("length-beyond-packet", datagram(len=16)),
        ("length-65535", datagram(len=65535)),
        ("checksum", datagram(chksum=0x1234)),
        ("checksum-ffff", datagram(chksum=0xFFFF)),
        ("header-cut-off", datagram()[:7]),
        ("empty", b""),
    )

    @pytest.mark.parametrize(
        "data", [data for _, data in P10], ids=[f"P10-{row}" for row, _ in P10]
    )
    def test_p10_bad_datagram(self, data: bytes) -> None:
        with pytest.raises(Malformed):
            parse_udp(udp_packet(data))


class TestBuildUdp:
    def build(self, payload: bytes) -> bytes:
        return build_udp(MAC, IPv4Address(GUEST), payload, source_port=67, destination_port=68)

    def test_every_byte_is_what_scapy_builds(self) -> None:
        expected = (
            Ether(dst=MAC, src=GATEWAY_MAC)
            / IP(src=GATEWAY, dst=GUEST, id=0, flags="DF", ttl=64)
            / UDP(sport=67, dport=68)
            / Raw(b"odd")
        )
        assert self.build(b"odd") == bytes(expected)

    def test_computed_checksum_0_is_sent_as_ffff(self) -> None:
        missing = Ether(self.build(bytes(2)))[UDP].chksum
        frame = self.build(missing.to_bytes(2, "big"))
        assert frame[40:42] == b"\xff\xff"
        assert UDP(frame[34:]).payload.load == missing.to_bytes(2, "big")


def bootp_bytes() -> bytes:
    """RFC 2131, figure 1, field by field."""
    return (
        struct.pack("!BBBBIHH", 1, 1, 6, 3, 0x12345678, 9, 0x8000)
        + bytes([10, 0, 0, 1, 10, 0, 0, 2, 10, 0, 0, 3, 10, 0, 0, 4])
        + MAC.ljust(16, b"\0")
        + b"server".ljust(64, b"\0")
        + b"file".ljust(128, b"\0")
        + bytes([99, 130, 83, 99])
        + b"\x35\x01\x01\xff"
    )


class TestBootpMessage:
    def test_parse_finds_every_field(self) -> None:
        message = BootpMessage.parse(bootp_bytes())
        assert message == BootpMessage(
            op=1,
            htype=1,
            hlen=6,
            xid=0x12345678,
            flags=0x8000,
            ciaddr=IPv4Address("10.0.0.1"),
            yiaddr=IPv4Address("10.0.0.2"),
            siaddr=IPv4Address("10.0.0.3"),
            giaddr=IPv4Address("10.0.0.4"),
            chaddr=MAC,
            sname=b"server".ljust(64, b"\0"),
            file=b"file".ljust(128, b"\0"),
            options=b"\x35\x01\x01\xff",
        )

    def test_bytes_puts_them_back_with_hops_and_secs_0(self) -> None:
        expected = bytearray(bootp_bytes())
        expected[3] = 0
        expected[8:10] = b"\0\0"
        assert bytes(BootpMessage.parse(bootp_bytes())) == bytes(expected)

    @pytest.mark.parametrize("size", [0, 1, 28, 236, 239])
    def test_p11_short_fixed_part(self, size: int) -> None:
        with pytest.raises(Malformed):
            BootpMessage.parse(bootp_bytes()[:size])

    def test_p11_no_cookie(self) -> None:
        with pytest.raises(Malformed, match="cookie"):
            BootpMessage.parse(bootp_bytes()[:236] + bytes(64))

    @pytest.mark.parametrize("hlen", [0, 16, 255])
    def test_hlen_never_reaches_past_chaddr(self, hlen: int) -> None:
        data = bytearray(bootp_bytes())
        data[2] = hlen
        assert len(BootpMessage.parse(bytes(data)).chaddr) == min(hlen, 16)

    @pytest.mark.parametrize("error", [IndexError, AttributeError, TypeError, dpkt.NeedData])
    def test_whatever_dpkt_throws_is_malformed(
        self, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        def unpack(_self: object, _data: bytes) -> None:
            raise error("hostile")

        monkeypatch.setattr(dpkt.dhcp.DHCP, "unpack", unpack)
        with pytest.raises(Malformed, match="hostile"):
            BootpMessage.parse(bootp_bytes())
