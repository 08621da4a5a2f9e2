"""What NICs cost when nothing happens: processor time, memory, file descriptors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import trio

from mvirt_net.dataplane.backend import POLL_INTERVAL
from tests.harness.client import VhostTestClient
from tests.harness.packets import is_arp_reply

from .figures import Cell, Row, Scale, Table
from .guest import ARP, IPV4, MAC
from .processes import BenchError, Place, Process, run_daemon, run_python, socket_path

COLUMNS = ("% of a core", "wake-ups/s", "MiB", "KiB a NIC", "files a NIC")
NOTES = (
    "MiB: anonymous memory, so neither program files nor guests' memory. A NIC: more than without.",
    "Connected: rings up; the first guest has had an ARP reply. Polled: its driver never kicks.",
)
NO_NIC = "daemon without NICs"
PEER = "peer: a trio program that sleeps"
TICKING_PEER = "peer: one that wakes up as often as a poll"
_SLEEP = "import trio; trio.run(trio.sleep_forever)"
_TICK = f"""
import trio

async def tick():
    while True:
        await trio.sleep({POLL_INTERVAL})

trio.run(tick)
"""


@attrs.frozen
class Case:
    """A daemon to look at.

    Args:
        nics: how many it has.
        frontends: whether each has one.
        polled: the drivers never kick.
    """

    nics: int
    frontends: bool = False
    polled: bool = False


@attrs.frozen
class Sample:
    """What a process was seen to need."""

    cpu_percent: float
    wake_ups: float
    private_bytes: int
    open_files: int


async def watch(process: Process, seconds: float) -> Sample:
    """Look at a process for so long."""
    cpu, wake_ups, begin = process.cpu_seconds(), process.wake_ups(), trio.current_time()
    await trio.sleep(seconds)
    elapsed = trio.current_time() - begin
    return Sample(
        100 * (process.cpu_seconds() - cpu) / elapsed,
        (process.wake_ups() - wake_ups) / elapsed,
        process.private_bytes(),
        process.open_files(),
    )


async def watch_all(processes: Mapping[str, Process], seconds: float) -> dict[str, Sample]:
    """Look at several processes at once: none of them has anything to do."""
    samples: dict[str, Sample] = {}

    async def watch_one(name: str, process: Process) -> None:
        samples[name] = await watch(process, seconds)

    async with trio.open_nursery() as nursery:
        for name, process in processes.items():
            nursery.start_soon(watch_one, name, process)
    return {name: samples[name] for name in processes}


async def idle(scale: Scale) -> Table:
    """The table of what is needed when nothing happens."""
    n = scale.nics
    cases = {
        NO_NIC: Case(0),
        f"{n} NICs, no frontend": Case(n),
        f"{n} NICs, connected": Case(n, frontends=True),
        "1 NIC, connected": Case(1, frontends=True),
        "1 NIC, connected, polled": Case(1, frontends=True, polled=True),
    }
    with ExitStack() as stack:
        peers = {
            PEER: stack.enter_context(run_python("-c", _SLEEP)),
            TICKING_PEER: stack.enter_context(run_python("-c", _TICK)),
        }
        folders = {name: _folder(stack) for name in cases}
        daemons = {
            name: stack.enter_context(
                run_daemon(folders[name], case.nics, first=[Place(MAC, IPV4)])
            )
            for name, case in cases.items()
        }
        async with trio.open_nursery() as nursery:
            for name, case in cases.items():
                if case.frontends:
                    await _connect(nursery, folders[name], case)
            samples = await watch_all(peers | daemons, scale.idle_seconds)
            nursery.cancel_scope.cancel()
    return _table(samples, cases)


def _folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(TemporaryDirectory(prefix="mvirt-net-")))


async def _connect(nursery: trio.Nursery, folder: Path, case: Case) -> None:
    """Connect a guest to each NIC and see that the first one is served."""
    clients = [
        await VhostTestClient.connect(
            nursery, socket_path(folder, index), poll_kick=case.polled, poll_call=case.polled
        )
        for index in range(case.nics)
    ]
    await clients[0].send_packet(ARP)
    if not is_arp_reply(await clients[0].recv_packet()):
        raise BenchError("the gateway does not answer ARP")


def _table(samples: Mapping[str, Sample], cases: Mapping[str, Case]) -> Table:
    base = samples[NO_NIC]
    rows = []
    for name, sample in samples.items():
        cells: dict[str, Cell] = {
            "% of a core": sample.cpu_percent,
            "wake-ups/s": sample.wake_ups,
            "MiB": sample.private_bytes / 1024**2,
        }
        nics = cases[name].nics if name in cases else 0
        if nics > 0:
            cells["files a NIC"] = (sample.open_files - base.open_files) / nics
        if nics > 1:  # a single one is less than what two daemons differ by
            cells["KiB a NIC"] = (sample.private_bytes - base.private_bytes) / 1024 / nics
        rows.append(Row(name, cells))
    return Table("idle", "NICs with nothing to do", COLUMNS, rows, NOTES)
