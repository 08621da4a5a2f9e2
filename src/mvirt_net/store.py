"""What was created by verbs, kept in a file: SQLite.

**Theory of operation.** One connection, used by one thread at a time. Each change is one
transaction that is on the disk when its coroutine returns (WAL, ``synchronous=FULL``), so whatever
was answered is there after a crash of the daemon or of the host. The connection holds the lock of
the file for as long as it is open, which keeps a second daemon away and goes with the process,
however that ends.

The version of the tables is SQLite's ``user_version``: how many of `MIGRATIONS` have been made. A
file of a newer version is left alone.

Opening makes no thread, so that the process can give up its rights afterwards. From then on SQLite
needs nothing more of the file system than the files that it has open, and at the end to remove one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

import attrs
import trio

from .errors import ConfigError, StoreDataError, StoreError, StoreInUseError
from .inventory import NetworkEntry, NicEntry, file_id
from .model import NetworkSpec, NicSpec

_APPLICATION_ID: Final = 0x6D766E74
"""Tells our files from other ones of SQLite ("mvnt")."""

MIGRATIONS: Final[Sequence[Sequence[str]]] = (
    (
        """
        CREATE TABLE networks (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            ipv4_subnet TEXT,
            ipv6_prefix TEXT,
            ipv4_netmask TEXT NOT NULL,
            dns_servers TEXT NOT NULL,
            ntp_servers TEXT NOT NULL,
            mtu INTEGER NOT NULL,
            is_public INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        ) STRICT
        """,
        # A NIC in a network of the configuration file has no row to refer to, but its id.
        """
        CREATE TABLE nics (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            network_id TEXT NOT NULL,
            stored_network_id TEXT REFERENCES networks (id) ON DELETE CASCADE,
            network TEXT NOT NULL,
            mac_address TEXT NOT NULL UNIQUE,
            ipv4_address TEXT,
            ipv6_address TEXT,
            routed_ipv4_prefixes TEXT NOT NULL,
            routed_ipv6_prefixes TEXT NOT NULL,
            socket_path TEXT NOT NULL UNIQUE,
            socket_mode TEXT,
            socket_owner INTEGER,
            socket_group INTEGER,
            allow_uid TEXT,
            allow_gid TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            UNIQUE (network_id, ipv4_address),
            UNIQUE (network_id, ipv6_address),
            CHECK (stored_network_id IS NULL OR stored_network_id = network_id)
        ) STRICT
        """,
        "CREATE INDEX nics_by_network ON nics (stored_network_id)",
    ),
)
"""Each leads from the version before to the next; those that were released never change."""

_T = TypeVar("_T")
_LISTS = frozenset(
    {
        "dns_servers",
        "ntp_servers",
        "routed_ipv4_prefixes",
        "routed_ipv6_prefixes",
        "allow_uid",
        "allow_gid",
    }
)
"""Columns that hold JSON."""


@attrs.frozen
class StoredState:
    """All that is in a store, the oldest first."""

    networks: tuple[NetworkEntry, ...] = ()
    nics: tuple[NicEntry, ...] = ()


class Keeper(Protocol):
    """What `Control` needs of a store; see `Store` for what each does."""

    def load(self) -> StoredState: ...
    async def put_network(self, entry: NetworkEntry) -> None: ...
    async def delete_network(self, id_: str) -> None: ...
    async def put_nic(self, entry: NicEntry, *, in_stored_network: bool) -> None: ...
    async def delete_nic(self, id_: str) -> None: ...
    def put_nic_blocking(self, entry: NicEntry, *, in_stored_network: bool) -> None: ...


class NoStore:
    """A `Keeper` that keeps nothing: all lasts as long as the daemon."""

    def load(self) -> StoredState:
        return StoredState()

    async def put_network(self, entry: NetworkEntry) -> None:
        await trio.lowlevel.checkpoint()

    async def delete_network(self, id_: str) -> None:
        await trio.lowlevel.checkpoint()

    async def put_nic(self, entry: NicEntry, *, in_stored_network: bool) -> None:
        await trio.lowlevel.checkpoint()

    async def delete_nic(self, id_: str) -> None:
        await trio.lowlevel.checkpoint()

    def put_nic_blocking(self, entry: NicEntry, *, in_stored_network: bool) -> None:
        pass


class Store:
    """An open store; made by `open_store`, to be closed."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._limiter = trio.CapacityLimiter(1)

    def close(self) -> None:
        """Give the file free. Must not be called while a change is under way."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def load(self) -> StoredState:
        """Read everything.

        Raises:
            StoreDataError: there is something in it that we did not write.
            StoreError: it cannot be read.
        """
        with self._refusals():
            networks = self._rows("networks", _network_entry)
            nics = self._rows("nics", _nic_entry)
        return StoredState(networks, nics)

    # Changes. Each is a transaction, carried through whether it is cancelled or not. What they
    # raise is a StoreError, and then nothing has changed.

    async def put_network(self, entry: NetworkEntry) -> None:
        """Keep a network, new or changed."""
        await self._in_thread(lambda: self._put("networks", _network_row(entry)))

    async def delete_network(self, id_: str) -> None:
        """Forget a network and the NICs in it."""
        await self._in_thread(lambda: self._delete("networks", "id", id_))

    async def put_nic(self, entry: NicEntry, *, in_stored_network: bool) -> None:
        """Keep a NIC, new or changed.

        Args:
            entry: of the NIC.
            in_stored_network: whether its network is kept here, too, and takes it along when it
                goes; else it is one of the configuration file.
        """
        row = _nic_row(entry, entry.network_id if in_stored_network else None)
        await self._in_thread(lambda: self._put("nics", row))

    async def delete_nic(self, id_: str) -> None:
        """Forget a NIC."""
        await self._in_thread(lambda: self._delete("nics", "id", id_))

    def put_nic_blocking(self, entry: NicEntry, *, in_stored_network: bool) -> None:
        """As `put_nic`, without a thread: before the daemon serves anybody."""
        row = _nic_row(entry, entry.network_id if in_stored_network else None)
        self._transaction(lambda: self._put("nics", row))

    async def _in_thread(self, change: Callable[[], None]) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._transaction, change, limiter=self._limiter)

    def _transaction(self, change: Callable[[], None]) -> None:
        """Runs in a thread."""
        with self._refusals(), _transaction(self._connection):
            change()

    def _put(self, table: str, row: Mapping[str, Any]) -> None:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        changes = ", ".join(f"{name} = excluded.{name}" for name in row)
        self._connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({values})"
            f" ON CONFLICT (id) DO UPDATE SET {changes}",
            row,
        )

    def _delete(self, table: str, column: str, value: str) -> None:
        self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (value,))

    def _rows(self, table: str, convert: Callable[[dict[str, Any]], _T]) -> tuple[_T, ...]:
        # Times of equal length: their order as text is theirs.
        cursor = self._connection.execute(f"SELECT * FROM {table} ORDER BY created_at, rowid")
        cursor.row_factory = sqlite3.Row
        return tuple(self._converted(table, dict(row), convert) for row in cursor)

    def _converted(
        self, table: str, row: dict[str, Any], convert: Callable[[dict[str, Any]], _T]
    ) -> _T:
        try:
            return convert(row)
        except (ConfigError, ValueError, TypeError, KeyError) as error:
            raise StoreDataError(
                f"{self._path}: {table}: {row.get('name')!r} makes no sense: {error}"
                f" ({_WHAT_TO_DO})"
            ) from error

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        with _refusals(self._path):
            yield


_WHAT_TO_DO = "put a good copy in its place, or move it away to begin without any"


def open_store(path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> Store:
    """Open a store, made if there is none. Blocks for the time of some disk accesses.

    Args:
        path: of the file, whose folder must exist.
        migrations: those that lead to the version of this program.

    Raises:
        StoreInUseError: another process has it open.
        StoreDataError: it is not ours, is damaged, or is newer than we are.
        StoreError: SQLite cannot use it for another reason.
        OSError: it cannot be opened or made.
    """
    _make_file(path)
    with _refusals(path), contextlib.ExitStack() as on_failure:
        connection = sqlite3.connect(
            path,
            timeout=0,
            isolation_level=None,  # transactions are ours
            check_same_thread=False,  # but one at a time
        )
        on_failure.callback(connection.close)
        _set_up(connection, path, len(migrations))
        _migrate(connection, path, migrations)
        on_failure.pop_all()
    return Store(connection, path)


def _make_file(path: Path) -> None:
    """Make the file with the right mode, and find out about missing rights by their own names.

    One that exists is not opened: to close it would release the locks that this process has on it.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        os.close(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StoreDataError(f"{path}: is not a file") from None
        if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            os.close(os.open(path, flags))  # raises the reason


def _set_up(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    # First: with the lock held for good, the index of the WAL is in our own memory, and there is no
    # third file that other processes could reach.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    # A file that somebody prepared must not make SQL of ours do what is not in it.
    connection.execute("PRAGMA trusted_schema = OFF")
    _check_version(connection, path, newest)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")


def _check_version(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    """Raise StoreDataError when the file is not for us; nothing in it has been changed then."""
    version = _pragma(connection, "user_version")
    is_new = version == 0 and _pragma(connection, "schema_version") == 0
    if not is_new and _pragma(connection, "application_id") != _APPLICATION_ID:
        raise StoreDataError(f"{path}: belongs to another program")
    if version > newest:
        raise StoreDataError(
            f"{path}: was written by a newer mvirt-net (tables {version}, here {newest}):"
            " use that one, or another file"
        )


def _migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]]
) -> None:
    """Bring the tables to the version of this program, in one transaction.

    It writes in any case, so that whatever SQLite needs is open from then on, and locked.
    """
    with _transaction(connection):
        [[verdict]] = connection.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise StoreDataError(f"{path}: is damaged: {verdict} ({_WHAT_TO_DO})")
        version = _pragma(connection, "user_version")
        for statement in (statement for step in migrations[version:] for statement in step):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    [value] = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the body, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


_IN_USE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """What SQLite says, as exceptions of ours."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte of an extended code is the primary one.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _IN_USE:
            raise StoreInUseError(
                f"{path}: another process uses it: end that, or use another file"
            ) from error
        if code in _DAMAGED:
            raise StoreDataError(f"{path}: {error} ({_WHAT_TO_DO})") from error
        raise StoreError(f"{path}: {error}") from error


# Rows.


def _network_row(entry: NetworkEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        **_columns(entry.spec),
        "created_at": _time_text(entry.created_at),
        "updated_at": _time_text(entry.updated_at),
    }


def _nic_row(entry: NicEntry, stored_network_id: str | None) -> dict[str, Any]:
    return {
        "id": entry.id,
        "network_id": entry.network_id,
        "stored_network_id": stored_network_id,
        **_columns(entry.spec),
        "created_at": _time_text(entry.created_at),
        "updated_at": _time_text(entry.updated_at),
    }


def _columns(spec: NetworkSpec | NicSpec) -> dict[str, Any]:
    return {
        field.name: _column(field.name, getattr(spec, field.name))
        for field in attrs.fields(type(spec))
    }


def _column(name: str, value: Any) -> str | int | None:
    if value is None:
        return None
    if isinstance(value, int):
        return int(value)  # True is one, too
    if name in _LISTS:
        return json.dumps(sorted(value) if isinstance(value, frozenset) else [*map(str, value)])
    return str(value)


def _network_entry(row: dict[str, Any]) -> NetworkEntry:
    row["is_public"] = bool(row["is_public"])
    return NetworkEntry(in_file=False, **_entry_fields(row), spec=NetworkSpec(**_values(row)))


def _nic_entry(row: dict[str, Any]) -> NicEntry:
    in_stored, network_id = row.pop("stored_network_id"), row.pop("network_id")
    if in_stored is None:
        # Of the file, whose ids are made of names, by an older daemon in another way.
        network_id = file_id("network", row["network"])
    return NicEntry(
        in_file=False, network_id=network_id, **_entry_fields(row), spec=NicSpec(**_values(row))
    )


def _entry_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Take what is not of the specification out of `row`."""
    return {
        "id": row.pop("id"),
        "created_at": datetime.fromisoformat(row.pop("created_at")),
        "updated_at": datetime.fromisoformat(row.pop("updated_at")),
    }


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.loads(value) if name in _LISTS and value is not None else value
        for name, value in row.items()
    }


def _time_text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds")
