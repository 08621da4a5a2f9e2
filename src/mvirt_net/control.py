"""A STAND-IN for the control module that is being built: the verbs, in memory only.

It lets the control interfaces be served and tested until the real one takes its place.
"""

from __future__ import annotations

import contextlib
import enum
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import trio

from .errors import ConfigError, DuplicateError, MvirtNetError, NotFoundError
from .model import NetworkSpec, NicSpec, NicStats
from .nic import NicEventKind
from .switch import Switch

WATCH_BACKLOG = 256
"""Changes that a watcher may be behind."""


class ErrorKind(enum.Enum):
    """What a caller can do about it; the names are those of gRPC's codes."""

    INVALID_ARGUMENT = enum.auto()
    NOT_FOUND = enum.auto()
    ALREADY_EXISTS = enum.auto()
    FAILED_PRECONDITION = enum.auto()
    RESOURCE_EXHAUSTED = enum.auto()
    INTERNAL = enum.auto()


class ControlError(MvirtNetError):
    """A verb was refused; nothing has changed."""

    def __init__(self, kind: ErrorKind, message: str, field: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field


class NicState(enum.Enum):
    CREATED = "created"
    ACTIVE = "active"
    ERROR = "error"


@attrs.frozen(kw_only=True)
class NetworkRecord:
    """A network as it is at a moment."""

    id: str
    spec: NetworkSpec
    nic_count: int
    created_at: datetime
    updated_at: datetime


@attrs.frozen(kw_only=True)
class NicRecord:
    """A NIC as it is at a moment."""

    id: str
    network_id: str
    spec: NicSpec
    state: NicState
    created_at: datetime
    updated_at: datetime


@attrs.frozen
class Change:
    """Something was created or updated, or is gone (`record` is None)."""

    resource: str
    """``network`` or ``nic``."""
    id: str
    at: datetime
    record: NetworkRecord | NicRecord | None


@attrs.define
class _Stamps:
    id: str
    created_at: datetime
    updated_at: datetime


class Control:
    """The verbs. Identifiers (`ref`) are an id or a name."""

    def __init__(self, switch: Switch, socket_dir: Path) -> None:
        self._switch = switch
        self._socket_dir = socket_dir
        self._networks: dict[str, _Stamps] = {}
        self._nics: dict[str, _Stamps] = {}
        self._watchers: set[trio.MemorySendChannel[Change]] = set()
        self._lock = trio.Lock()

    def list_networks(self) -> list[NetworkRecord]:
        return [self._network_record(name) for name in self._switch.networks]

    def get_network(self, ref: str) -> NetworkRecord:
        return self._network_record(self._network_name(ref))

    async def create_network(self, fields: dict[str, Any], id: str | None = None) -> NetworkRecord:  # noqa: A002
        async with self._lock:
            self._check_id(id, self._networks, (r.id for r in self.list_networks()))
            with _refusals():
                spec = NetworkSpec(**fields)
                await self._switch.add_network(spec)
            self._networks[spec.name] = _stamps(id)
            return self._tell_network(spec.name)

    async def update_network(
        self,
        ref: str,
        *,
        dns_servers: Sequence[str] | None = None,
        ntp_servers: Sequence[str] | None = None,
    ) -> NetworkRecord:
        self.get_network(ref)
        raise ControlError(ErrorKind.INTERNAL, "not built")

    async def delete_network(self, ref: str, *, force: bool = False) -> int:
        async with self._lock:
            name = self._network_name(ref)
            record = self._network_record(name)
            if record.nic_count and not force:
                raise ControlError(
                    ErrorKind.FAILED_PRECONDITION,
                    f"network has {record.nic_count} NICs, use force=true to delete",
                )
            nics = [nic.spec.name for nic in self._switch.nics.values() if nic.spec.network == name]
            for nic in nics:
                await self._remove_nic(nic)
            with _refusals():
                await self._switch.remove_network(name)
            self._networks.pop(name, None)
            self._publish(Change("network", record.id, _now(), None))
            return len(nics)

    def list_nics(self, network: str | None = None) -> list[NicRecord]:
        records = [self._nic_record(name) for name in self._switch.nics]
        if network is None:
            return records
        wanted = self.get_network(network).id
        return [record for record in records if record.network_id == wanted]

    def get_nic(self, ref: str) -> NicRecord:
        return self._nic_record(self._nic_name(ref))

    async def create_nic(self, fields: dict[str, Any], id: str | None = None) -> NicRecord:  # noqa: A002
        async with self._lock:
            self._check_id(id, self._nics, (r.id for r in self.list_nics()))
            fields = dict(fields)
            stamps = _stamps(id)
            fields["network"] = self._network_name(fields["network"])
            fields["name"] = fields.get("name") or f"nic-{stamps.id[:8]}"
            fields.setdefault("socket_path", self._socket_dir / f"{fields['name']}.sock")
            with _refusals():
                spec = NicSpec(**fields)
                await self._switch.add_nic(spec)
            self._nics[spec.name] = stamps
            return self._tell_nic(spec.name)

    async def update_nic(self, ref: str, **prefixes: Sequence[str]) -> NicRecord:
        async with self._lock:
            name = self._nic_name(ref)
            with _refusals():
                await self._switch.update_nic(name, **prefixes)
            self._stamps_of(self._nics, "nic", name).updated_at = _now()
            return self._tell_nic(name)

    async def delete_nic(self, ref: str) -> None:
        async with self._lock:
            await self._remove_nic(self._nic_name(ref))

    def stats(self) -> dict[str, NicStats]:
        return {name: nic.stats() for name, nic in self._switch.nics.items()}

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[Change]]:
        """What changes from now on; the channel ends when the watcher is too far behind."""
        send, receive = trio.open_memory_channel[Change](WATCH_BACKLOG)
        self._watchers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._watchers.discard(send)
            send.close()

    async def run(self) -> None:
        """Pass on what frontends do, until cancelled."""
        async with self._switch.events() as events:
            async for event in events:
                if event.kind in (NicEventKind.CONNECTED, NicEventKind.DISCONNECTED):
                    with contextlib.suppress(ControlError):
                        self._tell_nic(event.nic)

    async def _remove_nic(self, name: str) -> None:
        record = self._nic_record(name)
        with _refusals():
            await self._switch.remove_nic(name)
        self._nics.pop(name, None)
        self._publish(Change("nic", record.id, _now(), None))

    def _check_id(self, id: str | None, _table: object, taken: Iterator[str]) -> None:  # noqa: A002
        if id is not None and id in taken:
            raise ControlError(ErrorKind.ALREADY_EXISTS, f"id {id!r} is taken", "id")

    def _stamps_of(self, table: dict[str, _Stamps], kind: str, name: str) -> _Stamps:
        if name not in table:
            table[name] = _stamps(str(uuid.uuid5(uuid.NAMESPACE_URL, f"mvirt-net:{kind}:{name}")))
        return table[name]

    def _network_name(self, ref: str) -> str:
        for name in self._switch.networks:
            if ref in (name, self._stamps_of(self._networks, "network", name).id):
                return name
        raise ControlError(ErrorKind.NOT_FOUND, "network not found")

    def _nic_name(self, ref: str) -> str:
        for name in self._switch.nics:
            if ref in (name, self._stamps_of(self._nics, "nic", name).id):
                return name
        raise ControlError(ErrorKind.NOT_FOUND, "NIC not found")

    def _network_record(self, name: str) -> NetworkRecord:
        stamps = self._stamps_of(self._networks, "network", name)
        return NetworkRecord(
            **attrs.asdict(stamps),
            spec=self._switch.networks[name],
            nic_count=sum(nic.spec.network == name for nic in self._switch.nics.values()),
        )

    def _nic_record(self, name: str) -> NicRecord:
        if name not in self._switch.nics:
            raise ControlError(ErrorKind.NOT_FOUND, "NIC not found")
        nic = self._switch.nics[name]
        return NicRecord(
            **attrs.asdict(self._stamps_of(self._nics, "nic", name)),
            network_id=self._network_record(nic.spec.network).id,
            spec=nic.spec,
            state=NicState.ACTIVE if nic.connected else NicState.CREATED,
        )

    def _tell_network(self, name: str) -> NetworkRecord:
        record = self._network_record(name)
        self._publish(Change("network", record.id, _now(), record))
        return record

    def _tell_nic(self, name: str) -> NicRecord:
        record = self._nic_record(name)
        self._publish(Change("nic", record.id, _now(), record))
        return record

    def _publish(self, change: Change) -> None:
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait(change)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._watchers.discard(watcher)
                watcher.close()


def _now() -> datetime:
    return datetime.now(UTC)


def _stamps(id: str | None) -> _Stamps:  # noqa: A002
    now = _now()
    return _Stamps(id or str(uuid.uuid4()), now, now)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except DuplicateError as error:
        raise ControlError(ErrorKind.ALREADY_EXISTS, error.problem, error.key) from error
    except ConfigError as error:
        kind = ErrorKind.INVALID_ARGUMENT
        if "no free" in error.problem:
            kind = ErrorKind.RESOURCE_EXHAUSTED
        raise ControlError(kind, error.problem, error.key) from error
    except NotFoundError as error:
        raise ControlError(ErrorKind.NOT_FOUND, str(error)) from error
    except MvirtNetError as error:
        raise ControlError(ErrorKind.INTERNAL, str(error)) from error
