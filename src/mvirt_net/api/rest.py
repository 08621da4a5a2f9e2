"""Networks and NICs as JSON resources under ``/v1``.

`ROUTES` is what there is; the OpenAPI document is made from it. Names of fields are those of the
configuration file. Bodies are strict: a key that is not known, is there twice or holds a value of
another kind is refused, rather than ignored until somebody misses what it asked for. Errors are
problem details (RFC 9457).

Over TCP any program of this host may ask, and browsers ask for any page that they show. Such a page
can send us what a form can, or give its own name our address; so a request must name a loopback
address as its host (DNS rebinding), come from no other origin, and have a body that says it is
JSON, which no form can.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import attrs

from ..capture_control import CaptureControl
from ..control import Control, ControlError, ErrorKind, NetworkRecord, NicRecord
from ..refusals import refusals
from .exchange import in_turns
from .http import HttpError, Request, Response, json_body

JSON = "application/json"
NDJSON = "application/x-ndjson"
PCAPNG = "application/x-pcapng"

_HTTP_STATUS = {
    ErrorKind.INVALID_ARGUMENT: 400,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.ALREADY_EXISTS: 409,
    ErrorKind.FAILED_PRECONDITION: 409,
    ErrorKind.RESOURCE_EXHAUSTED: 507,
    ErrorKind.INTERNAL: 500,
}

_NOT_KEPT = (("cache-control", "no-store"),)

Page = Callable[[], Response | Awaitable[Response]]
"""Something to be read by GET that is none of the resources, like metrics."""


@attrs.frozen
class Call:
    """A request for a route, taken apart."""

    id: str
    """Of the resource, where the path has one."""
    body: dict[str, Any]
    query: Mapping[str, str]
    is_tcp: bool
    """As of `Request`."""


@attrs.frozen(kw_only=True)
class Route:
    """What a method does to a path; all but `handler` is for the document, too."""

    method: str
    path: str
    """With ``{id}`` where one stands."""
    handler: Callable[[Rest, Call], Awaitable[Response]]
    summary: str
    body: Mapping[str, str] | None = None
    """Keys of the body and their kinds; None: there is no body."""
    required: tuple[str, ...] = ()
    """Of the keys."""
    query: tuple[str, ...] = ()
    status: int = 200
    """Of success."""
    schema: str | None = None
    """Of what is answered then."""
    media: str = JSON
    """The type of that."""
    refusals: tuple[int, ...] = ()
    """Of the verb itself."""


class Rest:
    """Answers requests; an `http.Handler`.

    Args:
        control, captures: do what is asked for.
        pages: by path.
    """

    def __init__(
        self, control: Control, captures: CaptureControl, pages: Mapping[str, Page]
    ) -> None:
        self.control = control
        self.captures = captures
        self._pages = pages

    async def __call__(self, request: Request) -> Response:
        """Raises HttpError."""
        if request.is_tcp:
            _check_origin(request)
        if page := self._pages.get(request.path):
            _check_method(request.method, ["GET"])
            answer = page()
            return await answer if isinstance(answer, Awaitable) else answer
        route, id_ = _find(request)
        call = Call(id_, _body(route, request), _query(route, request), request.is_tcp)
        with _refusals():
            return await route.handler(self, call)

    # Networks.

    async def list_networks(self, _call: Call) -> Response:
        records = self.control.list_networks()
        return _ok({"networks": [network_json(record) async for record in in_turns(records)]})

    async def create_network(self, call: Call) -> Response:
        fields = dict(call.body)
        record = await self.control.create_network(fields, id=fields.pop("id", None))
        return _created(f"/v1/networks/{record.id}", network_json(record))

    async def get_network(self, call: Call) -> Response:
        return _ok(network_json(self.control.get_network(call.id)))

    async def update_network(self, call: Call) -> Response:
        return _ok(network_json(await self.control.update_network(call.id, **call.body)))

    async def delete_network(self, call: Call) -> Response:
        force = _boolean(call.query.get("force", "false"), "force")
        count = await self.control.delete_network(call.id, force=force)
        return _ok({"nics_deleted": count})

    # NICs.

    async def list_nics(self, call: Call) -> Response:
        records = self.control.list_nics(call.query.get("network"))
        return _ok({"nics": [nic_json(record) async for record in in_turns(records)]})

    async def create_nic(self, call: Call) -> Response:
        fields = dict(call.body)
        record = await self.control.create_nic(fields, id=fields.pop("id", None))
        return _created(f"/v1/nics/{record.id}", nic_json(record))

    async def get_nic(self, call: Call) -> Response:
        return _ok(nic_json(self.control.get_nic(call.id)))

    async def update_nic(self, call: Call) -> Response:
        return _ok(nic_json(await self.control.update_nic(call.id, **call.body)))

    async def delete_nic(self, call: Call) -> Response:
        await self.control.delete_nic(call.id)
        return Response(204)

    # Captures.

    async def list_captures(self, _call: Call) -> Response:
        return _ok({"captures": [attrs.asdict(record) for record in self.captures.list()]})

    async def start_capture(self, call: Call) -> Response:
        with refusals():
            record = await self.captures.start(**call.body)
        return _created(f"/v1/captures/{record.file}", attrs.asdict(record))

    async def get_capture(self, call: Call) -> Response:
        with refusals():
            return _ok(attrs.asdict(self.captures.get(call.id)))

    async def stop_capture(self, call: Call) -> Response:
        with refusals():
            return _ok(attrs.asdict(await self.captures.stop(call.id)))

    async def take_packets(self, call: Call) -> Response:
        if call.is_tcp:
            # Where anybody of this host may ask, what guests say to each other is not to be had.
            raise HttpError(403, "packets are given over a unix socket only")
        wanted: dict[str, Any] = {
            name: _whole_number(call.query[name], name)
            for name in ("snaplen", "limit")
            if name in call.query
        }
        if "nics" in call.query:
            wanted["nics"] = [name for name in call.query["nics"].split(",") if name]
        return Response(200, self._packets(wanted), PCAPNG, _NOT_KEPT)

    @contextlib.asynccontextmanager
    async def _packets(self, wanted: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                with _refusals(), refusals():
                    packets = await stack.enter_async_context(self.captures.stream(**wanted))
            except OSError as error:
                raise HttpError(503, f"no capture: {error.strerror}") from error
            yield packets

    # The rest.

    async def stats(self, _call: Call) -> Response:
        stats = self.control.stats().items()
        return _ok({"nics": {name: stats_json(s) async for name, s in in_turns(stats)}})

    async def watch(self, _call: Call) -> Response:
        return Response(200, self._changes(), NDJSON, _NOT_KEPT)

    @contextlib.asynccontextmanager
    async def _changes(self) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self.control.watch() as changes:
            # Nothing happens between the two, for nothing is awaited.
            known: list[tuple[str, Any]] = [
                ("network", record) for record in self.control.list_networks()
            ]
            known += [("nic", record) for record in self.control.list_nics()]
            lines = self._lines(known, changes)
            async with contextlib.aclosing(lines):
                yield lines

    async def _lines(self, known: list[Any], changes: Any) -> AsyncGenerator[bytes, None]:
        for resource, record in known:
            yield _change(resource, record.id, record)
        yield json_body({"type": "complete"})
        async for change in changes:
            yield _change(change.resource, change.id, change.record)
        yield json_body({"type": "behind"})


# What is answered.


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


def _change(resource: str, id_: str, record: NetworkRecord | NicRecord | None) -> bytes:
    line: dict[str, Any] = {"type": resource, "id": id_, resource: None}
    if isinstance(record, NetworkRecord):
        line[resource] = network_json(record)
    elif isinstance(record, NicRecord):
        line[resource] = nic_json(record)
    return json_body(line)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _ok(value: Any) -> Response:
    return Response(200, json_body(value), JSON)


def _created(path: str, value: Any) -> Response:
    return Response(201, json_body(value), JSON, (("location", path),))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """A verb's refusal is a problem."""
    try:
        yield
    except ControlError as error:
        more = {"kind": error.kind.name}
        if error.field:
            more["field"] = error.field
        raise HttpError(_HTTP_STATUS[error.kind], error.message, more=more) from error


# What is asked.

_NETWORK_KEYS = {
    "id": "text",
    "name": "text",
    "ipv4_subnet": "text?",
    "ipv6_prefix": "text?",
    "ipv4_netmask": "text",
    "dns_servers": "texts",
    "ntp_servers": "texts",
    "mtu": "number",
    "is_public": "flag",
}
_NIC_KEYS = {
    "id": "text",
    "name": "text",
    "network": "text",
    "mac_address": "text?",
    "ipv4_address": "text?",
    "ipv6_address": "text?",
    "routed_ipv4_prefixes": "texts",
    "routed_ipv6_prefixes": "texts",
}
_CAPTURE_KEYS = {"file": "text", "nics": "texts", "snaplen": "number", "limit": "number"}
_SERVERS = {"dns_servers": "texts", "ntp_servers": "texts"}
_PREFIXES = {"routed_ipv4_prefixes": "texts", "routed_ipv6_prefixes": "texts"}

ROUTES = (
    Route(
        method="GET",
        path="/v1/networks",
        handler=Rest.list_networks,
        summary="All networks",
        schema="Networks",
    ),
    Route(
        method="POST",
        path="/v1/networks",
        handler=Rest.create_network,
        summary="Create a network",
        body=_NETWORK_KEYS,
        required=("name",),
        status=201,
        schema="Network",
        refusals=(409, 507),
    ),
    Route(
        method="GET",
        path="/v1/networks/{id}",
        handler=Rest.get_network,
        summary="A network, by id or name",
        schema="Network",
        refusals=(404,),
    ),
    Route(
        method="PATCH",
        path="/v1/networks/{id}",
        handler=Rest.update_network,
        summary="Replace the lists of servers that DHCP names; what is absent stays",
        body=_SERVERS,
        schema="Network",
        refusals=(404, 409),
    ),
    Route(
        method="DELETE",
        path="/v1/networks/{id}",
        handler=Rest.delete_network,
        summary="Delete a network, with force=true its NICs, too",
        query=("force",),
        schema="NetworkDeleted",
        refusals=(404, 409),
    ),
    Route(
        method="GET",
        path="/v1/nics",
        handler=Rest.list_nics,
        summary="All NICs, or those of a network",
        query=("network",),
        schema="Nics",
        refusals=(404,),
    ),
    Route(
        method="POST",
        path="/v1/nics",
        handler=Rest.create_nic,
        summary="Create a NIC, and its socket",
        body=_NIC_KEYS,
        required=("network",),
        status=201,
        schema="Nic",
        refusals=(404, 409, 507),
    ),
    Route(
        method="GET",
        path="/v1/nics/{id}",
        handler=Rest.get_nic,
        summary="A NIC, by id or name",
        schema="Nic",
        refusals=(404,),
    ),
    Route(
        method="PATCH",
        path="/v1/nics/{id}",
        handler=Rest.update_nic,
        summary="Replace the prefixes that are routed to a NIC; what is absent stays",
        body=_PREFIXES,
        schema="Nic",
        refusals=(404, 409),
    ),
    Route(
        method="DELETE",
        path="/v1/nics/{id}",
        handler=Rest.delete_nic,
        summary="Delete a NIC; its frontend is disconnected",
        status=204,
        refusals=(404, 409),
    ),
    Route(
        method="GET",
        path="/v1/captures",
        handler=Rest.list_captures,
        summary="All captures under way, and the last ones that ended by themselves",
        schema="Captures",
    ),
    Route(
        method="POST",
        path="/v1/captures",
        handler=Rest.start_capture,
        summary="Write what NICs send and receive, by default all of them, into a pcapng file",
        body=_CAPTURE_KEYS,
        required=("file",),
        status=201,
        schema="Capture",
        refusals=(404, 409, 507),
    ),
    Route(
        method="GET",
        path="/v1/captures/{id}",
        handler=Rest.get_capture,
        summary="A capture, by the name of its file",
        schema="Capture",
        refusals=(404,),
    ),
    Route(
        method="DELETE",
        path="/v1/captures/{id}",
        handler=Rest.stop_capture,
        summary="End a capture; its file stays",
        schema="Capture",
        refusals=(404,),
    ),
    Route(
        method="GET",
        path="/v1/packets",
        handler=Rest.take_packets,
        summary="What NICs send and receive, by default all of them, as a pcapng file that goes on",
        query=("nics", "snaplen", "limit"),
        schema="Packets",
        media=PCAPNG,
        refusals=(403, 404, 507),
    ),
    Route(
        method="GET",
        path="/v1/stats",
        handler=Rest.stats,
        summary="Counters of all NICs",
        schema="Stats",
    ),
    Route(
        method="GET",
        path="/v1/watch",
        handler=Rest.watch,
        summary="All that there is, then each change, one JSON object a line",
        schema="Change",
        media=NDJSON,
    ),
)

_LOOPBACK_NAMES = ("localhost",)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\{id\}", "([^/]+)"))


_PATTERNS = [(_pattern(route.path), route) for route in ROUTES]


def _find(request: Request) -> tuple[Route, str]:
    """The route of a request, and the id in its path. Raises HttpError."""
    found = [(m, route) for pattern, route in _PATTERNS if (m := pattern.fullmatch(request.path))]
    if not found:
        raise HttpError(404, f"there is nothing at {request.path}")
    _check_method(request.method, [route.method for _match, route in found])
    method = "GET" if request.method == "HEAD" else request.method
    return next(
        (route, match[1] if match.re.groups else "")
        for match, route in found
        if route.method == method
    )


def _check_method(method: str, allowed: list[str]) -> None:
    if "GET" in allowed:
        allowed = [*allowed, "HEAD"]
    if method not in allowed:
        allow = ", ".join(allowed)
        raise HttpError(405, f"only {allow} here", headers=(("allow", allow),))


def _check_origin(request: Request) -> None:
    """Raises HttpError when a browser may have been led here."""
    host = request.headers.get("host", "")
    if not _is_loopback(host):
        raise HttpError(421, f"{host!r} is not what this host calls itself")
    origin = request.headers.get("origin")
    if origin is not None and _host_of(origin) != host:
        raise HttpError(403, f"not for pages from {origin!r}")
    if request.headers.get("sec-fetch-site") == "cross-site":
        raise HttpError(403, "not for pages from elsewhere")


def _host_of(origin: str) -> str | None:
    """None when it is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in _LOOPBACK_NAMES or ip_address(name).is_loopback
    except ValueError:
        return False


def _query(route: Route, request: Request) -> dict[str, str]:
    """Raises HttpError for a parameter that is not known, or is there twice."""
    try:
        pairs = (
            parse_qsl(request.query, keep_blank_values=True, strict_parsing=True, max_num_fields=16)
            if request.query
            else []
        )
    except ValueError as error:
        raise HttpError(400, f"query: {error}") from error
    for name, _value in pairs:
        if name not in route.query:
            raise HttpError(400, f"query: unknown parameter {name!r}")
    if len(dict(pairs)) != len(pairs):
        raise HttpError(400, "query: a parameter is there twice")
    return dict(pairs)


def _boolean(text: str, name: str) -> bool:
    if text not in ("true", "false"):
        raise HttpError(400, f"query: {name} is neither true nor false")
    return text == "true"


def _whole_number(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise HttpError(400, f"query: {name} is no whole number")
    return int(text)


def _body(route: Route, request: Request) -> dict[str, Any]:
    """Raises HttpError for anything but an object with known keys of the right kinds."""
    if route.body is None:
        if request.body:
            raise HttpError(400, "a body is not expected")
        return {}
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != JSON:
        raise HttpError(415, f"the body must be {JSON}", headers=(("accept", JSON),))
    body = _parse(request.body)
    for key, value in body.items():
        if key not in route.body:
            raise HttpError(400, f"unknown key {key!r}", more={"field": key})
        if not _is_of_kind(value, route.body[key]):
            raise HttpError(400, f"{key}: not {_KINDS[route.body[key]]}", more={"field": key})
    for key in route.required:
        if key not in body:
            raise HttpError(400, f"{key} is required", more={"field": key})
    return {key: value for key, value in body.items() if value is not None}


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise HttpError(400, "the body is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_KINDS = {
    "text": "a text without control characters",
    "text?": "such a text, or null",
    "texts": "a list of texts without control characters",
    "number": "a whole number",
    "flag": "true or false",
}


def _is_of_kind(value: Any, kind: str) -> bool:
    match kind:
        case "texts":
            return isinstance(value, list) and all(_is_of_kind(item, "text") for item in value)
        case "number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "flag":
            return isinstance(value, bool)
        case "text?" if value is None:
            return True
        case _:
            return isinstance(value, str) and value.isprintable()
