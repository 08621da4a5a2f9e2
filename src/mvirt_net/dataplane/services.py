"""Which services answer the guest of a NIC."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network

from ..model import DropReason, Netmask, NetworkSpec, NicSpec, PuntKind
from .arp import ArpResponder
from .dhcpv4 import Dhcpv4Server
from .icmp import IcmpResponder
from .packet import Service

UNSERVED: Mapping[PuntKind, DropReason] = {
    PuntKind.ARP: DropReason.ARP_IGNORED,
    PuntKind.DHCPV4: DropReason.DHCP_IGNORED,
    PuntKind.ICMPV4: DropReason.ICMP_IGNORED,
}
"""How a frame is counted for which a NIC has no service."""


def services_for(nic: NicSpec, network: NetworkSpec, mtu: int) -> Mapping[PuntKind, Service]:
    """The services of a NIC; none at all when it has no IPv4 address.

    Args:
        nic: with its MAC address filled in.
        network: the one that it is in.
        mtu: what the NIC carries, in bytes; at most the network's.
    """
    if nic.ipv4_address is None or nic.mac_address is None:
        return {}
    subnet = network.ipv4_subnet if network.ipv4_netmask is Netmask.SUBNET else None
    return {
        PuntKind.ARP: ArpResponder(nic.mac_address, nic.ipv4_address, subnet),
        PuntKind.DHCPV4: Dhcpv4Server(
            nic.mac_address,
            nic.ipv4_address,
            mtu=mtu,
            netmask=(subnet or IPv4Network(nic.ipv4_address)).netmask,
            dns_servers=network.dns_servers,
            ntp_servers=network.ntp_servers,
        ),
        PuntKind.ICMPV4: IcmpResponder(nic.mac_address),
    }
