"""How many frames a second the daemon answers when a guest has many in flight."""

from __future__ import annotations

import os
import select
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from mvirt_net.ffi import work_of
from mvirt_net.ffi._core import lib
from mvirt_net.model import PuntKind

from .figures import Row, Scale, Table, ratio, spread, take_turns
from .guest import ARP, IPV4, MAC, Guest, connected_guest, ping
from .processes import (
    PATIENCE,
    BenchError,
    Place,
    Process,
    run_daemon,
    run_python,
    socket_path,
    two_processors,
)

BATCHES = (64, 256)
"""Frames in flight. A queue of QEMU has 256 entries by default, and a port keeps as many."""

COLUMNS = ("frames/s", "µs a frame", "÷ peer", "± %", "CPU µs", "CPU ÷ peer")
NOTES = (
    "From the kick to the call of the last reply, on two cores; the median batch.",
    "In bursts that a guest may ask; in the long run it gets less (docs/reference/services.md).",
    "CPU: processor time of the other end for each frame.",
    "Peer: a trio task that receives each frame from a SOCK_SEQPACKET socket and sends each reply.",
)
PEER = "peer: ARP through a socket, {} in flight"


@attrs.frozen
class Turn:
    """What a frame took in one turn, in nanoseconds.

    Args:
        wall: of the median batch.
        cpu: processor time of the other end.
    """

    wall: float
    cpu: float


@attrs.frozen
class End:
    """Who answers.

    Args:
        process: what it runs in.
        echo: sends so many frames and waits until all are answered.
        begin_turn: called before a turn.
    """

    process: Process
    echo: Callable[[int], None]
    begin_turn: Callable[[], None] = lambda: None

    def measure(self, batch: int, count: int) -> Turn:
        """Have `count` frames answered, a batch at a time."""
        self.begin_turn()
        walls, cpu = [], self.process.cpu_seconds()
        for _ in range(count // batch):
            begin = time.perf_counter_ns()
            self.echo(batch)
            walls.append(time.perf_counter_ns() - begin)
        cpu = self.process.cpu_seconds() - cpu
        return Turn(statistics.median(walls) / batch, 1e9 * cpu / count)


async def throughput(scale: Scale) -> Table:
    """The table of the echoes; the daemon and its peer are processes of their own."""
    with TemporaryDirectory(prefix="mvirt-net-") as name, ExitStack() as stack:
        folder = Path(name)
        theirs = stack.enter_context(two_processors())
        peer = _socket_peer(theirs, stack)
        daemon = stack.enter_context(
            run_daemon(folder, 1, first=[Place(MAC, IPV4)], processors=theirs)
        )
        async with connected_guest(socket_path(folder, 0)) as guest:
            ends = {
                PEER: peer,
                "ARP, {} in flight": _echo(daemon, guest, ARP, _pause(PuntKind.ARP, scale)),
                "ping of 98 B, {} in flight": _echo(
                    daemon, guest, ping(98), _pause(PuntKind.ICMPV4, scale)
                ),
            }
            rows = []
            for batch in BATCHES:
                subjects = {
                    name: partial(end.measure, batch, scale.echoes) for name, end in ends.items()
                }
                rows += _rows(take_turns(subjects, scale.rounds), batch)
    return Table("throughput", "Echo through the daemon", COLUMNS, rows, NOTES)


def _pause(kind: PuntKind, scale: Scale) -> float:
    """Seconds after which the guest may ask the services for another turn's frames.

    What it may ask in the long run is bounded; this measures how fast it gets what it may.
    """
    work = work_of(kind, 0) * scale.echoes
    if work > lib.MV_WORK_BURST:
        raise BenchError("a turn is more than a guest may ask at once")
    return work / float(lib.MV_WORK_RATE)


def _echo(daemon: Process, guest: Guest, request: bytes, pause: float) -> End:
    def begin_turn() -> None:
        guest.tx.load(request)
        time.sleep(pause)

    def echo(batch: int) -> None:
        guest.rx.give(batch, call=True)
        guest.tx.give(batch, call=False)
        os.eventfd_write(guest.kick, 1)
        while guest.rx.outstanding():
            if not select.select([guest.rx_call], [], [], PATIENCE)[0]:
                raise BenchError(f"{guest.rx.outstanding()} of {batch} frames were not answered")
            os.eventfd_read(guest.rx_call)

    return End(daemon, echo, begin_turn)


def _socket_peer(processors: set[int], stack: ExitStack) -> End:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.enter_context(ours)
    ours.settimeout(PATIENCE)

    def echo(batch: int) -> None:
        for _ in range(batch):
            ours.send(ARP)
        for _ in range(batch):
            ours.recv(2048)

    with theirs:
        fd = theirs.fileno()
        command = ("-m", "bench.loops", "socket", str(fd))
        process = run_python(*command, pass_fds=[fd], processors=processors)
        return End(stack.enter_context(process), echo)


def _rows(results: dict[str, list[Turn]], batch: int) -> list[Row]:
    peer_wall, peer_cpu = _columns(results[PEER])
    rows = []
    for name, turns in results.items():
        wall, cpu = _columns(turns)
        cells = {
            "frames/s": 1e9 / statistics.median(wall),
            "µs a frame": statistics.median(wall) / 1000,
            "÷ peer": ratio(wall, peer_wall),
            "± %": spread(wall),
            "CPU µs": statistics.median(cpu) / 1000,
            "CPU ÷ peer": ratio(cpu, peer_cpu),
        }
        rows.append(Row(name.format(batch), cells))
    return rows


def _columns(turns: Sequence[Turn]) -> tuple[list[float], list[float]]:
    return [turn.wall for turn in turns], [turn.cpu for turn in turns]
