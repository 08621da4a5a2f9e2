"""Which transmitted frames reach a service, and the reason that each other one is dropped for."""

from __future__ import annotations

import struct

import pytest

from mvirt_net.model import GATEWAY_MAC, PuntKind
from tests.harness.packets import internet_checksum

from .rig import MAC, open_rig

BROADCAST = b"\xff" * 6
GATEWAY = bytes([169, 254, 0, 1])
OWN = bytes([10, 0, 0, 5])
TO_ALL = bytes([255] * 4)
NONE = bytes(4)


def ethernet(
    payload: bytes,
    ethertype: int = 0x0800,
    to: bytes = GATEWAY_MAC.packed,
    source: bytes = MAC.packed,
) -> bytes:
    return to + source + ethertype.to_bytes(2, "big") + payload


def ipv4(
    payload: bytes,
    *,
    protocol: int = 1,
    source: bytes = OWN,
    target: bytes = GATEWAY,
    fragment: int = 0,
    options: bytes = b"",
    version: int = 4,
    header_words: int | None = None,
    total: int | None = None,
    checksum: int | None = None,
) -> bytes:
    words = 5 + len(options) // 4 if header_words is None else header_words
    length = 20 + len(options) + len(payload) if total is None else total
    fields = [version << 4 | words, 0, length, 1, fragment, 64, protocol]
    header = struct.pack("!BBHHHBBH4s4s", *fields, 0, source, target) + options
    value = internet_checksum(header) if checksum is None else checksum
    return header[:10] + value.to_bytes(2, "big") + header[12:] + payload


ECHO = b"\x08\x00\xf7\xff" + bytes(4)
DHCP = struct.pack("!HHHH", 68, 67, 8, 0)
DNS = struct.pack("!HHHH", 5353, 53, 8, 0)


def fate(frame: bytes) -> str:
    """The name of the service or of the drop reason."""
    with open_rig() as rig:
        rig.start()
        rig.send(frame)
        punts = [punt for punt in rig.drain() if punt.kind is not PuntKind.ICMP_ERROR]
        if punts:
            # What Ethernet padded is left out.
            assert frame.startswith(punts[0].frame)
            return punts[0].kind.name
        (reason,) = rig.drops()
        return reason


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(ethernet(bytes(28), 0x0806, BROADCAST), "ARP", id="arp-broadcast"),
        pytest.param(ethernet(bytes(28), 0x0806), "ARP", id="arp-probe-of-the-neighbour"),
        pytest.param(ethernet(b"", 0x0806), "ARP", id="arp-empty-is-the-responder's-to-judge"),
        pytest.param(ethernet(ipv4(ECHO)), "ICMPV4", id="ping"),
        pytest.param(ethernet(ipv4(ECHO) + bytes(18)), "ICMPV4", id="ping-padded"),
        pytest.param(ethernet(ipv4(ECHO, options=bytes(40))), "ICMPV4", id="ping-with-options"),
        pytest.param(ethernet(ipv4(DHCP, protocol=17)), "DHCPV4", id="dhcp-renew"),
        pytest.param(
            ethernet(ipv4(DHCP, protocol=17, source=NONE, target=TO_ALL), to=BROADCAST),
            "DHCPV4",
            id="dhcp-discover",
        ),
        pytest.param(
            ethernet(ipv4(DHCP, protocol=17, options=bytes(40))), "DHCPV4", id="dhcp-with-options"
        ),
    ],
)
def test_frames_that_reach_a_service(frame: bytes, expected: str) -> None:
    assert fate(frame) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(ethernet(ipv4(ECHO), source=BROADCAST), "SOURCE_MAC", id="p07-broadcast"),
        pytest.param(ethernet(ipv4(ECHO), source=bytes(6)), "SOURCE_MAC", id="p07-other"),
        pytest.param(ethernet(ipv4(ECHO), to=MAC.packed), "DESTINATION_MAC", id="to-another"),
        pytest.param(ethernet(bytes(46), 0x8100), "ETHERTYPE", id="p07-vlan"),
        pytest.param(ethernet(bytes(46), 0x05DC), "ETHERTYPE", id="p07-802.3"),
        pytest.param(ethernet(bytes(28), 0x0806, b"\x01" + bytes(5)), "MULTICAST", id="arp-group"),
        pytest.param(
            ethernet(bytes(40), 0x86DD, b"\x33\x33" + bytes(4)), "IP_MALFORMED", id="ipv6-group"
        ),
        pytest.param(ethernet(bytes(40), 0x86DD), "IP_MALFORMED", id="ipv6-empty"),
        pytest.param(ethernet(ipv4(ECHO, version=5)), "IP_MALFORMED", id="p08-version"),
        pytest.param(ethernet(ipv4(ECHO, header_words=4)), "IP_MALFORMED", id="p08-ihl-4"),
        pytest.param(ethernet(ipv4(b"", header_words=15)), "IP_MALFORMED", id="p08-ihl-15"),
        pytest.param(ethernet(ipv4(ECHO, total=100)), "IP_MALFORMED", id="p08-total-long"),
        pytest.param(ethernet(ipv4(ECHO, total=19)), "IP_MALFORMED", id="p08-total-short"),
        pytest.param(ethernet(ipv4(ECHO, checksum=1)), "IP_MALFORMED", id="p08-checksum"),
        pytest.param(ethernet(ipv4(ECHO)[:19]), "IP_MALFORMED", id="p08-cut"),
        pytest.param(
            ethernet(ipv4(ECHO, source=bytes([224, 0, 0, 1]))),
            "IP_MALFORMED",
            id="p08-source-group",
        ),
        pytest.param(
            ethernet(ipv4(ECHO, source=bytes([127, 0, 0, 1]))), "IP_MALFORMED", id="p08-source-loop"
        ),
        pytest.param(
            ethernet(ipv4(ECHO, source=TO_ALL)), "IP_MALFORMED", id="p08-source-broadcast"
        ),
        pytest.param(ethernet(ipv4(ECHO, fragment=0x2000)), "FRAGMENT", id="first-fragment"),
        pytest.param(
            ethernet(ipv4(DHCP, protocol=17, fragment=5)), "FRAGMENT", id="later-fragment"
        ),
        pytest.param(ethernet(ipv4(DNS, protocol=17)), "NOT_SERVED", id="dns-to-the-gateway"),
        pytest.param(ethernet(ipv4(DHCP[:4], protocol=17)), "NOT_SERVED", id="udp-cut"),
        pytest.param(ethernet(ipv4(ECHO, target=bytes([8, 8, 8, 8]))), "NO_ROUTE", id="elsewhere"),
        pytest.param(
            ethernet(ipv4(ECHO, target=TO_ALL), to=BROADCAST), "MULTICAST", id="ping-to-all"
        ),
        pytest.param(
            ethernet(
                ipv4(DNS, protocol=17, target=bytes([224, 0, 0, 251])), to=b"\x01\0\x5e\0\0\xfb"
            ),
            "MULTICAST",
            id="mdns",
        ),
        pytest.param(
            ethernet(ipv4(ECHO, target=bytes([10, 0, 0, 6])), to=BROADCAST),
            "MULTICAST",
            id="unicast-in-a-broadcast-frame",
        ),
    ],
)
def test_frames_that_are_dropped(frame: bytes, expected: str) -> None:
    assert fate(frame) == expected
