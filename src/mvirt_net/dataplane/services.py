"""Which services answer the guest of a NIC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from ..model import (
    DEFAULT_DNS_SERVERS,
    MIN_IPV6_MTU,
    DropReason,
    MacAddress,
    Netmask,
    NetworkSpec,
    NicSpec,
    PuntKind,
)
from .arp import ArpResponder
from .dhcpv4 import Dhcpv4Server
from .dhcpv6 import Dhcpv6Server
from .icmp import IcmpResponder
from .icmpv6 import Icmpv6Responder
from .ndp import NdpResponder
from .packet import Service

UNSERVED: Mapping[PuntKind, DropReason | None] = {
    PuntKind.ARP: DropReason.ARP_IGNORED,
    PuntKind.DHCPV4: DropReason.DHCP_IGNORED,
    PuntKind.ICMPV4: DropReason.ICMP_IGNORED,
    PuntKind.NDP: DropReason.NDP_IGNORED,
    PuntKind.ICMPV6: DropReason.ICMP_IGNORED,
    PuntKind.DHCPV6: DropReason.DHCPV6_IGNORED,
    PuntKind.ICMP_ERROR: None,
}
"""How a frame is counted for which a NIC has no service; None: it has been counted before."""


def services_for(
    nic: NicSpec,
    network: NetworkSpec,
    mtu: int,
    on_lease: Callable[[], object] = lambda: None,
) -> Mapping[PuntKind, Service]:
    """The services of a NIC: those of each family in which it has an address.

    Args:
        nic: with its MAC address filled in.
        network: the one that it is in.
        mtu: what the NIC carries, in bytes; at most the network's.
        on_lease: called when its guest was given addresses, or may keep them.
    """
    if nic.mac_address is None:
        return {}
    services: dict[PuntKind, Service] = {}
    if nic.ipv4_address is not None:
        services |= _ipv4_services(nic.mac_address, nic.ipv4_address, network, mtu, on_lease)
    if nic.ipv6_address is not None:
        services |= _ipv6_services(nic.mac_address, nic.ipv6_address, nic, network, mtu, on_lease)
    return services


def _ipv4_services(
    mac: MacAddress,
    address: IPv4Address,
    network: NetworkSpec,
    mtu: int,
    on_lease: Callable[[], object],
) -> Mapping[PuntKind, Service]:
    subnet = network.ipv4_subnet if network.ipv4_netmask is Netmask.SUBNET else None
    return {
        PuntKind.ARP: ArpResponder(mac, address, subnet),
        PuntKind.DHCPV4: Dhcpv4Server(
            mac,
            address,
            mtu=mtu,
            netmask=(subnet or IPv4Network(address)).netmask,
            dns_servers=network.dns_servers,
            ntp_servers=network.ntp_servers,
            on_lease=on_lease,
        ),
        PuntKind.ICMPV4: IcmpResponder(mac),
    }


def _ipv6_services(
    mac: MacAddress,
    address: IPv6Address,
    nic: NicSpec,
    network: NetworkSpec,
    mtu: int,
    on_lease: Callable[[], object],
) -> Mapping[PuntKind, Service]:
    dns_servers = network.dns_servers or DEFAULT_DNS_SERVERS
    return {
        # A guest that was told less cannot use it for IPv6, and would ignore such an advertisement.
        PuntKind.NDP: NdpResponder(mac, mtu=max(mtu, MIN_IPV6_MTU), dns_servers=dns_servers),
        PuntKind.ICMPV6: Icmpv6Responder(mac),
        PuntKind.DHCPV6: Dhcpv6Server(
            mac,
            address,
            prefixes=nic.routed_ipv6_prefixes,
            dns_servers=dns_servers,
            ntp_servers=network.ntp_servers,
            on_lease=on_lease,
        ),
    }
