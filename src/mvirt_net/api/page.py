"""The status page: what there is and what it does, for a person with a browser.

``/`` is one page of HTML that says everything by itself. Where scripts run, ``/status.js`` fetches
``/status.json`` every two seconds and writes what has changed into the tables; where they do not,
the page is loaded again every five. The JSON is the page's own, and changes as it does: programs
use the resources under ``/v1``.

The page may load nothing but its own script, style and icon, and send nothing anywhere
(`_POLICY`); no other page may have it in a frame. Who may read it at all, `rest` decides.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator
from datetime import datetime
from functools import partial
from html import escape
from importlib import resources

import trio

from .._version import __version__
from ..activity import INTERVAL, SAMPLES, Activity, Curves, Event, Rates, Traffic
from ..control import NetworkRecord, NicRecord, NicState
from .http import Response
from .rest import JSON, Page
from .tables import Column, Curve, Number, Row, State, Table, curve, svg, table_html, table_json

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
    ("cache-control", "no-store"),
)

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
        "/": lambda: Response(200, sliced(_html), "text/html; charset=utf-8", _HEADERS),
        "/status.json": lambda: Response(200, sliced(_json), JSON, _HEADERS),
        **{f"/{name}": _static(name) for name in _STATIC},
    }


def _static(name: str) -> Page:
    # Read now: a daemon that serves may be shut in, and sees no files any more.
    body = (resources.files(__package__) / "static" / name).read_bytes()
    return lambda: Response(200, body, _STATIC[name], _HEADERS)


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
    facts = _facts(activity)
    yield f"""<!DOCTYPE html>
<html lang="en">
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
<p><span data-fact="about">{escape(facts.pop("about"))}</span>
<span id="live" role="status"></span><noscript><a href="./">Reload</a></noscript></p>
</header>
<main>
<dl class="facts">
"""
    for name, text in facts.items():
        key = _key(name)
        yield f'<div class="{key}"><dt>{name}</dt><dd data-fact="{key}">{escape(text)}</dd></div>\n'
    label = f"Traffic of the last {SAMPLES * INTERVAL / 60:g} minutes"
    yield f"""<div class="curve"><dt>{label}</dt>
<dd data-total>{svg(_curve(activity.total), label)}</dd></div>
</dl>
<p class="note">TX is what guests send, RX what they receive. Rates are measured while somebody
looks at this page.</p>
"""
    for table in _tables(activity):
        yield from table_html(table)
    yield "</main>\n</body>\n</html>\n"


def _json(activity: Activity) -> Iterator[str]:
    facts = {_key(name): text for name, text in _facts(activity).items()}
    total = _curve(activity.total)
    yield f'{{"facts":{json.dumps(facts)},"total":{json.dumps([total.tx, total.rx])},"tables":{{'
    separator = ""
    for table in _tables(activity):
        yield f'{separator}"{table.key}":'
        yield from table_json(table)
        separator = ","
    yield "}}\n"


def _key(name: str) -> str:
    return name.split(maxsplit=1)[0].lower()


def _facts(activity: Activity) -> dict[str, str]:
    """What is said of all together, by name; their first words are different."""
    now = activity.now()
    nics, rates = activity.nics.values(), activity.total.now
    tx, rx = _rates(rates)
    drops = _UNKNOWN.text if rates is None else _frequency(rates.drops)
    up = _duration(now, activity.started_at)
    return {
        "about": f"{__version__}, up {up}, as of {_moment(now)} UTC",
        "NICs": f"{_active(nics)} of {len(nics)}\nactive",
        "Networks": str(len(activity.networks)),
        "TX": tx.text,
        "RX": rx.text,
        "Dropped": f"{sum(map(_dropped, activity.traffic.values())):,}\n{drops}",
    }


def _tables(activity: Activity) -> Iterator[Table]:
    networks = sorted(activity.networks.values(), key=lambda network: _natural(network.spec.name))
    members = collections.defaultdict(list)
    for nic in activity.nics.values():
        members[nic.network_id].append(nic)
    nics = sorted(activity.nics.values(), key=lambda nic: _natural(nic.spec.name))
    yield Table(
        "nics",
        "NICs",
        _NIC_COLUMNS,
        (_nic_row(nic, activity.traffic_of(nic)) for nic in nics),
        "There are no NICs.",
        filterable=True,
    )
    yield Table(
        "networks",
        "Networks",
        _NETWORK_COLUMNS,
        (_network_row(network, members[network.id], activity) for network in networks),
        "There are no networks.",
    )
    yield Table("drops", "Drops by reason", _DROP_COLUMNS, _drop_rows(activity), "None so far.")
    yield Table(
        "events",
        "Recent events",
        _EVENT_COLUMNS,
        map(_event_row, activity.events.latest()),
        "Nothing has happened yet.",
        sortable=False,
    )


# Rows.

_NIC_COLUMNS = (
    Column("NIC"),
    Column("State", "state"),
    Column("TX", "number"),
    Column("RX", "number"),
    Column("2 minutes", "curve"),
    Column("Dropped", "number"),
    Column("Network"),
    Column("Addresses"),
    Column("MAC address", minor=True),
    Column("TX in all", "number", minor=True),
    Column("RX in all", "number", minor=True),
)
_NETWORK_COLUMNS = (
    Column("Network"),
    Column("State", "state"),
    Column("IPv4 subnet"),
    Column("IPv6 prefix"),
    Column("MTU", "number"),
    Column("NICs", "number"),
    Column("TX", "number"),
    Column("RX", "number"),
)
_DROP_COLUMNS = (
    Column("Reason"),
    Column("Frames", "number"),
    Column("Most of them at"),
)
_EVENT_COLUMNS = (Column("Time (UTC)"), Column("Event", "state"), Column("Of"), Column("Detail"))


def _nic_row(nic: NicRecord, traffic: Traffic | None) -> Row:
    spec = nic.spec
    traffic = traffic or Traffic()  # it may be new, or not be served
    stats, rates = traffic.stats, traffic.curves.now
    prefixes = [*spec.routed_ipv4_prefixes, *spec.routed_ipv6_prefixes]
    addresses = [a for a in (spec.ipv4_address, spec.ipv6_address, *prefixes) if a is not None]
    return Row(
        nic.id,
        (
            spec.name,
            State(nic.state.value, nic.error),
            *_rates(rates),
            _curve(traffic.curves),
            Number(f"{_dropped(traffic):,}", _dropped(traffic)),
            spec.network,
            "\n".join(map(str, addresses)),
            "" if spec.mac_address is None else str(spec.mac_address),
            Number(_amount(stats.tx_bytes, stats.tx_frames), stats.tx_bytes),
            Number(_amount(stats.rx_bytes, stats.rx_frames), stats.rx_bytes),
        ),
    )


def _network_row(network: NetworkRecord, nics: list[NicRecord], activity: Activity) -> Row:
    spec = network.spec
    return Row(
        network.id,
        (
            spec.name,
            State("error" if network.error else "served", network.error),
            "" if spec.ipv4_subnet is None else str(spec.ipv4_subnet),
            "" if spec.ipv6_prefix is None else str(spec.ipv6_prefix),
            Number(str(spec.mtu), spec.mtu),
            Number(f"{_active(nics)} of {len(nics)}\nactive", len(nics)),
            *_rates(_sum(activity, nics)),
        ),
    )


def _drop_rows(activity: Activity) -> Iterator[Row]:
    """The most frequent reason first."""
    counts: collections.Counter[str] = collections.Counter()
    most: dict[str, tuple[int, str]] = {}
    for name, traffic in activity.traffic.items():
        for reason, count in traffic.stats.drops.items():
            key = reason.name.lower()
            counts[key] += count
            most[key] = max(most.get(key, (0, "")), (count, name))
    for key, count in counts.most_common():
        frames, nic = most[key]
        yield Row(key, (key, Number(f"{count:,}", count), f"{nic} ({frames:,})"))


def _event_row(event: Event) -> Row:
    of = f"{event.resource} {event.name}".strip()
    return Row(str(event.serial), (_moment(event.at), State(event.kind), of, event.detail))


def _curve(curves: Curves) -> Curve:
    return curve(curves.tx, curves.rx)


def _sum(activity: Activity, nics: Iterable[NicRecord]) -> Rates | None:
    """None when nothing is known yet of any of them."""
    traffic = [t for nic in nics if (t := activity.traffic_of(nic)) is not None]
    rates = [t.curves.now for t in traffic if t.curves.now is not None]
    return sum(rates, Rates()) if rates else None


def _rates(rates: Rates | None) -> tuple[Number, Number]:
    """The cells for TX and RX."""
    if rates is None:
        return _UNKNOWN, _UNKNOWN
    return (
        Number(_rate(rates.tx_bytes, rates.tx_frames), rates.tx_bytes),
        Number(_rate(rates.rx_bytes, rates.rx_frames), rates.rx_bytes),
    )


_UNKNOWN = Number("\N{EN DASH}", -1)


def _active(nics: Collection[NicRecord]) -> int:
    return sum(nic.state is NicState.ACTIVE for nic in nics)


def _dropped(traffic: Traffic) -> int:
    return sum(traffic.stats.drops.values())


# Texts.

_DIGITS = re.compile(r"(\d+)")


def _natural(name: str) -> list[tuple[str, int]]:
    """By which vm9 comes before vm10."""
    parts = _DIGITS.split(name)
    return [
        (text, int(digits or 0))
        for text, digits in zip(parts[::2], [*parts[1::2], "0"], strict=True)
    ]


def _scaled(value: float, unit: str) -> str:
    """Three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} T{unit}"


def _rate(bytes_: float, frames: float) -> str:
    return f"{_scaled(8 * bytes_, 'bit/s')}\n{_frequency(frames)}"


def _frequency(frames: float) -> str:
    return f"{frames:,.0f} frames/s" if frames >= 10 else f"{frames:.2g} frames/s"


def _amount(bytes_: int, frames: int) -> str:
    return f"{_scaled(bytes_, 'B')}\n{frames:,} frames"


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _duration(now: datetime, then: datetime) -> str:
    """To the minute, for this is read again and again."""
    minutes = int((now - then).total_seconds()) // 60
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h {minutes % 60} min" if days else f"{hours} h {minutes % 60} min"
