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
from typing import TypeVar

import attrs
import trio
from prometheus_client import exposition as _exposition
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from ._version import __version__
from .dataplane.latency import BOUNDS
from .model import NicStats
from .nic import Nic
from .switch import Switch

CONTENT_TYPE = _exposition.CONTENT_TYPE_LATEST
"""Of what `render` returns."""

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


SLICE = 200
"""Samples that are written, and a third of it the NICs that are read, before others get a turn:
3 ms each where NICs are hundreds."""


async def render(switch: Switch) -> bytes:
    """All metrics of a switch in Prometheus' text format, of the type `CONTENT_TYPE`.

    A checkpoint now and then, so that a scrape of hundreds of NICs holds up nobody. What is read of
    one NIC is of one moment.
    """
    readings: list[_Reading] = []
    for nics in _slices(list(switch.nics.values()), SLICE // 3):
        readings += _read(nics)
        await trio.lowlevel.checkpoint()
    text = b""
    for metric in _families(switch, readings):
        for number, samples in enumerate(_slices(metric.samples, SLICE)):
            text += _written(metric, samples, with_head=number == 0)
            await trio.lowlevel.checkpoint()
    return text


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
        return _families(self._switch, _read(self._switch.nics.values()))


@attrs.frozen
class _Reading:
    """Of a NIC, at one moment."""

    labels: tuple[str, str]
    """As `_NIC`."""
    stats: NicStats
    gauges: Mapping[str, float]


class _Samples(Collector):
    """A part of a metric."""

    def __init__(self, metric: Metric, samples: Sequence[Sample]) -> None:
        self._part = Metric(metric.name, metric.documentation, metric.type)
        self._part.samples = list(samples)

    def collect(self) -> Iterable[Metric]:
        return [self._part]


def _slices(items: Sequence[_T], length: int) -> Iterator[Sequence[_T]]:
    """One at least, so that a metric without samples is written, too."""
    for begin in range(0, len(items) or 1, length):
        yield items[begin : begin + length]


def _written(metric: Metric, samples: Sequence[Sample], *, with_head: bool) -> bytes:
    text = generate_latest(_Samples(metric, samples))
    # HELP and TYPE may be there once.
    return text if with_head else text.split(b"\n", 2)[2]


def _read(nics: Iterable[Nic]) -> list[_Reading]:
    """Those that have not been closed meanwhile."""
    readings = []
    for nic in nics:
        with contextlib.suppress(trio.ClosedResourceError):
            labels = nic.spec.name, nic.spec.network
            gauges = {name: read(nic) for name, (_text, read) in _GAUGES.items()}
            readings.append(_Reading(labels, nic.stats(), gauges))
    return readings


def _families(switch: Switch, readings: Sequence[_Reading]) -> Iterator[Metric]:
    build = InfoMetricFamily(_PREFIX + "build", "The version that runs.")
    build.add_metric((), {"version": __version__})
    yield build
    yield from _nic_counters(readings)
    yield _drops(readings)
    yield from _nic_gauges(readings)
    yield from _switch_totals(switch)
    yield _worker_seconds(switch)
    yield _request_seconds(switch)
    yield from _process()


def _nic_counters(readings: Sequence[_Reading]) -> Iterator[Metric]:
    for field, text in _COUNTERS.items():
        family = CounterMetricFamily(_PREFIX + _NAMES.get(field, field), text, labels=_NIC)
        for reading in readings:
            family.add_metric(reading.labels, getattr(reading.stats, field))
        yield family


def _drops(readings: Sequence[_Reading]) -> Metric:
    family = CounterMetricFamily(
        _PREFIX + "dropped_frames",
        "Frames dropped, by reason; counted at the NIC that sent them, or for which they were.",
        labels=(*_NIC, "reason"),
    )
    for reading in readings:
        for reason, count in reading.stats.drops.items():
            family.add_metric((*reading.labels, reason.name.lower()), count)
    return family


def _nic_gauges(readings: Sequence[_Reading]) -> Iterator[Metric]:
    for name, (text, _read) in _GAUGES.items():
        family = GaugeMetricFamily(_PREFIX + name, text, labels=_NIC)
        for reading in readings:
            family.add_metric(reading.labels, reading.gauges[name])
        yield family


def _switch_totals(switch: Switch) -> Iterator[Metric]:
    yield GaugeMetricFamily(_PREFIX + "networks", "Networks.", value=len(switch.networks))
    yield GaugeMetricFamily(_PREFIX + "nics", "NICs.", value=len(switch.nics))
    yield GaugeMetricFamily(_PREFIX + "captures", "Captures under way.", value=len(switch.captures))
    captured = switch.captured
    yield CounterMetricFamily(
        _PREFIX + "captured_frames", "Frames that captures have seen.", value=captured.frames
    )
    yield CounterMetricFamily(
        _PREFIX + "capture_lost_frames",
        "Those of them that are in no file, because it was written too slowly.",
        value=captured.lost,
    )


def _worker_seconds(switch: Switch) -> Metric:
    family = CounterMetricFamily(
        _PREFIX + "worker_cpu_seconds",
        "Processor time of the threads that poll.",
        labels=["worker"],
    )
    for worker, seconds in switch.worker_seconds.items():
        family.add_metric((worker,), seconds)
    return family


def _request_seconds(switch: Switch) -> Metric:
    times = switch.request_times
    family = HistogramMetricFamily(
        _PREFIX + "request_duration_seconds",
        "How long vhost-user requests took, all NICs together.",
    )
    bounds = (*(str(bound) for bound in BOUNDS), "+Inf")
    counts = itertools.accumulate(times.counts)
    family.add_metric((), list(zip(bounds, counts, strict=True)), times.total)
    return family


def _process() -> Iterator[Metric]:
    """What can be known without /proc, which the sandbox keeps out of reach."""
    yield CounterMetricFamily(
        "process_cpu_seconds", "Processor time of the whole process.", value=time.process_time()
    )
    yield GaugeMetricFamily(
        "process_start_time_seconds", "When the process began, since 1970.", value=_STARTED
    )
    yield GaugeMetricFamily(
        "process_max_fds",
        "How many descriptors it may have.",
        value=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )
