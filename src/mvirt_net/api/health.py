"""grpc.health.v1.Health: whether a service can be called, for those who balance or supervise.

What is served is served well for as long as anybody can ask, so nothing ever changes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import trio

from .descriptors import Schema
from .grpc import CallError, Method, Methods, Send, Status

SERVICE = "grpc.health.v1.Health"
_SERVING = 1
_SERVICE_UNKNOWN = 3


class Health:
    """The service.

    Args:
        schema: has its messages.
        services: full names of all that are served; "" stands for all of them.
    """

    def __init__(self, schema: Schema, services: Collection[str]) -> None:
        self._request = schema.message("grpc.health.v1.HealthCheckRequest")
        self._response: Any = schema.message("grpc.health.v1.HealthCheckResponse")
        self._list_request = schema.message("grpc.health.v1.HealthListRequest")
        self._list_response: Any = schema.message("grpc.health.v1.HealthListResponse")
        self._services = ["", *services]

    def methods(self) -> Methods:
        return {
            f"/{SERVICE}/Check": Method(self._request, unary=self._check),
            f"/{SERVICE}/List": Method(self._list_request, unary=self._list),
            f"/{SERVICE}/Watch": Method(self._request, server_stream=self._watch),
        }

    async def _check(self, request: Any) -> Any:
        if request.service not in self._services:
            raise CallError(Status.NOT_FOUND, f"there is no service {request.service!r}")
        return self._response(status=_SERVING)

    async def _list(self, _request: Any) -> Any:
        serving = self._response(status=_SERVING)
        return self._list_response(statuses=dict.fromkeys(self._services, serving))

    async def _watch(self, request: Any, send: Send) -> None:
        known = request.service in self._services
        await send(self._response(status=_SERVING if known else _SERVICE_UNKNOWN))
        await trio.sleep_forever()
