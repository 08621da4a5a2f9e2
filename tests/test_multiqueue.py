"""Several queue pairs: spread, in order, and harmless in whatever combination they are started."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import DropReason, NicEventKind
from mvirt_net.ffi import NextStep, Port
from tests.harness import (
    GATEWAY_MAC,
    RoutingNicConfig,
    RoutingTestBackend,
    VhostTestClient,
)
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway, ping_gateway
from tests.harness.footprint import open_files
from tests.harness.packets import (
    IPPROTO_UDP,
    ethernet_frame,
    ipv4_packet,
    parse_ethernet,
    parse_ipv4,
    parse_ipv6,
    parse_udp,
    udp_frame,
    udp_frame6,
)
from tests.harness.vhost_user import Feature, ProtocolFeature, Request, encode_state
from tests.layouts import BOTH_LAYOUTS, SPLIT_ONLY

pytestmark = [virtual_time, BOTH_LAYOUTS]

MAC_A, MAC_B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
A = RoutingNicConfig("a", MAC_A, "10.0.0.1", "fd00::1")
B = RoutingNicConfig("b", MAC_B, "10.0.0.2", "fd00::2")
PAIRS = 4
FLOWS = 64


async def start(nursery: trio.Nursery) -> RoutingTestBackend:
    return await RoutingTestBackend.start(nursery, A, B)


def datagram(flow: int, number: int, *, ipv6: bool = False) -> bytes:
    """From A to B; a flow is one source port."""
    payload = flow.to_bytes(2, "big") + number.to_bytes(2, "big")
    if ipv6:
        return udp_frame6(MAC_A, GATEWAY_MAC, "fd00::1", "fd00::2", 1000 + flow, 2000, payload)
    return udp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "10.0.0.2", 1000 + flow, 2000, payload)


def name_of(frame: bytes) -> tuple[int, int]:
    """The flow and the number of a datagram."""
    ethernet, packet = parse_ethernet(frame)
    parse: Any = parse_ipv4 if ethernet.ethertype == 0x0800 else parse_ipv6
    payload = parse_udp(*parse(packet))[2]
    return int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")


async def received(client: VhostTestClient) -> dict[int, list[tuple[int, int]]]:
    """All that has come until nothing moves any more: by flow, numbers and pairs."""
    await wait_all_tasks_blocked()
    flows = defaultdict(list)
    while client.received:
        frame = client.received.popleft()
        flow, number = name_of(frame.frame)
        flows[flow].append((number, frame.pair))
    return flows


async def send_flows(
    client: VhostTestClient, flows: range, number: int, *, ipv6: bool = False
) -> None:
    for flow in flows:
        await client.send_packet(datagram(flow, number, ipv6=ipv6))


async def test_handshake(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    client = await backend.connect_a(queue_pairs=8)
    assert client.has_feature(Feature.MQ)
    assert await client.connection.get_queue_num() == 16
    assert int.from_bytes(await client.connection.get_config(8, 2), "little") == 8
    await ping_gateway(client, MAC_A, "10.0.0.1")


async def test_every_tx_queue_is_served(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(queue_pairs=8), await backend.connect_b()
    for pair in range(8):
        await a.send_packet(datagram(pair, 0), pair=pair)
        assert name_of(await b.recv_packet()) == (pair, 0)
    stats = backend.nic.stats()
    assert (stats.tx_frames, stats.routed) == (8, 8)
    assert backend.nic_b.stats().rx_frames == 8


@pytest.mark.parametrize("ipv6", [False, True])
async def test_flows_are_spread_and_each_stays_in_its_queue(
    nursery: trio.Nursery, ipv6: bool
) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=PAIRS)
    for number in range(4):
        await send_flows(a, range(FLOWS), number, ipv6=ipv6)
    flows = await received(b)
    pairs = {flow: {pair for _, pair in frames} for flow, frames in flows.items()}
    assert all(len(pair) == 1 for pair in pairs.values())
    assert set().union(*pairs.values()) == set(range(PAIRS))
    in_order = [0, 1, 2, 3]
    assert {flow: [number for number, _ in flows[flow]] for flow in range(FLOWS)} == dict.fromkeys(
        range(FLOWS), in_order
    )


@pytest.mark.parametrize("ipv6", [False, True])
async def test_the_fast_and_the_slow_way_choose_the_same_queue(
    nursery: trio.Nursery, ipv6: bool
) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=PAIRS)
    for flow in range(FLOWS):
        for number, split in enumerate(([], [12, 14], [12, 30], [])):
            await a.send_packet(datagram(flow, number, ipv6=ipv6), split=split)
    flows = await received(b)
    assert len(flows) == FLOWS
    assert all(len({pair for _, pair in frames}) == 1 for frames in flows.values())


async def test_fragments_stay_together(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=PAIRS)
    for ident in range(20):
        for field in (0x2000, 0x0002):
            payload = bytes([ident] * 16)
            packet = ipv4_packet("10.0.0.1", "10.0.0.2", IPPROTO_UDP, payload, fragment=field)
            await a.send_packet(ethernet_frame(GATEWAY_MAC, MAC_A, 0x0800, packet))
    await wait_all_tasks_blocked()
    assert len(b.received) == 40
    assert len({frame.pair for frame in b.received}) == 1


async def test_pair_that_goes_and_comes_back(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=PAIRS)

    async def pairs_used() -> set[int]:
        await send_flows(a, range(FLOWS), 0)
        flows = await received(b)
        assert len(flows) == FLOWS
        return {pair for frames in flows.values() for _, pair in frames}

    assert await pairs_used() == {0, 1, 2, 3}
    await b.connection.set_vring_enable(2, False)
    assert await pairs_used() == {0, 2, 3}
    await b.connection.set_vring_enable(0, False)
    assert await pairs_used() == {2, 3}
    await ping_gateway(b, MAC_B, "10.0.0.2")
    await b.stop_vring(4)
    assert await pairs_used() == {3}
    await b.connection.set_vring_enable(0, True)
    await b.connection.set_vring_enable(2, True)
    assert await pairs_used() == {0, 1, 3}
    assert not backend.nic_b.stats().drops


async def test_guest_that_uses_one_pair(nursery: trio.Nursery) -> None:
    """cloud-hypervisor starts and enables all pairs, whatever the guest does with them."""
    backend = await start(nursery)
    a = await backend.connect_a()
    b = await backend.connect_b(queue_pairs=8, used_pairs=1)
    for number in range(2):
        await send_flows(a, range(FLOWS), number)
    flows = await received(b)
    assert sorted(flows) == list(range(FLOWS))
    assert {pair for frames in flows.values() for _, pair in frames} == {0}
    await ping_gateway(b, MAC_B, "10.0.0.2")


async def test_pair_is_used_from_its_first_buffer_on(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a = await backend.connect_a()
    b = await backend.connect_b(queue_pairs=2, used_pairs=1)
    await wait_all_tasks_blocked()
    for _ in range(FLOWS):
        b.add_rx_buffer(1)
    b.kick(2)
    await wait_all_tasks_blocked()
    await send_flows(a, range(FLOWS), 0)
    flows = await received(b)
    assert {pair for frames in flows.values() for _, pair in frames} == {0, 1}


async def test_pair_whose_driver_never_kicks_is_polled(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a = await backend.connect_a(queue_pairs=2, poll_kick=True, poll_call=True)
    b = await backend.connect_b(queue_pairs=2, poll_kick=True)
    await trio.sleep(0.1)
    await a.send_packet(datagram(0, 0), pair=1)
    assert name_of(await b.recv_packet()) == (0, 0)
    await trio.sleep(0.1)
    for flow in range(16):
        await a.send_packet(datagram(flow, 1), pair=flow % 2)
    flows = await received(b)
    assert {pair for frames in flows.values() for _, pair in frames} == {0, 1}


@pytest.mark.parametrize(
    "vrings",
    [(2,), (3,), (0, 3), (1, 2), (15, 14, 1, 0), (0, 2, 4), (1, 3, 5), (9, 6), (14,)],
    ids=str,
)
async def test_rings_started_in_any_combination(
    nursery: trio.Nursery, vrings: tuple[int, ...]
) -> None:
    backend = await start(nursery)
    a = await backend.connect_a()
    b = await backend.connect_b(queue_pairs=8, handshake=False)
    await b.negotiate()
    await b.share_memory()
    for index in vrings:
        await b.start_vring(index, 0)
    b.fill_rx_queue()
    await wait_all_tasks_blocked()
    await send_flows(a, range(FLOWS), 0)
    flows = await received(b)
    used = {pair for frames in flows.values() for _, pair in frames}
    assert used == {index // 2 for index in vrings if index % 2 == 0}
    for index in vrings:
        if index % 2:
            await b.send_packet(datagram(0, 0), pair=index // 2)
    a.received.clear()  # what it was told of packets to nobody
    await arp_gateway(a, MAC_A, "10.0.0.1")


@SPLIT_ONLY
async def test_broken_ring_costs_itself_only(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a = await backend.connect_a(queue_pairs=2, err=True)
    b = await backend.connect_b(queue_pairs=2)
    async with backend.switch.events() as events:
        a.vrings[3].queue.write_avail_idx(1000)
        a.kick(3, force=True)
        await a.wait_err(3)
        event = await anext(events)
        assert event.kind is NicEventKind.FAULTED
        assert "TX 1" in str(event)
    await a.send_packet(datagram(1, 1), pair=0)
    assert name_of((await b.recv_frame()).frame) == (1, 1)


@SPLIT_ONLY
async def test_flows_leave_a_broken_ring(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=2, err=True)
    b.vrings[2].queue.write_avail_idx(1000)
    await send_flows(a, range(FLOWS), 0)
    await b.wait_err(2)
    await received(b)
    await send_flows(a, range(FLOWS), 1)
    flows = await received(b)
    assert len(flows) == FLOWS
    assert {pair for frames in flows.values() for _, pair in frames} == {0}


async def test_only_the_queue_that_is_out_of_buffers_is_woken(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await start(nursery)
    a = await backend.connect_a()
    b = await backend.connect_b(queue_pairs=PAIRS, rx_buffers=1, refill=False)
    await wait_all_tasks_blocked()
    flushed: list[int] = []
    flush = Port.flush

    def note(port: Port, pair: int = 0) -> NextStep:
        flushed.append(pair)
        return flush(port, pair)

    monkeypatch.setattr(Port, "flush", note)
    for number in range(2):
        await a.send_packet(datagram(3, number))
        await wait_all_tasks_blocked()
    [(_, pair)] = (await received(b))[3]
    assert flushed == [pair]


async def test_reboot_with_several_pairs(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(queue_pairs=3), await backend.connect_b(queue_pairs=3)
    for _ in range(2):
        await wait_all_tasks_blocked()
        for flow in range(FLOWS):
            await a.send_packet(datagram(flow, 0), pair=flow % 3)
        flows = await received(b)
        assert {pair for frames in flows.values() for _, pair in frames} == {0, 1, 2}
        await a.reset_driver()
        await b.reset_driver()


async def test_flows_stay_in_order_in_backlogs(nursery: trio.Nursery) -> None:
    """A guest that is short of buffers in all its pairs, and gives them one by one."""
    backend = await start(nursery)
    a = await backend.connect_a()
    b = await backend.connect_b(queue_pairs=PAIRS, rx_buffers=1, refill=False)
    for number in range(4):
        await send_flows(a, range(FLOWS), number)
    flows = await received(b)
    assert sum(map(len, flows.values())) == PAIRS
    for _ in range(4 * FLOWS):
        b.fill_rx_queue()
        for flow, frames in (await received(b)).items():
            flows[flow] += frames
    in_order = [0, 1, 2, 3]
    numbers = {flow: [number for number, _ in frames] for flow, frames in flows.items()}
    assert numbers == dict.fromkeys(range(FLOWS), in_order)
    assert all(len({pair for _, pair in frames}) == 1 for frames in flows.values())


async def test_last_pair_that_is_restarted_again_and_again(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=8)
    await wait_all_tasks_blocked()
    before = open_files(), trio.lowlevel.current_statistics().tasks_living
    for _ in range(200):
        for index in (14, 15):
            await b.start_vring(index, await b.stop_vring(index))
    await wait_all_tasks_blocked()
    assert (open_files(), trio.lowlevel.current_statistics().tasks_living) == before
    await send_flows(a, range(FLOWS), 0)
    flows = await received(b)
    assert {pair for frames in flows.values() for _, pair in frames} == set(range(8))


async def test_sender_whose_packets_are_routed_leaves_its_rx_tasks_alone(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of them took 0.2 ms of the loop for each packet that came alone."""
    backend = await start(nursery)
    a, b = await backend.connect_a(queue_pairs=8), await backend.connect_b()
    await wait_all_tasks_blocked()
    flushed: list[int] = []
    flush = Port.flush

    def noted(port: Port, pair: int = 0) -> NextStep:
        flushed.append(pair)
        return flush(port, pair)

    monkeypatch.setattr(Port, "flush", noted)
    await a.send_packet(datagram(0, 0))
    assert name_of(await b.recv_packet()) == (0, 0)
    await wait_all_tasks_blocked()
    assert not flushed


async def test_next_frontend_with_fewer_pairs(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a, b = await backend.connect_a(), await backend.connect_b(queue_pairs=8)
    b.disconnect()
    await b.aclose()
    b = await backend.connect_b()
    await send_flows(a, range(FLOWS), 0)
    flows = await received(b)
    assert len(flows) == FLOWS
    assert {pair for frames in flows.values() for _, pair in frames} == {0}


async def test_reset_device_ends_all_pairs(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    protocol = ProtocolFeature.RESET_DEVICE | ProtocolFeature.REPLY_ACK
    b = await backend.connect_b(queue_pairs=3, protocol_features=protocol)
    a = await backend.connect_a()
    await b.connection.reset_device()
    await send_flows(a, range(FLOWS), 0)
    assert not await received(b)
    assert backend.nic.stats().drops == {DropReason.HOST_UNREACHABLE: FLOWS}
    assert not backend.nic_b.stats().drops


async def test_errors_are_limited_for_all_pairs_together(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a = await backend.connect_a(queue_pairs=4)
    nobody = udp_frame(MAC_A, GATEWAY_MAC, "10.0.0.1", "192.0.2.1", 1, 2, b"")
    for number in range(80):
        await a.send_packet(nobody, pair=number % 4)
    await wait_all_tasks_blocked()
    stats = backend.nic.stats()
    assert stats.drops[DropReason.NO_ROUTE] == 80
    assert stats.icmp_errors == 50


async def test_more_rings_than_there_are(nursery: trio.Nursery) -> None:
    backend = await start(nursery)
    a = await backend.connect_a(queue_pairs=8)
    reply = await a.connection.request(Request.SET_VRING_ENABLE, encode_state(16, 1))
    assert reply is not None
    assert any(reply.payload)
    await ping_gateway(a, MAC_A, "10.0.0.1")
