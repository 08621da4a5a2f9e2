"""The store: what was put is there, all of it or nothing, whatever happens to file and process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mvirt_net.errors import StoreDataError, StoreError, StoreInUseError
from mvirt_net.inventory import NetworkEntry, NicEntry, file_id
from mvirt_net.model import NetworkSpec, NicSpec
from mvirt_net.store import MIGRATIONS, Store, StoredState, open_store

NOW = datetime(2026, 11, 29, 12, 0, 0, 123, UTC)


def network(number: int = 0, **fields: Any) -> NetworkEntry:
    spec = NetworkSpec(name=f"net{number}", ipv4_subnet="10.0.0.0/24", **fields)
    return NetworkEntry(
        id=str(uuid.UUID(int=number)),
        spec=spec,
        in_file=False,
        created_at=NOW + timedelta(seconds=number),
        updated_at=NOW + timedelta(seconds=number),
    )


def nic(number: int, of: NetworkEntry, **fields: Any) -> NicEntry:
    given = {
        "mac_address": f"52:54:00:00:00:{number:02x}",
        "ipv4_address": f"10.0.0.{number}",
        "socket_path": f"/run/vm{number}.sock",
    }
    return NicEntry(
        id=str(uuid.UUID(int=1000 + number)),
        network_id=of.id,
        spec=NicSpec(**{"name": f"vm{number}", "network": of.spec.name, **given, **fields}),
        in_file=False,
        created_at=NOW + timedelta(seconds=number),
        updated_at=NOW,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def stored(path: Path) -> StoredState:
    """What is in a file."""
    with open_store(path) as store:
        return store.load()


class TestContent:
    async def test_every_field(self, path: Path) -> None:
        first = network(
            ipv6_prefix="fd00::/64",
            ipv4_netmask="subnet",
            dns_servers=["9.9.9.9", "2620:fe::fe"],
            ntp_servers=["10.0.0.123"],
            mtu=9000,
            is_public=True,
        )
        full = nic(
            1,
            first,
            ipv6_address="fd00::5",
            routed_ipv4_prefixes=["192.0.2.0/24", "198.51.100.0/24"],
            routed_ipv6_prefixes=["2001:db8::/48"],
            socket_mode="0600",
            socket_owner=5,
            socket_group=6,
            allow_uid=[8, 7],
            allow_gid=[9],
        )
        for spec in (first.spec, full.spec):
            defaults = {f.name: f.default for f in attrs.fields(type(spec))}
            assert all(getattr(spec, name) != value for name, value in defaults.items())
        with open_store(path) as store:
            await store.put_network(first)
            await store.put_nic(full, in_stored_network=True)
        assert stored(path) == StoredState((first,), (full,))

    async def test_networks_of_the_file_have_the_ids_of_today(self, path: Path) -> None:
        """Older daemons made them in another way."""
        old = network(7)
        with open_store(path) as store:
            await store.put_nic(nic(3, old), in_stored_network=False)
        [kept] = stored(path).nics
        assert kept.network_id == file_id("network", old.spec.name) != old.id

    async def test_by_age_and_with_least_fields(self, path: Path) -> None:
        newer, older = network(2), network(1)
        in_file = attrs.evolve(network(7), id=file_id("network", "net7"))
        with open_store(path) as store:
            await store.put_network(newer)
            await store.put_network(older)
            await store.put_nic(nic(4, newer), in_stored_network=True)
            await store.put_nic(nic(3, in_file), in_stored_network=False)
        assert stored(path) == StoredState((older, newer), (nic(3, in_file), nic(4, newer)))

    async def test_changed_and_deleted(self, path: Path) -> None:
        first, second = network(1), network(2)
        with open_store(path) as store:
            for entry in (first, second):
                await store.put_network(entry)
            for number, of in ((3, first), (4, second), (5, second)):
                await store.put_nic(nic(number, of), in_stored_network=True)
            changed = nic(3, first, routed_ipv4_prefixes=["192.0.2.0/24"])
            await store.put_nic(changed, in_stored_network=True)
            await store.delete_nic(nic(4, second).id)
            assert store.load() == StoredState((first, second), (changed, nic(5, second)))
            await store.delete_network(second.id)
            assert store.load() == StoredState((first,), (changed,))

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "vm3"},
            {"mac_address": "52:54:00:00:00:03"},
            {"ipv4_address": "10.0.0.3"},
            {"socket_path": "/run/vm3.sock"},
        ],
    )
    async def test_what_must_be_unique(self, path: Path, fields: dict[str, str]) -> None:
        """The verbs see to it, and so does the file."""
        first = network()
        with open_store(path) as store:
            await store.put_network(first)
            await store.put_nic(nic(3, first), in_stored_network=True)
            with pytest.raises(StoreError, match="UNIQUE"):
                await store.put_nic(nic(4, first, **fields), in_stored_network=True)
            with pytest.raises(StoreError, match="FOREIGN KEY"):
                await store.put_nic(nic(5, network(9)), in_stored_network=True)
            assert store.load() == StoredState((first,), (nic(3, first),))

    async def test_full_disk(self, path: Path) -> None:
        with open_store(path) as store:
            await store.put_network(network(1))
            [pages] = store._connection.execute("PRAGMA page_count").fetchone()
            store._connection.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(StoreError, match="disk is full"):
                await self.put_many(store)
            before = store.load()
            store._connection.execute("PRAGMA max_page_count = 100000")
            await store.put_network(network(1000))
            assert store.load().networks == (*before.networks, network(1000))

    @staticmethod
    async def put_many(store: Store) -> None:
        for number in range(2, 1000):
            await store.put_network(network(number))

    async def test_a_change_is_carried_through(self, path: Path) -> None:
        with open_store(path) as store:
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.put_network(network())
            assert store.load().networks == (network(),)

    async def test_makes_no_thread_until_something_changes(self, path: Path) -> None:
        """Rights could not be given up any more."""
        before = os.listdir("/proc/self/task")  # noqa: PTH208
        with open_store(path) as store:
            store.load()
            store.put_nic_blocking(nic(1, network()), in_stored_network=False)
            assert os.listdir("/proc/self/task") == before  # noqa: PTH208


class TestFile:
    def test_mode_and_what_is_left(self, path: Path) -> None:
        with open_store(path):
            assert {file.name for file in path.parent.iterdir()} == {"state.db", "state.db-wal"}
            assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
        assert [file.name for file in path.parent.iterdir()] == ["state.db"]

    def test_in_use(self, path: Path) -> None:
        with open_store(path):
            with pytest.raises(StoreInUseError, match="another process uses it"):
                open_store(path)
            # And that attempt has not given the lock free.
            script = (
                "from pathlib import Path; from mvirt_net.store import open_store;"
                f"open_store(Path({str(path)!r}))"
            )
            command = [sys.executable, "-c", script]
            result = subprocess.run(command, stderr=subprocess.PIPE, check=False)
            assert b"StoreInUseError" in result.stderr
        open_store(path).close()

    def test_is_not_followed_nor_anything_but_a_file(self, path: Path) -> None:
        path.symlink_to(path.parent / "elsewhere")
        with pytest.raises(StoreDataError, match="is not a file"):
            open_store(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(StoreDataError, match="is not a file"):
            open_store(path)
        assert [file.name for file in path.parent.iterdir()] == ["state.db"]

    def test_no_folder(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            open_store(path / "x")
        assert caught.value.filename == str(path / "x")

    def test_of_another_program(self, path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE networks (x)")
        connection.commit()
        connection.close()
        before = path.read_bytes()
        with pytest.raises(StoreDataError, match="belongs to another program"):
            open_store(path)
        assert path.read_bytes() == before

    def test_of_a_newer_version(self, path: Path) -> None:
        open_store(path, (*MIGRATIONS, ("CREATE TABLE more (x)",))).close()
        before = path.read_bytes()
        with pytest.raises(StoreDataError, match=r"newer mvirt-net \(tables 2, here 1\)"):
            open_store(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("content", [b"Dear diary" * 999, b"SQLite format 3\0" + bytes(9999)])
    def test_not_a_database(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(StoreDataError, match="move it away"):
            open_store(path)
        assert path.read_bytes() == content

    async def test_damaged(self, path: Path) -> None:
        with open_store(path) as store:
            for number in range(1, 200):
                await store.put_nic(nic(number, network()), in_stored_network=False)
        content = bytearray(path.read_bytes())
        content[4096 * 3 :: 7] = b"x" * len(content[4096 * 3 :: 7])
        path.write_bytes(content)
        with pytest.raises(StoreDataError, match="move it away"):
            open_store(path)

    @pytest.mark.parametrize(
        ("column", "value"),
        [("name", "'a b'"), ("ipv4_subnet", "'10'"), ("dns_servers", "'x'"), ("created_at", "''")],
    )
    async def test_values_that_make_no_sense(self, path: Path, column: str, value: str) -> None:
        with open_store(path) as store:
            await store.put_network(network())
            store._connection.execute(f"UPDATE networks SET {column} = {value}")
        with open_store(path) as store, pytest.raises(StoreDataError, match="makes no sense"):
            store.load()


class TestMigrations:
    ADDED = ("ALTER TABLE networks ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'",)

    async def test_keep_what_there_is(self, path: Path) -> None:
        with open_store(path) as store:
            await store.put_network(network())
        with open_store(path, (*MIGRATIONS, self.ADDED)) as store:
            rows = store._connection.execute("SELECT name, colour FROM networks").fetchall()
            assert rows == [("net0", "blue")]
            assert self.version(store) == len(MIGRATIONS) + 1

    async def test_all_or_nothing(self, path: Path) -> None:
        with open_store(path) as store:
            await store.put_network(network())
        with pytest.raises(StoreError, match="no such table"):
            open_store(path, (*MIGRATIONS, self.ADDED, ("DROP TABLE nowhere",)))
        with open_store(path) as store:
            assert store.load().networks == (network(),)
            assert self.version(store) == len(MIGRATIONS)

    @staticmethod
    def version(store: Store) -> int:
        [version] = store._connection.execute("PRAGMA user_version").fetchone()
        return int(version)


_WRITER = """
import sys, trio
from pathlib import Path
from mvirt_net.store import open_store
from tests.unit.test_store import network, nic

async def main():
    with open_store(Path(sys.argv[1])) as store:
        of = network()
        await store.put_network(of)
        for number in range(1, 250):
            await store.put_nic(nic(number, of), in_stored_network=True)
            print(number, flush=True)
trio.run(main)
"""


@pytest.mark.parametrize("answers", [1, 20, 60])
def test_killed_in_the_middle(answers: int, path: Path) -> None:
    """What was answered is there; of what was not, all or nothing; and nothing is locked."""
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        for expected in range(1, answers + 1):
            assert int(process.stdout.readline()) == expected
        process.send_signal(signal.SIGKILL)
        answered = answers + len(process.stdout.readlines())
    state = stored(path)
    assert state.networks == (network(),)
    assert state.nics in (
        tuple(nic(number, network()) for number in range(1, last + 1))
        for last in (answered, answered + 1)
    )
