"""Which services a NIC gets, and that they were told the right things."""

from __future__ import annotations

from typing import Any

import pytest

from mvirt_net.dataplane import services_for
from mvirt_net.model import DropReason, NetworkSpec, NicSpec, PuntKind
from tests.harness.packets import (
    GATEWAY_IP,
    arp_request,
    dhcp_discover,
    ip_bytes,
    is_arp_reply,
    parse_dhcp_response,
    parse_router_advertisement,
    router_solicitation,
)

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
NIC = NicSpec(name="vm1", network="blue", mac_address=MAC, ipv4_address=IP)


def ask(kind: PuntKind, frame: bytes, **network: Any) -> bytes | DropReason | None:
    spec = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", **network)
    return services_for(NIC, spec, spec.mtu)[kind].handle(frame)


def offer(**network: Any) -> Any:
    reply = ask(PuntKind.DHCPV4, dhcp_discover(MAC, 1), **network)
    assert isinstance(reply, bytes)
    return parse_dhcp_response(reply)


def test_none_without_an_address() -> None:
    nic = NicSpec(name="vm1", network="blue", mac_address=MAC)
    assert not services_for(nic, NetworkSpec(name="blue"), 1500)


IPV4 = {PuntKind.ARP, PuntKind.DHCPV4, PuntKind.ICMPV4}
IPV6 = {PuntKind.NDP, PuntKind.DHCPV6, PuntKind.ICMPV6}


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ({"ipv4_address": IP}, IPV4),
        ({"ipv6_address": "fd00::5"}, IPV6),
        ({"ipv4_address": IP, "ipv6_address": "fd00::5"}, IPV4 | IPV6),
    ],
)
def test_those_of_each_family(addresses: dict[str, str], expected: set[PuntKind]) -> None:
    network = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", ipv6_prefix="fd00::/64")
    nic = NicSpec(name="vm1", network="blue", mac_address=MAC, **addresses)
    assert set(services_for(nic, network, network.mtu)) == expected


def test_arp_for_the_gateway_alone() -> None:
    reply = ask(PuntKind.ARP, arp_request(MAC, IP, GATEWAY_IP))
    assert isinstance(reply, bytes)
    assert is_arp_reply(reply)
    assert ask(PuntKind.ARP, arp_request(MAC, IP, "10.0.0.9")) is DropReason.ARP_IGNORED


def test_dhcp_defaults() -> None:
    response = offer()
    assert response.your_ip == ip_bytes(IP)
    assert response.subnet_mask == ip_bytes("255.255.255.255")
    assert response.dns_servers == [ip_bytes("1.1.1.1"), ip_bytes("8.8.8.8")]
    assert response.mtu == 1500


def test_dhcp_of_the_network() -> None:
    response = offer(mtu=1400, dns_servers=["10.9.9.9", "fd00::53"], ntp_servers=["10.8.8.8"])
    assert response.mtu == 1400
    assert response.dns_servers == [ip_bytes("10.9.9.9")]
    assert response.ntp_servers == [ip_bytes("10.8.8.8")]


def test_subnet_mode() -> None:
    reply = ask(PuntKind.ARP, arp_request(MAC, IP, "10.0.0.9"), ipv4_netmask="subnet")
    assert isinstance(reply, bytes)
    assert offer(ipv4_netmask="subnet").subnet_mask == ip_bytes("255.255.255.0")


@pytest.mark.parametrize(("mtu", "advertised"), [(68, 1280), (1280, 1280), (9000, 9000)])
def test_least_mtu_of_ipv6(mtu: int, advertised: int) -> None:
    """A frontend may have told its guest less than any IPv6 link carries (RFC 8200, 5)."""
    network = NetworkSpec(name="blue", ipv6_prefix="fd00::/64", mtu=9000)
    nic = NicSpec(name="vm1", network="blue", mac_address=MAC, ipv6_address="fd00::5")
    reply = services_for(nic, network, mtu)[PuntKind.NDP].handle(
        router_solicitation(MAC, "fe80::5054:ff:fe12:3456")
    )
    assert isinstance(reply, bytes)
    assert parse_router_advertisement(reply).mtu == advertised
