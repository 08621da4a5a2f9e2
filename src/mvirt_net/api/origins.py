"""Whether a browser may have been led to ask for something.

Over TCP any program of this host may ask, and browsers ask for any page that they show. Such a page
can send us what a form can, or give its own name our address; so a request must name a loopback
address as its host (DNS rebinding), come from no other origin, and have a body that says it is
JSON, which no form can (`bodies`).
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from .http import HttpError, Request

_LOOPBACK_NAMES = ("localhost",)


def check_origin(request: Request) -> None:
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
