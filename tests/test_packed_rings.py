"""What only drivers with packed rings do, good ones and hostile ones, against the real backend.

What packed rings have in common with split ones is tested in `test_rings` and `test_hostile_rings`,
whose tests run with either. The rows R1 to R22 are those of the project's list.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import DropReason
from tests.harness import GATEWAY_IP, TestBackend, VhostTestClient
from tests.harness.client import DEFAULT_FEATURES, RX_QUEUE_IDX, TX_QUEUE_IDX
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway, ping_gateway
from tests.harness.packed import (
    RING_EVENT_FLAGS_DESC,
    VRING_DESC_F_AVAIL,
    VRING_DESC_F_USED,
    PackedQueue,
    pack_desc,
)
from tests.harness.packets import arp_request, ethernet_frame, is_arp_reply
from tests.harness.scene import IP, MAC, Scene
from tests.harness.vhost_user import Feature
from tests.harness.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VringDesc,
)

pytestmark = virtual_time

PACKED = DEFAULT_FEATURES | Feature.RING_PACKED
PLAIN = PACKED & ~Feature.EVENT_IDX
EVERYTHING = PACKED | Feature.INDIRECT_DESC | Feature.MRG_RXBUF | Feature.IN_ORDER

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT
AVAIL, USED = VRING_DESC_F_AVAIL, VRING_DESC_F_USED
NUM = 16
"""Descriptors of each ring of an attacker."""
ARP = arp_request(MAC, IP, GATEWAY_IP)
PACKET = bytes(12) + ARP


@pytest.fixture
async def backend(nursery: trio.Nursery) -> TestBackend:
    return await TestBackend.start(nursery, MAC, ipv4=IP)


async def ping(client: VhostTestClient, **how: Any) -> None:
    await ping_gateway(client, MAC, IP, b"packed", **how)


def broadcast(number: int) -> bytes:
    """A frame that nobody answers."""
    return ethernet_frame("ff:ff:ff:ff:ff:ff", MAC, 0x0800, bytes([number % 256]) * 46)


# Sizes and positions


@pytest.mark.parametrize("features", [PLAIN, PACKED, EVERYTHING], ids=hex)
@pytest.mark.parametrize("ring_size", [1, 3, 255, 1000, 2049])
async def test_rings_of_any_size(backend: TestBackend, ring_size: int, features: int) -> None:
    """They need not be powers of two; positions turn round where the ring ends."""
    client = await backend.connect(ring_size=ring_size, features=features)
    for _ in range(3):
        frames = [broadcast(number) for number in range(ring_size)]
        assert await client.send_burst(frames, timeout=20.0) == ring_size
        await ping(client)


@pytest.mark.parametrize("frames", [0, 1, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("features", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("wire_base", [0x8000_8000, 0x8000, 0], ids=hex)
async def test_ring_that_the_frontend_has_forgotten(
    backend: TestBackend, frames: int, features: int, wire_base: int
) -> None:
    """A killed backend tells nobody where a ring stands, but the ring does.

    The bases are those of QEMU, of virtio-user, and of who knows nothing of packed rings.
    """
    client = await backend.connect(features=features, ring_size=16, rx_buffers=7)
    for _ in range(frames):
        await ping(client)
    client.disconnect()
    client.queue_tx(ARP)
    await client.reconnect(wire_base=wire_base)
    assert is_arp_reply(await client.recv_packet())
    for _ in range(40):
        await ping(client)


@pytest.mark.parametrize("ring_size", [2, 4, 7])
async def test_ring_of_long_chains_goes_on_where_the_frontend_says(
    backend: TestBackend, ring_size: int
) -> None:
    """Such a ring does not show where it stands, also where that is slot 0."""
    client = await backend.connect(features=PLAIN, ring_size=ring_size, rx_buffers=1)
    for number in range(4 * ring_size):
        await ping(client, split=(12,) * (number % ring_size))
        client.disconnect()
        await client.reconnect()
    await ping(client)


async def test_event_in_the_middle_of_a_chain(backend: TestBackend) -> None:
    """The interrupt comes when the chain that the slot belongs to is returned."""
    client = await backend.connect(features=PACKED)
    await ping(client)
    vring = client.vrings[TX_QUEUE_IDX]
    calls, start = vring.calls, vring.queue.last_used
    vring.queue.set_used_event(start + 2)
    client.send_packet_nowait(broadcast(0))
    await wait_all_tasks_blocked()
    assert vring.calls == calls
    client.send_packet_nowait(broadcast(1), split=(12, 14))
    await wait_all_tasks_blocked()
    assert (vring.calls, vring.queue.used_count()) == (calls + 1, 0)


# What a hostile guest may write


async def attack(scene: Scene, **options: Any) -> tuple[VhostTestClient, PackedQueue]:
    """An attacker with small rings, err eventfds and nothing in its rings; and its TX ring."""
    defaults: dict[str, Any] = {
        "features": PACKED | Feature.INDIRECT_DESC,
        "ring_size": NUM,
        "rx_buffers": 0,
        "err": True,
    }
    client = await scene.connect(**(defaults | options))
    assert isinstance(client.tx_queue, PackedQueue)
    return client, client.tx_queue


def put_packet(client: VhostTestClient) -> int:
    addr = client.memory.alloc_buffer(len(PACKET))
    client.memory.write(addr, PACKET)
    return addr


async def assert_broken(client: VhostTestClient) -> None:
    """The frontend is told, TX stands still, and a reset of the driver mends it."""
    client.kick(TX_QUEUE_IDX, force=True)
    await client.wait_err(TX_QUEUE_IDX)
    ring = client.memory.read(client.tx_queue.desc_table, 16 * NUM)
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    assert client.memory.read(client.tx_queue.desc_table, 16 * NUM) == ring
    await client.reset_driver()
    client.add_rx_buffer()
    await arp_gateway(client, MAC, IP)


@pytest.mark.parametrize("lap", [0, 1])
@pytest.mark.parametrize("bits", [0, AVAIL, USED, AVAIL | USED])
async def test_r01_descriptor_with_other_wrap_counters(scene: Scene, lap: int, bits: int) -> None:
    """Of the four only one means that it is available, and in each lap another one."""
    client, queue = await attack(scene)
    if lap:
        await client.send_burst([broadcast(0)] * NUM)
    available = bits == (USED if lap else AVAIL)
    queue.write_slot(0, VringDesc(put_packet(client), len(PACKET), bits, 7))
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    assert scene.backend.nic.stats().tx_frames == lap * NUM + available
    stands = lap * NUM + available
    assert await client.stop_vring(TX_QUEUE_IDX) == queue.wire_base(stands)


@pytest.mark.parametrize("buffer_id", [0, NUM, 0x8000, 0xFFFF])
async def test_r02_r04_ids_of_any_value_come_back_as_they_are(scene: Scene, buffer_id: int) -> None:
    """An id means nothing to the device, whether the ring has so many, or the id comes twice."""
    client, queue = await attack(scene, driver=False)
    queue.write_desc(buffer_id, VringDesc(put_packet(client), len(PACKET)))
    for _ in range(2):
        queue.offer_raw(buffer_id)
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    for _ in range(2):
        used = queue.pop_used()
        assert used is not None
        assert (used.head, used.length) == (buffer_id, 0)


@pytest.mark.parametrize("before", [0, 1, NUM - 1])
async def test_r03_chain_without_an_end(scene: Scene, before: int) -> None:
    """NEXT in each descriptor that there is."""
    client, queue = await attack(scene)
    addr = put_packet(client)
    for _ in range(before):
        await client.send_packet(broadcast(0))
    queue.write_desc(0, VringDesc(addr, 1, NEXT, 0))
    queue.offer_raw(0)
    await assert_broken(client)


async def test_r05_direct_descriptors_and_then_a_table(scene: Scene) -> None:
    """With packed rings a chain is of one kind (virtio 1.2, 2.8.20)."""
    client, queue = await attack(scene)
    addr, table = put_packet(client), client.memory.alloc_buffer(16)
    client.memory.write(table, pack_desc(VringDesc(addr + 12, len(ARP))))
    queue.write_desc(0, VringDesc(addr, 12, NEXT, 1))
    queue.write_desc(1, VringDesc(table, 16, INDIRECT))
    queue.offer_raw(0)
    await assert_broken(client)


@pytest.mark.parametrize("flags", [NEXT, INDIRECT, AVAIL | USED, 0xFFFF & ~WRITE], ids=hex)
async def test_r05_only_write_counts_in_a_table(scene: Scene, flags: int) -> None:
    """Other flags are ignored there (virtio 1.2, 2.8.7), so nothing can be nested."""
    client, queue = await attack(scene)
    client.add_rx_buffer()
    addr, table = put_packet(client), client.memory.alloc_buffer(32)
    descs = [VringDesc(addr, 12, flags, 99), VringDesc(addr + 12, len(ARP), flags, 99)]
    client.memory.write(table, b"".join(map(pack_desc, descs)))
    queue.write_desc(3, VringDesc(table, 32, INDIRECT | WRITE))
    queue.offer_raw(3)
    client.kick(TX_QUEUE_IDX, force=True)
    assert is_arp_reply(await client.recv_packet())
    assert not scene.drops()


@pytest.mark.parametrize("length", [1025, 2048])
async def test_r15_too_long_a_chain_comes_back_in_one_piece(scene: Scene, length: int) -> None:
    """However long it is, the device knows where the next one begins, and what its id was."""
    client, _ = await attack(scene, ring_size=2049)
    frame = ethernet_frame("ff:ff:ff:ff:ff:ff", MAC, 0x86DD, bytes(length))
    for number in range(3):
        await client.send_packet(frame, split=(1,) * (length - 1))
        assert scene.drops() == {DropReason.TX_BUFFER_INVALID: number + 1}
    client.add_rx_buffer()
    await arp_gateway(client, MAC, IP)


async def test_r16_flags_that_flap(scene: Scene) -> None:
    """Another thread makes descriptors available, and takes them back, while the device looks.

    What comes of it depends on the moment, so only survival is claimed; nothing is waited for.
    """
    client, queue = await attack(scene, driver=False)
    packet = put_packet(client)
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            for flags in (AVAIL, USED, AVAIL | NEXT, 0, USED | INDIRECT, AVAIL | USED):
                for slot in range(NUM):
                    queue.write_slot(slot, VringDesc(packet, len(PACKET), flags, slot))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, scribble)
        try:
            for _ in range(500):
                client.kick(TX_QUEUE_IDX, force=True)
                await trio.lowlevel.checkpoint()
        finally:
            stop.set()


@pytest.mark.parametrize("features", [PLAIN, PACKED], ids=["flags", "event_idx"])
@pytest.mark.parametrize("flags", [RING_EVENT_FLAGS_DESC, 3, 0xFFFE, 0xFFFF], ids=hex)
@pytest.mark.parametrize("position", [0, NUM, 0x7FFF, 0x8000 | NUM, 0xFFFF], ids=hex)
async def test_r18_r26_garbage_in_the_event_area(
    scene: Scene, features: int, flags: int, position: int
) -> None:
    """It costs this guest an interrupt, or gives it one too many; its frames come."""
    client, _ = await attack(scene, features=features, rx_buffers=8)
    for number in range(3 * NUM):
        for vring in client.vrings:
            client.memory.store16(vring.queue.avail_ring, position)
            client.memory.store16(vring.queue.avail_ring + 2, flags)
        client.send_packet_nowait(ARP)
        await wait_all_tasks_blocked()
        for vring in client.vrings:
            client.process(vring)
        assert len(client.received) == number + 1


@pytest.mark.parametrize("wire_base", [0x8003_8003, 0x8003, 0x0003_8007, 3], ids=hex)
async def test_r22_base_where_the_ring_does_not_stand(scene: Scene, wire_base: int) -> None:
    """The device waits there; a reset of the driver mends it."""
    client, _ = await attack(scene)
    await client.stop_vring(TX_QUEUE_IDX)
    await client.start_vring(TX_QUEUE_IDX, 0, wire_base=wire_base)
    client.queue_tx(ARP)
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    assert client.pending_tx_count() == 1
    await client.reset_driver()
    client.add_rx_buffer()
    await arp_gateway(client, MAC, IP)


async def test_r22_used_half_of_the_base_counts(scene: Scene) -> None:
    """What was taken and not returned is taken again: the driver waits for that."""
    client, queue = await attack(scene)
    await client.stop_vring(RX_QUEUE_IDX)
    for _ in range(5):
        client.add_rx_buffer()
    base = queue.wire_base(0) & 0xFFFF_0000 | queue.wire_base(5) & 0xFFFF
    await client.start_vring(RX_QUEUE_IDX, 0, wire_base=base)
    await arp_gateway(client, MAC, IP)
