"""Which route a request takes, by its path and method."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import attrs

from .bodies import JSON
from .http import HttpError, Response


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
    handler: Callable[[Any, Call], Awaitable[Response]]
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


class Router:
    """Finds routes.

    Args:
        routes: all that there are.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._patterns = [(_pattern(route.path), route) for route in routes]

    def at(self, path: str) -> dict[str, tuple[Route, str]]:
        """What there is at a path, by method, with the id that is in the path."""
        return {
            route.method: (route, match[1] if pattern.groups else "")
            for pattern, route in self._patterns
            if (match := pattern.fullmatch(path))
        }


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(path).replace(r"\{id\}", "([^/]+)"))


def checked_method(method: str, allowed: Iterable[str]) -> str:
    """One of `allowed` that `method` asks for: HEAD is GET. Raises HttpError when there is none."""
    allowed = list(allowed)
    if "GET" in allowed:
        allowed.append("HEAD")
    if method not in allowed:
        allow = ", ".join(allowed)
        raise HttpError(405, f"only {allow} here", headers=(("allow", allow),))
    return "GET" if method == "HEAD" else method
