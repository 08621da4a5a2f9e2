"""What it costs to have many NICs in one daemon: when all boot, when none has anything to do, and
when few have.
"""

from __future__ import annotations

import resource
import select
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from tests.harness.packets import GATEWAY_MAC, ethernet_frame, ipv4_packet

from .boot import BootingGuest, boot
from .figures import Cell, Row, Scale, Table, ratio
from .processes import (
    PATIENCE,
    BenchError,
    Place,
    Process,
    run_daemon,
    socket_path,
    two_processors,
)

COLUMNS = (
    *("last lease, s", "of it DHCP, s", "ms of daemon a NIC", "% of a core, idle"),
    *("KiB waiting", "KiB a NIC"),
    *("ARP p50, µs", "÷ fewest", "routed p50, µs", "÷ fewest, routed"),
)
NOTES = (
    "Last lease: from the first connection on, all at once. DHCP: from the last handshake on.",
    "ms: processor time of the daemon for handshake, DHCP and ARP.",
    "KiB: anonymous memory, more than a daemon without NICs; waiting: without a frontend.",
    "p50: of a frame each 2 ms from one of 2 guests, kick to call, all others being idle.",
)
FEWEST = 2
ACTIVE = 2
PAUSE = 0.002
"""Seconds between round trips: more often, and a worker would poll the rings."""
IDLE_TIMES = 6
"""Once a minute the daemon looks at the places of its sockets."""


@attrs.define(eq=False)
class Crowd:
    """A daemon and all its guests, booted.

    Args:
        daemon: the process.
        guests: in the order of its NICs.
        cells: what was measured up to here.
    """

    daemon: Process
    guests: Sequence[BootingGuest]
    cells: dict[str, Cell]
    _frames: list[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._frames = [_udp(number, (number + 1) % ACTIVE) for number in range(ACTIVE)]

    def ask(self, number: int) -> float:
        """Seconds from an ARP request to its answer."""
        guest = self.guests[number]
        begin = time.perf_counter()
        guest.ask()
        return _answered(guest, begin)

    def route(self, number: int) -> float:
        """Seconds from a packet for another guest until that guest has it."""
        begin = time.perf_counter()
        self.guests[number].send(self._frames[number])
        return _answered(self.guests[(number + 1) % ACTIVE], begin)


def many(scale: Scale) -> Table:
    """The table of what many NICs cost."""
    with ExitStack() as stack:
        stack.enter_context(_many_descriptors())
        theirs = stack.enter_context(two_processors())
        nobody = stack.enter_context(_daemon([], theirs))[0].private_bytes()
        crowds = {n: stack.enter_context(_crowd(n, theirs, nobody)) for n in (FEWEST, scale.many)}
        _idle(crowds.values(), scale.idle_seconds * IDLE_TIMES)
        for name, column, measure in (
            ("ARP p50, µs", "÷ fewest", Crowd.ask),
            ("routed p50, µs", "÷ fewest, routed", Crowd.route),
        ):
            times: dict[int, list[float]] = {n: [] for n in crowds}
            for trip in range(scale.round_trips):
                for n, crowd in crowds.items():
                    time.sleep(PAUSE)
                    times[n].append(measure(crowd, trip % ACTIVE))
            for n, crowd in crowds.items():
                crowd.cells[name] = 1e6 * statistics.median(times[n])
                crowd.cells[column] = ratio(times[n], times[FEWEST])
        rows = [Row(f"{n} NICs", crowd.cells) for n, crowd in crowds.items()]
    return Table("many", "Many NICs in one daemon", COLUMNS, rows, NOTES)


@contextmanager
def _many_descriptors() -> Iterator[None]:
    """For guests, which take six each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _place(number: int) -> Place:
    mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    return Place(mac, f"10.0.{1 + number // 200}.{1 + number % 200}")


def _udp(source: int, target: int) -> bytes:
    packet = ipv4_packet(_place(source).ipv4, _place(target).ipv4, 17, bytes(30))
    return ethernet_frame(GATEWAY_MAC, _place(source).mac, 0x0800, packet)


@contextmanager
def _daemon(places: Sequence[Place], processors: Set[int]) -> Iterator[tuple[Process, Path]]:
    """A daemon with NICs at these places, and the folder of its sockets."""
    with TemporaryDirectory(prefix="mvirt-net-") as name:
        folder = Path(name)
        with run_daemon(folder, len(places), first=places, processors=processors) as daemon:
            yield daemon, folder


@contextmanager
def _crowd(nics: int, processors: Set[int], nobody: int) -> Iterator[Crowd]:
    """So many guests that have booted at once.

    Args:
        nobody: private bytes of a daemon without NICs.
    """
    places = [_place(number) for number in range(nics)]
    with ExitStack() as stack:
        daemon, folder = stack.enter_context(_daemon(places, processors))
        guests = [
            BootingGuest(place, socket_path(folder, number), number)
            for number, place in enumerate(places)
        ]
        for guest in guests:
            stack.callback(guest.close)
        waiting, cpu = daemon.private_bytes(), daemon.cpu_seconds()
        moments = boot(guests)
        cells: dict[str, Cell] = {
            "last lease, s": moments.lease,
            "of it DHCP, s": moments.lease - moments.handshake,
            "ms of daemon a NIC": 1e3 * (daemon.cpu_seconds() - cpu) / nics,
        }
        if nics > FEWEST:  # so few are less than what two daemons differ by
            cells["KiB waiting"] = (waiting - nobody) / 1024 / nics
            cells["KiB a NIC"] = (daemon.private_bytes() - nobody) / 1024 / nics
        yield Crowd(daemon, guests, cells)


def _idle(crowds: Iterable[Crowd], seconds: float) -> None:
    """Note what the daemons need while nobody does anything."""
    before = {crowd: crowd.daemon.cpu_seconds() for crowd in crowds}
    time.sleep(seconds)
    for crowd, cpu in before.items():
        crowd.cells["% of a core, idle"] = 100 * (crowd.daemon.cpu_seconds() - cpu) / seconds


def _answered(guest: BootingGuest, begin: float) -> float:
    """Seconds until the guest has a frame."""
    ready = select.poll()
    ready.register(guest.call, select.POLLIN)
    if not ready.poll(1000 * PATIENCE):
        raise BenchError("a frame was lost")
    seconds = time.perf_counter() - begin
    guest.receive()
    return seconds
