"""What the switch counts, as Prometheus reads it; needs the extra ``api``.

Nothing is counted for this: the counters are those that the data plane keeps anyway, and they are
read when somebody asks. Labels are names of NICs and networks, drop reasons and threads, so there
are as many series as these. A counter begins anew when a NIC is added anew; Prometheus knows that.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import exposition as _exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ._version import __version__
from .dataplane.latency import BOUNDS
from .model import NicStats
from .nic import Nic
from .switch import Switch

CONTENT_TYPE = _exposition.CONTENT_TYPE_LATEST
"""Of what `render` returns."""

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


def render(switch: Switch) -> bytes:
    """All metrics of a switch in Prometheus' text format, of the type `CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SwitchCollector(switch))
    return generate_latest(registry)


class SwitchCollector(Collector):
    """For a registry of your own; `collect` belongs to the thread of the switch."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering it does not read counters."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        build = InfoMetricFamily(_PREFIX + "build", "The version that runs.")
        build.add_metric((), {"version": __version__})
        yield build
        nics = list(self._switch.nics.values())
        stats = [(nic, nic.stats()) for nic in nics]
        yield from _nic_counters(stats)
        yield _drops(stats)
        yield from _nic_gauges(nics)
        yield from _switch_gauges(self._switch)
        yield _worker_seconds(self._switch)
        yield _request_seconds(self._switch)
        yield from _process()


def _labels(nic: Nic) -> tuple[str, str]:
    return nic.spec.name, nic.spec.network


def _nic_counters(stats: Sequence[tuple[Nic, NicStats]]) -> Iterator[Metric]:
    for field, text in _COUNTERS.items():
        family = CounterMetricFamily(_PREFIX + _NAMES.get(field, field), text, labels=_NIC)
        for nic, of_nic in stats:
            family.add_metric(_labels(nic), getattr(of_nic, field))
        yield family


def _drops(stats: Sequence[tuple[Nic, NicStats]]) -> Metric:
    family = CounterMetricFamily(
        _PREFIX + "dropped_frames",
        "Frames dropped, by reason; counted at the NIC that sent them, or for which they were.",
        labels=(*_NIC, "reason"),
    )
    for nic, of_nic in stats:
        for reason, count in of_nic.drops.items():
            family.add_metric((*_labels(nic), reason.name.lower()), count)
    return family


def _nic_gauges(nics: Sequence[Nic]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Any]] = {
        "connected": ("Whether a frontend is connected.", lambda nic: nic.connected),
        "backlog_frames": ("Frames that wait for the guest to give buffers.", lambda n: n.backlog),
        "hot_rings": ("TX rings that worker threads poll.", lambda nic: nic.hot_rings),
    }
    for name, (text, value) in gauges.items():
        family = GaugeMetricFamily(_PREFIX + name, text, labels=_NIC)
        for nic in nics:
            family.add_metric(_labels(nic), value(nic))
        yield family


def _switch_gauges(switch: Switch) -> Iterator[Metric]:
    yield GaugeMetricFamily(_PREFIX + "networks", "Networks.", value=len(switch.networks))
    yield GaugeMetricFamily(_PREFIX + "nics", "NICs.", value=len(switch.nics))
    yield GaugeMetricFamily(_PREFIX + "captures", "Captures under way.", value=len(switch.captures))
    yield GaugeMetricFamily(
        _PREFIX + "capture_lost_frames",
        "Frames that captures under way have lost because their files are written too slowly.",
        value=sum(capture.lost for capture in switch.captures),
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
        _PREFIX + "request_seconds", "How long vhost-user requests took, all NICs together."
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
