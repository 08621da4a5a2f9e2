"""What verbs made is there after a restart, however the daemon ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from mvirt_net.exits import ExitCode
from tests.harness.driven import RefusedError, Verbs, driven
from tests.harness.process import (
    MAC,
    WITHOUT_RIGHTS,
    Daemon,
    run_failing,
    serves_a_guest,
    started,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as another user")


def arguments(folder: Path, text: str = "", *more: str) -> tuple[str, ...]:
    """Of a daemon with a configuration file, its state and its sockets in `folder`."""
    path = folder / "x.toml"
    path.write_text(text)
    state = ("--state", str(folder / "state.db"))
    return ("serve", "--config", str(path), "--socket-dir", str(folder), *state, *more)


BLUE = '[[network]]\nname = "blue"\nipv4_subnet = "10.0.0.0/24"\n'
FILE_NIC = '[[nic]]\nname = "vm1"\nnetwork = "blue"\n'


@contextlib.contextmanager
def served(folder: Path, text: str = "") -> Iterator[tuple[Daemon, Verbs]]:
    """A daemon as nobody, whose folder it is."""
    with driven(*arguments(folder, text), as_nobody=True) as both:
        yield both


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_all_is_there_again(number: int, folder: Path, nursery: trio.Nursery) -> None:
    """The same ids, addresses, times and routes, and a guest is served at the same socket."""
    args = arguments(folder)
    with driven(*args, as_nobody=True) as (daemon, verbs):
        network = verbs.create_network({"name": "blue", "ipv4_subnet": "10.0.0.0/24"})
        nic = verbs.create_nic(
            {"network": "blue", "name": "s", "mac_address": MAC, "ipv4_address": "10.0.0.5"}
        )
        other = verbs.create_nic({"network": network["id"]})
        gone = verbs.create_nic({"network": network["id"]})
        verbs.delete_nic(gone["id"])
        other = verbs.update_nic(other["id"], routed_ipv4_prefixes=["192.0.2.0/24"])
        network = verbs.update_network("blue", dns_servers=["9.9.9.9"])
        daemon.stop(number)
    with driven(*args, as_nobody=True) as (daemon, verbs):
        assert verbs.list_networks() == [network]
        assert verbs.list_nics() == [nic, other]
        await serves_a_guest(nursery, folder / "s.sock")
        verbs.delete_network("blue", force=True)
        daemon.stop(number)
    with driven(*args, as_nobody=True) as (daemon, verbs):
        assert verbs.list_networks() == verbs.list_nics() == []
        assert daemon.stop() == ExitCode.OK
    assert sorted(path.name for path in folder.iterdir()) == ["state.db", "x.toml"]
    assert (folder / "state.db").stat().st_mode & 0o777 == 0o600


@as_root
def test_by_default_and_by_the_api(folder: Path) -> None:
    """Of a daemon that can be controlled; its folder belongs to whom it runs as."""
    (folder / "x.toml").write_text("")
    http = folder / "http.sock"
    args = ("serve", "-c", f"{folder}/x.toml", "--socket-dir", str(folder), "--runas", "nobody")
    red = {"name": "red", "ipv4_subnet": "10.1.0.0/24"}
    transport = httpx.HTTPTransport(uds=str(http))
    with started(*args, "--http", f"unix:{http}") as daemon:
        daemon.wait_ready()
        with httpx.Client(transport=transport, base_url="http://x") as client:
            answer = client.post("/v1/networks", json=red)
            assert answer.status_code == 201
        daemon.stop(signal.SIGKILL)
    state = Path(os.environ["STATE_DIRECTORY"])
    assert (state.owner(), state.stat().st_mode & 0o777) == ("nobody", 0o700)
    assert (state / "state.db").owner() == "nobody"
    transport = httpx.HTTPTransport(uds=str(http))
    with started(*args, "--http", f"unix:{http}") as daemon:
        daemon.wait_ready()
        with httpx.Client(transport=transport, base_url="http://x") as client:
            assert client.get("/v1/networks").json()["networks"] == [answer.json()]
        assert daemon.stop() == ExitCode.OK


def test_without_a_state_nothing_lasts(folder: Path) -> None:
    args = arguments(folder, "", "--no-state")
    args = tuple(arg for arg in args if arg not in ("--state", str(folder / "state.db")))
    with driven(*args, as_nobody=True) as (daemon, verbs):
        verbs.create_network({"name": "blue", "ipv4_subnet": "10.0.0.0/24"})
        assert daemon.stop() == ExitCode.OK
    with driven(*args, as_nobody=True) as (daemon, verbs):
        assert verbs.list_networks() == []
        assert daemon.stop() == ExitCode.OK


def test_second_daemon_on_one_state(folder: Path) -> None:
    args = arguments(folder)
    with driven(*args) as (daemon, verbs):
        code, lines = run_failing(*args)
        assert code == ExitCode.IN_USE
        assert lines[-1].startswith(f"mvirt-net: {folder}/state.db: another process uses it")
        verbs.create_network({"name": "blue", "ipv4_subnet": "10.0.0.0/24"})
        assert daemon.stop() == ExitCode.OK


class TestRights:
    @as_root
    async def test_runas(self, folder: Path, nursery: trio.Nursery) -> None:
        """The file is the other user's from the start, and can be written when root is no more."""
        args = arguments(folder, BLUE, "--runas", "nobody")
        for start in range(2):
            with driven(*args) as (daemon, verbs):
                for path in folder.glob("state.db*"):
                    assert path.owner() == "nobody"
                    assert path.stat().st_mode & 0o777 == 0o600
                verbs.create_nic({"network": "blue", "name": f"vm{start}", "mac_address": None})
                assert daemon.stop() == ExitCode.OK
        assert sorted(path.name for path in folder.iterdir()) == ["state.db", "x.toml"]

    @as_root
    def test_what_the_other_user_may_not_open_is_refused(self, folder: Path) -> None:
        """Root could open it, and would write to whatever that user has put there a link to."""
        (folder / "state.db").touch(0o600)
        os.chown(folder / "state.db", 0, 0)
        code, lines = run_failing(*arguments(folder, "", "--runas", "nobody"))
        assert code == ExitCode.NO_PERMISSION
        assert lines[-1] == f"mvirt-net: {folder}/state.db: Permission denied"

    def test_no_permission(self, folder: Path) -> None:
        args = arguments(folder)
        folder.chmod(0o555)
        code, lines = run_failing(*args, command=("-c", WITHOUT_RIGHTS))
        assert code == ExitCode.NO_PERMISSION
        assert lines[-1] == f"mvirt-net: {folder}/state.db: Permission denied"

    def test_no_folder(self, folder: Path) -> None:
        code, lines = run_failing(*arguments(folder), "--state", "/none/state.db")
        assert code == ExitCode.FAILURE
        assert lines[-1] == "mvirt-net: /none/state.db: No such file or directory"

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"Dear diary" * 500, "file is not a database"),
            (b"SQLite format 3\0" + b"\xff" * 5000, ""),
        ],
    )
    def test_not_a_database(self, content: bytes, expected: str, folder: Path) -> None:
        args = arguments(folder)
        (folder / "state.db").write_bytes(content)
        code, lines = run_failing(*args)
        assert code == ExitCode.BAD_STATE
        assert f"mvirt-net: {folder}/state.db: {expected}" in lines[-1]
        assert "move it away" in lines[-1]
        assert (folder / "state.db").read_bytes() == content

    def test_of_a_newer_version(self, folder: Path) -> None:
        args = arguments(folder)
        with driven(*args) as (daemon, _verbs):
            assert daemon.stop() == ExitCode.OK
        connection = sqlite3.connect(folder / "state.db")
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        code, lines = run_failing(*args)
        assert code == ExitCode.BAD_STATE
        assert "newer mvirt-net" in lines[-1]


class TestBesideTheFile:
    """More of that is in `tests.test_control`."""

    def test_of_the_file_cannot_be_changed(self, folder: Path) -> None:
        text = BLUE + FILE_NIC
        with served(folder, text) as (daemon, verbs):
            [network], [nic] = verbs.list_networks(), verbs.list_nics()
            with pytest.raises(RefusedError, match="change it there and reload") as caught:
                verbs.delete_nic(nic["id"])
            assert caught.value.args[0] == "FAILED_PRECONDITION"
            daemon.stop(signal.SIGKILL)
        with served(folder, text) as (daemon, verbs):
            assert verbs.list_networks()[0]["id"] == network["id"]
            assert verbs.list_nics()[0]["id"] == nic["id"]
            assert daemon.stop() == ExitCode.OK

    def test_a_conflict_does_not_keep_it_from_starting(self, folder: Path) -> None:
        with served(folder, BLUE) as (daemon, verbs):
            nic = verbs.create_nic({"network": "blue", "name": "vm1", "mac_address": MAC})
            assert daemon.stop() == ExitCode.OK
        with served(folder, BLUE + FILE_NIC) as (daemon, verbs):
            assert daemon.wait_event("not served")["nic"] == "vm1"
            assert "there is a NIC 'vm1' already" in verbs.get_nic(nic["id"])["error"]
            assert verbs.get_nic("vm1")["id"] != nic["id"]
            daemon.stop(signal.SIGKILL)
        with served(folder, BLUE) as (daemon, verbs):
            assert verbs.list_nics() == [nic]
            assert daemon.stop() == ExitCode.OK
