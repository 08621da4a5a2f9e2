"""COLD rings whose kicks a thread waits for, with all that may happen to them meanwhile.

There is another thread, so time is real. The workers have no patience, so that no ring becomes hot
for being kicked quickly.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
import trio

from mvirt_net import NicEventKind, PollingSpec
from tests.harness import VhostTestClient
from tests.harness.client import RX_QUEUE_IDX, TX_QUEUE_IDX
from tests.harness.exchanges import arp_gateway, ping_gateway
from tests.harness.packets import GATEWAY_IP, arp_request, dhcp_discover, parse_dhcp_response
from tests.harness.vhost_user import Request, encode, encode_state, encode_u64

from .test_hot_rings import (
    IMPATIENT,
    IP_A,
    IP_B,
    IP_C,
    MAC_A,
    MAC_B,
    MAC_C,
    datagram,
    dropped,
    number_in,
    start,
    until,
    until_now,
)


def watcher_threads() -> int:
    return sum(thread.name.startswith("mvirt-watcher") for thread in threading.enumerate())


async def exchange(a: VhostTestClient, b: VhostTestClient, count: int = 20) -> None:
    """Packets from one to the other, one at a time."""
    for number in range(count):
        await a.send_packet(datagram(number))
        assert number_in(await b.recv_packet()) == number


def registrations() -> int:
    """What all epoll instances of this process wait for."""
    count = 0
    for path in list(Path("/proc/self/fdinfo").iterdir()):
        # One of them was that of the folder.
        with contextlib.suppress(FileNotFoundError):
            count += path.read_text().count("tfd:")
    return count


class TestThread:
    async def test_one_for_all_rings(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        await ping_gateway(b, MAC_B, IP_B)
        assert watcher_threads() == 1
        await backend.aclose()
        assert watcher_threads() == 0

    async def test_none_without_workers(self, nursery: trio.Nursery) -> None:
        _, a, b = await start(nursery, PollingSpec(workers=0))
        await exchange(a, b)
        assert watcher_threads() == 0

    async def test_none_to_be_had(
        self, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tasks wait for kicks themselves."""

        async def refuse(*_args: object, **_options: object) -> None:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
        _, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        await arp_gateway(a, MAC_A, IP_A)
        assert watcher_threads() == 0

    async def test_needs_no_event_loop(self, nursery: trio.Nursery) -> None:
        """What is for another guest gets there though the loop is busy with something else."""
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b, 1)
        a.send_packet_nowait(datagram(1))
        until_now(lambda: backend.nic.stats().routed == 2)
        assert number_in(await b.recv_packet()) == 1


class TestTraffic:
    async def test_services(self, nursery: trio.Nursery) -> None:
        _, a, b = await start(nursery, IMPATIENT)
        for seq_no in range(20):
            await arp_gateway(a, MAC_A, IP_A)
            await ping_gateway(a, MAC_A, IP_A, seq_no=seq_no)
            await a.send_packet(dhcp_discover(MAC_A, 0x1234))
            assert parse_dhcp_response(await a.recv_packet()).xid == 0x1234
            await exchange(a, b, 2)

    async def test_receiver_without_buffers(self, nursery: trio.Nursery) -> None:
        """What waits for a guest that is out of buffers comes when it has some again."""
        backend, a, _ = await start(nursery, IMPATIENT)
        nic = await backend.add_nic("c", MAC_C, IP_C)
        c = await backend.connect(nic, rx_buffers=4, refill=False)
        for number in range(40):
            await a.send_packet(datagram(number, dst=IP_C))
        for number in range(40):
            assert number_in(await c.recv_packet()) == number
            c.add_rx_buffer()
            c.kick(RX_QUEUE_IDX)
        assert not nic.stats().drops

    async def test_kicks_that_come_before_the_rings_are_empty(self, nursery: trio.Nursery) -> None:
        backend, a, _ = await start(nursery, IMPATIENT)
        for rounds in range(1, 21):
            await a.send_burst([dropped(MAC_A)] * 100)
            for _ in range(3):
                a.kick(TX_QUEUE_IDX, force=True)
            assert backend.nic.stats().tx_frames == 100 * rounds


class TestChanges:
    async def test_frontend_leaves(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        a.disconnect()
        await until(lambda: not backend.nic.connected)
        await b.send_packet(dropped(MAC_B))
        await exchange(await backend.connect_a(), b)

    async def test_nic_is_removed(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        with trio.fail_after(10):
            await backend.switch.remove_nic(backend.nic.spec.name)
        await ping_gateway(b, MAC_B, IP_B)

    async def test_receiver_is_removed(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b, 1)
        await backend.switch.remove_nic("b")
        await a.send_packet(datagram(2))
        assert backend.nic.stats().routed == 1

    async def test_memory_vanishes(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        async with backend.switch.events() as events:
            [info] = a.memory.get_region_info()
            os.ftruncate(info.fd, 0)
            os.eventfd_write(a.vrings[TX_QUEUE_IDX].kick or -1, 1)
            with trio.fail_after(30):
                event = await events.receive()
            os.ftruncate(info.fd, info.size)
        assert event.kind is NicEventKind.FAULTED
        await until(lambda: not backend.nic.connected)
        await ping_gateway(b, MAC_B, IP_B)

    async def test_ring_is_broken(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT, err=True)
        await exchange(a, b)
        async with backend.switch.events() as events:
            a.tx_queue.write_avail_idx((a.tx_queue.next_avail + 0x4000) & 0xFFFF)
            a.kick(TX_QUEUE_IDX, force=True)
            await a.wait_err(TX_QUEUE_IDX)
            with trio.fail_after(30):
                event = await events.receive()
        assert (event.kind, event.detail) == (
            NicEventKind.FAULTED,
            "the guest's driver broke its TX ring",
        )

    async def test_ring_is_stopped_and_started(self, nursery: trio.Nursery) -> None:
        backend, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        base = await a.stop_vring(TX_QUEUE_IDX)
        assert base == backend.nic.stats().tx_frames
        a.kick(TX_QUEUE_IDX, force=True)
        await a.start_vring(TX_QUEUE_IDX, base)
        await exchange(a, b)

    async def test_memory_is_exchanged(self, nursery: trio.Nursery) -> None:
        _, a, b = await start(nursery, IMPATIENT)
        for _ in range(20):
            await a.share_memory()
            await exchange(a, b, 2)

    async def test_kick_is_exchanged(self, nursery: trio.Nursery) -> None:
        """The former eventfd is closed; nobody waits for it, and nothing is lost with it."""
        _, a, b = await start(nursery, IMPATIENT)
        kick = a.vrings[TX_QUEUE_IDX].kick
        for _ in range(20):
            await exchange(a, b, 2)
            await a.connection.set_vring_kick(TX_QUEUE_IDX, kick)

    async def test_former_kick_is_not_waited_for(self, nursery: trio.Nursery) -> None:
        """The frontend keeps it open, so that closing it alone does not end that."""
        _, a, b = await start(nursery, IMPATIENT)
        kick = a.vrings[TX_QUEUE_IDX].kick
        await exchange(a, b, 1)
        before = registrations()
        for _ in range(10):
            await a.connection.set_vring_kick(TX_QUEUE_IDX, kick)
            await exchange(a, b, 1)
        assert registrations() <= before

    @pytest.mark.parametrize("restarted", [False, True])
    async def test_kick_is_exchanged_while_the_ring_comes_back(
        self, nursery: trio.Nursery, restarted: bool
    ) -> None:
        """The ring was given back for an ARP request, a kick for the next frame has come, and then
        the loop finds all at once."""
        backend, a, _ = await start(nursery, IMPATIENT)
        await a.send_packet(dropped(MAC_A))
        vring, new = a.vrings[TX_QUEUE_IDX], os.eventfd(0, os.EFD_NONBLOCK)
        assert vring.kick is not None
        a.send_packet_nowait(arp_request(MAC_A, IP_A, GATEWAY_IP))
        until_now(lambda: backend.nic.stats().tx_frames == 2)
        a.send_packet_nowait(dropped(MAC_A))
        if restarted:
            a.connection.send_nowait(encode(Request.GET_VRING_BASE, encode_state(TX_QUEUE_IDX, 0)))
        a.connection.send_nowait(encode(Request.SET_VRING_KICK, encode_u64(TX_QUEUE_IDX)), [new])
        old, vring.kick = vring.kick, new
        os.close(old)
        await until(lambda: backend.nic.stats().tx_frames == 3)

    async def test_kick_is_taken_away(self, nursery: trio.Nursery) -> None:
        """The backend looks at the ring without being told."""
        _, a, b = await start(nursery, IMPATIENT)
        await exchange(a, b)
        await a.connection.set_vring_kick(TX_QUEUE_IDX, None)
        await exchange(a, b, 3)
