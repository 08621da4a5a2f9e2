"""ARP: the guest asks for the gateway's MAC address and gets it, and learns of nothing else.

The switch knows each NIC's MAC address from its configuration, so nothing that a guest says of
itself is remembered, and no reply of a guest is needed.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

from ..model import GATEWAY_IPV4, GATEWAY_MAC, DropReason, MacAddress
from .packet import BROADCAST_MAC, ETHERTYPE_ARP, ETHERTYPE_IPV4

_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
"""Ethernet header and an ARP packet for Ethernet and IPv4 (RFC 826)."""
_HARDWARE_ETHERNET = 1
_REQUEST = 1
_REPLY = 2
_KIND = (ETHERTYPE_ARP, _HARDWARE_ETHERNET, ETHERTYPE_IPV4, 6, 4)

_GATEWAY_MAC = GATEWAY_MAC.packed
_GATEWAY_IPV4 = GATEWAY_IPV4.packed
_ASKED_BY = (BROADCAST_MAC, _GATEWAY_MAC)


class ArpResponder:
    """Answers ARP for the gateway, and in subnet mode for everybody else in the subnet.

    A request is answered whatever its sender address, a probe (sender 0.0.0.0, RFC 5227) and a
    unicast one (Linux's neighbour unreachability detection) too. The guest's own address is never
    answered for: that would make its duplicate address detection fail.

    In subnet mode the guest holds the whole subnet to be on its link, so it asks for its
    neighbours itself, and the gateway stands in for them (RFC 1027). Whether such a neighbour
    exists is for the router to know. The subnet's network and broadcast addresses are nobody's
    and remain unanswered; a subnet of one or two addresses has neither (RFC 3021).

    Args:
        mac: the NIC's MAC address.
        ipv4: the NIC's own address.
        subnet: given in subnet mode only.
    """

    __slots__ = ("_first", "_last", "_mac", "_own")

    def __init__(
        self, mac: MacAddress, ipv4: IPv4Address, subnet: IPv4Network | None = None
    ) -> None:
        self._mac = mac.packed
        self._own = ipv4.packed
        self._first, self._last = _stood_in_for(subnet)

    def handle(self, frame: bytes) -> bytes | DropReason:
        """Answer one frame; see `Service`. Bytes after the ARP packet are padding."""
        if len(frame) < _FRAME.size:
            return DropReason.ARP_MALFORMED
        to_mac, from_mac, *kind, op, sender_mac, sender, _, target = _FRAME.unpack_from(frame)
        if tuple(kind) != _KIND or not from_mac == sender_mac == self._mac:
            return DropReason.ARP_MALFORMED
        if op != _REQUEST:
            return DropReason.ARP_IGNORED if op == _REPLY else DropReason.ARP_MALFORMED
        if to_mac not in _ASKED_BY or not self._is_answered(target):
            return DropReason.ARP_IGNORED
        return _FRAME.pack(
            *(self._mac, _GATEWAY_MAC),
            *_KIND,
            *(_REPLY, _GATEWAY_MAC, target, self._mac, sender),
        )

    def _is_answered(self, target: bytes) -> bool:
        # Addresses in wire order compare like numbers.
        return target != self._own and (
            target == _GATEWAY_IPV4 or self._first <= target <= self._last
        )


def _stood_in_for(subnet: IPv4Network | None) -> tuple[bytes, bytes]:
    """First and last address that the gateway stands in for; first > last when there is none."""
    if subnet is None:
        return b"\xff\xff\xff\xff", b"\0\0\0\0"
    first, last = subnet.network_address, subnet.broadcast_address
    if subnet.prefixlen < 31:
        first, last = first + 1, last - 1
    return first.packed, last.packed
