"""Coverage-guided fuzzing of what Python parses: ``python -m fuzz.parsers [libFuzzer options]``.

The first byte of an input says who reads the rest: a service of the gateway gets it as a frame, as
the slow path would hand it over; the vhost-user session gets it as a sequence of messages, with
descriptors that are only numbers. A service must answer or say why not, and what it answers must
satisfy the harness's parsers; the session must let nothing out but `ConnectionBroken`, reply once
at most and lose no descriptor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import atheris

with atheris.instrument_imports(include=["mvirt_net", "dpkt"]):
    from mvirt_net.dataplane import services_for
    from mvirt_net.dataplane.icmp_errors import IcmpErrorBuilder
    from mvirt_net.dataplane.packet import Malformed
    from mvirt_net.errors import ConnectionBroken
    from mvirt_net.model import (
        DropReason,
        IcmpError,
        MacAddress,
        NetworkSpec,
        NicSpec,
        PuntKind,
    )

from tests.harness.packets import (
    GATEWAY_MAC,
    is_neighbor_advertisement,
    parse_arp_reply,
    parse_dhcp_response,
    parse_dhcpv6_response,
    parse_icmp_echo_reply,
    parse_icmp_error,
    parse_icmpv6_echo_reply,
    parse_icmpv6_error,
    parse_neighbor_advertisement,
    parse_router_advertisement,
)
from tests.unit.vhost_user_peer import fresh, payload_of, running

from .inputs import IPV4, IPV6, MAC, SESSION, Message, decode_messages, punt_kind

NETWORK = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", ipv6_prefix="fd00::/64")
NIC = NicSpec(name="vm1", network="blue", mac_address=MAC, ipv4_address=IPV4, ipv6_address=IPV6)
SERVICES = services_for(NIC, NETWORK, NETWORK.mtu)
ERRORS = IcmpErrorBuilder(MacAddress.parse(MAC))


def parse_ndp(frame: bytes) -> object:
    if is_neighbor_advertisement(frame):
        return parse_neighbor_advertisement(frame)
    return parse_router_advertisement(frame)


PARSERS: Mapping[PuntKind, Callable[[bytes], object]] = {
    PuntKind.ARP: parse_arp_reply,
    PuntKind.DHCPV4: parse_dhcp_response,
    PuntKind.ICMPV4: parse_icmp_echo_reply,
    PuntKind.NDP: parse_ndp,
    PuntKind.ICMPV6: parse_icmpv6_echo_reply,
    PuntKind.DHCPV6: parse_dhcpv6_response,
}
"""They raise ValueError for any length or checksum that is wrong."""


def ask(kind: PuntKind, frame: bytes) -> None:
    """Let the service of this kind have the frame."""
    answer = SERVICES[kind].handle(frame)
    if isinstance(answer, bytes):
        assert answer[6:12] == GATEWAY_MAC
        PARSERS[kind](answer)
    else:
        assert answer is None or isinstance(answer, DropReason)


def complain(frame: bytes) -> None:
    """Tell the sender of the frame why it was dropped, whyever that was."""
    for error in IcmpError:
        try:
            message = ERRORS.build(frame, error, 1280)
        except Malformed:
            return
        if frame[12:14] == b"\x08\x00":
            parse_icmp_error(message)
        else:
            parse_icmpv6_error(message)


def converse(conversation: list[Message]) -> None:
    """Say all of it to a session that has just begun, and to one whose vrings run."""
    for frontend in (fresh(), running()):
        for request, payload, fds, flags in conversation:
            try:
                outcome = frontend.exchange(request, payload, fds, flags)
            except ConnectionBroken:
                break
            if outcome.reply is not None:
                payload_of(outcome.reply, request)


def one_input(data: bytes) -> None:
    """What atheris calls."""
    if not data:
        return
    first, rest = data[0], data[1:]
    if first == SESSION:
        converse(list(decode_messages(rest)))
    elif (kind := punt_kind(first)) is PuntKind.ICMP_ERROR:
        complain(rest)
    else:
        ask(kind, rest)


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
