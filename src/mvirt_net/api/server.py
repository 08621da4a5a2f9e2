"""The control interfaces together: who listens where, and what is served there."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio

from .._version import __version__
from ..control import Control
from ..log import get_logger
from ..model import ApiSpec
from . import health, net_service, reflection
from .descriptors import Schema, load_files
from .grpc import GrpcHandler, Methods
from .http1 import Http1Connection, Response, json_body
from .http2 import Http2Connection
from .openapi import document
from .rest import JSON, Page, Rest
from .transport import Budget, Connection, Listener, open_listener

_log = get_logger(__name__)


@attrs.define(eq=False)
class ApiServer:
    """All listeners of an `ApiSpec`; made by `open_server`."""

    grpc: tuple[Listener, ...]
    http: tuple[Listener, ...]
    _call: GrpcHandler
    _rest: Rest

    async def serve(self) -> None:
        """Serve clients until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in self.grpc:
                nursery.start_soon(listener.serve, self._serve_grpc)
            for listener in self.http:
                nursery.start_soon(listener.serve, self._serve_http)

    async def _serve_grpc(self, connection: Connection) -> None:
        await Http2Connection(connection, self._call).serve()

    async def _serve_http(self, connection: Connection) -> None:
        await Http1Connection(connection, self._rest).serve()

    def close(self) -> None:
        """Stop listening and remove the socket files. May be called again."""
        for listener in self.grpc + self.http:
            listener.close()


def open_server(
    spec: ApiSpec, control: Control, pages: Mapping[str, Page] | None = None
) -> ApiServer:
    """Listen wherever `spec` says; clients wait until `ApiServer.serve` runs.

    Args:
        spec: where.
        control: does what clients ask for.
        pages: more that can be read over HTTP, by path: ``{"/metrics": render}``.

    Raises:
        SocketInUseError, SocketAccessError, SocketPathError: it is not possible to listen there.
    """
    every_page = {"/healthz": _healthz, "/openapi.json": _openapi, **(pages or {})}
    listeners: list[Listener] = []
    try:
        for endpoint in spec.grpc + spec.http:
            listeners.append(open_listener(endpoint, spec))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    grpc, http = listeners[: len(spec.grpc)], listeners[len(spec.grpc) :]
    for interface, served in (("grpc", grpc), ("http", http)):
        for listener in served:
            _log.info("control interface", interface=interface, address=str(listener.endpoint))
    return ApiServer(
        tuple(grpc),
        tuple(http),
        GrpcHandler(_methods(control), Budget()),
        Rest(control, every_page),
    )


def _methods(control: Control) -> Methods:
    schema = Schema(load_files())
    services = [
        net_service.SERVICE,
        health.SERVICE,
        *map(reflection.service_name, reflection.VERSIONS),
    ]
    return {
        **net_service.NetService(schema, control).methods(),
        **health.Health(schema, services).methods(),
        **reflection.Reflection(schema, services).methods(),
    }


def _healthz() -> Response:
    return Response(200, json_body({"status": "ok", "version": __version__}), JSON)


def _openapi() -> Response:
    return Response(200, json_body(document()), JSON)
