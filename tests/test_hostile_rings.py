"""What a hostile guest may write into its rings, row by row of the project's list (R1 to R26).

After each case the daemon lives, another guest is served as before, and so is the next frontend
of the attacked NIC: the `scene` fixture sees to that.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import DropReason
from tests.harness import GATEWAY_IP, VhostTestClient
from tests.harness.client import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    RX_QUEUE_IDX,
    TX_QUEUE_IDX,
)
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway
from tests.harness.memory import Region
from tests.harness.packets import (
    BROADCAST_MAC,
    GATEWAY_MAC,
    arp_request,
    ethernet_frame,
    icmp_echo_request,
    is_arp_reply,
    parse_tcp,
    tcp_frame,
)
from tests.harness.scene import BYSTANDER_IP, IP, MAC, Scene
from tests.harness.vhost_user import BackendRefusedError, Feature, ProtocolFeature
from tests.harness.virtio import (
    VIRTIO_NET_HDR_GSO_TCPV4,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VirtioNetHdr,
    VirtioQueue,
    VringDesc,
)
from tests.layouts import BOTH_LAYOUTS, SPLIT_ONLY

pytestmark = [virtual_time, BOTH_LAYOUTS]
"""Time stands still while anybody has anything to do, so no time-out depends on the machine."""

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT
PAGE = 4096
NUM = 16
"""Descriptors of each ring of an attacker."""
START = 0x10_0000
SIZE = 0x10_0000
END = START + SIZE
"""Guest memory of an attacker: nothing below, nothing behind."""
MAX_FRAME = 14 + 65535

ARP = arp_request(MAC, IP, GATEWAY_IP)
PACKET = bytes(12) + ARP


async def attack(scene: Scene, **options: Any) -> VhostTestClient:
    """An attacker with small rings, little memory, err eventfds and indirect descriptors."""
    defaults: dict[str, Any] = {
        "features": DEFAULT_FEATURES | Feature.INDIRECT_DESC,
        "regions": [Region(START, SIZE, user_offset=1 << 40)],
        "ring_size": NUM,
        "rx_buffers": 8,
        "err": True,
    }
    return await scene.connect(**(defaults | options))


def put_packet(client: VhostTestClient, packet: bytes = PACKET) -> int:
    """Write a packet with its header to guest memory; its address."""
    addr = client.memory.alloc_buffer(len(packet))
    client.memory.write(addr, packet)
    return addr


def write_chain(
    queue: VirtioQueue, descs: Sequence[tuple[int, int, int]], *, first: int = 0
) -> None:
    """Write (address, length, flags) to the descriptor table, linked one to the next."""
    for index, (addr, length, flags) in enumerate(descs, start=first):
        last = index == first + len(descs) - 1
        link = VringDesc(addr, length, flags if last else flags | NEXT, 0 if last else index + 1)
        queue.write_desc(index, link)


def transmit(client: VhostTestClient, descs: Sequence[tuple[int, int, int]]) -> None:
    """Offer a chain on TX and kick."""
    write_chain(client.tx_queue, descs)
    client.tx_queue.offer_raw(0)
    client.kick(TX_QUEUE_IDX, force=True)


async def trigger(client: VhostTestClient, index: int) -> None:
    """Make the device look at a ring: a kick for TX, something to deliver for RX."""
    if index == TX_QUEUE_IDX:
        client.kick(TX_QUEUE_IDX, force=True)
    else:
        await client.send_packet(ARP)


async def assert_broken(client: VhostTestClient, index: int) -> None:
    """The frontend is told, the ring stands still, and a reset of the driver mends it."""
    await trigger(client, index)
    await client.wait_err(index)
    used = client.vrings[index].queue.used_idx()
    await trigger(client, index)
    await wait_all_tasks_blocked()
    assert client.vrings[index].queue.used_idx() == used
    await client.reset_driver()
    client.received.clear()
    client.add_rx_buffer()
    await arp_gateway(client, MAC, IP)


BOTH = pytest.mark.parametrize("index", [RX_QUEUE_IDX, TX_QUEUE_IDX], ids=["rx", "tx"])


async def connect_idle(scene: Scene, **options: Any) -> VhostTestClient:
    """An attacker whose rings are both empty."""
    return await attack(scene, rx_buffers=0, **options)


# R1 to R6: the ring itself


@SPLIT_ONLY
@BOTH
@pytest.mark.parametrize("jump", [NUM + 1, 2 * NUM, 32768, 65535, 65536 - NUM])
async def test_r01_avail_index_jumps(scene: Scene, index: int, jump: int) -> None:
    client = await attack(scene)
    queue = client.vrings[index].queue
    queue.write_avail_idx(queue.last_used + jump)
    await assert_broken(client, index)


@SPLIT_ONLY
@BOTH
@pytest.mark.parametrize("head", [NUM, NUM + 1, 0x8000, 0xFFFF])
async def test_r02_head_past_the_table(scene: Scene, index: int, head: int) -> None:
    client = await connect_idle(scene)
    client.vrings[index].queue.offer_raw(head)
    await assert_broken(client, index)


LOOPS: dict[str, list[tuple[int, int]]] = {
    "past the end": [(NEXT, NUM)],
    "far past the end": [(NEXT, 0xFFFF)],
    "itself": [(NEXT, 0)],
    "two in a circle": [(NEXT, 1), (NEXT, 0)],
    "all in a circle": [(NEXT, (slot + 1) % NUM) for slot in range(NUM)],
    "a tail and a circle": [(NEXT, 1), (NEXT, 2), (NEXT, 1)],
}


@SPLIT_ONLY
@BOTH
@pytest.mark.parametrize("links", LOOPS.values(), ids=LOOPS.keys())
async def test_r03_links(scene: Scene, index: int, links: list[tuple[int, int]]) -> None:
    client = await connect_idle(scene)
    addr, queue = put_packet(client), client.vrings[index].queue
    direction = WRITE if index == RX_QUEUE_IDX else 0
    for slot, (flags, following) in enumerate(links):
        queue.write_desc(slot, VringDesc(addr, 20, flags | direction, following))
    queue.offer_raw(0)
    await assert_broken(client, index)


@SPLIT_ONLY
@BOTH
@pytest.mark.parametrize("links", LOOPS.values(), ids=LOOPS.keys())
async def test_r03_links_in_an_indirect_table(
    scene: Scene, index: int, links: list[tuple[int, int]]
) -> None:
    client = await connect_idle(scene)
    addr, queue = put_packet(client), client.vrings[index].queue
    direction = WRITE if index == RX_QUEUE_IDX else 0
    table = client.memory.alloc_buffer(16 * NUM)
    for slot, (flags, following) in enumerate(links):
        desc = VringDesc(addr, 20, flags | direction, following)
        client.memory.write(table + 16 * slot, desc.pack())
    queue.write_desc(0, VringDesc(table, 16 * len(links), INDIRECT))
    queue.offer_raw(0)
    await assert_broken(client, index)


@BOTH
async def test_r03_chain_over_two_indirect_tables(scene: Scene, index: int) -> None:
    client = await connect_idle(scene)
    addr, queue = put_packet(client), client.vrings[index].queue
    direction = WRITE if index == RX_QUEUE_IDX else 0
    table = client.memory.alloc_buffer(16)
    client.memory.write(table, VringDesc(addr, len(PACKET), direction).pack())
    queue.write_desc(0, VringDesc(table, 16, INDIRECT | NEXT, 1))
    queue.write_desc(1, VringDesc(table, 16, INDIRECT))
    queue.offer_raw(0)
    await assert_broken(client, index)


async def test_r04_same_head_twice_on_tx(scene: Scene) -> None:
    client = await attack(scene)
    write_chain(client.tx_queue, [(put_packet(client), len(PACKET), 0)])
    client.tx_queue.offer_raw(0)
    client.tx_queue.offer_raw(0)
    client.kick(TX_QUEUE_IDX, force=True)
    for _ in range(2):
        assert is_arp_reply(await client.recv_packet())
    await client.wait_tx_idle()


async def test_r04_same_head_twice_on_rx(scene: Scene) -> None:
    client = await connect_idle(scene)
    room = client.memory.alloc_buffer(100)
    write_chain(client.rx_queue, [(room, 100, WRITE)])
    client.rx_queue.offer_raw(0)
    client.rx_queue.offer_raw(0)
    await client.send_burst([ARP, ARP])
    used = await client.wait_rx_used(2)
    assert [(buffer.head, buffer.length) for buffer in used] == [(0, 54), (0, 54)]


@SPLIT_ONLY
@BOTH
async def test_r05_indirect_in_an_indirect_table(scene: Scene, index: int) -> None:
    client = await connect_idle(scene)
    queue = client.vrings[index].queue
    table = client.memory.alloc_buffer(16)
    client.memory.write(table, VringDesc(table, 16, INDIRECT).pack())
    queue.write_desc(0, VringDesc(table, 16, INDIRECT))
    queue.offer_raw(0)
    await assert_broken(client, index)


@BOTH
async def test_r05_indirect_with_next(scene: Scene, index: int) -> None:
    client = await connect_idle(scene)
    addr, queue = put_packet(client), client.vrings[index].queue
    direction = WRITE if index == RX_QUEUE_IDX else 0
    table = client.memory.alloc_buffer(16)
    client.memory.write(table, VringDesc(addr, len(PACKET), direction).pack())
    queue.write_desc(0, VringDesc(table, 16, INDIRECT | NEXT, 1))
    queue.write_desc(1, VringDesc(addr, len(PACKET), direction))
    queue.offer_raw(0)
    await assert_broken(client, index)


@BOTH
async def test_r05_indirect_without_negotiation(scene: Scene, index: int) -> None:
    client = await connect_idle(scene, features=DEFAULT_FEATURES)
    addr, queue = put_packet(client), client.vrings[index].queue
    direction = WRITE if index == RX_QUEUE_IDX else 0
    table = client.memory.alloc_buffer(16)
    client.memory.write(table, VringDesc(addr, len(PACKET), direction).pack())
    queue.write_desc(0, VringDesc(table, 16, INDIRECT))
    queue.offer_raw(0)
    await assert_broken(client, index)


TABLES: dict[str, tuple[int, int]] = {
    "empty": (START, 0),
    "half an entry": (START, 8),
    "an entry and a half": (START, 24),
    "larger than the ring": (START, 16 * (NUM + 1)),
    "larger than any ring": (START, 16 * 65536),
    "as large as can be": (START, 0xFFFF_FFF0),
    "below memory": (0, 16),
    "behind memory": (END, 16),
    "half behind memory": (END - 8, 16),
    "at the end of addresses": (2**64 - 16, 16),
    "around the end of addresses": (2**64 - 8, 16),
}


@BOTH
@pytest.mark.parametrize(("addr", "length"), TABLES.values(), ids=TABLES.keys())
async def test_r06_indirect_table(scene: Scene, index: int, addr: int, length: int) -> None:
    client = await connect_idle(scene)
    queue = client.vrings[index].queue
    queue.write_desc(0, VringDesc(addr, length, INDIRECT))
    queue.offer_raw(0)
    await assert_broken(client, index)


# R7 to R15: buffers. The chain comes back with length 0 and the ring goes on.

Chain = Callable[[int], list[tuple[int, int, int]]]
"""From the address of a good packet to a chain."""

BAD_TX: dict[str, tuple[Chain, DropReason]] = {
    "r07 nothing": (lambda a: [(a, 0, 0)], DropReason.TX_TOO_SHORT),
    "r07 nothing, often": (lambda a: [(a, 0, 0)] * NUM, DropReason.TX_TOO_SHORT),
    "r07 nothing, nowhere": (lambda _: [(0, 0, 0)], DropReason.TX_TOO_SHORT),
    "r08 longest": (lambda a: [(a, 0xFFFF_FFFF, 0)], DropReason.TX_BUFFER_INVALID),
    "r08 longest, often": (lambda a: [(a, 0xFFFF_FFFF, 0)] * NUM, DropReason.TX_BUFFER_INVALID),
    "r08 over 64 KiB": (lambda _: [(START, 12 + MAX_FRAME + 1, 0)], DropReason.TX_TOO_LONG),
    "r08 all of memory, often": (lambda _: [(START, SIZE, 0)] * NUM, DropReason.TX_TOO_LONG),
    "r08 around the end of addresses": (
        lambda a: [(a, len(PACKET), 0), (2**64 - 16, 32, 0)],
        DropReason.TX_BUFFER_INVALID,
    ),
    "r08 to the end of addresses": (
        lambda a: [(a, len(PACKET), 0), (2**64 - 16, 16, 0)],
        DropReason.TX_BUFFER_INVALID,
    ),
    "r08 into a hole": (lambda _: [(END - 30, 60, 0)], DropReason.TX_BUFFER_INVALID),
    "r09 address 0": (lambda _: [(0, 60, 0)], DropReason.TX_BUFFER_INVALID),
    "r09 last byte": (lambda _: [(END - 1, 1, 0)], DropReason.TX_TOO_SHORT),
    "r09 last byte and one more": (lambda _: [(END - 1, 2, 0)], DropReason.TX_BUFFER_INVALID),
    "r10 write-only": (lambda a: [(a, len(PACKET), WRITE)], DropReason.TX_BUFFER_INVALID),
    "r10 then write-only": (
        lambda a: [(a, len(PACKET), 0), (a, 10, WRITE)],
        DropReason.TX_BUFFER_INVALID,
    ),
    "r10 first write-only": (
        lambda a: [(a, 10, WRITE), (a, len(PACKET), 0)],
        DropReason.TX_BUFFER_INVALID,
    ),
    "r11 one byte": (lambda a: [(a, 1, 0)], DropReason.TX_TOO_SHORT),
    "r11 eleven bytes": (lambda a: [(a, 11, 0)], DropReason.TX_TOO_SHORT),
    "r11 the header": (lambda a: [(a, 12, 0)], DropReason.TX_TOO_SHORT),
    "r11 the header in pieces": (lambda a: [(a, 1, 0)] * 12, DropReason.TX_TOO_SHORT),
    **{
        f"r13 frame of {size}": (
            lambda a, size=size: [(a, 12 + size, 0)],  # type: ignore[misc]
            DropReason.TX_TOO_SHORT,
        )
        for size in range(1, 14)
    },
    "r13 frame of 65550": (lambda _: [(START, 12 + 65550, 0)], DropReason.TX_TOO_LONG),
    "r13 frame of 65551": (lambda _: [(START, 12 + 65551, 0)], DropReason.TX_TOO_LONG),
    "r23 big-endian": (
        lambda a: [
            (int.from_bytes(a.to_bytes(8, "big"), "little"), len(PACKET) << 24, 0),
        ],
        DropReason.TX_BUFFER_INVALID,
    ),
}


@pytest.mark.parametrize(("chain", "reason"), BAD_TX.values(), ids=BAD_TX.keys())
async def test_r07_to_r13_tx_buffers(scene: Scene, chain: Chain, reason: DropReason) -> None:
    client = await attack(scene)
    transmit(client, chain(put_packet(client)))
    await client.wait_tx_idle()
    assert scene.drops() == {reason: 1}
    await arp_gateway(client, MAC, IP)


@pytest.mark.parametrize(("chain", "reason"), BAD_TX.values(), ids=BAD_TX.keys())
async def test_r07_to_r13_tx_buffers_in_an_indirect_table(
    scene: Scene, chain: Chain, reason: DropReason
) -> None:
    client = await attack(scene)
    descs = chain(put_packet(client))
    table = client.memory.alloc_buffer(16 * len(descs))
    readable = [(addr, length) for addr, length, _ in descs]
    client.tx_queue.add_chain(readable, (), table=table)
    for slot, (_, _, flags) in enumerate(descs):
        raw = bytearray(client.memory.read(table + 16 * slot, 16))
        raw[client.tx_queue.DESC_FLAGS] |= flags
        client.memory.write(table + 16 * slot, bytes(raw))
    client.kick(TX_QUEUE_IDX, force=True)
    await client.wait_tx_idle()
    assert scene.drops() == {reason: 1}
    await arp_gateway(client, MAC, IP)


GOOD_TX: dict[str, Chain] = {
    "r07 an empty piece": lambda a: [(a, 12, 0), (0, 0, 0), (a + 12, len(ARP), 0)],
    "r07 empty pieces around": lambda a: [(END, 0, 0), (a, len(PACKET), 0), (2**64 - 1, 0, 0)],
    "r12 header of 12 pieces": lambda a: [
        *((a + at, 1, 0) for at in range(12)),
        (a + 12, len(ARP), 0),
    ],
}


@pytest.mark.parametrize("chain", GOOD_TX.values(), ids=GOOD_TX.keys())
async def test_r07_r12_odd_but_good_tx_buffers(scene: Scene, chain: Chain) -> None:
    client = await attack(scene)
    transmit(client, chain(put_packet(client)))
    assert is_arp_reply(await client.recv_packet())
    assert not scene.drops()


async def test_r08_lengths_that_add_up_to_4_gib_and_a_packet(scene: Scene) -> None:
    """In 32 bits the sum of the lengths is that of a good packet."""
    large = 8 << 20
    client = await attack(
        scene, regions=[Region(START, large, user_offset=1 << 40)], ring_size=1024
    )
    packet = put_packet(client)
    transmit(client, [(packet, len(PACKET), 0), *[(START, large, 0)] * (2**32 // large)])
    await client.wait_tx_idle()
    assert scene.drops() == {DropReason.TX_TOO_LONG: 1}


async def test_r08_across_a_hole_between_regions(scene: Scene) -> None:
    client = await attack(
        scene,
        regions=[
            Region(START, SIZE, user_offset=1 << 40),
            Region(END + PAGE, PAGE, user_offset=1 << 40, file=1),
        ],
    )
    transmit(client, [(END - 20, 2 * PAGE, 0)])
    await client.wait_tx_idle()
    assert scene.drops() == {DropReason.TX_BUFFER_INVALID: 1}


RING_PARTS = pytest.mark.parametrize("part", ["desc_table", "avail_ring", "used_ring"])


@BOTH
@RING_PARTS
async def test_r09_transmit_from_a_ring(scene: Scene, index: int, part: str) -> None:
    client = await attack(scene)
    addr: int = getattr(client.vrings[index].queue, part)
    transmit(client, [(put_packet(client), 12, 0), (addr, 60, 0)])
    await client.wait_tx_idle()
    assert sum(scene.drops().values()) == 1


@BOTH
@RING_PARTS
async def test_r09_receive_into_a_ring(scene: Scene, index: int, part: str) -> None:
    """The device keeps its own indices; what the guest destroys is the guest's."""
    client = await connect_idle(scene, driver=False)
    addr: int = getattr(client.vrings[index].queue, part)
    for slot in range(NUM):
        client.rx_queue.write_desc(slot, VringDesc(addr, 100, WRITE))
        client.rx_queue.offer_raw(slot)
    packet = put_packet(client)
    for _ in range(2):
        transmit(client, [(packet, len(PACKET), 0)])
        await wait_all_tasks_blocked()
    assert await client.stop_vring(RX_QUEUE_IDX) & 0x7FFF <= NUM


BAD_RX: dict[str, Chain] = {
    "r08 longest": lambda a: [(a, 0xFFFF_FFFF, WRITE)],
    "r08 around the end of addresses": lambda a: [(a, 20, WRITE), (2**64 - 16, 32, WRITE)],
    "r08 into a hole": lambda a: [(a, 12, WRITE), (END - 30, 60, WRITE)],
    "r09 address 0": lambda _: [(0, 2048, WRITE)],
    "r10 read-only": lambda a: [(a, 2048, 0)],
    "r10 first read-only": lambda a: [(a, 12, 0), (a, 2048, WRITE)],
    "r10 then read-only": lambda a: [(a, 2048, WRITE), (a, 12, 0)],
}


@pytest.mark.parametrize("mergeable", [False, True], ids=["plain", "mergeable"])
@pytest.mark.parametrize("chain", BAD_RX.values(), ids=BAD_RX.keys())
async def test_r08_to_r10_rx_buffers(scene: Scene, chain: Chain, mergeable: bool) -> None:
    """The frame is lost, the buffer comes back empty, the next frame finds the next buffer."""
    features = DEFAULT_FEATURES | (Feature.MRG_RXBUF if mergeable else 0)
    client = await connect_idle(scene, features=features)
    room = client.memory.alloc_buffer(2048)
    write_chain(client.rx_queue, chain(room), first=8)
    client.rx_queue.offer_raw(8)
    await client.send_packet(ARP)
    (used,) = await client.wait_rx_used(1)
    assert (used.head, used.length) == (8, 0)
    assert scene.drops() == {DropReason.RX_BUFFER_INVALID: 1}
    client.rx_queue.add_rx_buffer(room, 2048)
    client.kick(RX_QUEUE_IDX, force=True)
    client.rx_queue.enable_call()
    await arp_gateway(client, MAC, IP)


async def test_r10_mergeable_frame_that_ends_in_a_bad_buffer(scene: Scene) -> None:
    """All buffers of the frame come back empty."""
    client = await connect_idle(scene, features=DEFAULT_FEATURES | Feature.MRG_RXBUF)
    room = client.memory.alloc_buffer(20)
    client.rx_queue.write_desc(8, VringDesc(room, 20, WRITE))
    client.rx_queue.write_desc(9, VringDesc(room, 20, 0))
    client.rx_queue.offer_raw(8)
    client.rx_queue.offer_raw(9)
    await client.send_packet(ARP)
    used = await client.wait_rx_used(2)
    assert [(buffer.head, buffer.length) for buffer in used] == [(8, 0), (9, 0)]
    assert scene.drops() == {DropReason.RX_BUFFER_INVALID: 1}


@pytest.mark.parametrize("size", [14, 59, 60, 1514, 1515, 9014, 65535, MAX_FRAME])
async def test_r13_frames_of_every_size(scene: Scene, size: int) -> None:
    """Taken, and dropped for what is in them, not for their size."""
    client = await attack(scene)
    frame = ethernet_frame(BROADCAST_MAC, MAC, 0x86DD, bytes(size - 14))
    await client.send_packet(frame)
    assert not scene.drops().keys() & {DropReason.TX_TOO_SHORT, DropReason.TX_TOO_LONG}
    assert sum(scene.drops().values()) == 1
    assert scene.backend.nic.stats().tx_bytes == size


@pytest.mark.parametrize("size", [1515, 9014, 65535, MAX_FRAME])
async def test_r13_frames_to_be_cut_into_segments(scene: Scene, size: int) -> None:
    """The bystander takes no large ones, so it gets them piece by piece, up to its backlog."""
    offloads = Feature.CSUM | Feature.HOST_TSO4
    client = await attack(scene, features=DEFAULT_FEATURES | offloads)
    payload = bytes(size - 54)
    frame = tcp_frame(MAC, GATEWAY_MAC, IP, BYSTANDER_IP, payload, partial=True)
    header = VirtioNetHdr(1, VIRTIO_NET_HDR_GSO_TCPV4, 54, 1460, 34, 16)
    await client.send_packet(frame, header=header)
    await wait_all_tasks_blocked()
    got = [parse_tcp(received.frame).payload for received in scene.bystander.received]
    scene.bystander.received.clear()
    assert b"".join(got) == payload
    assert not scene.drops()


@pytest.mark.parametrize("mergeable", [False, True], ids=["plain", "mergeable"])
@pytest.mark.parametrize("size", [0, 1, 11])
async def test_r14_rx_chain_smaller_than_the_header(
    scene: Scene, size: int, mergeable: bool
) -> None:
    """It comes back empty, and the frame goes into the next that will do."""
    features = DEFAULT_FEATURES | (Feature.MRG_RXBUF if mergeable else 0)
    client = await connect_idle(scene, features=features)
    room = client.memory.alloc_buffer(2048)
    for slot in range(NUM - 1):
        client.rx_queue.write_desc(slot, VringDesc(room, size, WRITE))
        client.rx_queue.offer_raw(slot)
    client.rx_queue.write_desc(NUM - 1, VringDesc(room, 2048, WRITE))
    client.rx_queue.offer_raw(NUM - 1)
    await client.send_packet(ARP)
    used = await client.wait_rx_used(NUM)
    assert [buffer.length for buffer in used] == [0] * (NUM - 1) + [54]
    assert not scene.drops()


async def test_r14_rx_chain_smaller_than_the_frame(scene: Scene) -> None:
    """The frame is dropped and counted, whatever room there is in the chains behind."""
    client = await attack(scene, rx_buffers=8, rx_buffer_size=60)
    await client.send_packet(icmp_echo_request(MAC, GATEWAY_MAC, IP, GATEWAY_IP, 1, 1, bytes(300)))
    await wait_all_tasks_blocked()
    assert scene.drops() == {DropReason.RX_BUFFER_TOO_SMALL: 1}
    assert not client.rx_queue.has_used()
    await arp_gateway(client, MAC, IP)


async def test_r14_ring_of_buffers_too_small_for_a_mergeable_frame(scene: Scene) -> None:
    client = await attack(
        scene, features=DEFAULT_FEATURES | Feature.MRG_RXBUF, rx_buffers=4, rx_buffer_size=13
    )
    for number in range(3):
        await client.send_packet(ARP)
        await wait_all_tasks_blocked()
        assert scene.drops() == {DropReason.RX_BUFFER_TOO_SMALL: number + 1}
    assert not client.rx_queue.has_used()


@pytest.mark.parametrize("descriptors", [257, 1024])
async def test_r15_many_descriptors(scene: Scene, descriptors: int) -> None:
    client = await attack(scene, ring_size=2048)
    pieces = [1] * (descriptors - 1)
    await arp_gateway(client, MAC, IP, split=pieces[: len(PACKET) - 1])
    frame = ethernet_frame(BROADCAST_MAC, MAC, 0x86DD, bytes(descriptors))
    await client.send_packet(frame, split=pieces)
    assert scene.backend.nic.stats().tx_bytes == len(ARP) + len(frame)


@pytest.mark.parametrize("descriptors", [1025, 2048])
async def test_r15_too_many_descriptors(scene: Scene, descriptors: int) -> None:
    client = await attack(scene, ring_size=2048)
    frame = ethernet_frame(BROADCAST_MAC, MAC, 0x86DD, bytes(descriptors))
    await client.send_packet(frame, split=[1] * (descriptors - 1))
    assert scene.drops() == {DropReason.TX_BUFFER_INVALID: 1}
    await arp_gateway(client, MAC, IP)


# R16 to R26: memory that changes, notifications, indices, features


@SPLIT_ONLY
async def test_r16_everything_changes_under_the_device(scene: Scene) -> None:
    """Another thread writes to rings and frames while the device works on them.

    What comes of it depends on the moment, so only survival is claimed; nothing is waited for.
    """
    client = await connect_idle(scene, driver=False)
    queue, packet = client.tx_queue, put_packet(client)
    stop = threading.Event()

    def scribble() -> None:
        """Flip every field of every descriptor between good and bad."""
        while not stop.is_set():
            for slot in range(NUM):
                queue.write_desc(slot, VringDesc(2**64 - 1, 2**32 - 1, NEXT | INDIRECT, 0xFFFF))
                queue.write_desc(slot, VringDesc(packet, len(PACKET)))
            client.memory.write(packet + 12, ARP)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, scribble)
        try:
            for slot in range(500):
                queue.offer_raw(slot % NUM)
                client.kick(TX_QUEUE_IDX, force=True)
                await trio.lowlevel.checkpoint()
        finally:
            stop.set()


async def test_r17_memory_that_cannot_be_written(scene: Scene) -> None:
    client = await attack(scene, handshake=False)
    await client.negotiate()
    (region,) = client.memory.get_region_info()
    read_only = os.open(f"/proc/self/fd/{region.fd}", os.O_RDONLY)
    try:
        with pytest.raises(BackendRefusedError):
            await client.connection.set_mem_table([attrs.evolve(region, fd=read_only)])
    finally:
        os.close(read_only)
    await client.start_device()
    await arp_gateway(client, MAC, IP)


async def test_r18_interrupts_switched_while_frames_flow(scene: Scene) -> None:
    client = await attack(scene, features=DEFAULT_FEATURES & ~Feature.EVENT_IDX)
    for number in range(50):
        client.tx_queue.write_avail_flags(number % 2)
        client.send_packet_nowait(ethernet_frame(BROADCAST_MAC, MAC, 0x86DD, bytes(46)))
        await wait_all_tasks_blocked()
        client.process(client.vrings[TX_QUEUE_IDX])
        assert client.pending_tx_count() == 0


@pytest.mark.parametrize("distance", [32768, 32767, 1000, NUM, -1, -1000])
async def test_r18_used_event_far_away(scene: Scene, distance: int) -> None:
    client = await attack(scene)
    for _ in range(3):
        for queue in (client.rx_queue, client.tx_queue):
            queue.set_used_event(queue.last_used + distance)
        client.send_packet_nowait(ARP)
        await wait_all_tasks_blocked()
        for vring in client.vrings:
            client.process(vring)
        assert client.pending_tx_count() == 0
        assert is_arp_reply(await client.recv_packet())


async def test_r19_guest_that_takes_nothing_back(scene: Scene) -> None:
    """Its buffers are used up, a bounded number of frames waits, the rest is dropped."""
    client = await connect_idle(scene, rx_buffer_size=100)
    for slot in range(NUM):
        client.rx_queue.write_desc(slot, VringDesc(put_packet(client), len(PACKET), WRITE))
        client.rx_queue.offer_raw(slot)
    for _ in range(30):
        await client.send_burst([ARP] * 10)
        await scene.ask_bystander()
    assert client.rx_queue.used_count() == NUM
    assert scene.drops() == {DropReason.RX_BACKLOG_FULL: 300 - 256 - NUM}


async def test_r20_kicks_without_end(scene: Scene) -> None:
    client = await attack(scene)

    async def kick_for_ever() -> None:
        while True:
            for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
                client.kick(index, force=True)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kick_for_ever)
        for _ in range(20):
            await scene.ask_bystander()
        await arp_gateway(client, MAC, IP)
        nursery.cancel_scope.cancel()


@SPLIT_ONLY
@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [(0, 0, 0), (0, 16 * NUM - 2, 4096), (0, 4096, 4098 + 2), (64, 4096, 0), (4096, 0, 32)],
)
async def test_r21_parts_of_a_ring_overlap(scene: Scene, desc: int, avail: int, used: int) -> None:
    client = await attack(scene, handshake=False)
    await client.negotiate()
    await client.share_memory()
    await client.connection.set_vring_num(TX_QUEUE_IDX, NUM)
    user = client.memory.get_host_address(START)
    with pytest.raises(BackendRefusedError):
        await client.connection.set_vring_addr(TX_QUEUE_IDX, user + desc, user + used, user + avail)


async def test_r21_rings_on_top_of_each_other(scene: Scene) -> None:
    client = await attack(scene)
    await client.stop_vring(TX_QUEUE_IDX)
    queue, user = client.rx_queue, client.memory.get_host_address
    parts = (user(queue.desc_table), user(queue.used_ring), user(queue.avail_ring))
    with contextlib.suppress(BackendRefusedError):
        await client.connection.set_vring_addr(TX_QUEUE_IDX, *parts)
        await client.connection.set_vring_kick(TX_QUEUE_IDX, client.vrings[TX_QUEUE_IDX].kick)
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    client.disconnect()


@SPLIT_ONLY
@pytest.mark.parametrize("back", [1, 3, NUM])
async def test_r22_base_behind_the_used_index(scene: Scene, back: int) -> None:
    """What was returned to the driver is not taken a second time: the used index counts."""
    client = await connect_idle(scene, base=65534, driver=False)
    packet = put_packet(client)
    for slot in range(NUM):
        client.tx_queue.write_desc(slot, VringDesc(packet, len(PACKET)))
        client.tx_queue.offer_raw(slot)
    client.kick(TX_QUEUE_IDX)
    await wait_all_tasks_blocked()
    used = await client.stop_vring(TX_QUEUE_IDX)
    assert client.tx_queue.used_idx() == used == (65534 + NUM) % 65536
    await client.start_vring(TX_QUEUE_IDX, (used - back) % 65536)
    await wait_all_tasks_blocked()
    assert client.tx_queue.used_idx() == used
    assert await client.stop_vring(TX_QUEUE_IDX) == used


@SPLIT_ONLY
async def test_r22_base_ahead_of_the_avail_index(scene: Scene) -> None:
    client = await attack(scene)
    await client.stop_vring(TX_QUEUE_IDX)
    await client.start_vring(TX_QUEUE_IDX, 1)
    await assert_broken(client, TX_QUEUE_IDX)


@pytest.mark.parametrize("direction", ["rx", "tx"])
async def test_r24_region_removed_under_a_buffer(scene: Scene, direction: str) -> None:
    client = await connect_idle(
        scene,
        protocol_features=DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS,
        regions=[
            Region(START, SIZE, user_offset=1 << 40),
            Region(END, PAGE, user_offset=1 << 41, file=1),
        ],
    )
    info = client.memory.get_region_info()[1]
    if direction == "rx":
        client.rx_queue.write_desc(8, VringDesc(END, 2048, WRITE))
        client.rx_queue.offer_raw(8)
        await client.connection.remove_mem_region(info)
        await client.send_packet(ARP)
        (used,) = await client.wait_rx_used(1)
        assert used.length == 0
        assert scene.drops() == {DropReason.RX_BUFFER_INVALID: 1}
    else:
        client.memory.write(END, PACKET)
        client.tx_queue.write_desc(8, VringDesc(END, len(PACKET)))
        client.tx_queue.offer_raw(8)
        await client.connection.remove_mem_region(info)
        client.kick(TX_QUEUE_IDX, force=True)
        await client.wait_tx_idle()
        assert scene.drops() == {DropReason.TX_BUFFER_INVALID: 1}


async def test_r24_region_of_the_rings_stays(scene: Scene) -> None:
    client = await attack(
        scene, protocol_features=DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS
    )
    with pytest.raises(BackendRefusedError):
        await client.connection.remove_mem_region(client.memory.get_region_info()[0])
    await arp_gateway(client, MAC, IP)


async def test_r25_there_is_no_control_queue(scene: Scene) -> None:
    client = await attack(scene)
    for refused in (
        client.connection.set_vring_num(16, NUM),
        client.connection.set_vring_base(16, 0),
        client.connection.set_vring_kick(16, None),
        client.connection.set_vring_enable(16, True),
    ):
        with pytest.raises(BackendRefusedError):
            await refused
    await arp_gateway(client, MAC, IP)


async def test_r26_event_fields_without_event_idx(scene: Scene) -> None:
    client = await attack(scene, features=DEFAULT_FEATURES & ~Feature.EVENT_IDX)
    for value in (0xFFFF, 0x8000, 1):
        for queue in (client.rx_queue, client.tx_queue):
            queue.set_used_event(value)
            client.memory.store16(queue.used_ring + 4 + 8 * NUM, value)
        await arp_gateway(client, MAC, IP)


@SPLIT_ONLY
async def test_r26_event_idx_and_no_event(scene: Scene) -> None:
    """A driver that never writes used_event gets few interrupts, and all of its frames."""
    client = await attack(scene)
    for vring in client.vrings:
        vring.queue.event_idx = False
    for number in range(30):
        client.send_packet_nowait(ARP)
        client.kick(TX_QUEUE_IDX, force=True)
        await wait_all_tasks_blocked()
        for vring in client.vrings:
            client.process(vring)
        assert len(client.received) == number + 1


# Memory that goes away


async def test_m29_file_that_shrinks_costs_its_connection_only(scene: Scene) -> None:
    """Touching memory behind the end of its file is a bus error in a program without care."""
    client = await attack(scene)
    (region,) = client.memory.get_region_info()
    kick = client.vrings[TX_QUEUE_IDX].kick
    assert kick is not None
    os.ftruncate(region.fd, 0)
    os.eventfd_write(kick, 1)
    await client.connection.wait_hung_up()
