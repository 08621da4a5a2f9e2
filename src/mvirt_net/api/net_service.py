"""mvirt.net.NetService, as upstream's control plane calls it: messages to verbs and back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

import trio

from .._version import __version__
from ..control import Control, ControlError, NetworkRecord, NicRecord, NicState
from .descriptors import Schema
from .grpc import CallError, Method, Methods, Send, Status

SERVICE = "mvirt.net.NetService"

NOT_BUILT = {
    "AttachNic": "there is nothing to attach: a frontend connects to the NIC's socket_path",
    **dict.fromkeys(
        (
            "CreateSecurityGroup",
            "GetSecurityGroup",
            "ListSecurityGroups",
            "DeleteSecurityGroup",
            "AddSecurityGroupRule",
            "RemoveSecurityGroupRule",
            "AttachSecurityGroup",
            "DetachSecurityGroup",
        ),
        "this daemon has no security groups",
    ),
}
"""Methods that answer UNIMPLEMENTED, and what they say."""

_STATES = {NicState.CREATED: 1, NicState.ACTIVE: 2, NicState.ERROR: 3}


class NetService:
    """The service.

    Args:
        schema: has its messages.
        control: does what is asked for.
    """

    def __init__(self, schema: Schema, control: Control) -> None:
        self._schema = schema
        self._control = control
        self._listing = trio.Lock()
        """Held while a list is put together, for the reason of `rest.Rest`."""

    def methods(self) -> Methods:
        verbs: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "GetVersion": self._get_version,
            "CreateNetwork": self._create_network,
            "GetNetwork": self._get_network,
            "ListNetworks": self._list_networks,
            "UpdateNetwork": self._update_network,
            "DeleteNetwork": self._delete_network,
            "CreateNic": self._create_nic,
            "GetNic": self._get_nic,
            "ListNics": self._list_nics,
            "UpdateNic": self._update_nic,
            "DeleteNic": self._delete_nic,
            **{name: partial(_refuse, message) for name, message in NOT_BUILT.items()},
        }
        streams = {"WatchNetworks": self._watch_networks, "WatchNics": self._watch_nics}
        return {
            f"/{SERVICE}/{name}": Method(
                self._message(f"{name}Request"),
                unary=partial(_refusing, verbs[name]) if name in verbs else None,
                server_stream=streams.get(name),
            )
            for name in [*verbs, *streams]
        }

    def _message(self, name: str) -> Any:
        return self._schema.message(f"mvirt.net.{name}")

    async def _get_version(self, _request: Any) -> Any:
        return self._message("VersionInfo")(version=__version__)

    # Networks.

    async def _create_network(self, request: Any) -> Any:
        if not request.name.strip():
            raise _invalid("name is required")
        if not (request.ipv4_enabled or request.ipv6_enabled):
            raise _invalid("at least one of ipv4_enabled or ipv6_enabled must be true")
        fields: dict[str, Any] = {
            "name": request.name,
            "is_public": request.is_public,
            "dns_servers": _texts(request.dns_servers),
            "ntp_servers": _texts(request.ntp_servers),
        }
        for family, key in (("ipv4", "ipv4_subnet"), ("ipv6", "ipv6_prefix")):
            if getattr(request, f"{family}_enabled"):
                if not getattr(request, key):
                    raise _invalid(f"{key} is required when {family}_enabled is true")
                fields[key] = getattr(request, key)
        return self._network(await self._control.create_network(fields, id=request.id or None))

    async def _get_network(self, request: Any) -> Any:
        return self._network(self._control.get_network(_identifier(request)))

    async def _list_networks(self, _request: Any) -> Any:
        async with self._listing:
            networks = [self._network(record) async for record in self._control.each_network()]
            return self._message("ListNetworksResponse")(networks=networks)

    async def _update_network(self, request: Any) -> Any:
        record = await self._control.update_network(
            _id(request),
            dns_servers=_texts(request.dns_servers),
            ntp_servers=_texts(request.ntp_servers),
        )
        return self._network(record)

    async def _delete_network(self, request: Any) -> Any:
        count = await self._control.delete_network(_id(request), force=request.force)
        return self._message("DeleteNetworkResponse")(deleted=True, nics_deleted=count)

    def _network(self, record: NetworkRecord) -> Any:
        spec = record.spec
        return self._message("Network")(
            id=record.id,
            name=spec.name,
            ipv4_enabled=spec.ipv4_subnet is not None,
            ipv4_subnet=_text(spec.ipv4_subnet),
            ipv6_enabled=spec.ipv6_prefix is not None,
            ipv6_prefix=_text(spec.ipv6_prefix),
            dns_servers=map(str, spec.dns_servers),
            ntp_servers=map(str, spec.ntp_servers),
            nic_count=record.nic_count,
            created_at=_time(record.created_at),
            updated_at=_time(record.updated_at),
            is_public=spec.is_public,
        )

    # NICs.

    async def _create_nic(self, request: Any) -> Any:
        if not request.network_id:
            raise _invalid("network_id is required")
        fields: dict[str, Any] = {"network": request.network_id}
        for key in ("name", "mac_address", "ipv4_address", "ipv6_address"):
            if value := getattr(request, key):
                fields[key] = value
        for key in ("routed_ipv4_prefixes", "routed_ipv6_prefixes"):
            fields[key] = _texts(getattr(request, key))
        return self._nic(await self._control.create_nic(fields, id=request.id or None))

    async def _get_nic(self, request: Any) -> Any:
        return self._nic(self._control.get_nic(_identifier(request)))

    async def _list_nics(self, request: Any) -> Any:
        records = self._control.each_nic(request.network_id or None)
        async with self._listing:
            nics = [self._nic(record) async for record in records]
            return self._message("ListNicsResponse")(nics=nics)

    async def _update_nic(self, request: Any) -> Any:
        record = await self._control.update_nic(
            _id(request),
            routed_ipv4_prefixes=_texts(request.routed_ipv4_prefixes),
            routed_ipv6_prefixes=_texts(request.routed_ipv6_prefixes),
        )
        return self._nic(record)

    async def _delete_nic(self, request: Any) -> Any:
        await self._control.delete_nic(_id(request))
        return self._message("DeleteNicResponse")(deleted=True)

    def _nic(self, record: NicRecord) -> Any:
        spec = record.spec
        return self._message("Nic")(
            id=record.id,
            name=spec.name,
            network_id=record.network_id,
            mac_address=_text(spec.mac_address),
            ipv4_address=_text(spec.ipv4_address),
            ipv6_address=_text(spec.ipv6_address),
            routed_ipv4_prefixes=map(str, spec.routed_ipv4_prefixes),
            routed_ipv6_prefixes=map(str, spec.routed_ipv6_prefixes),
            socket_path=_text(spec.socket_path),
            state=_STATES[record.state],
            created_at=_time(record.created_at),
            updated_at=_time(record.updated_at),
        )

    # Watching.

    async def _watch_networks(self, _request: Any, send: Send) -> None:
        await self._watch("network", self._network_event, self._control.each_network, send)

    async def _watch_nics(self, _request: Any, send: Send) -> None:
        await self._watch("nic", self._nic_event, self._control.each_nic, send)

    async def _watch(
        self,
        resource: str,
        event: Callable[[str, datetime, Any], Any],
        each_record: Callable[[], AsyncIterator[Any]],
        send: Send,
    ) -> None:
        async with self._control.watch() as changes:
            # Of what changes now we hear twice, and miss nothing.
            async for record in each_record():
                await send(event(record.id, record.updated_at, record))
            async for change in changes:
                if change.resource == resource:
                    await send(event(change.id, change.at, change.record))
        raise CallError(Status.RESOURCE_EXHAUSTED, "too far behind; watch again")

    def _network_event(self, id_: str, at: datetime, record: NetworkRecord | None) -> Any:
        event = self._message("NetworkEvent")(network_id=id_, timestamp=int(at.timestamp()))
        if record is not None:
            event.network.CopyFrom(self._network(record))
        return event

    def _nic_event(self, id_: str, at: datetime, record: NicRecord | None) -> Any:
        event = self._message("NicEvent")(nic_id=id_, timestamp=int(at.timestamp()))
        if record is not None:
            event.nic.CopyFrom(self._nic(record))
        return event


async def _refuse(message: str, _request: Any) -> Any:
    raise CallError(Status.UNIMPLEMENTED, message)


async def _refusing(verb: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Call a verb; its refusal is a status."""
    with _refusals():
        return await verb(request)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ControlError as error:
        # The kinds have the names of the codes.
        message = f"{error.field}: {error.message}" if error.field else error.message
        raise CallError(Status[error.kind.name], message) from error


def _invalid(message: str) -> CallError:
    return CallError(Status.INVALID_ARGUMENT, message)


def _identifier(request: Any) -> str:
    """The id or name of a Get request."""
    which = request.WhichOneof("identifier")
    value: str = getattr(request, which) if which else ""
    if not value:
        raise _invalid("id or name is required")
    return value


def _id(request: Any) -> str:
    if not request.id:
        raise _invalid("id is required")
    return str(request.id)


def _texts(values: Iterable[str]) -> list[str]:
    """Without the empty ones, which upstream passes over."""
    return [value for value in values if value]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _time(value: datetime) -> str:
    return value.isoformat()
