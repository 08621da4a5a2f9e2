"""ICMPv6 echo: the guest can ping the gateway by its link-local address (RFC 4443, 4)."""

from __future__ import annotations

from ..model import GATEWAY_IPV6, GATEWAY_MAC, DropReason, MacAddress
from .packet import Malformed
from .packet6 import UNSPECIFIED, Ipv6Packet, build_icmpv6, icmpv6_message, parse_ipv6

_ECHO_REQUEST = 128
_ECHO_REPLY = 129
_ECHO_HEADER_SIZE = 8


class Icmpv6Responder:
    """Answers the guest's echo requests to fe80::1, from whichever address they come.

    The reply has the identifier, sequence number and data of the request. All other messages are
    ignored; neighbour discovery is `ndp.NdpResponder`'s.

    Args:
        mac: the NIC's MAC address.
    """

    __slots__ = ("_mac",)

    def __init__(self, mac: MacAddress) -> None:
        self._mac = mac.packed

    def handle(self, frame: bytes) -> bytes | DropReason:
        """Answer one frame; see `Service`."""
        try:
            packet = parse_ipv6(frame, self._mac)
            message = icmpv6_message(packet)
        except Malformed:
            return DropReason.ICMP_MALFORMED
        if not _is_for_gateway(packet) or message[0] != _ECHO_REQUEST:
            return DropReason.ICMP_IGNORED
        if len(message) < _ECHO_HEADER_SIZE or message[1] != 0 or packet.source == UNSPECIFIED:
            return DropReason.ICMP_MALFORMED
        return build_icmpv6(self._mac, packet.source, _ECHO_REPLY, 0, message[4:])


def _is_for_gateway(packet: Ipv6Packet) -> bool:
    """Whether it was sent to the gateway and to nobody else, by either address."""
    return (
        packet.destination == GATEWAY_IPV6.packed and packet.destination_mac == GATEWAY_MAC.packed
    )
