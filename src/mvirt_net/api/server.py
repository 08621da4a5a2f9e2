"""The control interfaces together: who listens where, and what is served there."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio

from .. import metrics
from .._version import __version__
from ..capture_control import CaptureControl
from ..control import Control
from ..endpoints import TcpEndpoint
from ..log import get_logger
from ..model import ApiSpec
from ..switch import Switch
from . import health, net_service, reflection
from .bodies import JSON
from .connections import Listener, open_listener
from .descriptors import Schema, load_files
from .exchange import Budget
from .grpc import GrpcApp, Methods
from .http import HttpApp, Response, json_body
from .openapi import document
from .rest import Page, Rest

GRPC_IDLE = 300.0
"""Seconds without a call after which a client of gRPC must connect anew, as such clients do."""
HTTP_IDLE = 60.0

_log = get_logger(__name__)


@attrs.define(eq=False)
class ApiServer:
    """All listeners of an `ApiSpec`; made by `open_server`."""

    grpc: tuple[Listener, ...]
    http: tuple[Listener, ...]
    _methods: Methods
    _rest: Rest

    async def serve(self) -> None:
        """Serve clients until cancelled."""
        budget = Budget()
        async with trio.open_nursery() as nursery:
            for listener in self.grpc:
                nursery.start_soon(listener.serve, GrpcApp(self._methods, budget), GRPC_IDLE)
            for listener in self.http:
                is_tcp = isinstance(listener.endpoint, TcpEndpoint)
                nursery.start_soon(listener.serve, HttpApp(self._rest, is_tcp, budget), HTTP_IDLE)

    def close(self) -> None:
        """Stop listening and remove the socket files. May be called again."""
        for listener in self.grpc + self.http:
            listener.close()


def open_server(
    spec: ApiSpec,
    control: Control,
    captures: CaptureControl,
    pages: Mapping[str, Page] | None = None,
) -> ApiServer:
    """Listen wherever `spec` says; clients wait until `ApiServer.serve` runs.

    Args:
        spec: where.
        control, captures: do what clients ask for.
        pages: more that can be read over HTTP, by path: ``{"/metrics": metrics_page(switch)}``.

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
        tuple(grpc), tuple(http), _methods(control), Rest(control, captures, every_page)
    )


def metrics_page(switch: Switch) -> Page:
    """What Prometheus reads."""
    rendering = trio.Lock()  # for the reason of `Rest`

    async def page() -> Response:
        async with rendering:
            return Response(200, await metrics.render(switch), metrics.CONTENT_TYPE)

    return page


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
