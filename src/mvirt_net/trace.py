"""Where would this packet go, and why: a dry run of the core itself.

**Theory of operation.** The networks and NICs of a configuration are made as the daemon makes them,
routes, services and all, but no socket: in place of each guest that takes part there is one of
paper, which has memory, two rings and nothing behind them. The packet is put into the sender's TX
ring, the core drains it, the services answer, and what lies in the RX rings then is what happened.
So nothing here decides about packets, and what is said of one is what the daemon does.

What differs from a run of the daemon: guests of paper are up, take the whole MTU of their network,
and have agreed to no offloads.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import attrs

from .dataplane import services_for
from .dataplane.packet import DONT_FRAGMENT, internet_checksum
from .dataplane.slowpath import SlowPath
from .errors import NotFoundError
from .ffi import GuestMemory, Network, NextStep, Port, Punt
from .log import get_logger
from .model import (
    GATEWAY_IPV4,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    RX_QUEUE,
    TX_QUEUE,
    DaemonConfig,
    DropReason,
    IcmpError,
    MacAddress,
    MemoryRegion,
    NetworkSpec,
    NicSpec,
    PuntKind,
    VringAddr,
)

Address = IPv4Address | IPv6Address

_VERSION_1 = 1 << 32
_HEADER = 12
"""Bytes of virtio_net_hdr."""
_TYPE_AT = 12
_IPV4, _IPV6 = 0x0800, 0x86DD


@attrs.frozen
class Match:
    """The prefix that decides about an address, and whose it is; no NIC: it is a subnet's own, or
    there is no prefix.
    """

    address: Address
    prefix: str | None
    nic: str | None


@attrs.frozen
class Delivery:
    """A frame that a guest would receive."""

    nic: str
    frame: bytes


@attrs.frozen
class Trace:
    """What becomes of a frame."""

    nic: str
    network: str
    frame: bytes
    source: Match | None
    """None: no IP packet."""
    target: Match | None
    drops: Mapping[str, DropReason]
    """Why it was dropped, by the NIC that counts it."""
    service: PuntKind | None
    """Which service it was for."""
    error: IcmpError | None
    """What its sender would be told by ICMP."""
    deliveries: tuple[Delivery, ...]
    """What guests would receive, the sender's own among them."""


class _PaperGuest:
    """Memory and two rings (virtio 1.2, 2.7), of which each entry is used once."""

    _ENTRIES = 64
    _BUFFER = 1 << 17
    """Room for the longest frame."""
    _RING = 1 << 14
    """Room for the parts of a ring, which begin at multiples of a page."""

    def __init__(self, port: Port, stack: ExitStack) -> None:
        self._port = port
        self._buffers = 2 * self._RING
        size = self._buffers + 2 * self._ENTRIES * self._BUFFER
        fd = os.memfd_create("paper", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        self._memory = stack.enter_context(closing(mmap.mmap(fd, size)))
        fault_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        stack.callback(os.close, fault_fd)
        with closing(GuestMemory.empty(fault_fd)) as empty:
            table = stack.enter_context(closing(empty.with_region(MemoryRegion(0, size, 0, 0), fd)))
        port.set_features(_VERSION_1)
        port.set_memory(table)
        stack.callback(port.set_memory, None)
        for queue in (RX_QUEUE, TX_QUEUE):
            ring = queue * self._RING
            addr = VringAddr(desc=ring, avail=ring + 4096, used=ring + 8192)
            port.start_ring(queue, self._ENTRIES, addr, 0)
            stack.callback(port.stop_ring, queue)
            port.enable_ring(queue, True)
        for entry in range(self._ENTRIES):
            self._offer(RX_QUEUE, entry, self._BUFFER, device_writes=True)

    def send(self, frame: bytes) -> None:
        """Put a frame into the TX ring; once."""
        at = self._buffer(TX_QUEUE, 0)
        self._memory[at : at + _HEADER + len(frame)] = bytes(_HEADER) + frame
        self._offer(TX_QUEUE, 0, _HEADER + len(frame), device_writes=False)

    def received(self) -> Iterator[bytes]:
        """The frames in the RX ring."""
        used = RX_QUEUE * self._RING + 8192
        [count] = struct.unpack_from("<H", self._memory, used + 2)
        for place in range(count):
            entry, length = struct.unpack_from("<II", self._memory, used + 4 + 8 * place)
            at = self._buffer(RX_QUEUE, entry)
            yield self._memory[at + _HEADER : at + length]

    def _buffer(self, queue: int, entry: int) -> int:
        return self._buffers + (queue * self._ENTRIES + entry) * self._BUFFER

    def _offer(self, queue: int, entry: int, length: int, *, device_writes: bool) -> None:
        ring, flags = queue * self._RING, 2 if device_writes else 0
        descriptor = (self._buffer(queue, entry), length, flags, 0)
        struct.pack_into("<QIHH", self._memory, ring + 16 * entry, *descriptor)
        struct.pack_into("<H", self._memory, ring + 4096 + 4 + 2 * entry, entry)
        struct.pack_into("<H", self._memory, ring + 4096 + 2, entry + 1)


def trace(config: DaemonConfig, nic: str, frame: bytes) -> Trace:
    """What would become of a frame that a guest sends.

    Args:
        config: as `registry.plan` returns it.
        nic: the name of the sender's NIC.
        frame: the whole Ethernet frame, without FCS.

    Raises:
        NotFoundError: there is no NIC of that name.
        CoreError, OSError: out of memory or descriptors.
    """
    sender = nic_named(config, nic)
    [network] = [spec for spec in config.networks if spec.name == sender.network]
    with ExitStack() as stack:
        world = _World(network, config, stack)
        return world.trace(sender, frame)


def nic_named(config: DaemonConfig, name: str) -> NicSpec:
    """Raises NotFoundError."""
    for spec in config.nics:
        if spec.name == name:
            return spec
    raise NotFoundError(f"there is no NIC {name!r}")


class _World:
    """A network and its ports; what it opens, `stack` closes."""

    def __init__(self, spec: NetworkSpec, config: DaemonConfig, stack: ExitStack) -> None:
        self._spec = spec
        self._stack = stack
        self._network = stack.enter_context(closing(Network(spec.mtu, spec.subnets)))
        self._ports: dict[str, Port] = {}
        for nic in config.nics:
            if nic.network == spec.name and nic.mac_address is not None:
                port = stack.enter_context(closing(Port(self._network, nic.mac_address)))
                port.set_routes(nic.routes)
                self._ports[nic.name] = port

    def trace(self, sender: NicSpec, frame: bytes) -> Trace:
        addresses = addresses_in(frame)
        source, target = (self._match(address) for address in addresses or (None, None))
        names = {sender.name} | ({target.nic} if target and target.nic else set())
        guests = {name: _PaperGuest(self._ports[name], self._stack) for name in sorted(names)}
        guests[sender.name].send(frame)
        punts = self._drain(self._ports[sender.name])
        service, error = _kinds(punts)
        self._answer(sender, punts)
        for name in names:
            while self._ports[name].flush() is NextStep.CALL_AGAIN:
                pass
        return Trace(
            nic=sender.name,
            network=self._spec.name,
            frame=frame,
            source=source,
            target=target,
            drops={
                name: reason for name in sorted(names) for reason in self._ports[name].stats().drops
            },
            service=service,
            error=error,
            deliveries=tuple(
                Delivery(name, received)
                for name, guest in guests.items()
                for received in guest.received()
            ),
        )

    def _match(self, address: Address | None) -> Match | None:
        if address is None:
            return None
        hop, length = self._network.match(address)
        if hop is None:
            return Match(address, None, None)
        prefix = str(ip_network((address, length), strict=False))
        owners = (name for name, port in self._ports.items() if port is hop)
        return Match(address, prefix, next(owners, None))

    def _drain(self, port: Port) -> list[Punt]:
        punts: list[Punt] = []
        while True:
            drained = port.drain()
            punts += drained.punts
            if drained.next is not NextStep.CALL_AGAIN:
                return punts

    def _answer(self, sender: NicSpec, punts: list[Punt]) -> None:
        assert sender.mac_address is not None
        port = self._ports[sender.name]
        services = services_for(sender, self._spec, self._spec.mtu)
        slow_path = SlowPath(sender.mac_address, services, port.enqueue, get_logger(__name__))
        for punt in punts:
            if (reason := slow_path.answer(punt)) is not None:
                port.count_drop(reason)


def _kinds(punts: list[Punt]) -> tuple[PuntKind | None, IcmpError | None]:
    """For which service the frame was, and what its sender hears."""
    for punt in punts:
        if punt.kind is PuntKind.ICMP_ERROR:
            return None, punt.error
        return punt.kind, None
    return None, None


def addresses_in(frame: bytes) -> tuple[Address, Address] | None:
    """Source and target of an IP packet; None: it is none, or has no whole header."""
    kind, packet = int.from_bytes(frame[_TYPE_AT : _TYPE_AT + 2], "big"), frame[_TYPE_AT + 2 :]
    if kind == _IPV4 and len(packet) >= 20:
        return ip_address(packet[12:16]), ip_address(packet[16:20])
    if kind == _IPV6 and len(packet) >= 40:
        return ip_address(packet[8:24]), ip_address(packet[24:40])
    return None


# The frame that is asked about, and what is said of it.

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
_ECHO_REQUEST = {4: 8, 6: 128}


def build_frame(
    source_mac: bytes,
    source: Address,
    target: Address,
    *,
    protocol: str,
    source_port: int,
    target_port: int,
    ttl: int,
    size: int,
) -> bytes:
    """A whole frame to the gateway's MAC address.

    Args:
        protocol: of `PROTOCOLS`; ``icmp`` is an echo request, of either family.
        size: bytes of payload.
    """
    if source.version != target.version:
        raise ValueError(f"{source} and {target} are of different families")
    if target.version == 6 and protocol == "icmp":
        protocol = "icmpv6"
    number = PROTOCOLS[protocol]
    segment = _transport(protocol, target.version, source_port, target_port, size)
    sum_at = {"icmp": 2, "icmpv6": 2, "tcp": 16, "udp": 6}[protocol]
    pseudo = b"" if protocol == "icmp" else _pseudo_header(source, target, len(segment), number)
    checksum = internet_checksum(pseudo + segment) or 0xFFFF
    segment = segment[:sum_at] + checksum.to_bytes(2, "big") + segment[sum_at + 2 :]
    kind = _IPV4 if target.version == 4 else _IPV6
    ethernet = GATEWAY_MAC.packed + source_mac + kind.to_bytes(2, "big")
    return ethernet + _ip_header(source, target, len(segment), number, ttl) + segment


def _transport(protocol: str, version: int, source_port: int, target_port: int, size: int) -> bytes:
    if protocol == "udp":
        return struct.pack("!HHHH", source_port, target_port, 8 + size, 0) + bytes(size)
    if protocol == "tcp":
        syn = struct.pack("!HHIIBBHHH", source_port, target_port, 0, 0, 0x50, 0x02, 65535, 0, 0)
        return syn + bytes(size)
    return struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, 1, 1) + bytes(size)


def _pseudo_header(source: Address, target: Address, length: int, protocol: int) -> bytes:
    return source.packed + target.packed + struct.pack("!II", length, protocol)


def _ip_header(source: Address, target: Address, length: int, protocol: int, ttl: int) -> bytes:
    if target.version == 6:
        fixed = struct.pack("!IHBB", 6 << 28, length, protocol, ttl)
        return fixed + source.packed + target.packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, DONT_FRAGMENT, ttl, protocol, 0)
    head += source.packed + target.packed
    return head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:]


WHY: Mapping[DropReason, str] = {
    DropReason.RING_DISABLED: "sent while the frontend had the TX ring disabled",
    DropReason.TX_BUFFER_INVALID: "a TX buffer outside guest memory, or write-only",
    DropReason.TX_TOO_SHORT: "no whole virtio_net_hdr and Ethernet header",
    DropReason.TX_TOO_LONG: "longer than any frame may be",
    DropReason.OFFLOAD_NOT_NEGOTIATED: "it asks for an offload that was not negotiated",
    DropReason.SOURCE_MAC: "the source MAC address is not the NIC's",
    DropReason.DESTINATION_MAC: "to a MAC address that is not the gateway's",
    DropReason.ETHERTYPE: "not ARP, IPv4 or IPv6",
    DropReason.MULTICAST: "to a group, or to all, and no service answers it",
    DropReason.IP_MALFORMED: "an IP header that contradicts itself or the frame",
    DropReason.NO_ROUTE: "no route to its target",
    DropReason.FRAGMENT: "a fragment for the gateway",
    DropReason.RX_RING_DOWN: "for a guest that is not up: sent by the gateway, or left waiting",
    DropReason.RX_BACKLOG_FULL: "the target's guest takes too little, and much waits already",
    DropReason.RX_BUFFER_TOO_SMALL: "larger than the RX buffers that the target's guest gives",
    DropReason.RX_BUFFER_INVALID: "an RX buffer outside guest memory, or read-only",
    DropReason.ARP_MALFORMED: "no proper ARP",
    DropReason.ARP_IGNORED: "ARP that asks nothing of the gateway",
    DropReason.DHCP_MALFORMED: "no proper DHCP",
    DropReason.DHCP_IGNORED: "DHCP that is not to be answered, or none is served on this NIC",
    DropReason.ICMP_MALFORMED: "no proper ICMP",
    DropReason.ICMP_IGNORED: "ICMP to the gateway that is no echo request",
    DropReason.PUNT_LIMIT: "for a service, which this guest asks too often",
    DropReason.OFFLOAD_INVALID: "its virtio_net_hdr contradicts it",
    DropReason.SOURCE_ADDRESS: "the source address is not the NIC's, nor routed to it",
    DropReason.TTL_EXCEEDED: "its TTL or hop limit is used up",
    DropReason.HOST_UNREACHABLE: (
        "no NIC has its target, or that guest is not up, or it would go back where it came from"
    ),
    DropReason.ADMIN_PROHIBITED: "its target is never routed, as link-local ones are not",
    DropReason.TOO_BIG: "larger than the MTU, and not to be fragmented",
    DropReason.IP_OPTION: "source route, record route or timestamp, or a routing header",
    DropReason.NOT_SERVED: "to a protocol or port of the gateway where nothing listens",
    DropReason.NDP_MALFORMED: "no proper neighbour discovery",
    DropReason.NDP_IGNORED: "neighbour discovery that asks nothing of the gateway",
    DropReason.DHCPV6_MALFORMED: "no proper DHCPv6",
    DropReason.DHCPV6_IGNORED: "DHCPv6 that is not to be answered, or none is served on this NIC",
    DropReason.NO_MEMORY: "the daemon has no memory left",
}
"""What each reason for a drop means, in a line."""


def describe(frame: bytes) -> str:
    """A frame in one line."""
    to_mac, from_mac = MacAddress(frame[:6]), MacAddress(frame[6:12])
    kind = int.from_bytes(frame[12:14], "big")
    text = f"{from_mac} > {to_mac}, "
    addresses = addresses_in(frame)
    if addresses is None:
        return text + f"{_TYPES.get(kind, f'type {kind:#06x}')}, {len(frame)} bytes"
    packet = frame[14:]
    version = addresses[0].version
    ttl, protocol = (packet[8], packet[9]) if version == 4 else (packet[7], packet[6])
    names = {number: name for name, number in PROTOCOLS.items()}
    hops = "TTL" if version == 4 else "hop limit"
    return (
        f"{text}{addresses[0]} > {addresses[1]}, {names.get(protocol, f'protocol {protocol}')},"
        f" {hops} {ttl}, {len(frame)} bytes"
    )


_TYPES = {0x0806: "ARP", _IPV4: "IPv4", _IPV6: "IPv6"}


def explain(result: Trace) -> Iterator[str]:
    """What there is to say, a line for each step."""
    yield f"from {result.nic} in network {result.network}: {describe(result.frame)}"
    if result.source is not None:
        yield f"source {_owner(result.source)}"
    if result.target is not None:
        yield f"target {_owner(result.target)}"
    if result.service is not None:
        yield f"for a service of the gateway: {result.service.name.lower()}"
    for nic, reason in result.drops.items():
        yield f"dropped, counted at {nic}: {reason.name.lower()}: {WHY[reason]}"
    if result.error is not None:
        yield f"its sender is told by ICMP: {result.error.name.lower()}"
    for delivery in result.deliveries:
        yield f"{delivery.nic} receives {describe(delivery.frame)}"
    if not result.deliveries:
        yield "nobody receives anything"


def _owner(match: Match) -> str:
    if match.address in (GATEWAY_IPV4, GATEWAY_IPV6):
        return f"{match.address}: the gateway"
    if match.prefix is None:
        return f"{match.address}: no prefix has it"
    if match.nic is None:
        return f"{match.address}: in {match.prefix} of the network, but no NIC has it"
    return f"{match.address}: by {match.prefix} that of {match.nic}"


def as_dict(result: Trace) -> dict[str, object]:
    """The same for programs."""

    def match(found: Match | None) -> dict[str, str | None] | None:
        if found is None:
            return None
        return {"address": str(found.address), "prefix": found.prefix, "nic": found.nic}

    return {
        "nic": result.nic,
        "network": result.network,
        "frame": result.frame.hex(),
        "source": match(result.source),
        "target": match(result.target),
        "service": None if result.service is None else result.service.name.lower(),
        "drops": {nic: reason.name.lower() for nic, reason in result.drops.items()},
        "icmp_error": None if result.error is None else result.error.name.lower(),
        "received": [
            {"nic": delivery.nic, "frame": delivery.frame.hex()} for delivery in result.deliveries
        ],
    }
