"""The whole daemon as a coroutine: how it starts and stops, and on what it does not start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

import mvirt_net
from mvirt_net import (
    ConfigError,
    Control,
    DaemonConfig,
    DuplicateError,
    NetworkSpec,
    NicSpec,
    NicState,
    SocketInUseError,
    SocketPathError,
    Switch,
)
from mvirt_net.model import ApiSpec
from tests.harness.client import VhostTestClient
from tests.harness.packets import GATEWAY_IP, arp_request, is_arp_reply
from tests.harness.vhost_user import Connection

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"


def config(tmp_path: Path, *nics: dict[str, Any]) -> DaemonConfig:
    """One network, and NICs ``vm0``, ``vm1`` ..., which listen in `tmp_path`."""
    defaults: list[dict[str, Any]] = [
        {"name": f"vm{i}", "network": "blue", "socket_path": tmp_path / f"vm{i}.sock"}
        for i in range(len(nics))
    ]
    return DaemonConfig(
        networks=(NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24"),),
        nics=tuple(
            NicSpec(**{**default, **nic}) for default, nic in zip(defaults, nics, strict=True)
        ),
    )


async def test_serves_a_guest_until_the_trigger(tmp_path: Path, nursery: trio.Nursery) -> None:
    trigger = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Switch]) -> None:
        await mvirt_net.serve(
            config(tmp_path, {"mac_address": MAC, "ipv4_address": IP}),
            shutdown_trigger=trigger.wait,
            task_status=task_status,
        )

    switch = await nursery.start(serve)
    assert list(switch.nics) == ["vm0"]
    client = await VhostTestClient.connect(nursery, tmp_path / "vm0.sock")
    await client.send_packet(arp_request(MAC, IP, GATEWAY_IP))
    assert is_arp_reply(await client.recv_packet())
    trigger.set()
    with trio.fail_after(5):
        await client.connection.wait_hung_up()
        await client.aclose()
        # Tasks that have a thread end with it, whenever that is.
        while nursery.child_tasks:
            await trio.lowlevel.checkpoint()
    assert not list(tmp_path.iterdir())


async def test_without_trigger_until_cancelled(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(mvirt_net.serve, config(tmp_path, {}))
        assert (tmp_path / "vm0.sock").exists()
        nursery.cancel_scope.cancel()
    assert not list(tmp_path.iterdir())


async def test_all_sockets_listen_at_started(tmp_path: Path, nursery: trio.Nursery) -> None:
    switch = await nursery.start(mvirt_net.serve, config(tmp_path, {}, {}, {}))
    for nic in switch.nics.values():
        client = await VhostTestClient.connect(nursery, nic.spec.socket_path)
        await client.aclose()


async def test_switch_can_be_changed_meanwhile(tmp_path: Path, nursery: trio.Nursery) -> None:
    switch: Switch = await nursery.start(mvirt_net.serve, config(tmp_path, {}))
    await switch.remove_nic("vm0")
    await switch.add_network(NetworkSpec(name="red"))
    await switch.add_nic(NicSpec(name="late", network="red", socket_path=tmp_path / "late.sock"))
    assert [path.name for path in tmp_path.iterdir()] == ["late.sock"]


async def test_addresses_given_in_the_configuration_come_first(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    nics = config(tmp_path, {}, {"ipv4_address": "10.0.0.1"})
    switch = await nursery.start(mvirt_net.serve, nics)
    assert [str(nic.spec.ipv4_address) for nic in switch.nics.values()] == ["10.0.0.2", "10.0.0.1"]


async def test_empty_configuration(nursery: trio.Nursery) -> None:
    switch = await nursery.start(mvirt_net.serve, DaemonConfig())
    assert not switch.nics


@pytest.mark.parametrize(
    ("nics", "error", "key"),
    [
        ([{}, {"name": "vm0"}], DuplicateError, "nic[1].name"),
        ([{"mac_address": MAC}, {}, {"mac_address": MAC}], DuplicateError, "nic[2].mac_address"),
        ([{"ipv4_address": "10.0.1.1"}], ConfigError, "nic[0].ipv4_address"),
        ([{}, {"network": "red"}], ConfigError, "nic[1].network"),
    ],
)
async def test_wrong_configuration(
    tmp_path: Path, nics: list[dict[str, Any]], error: type[ConfigError], key: str
) -> None:
    with pytest.raises(error) as caught:
        await mvirt_net.serve(config(tmp_path, *nics))
    assert caught.value.key == key
    assert not list(tmp_path.iterdir())


async def test_wrong_network(tmp_path: Path) -> None:
    wrong = DaemonConfig((NetworkSpec(name="blue"), NetworkSpec(name="blue")))
    with pytest.raises(DuplicateError) as caught:
        await mvirt_net.serve(wrong)
    assert caught.value.key == "network[1].name"


@pytest.mark.parametrize("serve", [mvirt_net.serve, None])
async def test_socket_trouble_ends_the_start(
    tmp_path: Path, serve: Callable[..., Any] | None, nursery: trio.Nursery
) -> None:
    """As it is, called directly or by ``nursery.start``, with the other sockets removed again."""

    async def start(nics: DaemonConfig) -> None:
        await (nursery.start(mvirt_net.serve, nics) if serve is None else serve(nics))

    (tmp_path / "vm1.sock").mkdir()
    with pytest.raises(SocketPathError):
        await start(config(tmp_path, {}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["vm1.sock"]
    (tmp_path / "vm1.sock").rmdir()
    await nursery.start(mvirt_net.serve, config(tmp_path, {}))
    with pytest.raises(SocketInUseError):
        await start(config(tmp_path, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["vm0.sock"]


async def test_failure_of_the_trigger_comes_out_as_it_is(tmp_path: Path) -> None:
    async def fail() -> None:
        raise KeyError("trigger")

    with pytest.raises(KeyError):
        await mvirt_net.serve(config(tmp_path, {}), shutdown_trigger=fail)
    assert not list(tmp_path.iterdir())


async def test_nobody_is_served_before_on_listening_has_returned(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frontend may connect as soon as there is a socket, and even before the others are there."""
    frontends: list[Connection] = []
    nics: list[mvirt_net.Nic] = []
    add_nic = Switch.add_nic

    async def add_nic_and_connect(self: Switch, spec: NicSpec, **how: Any) -> mvirt_net.Nic:
        nics.append(await add_nic(self, spec, **how))
        frontends.append(await Connection.open(tmp_path / f"{spec.name}.sock"))
        nursery.start_soon(frontends[-1].get_features)
        await trio.testing.wait_all_tasks_blocked()
        return nics[-1]

    monkeypatch.setattr(Switch, "add_nic", add_nic_and_connect)
    seen: list[list[bool]] = []

    async def serve(*, task_status: trio.TaskStatus[Switch]) -> None:
        await mvirt_net.serve(
            config(tmp_path, {}, {}),
            on_listening=lambda: seen.append([nic.connected for nic in nics]),
            task_status=task_status,
        )

    await nursery.start(serve)
    assert seen == [[False, False]]
    for nic, frontend in zip(nics, frontends, strict=True):
        await nic.wait_connected()
        await trio.testing.wait_all_tasks_blocked()
        frontend.close()
    nursery.cancel_scope.cancel()


async def test_failure_when_listening_ends_the_daemon(tmp_path: Path) -> None:
    def fail() -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        await mvirt_net.serve(config(tmp_path, {}), on_listening=fail)
    assert not (tmp_path / "vm0.sock").exists()


async def test_nobody_is_served_when_on_listening_says_so(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """As when a signal has come meanwhile; the sockets are there, and are removed at the end."""
    frontends: list[Connection] = []
    shutdown = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Switch]) -> None:
        await mvirt_net.serve(
            config(tmp_path, {}, {}),
            on_listening=lambda: False,
            shutdown_trigger=shutdown.wait,
            task_status=task_status,
        )

    switch = await nursery.start(serve)
    for nic in switch.nics.values():
        frontends.append(await Connection.open(nic.spec.socket_path))
        nursery.start_soon(frontends[-1].send_raw, bytes(12))
    await trio.testing.wait_all_tasks_blocked()
    shutdown.set()
    for frontend in frontends:
        await frontend.wait_hung_up()
        frontend.close()
    assert not any(nic.connected for nic in switch.nics.values())
    assert not list(tmp_path.glob("*.sock"))


async def test_a_stored_nic_on_the_socket_of_an_interface(tmp_path: Path) -> None:
    """It was made while there was none; now it has to wait, and the daemon has not."""
    path = tmp_path / "control.sock"
    for api in (ApiSpec(), ApiSpec(http=f"unix:{path}")):
        stored = attrs.evolve(
            config(tmp_path), api=api, state=tmp_path / "state.db", socket_dir=tmp_path
        )
        found: list[Control] = []
        async with trio.open_nursery() as nursery:
            start = partial(mvirt_net.serve, stored, on_control=found.append)
            await nursery.start(start)
            [control] = found
            if not api.is_wanted:
                await control.create_nic({"name": "control", "network": "blue"})
            [nic] = control.list_nics()
            nursery.cancel_scope.cancel()
    assert nic.spec.socket_path == path
    assert (nic.state, "the control interface http" in nic.error) == (NicState.ERROR, True)
    assert not path.exists()
