"""The status page: what there is and what it does, for a person with a browser.

``/`` is one page of HTML that says everything by itself. Where scripts run, ``/status.js`` fetches
``/status.json`` every two seconds and writes what has changed into the tables; where they do not,
the page is loaded again every five. The JSON is the page's own, and changes as it does: programs
use the resources under ``/v1``.

The page may load nothing but its own script, style and icon, and send nothing anywhere
(`_POLICY`); no other page may have it in a frame. Who may read it at all, `origins` decides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from functools import partial
from html import escape
from importlib import resources

import trio

from .._version import __version__
from ..activity import INTERVAL, SAMPLES, Activity
from .bodies import JSON
from .http import Response
from .rest import Page
from .tables import svg, table_html, table_json
from .view import curves, facts, tables

RELOAD_SECONDS = 5
"""Between two loads of the page where no scripts run."""

CHUNK = 32 << 10
"""Bytes that are sent at a time; sending small pieces takes as long as making them."""

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
)
_MOMENTARY = (*_HEADERS, ("cache-control", "no-store"))
_LASTING = (*_HEADERS, ("cache-control", "no-cache"))
"""To be kept, and asked for again each time: another version of the daemon has others."""

_STATIC = {
    "status.css": "text/css; charset=utf-8",
    "status.js": "text/javascript; charset=utf-8",
    "status.svg": "image/svg+xml",
}


def status_pages(activity: Activity) -> dict[str, Page]:
    """The page and what belongs to it, by path.

    Args:
        activity: what is shown; it runs.
    """
    sliced = partial(_sliced, activity)
    return {
        "/": lambda: Response(200, sliced(_html), "text/html; charset=utf-8", _MOMENTARY),
        "/status.json": lambda: Response(200, sliced(_json), JSON, _MOMENTARY),
        **{f"/{name}": _static(name) for name in _STATIC},
    }


def _static(name: str) -> Page:
    # Read now: a daemon that serves may be shut in, and sees no files any more.
    body = (resources.files(__package__) / "static" / name).read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return lambda: Response(200, body, _STATIC[name], _LASTING, etag)


@contextlib.asynccontextmanager
async def _sliced(
    activity: Activity, render: Callable[[Activity], Iterator[str]]
) -> AsyncIterator[AsyncIterator[bytes]]:
    """What `render` makes, others having their turn after each piece."""
    await activity.look()
    async with contextlib.aclosing(_encoded(render(activity))) as pieces:
        yield pieces


async def _encoded(pieces: Iterator[str]) -> AsyncGenerator[bytes, None]:
    chunk = bytearray()
    for piece in pieces:
        await trio.lowlevel.checkpoint()
        chunk += piece.encode(errors="replace")
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


# The page and its JSON.


def _html(activity: Activity) -> Iterator[str]:
    title = escape(f"mvirt-net on {os.uname().nodename}")
    said = facts(activity)
    yield f"""<!DOCTYPE html>
<html lang="en" data-version="{escape(__version__)}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="status.svg" type="image/svg+xml">
<link rel="stylesheet" href="status.css">
<script src="status.js" defer></script>
<noscript><meta http-equiv="refresh" content="{RELOAD_SECONDS}"></noscript>
</head>
<body>
<header>
<h1>{title}</h1>
<p><span data-fact="about">{escape(said.pop("about"))}</span>
<span id="live" role="status"></span><noscript><a href="./">Reload</a></noscript></p>
</header>
<main>
<dl class="facts">
"""
    for name, text in said.items():
        key = _key(name)
        yield f'<div class="{key}"><dt>{name}</dt><dd data-fact="{key}">{escape(text)}</dd></div>\n'
    label = f"Traffic of the last {SAMPLES * INTERVAL / 60:g} minutes"
    yield f"""<div class="curve"><dt>{label}</dt>
<dd data-total>{svg(curves(activity.total), label)}</dd></div>
</dl>
<p class="note">TX is what guests send, RX what they receive. Rates are measured while somebody
looks at this page.</p>
"""
    for table in tables(activity):
        yield from table_html(table)
    yield "</main>\n</body>\n</html>\n"


def _json(activity: Activity) -> Iterator[str]:
    said = {_key(name): text for name, text in facts(activity).items()}
    total = curves(activity.total)
    head = {"version": __version__, "facts": said, "total": [total.tx, total.rx]}
    yield f'{json.dumps(head)[:-1]}, "tables":{{'
    separator = ""
    for table in tables(activity):
        yield f'{separator}"{table.key}":'
        yield from table_json(table)
        separator = ","
    yield "}}\n"


def _key(name: str) -> str:
    return name.split(maxsplit=1)[0].lower()
