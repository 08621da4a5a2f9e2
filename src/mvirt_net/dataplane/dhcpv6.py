"""DHCPv6: the guest gets the address of its NIC, and the prefixes that are routed to it.

Stateless in what matters: the address is the configuration's, so there is no pool and no lease
database, and a guest that changes its DUID, declines its address or lets it expire gets the same
one again. One identity association for addresses (IA_NA) of a message gets it, one for prefixes
(IA_PD) gets the NIC's routed prefixes, and each further one hears that there is nothing left.

RFC 8415 as far as RFC 9915 keeps it: there is no unicast and no IA_TA.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from ..model import GATEWAY_MAC, DropReason, MacAddress
from .dhcpv6_messages import (
    ClientMessage,
    IdentityAssociation,
    MessageType,
    Option,
    Status,
    association,
    ia_address,
    ia_prefix,
    option,
    status,
)
from .packet import Malformed
from .packet6 import build_udp6, is_link_local, parse_ipv6, parse_udp6

SERVER_PORT = 547
CLIENT_PORT = 546
ALL_AGENTS = bytes.fromhex("ff02" + "00" * 11 + "010002")
"""ff02::1:2, All_DHCP_Relay_Agents_and_Servers (RFC 8415, 7.1)."""

PREFERRED_SECONDS = 86400
VALID_SECONDS = 172800
T1_SECONDS = PREFERRED_SECONDS // 2
T2_SECONDS = PREFERRED_SECONDS * 4 // 5
"""RFC 8415, 21.4 recommends half and four fifths of the preferred lifetime."""
REFRESH_SECONDS = 86400
"""After which a client without an address asks again (RFC 8415, 21.23)."""

MAX_MESSAGE = 1232
"""Bytes of a reply in the packet of 1,280 bytes that every link carries."""
MAX_DELEGATED = 12
MAX_REVOKED = 3
"""Prefixes that a reply delegates, and leases that it takes away in each identity association: with
these all identity associations that a message can have are answered in `MAX_MESSAGE`."""

SERVER_DUID = struct.pack("!HH", 3, 1) + GATEWAY_MAC.packed
"""DUID-LL of the gateway (RFC 8415, 11.4): the same on each NIC and on each host, so a guest that
moves keeps its server."""

_HIGHEST_PREFERENCE = b"\xff"
"""The client need not wait for other servers (RFC 8415, 18.2.1)."""
_NTP_SERVER_ADDRESS = 1
"""Suboption of option 56 (RFC 5908, 4.1)."""

_NEEDS_SERVER = frozenset(
    {MessageType.REQUEST, MessageType.RENEW, MessageType.RELEASE, MessageType.DECLINE}
)
_FORBIDS_SERVER = frozenset({MessageType.SOLICIT, MessageType.CONFIRM, MessageType.REBIND})
_EXTENDING = frozenset({MessageType.RENEW, MessageType.REBIND})


class Dhcpv6Server:
    """The DHCPv6 server of one NIC; see the module's description.

    Args:
        mac: the NIC's MAC address.
        ipv6: the address to give.
        prefixes: what is routed to the NIC, for delegation.
        dns_servers: IPv4 ones are left out.
        ntp_servers: IPv4 ones are left out.
        on_lease: called with each reply that gives or extends leases.
    """

    __slots__ = ("_dns", "_ipv6", "_mac", "_ntp", "_on_lease", "_prefixes")

    def __init__(
        self,
        mac: MacAddress,
        ipv6: IPv6Address,
        *,
        prefixes: Sequence[IPv6Network] = (),
        dns_servers: Iterable[IPv4Address | IPv6Address] = (),
        ntp_servers: Iterable[IPv4Address | IPv6Address] = (),
        on_lease: Callable[[], object] = lambda: None,
    ) -> None:
        self._mac = mac.packed
        self._on_lease = on_lease
        self._ipv6 = ipv6
        self._prefixes = tuple(prefixes[:MAX_DELEGATED])
        self._dns = [server.packed for server in dns_servers if server.version == 6]
        self._ntp = [server.packed for server in ntp_servers if server.version == 6]

    def handle(self, frame: bytes) -> bytes | DropReason:
        """Answer one frame; see `Service`."""
        try:
            packet = parse_ipv6(frame, self._mac)
            datagram = parse_udp6(packet)
            # Servers ignore what was sent to one of them alone (RFC 9915), and relays.
            if packet.destination != ALL_AGENTS or datagram.destination_port != SERVER_PORT:
                return DropReason.DHCPV6_IGNORED
            if not is_link_local(packet.source):
                raise Malformed("a client speaks from its link-local address")
            message = ClientMessage.parse(datagram.payload)
        except Malformed:
            return DropReason.DHCPV6_MALFORMED
        answer = _ANSWERS.get(message.kind)
        if answer is None or not _is_for_us(message):
            return DropReason.DHCPV6_IGNORED
        reply = answer(self, message)
        if reply is None:
            return DropReason.DHCPV6_IGNORED
        return build_udp6(
            self._mac,
            packet.source,
            reply,
            source_port=SERVER_PORT,
            destination_port=CLIENT_PORT,
        )

    # One method for each message (RFC 8415, 18.3). None: no answer.

    def _on_solicit(self, message: ClientMessage) -> bytes:
        bindings = self._bindings(message)
        if message.rapid_commit:
            self._on_lease()
            committed = [option(Option.RAPID_COMMIT, b""), *bindings]
            return self._reply(message, committed)
        preference = option(Option.PREFERENCE, _HIGHEST_PREFERENCE)
        return self._reply(message, [preference, *bindings], MessageType.ADVERTISE)

    def _on_request(self, message: ClientMessage) -> bytes:
        self._on_lease()
        return self._reply(message, self._bindings(message))

    def _on_confirm(self, message: ClientMessage) -> bytes | None:
        """Only whether the addresses are right for this link (18.3.3)."""
        addresses = [address for ia in message.associations for address in ia.addresses]
        if not addresses:
            return None
        if all(address == self._ipv6 for address in addresses):
            verdict = status(Status.SUCCESS, "the address of this NIC")
        else:
            verdict = status(Status.NOT_ON_LINK, "not the address of this NIC")
        return self._reply(message, [verdict])

    def _on_release_or_decline(self, message: ClientMessage) -> bytes:
        """It stays the NIC's; what never was is named (18.3.7 and 18.3.8)."""
        foreign = [
            association(ia.kind, ia.iaid, 0, 0, [status(Status.NO_BINDING, "not of this NIC")])
            for ia in message.associations
            if {*ia.addresses, *ia.prefixes} - {self._ipv6, *self._prefixes}
        ]
        return self._reply(message, [status(Status.SUCCESS, "noted"), *foreign])

    def _on_information_request(self, message: ClientMessage) -> bytes | None:
        """Who has addresses of its own must not ask for any (16.12)."""
        if message.associations:
            return None
        refresh = option(Option.INFORMATION_REFRESH_TIME, struct.pack("!I", REFRESH_SECONDS))
        return self._reply(message, [refresh])

    # What they are made of.

    def _bindings(self, message: ClientMessage) -> list[bytes]:
        """An answer to each identity association."""
        served = [self._served(message, kind) for kind in (Option.IA_NA, Option.IA_PD)]
        answers = []
        for ia in message.associations:
            if not any(ia is one for one in served):
                answers.append(_nothing_left(message, ia))
            elif ia.kind is Option.IA_NA:
                answers.append(self._addresses_for(message, ia))
            else:
                answers.append(self._prefixes_for(message, ia))
        return answers

    def _served(self, message: ClientMessage, kind: Option) -> IdentityAssociation | None:
        """The one of its kind that has what is the NIC's already, or else the first."""
        own = {self._ipv6, *self._prefixes}
        candidates = [ia for ia in message.associations if ia.kind is kind]
        having = [ia for ia in candidates if own & {*ia.addresses, *ia.prefixes}]
        return next(iter(having or candidates), None)

    def _addresses_for(self, message: ClientMessage, ia: IdentityAssociation) -> bytes:
        if message.kind == MessageType.REQUEST and set(ia.addresses) - {self._ipv6}:
            # Whatever it was offered, it was not by this server (18.3.2).
            verdict = status(Status.NOT_ON_LINK, "not the address of this NIC")
            return association(ia.kind, ia.iaid, 0, 0, [verdict])
        given = [ia_address(self._ipv6, PREFERRED_SECONDS, VALID_SECONDS)]
        if message.kind in _EXTENDING:
            # What the client has and should not: lifetimes of 0 take it away (18.3.4).
            others = sorted(set(ia.addresses) - {self._ipv6})
            given += [ia_address(address, 0, 0) for address in others[:MAX_REVOKED]]
        return association(ia.kind, ia.iaid, T1_SECONDS, T2_SECONDS, given)

    def _prefixes_for(self, message: ClientMessage, ia: IdentityAssociation) -> bytes:
        given = [ia_prefix(net, PREFERRED_SECONDS, VALID_SECONDS) for net in self._prefixes]
        if message.kind in _EXTENDING:
            others = sorted(set(ia.prefixes) - set(self._prefixes))
            given += [ia_prefix(net, 0, 0) for net in others[:MAX_REVOKED]]
        if not given:
            return _nothing_left(message, ia)
        t1, t2 = (T1_SECONDS, T2_SECONDS) if self._prefixes else (0, 0)
        return association(ia.kind, ia.iaid, t1, t2, given)

    def _settings(self, message: ClientMessage) -> Iterator[tuple[Option, list[bytes]]]:
        """What does not depend on an address, whether it was asked for or not: options of lists."""
        yield Option.DNS_SERVERS, self._dns
        suboption = struct.pack("!HH", _NTP_SERVER_ADDRESS, 16)
        yield Option.NTP_SERVER, [suboption + server for server in self._ntp]
        # The older form, for those who ask for it (RFC 4075).
        if Option.SNTP_SERVERS in message.requested:
            yield Option.SNTP_SERVERS, self._ntp

    def _reply(
        self,
        message: ClientMessage,
        options: Sequence[bytes],
        kind: MessageType = MessageType.REPLY,
    ) -> bytes:
        """The message: these options, and then as much of the settings as fits."""
        reply = bytes((kind,)) + message.transaction + option(Option.SERVER_ID, SERVER_DUID)
        if message.client_id is not None:
            reply += option(Option.CLIENT_ID, message.client_id)
        reply += b"".join(options)
        for code, values in self._settings(message):
            room = MAX_MESSAGE - len(reply) - len(option(code, b""))
            fitting = [
                value for number, value in enumerate(values, 1) if number * len(value) <= room
            ]
            if fitting:
                reply += option(code, b"".join(fitting))
        return reply


def _is_for_us(message: ClientMessage) -> bool:
    """Whether the identifiers are those that the message must have (RFC 8415, 16)."""
    if message.client_id is None and message.kind != MessageType.INFORMATION_REQUEST:
        return False
    if message.server_id is None:
        return message.kind not in _NEEDS_SERVER
    return message.kind not in _FORBIDS_SERVER and message.server_id == SERVER_DUID


def _nothing_left(message: ClientMessage, ia: IdentityAssociation) -> bytes:
    """There is one address and one set of prefixes (RFC 8415, 18.3.2 and 18.3.4)."""
    if message.kind in _EXTENDING:
        verdict = status(Status.NO_BINDING, "one identity association for each NIC")
    elif ia.kind is Option.IA_NA:
        verdict = status(Status.NO_ADDRESSES_AVAILABLE, "one address for each NIC")
    else:
        verdict = status(Status.NO_PREFIX_AVAILABLE, "no prefix is routed to this NIC")
    return association(ia.kind, ia.iaid, 0, 0, [verdict])


_ANSWERS: Mapping[int, Callable[[Dhcpv6Server, ClientMessage], bytes | None]] = {
    MessageType.SOLICIT: Dhcpv6Server._on_solicit,
    MessageType.REQUEST: Dhcpv6Server._on_request,
    MessageType.RENEW: Dhcpv6Server._on_request,
    MessageType.REBIND: Dhcpv6Server._on_request,
    MessageType.CONFIRM: Dhcpv6Server._on_confirm,
    MessageType.RELEASE: Dhcpv6Server._on_release_or_decline,
    MessageType.DECLINE: Dhcpv6Server._on_release_or_decline,
    MessageType.INFORMATION_REQUEST: Dhcpv6Server._on_information_request,
}
