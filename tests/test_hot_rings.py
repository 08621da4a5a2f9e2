"""Rings that become hot and cold again, with all that may happen to them meanwhile.

There is a worker thread, so time is real. A ring is made hot by frames enough for several turns, or
by kicks that come quickly for a worker with a second's patience, which is slow enough for any
machine. Nothing sleeps to see whether something happens.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from mvirt_net import Nic, NicEventKind, PollingSpec
from mvirt_net.dataplane.slowpath import SlowPath
from mvirt_net.ffi import Punt
from mvirt_net.model import DropReason
from tests.harness import (
    GATEWAY_IP,
    GATEWAY_MAC,
    RoutingNicConfig,
    RoutingTestBackend,
    TestBackend,
    VhostTestClient,
)
from tests.harness.client import RX_QUEUE_IDX, TX_QUEUE_IDX
from tests.harness.exchanges import arp_gateway, ping_gateway
from tests.harness.memory import Region
from tests.harness.packets import (
    arp_request,
    dhcp_discover,
    ethernet_frame,
    mac_bytes,
    parse_dhcp_response,
    parse_ethernet,
    parse_ipv4,
    parse_udp,
    udp_frame,
)

MAC_A, MAC_B, MAC_C = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:0c"
IP_A, IP_B, IP_C = "10.0.0.1", "10.0.0.2", "10.0.0.3"

PATIENT = PollingSpec(busy_poll=1_000_000)
IMPATIENT = PollingSpec(busy_poll=0)
LARGE = 65_000
BURST = 120
"""Large frames: 7 turns of 1 MiB, of which 4 make a ring hot."""
ROOM = (Region(0, 32 << 20),)
"""Guest memory for a burst."""


def dropped(mac: str, size: int = 60) -> bytes:
    """A frame of a protocol that nobody knows."""
    return ethernet_frame(GATEWAY_MAC, mac_bytes(mac), 0x88B5, bytes(size - 14))


def datagram(number: int, src: str = IP_A, dst: str = IP_B, mac: str = MAC_A) -> bytes:
    return udp_frame(mac, GATEWAY_MAC, src, dst, 1000, 2000, number.to_bytes(4, "big"))


def number_in(frame: bytes) -> int:
    header, payload = parse_ipv4(parse_ethernet(frame)[1])
    return int.from_bytes(parse_udp(header, payload)[2], "big")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  (there is no event for that)
            await trio.sleep(0.001)


def until_now(condition: Callable[[], bool]) -> None:
    """Keep the event loop from everything until another thread has brought something about."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


async def start(
    nursery: trio.Nursery, polling: PollingSpec = PATIENT, **options: Any
) -> tuple[RoutingTestBackend, VhostTestClient, VhostTestClient]:
    """A backend, and a guest on each of its two NICs, the first of which has `options`."""
    backend = await RoutingTestBackend.start(
        nursery,
        RoutingNicConfig("a", MAC_A, IP_A),
        RoutingNicConfig("b", MAC_B, IP_B),
        polling=polling,
    )
    return backend, await backend.connect_a(**options), await backend.connect_b()


async def heat_up(
    backend: TestBackend, client: VhostTestClient, mac: str = MAC_A, nic: Nic | None = None
) -> None:
    """One frame after another until the NIC's ring is hot; by default the first one's."""
    for _ in range(200):
        await client.send_packet(dropped(mac))
        if (nic or backend.nic).hot:
            # This one is the worker's.
            await client.send_packet(dropped(mac))
            return
    raise AssertionError("the ring stays cold")


def worker_threads() -> int:
    return sum(thread.name.startswith("mvirt-worker") for thread in threading.enumerate())


async def test_receiver_is_woken_between_answers(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest has much to ask of services, and then sends to one that is out of buffers."""
    monkeypatch.setattr("mvirt_net.dataplane.backend.WORK_PER_TURN", 0.0)
    backend, a, _ = await start(nursery)
    nic = await backend.add_nic("c", MAC_C, IP_C)
    c = await backend.connect(nic, rx_buffers=1, refill=False)
    await a.send_packet(datagram(0, dst=IP_C))
    assert number_in(await c.recv_packet()) == 0
    await heat_up(backend, a)
    answers, waits = 0, []
    answer = SlowPath.answer

    def send_now(frame: bytes) -> None:
        before = backend.nic.stats().tx_frames
        a.send_packet_nowait(frame)
        until_now(lambda: backend.nic.stats().tx_frames > before)

    def count_answers(path: SlowPath, punt: Punt) -> DropReason | None:
        nonlocal answers
        answers += 1
        if answers == 1:
            # Once it has taken the second one, the worker has said what the first one leaves to do.
            send_now(datagram(1, dst=IP_C))
            send_now(dropped(MAC_A))
        waits.append(any(ring.wants_kicks for ring in nic.rings() if ring.queue == RX_QUEUE_IDX))
        return answer(path, punt)

    monkeypatch.setattr(SlowPath, "answer", count_answers)
    for number in range(8):
        a.queue_tx(arp_request(MAC_A, IP_A, GATEWAY_IP), publish=number == 7)
    await until(lambda: answers == 8)
    assert not waits[0]
    assert waits[-1]


class TestBecomingHot:
    async def test_busy(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery, IMPATIENT, regions=ROOM)
        await a.send_burst([dropped(MAC_A, LARGE)] * BURST)
        await until(lambda: not backend.nic.hot)
        stats = backend.nic.stats()
        assert stats.tx_frames == BURST
        assert stats.takeovers == 1

    async def test_kicked_quickly(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        assert backend.nic.stats().takeovers == 1
        assert backend.switch.hot_rings == 1

    async def test_polled_for_nobody_kicks(self, nursery: trio.Nursery) -> None:
        """A ring without kick descriptor is only ever busy."""
        backend, a, _ = await start(nursery, IMPATIENT, regions=ROOM, poll_kick=True)
        await a.send_burst([dropped(MAC_A, LARGE)] * BURST)
        await until(lambda: not backend.nic.hot)
        await a.send_packet(dropped(MAC_A))
        assert backend.nic.stats().takeovers == 1

    async def test_one_frame_now_and_then(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery, IMPATIENT)
        for _ in range(200):
            await a.send_packet(dropped(MAC_A))
        assert backend.nic.stats().takeovers == 0
        assert worker_threads() == 0

    async def test_not_for_services(self, nursery: trio.Nursery) -> None:
        """A flood of the gateway waits for Python, and a thread that spins does not help."""
        backend, a, _ = await start(nursery, IMPATIENT, ring_size=1024)
        await a.send_burst([arp_request(MAC_A, IP_A, GATEWAY_IP)] * 600)
        assert backend.nic.stats().punts == 600
        assert backend.nic.stats().takeovers == 0

    async def test_without_workers(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery, PollingSpec(workers=0), regions=ROOM)
        await a.send_burst([dropped(MAC_A, LARGE)] * BURST)
        assert backend.nic.stats().takeovers == 0
        assert backend.nic.stats().tx_frames == BURST


class TestThreads:
    async def test_none_before_the_first_hot_ring(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        assert worker_threads() == 0
        await heat_up(backend, a)
        assert worker_threads() == 1

    async def test_several(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, PollingSpec(workers=2, busy_poll=1_000_000))
        await heat_up(backend, a)
        await heat_up(backend, b, MAC_B, backend.nic_b)
        assert backend.nic.hot
        await until(lambda: worker_threads() == 2)

    async def test_none_to_be_had(
        self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def refuse(*_args: object, **_options: object) -> None:
            raise RuntimeError("can't start new thread")

        backend, a, _ = await start(nursery, IMPATIENT, regions=ROOM)
        monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
        for _ in range(3):
            await a.send_burst([dropped(MAC_A, LARGE)] * BURST)
        stats = backend.nic.stats()
        assert stats.tx_frames == 3 * BURST
        assert stats.takeovers == 1
        assert not backend.nic.hot

    async def test_on_a_processor_of_their_own(self, nursery: trio.Nursery) -> None:
        cpu = max(os.sched_getaffinity(0))
        backend, a, _ = await start(nursery, PollingSpec(busy_poll=1_000_000, worker_cpus=(cpu,)))
        await heat_up(backend, a)
        [worker] = [t for t in threading.enumerate() if t.name.startswith("mvirt-worker")]
        assert worker.native_id is not None
        assert os.sched_getaffinity(worker.native_id) == {cpu}
        await backend.aclose()
        assert os.sched_getaffinity(worker.native_id) == os.sched_getaffinity(0)

    async def test_on_a_processor_that_there_is_not(
        self, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend, a, _ = await start(nursery, PollingSpec(busy_poll=1_000_000, worker_cpus=(1023,)))
        await heat_up(backend, a)
        await a.send_packet(dropped(MAC_A))
        assert "worker is not pinned" in caplog.text


class TestTraffic:
    async def test_arrives_in_order(self, nursery: trio.Nursery) -> None:
        """Each burst begins with the ring's task, goes on with a worker, and ends with the task."""
        backend, a, b = await start(nursery, PollingSpec(busy_poll=100), regions=ROOM)
        for rounds in range(20):
            first = rounds * BURST // 2
            numbers = range(first, first + BURST // 2)
            large = [dropped(MAC_A, LARGE)] * 2
            await a.send_burst([frame for n in numbers for frame in (*large, datagram(n))])
            await until(lambda: not backend.nic.hot)
            for number in numbers:
                assert number_in(await b.recv_packet()) == number
        assert backend.nic.stats().takeovers >= 20
        assert not backend.nic_b.stats().drops

    async def test_no_kicks_while_hot(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery)
        await heat_up(backend, a)
        kicks = a.vrings[TX_QUEUE_IDX].kicks
        for number in range(100):
            await a.send_packet(datagram(number))
            assert number_in(await b.recv_packet()) == number
        assert backend.nic.hot
        assert a.vrings[TX_QUEUE_IDX].kicks <= kicks + 1

    async def test_no_calls_that_were_not_asked_for(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        a.tx_queue.disable_call()
        calls = backend.nic.stats().calls
        for number in range(100):
            a.send_packet_nowait(dropped(MAC_A))
            await until(lambda number=number: a.tx_queue.used_count() > number)  # type: ignore[misc]
        assert backend.nic.stats().calls <= calls + 1

    @pytest.mark.parametrize("busy_poll", [0, 1, 50, 1000])
    async def test_a_frame_after_the_release(self, nursery: trio.Nursery, busy_poll: int) -> None:
        """Hot by a burst, cold again, and then a single frame with no kick but one asked for."""
        backend, a, _ = await start(nursery, PollingSpec(busy_poll=busy_poll), regions=ROOM)
        for rounds in range(1, 31):
            await a.send_burst([dropped(MAC_A, LARGE)] * BURST)
            for _ in range(3):
                await a.send_packet(dropped(MAC_A))
            await until(lambda: not backend.nic.hot)
            await a.send_packet(dropped(MAC_A))
            assert backend.nic.stats().tx_frames == rounds * (BURST + 4)
        assert backend.nic.stats().takeovers >= 30

    async def test_services_while_hot(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        for seq_no in range(20):
            await arp_gateway(a, MAC_A, IP_A)
            await ping_gateway(a, MAC_A, IP_A, seq_no=seq_no)
            await a.send_packet(dhcp_discover(MAC_A, 0x1234))
            assert parse_dhcp_response(await a.recv_packet()).xid == 0x1234
        assert backend.nic.hot

    async def test_receiver_without_buffers(self, nursery: trio.Nursery) -> None:
        """What waits for a guest that is out of buffers comes when it has some again."""
        backend, a, _ = await start(nursery)
        nic = await backend.add_nic("c", MAC_C, IP_C)
        c = await backend.connect(nic, rx_buffers=4, refill=False)
        await heat_up(backend, a)
        await a.send_burst([datagram(number, dst=IP_C) for number in range(40)])
        assert backend.nic.hot
        for number in range(40):
            assert number_in(await c.recv_packet()) == number
            c.add_rx_buffer()
            c.kick(RX_QUEUE_IDX)
        assert not nic.stats().drops


class TestChanges:
    async def test_frontend_leaves(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery)
        await heat_up(backend, a)
        a.disconnect()
        await until(lambda: not backend.nic.connected)
        assert not backend.nic.hot
        assert backend.switch.hot_rings == 0
        await b.send_packet(dropped(MAC_B))
        again = await backend.connect_a()
        await ping_gateway(again, MAC_A, IP_A)

    async def test_nic_is_removed(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery)
        await heat_up(backend, a)
        with trio.fail_after(10):
            await backend.switch.remove_nic(backend.nic.spec.name)
        assert backend.switch.hot_rings == 0
        await ping_gateway(b, MAC_B, IP_B)

    async def test_receiver_is_removed(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        await a.send_packet(datagram(1))
        await backend.switch.remove_nic("b")
        await a.send_packet(datagram(2))
        assert backend.nic.hot
        assert backend.nic.stats().routed == 1

    async def test_switch_is_closed(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        with trio.fail_after(10):
            await backend.aclose()
        assert worker_threads() == 0

    async def test_memory_vanishes(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery)
        await heat_up(backend, a)
        async with backend.switch.events() as events:
            [info] = a.memory.get_region_info()
            os.ftruncate(info.fd, 0)
            with trio.fail_after(30):
                event = await events.receive()
            os.ftruncate(info.fd, info.size)
        assert event.kind is NicEventKind.FAULTED
        await until(lambda: not backend.nic.connected)
        assert not backend.nic.hot
        await ping_gateway(b, MAC_B, IP_B)

    async def test_ring_is_broken(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery, err=True)
        await heat_up(backend, a)
        async with backend.switch.events() as events:
            a.tx_queue.write_avail_idx((a.tx_queue.next_avail + 0x4000) & 0xFFFF)
            await a.wait_err(TX_QUEUE_IDX)
            with trio.fail_after(30):
                event = await events.receive()
        assert (event.kind, event.detail) == (
            NicEventKind.FAULTED,
            "the guest's driver broke its TX ring",
        )
        assert not backend.nic.hot

    async def test_ring_is_stopped_and_started(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        base = await a.stop_vring(TX_QUEUE_IDX)
        await until(lambda: not backend.nic.hot)
        assert base == backend.nic.stats().tx_frames
        await a.start_vring(TX_QUEUE_IDX, base)
        await heat_up(backend, a)

    async def test_memory_is_exchanged(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        for _ in range(20):
            await a.share_memory()
            await a.send_packet(dropped(MAC_A))
        assert backend.nic.hot

    async def test_call_is_exchanged(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        call = a.vrings[TX_QUEUE_IDX].call
        for _ in range(20):
            await a.connection.set_vring_call(TX_QUEUE_IDX, None)
            await a.connection.set_vring_call(TX_QUEUE_IDX, call)
            await a.send_packet(dropped(MAC_A))
        assert backend.nic.hot

    async def test_ring_is_disabled(self, nursery: trio.Nursery) -> None:
        """Taken and thrown away, by whoever has the ring."""
        backend, a, _ = await start(nursery)
        await heat_up(backend, a)
        await a.connection.set_vring_enable(TX_QUEUE_IDX, False)
        await a.send_packet(datagram(1))
        assert backend.nic.stats().routed == 0


class TestSeveralPairs:
    """Each TX ring of a NIC is hot or cold for itself."""

    async def test_each_ring_has_a_worker_of_its_own(self, nursery: trio.Nursery) -> None:
        backend = await RoutingTestBackend.start(
            nursery,
            RoutingNicConfig("a", MAC_A, IP_A),
            RoutingNicConfig("b", MAC_B, IP_B),
            polling=PollingSpec(workers=2, busy_poll=1_000_000),
        )
        a = await backend.connect_a(queue_pairs=2)
        b = await backend.connect_b(queue_pairs=2)
        for number in range(400):
            await a.send_packet(datagram(number), pair=number % 2)
            assert number_in(await b.recv_packet()) == number
            if backend.nic.stats().takeovers == 2:
                break
        assert backend.nic.stats().takeovers == 2
        await until(lambda: worker_threads() == 2)
        # Hot, both are served, and one that stops leaves the other alone.
        for pair in (0, 1, 0, 1):
            await a.send_packet(datagram(pair), pair=pair)
            assert number_in(await b.recv_packet()) == pair
        await a.stop_vring(3)
        await a.send_packet(datagram(7), pair=0)
        assert number_in(await b.recv_packet()) == 7
        assert backend.nic.hot

    async def test_frontend_that_hangs_up(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, queue_pairs=3)
        for number in range(400):
            await a.send_packet(datagram(number), pair=number % 3)
            await b.recv_packet()
            if backend.nic.stats().takeovers == 3:
                break
        a.disconnect()
        await until(lambda: not backend.nic.connected)
        assert not backend.nic.hot
