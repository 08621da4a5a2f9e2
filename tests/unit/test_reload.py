"""SIGHUP: the daemon as a process goes over to another configuration file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from mvirt_net.exits import ExitCode
from mvirt_net.ffi import rights
from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.process import (
    MAC,
    WITHOUT_RIGHTS,
    Daemon,
    notified,
    serves_a_guest,
    started,
)
from tests.unit.test_rights import TELLS_OF_IMPORTS

needs_landlock = pytest.mark.skipif(
    rights.landlock_abi() == 0, reason="this kernel has no Landlock, or it is switched off"
)

BLUE = '[[network]]\nname = "blue"\nipv4_subnet = "10.0.0.0/24"\n'
STEADY = (
    f'[[nic]]\nname = "steady"\nnetwork = "blue"\nmac_address = "{MAC}"\n'
    'ipv4_address = "10.0.0.5"\n'
)
OTHER = '[[nic]]\nname = "other"\nnetwork = "blue"\n'


def write(folder: Path, text: str) -> tuple[str, ...]:
    """Put a file into the place of the one before, as editors do; returns arguments for it."""
    path = folder / "x.toml"
    beside = folder / "x.toml.new"
    beside.write_text(text)
    beside.replace(path)
    return ("serve", "--config", str(path), "--socket-dir", str(folder))


async def reload(daemon: Daemon, event: str = "configuration reloaded") -> dict[str, object]:
    daemon.send(signal.SIGHUP)
    return await trio.to_thread.run_sync(daemon.wait_event, event)


async def test_a_session_goes_on(folder: Path, nursery: trio.Nursery) -> None:
    """In the sandbox and without rights; what is new comes, what is gone goes, all at once."""
    args = write(folder, BLUE + STEADY + OTHER)
    with started(*args, command=("-c", WITHOUT_RIGHTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        steady = await VhostTestClient.connect(nursery, folder / "steady.sock")
        other = await VhostTestClient.connect(nursery, folder / "other.sock")
        await arp_gateway(steady, MAC, "10.0.0.5")
        red = BLUE.replace("blue", "red").replace("10.0.0", "10.0.1")
        new = OTHER.replace("other", "new").replace("blue", "red")
        write(folder, red + new + BLUE + STEADY)
        event = await reload(daemon)
        assert (event["networks"], event["nics"]) == (2, 2)
        await other.connection.wait_hung_up()
        await arp_gateway(steady, MAC, "10.0.0.5")
        guest = await VhostTestClient.connect(nursery, folder / "new.sock")
        assert not (folder / "other.sock").exists()
        for client in (steady, other, guest):
            await client.aclose()
        daemon.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK
    assert [path.name for path in folder.iterdir()] == ["x.toml"]


async def test_a_wrong_file_changes_nothing(folder: Path, nursery: trio.Nursery) -> None:
    args = write(folder, BLUE + STEADY)
    with started(*args, command=("-c", WITHOUT_RIGHTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        steady = await VhostTestClient.connect(nursery, folder / "steady.sock")
        write(folder, BLUE + STEADY + OTHER.replace("blue", "red") + OTHER * 2)
        daemon.send(signal.SIGHUP)
        problems = [daemon.wait_event("configuration not reloaded")["problem"] for _ in range(2)]
        assert problems == [
            f"{folder}/x.toml: nic[1].network: there is no network 'red'",
            f"{folder}/x.toml: nic[3].name: there is a NIC 'other' already",
        ]
        (folder / "x.toml").unlink()
        event = await reload(daemon, "configuration not reloaded")
        assert event["problem"] == f"{folder}/x.toml: No such file or directory"
        await arp_gateway(steady, MAC, "10.0.0.5")
        await steady.aclose()
        assert not (folder / "other.sock").exists()
        daemon.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK


async def test_what_needs_a_restart_is_said(folder: Path) -> None:
    with started(*write(folder, BLUE), command=("-c", WITHOUT_RIGHTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        write(folder, 'state = "/x/state.db"\n' + BLUE + "[polling]\nworkers = 2\n")
        assert (await reload(daemon, "change needs a restart"))["key"] == "polling"
        assert daemon.wait_event("change needs a restart")["key"] == "state"
        assert daemon.wait_event("configuration reloaded")
        assert daemon.stop() == ExitCode.OK


@needs_landlock
async def test_a_folder_that_is_not_only_the_files_is_told_of(folder: Path) -> None:
    """A file that takes the place of another one can be read because all of its folder can."""
    (folder / "others").mkdir()
    with started(*write(folder, BLUE), command=("-c", WITHOUT_RIGHTS)) as daemon:
        said = "all of this folder stays readable: give the configuration one of its own"
        assert daemon.wait_event(said)["path"] == str(folder)
        await trio.to_thread.run_sync(daemon.wait_ready)
        write(folder, BLUE + OTHER)
        await reload(daemon)
        assert (folder / "other.sock").is_socket()
        assert daemon.stop() == ExitCode.OK


@needs_landlock
async def test_names_of_users_are_those_of_the_start(folder: Path) -> None:
    """None can be looked up any more; what could be is known."""
    args = write(folder, BLUE + OTHER + 'allow_uid = ["nobody"]\n')
    with started(*args, command=("-c", WITHOUT_RIGHTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        known = BLUE + OTHER.replace("other", "new") + 'allow_uid = ["nobody", 12345]\n'
        write(folder, known)
        await reload(daemon)
        write(folder, known.replace("12345", '"daemon"'))
        problem = (await reload(daemon, "configuration not reloaded"))["problem"]
        assert "nic[0].allow_uid: user 'daemon' is new: write its number" in str(problem)
        assert (folder / "new.sock").is_socket()
        assert daemon.stop() == ExitCode.OK


@needs_landlock
async def test_socket_out_of_reach_of_the_sandbox(folder: Path) -> None:
    """Its NIC is not served, and says so; the others are."""
    for name in ("inside", "outside"):
        (folder / name).mkdir()
        (folder / name).chmod(0o777)
    args = (*write(folder, BLUE), "--socket-dir", f"{folder}/inside")
    with started(*args, command=("-c", WITHOUT_RIGHTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        there = OTHER.replace("other", "there") + f'socket_path = "{folder}/outside/x.sock"\n'
        write(folder, BLUE + there + OTHER)
        event = await reload(daemon, "not served")
        assert event["nic"] == "there"
        assert event["reason"] == f"{folder}/outside/x.sock: Permission denied"
        assert daemon.wait_event("configuration reloaded")
        assert (folder / "inside" / "other.sock").is_socket()
        assert daemon.stop() == ExitCode.OK


@needs_landlock
async def test_nothing_is_imported(folder: Path, tmp_path: Path, nursery: trio.Nursery) -> None:
    with started(*write(tmp_path, BLUE), command=("-c", TELLS_OF_IMPORTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        write(tmp_path, BLUE + "[[nic]]\nwrong = 1\n")
        await reload(daemon, "configuration not reloaded")
        write(tmp_path, BLUE + STEADY + OTHER + 'routed_ipv4_prefixes = ["192.0.2.0/24"]\n')
        await reload(daemon)
        await serves_a_guest(nursery, tmp_path / "steady.sock")
        daemon.send(signal.SIGTERM)
        stdout, log = await trio.to_thread.run_sync(daemon.process.communicate)
        assert daemon.wait() == ExitCode.OK, log
    assert stdout == ""


async def test_the_service_manager_is_told(folder: Path) -> None:
    """As `Type=notify` wants it, so that `systemctl reload` waits for the end of it."""
    args = write(folder, BLUE)
    with notified(folder) as (manager, environ), started(*args, env=environ) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        assert manager.recv(100) == b"READY=1"
        await reload(daemon)
        state, _, time = manager.recv(100).decode().partition("\n")
        assert state == "RELOADING=1"
        assert time.startswith("MONOTONIC_USEC=")
        assert time.removeprefix("MONOTONIC_USEC=").isdecimal()
        assert manager.recv(100) == b"READY=1"
        assert daemon.stop() == ExitCode.OK


async def test_many_at_once_and_then_the_end(folder: Path) -> None:
    with started(*write(folder, BLUE + STEADY), command=("-c", WITHOUT_RIGHTS)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        for _ in range(20):
            daemon.send(signal.SIGHUP)
        await trio.to_thread.run_sync(daemon.wait_event, "configuration reloaded")
        daemon.send(signal.SIGHUP)
        assert daemon.stop() == ExitCode.OK
        assert "Traceback" not in daemon.process.communicate()[1]
    assert os.listdir(folder) == ["x.toml"]  # noqa: PTH208
