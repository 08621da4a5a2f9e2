"""One frontend after another on the same NIC: nothing of any of them stays behind."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from .daemon import Place, SoakedDaemon, come_and_go, run_soaked, until
from .report import MIB, Check, Report, equal

GROWTH = MIB
"""Bytes of private memory that may come to the daemon's own from warm-up to the end: what Python's
allocator does at its whim, and far less than one connection in ten would leave."""


async def cycles(count: int) -> Report:
    """The report on so many frontends, of which the first fifth is warm-up."""
    warm_up = count // 5
    with TemporaryDirectory(prefix="mvirt-soak-") as name:
        async with run_soaked(Path(name), 1) as daemon:
            [place] = daemon.places
            begin = trio.current_time()
            unconnected = await daemon.files_without_frontends()
            await _cycle(daemon, place, warm_up, unconnected)
            private, files = daemon.process.private_bytes(), daemon.process.open_files()
            await _cycle(daemon, place, count - warm_up, unconnected)
            seconds = trio.current_time() - begin
            grown = daemon.process.private_bytes() - private
            figures = [
                ("connections a second", count / seconds),
                (f"private memory after {warm_up}, MiB", private / MIB),
                (f"  after {count}, MiB", (private + grown) / MIB),
                (f"open files after {warm_up}", files),
            ]
            checks = [
                equal(f"open files after {count}", daemon.process.open_files(), files),
                equal("mappings of guest memory", daemon.process.guests_mapped(), 0),
                Check("growth of private memory, MiB", grown / MIB, GROWTH / MIB),
                equal("problems in the log", len(daemon.problems), 0),
            ]
    return Report(f"{count} frontends one after another", figures, checks)


async def _cycle(daemon: SoakedDaemon, place: Place, count: int, unconnected: int) -> None:
    """So many frontends, until the daemon has closed what the last one had open."""
    await come_and_go(place, count)
    await until(lambda: daemon.process.open_files() <= unconnected, "the last frontend is gone")
