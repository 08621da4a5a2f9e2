"""Makes the seed corpora: ``python -m fuzz.corpus`` writes fuzz/corpus/TARGET/NAME anew.

A seed is what well-behaved guests and frontends do, in the form that its target reads (see the
comment on top of each): rings as the harness's driver lays them out, frames as the harness builds
them, messages in the order in which QEMU and DPDK send them. From there a fuzzer has few steps to
go to what nobody has thought of.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import attrs

from mvirt_net.model import PuntKind
from tests.harness.memory import Region, TestGuestMemory
from tests.harness.packed import PackedQueue
from tests.harness.packets import (
    GATEWAY_IP,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    arp_request,
    dhcp_discover,
    dhcp_request,
    dhcpv6_solicit,
    ethernet_frame,
    icmp_echo_request,
    icmpv6_echo_request,
    ipv4_packet,
    ipv6_packet,
    neighbor_solicitation,
    router_solicitation,
    tcp_frame,
    udp_frame,
    udp_frame6,
)
from tests.harness.vhost_user import Request
from tests.harness.virtio import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    VirtioNetHdr,
    VirtioQueue,
)
from tests.unit.vhost_user_peer import REGION, RINGS, mem_table, state, u64, vring_addr

from .inputs import IPV4, IPV6, MAC, SESSION, Message, encode_message, encode_punt

CORPUS = Path(__file__).with_name("corpus")

LINK_LOCAL = "fe80::5054:ff:fe00:1"
CSUM = VIRTIO_NET_HDR_F_NEEDS_CSUM
PLAIN = VirtioNetHdr()

Packet = tuple[VirtioNetHdr, bytes]


def packets(mac: str, sources: Sequence[str], targets: Sequence[str]) -> Mapping[str, Packet]:
    """What a guest sends to another one, with the headers of its offloads.

    Args:
        sources, targets: an IPv4 and an IPv6 address each.
    """
    (src4, src6), (dst4, dst6) = sources, targets
    udp4 = udp_frame(mac, GATEWAY_MAC, src4, dst4, 4000, 5000, bytes(range(200)))
    udp6 = udp_frame6(mac, GATEWAY_MAC, src6, dst6, 4000, 5000, bytes(range(200)))
    tcp4 = tcp_frame(mac, GATEWAY_MAC, src4, dst4, bytes(range(250)) * 2, partial=True)
    tcp6 = tcp_frame(mac, GATEWAY_MAC, src6, dst6, bytes(range(250)) * 2, partial=True)
    extended = ipv6_packet(src6, dst6, 17, udp6[54:], extensions=[(0, bytes(6)), (60, bytes(6))])
    options = ipv4_packet(src4, dst4, 17, udp4[34:], options=b"\x94\x04\x00\x00\x01\x01\x01\x00")
    return {
        "udp4": (PLAIN, udp4),
        "udp6": (PLAIN, udp6),
        "ping4": (PLAIN, icmp_echo_request(mac, GATEWAY_MAC, src4, dst4, 1, 1, bytes(56))),
        "ping6": (PLAIN, icmpv6_echo_request(mac, GATEWAY_MAC, src6, dst6, 1, 1, bytes(56))),
        "csum4": (VirtioNetHdr(CSUM, csum_start=34, csum_offset=6), udp4),
        "csum6": (VirtioNetHdr(CSUM, csum_start=54, csum_offset=16), tcp6),
        "tso4": (
            VirtioNetHdr(CSUM, VIRTIO_NET_HDR_GSO_TCPV4, 54, 100, csum_start=34, csum_offset=16),
            tcp4,
        ),
        "tso6": (
            VirtioNetHdr(CSUM, VIRTIO_NET_HDR_GSO_TCPV6, 74, 100, csum_start=54, csum_offset=16),
            tcp6,
        ),
        "uso4": (
            VirtioNetHdr(CSUM, VIRTIO_NET_HDR_GSO_UDP_L4, 42, 64, csum_start=34, csum_offset=6),
            udp4,
        ),
        "uso6": (
            VirtioNetHdr(CSUM, VIRTIO_NET_HDR_GSO_UDP_L4, 62, 64, csum_start=54, csum_offset=6),
            udp6,
        ),
        "extensions": (PLAIN, ethernet_frame(GATEWAY_MAC, mac, 0x86DD, extended)),
        "options": (PLAIN, ethernet_frame(GATEWAY_MAC, mac, 0x0800, options)),
        "fragment": (
            PLAIN,
            ethernet_frame(
                GATEWAY_MAC, mac, 0x0800, ipv4_packet(src4, dst4, 17, udp4[34:], fragment=0x2001)
            ),
        ),
    }


def questions(mac: str, ipv4: str, ipv6: str) -> Mapping[PuntKind, Sequence[bytes]]:
    """What a guest asks of the gateway, by the service that answers it."""
    neighbor = neighbor_solicitation(mac, LINK_LOCAL, GATEWAY_IPV6)
    return {
        PuntKind.ARP: [arp_request(mac, ipv4, GATEWAY_IP), arp_request(mac, "0.0.0.0", ipv4)],
        PuntKind.DHCPV4: [dhcp_discover(mac, 1), dhcp_request(mac, 1, ipv4, GATEWAY_IP)],
        PuntKind.ICMPV4: [icmp_echo_request(mac, GATEWAY_MAC, ipv4, GATEWAY_IP, 1, 1, b"ping")],
        PuntKind.NDP: [neighbor, router_solicitation(mac, LINK_LOCAL)],
        PuntKind.ICMPV6: [
            icmpv6_echo_request(mac, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 1, 1, b"ping")
        ],
        PuntKind.DHCPV6: [dhcpv6_solicit(mac, LINK_LOCAL, 1, 1)],
        PuntKind.ICMP_ERROR: [
            udp_frame(mac, GATEWAY_MAC, ipv4, "10.9.9.9", 4000, 5000, b"lost"),
            udp_frame6(mac, GATEWAY_MAC, ipv6, "fd09::9", 4000, 5000, b"lost"),
        ],
    }


# ---- rings.c ----

PAGE = 4096
PAGES = 16
WHOLE = (Region(0, PAGES * PAGE),)
IN_PARTS = (
    Region(0, 4 * PAGE),
    Region(4 * PAGE, 4 * PAGE, mmap_offset=4 * PAGE),
    Region(1 << 32, 4 * PAGE, mmap_offset=8 * PAGE),
    Region((1 << 64) - 5 * PAGE, 4 * PAGE, mmap_offset=12 * PAGE),
)
EVENT_IDX, INDIRECT, MERGEABLE, VERSION_1, ALL = 1, 2, 4, 8, 0xFF
START, STOP, DRAIN, FLUSH, ENQUEUE, OFFER = 0, 1, 2, 4, 5, 14


@attrs.frozen
class RingSeed:
    """Two guests that send to one another and to the gateway."""

    features: int = VERSION_1
    regions: Sequence[Region] = WHOLE
    size_shift: int = 3
    base: int = 0
    rx_buffers: Sequence[int] = (1526, 1526)
    script: Sequence[tuple[int, int, int, int, int]] = ()
    """Port, queue, operation and its two arguments."""
    packed: bool = False
    edges: bool = False
    """With buffers in both rings that reach beyond the end of each region."""

    def encode(self) -> bytes:
        with closing(TestGuestMemory(self.regions, data_offset=0)) as memory:
            players = b"".join(self._player(memory, port) for port in range(2))
            image = b"".join(memory.read(r.guest_addr, r.size) for r in self.regions)
        steps = b"".join(map(encode_step, self.script))
        return players + bytes([len(self.script)]) + steps + image.rstrip(b"\0")

    def _player(self, memory: TestGuestMemory, port: int) -> bytes:
        mac = f"52:54:00:00:00:{10 + port:02x}"
        ours, theirs = (
            (f"10.0.0.{1 + port}", f"fd00::{1 + port}"),
            (
                f"10.0.0.{2 - port}",
                f"fd00::{2 - port}",
            ),
        )
        rx, tx = (self._queue(memory, queue) for queue in range(2))
        for region in self.regions if self.edges else ():
            beyond = [(region.guest_addr + region.size - 80, 160)]
            rx.add_chain((), beyond)
            tx.add_chain(beyond, ())
        for length in self.rx_buffers:
            rx.add_rx_buffer(memory.alloc_buffer(length), length, table=self._table(memory))
        sent = [(PLAIN, frames[0]) for frames in questions(mac, *ours).values()]
        sent = [*sent[port::3], *list(packets(mac, ours, theirs).values())[port::2]]
        for header, frame in sent[: (2 << self.size_shift) // 4]:
            segments = [(memory.alloc_buffer(n), n) for n in (12, 14, len(frame) - 14)]
            tx.add_tx_buffer(segments, frame, header=header, table=self._table(memory))
        layout = (1 if self.regions is IN_PARTS else 0) | (2 if self.packed else 0)
        plans = b"".join(self._plan(queue) for queue in (rx, tx))
        return bytes([self.features, layout]) + plans

    def _table(self, memory: TestGuestMemory) -> int | None:
        return memory.alloc_buffer(64) if self.features & INDIRECT else None

    def _queue(self, memory: TestGuestMemory, index: int) -> VirtioQueue:
        size = 2 << self.size_shift
        layout = PackedQueue if self.packed else VirtioQueue
        desc, avail, used = layout.part_sizes(size)
        queue = layout(
            memory,
            index,
            memory.alloc_buffer(desc),
            memory.alloc_buffer(avail, align=4 if self.packed else 2),
            memory.alloc_buffer(used, align=4),
            size=size,
        )
        queue.init(self.base)
        return queue

    def _plan(self, queue: VirtioQueue) -> bytes:
        places = (queue.desc_table, queue.avail_ring, queue.used_ring)
        base = queue.wire_base(self.base) & 0xFFFF
        return struct.pack("<BHHHH", self.size_shift, *map(self._place, places), base)

    def _place(self, guest_addr: int) -> int:
        """Where in the image, which all regions share, a guest address is."""
        for region in self.regions:
            if 0 <= guest_addr - region.guest_addr < region.size:
                return region.mmap_offset + guest_addr - region.guest_addr
        raise ValueError(f"{guest_addr:#x} is in no region")


def encode_step(step: tuple[int, int, int, int, int]) -> bytes:
    """A step of rings.c: port and queue are the upper bits of a number that says what to do."""
    port, queue, operation, x, y = step
    high = port << 7 | queue << 6
    what = next(n for n in range(high, high + 64) if n % 18 == operation)
    return struct.pack("<BHH", what, x, y)


def rings() -> Iterator[tuple[str, bytes]]:
    exchange = [(0, 1, DRAIN, 0, 0), (1, 1, DRAIN, 0, 0), (0, 0, FLUSH, 0, 0), (1, 0, FLUSH, 0, 0)]
    restart = [(0, 0, STOP, 0, 0), (0, 1, STOP, 0, 0), (0, 0, START, 0, 0), (0, 1, START, 0, 0)]
    refill = [(1, 0, OFFER, 2, 0), (0, 0, OFFER, 2, 0), (0, 1, OFFER, 3, 0)]
    inject = [(0, 0, ENQUEUE, 60, 3), (0, 0, ENQUEUE, 3000, 70), *exchange]
    small = (12, 64, 256, 256, 13, 700)
    yield "plain", RingSeed(script=exchange).encode()
    yield "legacy", RingSeed(features=0, script=exchange).encode()
    yield "event-idx", RingSeed(features=VERSION_1 | EVENT_IDX, script=exchange).encode()
    yield "indirect", RingSeed(features=VERSION_1 | INDIRECT, script=exchange).encode()
    yield "wrap", RingSeed(base=0xFFFE, script=[*exchange, *refill, *exchange]).encode()
    yield "restart", RingSeed(script=[*exchange, *restart, *exchange]).encode()
    back = RingSeed(packed=True, script=[*exchange, *restart, *refill, *exchange])
    yield "packed", back.encode()
    yield "packed-wrap", attrs.evolve(back, base=31, features=VERSION_1 | EVENT_IDX).encode()
    yield "packed-indirect", attrs.evolve(back, features=VERSION_1 | INDIRECT).encode()
    for name, regions in (("whole", WHOLE), ("parts", IN_PARTS)):
        merge = VERSION_1 | MERGEABLE
        yield f"merge-{name}", RingSeed(merge, regions, 4, 0, small, [*inject, *refill]).encode()
        yield f"edges-{name}", RingSeed(regions=regions, script=inject, edges=True).encode()
        everything = RingSeed(ALL, regions, 4, 9, small, [*inject, *refill])
        yield f"all-{name}", everything.encode()
        yield f"packed-all-{name}", attrs.evolve(everything, packed=True).encode()


# ---- forward.c ----

FIX_ALL, FIX_BUT_OFFLOAD, TO_C, SEND_INDIRECT, HUGE_FRAME = 0x1F, 0x0F, 0x20, 0x40, 0x80

CUTS = (12, 14, 20)


def forward() -> Iterator[tuple[str, bytes]]:
    sent = packets("52:54:00:00:00:01", ("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2"))
    receivers = {
        "plain": encode_receiver(0x01, 1500, 1526, 20),
        "offloads": encode_receiver(0xFF, 1500, 1526, 60),
        "narrow": encode_receiver(0x43, 296, 100, 127, cut=20, faulty=30),
    }
    for number, (name, (header, frame)) in enumerate(sent.items()):
        fixes = FIX_ALL if header.flags else FIX_BUT_OFFLOAD
        for kind in (("plain", "narrow")[number % 2],) if header.gso_type == 0 else receivers:
            more = 0 if header.gso_type == 0 else 3000
            huge = HUGE_FRAME if kind == "offloads" else 0
            body = encode_frame(fixes | huge, header, frame, 10 * more if huge else more, CUTS)
            start = bytes([0xFF]) + 3 * receivers[kind]
            yield (
                f"{name}-{kind}",
                start + body + encode_frame(fixes | TO_C | SEND_INDIRECT, header, frame),
            )


def encode_receiver(
    features: int, mtu: int, size: int, count: int, cut: int = 0, faulty: int = 0xFF
) -> bytes:
    return struct.pack("<BHHBBB", features, mtu - 68, size - 1, count - 1, cut, faulty)


def encode_frame(
    fixes: int,
    header: VirtioNetHdr,
    frame: bytes,
    more: int = 0,
    cuts: tuple[int, int, int] = (255, 255, 255),
) -> bytes:
    head = struct.pack("<BH", fixes, more) + header.pack() + struct.pack("<H", len(frame))
    return head + frame + bytes(cuts)


# ---- offload.c ----


def offload() -> Iterator[tuple[str, bytes]]:
    sent = packets("52:54:00:00:00:0a", ("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2"))
    for name, (header, frame) in sent.items():
        yield name, b"\1" + header.pack() + in_pieces(frame, (14, 20, 8))


def in_pieces(frame: bytes, lengths: Sequence[int]) -> bytes:
    result, done = b"", 0
    for length in lengths:
        result += bytes([length]) + frame[done : done + length]
        done += length
    return result + frame[done:]


# ---- routes.c ----


def routes() -> Iterator[tuple[str, bytes]]:
    nested = [(32 - n, 10, 0, 0) for n in range(0, 32, 4)]
    set_routes, set_subnets, free_port, look_around = 0, 3, 4, 5
    steps = [encode_change(set_routes + 8 * port, 0x10, nested[port::4]) for port in range(4)]
    steps.append(encode_change(set_subnets, 0x10, [(24, 10, 0, 0), (0, 0, 0, 0)]))
    yield "ipv4", b"".join([*steps, bytes([look_around, free_port, look_around])])
    deep = [(length, 0xFD, 1, 0) for length in (8, 48, 64, 128)]
    steps = [encode_change(set_routes + 8 * port, 0x11, [deep[port]]) for port in range(4)]
    steps.append(encode_change(set_subnets, 0x11, [(16, 0xFD, 0, 0), (128, 0xFF, 0xFF, 1)]))
    yield "ipv6", b"".join([*steps, bytes([look_around, 0x87, 0xFD, 1, 0])])


def encode_change(what: int, how: int, prefixes: Sequence[tuple[int, int, int, int]]) -> bytes:
    """A step of routes.c: prefixes by length, first byte, last byte, and what fills the others."""
    return bytes([what, len(prefixes)]) + b"".join(bytes([how, *prefix]) for prefix in prefixes)


# ---- parsers.py ----


def parsers() -> Iterator[tuple[str, bytes]]:
    for kind, frames in questions(MAC, IPV4, IPV6).items():
        for number, frame in enumerate(frames):
            yield f"{kind.name.lower()}-{number}", encode_punt(kind, frame)
    for name, conversation in (("qemu", QEMU), ("virtio-user", VIRTIO_USER)):
        yield (
            name,
            bytes([SESSION]) + b"".join(encode_message(*message) for message in conversation),
        )


FLAGS, NEED_REPLY = 1, 9


def _start_ring(index: int) -> Iterator[Message]:
    yield Request.SET_VRING_NUM, state(index, 256), 0, FLAGS
    yield Request.SET_VRING_BASE, state(index, 0), 0, FLAGS
    yield Request.SET_VRING_ADDR, vring_addr(index, RINGS[index]), 0, FLAGS
    yield Request.SET_VRING_KICK, u64(index), 1, FLAGS
    yield Request.SET_VRING_CALL, u64(index), 1, FLAGS


QEMU: Sequence[Message] = (
    (Request.GET_FEATURES, b"", 0, FLAGS),
    (Request.GET_PROTOCOL_FEATURES, b"", 0, FLAGS),
    (Request.SET_PROTOCOL_FEATURES, u64(0xA219), 0, FLAGS),
    (Request.GET_QUEUE_NUM, b"", 0, FLAGS),
    (Request.SET_OWNER, b"", 0, FLAGS),
    (Request.SET_VRING_CALL, u64(0), 1, FLAGS),
    (Request.SET_VRING_ERR, u64(0), 1, FLAGS),
    (Request.SET_VRING_ENABLE, state(0, 1), 0, FLAGS),
    (Request.SET_VRING_ENABLE, state(1, 1), 0, FLAGS),
    (Request.SET_FEATURES, u64(0x1_7000_8000), 0, FLAGS),
    (Request.SET_MEM_TABLE, mem_table(REGION), 1, NEED_REPLY),
    *_start_ring(0),
    *_start_ring(1),
    (Request.GET_VRING_BASE, state(0, 0), 0, FLAGS),
    (Request.GET_VRING_BASE, state(1, 0), 0, FLAGS),
    (Request.SET_VRING_ENABLE, state(0, 1), 0, FLAGS),
)
"""QEMU 7.2 from connecting to the end of the guest, as recorded."""
VIRTIO_USER: Sequence[Message] = (
    (Request.SET_OWNER, b"", 0, FLAGS),
    (Request.GET_FEATURES, b"", 0, FLAGS),
    (Request.SET_PROTOCOL_FEATURES, u64(0x9), 0, FLAGS),
    (Request.SET_VRING_CALL, u64(0), 1, FLAGS),
    (Request.SET_VRING_CALL, u64(1), 1, FLAGS),
    (Request.SET_FEATURES, u64(0x9_5000_8000), 0, FLAGS),
    (Request.SET_MEM_TABLE, mem_table(REGION), 1, NEED_REPLY),
    *_start_ring(0),
    *_start_ring(1),
    (Request.SET_VRING_ENABLE, state(0, 1), 0, FLAGS),
    (Request.SET_VRING_ENABLE, state(1, 1), 0, FLAGS),
    (Request.SET_VRING_ENABLE, state(0, 0), 0, FLAGS),
    (Request.GET_VRING_BASE, state(0, 0), 0, FLAGS),
)
"""DPDK 22.11's virtio-user, likewise."""

SEEDS = {
    "rings": rings,
    "forward": forward,
    "routes": routes,
    "offload": offload,
    "parsers": parsers,
}


def main() -> None:
    for target, seeds in SEEDS.items():
        folder = CORPUS / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, data in seeds():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
