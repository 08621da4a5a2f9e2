"""How many instructions the ring core takes to route a packet, by callgrind.

Time is noisy where others work too; instructions are not. This module run as a program routes
packets as `bench.routing` does; valgrind counts what happens within ``mv_port_drain`` meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from .build import compile_program
from .figures import Row, Scale, Table
from .processes import ROOT, BenchError
from .routing import CASES, open_pair

BURSTS = 4
PLAIN = [name for name, case in CASES.items() if case.header is None]

COLUMNS = ("instructions", "a byte")
NOTES = (
    "Of one routed packet in mv_port_drain and what it calls, a burst a call; callgrind.",
    "A copy takes one for 16 or 32 bytes, a large one (rep movsb) is counted byte by byte.",
)


def instructions(scale: Scale) -> Table:
    """The table of instructions a packet.

    Raises:
        BenchError: valgrind is not there, or has counted nothing.
    """
    if not shutil.which("valgrind"):
        raise BenchError("missing Debian package: valgrind")
    names = list(CASES) if scale.thorough else PLAIN
    rows = []
    for name, counted in _count(names).items():
        case = CASES[name]
        each = counted / (BURSTS * case.burst)
        rows.append(Row(name, {"instructions": each, "a byte": each / case.size}))
    return Table("instructions", "Instructions to route a packet", COLUMNS, rows, NOTES)


def _count(names: list[str]) -> dict[str, int]:
    """Instructions of all bursts of each case."""
    with TemporaryDirectory(prefix="mvirt-net-") as folder:
        library = Path(folder, "callgrind.so")
        compile_program([Path(__file__).with_name("callgrind.c")], library, ["-shared", "-fPIC"])
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += ["--instr-atstart=no", "--collect-atstart=no", "--toggle-collect=mv_port_drain"]
        command += [sys.executable, "-m", "bench.instructions", str(library), *names]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        counts = dict(_counts(Path(folder)))
    if done.returncode != 0 or counts.keys() != set(names) or not all(counts.values()):
        raise BenchError(f"callgrind has not counted: {done.stderr[-500:]}")
    return {name: counts[name] for name in names}


def _counts(folder: Path) -> Iterator[tuple[str, int]]:
    """What the files say that callgrind has written."""
    for path in folder.glob("out.*"):
        text = path.read_text()
        trigger = re.search(r"^desc: Trigger: Client Request: (.+)$", text, re.MULTILINE)
        total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        if trigger is not None and total is not None:
            yield trigger[1], int(total[1])


def _route(library: ctypes.CDLL, name: str) -> None:
    with open_pair(CASES[name]) as pair:
        pair.route(pair.case.burst)  # what is paid once
        library.count_from_here()
        pair.route(BURSTS * pair.case.burst)
        library.count_to_here(name.encode())


if __name__ == "__main__":
    _library = ctypes.CDLL(sys.argv[1])
    for _name in sys.argv[2:]:
        _route(_library, _name)
