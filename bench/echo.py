"""How many frames a second are answered in Python, without a daemon around it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Network

import attrs

from mvirt_net.dataplane import services_for
from mvirt_net.ffi import NextStep, Port
from mvirt_net.model import DropReason, NetworkSpec, NicSpec, PuntKind
from tests.harness.memory import Region
from tests.unit.rig import EVENT_IDX, VERSION_1, open_rig

from .figures import Row, Scale, Table, ratio, spread, take_turns
from .guest import ARP, DHCP, IPV4, MAC, Ring, ping
from .processes import BenchError

BATCH = 64
"""Frames that the guest has in flight."""

COLUMNS = ("frames/s", "µs a frame", "÷ peer", "± %")

PEER = "peer: a reply that is always the same"
NOTES = (
    f"Ring → core → service → core → ring in one process, {BATCH} at a time; processor time.",
    "Peer: the same way with a service that does nothing but return a reply.",
)
Serve = Callable[[bytes], bytes | DropReason | None]


@attrs.frozen
class Inline:
    """A port with its rings, and no task, socket or second process."""

    port: Port
    rx: Ring
    tx: Ring
    clock: Iterator[int] = attrs.field(factory=itertools.count)
    """Seconds, one for each drain, so that services have time for all."""

    def echo(self, request: bytes, serve: Serve, count: int) -> float:
        """Answer `count` frames, a batch at a time: ns a frame."""
        self.tx.load(request)
        spent = 0
        for _ in range(count // BATCH):
            self.rx.give(BATCH, call=False)
            self.tx.give(BATCH, call=False)
            begin = time.thread_time_ns()
            self._answer_all(serve)
            spent += time.thread_time_ns() - begin
            if self.rx.outstanding() or self.tx.outstanding():
                raise BenchError("not every frame was answered")
        return spent / count

    def _answer_all(self, serve: Serve) -> None:
        step = NextStep.CALL_AGAIN
        while step is NextStep.CALL_AGAIN:
            drained = self.port.drain(next(self.clock))
            step = drained.next
            for punt in drained.punts:
                reply = serve(punt.frame)
                if isinstance(reply, bytes):
                    self.port.enqueue(reply)
            while self.port.flush() is NextStep.CALL_AGAIN:
                pass


def inline(scale: Scale) -> Table:
    """The table of the services."""
    network = NetworkSpec(name="bench", ipv4_subnet=IPv4Network((IPV4, 24), strict=False))
    nic = NicSpec(name="vm0", network="bench", mac_address=MAC, ipv4_address=IPV4)
    services = services_for(nic, network, network.mtu)
    with open_rig(features=VERSION_1 | EVENT_IDX, regions=[Region(0, 2 << 20)]) as rig:
        rig.start()
        path = Inline(rig.port, Ring(rig.rx), Ring(rig.tx))
        path.rx.make_room()
        subjects: dict[str, Callable[[], float]] = {}
        for name, request, serve in (
            (PEER, ARP, lambda _frame: ARP),
            ("ARP request", ARP, services[PuntKind.ARP].handle),
            ("ping, 98 B", ping(98), services[PuntKind.ICMPV4].handle),
            ("ping, 1514 B", ping(1514), services[PuntKind.ICMPV4].handle),
            ("DHCP discover", DHCP, services[PuntKind.DHCPV4].handle),
        ):
            subjects[name] = partial(path.echo, request, serve, scale.echoes)
        results = take_turns(subjects, scale.rounds)
    rows = []
    for name, costs in results.items():
        cost = statistics.median(costs)
        cells = {
            "frames/s": 1e9 / cost,
            "µs a frame": cost / 1000,
            "÷ peer": ratio(costs, results[PEER]),
            "± %": spread(costs),
        }
        rows.append(Row(name, cells))
    return Table("inline", "Echo through Python, in process", COLUMNS, rows, NOTES)
