"""Networks, NICs and captures as resources under ``/v1``: the verbs, and where they are called.

`ROUTES` is what there is; the OpenAPI document is made from it. What is asked for is taken apart in
`bodies`, what is answered is put together in `answers`. Errors are problem details (RFC 9457).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import attrs
import trio

from ..capture_control import CaptureControl
from ..control import Control, ControlError, ErrorKind
from ..refusals import refusals
from ..watching import Watch
from .answers import (
    change_line,
    created,
    listed,
    named,
    network_json,
    nic_json,
    ok,
    stats_json,
)
from .bodies import parse_body, parse_flag, parse_query, parse_whole_number
from .http import HttpError, Request, Response, json_body
from .origins import check_origin
from .routing import Call, Route, Router, checked_method

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
        self._listing = trio.Lock()
        """Held while a long answer is put together, which counts as held memory only then: one at
        a time, however many clients ask."""

    async def __call__(self, request: Request) -> Response:
        """Raises HttpError."""
        if request.is_tcp:
            check_origin(request)
        if page := self._pages.get(request.path):
            checked_method(request.method, ["GET"])
            answer = page()
            return await answer if isinstance(answer, Awaitable) else answer
        found = _ROUTER.at(request.path)
        if not found:
            raise self._nothing_at(request.path)
        route, id_ = found[checked_method(request.method, found)]
        body = parse_body(request, route.body, route.required)
        call = Call(id_, body, parse_query(request, route.query), request.is_tcp)
        with _refusals():
            return await route.handler(self, call)

    def _nothing_at(self, path: str) -> HttpError:
        shorter = path.rstrip("/")
        if shorter != path and (shorter in self._pages or _ROUTER.at(shorter)):
            hint = f"but there is at {shorter}"
        else:
            hint = "/openapi.json lists what there is"
        return HttpError(404, f"there is nothing at {path}, {hint}")

    # Networks.

    async def list_networks(self, _call: Call) -> Response:
        async with self._listing:
            return await listed("networks", self.control.each_network(), network_json)

    async def create_network(self, call: Call) -> Response:
        fields = dict(call.body)
        record = await self.control.create_network(fields, id=fields.pop("id", None))
        return created(f"/v1/networks/{record.id}", network_json(record))

    async def get_network(self, call: Call) -> Response:
        return ok(network_json(self.control.get_network(call.id)))

    async def update_network(self, call: Call) -> Response:
        return ok(network_json(await self.control.update_network(call.id, **call.body)))

    async def delete_network(self, call: Call) -> Response:
        force = parse_flag(call.query.get("force", "false"), "force")
        count = await self.control.delete_network(call.id, force=force)
        return ok({"nics_deleted": count})

    # NICs.

    async def list_nics(self, call: Call) -> Response:
        records = self.control.each_nic(call.query.get("network"))
        async with self._listing:
            return await listed("nics", records, nic_json)

    async def create_nic(self, call: Call) -> Response:
        fields = dict(call.body)
        record = await self.control.create_nic(fields, id=fields.pop("id", None))
        return created(f"/v1/nics/{record.id}", nic_json(record))

    async def get_nic(self, call: Call) -> Response:
        return ok(nic_json(self.control.get_nic(call.id)))

    async def update_nic(self, call: Call) -> Response:
        return ok(nic_json(await self.control.update_nic(call.id, **call.body)))

    async def delete_nic(self, call: Call) -> Response:
        await self.control.delete_nic(call.id)
        return Response(204)

    # Captures.

    async def list_captures(self, _call: Call) -> Response:
        return ok({"captures": [attrs.asdict(record) for record in self.captures.list()]})

    async def start_capture(self, call: Call) -> Response:
        with refusals():
            record = await self.captures.start(**call.body)
        return created(f"/v1/captures/{record.file}", attrs.asdict(record))

    async def get_capture(self, call: Call) -> Response:
        with refusals():
            return ok(attrs.asdict(self.captures.get(call.id)))

    async def stop_capture(self, call: Call) -> Response:
        with refusals():
            return ok(attrs.asdict(await self.captures.stop(call.id)))

    async def take_packets(self, call: Call) -> Response:
        if call.is_tcp:
            # Where anybody of this host may ask, what guests say to each other is not to be had.
            raise HttpError(403, "packets are given over a unix socket only")
        wanted: dict[str, Any] = {
            name: parse_whole_number(call.query[name], name)
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
        async with self._listing:
            return await named("nics", self.control.each_stats(), stats_json)

    async def watch(self, _call: Call) -> Response:
        return Response(200, self._changes(), NDJSON, _NOT_KEPT)

    @contextlib.asynccontextmanager
    async def _changes(self) -> AsyncIterator[AsyncIterator[bytes]]:
        async with (
            self.control.watch() as changes,
            contextlib.aclosing(self._lines(changes)) as lines,
        ):
            yield lines

    async def _lines(self, changes: Watch) -> AsyncGenerator[bytes, None]:
        # Of what changes now the client hears twice, and misses nothing.
        async for record in self.control.each():
            yield change_line(record.resource, record.id, record)
        yield json_body({"type": "complete"})
        async for change in changes:
            yield change_line(change.resource, change.id, change.record)
        yield json_body({"type": "behind"})


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


# Keys of bodies, and the kinds of their values (`bodies`).

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

_ROUTER = Router(ROUTES)
