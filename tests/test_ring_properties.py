"""The ring core against the pure-Python driver: what goes in comes back the same.

Each example is a guest with its own features, ring size, start index and layout of memory and
buffers, which pings its gateway with payloads that are cut into descriptors anyhow.
"""

from __future__ import annotations

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import GATEWAY_IP, GATEWAY_MAC, TestBackend, VhostTestClient
from tests.harness.client import DEFAULT_FEATURES
from tests.harness.memory import Region
from tests.harness.packets import icmp_echo_request, parse_icmp_echo_reply
from tests.harness.vhost_user import Feature

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
PAGE = 4096
OVERHEAD = 12 + 14 + 20 + 8
"""Bytes in front of the data of a ping, the virtio_net_hdr included."""
OPTIONAL = [
    *(Feature.EVENT_IDX, Feature.INDIRECT_DESC, Feature.MRG_RXBUF, Feature.IN_ORDER),
    Feature.RING_PACKED,
]


@attrs.frozen
class Ping:
    """One ping: its data, and the lengths of its first descriptors."""

    data: bytes
    split: tuple[int, ...]


@attrs.frozen
class Guest:
    """What a guest chose."""

    features: int
    indirect: bool
    ring_size: int
    base: int
    regions: tuple[Region, ...]
    rx_lengths: tuple[int, ...]
    rx_buffers: int
    largest: int
    """Bytes of data that a ping may have, so that its reply fits the receive buffers."""


LAYOUTS = [
    (Region(0, 512 * PAGE),),
    (Region(1 << 32, 512 * PAGE, user_offset=1 << 44, mmap_offset=7 * PAGE),),
    (
        Region(0, 300 * PAGE, user_offset=1 << 40, file=0),
        Region(300 * PAGE, 200 * PAGE, user_offset=1 << 45, file=1),
    ),
    (
        Region(0x4000_0000, 64 * PAGE, user_offset=1 << 44, mmap_offset=PAGE),
        Region(0x1000, 400 * PAGE, user_offset=0x1000, mmap_offset=65 * PAGE),
    ),
]


@st.composite
def guests(draw: st.DrawFn) -> Guest:
    chosen = draw(st.sets(st.sampled_from(OPTIONAL)))
    features = DEFAULT_FEATURES & ~Feature.EVENT_IDX
    for feature in chosen:
        features |= feature
    indirect = Feature.INDIRECT_DESC in chosen and draw(st.booleans())
    odd_sizes = [1, 3, 17, 100] if Feature.RING_PACKED in chosen else []
    ring_size = draw(st.sampled_from([2, 4, 16, 64, 256, 1024, *odd_sizes]))
    descriptors = draw(st.integers(1, min(ring_size, 20)))
    chains = ring_size if indirect else ring_size // descriptors
    if Feature.MRG_RXBUF in chosen:
        lengths = draw(st.lists(st.integers(0, 300), min_size=descriptors, max_size=descriptors))
        lengths[0] += max(0, 12 - sum(lengths))
    else:
        lengths = draw(st.lists(st.integers(0, 2000), min_size=descriptors, max_size=descriptors))
        lengths[0] += max(0, OVERHEAD - sum(lengths))
    rx_buffers = draw(st.integers(1, min(chains, 200)))
    room = sum(lengths) * (rx_buffers if Feature.MRG_RXBUF in chosen else 1)
    lengths[-1] += max(0, OVERHEAD - room)
    room = sum(lengths) * (rx_buffers if Feature.MRG_RXBUF in chosen else 1)
    return Guest(
        features=features,
        indirect=indirect,
        ring_size=ring_size,
        base=draw(st.sampled_from([0, 1, 32767, 65533, 65535])),
        regions=draw(st.sampled_from(LAYOUTS)),
        rx_lengths=tuple(lengths),
        rx_buffers=rx_buffers,
        largest=min(room - OVERHEAD, 9000),
    )


@st.composite
def pings(draw: st.DrawFn, guest: Guest) -> Ping:
    data = draw(st.binary(max_size=40)) * draw(st.sampled_from([1, 1, 3, 40, 200]))
    piece = st.one_of(st.integers(0, 20), st.integers(0, 3000))
    count = draw(st.integers(0, guest.ring_size - 1))
    split = draw(st.lists(piece, max_size=min(count, 80)))
    return Ping(data[: guest.largest], tuple(split))


async def exchange(client: VhostTestClient, pings: list[Ping]) -> None:
    """Send pings one by one or as the ring allows, and compare every answer."""
    for seq_no, ping in enumerate(pings):
        request = icmp_echo_request(MAC, GATEWAY_MAC, IP, GATEWAY_IP, 0x4242, seq_no, ping.data)
        await client.send_packet(request, split=ping.split)
        received = await client.recv_frame()
        reply = parse_icmp_echo_reply(received.frame)
        assert (reply.ident, reply.seq_no, reply.data) == (0x4242, seq_no, ping.data)
        assert (reply.src_mac, reply.src_ip) == (GATEWAY_MAC, GATEWAY_IP)
        assert len(received.frame) == len(request)


@given(data=st.data(), guest=guests())
@settings(max_examples=60, deadline=None)
async def test_what_goes_in_comes_back(data: st.DataObject, guest: Guest) -> None:
    sent = data.draw(st.lists(pings(guest), min_size=1, max_size=12))
    async with trio.open_nursery() as nursery:
        backend = await TestBackend.start(nursery, MAC, ipv4=IP)
        client = await backend.connect(
            features=guest.features,
            indirect=guest.indirect,
            ring_size=guest.ring_size,
            base=guest.base,
            regions=guest.regions,
            rx_buffer_size=guest.rx_lengths,
            rx_buffers=guest.rx_buffers,
        )
        held = client.memory.allocated
        await exchange(client, sent)
        assert client.memory.allocated == held
        stats = backend.nic.stats()
        assert (stats.tx_frames, stats.rx_frames, stats.punts) == (len(sent),) * 3
        assert not stats.drops
        stands = client.tx_queue.used_idx()
        assert client.tx_queue.outstanding == 0
        assert await client.stop_vring(1) == client.tx_queue.wire_base(stands)
        await client.aclose()
        await backend.aclose()


@given(
    frames=st.lists(st.integers(0, 3), min_size=1, max_size=120),
    event_idx=st.booleans(),
    packed=st.booleans(),
    batch=st.integers(1, 20),
    base=st.integers(65500, 65535),
)
@settings(max_examples=40, deadline=None)
async def test_bursts_are_answered_in_order(
    frames: list[int], event_idx: bool, packed: bool, batch: int, base: int
) -> None:
    """Frames of several sizes, published in batches, come back in their order, none twice."""
    features = DEFAULT_FEATURES if event_idx else DEFAULT_FEATURES & ~Feature.EVENT_IDX
    features |= Feature.RING_PACKED if packed else 0
    async with trio.open_nursery() as nursery:
        backend = await TestBackend.start(nursery, MAC, ipv4=IP)
        client = await backend.connect(features=features, base=base, ring_size=64)
        requests = [
            icmp_echo_request(MAC, GATEWAY_MAC, IP, GATEWAY_IP, 1, number, bytes(300 * size))
            for number, size in enumerate(frames)
        ]
        for start in range(0, len(requests), batch):
            await client.send_burst(requests[start : start + batch])
        for number, size in enumerate(frames):
            reply = parse_icmp_echo_reply(await client.recv_packet())
            assert (reply.seq_no, len(reply.data)) == (number, 300 * size)
        assert not client.received
        assert not backend.nic.stats().drops
        nursery.cancel_scope.cancel()
