"""A NIC: one frontend after another, whatever becomes of the one before."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mvirt_net.dataplane import Lookout, VhostNetBackend
from mvirt_net.errors import CoreError, SocketInUseError, SocketPathError
from mvirt_net.ffi import Network, Port
from mvirt_net.model import GATEWAY_MAC, DropReason, NetworkSpec, NicSpec
from mvirt_net.nic import (
    ACCEPT_PAUSE,
    LINE_BURST,
    LINE_RATE,
    REFUSAL_INTERVAL,
    TURN_TIME_LIMIT,
    Nic,
    NicEvent,
    NicEventKind,
    Surroundings,
)
from mvirt_net.peer import PeerCredentials
from mvirt_net.unix_listener import UnixListener
from mvirt_net.vhost_user import Session
from tests.harness.client import TX_QUEUE_IDX, VhostTestClient
from tests.harness.footprint import open_files
from tests.harness.packets import GATEWAY_IP, arp_request, ethernet_frame, is_arp_reply
from tests.harness.vhost_user import BackendHungUpError, Connection

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
NETWORK = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24")
SPEC = NicSpec(name="vm1", network="blue", mac_address=MAC, ipv4_address=IP)
ARP = arp_request(MAC, IP, GATEWAY_IP)
FRAME = ethernet_frame(MAC, GATEWAY_MAC.packed, 0x0800, bytes(100))
"""For the guest."""

CONNECTED, DISCONNECTED, FAULTED, REFUSED = NicEventKind


@attrs.define(eq=False)
class Running:
    """A NIC that listens, in surroundings of its own."""

    nic: Nic
    path: Path
    nursery: trio.Nursery
    events: list[NicEvent]

    @property
    def kinds(self) -> list[NicEventKind]:
        return [event.kind for event in self.events]

    async def connect(self) -> VhostTestClient:
        """A guest, handshake done."""
        return await VhostTestClient.connect(self.nursery, self.path)

    def messages(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return [record.message for record in caplog.records if record.levelname != "INFO"]


@contextlib.asynccontextmanager
async def surrounded(**fields: Any) -> AsyncIterator[Surroundings]:
    """What a switch would give a NIC, with these fields."""
    async with trio.open_nursery() as nursery:
        with contextlib.closing(Lookout(nursery)) as lookout:
            yield Surroundings(nursery=nursery, lookout=lookout, **fields)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def surroundings() -> AsyncIterator[Surroundings]:
    async with surrounded() as surroundings:
        yield surroundings


@contextlib.asynccontextmanager
async def listening(spec: NicSpec, path: Path) -> AsyncIterator[Running]:
    events: list[NicEvent] = []
    async with surrounded(publish=events.append) as surroundings:
        nic = Nic(attrs.evolve(spec, socket_path=path), NETWORK, Network(), surroundings)
        nic.listen()
        yield Running(nic, path, surroundings.nursery, events)
        await nic.aclose()
    assert not path.exists()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with listening(SPEC, tmp_path / "nic.sock") as running:
        yield running


async def exchange(client: VhostTestClient) -> None:
    """One frame in each direction."""
    await client.send_packet(ARP)
    assert is_arp_reply(await client.recv_packet())


@contextlib.asynccontextmanager
async def speaking(path: Path) -> AsyncIterator[Connection]:
    """A frontend without a guest that has sent its first request."""
    with contextlib.closing(await Connection.open(path)) as connection:
        await connection.get_features()
        yield connection


class TestFrontends:
    async def test_one_after_another_on_the_same_socket(self, running: Running) -> None:
        file = running.path.stat().st_ino
        for _ in range(3):
            client = await running.connect()
            await exchange(client)
            await client.aclose()
        assert running.path.stat().st_ino == file
        assert running.nic.stats().tx_frames == 3
        await trio.testing.wait_all_tasks_blocked()
        assert running.kinds == [CONNECTED, DISCONNECTED] * 3

    async def test_reconnects_at_once(self, running: Running) -> None:
        client = await running.connect()
        for _ in range(3):
            await client.reconnect()
            await exchange(client)

    async def test_connected_means_that_something_was_said(self, running: Running) -> None:
        nic = running.nic
        with contextlib.closing(await Connection.open(running.path)) as connection:
            with trio.move_on_after(0.01) as scope:
                await nic.wait_connected()
            assert scope.cancelled_caught
            await connection.get_features()
            await nic.wait_connected()
            assert nic.connected
        await trio.testing.wait_all_tasks_blocked()
        assert not nic.connected
        assert running.events == [NicEvent("vm1", CONNECTED), NicEvent("vm1", DISCONNECTED)]

    async def test_m1_connect_and_close(self, running: Running) -> None:
        for _ in range(50):
            for _ in range(16):
                (await Connection.open(running.path)).close()
            await trio.testing.wait_all_tasks_blocked()
        await exchange(await running.connect())
        assert running.kinds == [CONNECTED]

    async def test_m2_second_is_sent_away(
        self, running: Running, autojump_clock: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = await running.connect()
        began = trio.current_time()
        second = await Connection.open(running.path)
        with contextlib.closing(second), pytest.raises(BackendHungUpError):
            await second.get_features()
        assert trio.current_time() - began == pytest.approx(TURN_TIME_LIMIT)
        assert running.messages(caplog) == ["frontend sent away: another one is connected"]
        await exchange(first)
        assert running.kinds == [CONNECTED]

    async def test_m2_second_gets_its_turn_when_the_first_goes(
        self, running: Running, autojump_clock: object
    ) -> None:
        async def leave_in_time(connection: Connection) -> None:
            await trio.sleep(TURN_TIME_LIMIT / 2)
            connection.close()

        async with speaking(running.path) as first:
            running.nursery.start_soon(leave_in_time, first)
            client = await running.connect()
            assert trio.current_time() >= TURN_TIME_LIMIT / 2
            await exchange(client)

    async def test_m2_others_wait_in_the_queue_of_the_socket(
        self, running: Running, autojump_clock: object
    ) -> None:
        first = await running.connect()
        descriptors = open_files().total()
        waiting = [await Connection.open(running.path) for _ in range(100)]
        await trio.testing.wait_all_tasks_blocked()
        assert open_files().total() == descriptors + len(waiting) + 1
        await first.aclose()
        for connection in waiting:
            await connection.get_features()
            connection.close()

    async def test_silent_one_makes_way(
        self, running: Running, autojump_clock: object, caplog: pytest.LogCaptureFixture
    ) -> None:
        with contextlib.closing(await Connection.open(running.path)) as silent:
            await trio.sleep(3600)
            began = trio.current_time()
            client = await running.connect()
            assert trio.current_time() - began == pytest.approx(TURN_TIME_LIMIT)
            await silent.wait_hung_up()
        assert running.messages(caplog) == [
            "frontend sent away: it made no request, and another one waits"
        ]
        await exchange(client)
        assert running.kinds == [CONNECTED]

    async def test_silent_one_may_speak_at_last(
        self, running: Running, autojump_clock: object
    ) -> None:
        with (
            contextlib.closing(await Connection.open(running.path)) as first,
            contextlib.closing(await Connection.open(running.path)) as second,
        ):
            await trio.sleep(TURN_TIME_LIMIT / 2)
            await first.get_features()
            await second.wait_hung_up()
            await first.get_features()

    async def test_many_silent_ones_hold_nobody_up_for_ever(
        self, running: Running, autojump_clock: object
    ) -> None:
        silent = [await Connection.open(running.path) for _ in range(3)]
        await exchange(await running.connect())
        assert trio.current_time() == pytest.approx(len(silent) * TURN_TIME_LIMIT)
        for connection in silent:
            await connection.wait_hung_up()
            connection.close()

    async def test_silent_socketpairs_make_way_in_turn(
        self,
        surroundings: Surroundings,
        nursery: trio.Nursery,
        autojump_clock: object,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Served by hand they all wait at once; nobody overtakes, and none is told off twice."""
        nic = Nic(SPEC, NETWORK, Network(), surroundings)
        began = trio.current_time()
        connections = []
        for _ in range(3):
            ours, theirs = trio.socket.socketpair()
            connections.append(Connection(theirs))
            nursery.start_soon(nic.serve_connection, ours)
            await trio.testing.wait_all_tasks_blocked()
        await connections[-1].get_features()
        assert trio.current_time() - began == pytest.approx(2 * TURN_TIME_LIMIT)
        for connection in connections[:-1]:
            await connection.wait_hung_up()
        assert nic.connected
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
            "frontend sent away: it made no request, and another one waits"
        ] * 2
        for connection in connections:
            connection.close()
        await nic.aclose()

    async def test_m54_reconnects_while_frames_flow(self, running: Running) -> None:
        client = await running.connect()
        for _ in range(20):
            for _ in range(10):
                client.queue_tx(ARP)
            client.kick(TX_QUEUE_IDX)
            running.nic.inject(FRAME)
            await trio.lowlevel.checkpoint()
            client.disconnect()
            # Where the used rings stand is certain only when nobody writes to them any more.
            await trio.testing.wait_all_tasks_blocked()
            await client.reconnect()
        await trio.testing.wait_all_tasks_blocked()
        client.received.clear()
        await exchange(client)

    async def test_socketpair(self, surroundings: Surroundings, nursery: trio.Nursery) -> None:
        nic = Nic(SPEC, NETWORK, Network(), surroundings)
        ours, theirs = trio.socket.socketpair()
        nursery.start_soon(nic.serve_connection, ours)
        with contextlib.closing(Connection(theirs)) as connection:
            assert await connection.get_features()
            assert nic.connected
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        await nic.aclose()

    async def test_socketpairs_take_turns(
        self, surroundings: Surroundings, nursery: trio.Nursery
    ) -> None:
        nic = Nic(SPEC, NETWORK, Network(), surroundings)
        for _ in range(2):
            ours, theirs = trio.socket.socketpair()
            nursery.start_soon(nic.serve_connection, ours)
            with contextlib.closing(Connection(theirs)) as connection:
                assert await connection.get_features()
        await nic.aclose()

    async def test_nic_without_socket_path(self, surroundings: Surroundings) -> None:
        nic = Nic(SPEC, NETWORK, Network(), surroundings)
        nic.listen()
        await nic.aclose()

    async def test_mac_address_must_be_there(self, surroundings: Surroundings) -> None:
        with pytest.raises(ValueError, match="no MAC address"):
            Nic(attrs.evolve(SPEC, mac_address=None), NETWORK, Network(), surroundings)


class TestInject:
    async def test_to_the_guest(self, running: Running) -> None:
        client = await running.connect()
        assert running.nic.inject(FRAME)
        assert await client.recv_packet() == FRAME

    async def test_to_nobody(self, running: Running) -> None:
        assert not running.nic.inject(FRAME)
        assert running.nic.stats().drops == {DropReason.RX_RING_DOWN: 1}


class TestFailures:
    async def test_broken_connection(
        self, running: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with speaking(running.path) as connection:
            await connection.send_raw(bytes(12))
            await connection.wait_hung_up()
        await exchange(await running.connect())
        assert running.kinds == [CONNECTED, DISCONNECTED, CONNECTED]
        assert "flags 0x0" in running.events[1].detail
        [record] = [record for record in caplog.records if record.levelname != "INFO"]
        assert record.message == "connection broken"
        assert record.nic == "vm1"  # type: ignore[attr-defined]

    async def test_m29_guest_memory_that_vanishes(
        self, running: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await running.connect()
        [memory] = client.memory.get_region_info()
        # The harness must not look at it any more either.
        os.ftruncate(memory.fd, 0)
        running.nic.inject(FRAME)
        await client.connection.wait_hung_up()
        await exchange(await running.connect())
        assert running.kinds == [CONNECTED, FAULTED, DISCONNECTED, CONNECTED]
        assert running.messages(caplog) == ["guest memory lost"]

    async def test_ring_broken_by_the_guest(self, running: Running) -> None:
        client = await running.connect()
        client.tx_queue.write_avail_idx(1000)
        client.kick(TX_QUEUE_IDX, force=True)
        await trio.testing.wait_all_tasks_blocked()
        assert running.kinds == [CONNECTED, FAULTED]
        assert running.nic.connected

    async def test_bug_costs_the_connection_and_nothing_else(
        self,
        running: Running,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Session, "handle", bug)
            connection = await Connection.open(running.path)
            with contextlib.closing(connection), pytest.raises(BackendHungUpError):
                await connection.get_features()
        await exchange(await running.connect())
        assert running.events[0] == NicEvent("vm1", FAULTED, "internal error")
        [record] = [record for record in caplog.records if record.exc_info]
        assert record.message == "connection failed"

    @pytest.mark.parametrize(
        ("failure", "reason"),
        [
            (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
            (CoreError("memory table", errno.ENOMEM), "memory table: Cannot allocate memory"),
        ],
    )
    async def test_what_the_system_denies_is_no_bug(
        self,
        running: Running,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        failure: Exception,
        reason: str,
    ) -> None:
        def deny(*_args: object) -> None:
            raise failure

        with monkeypatch.context() as patched:
            patched.setattr(Session, "handle", deny)
            connection = await Connection.open(running.path)
            with contextlib.closing(connection), pytest.raises(BackendHungUpError):
                await connection.get_features()
        await exchange(await running.connect())
        assert FAULTED not in running.kinds
        [record] = [record for record in caplog.records if record.levelname != "INFO"]
        assert (record.message, record.reason, record.exc_info) == (  # type: ignore[attr-defined]
            "connection failed",
            reason,
            None,
        )

    async def test_bad_descriptor_is_a_bug(
        self,
        running: Running,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def close_too_often(*_args: object) -> None:
            os.close(-1)

        with monkeypatch.context() as patched:
            patched.setattr(Session, "handle", close_too_often)
            connection = await Connection.open(running.path)
            with contextlib.closing(connection), pytest.raises(BackendHungUpError):
                await connection.get_features()
        await exchange(await running.connect())
        assert running.events[0] == NicEvent("vm1", FAULTED, "internal error")
        assert [record.message for record in caplog.records if record.exc_info] == [
            "connection failed"
        ]

    async def test_bug_in_the_moment_of_a_cancellation(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The failure and the cancellation come out in one group, and must not escape in it."""

        async def serve(_backend: object) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    bug()

        monkeypatch.setattr(VhostNetBackend, "serve", serve)
        with contextlib.closing(await Connection.open(running.path)):
            await trio.testing.wait_all_tasks_blocked()
            await running.nic.aclose()
        assert running.kinds == [FAULTED]

    async def test_no_descriptor_for_a_connection(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "eventfd", no_descriptors)
            with contextlib.closing(await Connection.open(running.path)) as connection:
                await connection.wait_hung_up()
        await exchange(await running.connect())

    async def test_memory_that_cannot_be_looked_after(
        self, running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It costs the connection, of which nobody would hear that its memory is gone."""
        watch = Lookout.watch

        def refuse(lookout: Lookout, fd: int, call: Callable[[], None]) -> None:
            if call.__qualname__.startswith("VhostNetBackend"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            watch(lookout, fd, call)

        with monkeypatch.context() as patched:
            patched.setattr(Lookout, "watch", refuse)
            with contextlib.closing(await Connection.open(running.path)) as connection:
                await connection.wait_hung_up()
        await exchange(await running.connect())
        assert running.messages(caplog) == ["connection failed"]
        assert running.kinds == [CONNECTED]


class TestListening:
    async def test_frontends_that_cannot_be_waited_for_for_a_while(
        self,
        running: Running,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        autojump_clock: object,
    ) -> None:
        watch, failures = Lookout.watch, [errno.ENOSPC] * 3

        def failing_watch(lookout: Lookout, fd: int, call: Callable[[], None]) -> None:
            if failures and call.__qualname__.startswith("Nic"):
                raise OSError(failures.pop(), "No space left on device")
            watch(lookout, fd, call)

        monkeypatch.setattr(Lookout, "watch", failing_watch)
        began = trio.current_time()
        await (await running.connect()).aclose()
        await exchange(await running.connect())
        assert trio.current_time() - began == pytest.approx(3 * ACCEPT_PAUSE)
        assert running.messages(caplog) == ["cannot accept a frontend"]

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, errno.ECONNABORTED])
    async def test_accept_that_fails_for_a_while(
        self,
        running: Running,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        autojump_clock: object,
        number: int,
    ) -> None:
        accept, failures = UnixListener.accept_nowait, [number] * 3

        def failing_accept(listener: UnixListener) -> socket.socket | None:
            if failures:
                raise OSError(failures.pop(), os.strerror(number))
            return accept(listener)

        monkeypatch.setattr(UnixListener, "accept_nowait", failing_accept)
        began = trio.current_time()
        await exchange(await running.connect())
        assert trio.current_time() - began == pytest.approx(3 * ACCEPT_PAUSE)
        assert running.messages(caplog) == ["cannot accept a frontend"]

    @pytest.mark.parametrize("replacement", ["nothing", "folder", "link"])
    async def test_m55_socket_removed_while_running(
        self, running: Running, caplog: pytest.LogCaptureFixture, replacement: str
    ) -> None:
        client = await running.connect()
        running.path.unlink()
        if replacement == "folder":
            running.path.mkdir()
        elif replacement == "link":
            running.path.symlink_to("/dev/null")
        await exchange(client)
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert running.messages(caplog) == ["socket was removed or replaced"]
        if replacement == "folder":
            running.path.rmdir()
        elif replacement == "link":
            running.path.unlink()

    async def test_socket_in_use(self, running: Running, surroundings: Surroundings) -> None:
        spec = attrs.evolve(SPEC, socket_path=running.path)
        other = Nic(spec, NETWORK, Network(), surroundings)
        with pytest.raises(SocketInUseError):
            other.listen()
        await other.aclose()
        await exchange(await running.connect())

    async def test_socket_path_that_cannot_be(
        self, surroundings: Surroundings, tmp_path: Path
    ) -> None:
        spec = attrs.evolve(SPEC, socket_path=tmp_path)
        nic = Nic(spec, NETWORK, Network(), surroundings)
        with pytest.raises(SocketPathError):
            nic.listen()
        await nic.aclose()


class TestClose:
    async def test_connections_end(self, running: Running) -> None:
        client = await running.connect()
        await running.nic.aclose()
        await client.connection.wait_hung_up()
        assert running.kinds == [CONNECTED, DISCONNECTED]
        assert not running.path.exists()

    async def test_port_goes_last(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        still_serving: list[bool] = []
        close = Port.close

        def spied_close(port: Port) -> None:
            still_serving.append(running.nic.connected)
            close(port)

        monkeypatch.setattr(Port, "close", spied_close)
        await running.connect()
        await running.nic.aclose()
        assert still_serving == [False]

    async def test_one_that_waits_for_its_turn(self, running: Running) -> None:
        await running.connect()
        with contextlib.closing(await Connection.open(running.path)) as second:
            await trio.testing.wait_all_tasks_blocked()
            await running.nic.aclose()
            await second.wait_hung_up()

    async def test_those_who_wait_for_a_frontend(
        self, running: Running, nursery: trio.Nursery
    ) -> None:
        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await running.nic.wait_connected()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await running.nic.aclose()

    async def test_nothing_works_afterwards(self, running: Running) -> None:
        nic = running.nic
        await nic.aclose()
        ours, theirs = trio.socket.socketpair()
        uses: list[Callable[[], object]] = [nic.stats, lambda: nic.inject(FRAME), nic.listen]
        for use in uses:
            with pytest.raises(trio.ClosedResourceError):
                use()
        waits: list[Callable[[], Awaitable[None]]] = [
            nic.wait_connected,
            lambda: nic.serve_connection(ours),
        ]
        for wait in waits:
            with pytest.raises(trio.ClosedResourceError):
                await wait()
        theirs.close()

    async def test_frontend_accepted_in_that_moment(self, running: Running) -> None:
        """Its task has not begun yet."""
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.connect(str(running.path))
            running.nic._accept()
            await running.nic.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert theirs.recv(1) == b""

    async def test_while_nobody_can_be_accepted(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(UnixListener, "accept_nowait", no_descriptors)
        with contextlib.closing(await Connection.open(running.path)) as connection:
            await trio.testing.wait_all_tasks_blocked()
            await running.nic.aclose()
            await connection.wait_hung_up()

    async def test_runs_to_its_end_when_cancelled(self, running: Running) -> None:
        client = await running.connect()
        with trio.CancelScope() as scope:
            scope.cancel()
            await running.nic.aclose()
        assert scope.cancelled_caught
        assert not running.path.exists()
        await client.connection.wait_hung_up()


def no_descriptors(*_args: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def bug(*_args: object) -> None:
    raise RuntimeError("a bug")


async def test_comings_and_goings_do_not_flood_the_log(
    running: Running, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async def come_and_go() -> None:
        with contextlib.closing(await Connection.open(running.path)) as connection:
            await connection.send_raw(b"\xff" * 12)
            with contextlib.suppress(BackendHungUpError):
                await connection.receive()

    with caplog.at_level("INFO"):
        for _ in range(2 * int(LINE_BURST)):
            await come_and_go()
        assert len(caplog.records) == LINE_BURST
        await trio.sleep(2 / LINE_RATE)
        await come_and_go()
    assert vars(caplog.records[-1])["left_out"] == LINE_BURST
    assert len(caplog.records) <= LINE_BURST + 2


STRANGER = PeerCredentials(pid=7, uid=4_000_000, gid=4_000_000)


class TestAllowed:
    @pytest.fixture
    async def guarded(self, tmp_path: Path) -> AsyncIterator[Running]:
        """A NIC that lets in no process but those of our own user."""
        spec = attrs.evolve(SPEC, allow_uid=[os.geteuid()])
        async with listening(spec, tmp_path / "nic.sock") as guarded:
            yield guarded

    async def test_named_in_the_log(
        self, guarded: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO"):
            await exchange(await guarded.connect())
        [record] = [record for record in caplog.records if record.message == "frontend connected"]
        expected = {"pid": os.getpid(), "uid": os.geteuid(), "gid": os.getegid()}
        assert expected.items() <= vars(record).items()
        assert guarded.nic.stats().refused_frontends == 0

    async def test_connected_socket_is_judged_too(
        self, guarded: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = trio.socket.socketpair()
        with theirs, monkeypatch.context() as patched:
            patched.setattr("mvirt_net.nic.peer_credentials", lambda _sock: STRANGER)
            await guarded.nic.serve_connection(ours)
            assert await theirs.recv(1) == b""
        assert guarded.nic.stats().refused_frontends == 1

    async def test_nobody_can_say_who_it_is(
        self, guarded: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("mvirt_net.nic.peer_credentials", no_descriptors)
            with contextlib.closing(await Connection.open(guarded.path)) as connection:
                await connection.wait_hung_up()
        await exchange(await guarded.connect())
        assert guarded.messages(caplog) == ["connection failed"]

    async def test_others_are_sent_away_at_once(
        self,
        guarded: Running,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        autojump_clock: trio.testing.MockClock,
    ) -> None:
        """While another one is connected, which does not notice. They cannot flood the log."""
        client = await guarded.connect()
        began = trio.current_time()
        with monkeypatch.context() as patched:
            patched.setattr("mvirt_net.nic.peer_credentials", lambda _sock: STRANGER)
            for _ in range(30):
                with contextlib.closing(await Connection.open(guarded.path)) as connection:
                    await connection.wait_hung_up()
            assert trio.current_time() == began
            await trio.sleep(REFUSAL_INTERVAL)
            with contextlib.closing(await Connection.open(guarded.path)) as connection:
                await connection.wait_hung_up()
        await exchange(client)
        assert guarded.nic.stats().refused_frontends == 31
        assert guarded.messages(caplog) == ["frontend sent away: it may not connect"] * 2
        told = [vars(record) for record in caplog.records if record.levelname == "WARNING"]
        assert [record["refused"] for record in told] == [1, 31]
        assert (told[0]["pid"], told[0]["uid"]) == (STRANGER.pid, STRANGER.uid)
        assert guarded.kinds == [CONNECTED, REFUSED, REFUSED]
        assert guarded.events[1].detail == "process 7 of user 4000000"


async def test_frontends_wait_for_their_admission(tmp_path: Path) -> None:
    path, admission = tmp_path / "nic.sock", trio.Event()
    spec = attrs.evolve(SPEC, socket_path=path)
    async with surrounded(admission=admission) as surroundings:
        nic = Nic(spec, NETWORK, Network(), surroundings)
        nic.listen()
        with contextlib.closing(await Connection.open(path)) as connection:
            surroundings.nursery.start_soon(connection.get_features)
            await trio.testing.wait_all_tasks_blocked()
            assert not nic.connected
            admission.set()
            await nic.wait_connected()
            await trio.testing.wait_all_tasks_blocked()
        await nic.aclose()
