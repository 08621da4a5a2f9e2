"""What the status page says of networks and NICs, in words and numbers for people."""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from .._version import __version__
from ..activity import Activity, Curves, Event, Rates, Traffic
from ..control import NetworkRecord, NicRecord, NicState
from .tables import Column, Curve, Number, Row, State, Table, curve


def facts(activity: Activity) -> dict[str, str]:
    """What is said of all together, by name; their first words are different."""
    now = activity.now()
    nics, rates = activity.nics.values(), activity.total.now
    tx, rx = _rates(rates)
    dropping = _UNKNOWN.text if rates is None else _frequency(rates.drops)
    up = duration(now, activity.started_at)
    return {
        "about": f"{__version__}, up {up}, as of {_moment(now)} UTC",
        "NICs": f"{_active(nics)} of {len(nics)}\nactive",
        "Networks": str(len(activity.networks)),
        "TX": tx.text,
        "RX": rx.text,
        "Dropped": f"{sum(drops.frames for drops in activity.drops.values()):,}\n{dropping}",
    }


def tables(activity: Activity) -> Iterator[Table]:
    """In the order in which they are on the page; their rows are made when they are asked for."""
    networks = sorted(activity.networks.values(), key=lambda network: natural(network.spec.name))
    members = collections.defaultdict(list)
    for nic in activity.nics.values():
        members[nic.network_id].append(nic)
    nics = sorted(activity.nics.values(), key=lambda nic: natural(nic.spec.name))
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
            curves(traffic.curves),
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
    for reason, drops in sorted(activity.drops.items(), key=lambda item: -item[1].frames):
        key = reason.name.lower()
        most = f"{drops.most_at} ({drops.most:,})"
        yield Row(key, (key, Number(f"{drops.frames:,}", drops.frames), most))


def _event_row(event: Event) -> Row:
    of = f"{event.resource} {event.name}".strip()
    return Row(str(event.serial), (_moment(event.at), State(event.kind), of, event.detail))


def curves(of: Curves) -> Curve:
    """As they are drawn."""
    return curve(of.tx, of.rx)


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


def natural(name: str) -> list[tuple[str, int]]:
    """By which vm9 comes before vm10."""
    parts = _DIGITS.split(name)
    return [
        (text, int(digits or 0))
        for text, digits in zip(parts[::2], [*parts[1::2], "0"], strict=True)
    ]


def scaled(value: float, unit: str) -> str:
    """Three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:,.3g} T{unit}"


def _rate(bytes_: float, frames: float) -> str:
    return f"{scaled(8 * bytes_, 'bit/s')}\n{_frequency(frames)}"


def _frequency(frames: float) -> str:
    return f"{frames:,.0f} frames/s" if frames >= 10 else f"{frames:.2g} frames/s"


def _amount(bytes_: int, frames: int) -> str:
    return f"{scaled(bytes_, 'B')}\n{frames:,} frames"


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def duration(now: datetime, then: datetime) -> str:
    """To the minute, for this is read again and again."""
    minutes = int((now - then).total_seconds()) // 60
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h {minutes % 60} min" if days else f"{hours} h {minutes % 60} min"
