"""What it costs to route a packet from one NIC to another, in the C core alone."""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Network

import attrs

from mvirt_net.ffi import Network, NextStep, Port
from mvirt_net.model import MacAddress
from tests.harness.memory import Region
from tests.harness.packets import GATEWAY_MAC, ethernet_frame, ipv4_packet
from tests.harness.virtio import VIRTIO_NET_HDR_SIZE, VirtioNetHdr
from tests.unit.rig import EVENT_IDX, MRG_RXBUF, RING_PACKED, VERSION_1, Rig, open_rig

from .ceiling import Ceiling, compiled
from .figures import Row, Scale, Table, ratio, spread, take_turns
from .guest import Ring, ring_on
from .processes import BenchError

CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4 = 1 << 0, 1 << 1, 1 << 7, 1 << 11

SOURCE, TARGET = "10.0.0.1", "10.0.0.2"
SOURCE_MAC = MacAddress.parse("52:54:00:00:00:01")
TARGET_MAC = MacAddress.parse("52:54:00:00:00:02")

RING_SIZE = 1024
BURST = 256
"""Packets that are there at once, as from a guest that is busy."""

GSO_FRAME = 14 + 65000
GSO_SIZE = 1448
GSO = VirtioNetHdr(
    flags=1, gso_type=1, hdr_len=54, gso_size=GSO_SIZE, csum_start=34, csum_offset=16
)
PARTIAL = VirtioNetHdr(flags=1, csum_start=34, csum_offset=16)


@attrs.frozen(kw_only=True)
class Case:
    """What two guests have agreed to with their devices, and what one sends to the other.

    Args:
        size: of the frame, in bytes.
        burst: packets that are there at once.
        rx_size: bytes of a receive buffer.
        rx_each: receive buffers that a packet takes.
    """

    size: int
    header: VirtioNetHdr | None = None
    sender: int = 0
    receiver: int = 0
    burst: int = BURST
    rx_size: int = 2048
    rx_each: int = 1

    def frame(self) -> bytes:
        if self.header is None:
            return ethernet_frame(
                GATEWAY_MAC,
                SOURCE_MAC.packed,
                0x0800,
                ipv4_packet(SOURCE, TARGET, 17, bytes(self.size - 34)),
            )
        tcp = bytes([0, 1, 0, 2]) + bytes(8) + bytes([0x50, 0x10]) + bytes(6)
        packet = ipv4_packet(SOURCE, TARGET, 6, tcp + bytes(self.size - 54))
        return ethernet_frame(GATEWAY_MAC, SOURCE_MAC.packed, 0x0800, packet)


CASES: Mapping[str, Case] = {
    "64 B": Case(size=64),
    "512 B": Case(size=512),
    "1514 B": Case(size=1514),
    "64 B, packed rings": Case(size=64, sender=RING_PACKED, receiver=RING_PACKED),
    "1514 B, packed rings": Case(size=1514, sender=RING_PACKED, receiver=RING_PACKED),
    "64 B, checksum left to the receiver": Case(
        size=64, header=PARTIAL, sender=CSUM, receiver=GUEST_CSUM
    ),
    "1514 B, checksum left to the receiver": Case(
        size=1514, header=PARTIAL, sender=CSUM, receiver=GUEST_CSUM
    ),
    "64 KiB TSO": Case(
        size=GSO_FRAME,
        header=GSO,
        sender=CSUM | HOST_TSO4,
        receiver=GUEST_CSUM | GUEST_TSO4,
        burst=32,
        rx_size=68 << 10,
    ),
    "64 KiB TSO, mergeable 2 KiB buffers": Case(
        size=GSO_FRAME,
        header=GSO,
        sender=CSUM | HOST_TSO4,
        receiver=GUEST_CSUM | GUEST_TSO4 | MRG_RXBUF,
        burst=16,
        rx_each=32,
    ),
    "64 KiB TSO, segmented and checksummed": Case(
        size=GSO_FRAME, header=GSO, sender=CSUM | HOST_TSO4, burst=16, rx_each=45
    ),
    "1514 B, checksummed": Case(size=1514, header=PARTIAL, sender=CSUM),
}
PEERS: Mapping[str, str] = {
    "64 B, packed rings": "64 B",
    "1514 B, packed rings": "1514 B",
    "64 KiB TSO, mergeable 2 KiB buffers": "64 KiB TSO",
    "64 KiB TSO, segmented and checksummed": "64 KiB TSO",
}
"""Whose peer a case is compared with if not its own: it copies each packet as it is, on split
rings."""

COLUMNS = ("Mpackets/s", "Gbit/s", "ns a packet", "peer's ns", "share of peer's rate", "± %")
NOTES = (
    "One core, processor time, from a full TX ring to a full RX ring; no daemon.",
    "Peer: a router in C on the same rings that looks nothing up and checks nothing.",
)

SCALE_COLUMNS = ("ns a packet", "÷ fewest", "± %")
SCALE_NOTES = (
    "64-byte packets in bursts of 256, each to another address than the one before.",
    "÷ fewest: the cost in units of that of the first row of its kind.",
)


@attrs.frozen
class Pair:
    """Two guests on one network, and a router that trusts them, on the same rings."""

    port: Port
    tx: Ring
    rx: Ring
    tx_ceiling: Ceiling
    rx_ceiling: Ceiling
    case: Case

    def route(self, count: int) -> float:
        """Route some `count` packets through the core: ns each."""
        case, spent = self.case, 0
        rounds = max(1, count // case.burst)
        for _ in range(rounds):
            self.rx.give(case.burst * case.rx_each, call=False)
            self.tx.give(case.burst, call=False)
            begin = time.thread_time_ns()
            while self.port.drain().next is NextStep.CALL_AGAIN:
                pass
            spent += time.thread_time_ns() - begin
        if self.rx.outstanding() or self.tx.outstanding():
            raise BenchError("not every packet has arrived")
        return spent / (rounds * case.burst)

    def route_trusting(self, count: int) -> float:
        """The same by the peer, which takes one buffer for each packet."""
        case, spent = self.case, 0
        rounds = max(1, count // case.burst)
        for _ in range(rounds):
            begin = time.thread_time_ns()
            self.tx_ceiling.route_to(self.rx_ceiling, case.burst)
            spent += time.thread_time_ns() - begin
        return spent / (rounds * case.burst)


@contextmanager
def open_pair(case: Case, network: Network | None = None) -> Iterator[Pair]:
    """Two guests on a network, by default on one that has nobody else."""
    with ExitStack() as stack:
        library = stack.enter_context(compiled())
        if network is None:
            network = Network(subnets=[IPv4Network("10.0.0.0/16")])
            stack.callback(network.close)
        sender, receiver = (
            stack.enter_context(
                open_rig(
                    features=VERSION_1 | EVENT_IDX | offloads,
                    size=RING_SIZE,
                    regions=[Region(0, 32 << 20)],
                    network=network,
                    mac=mac,
                    routes=[address],
                )
            )
            for mac, address, offloads in (
                (SOURCE_MAC, SOURCE, case.sender),
                (TARGET_MAC, TARGET, case.receiver),
            )
        )
        sender.start()
        receiver.start()
        tx = ring_on(sender.tx, VIRTIO_NET_HDR_SIZE + case.size, case.burst)
        tx.load(case.frame(), case.header)
        rx = ring_on(receiver.rx, case.rx_size, case.burst)
        rx.make_room()
        trusting = (Ceiling(*library, sender.tx), Ceiling(*library, receiver.rx))
        yield Pair(sender.port, tx, rx, *trusting, case)


def routing(scale: Scale) -> Table:
    """The table of what one packet costs, by size and by what both ends have agreed to."""
    with ExitStack() as stack:
        pairs = {name: stack.enter_context(open_pair(case)) for name, case in CASES.items()}
        subjects: dict[str, Callable[[], float]] = {}
        for name, pair in pairs.items():
            count = max(pair.case.burst, scale.frames * 64 // pair.case.size)
            subjects[name] = partial(pair.route, count)
            if name not in PEERS:
                subjects[f"peer: {name}"] = partial(pair.route_trusting, count)
        costs = take_turns(subjects, scale.rounds)
    rows = []
    for name, case in CASES.items():
        ours, peer = costs[name], costs[f"peer: {PEERS.get(name, name)}"]
        cost = statistics.median(ours)
        cells = {
            "Mpackets/s": 1000 / cost,
            "Gbit/s": 8 * case.size / cost,
            "ns a packet": cost,
            "peer's ns": statistics.median(peer),
            "share of peer's rate": ratio(peer, ours),
            "± %": spread(ours),
        }
        rows.append(Row(name, cells))
    return Table("routing", "One routed packet", COLUMNS, rows, NOTES)


# What grows with what.

ROUTES = (1, 100, 10_000, 100_000)
NICS = (2, 16, 128, 512)
NETWORKS = (1, 16, 128, 512)
SMALL = 256
"""Entries of the rings here."""


def udp_to(target: str) -> bytes:
    """A 64-byte frame from the sender."""
    packet = ipv4_packet(SOURCE, target, 17, bytes(64 - 34))
    return ethernet_frame(GATEWAY_MAC, SOURCE_MAC.packed, 0x0800, packet)


@attrs.frozen
class Crowd:
    """One guest that sends to others in turn."""

    port: Port
    tx: Ring
    rxs: Sequence[Ring]

    def route(self, count: int) -> float:
        """Route some `count` packets: ns each."""
        spent, rounds = 0, max(1, count // BURST)
        each = -(-BURST // len(self.rxs))
        for _ in range(rounds):
            for rx in self.rxs:
                rx.give(each - rx.outstanding(), call=False)
            self.tx.give(BURST, call=False)
            begin = time.thread_time_ns()
            while self.port.drain().next is NextStep.CALL_AGAIN:
                pass
            spent += time.thread_time_ns() - begin
        if self.tx.outstanding():
            raise BenchError("not every packet was taken")
        return spent / (rounds * BURST)


def small_rig(stack: ExitStack, network: Network, mac: MacAddress, routes: Sequence[str]) -> Rig:
    """A guest with little memory, its rings running."""
    rig = stack.enter_context(
        open_rig(
            features=VERSION_1 | EVENT_IDX,
            size=SMALL,
            regions=[Region(0, 1 << 18)],
            network=network,
            mac=mac,
            routes=routes,
        )
    )
    rig.start()
    return rig


@contextmanager
def open_crowd(targets: Sequence[str], owners: int = 1) -> Iterator[Crowd]:
    """A sender, and `owners` others that share these addresses evenly, one after another."""
    with ExitStack() as stack:
        network = Network(subnets=[IPv4Network("10.0.0.0/8")])
        stack.callback(network.close)
        sender = small_rig(stack, network, SOURCE_MAC, [SOURCE])
        rxs = []
        for number in range(owners):
            mac = MacAddress(bytes([0x52, 0x54, 0, 1, number >> 8, number & 255]))
            rig = small_rig(stack, network, mac, targets[number::owners])
            rxs.append(Ring(rig.rx, 256, 64))
            rxs[-1].make_room()
        tx = Ring(sender.tx, 128, BURST)
        # Spread over all of them, so that neither cache nor prediction helps more than it must.
        some = [targets[number * 7919 % len(targets)] for number in range(BURST)]
        tx.load_each([udp_to(target) for target in some])
        yield Crowd(sender.port, tx, rxs)


def hosts(count: int) -> list[str]:
    """So many addresses of the network, not in a row."""
    first = int(ipaddress.IPv4Address("10.1.0.0"))
    return [str(ipaddress.IPv4Address(first + 3 * number)) for number in range(count)]


def growth(scale: Scale) -> Table:
    """The table of what a packet costs among ever more routes, NICs and networks."""
    rows: list[Row] = []
    kinds: dict[str, tuple[Sequence[int], Callable[[int], list[tuple[list[str], int]]]]] = {
        "{:,} routes": (ROUTES, lambda count: [(hosts(count), 1)]),
        "{:,} NICs, to all others in turn": (NICS, lambda count: [(hosts(count - 1), count - 1)]),
        "{:,} networks of two NICs, in turn": (NETWORKS, lambda count: [(hosts(1), 1)] * count),
    }
    for name, (counts, crowds_for) in kinds.items():
        with ExitStack() as stack:
            subjects: dict[str, Callable[[], float]] = {}
            for count in counts:
                crowds = [stack.enter_context(open_crowd(*how)) for how in crowds_for(count)]
                subjects[name.format(count)] = partial(_route_all, crowds, scale.frames)
            costs = take_turns(subjects, max(2, scale.rounds // 3))
        fewest = next(iter(costs.values()))
        for row, figures in costs.items():
            cells = {
                "ns a packet": statistics.median(figures),
                "÷ fewest": ratio(figures, fewest),
                "± %": spread(figures),
            }
            rows.append(Row(row, cells))
    return Table("growth", "What grows with what", SCALE_COLUMNS, rows, SCALE_NOTES)


def _route_all(crowds: Sequence[Crowd], count: int) -> float:
    """Each of the crowds in turn: ns a packet."""
    share = max(BURST, count // len(crowds))
    return statistics.mean(crowd.route(share) for crowd in crowds)
