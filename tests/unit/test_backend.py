"""One connection: the conversation, the two rings, and what bad frontends and guests do to it."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mvirt_net.dataplane import ArpResponder, IcmpResponder, Lookout, VhostNetBackend
from mvirt_net.dataplane.backend import (
    BREAKS_LOGGED,
    POLL_INTERVAL,
    REFUSALS_LOGGED,
    WORK_PER_TURN,
)
from mvirt_net.dataplane.doorbell import Doorbell
from mvirt_net.dataplane.packet import Service
from mvirt_net.errors import ConnectionBroken, CoreError, GuestMemoryLost
from mvirt_net.ffi import Network, Port, work_of
from mvirt_net.model import GATEWAY_MAC, DropReason, MacAddress, PuntKind, SocketAccess
from mvirt_net.unix_listener import open_unix_listener
from mvirt_net.vhost_user import Session
from tests.harness.client import RX_QUEUE_IDX, TX_QUEUE_IDX, VhostTestClient
from tests.harness.memory import create_memfd
from tests.harness.packets import (
    GATEWAY_IP,
    arp_request,
    ethernet_frame,
    icmp_echo_request,
    is_arp_reply,
    is_icmp_echo_reply,
)
from tests.harness.vhost_user import (
    VRING_NOFD,
    BackendHungUpError,
    Connection,
    ProtocolFeature,
    Request,
    encode,
    encode_u64,
)

MAC = MacAddress.parse("52:54:00:12:34:56")
IP = "10.0.0.5"
SERVICES: Mapping[PuntKind, Service] = {
    PuntKind.ARP: ArpResponder(MAC, IPv4Address(IP)),
    PuntKind.ICMPV4: IcmpResponder(MAC),
}
ARP = arp_request(MAC.packed, IP, GATEWAY_IP)
PING = icmp_echo_request(MAC.packed, GATEWAY_MAC.packed, IP, GATEWAY_IP, 1, 1, b"ping")
FRAME = ethernet_frame(MAC.packed, GATEWAY_MAC.packed, 0x0800, bytes(100))
"""For the guest."""


def make_port() -> Port:
    port = Port(Network(), MAC)
    port.set_routes([ip_network(IP)])
    return port


@attrs.define(eq=False)
class Serving:
    """A backend for one frontend, which may connect to `path`."""

    path: Path
    services: Mapping[PuntKind, Service]
    nursery: trio.Nursery
    port: Port = attrs.field(factory=make_port)
    backend: VhostNetBackend = attrs.field(init=False)
    connected: int = 0
    faults: list[str] = attrs.field(factory=list)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None
    """What `serve` raised."""

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        with open_unix_listener(self.path, SocketAccess()) as listener:
            task_status.started()
            await trio.lowlevel.wait_readable(listener.sock)
            sock = listener.accept_nowait()
        assert sock is not None
        with contextlib.closing(Lookout(self.nursery)) as lookout:
            await self.serve(sock, lookout)

    async def serve(self, sock: socket.socket, lookout: Lookout) -> None:
        self.backend = VhostNetBackend(
            sock,
            self.port,
            mac=MAC,
            mtu=1500,
            services=lambda _mtu: self.services,
            lookout=lookout,
            on_connected=self.count_connection,
            on_fault=self.faults.append,
        )
        try:
            with self.scope:
                await self.backend.serve()
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    def count_connection(self) -> None:
        self.connected += 1

    async def connect(self, **options: Any) -> VhostTestClient:
        """A guest, handshake done."""
        return await VhostTestClient.connect(self.nursery, self.path, **options)

    async def wait_error(self) -> Exception | None:
        """What the connection ends with; it must end by itself."""
        with trio.fail_after(60):
            await self.ended.wait()
        return self.error

    def drops(self) -> Mapping[DropReason, int]:
        return self.port.stats().drops


Serve = Callable[..., Awaitable[Serving]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start backends, each on a socket of its own; all ends with the test."""
    everything: list[Serving] = []
    async with trio.open_nursery() as nursery:

        async def serve(services: Mapping[PuntKind, Service] = SERVICES) -> Serving:
            path = tmp_path / f"{len(everything)}.sock"
            serving = Serving(path, services, nursery)
            everything.append(serving)
            await nursery.start(serving.run)
            return serving

        yield serve
        nursery.cancel_scope.cancel()
    for serving in everything:
        serving.port.close()


@pytest.fixture
async def serving(serve: Serve) -> Serving:
    return await serve()


@pytest.fixture
async def connection(serving: Serving) -> AsyncIterator[Connection]:
    """A frontend without a guest, connected to `serving`."""
    with contextlib.closing(await Connection.open(serving.path)) as connection:
        yield connection


def guest_mappings() -> int:
    """Mappings of the harness's guest memory in this process, its own among them."""
    return Path("/proc/self/maps").read_text().count("memfd:vhost-test-mem")


def tasks_waiting_to_read() -> int:
    statistics = trio.lowlevel.current_statistics().io_statistics
    assert statistics.backend == "epoll"
    return statistics.tasks_waiting_read


async def is_quiet(bell: Doorbell) -> bool:
    """Whether whoever waits for it has to wait."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        waiting = bool(nursery.child_tasks)
        nursery.cancel_scope.cancel()
    return waiting


class TestDoorbell:
    async def test_remembers_one_ring(self) -> None:
        bell = Doorbell()
        bell.ring()
        bell.ring()
        await bell.wait()
        assert await is_quiet(bell)

    @pytest.mark.parametrize("ring_first", [True, False])
    async def test_rings_through_a_wait_for_a_descriptor(
        self, nursery: trio.Nursery, ring_first: bool
    ) -> None:
        bell = Doorbell()
        quiet = os.eventfd(0)
        if ring_first:
            bell.ring()
        nursery.start_soon(bell.wait_or_readable, quiet)
        await trio.testing.wait_all_tasks_blocked()
        if not ring_first:
            bell.ring()
            await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert await is_quiet(bell)
        os.close(quiet)

    async def test_readable(self) -> None:
        bell = Doorbell()
        ready = os.eventfd(1)
        await bell.wait_or_readable(ready)
        os.close(ready)

    async def test_closed_by_another_task(self, nursery: trio.Nursery) -> None:
        bell = Doorbell()
        fd = os.eventfd(0)
        nursery.start_soon(bell.wait_or_readable, fd)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(fd)
        os.close(fd)
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks


class TestTraffic:
    async def test_services_answer(self, serving: Serving) -> None:
        client = await serving.connect()
        await client.send_packet(ARP)
        assert is_arp_reply(await client.recv_packet())
        await client.send_packet(PING)
        assert is_icmp_echo_reply(await client.recv_packet())
        stats = serving.port.stats()
        assert (stats.tx_frames, stats.rx_frames, stats.punts) == (2, 2, 2)

    async def test_more_frames_than_one_turn_takes(self, serving: Serving) -> None:
        client = await serving.connect(rx_buffers=100)
        await client.send_burst([PING] * 100)
        for _ in range(100):
            await client.recv_packet()

    async def test_others_get_their_turn_between_answers(
        self, serve: Serve, nursery: trio.Nursery
    ) -> None:
        turns = Turns()
        seen: list[int] = []

        class Slow:
            def handle(self, _frame: bytes) -> DropReason:
                seen.append(turns.taken)
                return DropReason.ARP_IGNORED

        serving = await serve({PuntKind.ARP: Slow()})
        client = await serving.connect()
        nursery.start_soon(turns.count)
        await client.send_burst([ARP] * 120)
        with trio.fail_after(5):
            while len(seen) < 120:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        # Two turns in a row, when the other task comes first in one round and last in the next.
        most = 2 * WORK_PER_TURN / work_of(PuntKind.ARP, len(ARP))
        assert max(collections.Counter(seen).values()) <= most

    @pytest.mark.parametrize(
        ("frame", "reason"), [(ARP, DropReason.ARP_IGNORED), (PING, DropReason.ICMP_IGNORED)]
    )
    async def test_no_service(self, serve: Serve, frame: bytes, reason: DropReason) -> None:
        serving = await serve({})
        client = await serving.connect()
        await client.send_packet(frame)
        await trio.testing.wait_all_tasks_blocked()
        assert serving.drops() == {reason: 1}

    async def test_service_that_does_not_answer(self, serving: Serving) -> None:
        client = await serving.connect()
        await client.send_packet(arp_request(MAC.packed, IP, "10.0.0.9"))
        await trio.testing.wait_all_tasks_blocked()
        assert serving.drops() == {DropReason.ARP_IGNORED: 1}

    @pytest.mark.parametrize("reply", [None, b"short", bytes(70000)])
    async def test_service_with_a_bug(
        self, serve: Serve, caplog: pytest.LogCaptureFixture, reply: bytes | None
    ) -> None:
        class Buggy:
            def handle(self, _frame: bytes) -> bytes:
                if reply is None:
                    raise RuntimeError("a bug")
                return reply

        serving = await serve({**SERVICES, PuntKind.ARP: Buggy()})
        client = await serving.connect()
        await client.send_burst([ARP] * 3)
        await client.send_packet(PING)
        assert is_icmp_echo_reply(await client.recv_packet())
        assert serving.drops() == {DropReason.ARP_IGNORED: 3}
        [record] = [record for record in caplog.records if record.exc_info]
        assert record.message == "service failed"

    async def test_inject(self, serving: Serving) -> None:
        client = await serving.connect()
        assert serving.backend.inject(FRAME)
        assert await client.recv_packet() == FRAME

    async def test_inject_before_there_is_a_ring(
        self, serving: Serving, connection: Connection
    ) -> None:
        await connection.set_owner()
        await connection.get_features()
        assert not serving.backend.inject(FRAME)
        assert serving.drops() == {DropReason.RX_RING_DOWN: 1}
        with pytest.raises(CoreError):
            serving.backend.inject(b"short")

    async def test_rx_waits_for_buffers(self, serving: Serving) -> None:
        client = await serving.connect(rx_buffers=0)
        for _ in range(3):
            assert serving.backend.inject(FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert serving.port.backlog == 3
        for _ in range(3):
            client.add_rx_buffer()
        client.kick(RX_QUEUE_IDX)
        for _ in range(3):
            assert await client.recv_packet() == FRAME

    async def test_rx_needs_no_kick(self, serving: Serving) -> None:
        """What a driver gave before the ring started counts at once (and after each restart)."""
        client = await serving.connect()
        for _ in range(3):
            base = await client.stop_vring(RX_QUEUE_IDX)
            await client.start_vring(RX_QUEUE_IDX, base)
            assert serving.backend.inject(FRAME)
            assert await client.recv_packet() == FRAME
        assert client.vrings[RX_QUEUE_IDX].kicks <= 1

    async def test_tx_from_before_the_ring_started_is_taken(self, serving: Serving) -> None:
        client = await serving.connect()
        base = await client.stop_vring(TX_QUEUE_IDX)
        client.queue_tx(ARP)
        await trio.testing.wait_all_tasks_blocked()
        assert client.pending_tx_count() == 1
        await client.start_vring(TX_QUEUE_IDX, base)
        assert is_arp_reply(await client.recv_packet())

    async def test_kick_of_a_stopped_ring_wakes_nobody(self, serving: Serving) -> None:
        client = await serving.connect()
        await client.stop_vring(TX_QUEUE_IDX)
        client.kick(TX_QUEUE_IDX, force=True)
        kicks = serving.port.stats().kicks
        await trio.testing.wait_all_tasks_blocked()
        assert serving.port.stats().kicks == kicks

    async def test_nobody_waits_for_a_descriptor_that_was_closed(self, serving: Serving) -> None:
        """Its number may be another's by then."""
        client = await serving.connect()
        await trio.testing.wait_all_tasks_blocked()
        waiting = tasks_waiting_to_read()
        await client.stop_vring(TX_QUEUE_IDX)
        await trio.testing.wait_all_tasks_blocked()
        assert tasks_waiting_to_read() == waiting - 1

    async def test_driver_that_never_kicks_is_polled(
        self, serving: Serving, autojump_clock: object
    ) -> None:
        client = await serving.connect(poll_kick=True, poll_call=True, rx_buffers=0)
        client.queue_tx(ARP)
        await trio.sleep(2 * POLL_INTERVAL)
        assert serving.port.backlog == 1
        client.add_rx_buffer()
        assert is_arp_reply(await client.recv_packet(timeout=3 * POLL_INTERVAL))


class TestRingTrouble:
    async def test_broken_ring_is_reported_once(
        self, serving: Serving, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await serving.connect(err=True)
        client.tx_queue.write_avail_idx(1000)
        client.kick(TX_QUEUE_IDX, force=True)
        await client.wait_err(TX_QUEUE_IDX)
        for _ in range(3):
            client.kick(TX_QUEUE_IDX, force=True)
            await trio.testing.wait_all_tasks_blocked()
        assert serving.faults == ["the guest's driver broke its TX ring"]
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == ["ring broken"]

    async def test_good_ring_is_not_locked_to_see_that(
        self, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody else may be at work on it."""
        client = await serving.connect()
        looks: list[int] = []
        ring_broken = Port.ring_broken

        def look(port: Port, queue: int) -> bool:
            looks.append(queue)
            return ring_broken(port, queue)

        monkeypatch.setattr(Port, "ring_broken", look)
        for _ in range(3):
            await client.send_packet(ARP)
            assert is_arp_reply(await client.recv_packet())
        assert TX_QUEUE_IDX not in looks

    async def test_broken_ring_does_not_stop_the_other(self, serving: Serving) -> None:
        client = await serving.connect(err=True)
        client.tx_queue.write_avail_idx(1000)
        client.kick(TX_QUEUE_IDX, force=True)
        await client.wait_err(TX_QUEUE_IDX)
        serving.backend.inject(FRAME)
        assert await client.recv_packet() == FRAME

    async def test_broken_rx_ring(self, serving: Serving) -> None:
        client = await serving.connect(err=True)
        client.rx_queue.write_avail_idx(1000)
        serving.backend.inject(FRAME)
        await client.wait_err(RX_QUEUE_IDX)
        await trio.testing.wait_all_tasks_blocked()
        assert serving.faults == ["the guest's driver broke its RX ring"]

    async def test_restart_mends_it(self, serving: Serving) -> None:
        client = await serving.connect(err=True)
        for _ in range(2):
            client.tx_queue.write_avail_idx(1000)
            client.kick(TX_QUEUE_IDX, force=True)
            await client.wait_err(TX_QUEUE_IDX)
            await client.reset_driver()
            await client.send_packet(ARP)
            assert is_arp_reply(await client.recv_packet())
        assert len(serving.faults) == 2

    @pytest.mark.parametrize("queue", [RX_QUEUE_IDX, TX_QUEUE_IDX])
    async def test_broken_again_as_soon_as_it_is_restarted(
        self, serving: Serving, caplog: pytest.LogCaptureFixture, queue: int
    ) -> None:
        """Each time is reported, but not logged for ever."""
        client = await serving.connect(err=True)
        client.vrings[queue].queue.write_avail_idx(1000)
        for _ in range(2 * BREAKS_LOGGED):
            await client.start_vring(queue, await client.stop_vring(queue))
            if queue == RX_QUEUE_IDX:
                serving.backend.inject(FRAME)
            await client.wait_err(queue)
            await trio.testing.wait_all_tasks_blocked()
        assert len(serving.faults) == 2 * BREAKS_LOGGED
        warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
        assert warnings == [
            *["ring broken"] * BREAKS_LOGGED,
            "further broken rings of this connection are not logged",
        ]

    async def test_m22_one_eventfd_for_both_kicks(self, serving: Serving) -> None:
        client = await serving.connect(rx_buffers=0)
        kick = client.vrings[TX_QUEUE_IDX].kick
        await client.connection.set_vring_kick(RX_QUEUE_IDX, kick)
        for _ in range(3):
            await client.send_packet(ARP)
            await trio.testing.wait_all_tasks_blocked()
            client.add_rx_buffer()
            client.kick(TX_QUEUE_IDX, force=True)
            assert is_arp_reply(await client.recv_packet())

    async def test_m22_one_eventfd_for_kick_and_call(self, serving: Serving) -> None:
        """Our own interrupt looks like a kick; that must not go round for ever."""
        client = await serving.connect(poll_call=True)
        kick = client.vrings[TX_QUEUE_IDX].kick
        await client.connection.set_vring_call(TX_QUEUE_IDX, kick)
        await client.send_packet(ARP)
        await trio.testing.wait_all_tasks_blocked()
        assert serving.port.stats().kicks <= 4
        assert is_arp_reply(await client.recv_packet())

    async def test_m23_kick_that_is_always_readable(self, serve: Serve) -> None:
        """It costs turns of the loop, one drain each; others get theirs."""
        hostile, other = await serve(), await serve()
        client = await hostile.connect(poll_kick=True)
        endless = os.eventfd(0, os.EFD_SEMAPHORE)
        os.eventfd_write(endless, 2**64 - 2)
        for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
            await client.connection.set_vring_kick(index, endless)
        os.close(endless)
        guest = await other.connect()
        for _ in range(20):
            await guest.send_packet(ARP)
            assert is_arp_reply(await guest.recv_packet())
        before = hostile.port.stats().kicks
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert hostile.port.stats().kicks - before <= 11
        await client.send_packet(ARP)
        assert is_arp_reply(await client.recv_packet())

    async def test_m42_kick_replaced_while_running(self, serving: Serving) -> None:
        client = await serving.connect()
        connection, vring = client.connection, client.vrings[TX_QUEUE_IDX]
        for _ in range(200):
            client.queue_tx(PING)
            client.kick(TX_QUEUE_IDX)
            await connection.set_vring_kick(TX_QUEUE_IDX, None)
            await connection.set_vring_kick(TX_QUEUE_IDX, vring.kick)
            await client.recv_packet()
        assert serving.port.stats().tx_frames == 200

    async def test_m42_kick_replaced_by_another(self, serving: Serving) -> None:
        client = await serving.connect()
        vring = client.vrings[TX_QUEUE_IDX]
        for _ in range(20):
            assert vring.kick is not None
            old, vring.kick = vring.kick, os.eventfd(0, os.EFD_NONBLOCK)
            await client.connection.set_vring_kick(TX_QUEUE_IDX, vring.kick)
            os.close(old)
            await client.send_packet(ARP)
            assert is_arp_reply(await client.recv_packet())

    async def test_kick_fd_that_breaks_is_dropped(
        self, serving: Serving, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = await serving.connect()

        def broken(_port: Port, _fd: int) -> bool:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(Port, "take_kick", broken)
            client.kick(TX_QUEUE_IDX, force=True)
            await trio.testing.wait_all_tasks_blocked()
        await client.connection.set_vring_kick(TX_QUEUE_IDX, client.vrings[TX_QUEUE_IDX].kick)
        await client.send_packet(ARP)
        assert is_arp_reply(await client.recv_packet())


class TestConversation:
    async def test_ends_when_the_frontend_goes(
        self, serving: Serving, connection: Connection
    ) -> None:
        await connection.get_features()
        connection.close()
        assert await serving.wait_error() is None
        assert serving.connected == 1

    async def test_m1_nothing_is_said(self, serving: Serving, connection: Connection) -> None:
        connection.close()
        assert await serving.wait_error() is None
        assert serving.connected == 0

    async def test_breach_comes_out_as_it_is(
        self, serving: Serving, connection: Connection
    ) -> None:
        await connection.send_raw(b"not a vhost-user header at all")
        await connection.wait_hung_up()
        assert isinstance(await serving.wait_error(), ConnectionBroken)
        assert serving.connected == 0

    async def test_bug_comes_out_in_a_group(
        self, serving: Serving, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def handle(*_args: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(Session, "handle", handle)
        await connection.send_raw(encode(Request.SET_OWNER), [0, 1])
        await connection.wait_hung_up()
        error = await serving.wait_error()
        assert isinstance(error, ExceptionGroup)
        assert error.subgroup(RuntimeError)

    async def test_m4_slow_message(
        self, serving: Serving, connection: Connection, autojump_clock: object
    ) -> None:
        await connection.send_raw(encode(Request.SET_OWNER)[:11])
        await connection.wait_hung_up(timeout=6)
        assert isinstance(await serving.wait_error(), ConnectionBroken)

    async def test_refusals_are_logged_but_not_for_ever(
        self, connection: Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        await acknowledged(connection)
        for _ in range(3 * REFUSALS_LOGGED):
            await connection.request(Request.SET_VRING_NUM, bytes(8))
        messages = [record.message for record in caplog.records]
        assert messages.count("request refused") == REFUSALS_LOGGED
        assert len(messages) == REFUSALS_LOGGED + 1

    async def test_memory_that_is_not_shared_is_hinted_at_once(
        self, connection: Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        await acknowledged(connection)
        for index in (0, 1):
            payload = (index | VRING_NOFD).to_bytes(8, "little")
            await connection.request(Request.SET_VRING_KICK, payload)
        [message] = [record.message for record in caplog.records]
        assert "share=on" in message

    @pytest.mark.parametrize("request_id", [0, *range(1, 46), 0x7FFFFFFF])
    async def test_m15_descriptors_that_nobody_wants(
        self, serving: Serving, connection: Connection, request_id: int
    ) -> None:
        """They are closed whatever the answer; that no more are open is checked after each test."""
        await acknowledged(connection)
        with open_pipe() as (reader, writer):
            with contextlib.suppress(BackendHungUpError):
                await connection.request(request_id, bytes(8), [writer])
            os.close(writer)
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(reader)
            assert os.read(reader, 1) == b""

    @pytest.mark.parametrize("count", [0, 2, 8, 9, 16, 17, 253])
    async def test_m16_wrong_number_of_descriptors(
        self, serving: Serving, connection: Connection, count: int
    ) -> None:
        await acknowledged(connection)
        with open_pipe() as (_, fd), contextlib.suppress(BackendHungUpError):
            reply = await connection.request(Request.SET_VRING_CALL, encode_u64(0), [fd] * count)
            assert reply is not None
            assert reply.payload != bytes(8)

    async def test_m18_descriptors_in_the_middle(
        self, serving: Serving, connection: Connection
    ) -> None:
        message = encode(Request.SET_VRING_CALL, encode_u64(0))
        with open_pipe() as (_, fd):
            await connection.send_raw(message[:12])
            await connection.send_raw(message[12:], [fd])
        await connection.wait_hung_up()
        assert isinstance(await serving.wait_error(), ConnectionBroken)

    async def test_m20_flood_with_descriptors(
        self, serving: Serving, connection: Connection, nursery: trio.Nursery
    ) -> None:
        await acknowledged(connection)
        turns = Turns()
        nursery.start_soon(turns.count)
        with open_pipe() as (_, fd):
            before = turns.taken
            for _ in range(1000):
                await connection.request(Request.SET_VRING_KICK, encode_u64(0), [fd] * 8)
            assert turns.taken - before >= 1000
        nursery.cancel_scope.cancel()

    async def test_m51_m52_replies_that_nobody_reads(
        self, serving: Serving, connection: Connection, autojump_clock: object
    ) -> None:
        await connection.get_features()
        began = trio.current_time()
        with contextlib.suppress(BackendHungUpError):
            await connection.send_raw(encode(Request.GET_FEATURES) * 10_000)
        assert isinstance(await serving.wait_error(), ConnectionBroken)
        assert trio.current_time() - began == pytest.approx(5)

    async def test_others_run_while_one_is_stuck(
        self, serve: Serve, autojump_clock: object
    ) -> None:
        stuck, other = await serve(), await serve()
        with contextlib.closing(await Connection.open(stuck.path)) as connection:
            await connection.send_raw(b"\1")
            client = await other.connect()
            await client.send_packet(ARP)
            assert is_arp_reply(await client.recv_packet())


class TestEnd:
    async def test_m53_all_is_given_back(self, serving: Serving) -> None:
        before = guest_mappings()
        client = await serving.connect()
        assert guest_mappings() > before + 1
        client.queue_tx(PING)
        client.kick(TX_QUEUE_IDX)
        client.disconnect()
        assert await serving.wait_error() is None
        assert guest_mappings() == before + 1
        await client.aclose()
        assert guest_mappings() == before

    async def test_m53_rings_are_full(self, serving: Serving) -> None:
        client = await serving.connect(rx_buffers=0, ring_size=64)
        for _ in range(64):
            client.queue_tx(PING)
        for _ in range(300):
            serving.backend.inject(FRAME)
        client.kick(TX_QUEUE_IDX)
        await trio.lowlevel.checkpoint()
        client.disconnect()
        assert await serving.wait_error() is None
        assert serving.port.backlog == 0

    async def test_m53_guest_gets_what_was_on_its_way(self, serving: Serving) -> None:
        client = await serving.connect()
        serving.backend.inject(FRAME)
        serving.scope.cancel()
        assert await serving.wait_error() is None
        assert await client.recv_packet() == FRAME

    async def test_m29_memory_that_vanishes(self, serving: Serving) -> None:
        client = await serving.connect()
        # The harness must not look at it any more either.
        [memory] = client.memory.get_region_info()
        os.ftruncate(memory.fd, 0)
        serving.backend.inject(FRAME)
        assert isinstance(await serving.wait_error(), GuestMemoryLost)

    async def test_m29_memory_that_vanishes_while_it_is_replaced(self, serving: Serving) -> None:
        """It was the connection's, whichever table is in use when somebody looks."""
        client = await serving.connect()
        [memory] = client.memory.get_region_info()
        os.ftruncate(memory.fd, 0)
        serving.backend.inject(FRAME)
        fd = create_memfd(memory.mmap_offset + memory.size)
        with contextlib.suppress(BackendHungUpError, OSError):
            await client.connection.set_mem_table([attrs.evolve(memory, fd=fd)])
        os.close(fd)
        assert isinstance(await serving.wait_error(), GuestMemoryLost)

    async def test_cancelled_at_every_step(self, serve: Serve) -> None:
        """Wherever it is cut off, nothing is left open, mapped or running (see `no_fd_leaks`)."""
        before = guest_mappings()
        for steps in itertools.count(1, 3):
            serving = await serve()
            async with trio.open_nursery() as guests:
                trio.lowlevel.add_instrument(countdown := CancelAfter(serving.scope, steps))
                guests.start_soon(hold_conversation, serving, guests)
                await serving.ended.wait()
                trio.lowlevel.remove_instrument(countdown)
                guests.cancel_scope.cancel()
            assert serving.error is None
            assert guest_mappings() == before
            if not serving.scope.cancelled_caught:
                break
        assert steps > 100


async def hold_conversation(serving: Serving, guests: trio.Nursery) -> None:
    """All of a frontend's life, as far as the backend lets it."""
    with contextlib.suppress(BackendHungUpError):
        client = await VhostTestClient.connect(guests, serving.path)
        await client.send_packet(ARP)
        await client.recv_packet()
        await client.stop_vring(TX_QUEUE_IDX)
        await client.aclose()


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope after so many steps of any task."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.scope = scope
        self.left = steps

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


@attrs.define(eq=False)
class Turns:
    """Counts the turns that a task gets."""

    taken: int = 0

    async def count(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.taken += 1


async def acknowledged(connection: Connection) -> None:
    """Get to where every request is answered."""
    await connection.set_owner()
    await connection.set_features(await connection.get_features())
    await connection.set_protocol_features(ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG)


@contextlib.contextmanager
def open_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; the test may close them itself."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for fd in ends:
            with contextlib.suppress(OSError):
                os.close(fd)
