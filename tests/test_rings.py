"""What a well-behaved driver may do with its rings, against the real backend.

The hostile half of this is `test_hostile_rings`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import mvirt_net
from mvirt_net import DropReason
from tests.harness import GATEWAY_IP, TestBackend, VhostTestClient
from tests.harness.client import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    RX_QUEUE_IDX,
    TX_QUEUE_IDX,
)
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway, ping_gateway
from tests.harness.memory import Region
from tests.harness.packets import (
    GATEWAY_MAC,
    arp_request,
    ethernet_frame,
    icmp_echo_request,
    is_arp_reply,
)
from tests.harness.vhost_user import BackendRefusedError, Feature, ProtocolFeature
from tests.harness.virtio import VirtioNetHdr
from tests.layouts import BOTH_LAYOUTS, PACKED, SPLIT

pytestmark = [virtual_time, BOTH_LAYOUTS]
"""Time stands still while anybody has anything to do, so no time-out depends on the machine."""

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
PAGE = 4096

PLAIN = DEFAULT_FEATURES & ~Feature.EVENT_IDX
INDIRECT = DEFAULT_FEATURES | Feature.INDIRECT_DESC
MERGEABLE = DEFAULT_FEATURES | Feature.MRG_RXBUF
EVERYTHING = INDIRECT | MERGEABLE | Feature.IN_ORDER
SLOTS = DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS


@pytest.fixture
async def backend(nursery: trio.Nursery) -> TestBackend:
    return await TestBackend.start(nursery, MAC, ipv4=IP)


async def ping(client: VhostTestClient, size: int = 64, **how: Any) -> None:
    """A ping with `size` bytes of data, none of which equals its neighbour."""
    data = bytes((7 * position) % 251 for position in range(size))
    await ping_gateway(client, MAC, IP, data, **how)


def broadcast(number: int) -> bytes:
    """A frame that nobody answers."""
    return ethernet_frame("ff:ff:ff:ff:ff:ff", MAC, 0x0800, bytes([number % 256]) * 46)


# Ring sizes and indices


@pytest.mark.parametrize("features", [PLAIN, DEFAULT_FEATURES, EVERYTHING], ids=hex)
@pytest.mark.parametrize("ring_size", [2, 4, 256, 1024, 32768])
async def test_ring_sizes(backend: TestBackend, ring_size: int, features: int) -> None:
    client = await backend.connect(ring_size=ring_size, features=features)
    for _ in range(min(ring_size, 8) + 1):
        await ping(client)


@pytest.mark.parametrize("ring_size", [2, 256, 1024, 32768])
async def test_full_rings(backend: TestBackend, ring_size: int) -> None:
    """As many frames as there are descriptors, all published by one store, twice over."""
    client = await backend.connect(ring_size=ring_size)
    for _ in range(2):
        frames = [broadcast(number) for number in range(ring_size)]
        assert await client.send_burst(frames, timeout=20.0) == ring_size
    await ping(client)
    assert backend.nic.stats().tx_frames == 2 * ring_size + 1


@pytest.mark.parametrize("features", [PLAIN, DEFAULT_FEATURES], ids=["flags", "event_idx"])
@pytest.mark.parametrize("base", [65535, 65533, 32767])
@pytest.mark.parametrize("ring_size", [2, 256])
async def test_indices_wrap_around(
    backend: TestBackend, base: int, ring_size: int, features: int
) -> None:
    client = await backend.connect(ring_size=ring_size, base=base, features=features)
    for _ in range(5):
        await ping(client)
    for _ in range(3):
        assert await client.send_burst([broadcast(0), broadcast(1)]) == 2
    assert client.tx_queue.used_idx() % 65536 == (base + 11) % 65536


# Buffers cut into descriptors


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    "split",
    [
        (12,),
        (1,) * 12,
        (1,) * 40,
        (5, 7),
        (11, 2),
        (13,),
        (12, 14, 20, 8),
        (12, 0, 14, 0, 0),
        (0, 12),
        (40, 3, 1, 1),
    ],
    ids=str,
)
async def test_tx_cut_anywhere(
    backend: TestBackend, split: tuple[int, ...], indirect: bool
) -> None:
    client = await backend.connect(features=INDIRECT, indirect=indirect)
    await ping(client, 300, split=split)
    await arp_gateway(client, MAC, IP, split=split[:4])


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(
    "lengths",
    [(12, 2048), (1,) * 12 + (2048,), (1,) * 200 + (2048,), (2, 3000), (11, 0, 2, 500, 500)],
    ids=lambda lengths: f"{len(lengths)} descriptors",
)
async def test_rx_cut_anywhere(
    backend: TestBackend, lengths: tuple[int, ...], indirect: bool
) -> None:
    client = await backend.connect(
        features=INDIRECT, indirect=indirect, rx_buffer_size=lengths, ring_size=1024
    )
    for size in (1, 300, 900):
        await ping(client, size)


async def test_long_chains(backend: TestBackend) -> None:
    """A frame of one-byte descriptors, as many as a frame of this size can have."""
    client = await backend.connect(ring_size=1024)
    await ping(client, 900, split=(1,) * 952)


async def test_received_header(backend: TestBackend) -> None:
    """All twelve bytes are written, whatever stood there, and num_buffers is 1."""
    client = await backend.connect(rx_buffers=1)
    ((addr, length),) = client.rx_queue.detach_all()[0].writable
    client.memory.write(addr, b"\xaa" * length)
    client.rx_queue.init()
    client.rx_queue.add_rx_buffer(addr, length)
    await client.send_packet(arp_request(MAC, IP, GATEWAY_IP))
    received = await client.recv_frame()
    assert received.header == VirtioNetHdr(num_buffers=1)
    assert is_arp_reply(received.frame)
    assert client.memory.read(addr + received.buffers[0].length, 1) == b"\xaa"


# Mergeable receive buffers


@pytest.mark.parametrize("features", [MERGEABLE, EVERYTHING], ids=["mergeable", "everything"])
@pytest.mark.parametrize("buffer", [12, 13, 64, 128, 1514, (6, 6, 7), (1, 30, 2)], ids=str)
async def test_mergeable_frames(
    backend: TestBackend, features: int, buffer: int | tuple[int, ...]
) -> None:
    """Each buffer but the last is full and all come together, which the driver checks."""
    client = await backend.connect(
        features=features, ring_size=1024, rx_buffers=250, rx_buffer_size=buffer
    )
    for size in (0, 1, 22, 23, 500, 1472):
        await ping(client, size)


async def test_mergeable_says_how_many_buffers(backend: TestBackend) -> None:
    client = await backend.connect(features=MERGEABLE, rx_buffer_size=100)
    await client.send_packet(
        icmp_echo_request(MAC, GATEWAY_MAC, IP, GATEWAY_IP, 1, 1, bytes(300 - 12 - 42))
    )
    received = await client.recv_frame()
    assert received.header.num_buffers == len(received.buffers) == 3
    assert [buffer.length for buffer in received.buffers] == [100, 100, 100]


async def test_mergeable_frame_for_which_there_is_no_room(backend: TestBackend) -> None:
    """It is dropped and the buffers stay: waiting could last for ever (CVE-2026-74356)."""
    client = await backend.connect(features=MERGEABLE, rx_buffers=2, rx_buffer_size=100)
    await client.send_packet(icmp_echo_request(MAC, GATEWAY_MAC, IP, GATEWAY_IP, 1, 1, bytes(300)))
    await wait_all_tasks_blocked()
    assert backend.nic.stats().drops == {DropReason.RX_BUFFER_TOO_SMALL: 1}
    assert client.rx_queue.outstanding == 2
    await ping(client, 100)


# Notifications


@pytest.mark.parametrize("features", [PLAIN, DEFAULT_FEATURES], ids=["flags", "event_idx"])
async def test_refills_need_no_kick(backend: TestBackend, features: int) -> None:
    """The device hears of receive buffers only when it has run out of them."""
    client = await backend.connect(features=features)
    for _ in range(40):
        await ping(client)
    assert client.vrings[RX_QUEUE_IDX].kicks == 0


@pytest.mark.parametrize("features", [PLAIN, DEFAULT_FEATURES], ids=["flags", "event_idx"])
async def test_every_frame_to_an_idle_ring_is_kicked(backend: TestBackend, features: int) -> None:
    client = await backend.connect(features=features)
    kicks = client.vrings[TX_QUEUE_IDX].kicks
    for _ in range(5):
        await ping(client)
        await wait_all_tasks_blocked()
    assert client.vrings[TX_QUEUE_IDX].kicks == kicks + 5


@pytest.mark.parametrize("features", [PLAIN, DEFAULT_FEATURES], ids=["flags", "event_idx"])
async def test_no_interrupt_that_nobody_wants(backend: TestBackend, features: int) -> None:
    client = await backend.connect(features=features)
    await ping(client)
    await wait_all_tasks_blocked()
    calls = client.vrings[TX_QUEUE_IDX].calls
    client.tx_queue.disable_call()
    for number in range(100):
        client.send_packet_nowait(broadcast(number))
    await wait_all_tasks_blocked()
    assert client.tx_queue.used_count() == 100
    assert client.vrings[TX_QUEUE_IDX].calls == calls
    client.process(client.vrings[TX_QUEUE_IDX])
    await ping(client)


async def test_used_event_is_obeyed_to_the_frame(backend: TestBackend) -> None:
    """One interrupt, when the used index passes used_event; none before, none after."""
    client = await backend.connect()
    await ping(client)
    vring = client.vrings[TX_QUEUE_IDX]
    calls, start = vring.calls, vring.queue.last_used
    vring.queue.set_used_event(start + 10)
    for number in range(9):
        client.send_packet_nowait(broadcast(number))
    await wait_all_tasks_blocked()
    assert (vring.calls, vring.queue.used_count()) == (calls, 9)
    client.send_packet_nowait(broadcast(9))
    await wait_all_tasks_blocked()
    assert (vring.calls, vring.queue.used_count()) == (calls, 10)
    client.send_packet_nowait(broadcast(10))
    await wait_all_tasks_blocked()
    assert vring.calls == calls + 1
    assert vring.queue.used_count() == 0


async def test_all_replies_of_a_burst_cost_one_interrupt(backend: TestBackend) -> None:
    client = await backend.connect(features=PLAIN)
    await wait_all_tasks_blocked()
    calls = client.vrings[RX_QUEUE_IDX].calls
    await client.send_burst([arp_request(MAC, IP, GATEWAY_IP)] * 8)
    for _ in range(8):
        assert is_arp_reply(await client.recv_packet())
    assert client.vrings[RX_QUEUE_IDX].calls == calls + 1


@pytest.mark.parametrize("poll_call", [False, True], ids=["call", "no call"])
@pytest.mark.parametrize("poll_kick", [False, True], ids=["kick", "no kick"])
async def test_polling(backend: TestBackend, poll_kick: bool, poll_call: bool) -> None:
    client = await backend.connect(poll_kick=poll_kick, poll_call=poll_call)
    for _ in range(3):
        await ping(client)
    assert await client.send_burst([broadcast(number) for number in range(100)]) == 100


# Layouts of memory


def split_layout(*, buffers_at: int, user_offset: int) -> list[Region]:
    """The rings in one region, buffers in two that touch in guest addresses and nowhere else."""
    return [
        Region(0x8000_0000, 6 * PAGE, user_offset=user_offset, mmap_offset=3 * PAGE),
        Region(buffers_at, 4 * PAGE, user_offset=3 * user_offset, file=1),
        Region(buffers_at + 4 * PAGE, 16 * PAGE, user_offset=5 * user_offset, mmap_offset=9 * PAGE),
    ]


@pytest.mark.parametrize("buffers_at", [0, 0x1000, 1 << 40], ids=hex)
@pytest.mark.parametrize("user_offset", [0x7F00_0000_0000, 0x10_0000_0000, None], ids=str)
async def test_several_regions(
    backend: TestBackend, buffers_at: int, user_offset: int | None
) -> None:
    regions = split_layout(buffers_at=buffers_at, user_offset=user_offset or 0x1000_0000)
    if user_offset is None:
        regions = [Region(r.guest_addr, r.size, None, r.mmap_offset, r.file) for r in regions]
    client = await backend.connect(regions=regions, rx_buffer_size=1500)
    assert client.rx_queue.desc_table == 0x8000_0000
    for size in (64, 1400):
        await ping(client, size)


BORDER = 0x10_0000 + 4 * PAGE


@pytest.fixture
async def split_client(backend: TestBackend) -> VhostTestClient:
    """A guest whose guest addresses run on across BORDER while everything else jumps there."""
    return await backend.connect(
        features=INDIRECT,
        rx_buffers=0,
        regions=split_layout(buffers_at=0x10_0000, user_offset=0x7F00_0000_0000),
    )


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 40, 53])
async def test_tx_buffer_across_adjacent_regions(split_client: VhostTestClient, cut: int) -> None:
    client, frame = split_client, arp_request(MAC, IP, GATEWAY_IP)
    client.add_rx_buffer()
    addr = client.memory.reserve(BORDER - cut, 12 + len(frame))
    client.tx_queue.add_tx_buffer(addr, frame)
    client.kick(TX_QUEUE_IDX)
    assert is_arp_reply(await client.recv_packet())


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 40, 53])
async def test_rx_buffer_across_adjacent_regions(split_client: VhostTestClient, cut: int) -> None:
    addr = split_client.memory.reserve(BORDER - cut, 100)
    split_client.rx_queue.add_rx_buffer(addr, 100)
    await arp_gateway(split_client, MAC, IP)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 47])
async def test_indirect_table_across_adjacent_regions(
    split_client: VhostTestClient, cut: int
) -> None:
    client = split_client
    table = client.memory.reserve(BORDER - cut, 48)
    room = client.memory.alloc_buffer(100)
    client.rx_queue.add_rx_buffer([(room, 13), (room + 13, 7), (room + 20, 80)], table=table)
    await arp_gateway(client, MAC, IP)


async def test_unaligned_indirect_table(backend: TestBackend) -> None:
    """A table need not be aligned (virtio 1.2, 2.7.5.3 says nothing of it)."""
    client = await backend.connect(features=INDIRECT)
    frame = arp_request(MAC, IP, GATEWAY_IP)
    tx = client.memory.alloc_buffer(12 + len(frame))
    table = client.memory.alloc_buffer(33, align=16) + 1
    client.tx_queue.add_tx_buffer([(tx, 12), (tx + 12, len(frame))], frame, table=table)
    client.kick(TX_QUEUE_IDX)
    assert is_arp_reply(await client.recv_packet())


# Stopping and starting


async def test_stopping_says_where_the_ring_stands(backend: TestBackend) -> None:
    client = await backend.connect(base=65530)
    for _ in range(10):
        await ping(client)
    stands = client.tx_queue.wire_base(65540)
    assert stands == (4 if backend.layout == SPLIT else 0x8004_8004)
    assert await client.stop_vring(TX_QUEUE_IDX) == stands
    assert await client.stop_vring(TX_QUEUE_IDX) == stands
    assert await client.stop_vring(RX_QUEUE_IDX) == stands


async def test_a_stopped_ring_is_left_alone(backend: TestBackend) -> None:
    client = await backend.connect()
    await ping(client)
    await client.stop_vring(TX_QUEUE_IDX)
    client.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    assert client.pending_tx_count() == 1
    await client.start_vring(TX_QUEUE_IDX, 1)
    assert is_arp_reply(await client.recv_packet())


async def test_driver_reset(backend: TestBackend) -> None:
    client = await backend.connect(base=100)
    for _ in range(3):
        await ping(client)
        await client.reset_driver()
    await ping(client)


async def test_a_disabled_tx_ring_is_consumed_and_discarded(backend: TestBackend) -> None:
    """vhost-user, "Ring states"."""
    client = await backend.connect()
    await client.connection.set_vring_enable(TX_QUEUE_IDX, False)
    await client.send_packet(arp_request(MAC, IP, GATEWAY_IP))
    assert backend.nic.stats().drops == {DropReason.RING_DISABLED: 1}
    await client.connection.set_vring_enable(TX_QUEUE_IDX, True)
    await ping(client)
    assert not client.received


async def test_a_disabled_rx_ring_is_not_touched(backend: TestBackend) -> None:
    client = await backend.connect()
    await ping(client)
    await client.connection.set_vring_enable(RX_QUEUE_IDX, False)
    ring = client.memory.read(client.rx_queue.desc_table, client.tx_queue.desc_table)
    await client.send_packet(arp_request(MAC, IP, GATEWAY_IP))
    await wait_all_tasks_blocked()
    assert client.memory.read(client.rx_queue.desc_table, client.tx_queue.desc_table) == ring
    assert backend.nic.stats().drops == {DropReason.RX_RING_DOWN: 1}
    await client.connection.set_vring_enable(RX_QUEUE_IDX, True)
    await ping(client)


async def test_call_may_be_replaced_while_the_ring_runs(backend: TestBackend) -> None:
    client = await backend.connect()
    await ping(client)
    for vring in client.vrings:
        await client.connection.set_vring_call(vring.queue.queue_idx, None)
        await client.connection.set_vring_call(vring.queue.queue_idx, vring.call)
    await ping(client)


# Coming back


async def test_reconnect_resumes_at_the_used_index(backend: TestBackend) -> None:
    client = await backend.connect(base=65534)
    for _ in range(3):
        await ping(client)
        client.disconnect()
        await client.reconnect()
        await ping(client)
    assert client.tx_queue.used_idx() % 65536 == 4


async def test_what_was_given_while_nobody_served_is_taken(backend: TestBackend) -> None:
    """A ring that starts looks at what is there already; no kick comes for it."""
    client = await backend.connect()
    client.disconnect()
    client.queue_tx(arp_request(MAC, IP, GATEWAY_IP))
    await client.reconnect()
    assert is_arp_reply(await client.recv_packet())
    assert client.vrings[TX_QUEUE_IDX].kicks == 0


async def test_buffers_that_never_came_back_are_used_again(backend: TestBackend) -> None:
    """A frontend that resumes with the avail index would lose every buffer given before."""
    client = await backend.connect()
    await ping(client)
    rx = client.rx_queue
    base = rx.wire_base(rx.next_avail)
    if backend.layout == PACKED:  # has the used position in its upper half
        base = base & 0xFFFF | rx.wire_base(rx.used_idx()) & 0xFFFF_0000
    await client.stop_vring(RX_QUEUE_IDX)
    await client.start_vring(RX_QUEUE_IDX, 0, wire_base=base)
    for _ in range(20):
        await ping(client)


@pytest.mark.parametrize("features", [PLAIN, DEFAULT_FEATURES], ids=["flags", "event_idx"])
async def test_interrupt_that_a_killed_backend_owed_comes_from_the_next(
    backend: TestBackend, features: int
) -> None:
    """Killed after it published all buffers and before it interrupted; the driver would wait for
    an interrupt, and the new backend for buffers.
    """
    client = await backend.connect(features=features, driver=False, rx_buffers=2)
    for _ in range(2):
        client.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
    await wait_all_tasks_blocked()
    calls = [vring.call for vring in client.vrings if vring.call is not None]
    for vring, call in zip(client.vrings, calls, strict=True):
        assert vring.queue.used_count() == 2
        os.eventfd_read(call)
    client.disconnect()
    await client.reconnect()
    assert [os.eventfd_read(call) for call in calls] == [1, 1]


async def test_no_interrupt_for_a_ring_in_which_nothing_is_new(backend: TestBackend) -> None:
    client = await backend.connect()
    await ping(client)
    await wait_all_tasks_blocked()
    calls = [vring.calls for vring in client.vrings]
    client.disconnect()
    await client.reconnect()
    await wait_all_tasks_blocked()
    assert [vring.calls for vring in client.vrings] == calls


async def test_frontends_one_after_another(backend: TestBackend) -> None:
    for _ in range(5):
        client = await backend.connect()
        await ping(client)
        await client.aclose()
    assert backend.nic.stats().tx_frames == 5


async def test_backend_ends_while_a_frontend_is_there(backend: TestBackend) -> None:
    client = await backend.connect()
    await ping(client)
    await backend.aclose()
    await client.connection.wait_hung_up()
    assert not backend.socket_path.exists()


# Memory that changes while rings run


async def test_memory_table_is_replaced(backend: TestBackend) -> None:
    """Same addresses, other files: the rings and all buffers are found in the new ones."""
    client = await backend.connect(regions=[Region(0, 64 * PAGE, user_offset=1 << 44)])
    await ping(client)
    former = client.memory.move_to_new_files()
    await client.share_memory()
    image = [bytes(file.bytes) for file in former]
    for _ in range(20):
        await ping(client)
    assert [bytes(file.bytes) for file in former] == image
    for file in former:
        file.close()


async def test_memory_table_must_keep_the_rings(backend: TestBackend) -> None:
    client = await backend.connect(
        regions=[Region(0, 64 * PAGE, user_offset=1 << 44), Region(1 << 30, PAGE, file=1)]
    )
    with pytest.raises(BackendRefusedError):
        await client.connection.set_mem_table(client.memory.get_region_info()[1:])
    await ping(client)


async def test_regions_come_and_go(backend: TestBackend) -> None:
    client = await backend.connect(protocol_features=SLOTS)
    assert await client.connection.get_max_mem_slots() == 32
    frame = arp_request(MAC, IP, GATEWAY_IP)
    for _ in range(3):
        added = client.memory.add_region(Region(1 << 32, PAGE, user_offset=1 << 40, file=1))
        await client.connection.add_mem_region(added)
        client.tx_queue.add_tx_buffer(client.memory.reserve(1 << 32, 100), frame + bytes(46))
        client.kick(TX_QUEUE_IDX)
        assert is_arp_reply(await client.recv_packet())
        await client.wait_tx_idle()
        await client.connection.remove_mem_region(client.memory.remove_region(1 << 32))
    assert not backend.nic.stats().drops


async def test_memory_without_a_table(backend: TestBackend) -> None:
    """A frontend with memory slots may give all of its memory region by region."""
    client = await backend.connect(protocol_features=SLOTS, handshake=False)
    await client.negotiate()
    for info in client.memory.get_region_info():
        await client.connection.add_mem_region(info)
    for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
        await client.start_vring(index, 0)
    client.fill_rx_queue()
    await ping(client)


# Too few buffers


async def test_frames_wait_for_buffers_and_then_are_dropped(backend: TestBackend) -> None:
    client = await backend.connect(refill=False)
    for number in range(3):
        await client.send_burst([arp_request(MAC, IP, GATEWAY_IP)] * 100)
        assert backend.nic.stats().tx_frames == 100 * (number + 1)
    await wait_all_tasks_blocked()
    assert len(client.received) == 16
    assert backend.nic.stats().drops == {DropReason.RX_BACKLOG_FULL: 300 - 16 - 256}
    for round_ in range(16):
        client.fill_rx_queue()
        await wait_all_tasks_blocked()
        assert len(client.received) == 16 * (round_ + 2)
    client.fill_rx_queue()
    await ping_after(client, 17 * 16)


async def ping_after(client: VhostTestClient, stale: int) -> None:
    """A ping once `stale` frames that were received before are out of the way."""
    for _ in range(stale):
        await client.recv_packet()
    await ping(client)


async def test_memory_is_used_again(backend: TestBackend) -> None:
    """Far more than guest memory holds goes through it, and nothing of it stays taken."""
    client = await backend.connect(regions=[Region(0, 32 * PAGE)])
    held = client.memory.allocated
    for _ in range(300):
        await ping(client, 1400)
    assert client.memory.allocated == held


async def test_two_guests_do_not_meet(backend: TestBackend) -> None:
    """Each NIC has its own rings, memory and counters."""
    other_mac, other_ip = "52:54:00:00:00:99", "10.0.0.9"
    other: mvirt_net.Nic = await backend.add_nic("other", other_mac, other_ip)
    first, second = await backend.connect(), await backend.connect(other)
    for _ in range(3):
        await ping(first)
        await ping_gateway(second, other_mac, other_ip, b"other")
    assert backend.nic.stats().tx_frames == other.stats().tx_frames == 3
