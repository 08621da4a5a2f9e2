"""What a request asks for: its JSON body and its query.

Both are strict: a key that is not known, is there twice or holds a value of another kind is
refused, rather than ignored until somebody misses what it asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from .http import HttpError, Request

JSON = "application/json"

MAX_PARAMETERS = 16
"""Of a query."""

_KINDS = {
    "text": "a text without control characters",
    "text?": "such a text, or null",
    "texts": "a list of texts without control characters",
    "number": "a whole number",
    "flag": "true or false",
}
"""Of values, and what is said of one that is of another kind."""


def parse_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """Raises HttpError for a parameter that is not known, or is there twice."""
    try:
        pairs = (
            parse_qsl(
                request.query,
                keep_blank_values=True,
                strict_parsing=True,
                max_num_fields=MAX_PARAMETERS,
            )
            if request.query
            else []
        )
    except ValueError as error:
        raise HttpError(400, f"query: {error}") from error
    for name, _value in pairs:
        if name not in known:
            raise HttpError(400, f"query: unknown parameter {name!r}")
    if len(dict(pairs)) != len(pairs):
        raise HttpError(400, "query: a parameter is there twice")
    return dict(pairs)


def parse_flag(text: str, name: str) -> bool:
    """Of a query. Raises HttpError."""
    if text not in ("true", "false"):
        raise HttpError(400, f"query: {name} is neither true nor false")
    return text == "true"


def parse_whole_number(text: str, name: str) -> int:
    """Of a query. Raises HttpError."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise HttpError(400, f"query: {name} is no whole number")
    return int(text)


def parse_body(
    request: Request, kinds: Mapping[str, str] | None, required: Collection[str]
) -> dict[str, Any]:
    """The object that is a request's body, without keys that are null.

    Args:
        request: whose.
        kinds: of the values, by key, from `_KINDS`; None: there must be no body.
        required: keys that must be there.

    Raises:
        HttpError: it is anything else.
    """
    if kinds is None:
        if request.body:
            raise HttpError(400, "a body is not expected")
        return {}
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != JSON:
        raise HttpError(415, f"the body must be {JSON}", headers=(("accept", JSON),))
    body = _parse(request.body)
    for key, value in body.items():
        if key not in kinds:
            raise HttpError(400, f"unknown key {key!r}", more={"field": key})
        if not _is_of_kind(value, kinds[key]):
            raise HttpError(400, f"{key}: not {_KINDS[kinds[key]]}", more={"field": key})
    for key in required:
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
