"""What the switch counts, as Prometheus reads it; needs the extra ``api``.

Nothing is counted for this: the counters are those that the data plane keeps anyway, and they are
read when somebody asks. Labels are names of NICs and networks, drop reasons and threads, so there
are as many series as these. A counter begins anew when a NIC is added anew; Prometheus knows that.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import attrs
import trio
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ._version import __version__
from .dataplane.latency import BOUNDS, RequestTimes
from .model import NicStats
from .nic import Nic
from .switch import Switch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` returns; every Prometheus knows this one."""

_T = TypeVar("_T")

_PREFIX = "mvirt_net_"
_NIC = ("nic", "network")
_STARTED = time.time()

_COUNTERS = {
    "tx_frames": "Frames that the guest sent, dropped ones included.",
    "tx_bytes": "Bytes that the guest sent, without virtio_net_hdr.",
    "rx_frames": "Frames that the guest received.",
    "rx_bytes": "Bytes that the guest received, without virtio_net_hdr.",
    "routed": "Frames of the guest that were sent on to other NICs.",
    "punts": "Frames of the guest for the services of the gateway (ARP, DHCP, ND, ICMP).",
    "icmp_errors": "Dropped frames whose sender was told why by ICMP.",
    "kicks": "Drains of a TX ring that began with a kick.",
    "calls": "Interrupts signalled to the guest's driver.",
    "slow_signals": "Signals that the frontend made to take long.",
    "leases": "DHCP answers that gave addresses or extended them, IPv4 and IPv6.",
    "connections": "Frontends that connected and spoke.",
    "refused_frontends": "Frontends sent away because they may not connect.",
    "takeovers": "Times that a worker thread took over a busy TX ring.",
}
"""Fields of `NicStats`, and what is said of them."""

_GAUGES: Mapping[str, tuple[str, Callable[[Nic], float]]] = {
    "connected": ("Whether a frontend is connected.", lambda nic: nic.connected),
    "backlog_frames": ("Frames that wait for the guest to give buffers.", lambda nic: nic.backlog),
    "hot_rings": ("TX rings that worker threads poll.", lambda nic: nic.hot_rings),
}
"""What is asked of a NIC besides."""

_NAMES = {
    "tx_frames": "transmit_frames",
    "tx_bytes": "transmit_bytes",
    "rx_frames": "receive_frames",
    "rx_bytes": "receive_bytes",
    "routed": "routed_frames",
    "punts": "punted_frames",
    "leases": "dhcp_leases",
    "refused_frontends": "refused_connections",
    "takeovers": "ring_takeovers",
}
"""Where a metric has another name than the field."""


SLICE = 100
"""Samples that are written, and a third of it the NICs that are read, before others get a turn:
2 ms each where NICs are hundreds."""


async def render(switch: Switch) -> bytes:
    """All metrics of a switch in Prometheus' text format, of the type `CONTENT_TYPE`.

    A checkpoint now and then, so that a scrape of hundreds of NICs holds up nobody. What is read of
    one NIC is of one moment.
    """
    readings: list[_Reading] = []
    for nics in _slices(switch.nics.values(), SLICE // 3):
        readings += _read(nics)
        await trio.lowlevel.checkpoint()
    written = []
    for family in _families(switch, readings):
        for number, rows in enumerate(_slices(family.rows, SLICE)):
            text = generate_latest(_One(family.metric(rows)))
            # HELP and TYPE may be there once.
            written.append(text.split(b"\n", 2)[2] if number else text)
            await trio.lowlevel.checkpoint()
    return b"".join(written)


class SwitchCollector(Collector):
    """For a registry of your own; `collect` belongs to the thread of the switch, and takes it as
    long as it takes: 0.5 s where 512 NICs have dropped frames for every reason.
    """

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering it does not read counters."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        for family in _families(self._switch, _read(list(self._switch.nics.values()))):
            yield family.metric(family.rows)


@attrs.frozen
class _Reading:
    """Of a NIC, at one moment."""

    labels: tuple[str, str]
    """As `_NIC`."""
    stats: NicStats
    gauges: Mapping[str, float]


@attrs.frozen
class _Family:
    """A metric, and what is to be added to it: as much at a time as one likes."""

    make: Callable[[], Any]
    rows: Iterable[tuple[Any, ...]]
    """Arguments of its `add_metric`."""

    def metric(self, rows: Iterable[tuple[Any, ...]]) -> Metric:
        """With some of them."""
        metric = self.make()
        for row in rows:
            metric.add_metric(*row)
        return cast(Metric, metric)


class _One(Collector):
    """What `generate_latest` takes."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


def _slices(items: Iterable[_T], length: int) -> Iterator[list[_T]]:
    """One at least, so that a metric without samples is written, too."""
    left = iter(items)
    first = part = list(itertools.islice(left, length))
    while part or part is first:
        yield part
        if len(part) < length:
            return
        part = list(itertools.islice(left, length))


def _read(nics: Iterable[Nic]) -> list[_Reading]:
    """Those that have not been closed meanwhile."""
    readings = []
    for nic in nics:
        with contextlib.suppress(trio.ClosedResourceError):
            labels = nic.spec.name, nic.spec.network
            gauges = {name: read(nic) for name, (_text, read) in _GAUGES.items()}
            readings.append(_Reading(labels, nic.stats(), gauges))
    return readings


def _families(switch: Switch, readings: Sequence[_Reading]) -> Iterator[_Family]:
    yield _one(InfoMetricFamily, "build", "The version that runs.", {"version": __version__})
    for field, text in _COUNTERS.items():
        yield _Family(
            partial(CounterMetricFamily, _PREFIX + _NAMES.get(field, field), text, labels=_NIC),
            ((reading.labels, getattr(reading.stats, field)) for reading in readings),
        )
    yield _drops(readings)
    for name, (text, _read) in _GAUGES.items():
        yield _Family(
            partial(GaugeMetricFamily, _PREFIX + name, text, labels=_NIC),
            ((reading.labels, reading.gauges[name]) for reading in readings),
        )
    yield from _switch_totals(switch)
    yield _Family(
        partial(
            CounterMetricFamily,
            _PREFIX + "thread_cpu_seconds",
            "Processor time of the threads that drain rings.",
            labels=["thread"],
        ),
        (((thread,), seconds) for thread, seconds in switch.thread_seconds.items()),
    )
    yield _request_seconds(switch.request_times)
    yield from _process()


def _one(make: Callable[..., Metric], name: str, text: str, *row: Any) -> _Family:
    """A metric without labels."""
    return _Family(partial(make, _PREFIX + name, text, labels=()), [((), *row)])


def _drops(readings: Sequence[_Reading]) -> _Family:
    return _Family(
        partial(
            CounterMetricFamily,
            _PREFIX + "dropped_frames",
            "Frames dropped, by reason; counted at the NIC that sent them, or for which they were.",
            labels=(*_NIC, "reason"),
        ),
        (
            ((*reading.labels, reason.name.lower()), count)
            for reading in readings
            for reason, count in reading.stats.drops.items()
        ),
    )


def _switch_totals(switch: Switch) -> Iterator[_Family]:
    captured = switch.captured
    yield _one(GaugeMetricFamily, "networks", "Networks.", len(switch.networks))
    yield _one(GaugeMetricFamily, "nics", "NICs.", len(switch.nics))
    yield _one(GaugeMetricFamily, "captures", "Captures under way.", len(switch.captures))
    yield _one(
        CounterMetricFamily,
        "captured_frames",
        "Frames that guests sent and received while they were captured.",
        captured.frames,
    )
    yield _one(
        CounterMetricFamily,
        "capture_lost_frames",
        "Those of them that came into no file: it was written too slowly, full, or at its limit.",
        captured.lost,
    )


def _request_seconds(times: RequestTimes) -> _Family:
    bounds = (*(str(bound) for bound in BOUNDS), "+Inf")
    counts = itertools.accumulate(times.counts)
    return _one(
        HistogramMetricFamily,
        "request_duration_seconds",
        "How long vhost-user requests took, all NICs together.",
        list(zip(bounds, counts, strict=True)),
        times.total,
    )


def _process() -> Iterator[_Family]:
    """What can be known without /proc, which the sandbox keeps out of reach."""
    for make, name, text, value in (
        (
            CounterMetricFamily,
            "cpu_seconds",
            "Processor time of the whole process.",
            time.process_time(),
        ),
        (
            GaugeMetricFamily,
            "start_time_seconds",
            "When the process began, since 1970.",
            _STARTED,
        ),
        (
            GaugeMetricFamily,
            "max_fds",
            "How many descriptors it may have.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ),
    ):
        yield _Family(partial(make, f"process_{name}", text, labels=()), [((), value)])
