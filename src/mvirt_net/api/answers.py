"""Networks, NICs and counters as JSON. Names of fields are those of the configuration file.

Of hundreds of them, each is put into words by itself, and others have turns between them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Any, TypeVar

import attrs

from ..control import NetworkRecord, NicRecord
from .bodies import JSON
from .http import Response, json_body

_T = TypeVar("_T")


def network_json(record: NetworkRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "id": record.id,
        "name": spec.name,
        "ipv4_subnet": _text(spec.ipv4_subnet),
        "ipv6_prefix": _text(spec.ipv6_prefix),
        "ipv4_netmask": str(spec.ipv4_netmask),
        "dns_servers": [str(server) for server in spec.dns_servers],
        "ntp_servers": [str(server) for server in spec.ntp_servers],
        "mtu": spec.mtu,
        "is_public": spec.is_public,
        "in_file": record.in_file,
        "error": record.error,
        "nic_count": record.nic_count,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def nic_json(record: NicRecord) -> dict[str, Any]:
    spec = record.spec
    return {
        "id": record.id,
        "name": spec.name,
        "network_id": record.network_id,
        "network": spec.network,
        "mac_address": _text(spec.mac_address),
        "ipv4_address": _text(spec.ipv4_address),
        "ipv6_address": _text(spec.ipv6_address),
        "routed_ipv4_prefixes": [str(prefix) for prefix in spec.routed_ipv4_prefixes],
        "routed_ipv6_prefixes": [str(prefix) for prefix in spec.routed_ipv6_prefixes],
        "socket_path": _text(spec.socket_path),
        "state": record.state.value,
        "in_file": record.in_file,
        "error": record.error,
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
    }


def stats_json(stats: Any) -> dict[str, Any]:
    counters = attrs.asdict(stats, filter=lambda field, _value: field.name != "drops")
    return {**counters, "drops": {reason.name.lower(): n for reason, n in stats.drops.items()}}


def change_line(resource: str, id_: str, record: NetworkRecord | NicRecord | None) -> bytes:
    line: dict[str, Any] = {"type": resource, "id": id_, resource: None}
    if isinstance(record, NetworkRecord):
        line[resource] = network_json(record)
    elif isinstance(record, NicRecord):
        line[resource] = nic_json(record)
    return json_body(line)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def ok(value: Any) -> Response:
    return Response(200, json_body(value), JSON)


async def listed(key: str, items: AsyncIterable[_T], as_json: Callable[[_T], Any]) -> Response:
    """An object whose only `key` has the list of all items."""
    parts = [_inner(as_json(item)) async for item in items]
    return Response(200, b'{"%b": [%b]}\n' % (key.encode(), b", ".join(parts)), JSON)


async def named(
    key: str, items: AsyncIterable[tuple[str, _T]], as_json: Callable[[_T], Any]
) -> Response:
    """An object whose only `key` has an object, from names to items."""
    parts = [b"%b: %b" % (_inner(name), _inner(as_json(item))) async for name, item in items]
    return Response(200, b'{"%b": {%b}}\n' % (key.encode(), b", ".join(parts)), JSON)


def _inner(value: Any) -> bytes:
    """A value inside of another one."""
    return json_body(value).removesuffix(b"\n")


def created(path: str, value: Any) -> Response:
    return Response(201, json_body(value), JSON, (("location", path),))
