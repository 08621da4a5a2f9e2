"""What Prometheus reads: names by its conventions, values that are the counters'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from mvirt_net.dataplane.latency import BOUNDS, RequestTimes
from mvirt_net.model import DropReason
from mvirt_net.trace import WHY
from tests.harness import GATEWAY_IP, TestBackend
from tests.harness.clock import virtual_time
from tests.harness.packets import arp_request, ethernet_frame

prometheus_client = pytest.importorskip("prometheus_client")
prometheus_parser = pytest.importorskip("prometheus_client.parser")
from mvirt_net import metrics  # noqa: E402  (needs the package)

MAC, IP = "52:54:00:12:34:56", "10.0.0.5"


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in prometheus_parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def labelled(**more: str) -> frozenset[tuple[str, str]]:
    return frozenset({"nic": "test-nic", "network": "test-network", **more}.items())


@virtual_time
async def test_counters_are_those_of_the_nic(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP)
    client = await backend.connect()
    await client.send_packet(arp_request(MAC, IP, GATEWAY_IP))
    await client.recv_packet()
    spoofed = ethernet_frame(b"\2\0\0\0\0\1", b"\x52\x54\0\0\0\1", 0x0800, bytes(50))
    await client.send_packet(spoofed)
    found = samples(await metrics.render(backend.switch))
    stats = backend.nic.stats()
    assert found["mvirt_net_transmit_frames_total", labelled()] == stats.tx_frames == 2
    assert found["mvirt_net_receive_bytes_total", labelled()] == stats.rx_bytes
    assert found["mvirt_net_punted_frames_total", labelled()] == 1
    assert found["mvirt_net_dropped_frames_total", labelled(reason="source_mac")] == 1
    assert found["mvirt_net_connected", labelled()] == 1
    assert found["mvirt_net_connections_total", labelled()] == 1
    assert found["mvirt_net_request_duration_seconds_count", frozenset()] > 10
    assert found["mvirt_net_nics", frozenset()] == 1


@virtual_time
async def test_names_follow_the_conventions(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP)
    text = (await metrics.render(backend.switch)).decode()
    for family in prometheus_parser.text_string_to_metric_families(text):
        assert re.fullmatch(r"(mvirt_net|process)_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith("_total")


def test_request_times_fall_into_their_buckets() -> None:
    times = RequestTimes()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, BOUNDS[-1] * 2):
        times.observe(seconds)
    assert times.counts[0] == 2
    assert times.counts[1] == times.counts[-1] == 1
    assert times.total == pytest.approx(BOUNDS[0] * 2.01 + BOUNDS[-1] * 2)


@virtual_time
async def test_scrape_lets_others_have_turns(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP)
    for number in range(metrics.SLICE + 20):
        await backend.add_nic(
            f"nic{number}", f"52:54:00:01:{number // 256:02x}:{number % 256:02x}", None
        )
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as others:
        others.start_soon(count)
        text = await metrics.render(backend.switch)
        others.cancel_scope.cancel()
    assert turns > text.count(b"\n") / metrics.SLICE
    # In slices or not, it is the same text.
    collector = metrics.SwitchCollector(backend.switch)
    whole = prometheus_client.generate_latest(collector)
    assert _without_times(text) == _without_times(whole)


def _without_times(text: bytes) -> list[bytes]:
    return [line for line in text.splitlines() if b"cpu_seconds_total" not in line]


PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()


@virtual_time
async def test_page_lists_them(nursery: trio.Nursery) -> None:
    backend = await TestBackend.start(nursery, MAC, IP)
    text = (await metrics.render(backend.switch)).decode()
    meaning = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    types = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.M))
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| [^|]* \| (.*) \|$", PAGE, re.M)
    assert {name: (kind, said) for name, kind, said in rows} == {
        name: (types[name], meaning[name]) for name in types
    }


def test_page_lists_reasons() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", PAGE, re.M)
    assert dict(rows) == {reason.name.lower(): WHY[reason] for reason in DropReason}
