"""What a worker that polls a busy ring does for a packet, and what it spares in notifications."""

from __future__ import annotations

import os
import select
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from tests.harness.memory import fence
from tests.harness.packets import GATEWAY_MAC, udp_frame
from tests.harness.virtio import vring_need_event

from .figures import Row, Scale, Table, quantile, ratio, spread, take_turns
from .guest import IPV4, MAC, NEIGHBOUR_IPV4, Guest, connected_guest
from .processes import PATIENCE, BenchError, Process, serve_config, socket_path, two_processors

ADDRESSES = ((MAC, IPV4), ("52:54:00:12:34:57", NEIGHBOUR_IPV4))
IN_FLIGHT = 64
WARM_UP = 200
"""Exchanges that do not count, in which a ring becomes hot."""

_CONFIG = """
[[network]]
name = "bench"
ipv4_subnet = "10.0.0.0/24"
"""
_NIC = """
[[nic]]
name = "vm{index}"
network = "bench"
mac_address = "{mac}"
ipv4_address = "{ipv4}"
socket_path = "{path}"
"""

COLD, HOT = "COLD", "HOT"
DAEMONS = {COLD: ("--workers", "0"), HOT: ("--workers", "1")}

COLUMNS = ("p50 µs", "p99 µs", "p50 ÷ COLD", "± %", "CPU µs", "eventfd writes")
NOTES = (
    "Two guests, played by one process on one core; the daemon has another.",
    "There and back: a packet to the neighbour and one from it; 64: so many packets one way.",
    "CPU: processor time of the daemon for each exchange; a worker that waits spins.",
    "eventfd writes: kicks and calls for each 1,000 packets.",
)


@attrs.define(eq=False)
class Side:
    """One of the guests.

    Args:
        guest: its rings.
        sent: packets, since its rings began.
        kicks: that the daemon wanted.
        calls: that it gave.
    """

    guest: Guest
    sent: int = 0
    kicks: int = 0
    calls: int = 0

    def send(self, count: int) -> None:
        """Send the packet that its buffers are loaded with."""
        self.guest.tx.give(count, call=False)
        before, self.sent = self.sent, self.sent + count
        fence()
        event = self.guest.tx.queue.get_avail_event()
        if vring_need_event(event, self.sent & 0xFFFF, before & 0xFFFF):
            os.eventfd_write(self.guest.kick, 1)
            self.kicks += 1

    def expect(self, count: int, *, call: bool) -> None:
        self.guest.rx.give(count, call=call)

    def wait_polling(self) -> None:
        """Until everything has come that was expected, as DPDK's drivers do."""
        limit = time.monotonic() + PATIENCE
        while self.guest.rx.outstanding():
            if time.monotonic() > limit:
                raise BenchError("a packet did not arrive")

    def wait_called(self) -> None:
        """The same, as the kernel's driver does."""
        if not select.select([self.guest.rx_call], [], [], PATIENCE)[0]:
            raise BenchError("a packet did not arrive")
        self.calls += os.eventfd_read(self.guest.rx_call)


@attrs.frozen
class Turn:
    """What one turn gave: microseconds of an exchange, and eventfd writes per 1,000 packets."""

    p50: float
    p99: float
    cpu: float
    writes: float


@attrs.frozen
class Pair:
    """Two guests of one daemon."""

    daemon: Process
    a: Side
    b: Side

    def there_and_back_polling(self) -> int:
        for source, target in ((self.a, self.b), (self.b, self.a)):
            target.expect(1, call=False)
            source.send(1)
            target.wait_polling()
        return 2

    def there_and_back_called(self) -> int:
        for source, target in ((self.a, self.b), (self.b, self.a)):
            target.expect(1, call=True)
            source.send(1)
            target.wait_called()
        return 2

    def one_way(self) -> int:
        self.b.expect(IN_FLIGHT, call=True)
        self.a.send(IN_FLIGHT)
        self.b.wait_called()
        return IN_FLIGHT

    def _writes(self) -> int:
        return sum(side.kicks + side.calls for side in (self.a, self.b))

    def measure(self, exchange: Callable[[Pair], int], count: int) -> Turn:
        """Exchange packets `count` times."""
        for _ in range(WARM_UP):
            exchange(self)
        times, packets, writes = [], 0, self._writes()
        cpu = self.daemon.cpu_seconds()
        for _ in range(count):
            begin = time.perf_counter_ns()
            packets += exchange(self)
            times.append((time.perf_counter_ns() - begin) / 1000)
        cpu = 1e6 * (self.daemon.cpu_seconds() - cpu) / count
        writes = self._writes() - writes
        return Turn(quantile(times, 0.5), quantile(times, 0.99), cpu, 1000 * writes / packets)


EXCHANGES: dict[str, Callable[[Pair], int]] = {
    "there and back, polling drivers": Pair.there_and_back_polling,
    "there and back, drivers that are called": Pair.there_and_back_called,
    f"{IN_FLIGHT} in flight, one way": Pair.one_way,
}


async def hot_rings(scale: Scale) -> Table:
    """The table; daemons with and without workers take turns."""
    rows = []
    with TemporaryDirectory(prefix="mvirt-net-") as name:
        async with AsyncExitStack() as stack:
            theirs = stack.enter_context(two_processors())
            pairs = {
                heat: await _pair(Path(name, heat), options, theirs, stack)
                for heat, options in DAEMONS.items()
            }
            for what, exchange in EXCHANGES.items():
                subjects = {
                    heat: partial(pair.measure, exchange, scale.round_trips)
                    for heat, pair in pairs.items()
                }
                rows += _rows(what, take_turns(subjects, scale.rounds))
    return Table("hot", "COLD and HOT rings", COLUMNS, rows, NOTES)


def _config(folder: Path) -> Path:
    """The configuration of two guests, in a folder of its own."""
    folder.mkdir()
    path = folder / "bench.toml"
    nics = (
        _NIC.format(index=index, mac=mac, ipv4=ipv4, path=socket_path(folder, index))
        for index, (mac, ipv4) in enumerate(ADDRESSES)
    )
    path.write_text(_CONFIG + "".join(nics))
    return path


async def _pair(
    folder: Path, options: Sequence[str], processors: set[int], stack: AsyncExitStack
) -> Pair:
    serving = serve_config(_config(folder), "--quiet", *options, processors=processors)
    daemon = stack.enter_context(serving)
    sides = []
    for index, (mac, ipv4) in enumerate(ADDRESSES):
        guest = await stack.enter_async_context(connected_guest(socket_path(folder, index)))
        _, to = ADDRESSES[1 - index]
        guest.tx.load(udp_frame(mac, GATEWAY_MAC, ipv4, to, 1000, 2000, bytes(18)))
        sides.append(Side(guest))
    return Pair(daemon, *sides)


def _rows(what: str, results: dict[str, list[Turn]]) -> list[Row]:
    cold = [turn.p50 for turn in results[COLD]]
    rows = []
    for heat, turns in results.items():
        p50 = [turn.p50 for turn in turns]
        cells = {
            "p50 µs": statistics.median(p50),
            "p99 µs": statistics.median(turn.p99 for turn in turns),
            "p50 ÷ COLD": ratio(p50, cold),
            "± %": spread(p50),
            "CPU µs": statistics.median(turn.cpu for turn in turns),
            "eventfd writes": statistics.median(turn.writes for turn in turns),
        }
        rows.append(Row(f"{heat}: {what}", cells))
    return rows
