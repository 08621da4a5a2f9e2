"""The OpenAPI document of the resources, made from their routes."""

from __future__ import annotations

from typing import Any

from .._version import __version__
from ..ffi import MAX_FRAME
from .bodies import JSON
from .http import MAX_BODY, PROBLEM
from .rest import ROUTES
from .routing import Route

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_TEXTS = {"type": "array", "items": _TEXT}
_NUMBER = {"type": "integer"}
_FLAG = {"type": "boolean"}
_KINDS: dict[str, dict[str, Any]] = {
    "text": _TEXT,
    "text?": _TEXT_OR_NULL,
    "texts": _TEXTS,
    "number": _NUMBER,
    "flag": _FLAG,
}
_VALUES: dict[str, Any] = {
    "id": {"examples": ["7e0d5bbf-0a3c-4f0c-8d5e-0f6a4b1c9d27"]},
    "name": {"pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$", "examples": ["green"]},
    "ipv4_subnet": {"examples": ["10.7.0.0/24"]},
    "ipv6_prefix": {"examples": ["fd00:7::/64"]},
    "ipv4_netmask": {"enum": ["host", "subnet"]},
    "dns_servers": {"examples": [["9.9.9.9", "2620:fe::fe"]]},
    "ntp_servers": {"examples": [["10.7.0.123"]]},
    "mtu": {"minimum": 68, "maximum": 65535},
    "network": {"examples": ["blue"]},
    "mac_address": {"examples": ["52:54:00:12:34:99"]},
    "ipv4_address": {"examples": ["10.0.0.99"]},
    "routed_ipv4_prefixes": {"examples": [["10.8.0.0/24"]]},
    "file": {"pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$", "examples": ["vm1.pcapng"]},
    "nics": {"minItems": 1, "examples": [["vm1"]]},
    "snaplen": {"minimum": 1, "maximum": MAX_FRAME},
    "limit": {"minimum": 1},
    "routed_ipv6_prefixes": {"examples": [["fd00:8::/64"]]},
}
"""More of the values of some keys in requests."""
_PARAMETERS = {
    "force": _FLAG,
    "snaplen": {**_NUMBER, **_VALUES["snaplen"]},
    "limit": {**_NUMBER, **_VALUES["limit"]},
}
"""Those of queries that are more than text."""
_TIME = {"type": "string", "format": "date-time"}
_ALWAYS = (400, 403, 405, 408, 413, 421, 500, 503)
"""What any request may be answered with."""


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, Any] = {
    "Network": _object(
        id=_TEXT,
        name=_TEXT,
        ipv4_subnet=_TEXT_OR_NULL,
        ipv6_prefix=_TEXT_OR_NULL,
        ipv4_netmask={"enum": ["host", "subnet"]},
        dns_servers=_TEXTS,
        ntp_servers=_TEXTS,
        mtu=_NUMBER,
        is_public=_FLAG,
        in_file=_FLAG,
        error=_TEXT,
        nic_count=_NUMBER,
        created_at=_TIME,
        updated_at=_TIME,
    ),
    "Networks": _object(networks={"type": "array", "items": _ref("Network")}),
    "NetworkDeleted": _object(nics_deleted=_NUMBER),
    "Nic": _object(
        id=_TEXT,
        name=_TEXT,
        network_id=_TEXT,
        network=_TEXT,
        mac_address=_TEXT_OR_NULL,
        ipv4_address=_TEXT_OR_NULL,
        ipv6_address=_TEXT_OR_NULL,
        routed_ipv4_prefixes=_TEXTS,
        routed_ipv6_prefixes=_TEXTS,
        socket_path=_TEXT_OR_NULL,
        state={"enum": ["created", "active", "error"]},
        in_file=_FLAG,
        error=_TEXT,
        created_at=_TIME,
        updated_at=_TIME,
    ),
    "Nics": _object(nics={"type": "array", "items": _ref("Nic")}),
    "Capture": _object(
        file=_TEXT,
        nics={"anyOf": [_TEXTS, {"type": "null"}]},
        frames=_NUMBER,
        lost=_NUMBER,
        bytes=_NUMBER,
        ended=_TEXT,
    ),
    "Packets": {"type": "string", "format": "binary"},
    "Captures": _object(captures={"type": "array", "items": _ref("Capture")}),
    "Stats": _object(
        nics={
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"drops": {"type": "object", "additionalProperties": _NUMBER}},
                "required": ["drops"],
                "additionalProperties": _NUMBER,
            },
        }
    ),
    "Change": {
        "type": "object",
        "properties": {
            "type": {"enum": ["network", "nic", "complete", "behind"]},
            "id": _TEXT,
            "network": {"anyOf": [_ref("Network"), {"type": "null"}]},
            "nic": {"anyOf": [_ref("Nic"), {"type": "null"}]},
        },
        "required": ["type"],
        "additionalProperties": False,
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": _TEXT,
            "title": _TEXT,
            "status": _NUMBER,
            "detail": _TEXT,
            "kind": _TEXT,
            "field": _TEXT,
        },
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
    },
}


def document() -> dict[str, Any]:
    """The document, a JSON value."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mvirt-net",
            "version": __version__,
            "description": f"Networks and NICs. Bodies have at most {MAX_BODY} bytes.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": _responses(route),
    }
    if route.body is not None:
        schema = {
            "type": "object",
            "properties": {
                key: {**_KINDS[kind], **_VALUES.get(key, {})} for key, kind in route.body.items()
            },
            "required": list(route.required),
            "additionalProperties": False,
        }
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if "{id}" in route.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": _TEXT})
    for name in route.query:
        schema = _PARAMETERS.get(name, _TEXT)
        parameters.append({"name": name, "in": "query", "schema": schema})
    return parameters


def _responses(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.schema is not None:
        success["content"] = {route.media: {"schema": _ref(route.schema)}}
    refusals = {*_ALWAYS, *route.refusals, *((415,) if route.body is not None else ())}
    problem = {"description": "Refused", "content": {PROBLEM: {"schema": _ref("Problem")}}}
    return {str(route.status): success, **{str(code): problem for code in sorted(refusals)}}
