"""A switch: networks and NICs that come and go while others run."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import types
import weakref
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import mvirt_net
from mvirt_net import (
    ConfigError,
    DuplicateError,
    MacAddress,
    NetworkSpec,
    Nic,
    NicEvent,
    NicEventKind,
    NicSpec,
    NotFoundError,
    PollingSpec,
    SocketInUseError,
    SocketPathError,
    Switch,
    open_switch,
)
from mvirt_net.errors import CoreError
from mvirt_net.ffi import Port
from mvirt_net.switch import EVENT_BACKLOG, PLACE_INTERVAL
from tests.harness.client import VhostTestClient
from tests.harness.packets import GATEWAY_IP, arp_request, is_arp_reply
from tests.harness.vhost_user import BackendHungUpError, Connection

BLUE = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", ipv6_prefix="fd00::/64")


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    async with open_switch() as switch:
        await switch.add_network(BLUE)
        yield switch


def nic_spec(tmp_path: Path, name: str = "vm1", **fields: Any) -> NicSpec:
    return NicSpec(name=name, network="blue", socket_path=tmp_path / f"{name}.sock", **fields)


async def exchange(client: VhostTestClient, nic: Nic) -> None:
    """One frame in each direction."""
    mac, ipv4 = nic.spec.mac_address, nic.spec.ipv4_address
    assert mac is not None
    assert ipv4 is not None
    await client.send_packet(arp_request(mac.packed, ipv4.packed, GATEWAY_IP))
    assert is_arp_reply(await client.recv_packet())


class TestNetworks:
    async def test_come_and_go(self, switch: Switch) -> None:
        red = NetworkSpec(name="red")
        assert await switch.add_network(red) == red
        assert dict(switch.networks) == {"blue": BLUE, "red": red}
        await switch.remove_network("blue")
        assert dict(switch.networks) == {"red": red}

    async def test_name_taken(self, switch: Switch) -> None:
        with pytest.raises(DuplicateError) as caught:
            await switch.add_network(BLUE)
        assert caught.value.key == "name"

    async def test_unknown(self, switch: Switch) -> None:
        with pytest.raises(NotFoundError):
            await switch.remove_network("red")

    async def test_with_nics_in_it_stays(self, switch: Switch, tmp_path: Path) -> None:
        await switch.add_nic(nic_spec(tmp_path))
        with pytest.raises(ConfigError, match="vm1"):
            await switch.remove_network("blue")
        await switch.remove_nic("vm1")
        await switch.remove_network("blue")

    async def test_out_of_memory_leaves_nothing(
        self, switch: Switch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        red = NetworkSpec(name="red")
        with monkeypatch.context() as patched:
            patched.setattr("mvirt_net.switch.Network", out_of_memory)
            with pytest.raises(CoreError):
                await switch.add_network(red)
        assert await switch.add_network(red) == red


class TestNics:
    async def test_out_of_memory_leaves_nothing(
        self, switch: Switch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed: list[Port] = []
        with monkeypatch.context() as patched:
            patched.setattr(Port, "set_routes", out_of_memory)
            patched.setattr(Port, "close", lambda port: closed.append(port))
            with pytest.raises(CoreError):
                await switch.add_nic(nic_spec(tmp_path))
        [port] = closed
        port.close()
        assert (await switch.add_nic(nic_spec(tmp_path))).spec.name == "vm1"

    async def test_is_filled_in_and_listens(
        self, switch: Switch, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        nic = await switch.add_nic(nic_spec(tmp_path))
        assert nic.spec.ipv4_address == IPv4Address("10.0.0.1")
        assert nic.spec.ipv6_address is not None
        assert isinstance(nic.spec.mac_address, MacAddress)
        assert dict(switch.nics) == {"vm1": nic}
        client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
        await exchange(client, nic)
        await client.aclose()

    async def test_generated_mac_is_the_same_next_time(
        self, switch: Switch, tmp_path: Path
    ) -> None:
        first = (await switch.add_nic(nic_spec(tmp_path))).spec
        await switch.remove_nic("vm1")
        assert (await switch.add_nic(nic_spec(tmp_path))).spec == first

    async def test_come_and_go_while_others_run(
        self, switch: Switch, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        steady = await switch.add_nic(nic_spec(tmp_path, "steady"))
        guest = await VhostTestClient.connect(nursery, tmp_path / "steady.sock")
        for _ in range(3):
            other = await switch.add_nic(nic_spec(tmp_path, "other"))
            client = await VhostTestClient.connect(nursery, tmp_path / "other.sock")
            await exchange(client, other)
            await exchange(guest, steady)
            await switch.remove_nic("other")
            await client.connection.wait_hung_up()
            await client.aclose()
        await exchange(guest, steady)
        await guest.aclose()

    @pytest.mark.parametrize(
        ("fields", "key"),
        [
            ({"name": "vm1"}, "name"),
            ({"mac_address": "52:54:00:12:34:56"}, "mac_address"),
            ({"ipv4_address": "10.0.0.5"}, "ipv4_address"),
            ({"ipv6_address": "fd00::5"}, "ipv6_address"),
        ],
    )
    async def test_taken(
        self, switch: Switch, tmp_path: Path, fields: dict[str, str], key: str
    ) -> None:
        taken = {
            "mac_address": "52:54:00:12:34:56",
            "ipv4_address": "10.0.0.5",
            "ipv6_address": "fd00::5",
        }
        await switch.add_nic(nic_spec(tmp_path, **taken))
        with pytest.raises(DuplicateError) as caught:
            await switch.add_nic(nic_spec(tmp_path, **{"name": "vm2", **fields}))
        assert caught.value.key == key

    async def test_socket_path_taken_in_this_switch(self, switch: Switch, tmp_path: Path) -> None:
        first = await switch.add_nic(nic_spec(tmp_path))
        again = NicSpec(name="vm2", network="blue", socket_path=first.spec.socket_path)
        with pytest.raises(DuplicateError) as caught:
            await switch.add_nic(again)
        assert caught.value.key == "socket_path"

    @pytest.mark.parametrize(
        ("fields", "key"),
        [({"network": "red"}, "network"), ({"ipv4_address": "10.0.1.5"}, "ipv4_address")],
    )
    async def test_cannot_be(self, switch: Switch, fields: dict[str, str], key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            await switch.add_nic(NicSpec(**{"name": "vm1", "network": "blue", **fields}))
        assert caught.value.key == key
        assert not switch.nics

    async def test_failure_to_listen_leaves_nothing(self, switch: Switch, tmp_path: Path) -> None:
        spec = nic_spec(tmp_path, mac_address="52:54:00:12:34:56", ipv4_address="10.0.0.5")
        (tmp_path / "vm1.sock").mkdir()
        with pytest.raises(SocketPathError):
            await switch.add_nic(spec)
        assert not switch.nics
        (tmp_path / "vm1.sock").rmdir()
        await switch.add_nic(spec)

    async def test_socket_of_another_process(
        self, switch: Switch, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        async with open_switch() as other:
            await other.add_network(BLUE)
            nic = await other.add_nic(nic_spec(tmp_path))
            with pytest.raises(SocketInUseError):
                await switch.add_nic(nic_spec(tmp_path))
            client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
            await exchange(client, nic)
            await client.aclose()

    async def test_added_twice_at_the_same_time(self, switch: Switch, tmp_path: Path) -> None:
        added: list[Nic] = []

        async def add() -> None:
            with contextlib.suppress(DuplicateError):
                added.append(await switch.add_nic(nic_spec(tmp_path)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            nursery.start_soon(add)
        assert added == list(switch.nics.values())
        assert len(added) == 1

    @pytest.mark.parametrize("steps", range(8))
    async def test_adding_is_cancelled(self, switch: Switch, tmp_path: Path, steps: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch.add_nic, nic_spec(tmp_path))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert (tmp_path / "vm1.sock").exists() == ("vm1" in switch.nics)
        if "vm1" not in switch.nics:
            await switch.add_nic(nic_spec(tmp_path))


class TestRemoveNic:
    async def test_all_is_gone(self, switch: Switch, tmp_path: Path, nursery: trio.Nursery) -> None:
        spec = nic_spec(tmp_path, mac_address="52:54:00:12:34:56", ipv4_address="10.0.0.5")
        nic = await switch.add_nic(spec)
        client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
        await switch.remove_nic("vm1")
        assert not (tmp_path / "vm1.sock").exists()
        assert not switch.nics
        with pytest.raises(BackendHungUpError):
            await client.connection.get_features()
        with pytest.raises(trio.ClosedResourceError):
            nic.stats()
        await switch.add_nic(spec)
        await client.aclose()

    async def test_unknown(self, switch: Switch) -> None:
        with pytest.raises(NotFoundError):
            await switch.remove_nic("vm1")

    async def test_carried_through_when_cancelled(
        self, switch: Switch, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        await switch.add_nic(nic_spec(tmp_path))
        client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
        with trio.CancelScope() as scope:
            scope.cancel()
            await switch.remove_nic("vm1")
        assert scope.cancelled_caught
        assert not (tmp_path / "vm1.sock").exists()
        await switch.add_nic(nic_spec(tmp_path))
        await client.aclose()

    async def test_name_is_free_when_it_returns_and_not_before(
        self, switch: Switch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate, aclose = trio.Event(), Nic.aclose

        async def slow_aclose(nic: Nic) -> None:
            await gate.wait()
            await aclose(nic)

        monkeypatch.setattr(Nic, "aclose", slow_aclose)
        await switch.add_nic(nic_spec(tmp_path))
        async with trio.open_nursery() as removing:
            removing.start_soon(switch.remove_nic, "vm1")
            await trio.testing.wait_all_tasks_blocked()
            assert not switch.nics
            with pytest.raises(DuplicateError):
                await switch.add_nic(nic_spec(tmp_path))
            gate.set()
        await switch.add_nic(nic_spec(tmp_path))


class TestAclose:
    """While it runs, others may do the same."""

    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> trio.Event:
        """Closing a NIC takes until this is set."""
        gate, aclose = trio.Event(), Nic.aclose

        async def slow_aclose(nic: Nic) -> None:
            await gate.wait()
            await aclose(nic)

        monkeypatch.setattr(Nic, "aclose", slow_aclose)
        return gate

    async def test_while_a_nic_is_removed(
        self, switch: Switch, tmp_path: Path, gate: trio.Event
    ) -> None:
        for name in ("vm1", "vm2", "vm3"):
            await switch.add_nic(nic_spec(tmp_path, name))
        async with trio.open_nursery() as closing:
            closing.start_soon(switch.aclose)
            await trio.testing.wait_all_tasks_blocked()
            closing.start_soon(switch.remove_nic, next(iter(switch.nics)))
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        assert not switch.nics
        await switch.remove_network("blue")

    async def test_twice_at_once(self, switch: Switch, tmp_path: Path, gate: trio.Event) -> None:
        for name in ("vm1", "vm2", "vm3"):
            await switch.add_nic(nic_spec(tmp_path, name))
        async with trio.open_nursery() as closing, switch.events() as events:
            closing.start_soon(switch.aclose)
            closing.start_soon(switch.aclose)
            await trio.testing.wait_all_tasks_blocked()
            assert len(closing.child_tasks) == 2
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()
            gate.set()
        assert not list(tmp_path.iterdir())
        await switch.remove_network("blue")

    async def test_nic_that_fails_to_close(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bug, but its name is free and subscribers are told."""

        async def fail(_nic: Nic) -> None:
            raise RuntimeError("a bug")

        async with open_switch() as switch:
            await switch.add_network(BLUE)
            nic = await switch.add_nic(nic_spec(tmp_path))
            events = switch.events()
            with monkeypatch.context() as patched:
                patched.setattr(Nic, "aclose", fail)
                with pytest.raises(RuntimeError, match="a bug"):
                    await switch.aclose()
            async with events:
                assert [event async for event in events] == []
            await switch.remove_network("blue")
            await nic.aclose()


class TestEvents:
    async def test_what_happens(
        self, switch: Switch, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        async with switch.events() as events:
            for name in ("vm1", "vm2"):
                nic = await switch.add_nic(nic_spec(tmp_path, name))
                with contextlib.closing(await Connection.open(tmp_path / f"{name}.sock")) as one:
                    await one.get_features()
                    await nic.wait_connected()
                assert await events.receive() == NicEvent(name, NicEventKind.CONNECTED)
                assert await events.receive() == NicEvent(name, NicEventKind.DISCONNECTED)

    async def test_removal_disconnects(self, switch: Switch, tmp_path: Path) -> None:
        nic = await switch.add_nic(nic_spec(tmp_path))
        with contextlib.closing(await Connection.open(tmp_path / "vm1.sock")) as connection:
            await connection.get_features()
            await nic.wait_connected()
            async with switch.events() as events:
                await switch.remove_nic("vm1")
                assert (await events.receive()).kind is NicEventKind.DISCONNECTED

    async def test_several_subscribers_one_of_whom_leaves(
        self, switch: Switch, tmp_path: Path
    ) -> None:
        await switch.add_nic(nic_spec(tmp_path))
        async with switch.events() as staying:
            async with switch.events():
                pass
            with contextlib.closing(await Connection.open(tmp_path / "vm1.sock")) as connection:
                await connection.get_features()
            assert (await staying.receive()).kind is NicEventKind.CONNECTED

    async def test_subscriber_that_does_not_keep_up(
        self, switch: Switch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await switch.add_nic(nic_spec(tmp_path))
        async with switch.events() as events:
            for _ in range(EVENT_BACKLOG // 2 + 1):
                connection = await Connection.open(tmp_path / "vm1.sock")
                await connection.get_features()
                connection.close()
                await trio.testing.wait_all_tasks_blocked()
            assert len([event async for event in events]) == EVENT_BACKLOG
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
            "subscriber to events is too slow and gets no more"
        ]

    async def test_end_with_the_switch(self) -> None:
        async with open_switch() as switch:
            events = switch.events()
        async with events:
            assert [event async for event in events] == []

    async def test_of_a_switch_that_is_closed(self) -> None:
        async with open_switch() as switch:
            pass
        async with switch.events() as events:
            with trio.fail_after(1):
                assert [event async for event in events] == []


class TestOpenSwitch:
    async def test_removes_everything(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        async with open_switch() as switch:
            await switch.add_network(BLUE)
            for name in ("vm1", "vm2"):
                await switch.add_nic(nic_spec(tmp_path, name))
            client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
        assert not list(tmp_path.iterdir())
        await client.connection.wait_hung_up()
        await client.aclose()

    async def test_exception_of_the_body_comes_out_as_it_is(self, tmp_path: Path) -> None:
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            await fail_inside(tmp_path, error)
        assert caught.value is error
        assert not list(tmp_path.iterdir())

    async def test_exception_of_the_body_is_not_kept(self) -> None:
        """Nor is what its traceback holds: without the garbage collector's help it goes at once."""

        class Precious(Exception):
            pass

        async def leave() -> weakref.ref[Precious]:
            try:
                async with open_switch():
                    raise Precious
            except Precious as error:
                return weakref.ref(error)

        gc.disable()
        try:
            kept = await leave()
            assert kept() is None
        finally:
            gc.enable()

    async def test_cancellation(self, tmp_path: Path) -> None:
        with trio.move_on_after(0.01) as scope:
            async with open_switch() as switch:
                await switch.add_network(BLUE)
                await switch.add_nic(nic_spec(tmp_path))
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert not list(tmp_path.iterdir())

    async def test_exception_during_a_cancellation(self, tmp_path: Path) -> None:
        with trio.CancelScope() as scope, pytest.raises(ValueError, match="mine"):
            await fail_inside(tmp_path, ValueError("mine"), scope.cancel)

    async def test_nothing_can_be_added_afterwards(self, tmp_path: Path) -> None:
        async with open_switch() as switch:
            await switch.add_network(BLUE)
        with pytest.raises(trio.ClosedResourceError):
            await switch.add_nic(nic_spec(tmp_path))

    async def test_nic_that_is_being_added_at_the_end(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        async def add_too_late(switch: Switch) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await switch.add_nic(nic_spec(tmp_path))

        async with open_switch() as switch:
            await switch.add_network(BLUE)
            nursery.start_soon(add_too_late, switch)
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert not list(tmp_path.iterdir())


class TestPlaces:
    """Whether the files of the sockets are still there."""

    async def test_m55_is_noticed_without_a_connection(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        autojump_clock: object,
    ) -> None:
        """Once each time that one goes; the file that comes back is served.

        Without threads, for which virtual time does not wait.
        """
        async with open_switch(polling=PollingSpec(workers=0)) as switch:
            await switch.add_network(BLUE)
            nic = await switch.add_nic(nic_spec(tmp_path))
            path, aside = tmp_path / "vm1.sock", tmp_path / "aside"
            for times in (1, 2):
                path.rename(aside)
                await trio.sleep(3.5 * PLACE_INTERVAL)  # not in the moment of a look
                said = [record.message for record in caplog.records]
                assert said == ["socket was removed or replaced"] * times
                aside.rename(path)
                await trio.sleep(2 * PLACE_INTERVAL)
            async with trio.open_nursery() as nursery:
                client = await VhostTestClient.connect(nursery, path)
                await exchange(client, nic)
                await client.aclose()
                nursery.cancel_scope.cancel()

    async def test_not_all_at_the_same_moment(
        self,
        switch: Switch,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        autojump_clock: object,
    ) -> None:
        moments: dict[Nic, list[float]] = {}

        def look(nic: Nic) -> None:
            moments.setdefault(nic, []).append(trio.current_time())

        monkeypatch.setattr(Nic, "look_at_place", look)
        nics = [await switch.add_nic(nic_spec(tmp_path, f"vm{n}")) for n in range(32)]
        await trio.sleep(4.5 * PLACE_INTERVAL)
        assert moments.keys() == set(nics)
        seconds = {moment // 1 for own in moments.values() for moment in own}
        assert len(seconds) > len(nics)
        for first, second, *_ in moments.values():
            assert second - first == pytest.approx(PLACE_INTERVAL)

    async def test_goes_on_while_nics_come_and_go(
        self, switch: Switch, tmp_path: Path, autojump_clock: object
    ) -> None:
        for _ in range(3):
            await switch.add_nic(nic_spec(tmp_path, "vm1"))
            await switch.add_nic(nic_spec(tmp_path, "vm2"))
            await trio.sleep(1.2 * PLACE_INTERVAL)
            await switch.remove_nic("vm1")
            await trio.sleep(1.2 * PLACE_INTERVAL)
            await switch.remove_nic("vm2")
            await trio.sleep(1.2 * PLACE_INTERVAL)


async def fail_inside(
    tmp_path: Path, error: Exception, before: Callable[[], None] = lambda: None
) -> None:
    """Raise in the block of a switch that has a NIC."""
    async with open_switch() as switch:
        await switch.add_network(BLUE)
        await switch.add_nic(nic_spec(tmp_path))
        before()
        raise error


def test_public_api() -> None:
    """What README and how-tos speak of, and nothing that came in by accident."""
    public = {
        name
        for name in dir(mvirt_net)
        if not name.startswith("_") and not isinstance(getattr(mvirt_net, name), types.ModuleType)
    }
    ours = {"annotations", "Any", "TYPE_CHECKING"}
    assert public - ours == set(mvirt_net.__all__) - {"__version__"}


def out_of_memory(*_args: object) -> None:
    raise CoreError("routes", errno.ENOMEM)


async def test_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a switch comes out in a group."""

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("mvirt_net.dataplane.lookout.select.epoll", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        async with open_switch():
            pass
