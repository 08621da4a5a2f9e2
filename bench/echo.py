"""How many frames a second are answered in Python."""

from __future__ import annotations

import os
import select
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from mvirt_net.dataplane import services_for
from mvirt_net.ffi import NextStep, Port
from mvirt_net.model import DropReason, NetworkSpec, NicSpec, PuntKind
from tests.harness.memory import Region
from tests.unit.rig import EVENT_IDX, VERSION_1, open_rig

from .figures import Row, Scale, Table, ratio, spread, take_turns
from .guest import ARP, DHCP, IPV4, MAC, Guest, Ring, connected_guest, ping
from .processes import PATIENCE, BenchError, run_daemon, run_python, socket_path

BATCH = 64
"""Frames that the guest has in flight."""
LARGE_BATCH = 256
"""As many as a queue of QEMU has by default, and a port keeps."""

COLUMNS = ("frames/s", "µs a frame", "÷ peer", "± %")

CONSTANT = "peer: a reply that is always the same"
INLINE_NOTES = (
    f"Ring → core → service → core → ring in one process, {BATCH} at a time; processor time.",
    "Peer: the same way with a service that does nothing but return a reply.",
)
SOCKET = "peer: ARP, a trio task on a socket, {} in flight"
DAEMON_NOTES = (
    "The same between two processes, from the kick to the last reply's call.",
    "Peer: a trio task that receives each frame from a SOCK_SEQPACKET socket and sends each reply.",
)

Serve = Callable[[bytes], bytes | DropReason]


# In one process


@attrs.frozen
class Inline:
    """A port with its rings, and no task, socket or second process."""

    port: Port
    rx: Ring
    tx: Ring

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
            drained = self.port.drain()
            step = drained.next
            for punt in drained.punts:
                reply = serve(punt.frame)
                if not isinstance(reply, DropReason):
                    self.port.enqueue(reply)
            while self.port.flush() is NextStep.CALL_AGAIN:
                pass


def inline(scale: Scale) -> Table:
    """The table of answers without a daemon."""
    network = NetworkSpec(name="bench", ipv4_subnet=IPv4Network((IPV4, 24), strict=False))
    nic = NicSpec(name="vm0", network="bench", mac_address=MAC, ipv4_address=IPV4)
    services = services_for(nic, network, network.mtu)
    with open_rig(features=VERSION_1 | EVENT_IDX, regions=[Region(0, 2 << 20)]) as rig:
        rig.start()
        path = Inline(rig.port, Ring(rig.rx), Ring(rig.tx))
        path.rx.make_room()
        subjects: dict[str, Callable[[], float]] = {}
        for name, request, serve in (
            (CONSTANT, ARP, lambda _frame: ARP),
            ("ARP request", ARP, services[PuntKind.ARP].handle),
            ("ping, 98 B", ping(98), services[PuntKind.ICMPV4].handle),
            ("ping, 1514 B", ping(1514), services[PuntKind.ICMPV4].handle),
            ("DHCP discover", DHCP, services[PuntKind.DHCPV4].handle),
        ):
            subjects[name] = partial(path.echo, request, serve, scale.echoes)
        results = take_turns(subjects, scale.rounds)
    rows = [_row(name, costs, results[CONSTANT]) for name, costs in results.items()]
    return Table("inline", "Echo through Python, in process", COLUMNS, rows, INLINE_NOTES)


# Through the daemon


async def through_daemon(scale: Scale) -> Table:
    """The table of answers by the daemon."""
    with TemporaryDirectory(prefix="mvirt-net-") as name, ExitStack() as stack:
        folder = Path(name)
        peer = _socket_peer(stack)
        stack.enter_context(run_daemon(folder, 1, mac=MAC, ipv4=IPV4))
        async with connected_guest(socket_path(folder, 0)) as guest:
            subjects: dict[str, Callable[[], float]] = {}
            peers = {}
            for batch in (BATCH, LARGE_BATCH):
                peer_name = SOCKET.format(batch)
                subjects[peer_name] = partial(_echo_socket, peer, batch, scale.echoes)
                for what, request in (("ARP", ARP), ("ping", ping(98))):
                    name = f"{what}, {batch} in flight"
                    subjects[name] = partial(_echo_guest, guest, request, batch, scale.echoes)
                    peers[name] = peer_name
            results = take_turns(subjects, scale.rounds)
    rows = [_row(name, costs, results[peers.get(name, name)]) for name, costs in results.items()]
    return Table("daemon", "Echo through the daemon", COLUMNS, rows, DAEMON_NOTES)


def _echo_guest(guest: Guest, request: bytes, batch: int, count: int) -> float:
    """Send `count` frames and wait for the replies, a batch at a time: ns a frame
    of the median batch."""
    guest.tx.load(request)
    ready = select.poll()
    ready.register(guest.rx_call, select.POLLIN)
    costs = []
    for _ in range(count // batch):
        begin = time.perf_counter_ns()
        guest.rx.give(batch, call=True)
        guest.tx.give(batch, call=False)
        os.eventfd_write(guest.kick, 1)
        while guest.rx.outstanding():
            if not ready.poll(PATIENCE * 1000):
                raise BenchError(f"{guest.rx.outstanding()} of {batch} frames were not answered")
            os.eventfd_read(guest.rx_call)
        costs.append((time.perf_counter_ns() - begin) / batch)
    return statistics.median(costs)


def _socket_peer(stack: ExitStack) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.enter_context(ours)
    ours.settimeout(PATIENCE)
    with theirs:
        fd = theirs.fileno()
        stack.enter_context(run_python("-m", "bench.peers", "socket", str(fd), pass_fds=[fd]))
    return ours


def _echo_socket(peer: socket.socket, batch: int, count: int) -> float:
    """The same through a socket."""
    costs = []
    for _ in range(count // batch):
        begin = time.perf_counter_ns()
        for _ in range(batch):
            peer.send(ARP)
        for _ in range(batch):
            peer.recv(2048)
        costs.append((time.perf_counter_ns() - begin) / batch)
    return statistics.median(costs)


def _row(name: str, costs: list[float], peers: list[float]) -> Row:
    cost = statistics.median(costs)
    return Row(
        name,
        {
            "frames/s": 1e9 / cost,
            "µs a frame": cost / 1000,
            "÷ peer": ratio(costs, peers),
            "± %": spread(costs),
        },
    )
