"""The other processes: the daemon and its peers, and what the kernel says of them."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
START_SECONDS = 30
PATIENCE = 5
"""Seconds after which what should have happened will not happen any more."""

_NETWORK = """
[[network]]
name = "bench"
ipv4_subnet = "10.0.0.0/16"
"""
_NIC = """
[[nic]]
name = "vm{index}"
network = "bench"
socket_path = "{path}"
"""
_FIRST_NIC_KEYS = """mac_address = "{mac}"
ipv4_address = "{ipv4}"
"""


class BenchError(Exception):
    """Something did not happen that should have; there is nothing to measure."""


@attrs.frozen
class Process:
    """A running process, seen from outside."""

    pid: int

    def is_gone(self) -> bool:
        """Whether it has ended, if its parent knows or not."""
        state = Path("/proc", str(self.pid), "stat").read_text().rpartition(") ")[2]
        return state[0] in "ZX"

    def cpu_seconds(self) -> float:
        """Processor time that it has used, all threads, user and kernel."""
        # The clock that clock_getcpuclockid(3) returns; /proc/PID/stat counts in ticks of 10 ms.
        return time.clock_gettime(~self.pid << 3 | 2)

    def wake_ups(self) -> int:
        """How often its threads have gone to sleep."""
        return sum(
            _number(task / "status", "voluntary_ctxt_switches")
            for task in Path("/proc", str(self.pid), "task").iterdir()
        )

    def private_bytes(self) -> int:
        """Its own memory: neither files nor what it shares with guests."""
        return 1024 * _number(Path("/proc", str(self.pid), "smaps_rollup"), "Anonymous")

    def guests_mapped(self) -> int:
        """How many mappings of the harness's guest memory it has."""
        return Path("/proc", str(self.pid), "maps").read_text().count("memfd:vhost-test-mem")

    def open_files(self) -> int:
        """How many file descriptors it has."""
        return len(list(Path("/proc", str(self.pid), "fd").iterdir()))


def _number(path: Path, key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"{path} has no {key}")
    return int(found[1])


@contextmanager
def run_python(
    *args: str,
    pass_fds: Sequence[int] = (),
    processors: Set[int] = frozenset(),
    stderr: int | None = None,
) -> Iterator[Process]:
    """Run ``python ARGS`` from the root of the project; it is killed at the end.

    Args:
        processors: where it may run; none: where this process may.
        stderr: the descriptor for it; by default ours.
    """
    process = subprocess.Popen(
        [sys.executable, *args],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=pass_fds,
    )
    try:
        if processors:
            os.sched_setaffinity(process.pid, processors)
        yield Process(process.pid)
    finally:
        process.kill()
        process.wait()


_STAY_AWAKE = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


@contextmanager
def two_processors() -> Iterator[set[int]]:
    """Run this process on one processor meanwhile, leave another to the other end, keep both awake.

    Without this the scheduler puts the two now on one processor, now on two, which takes twice as
    long, and a processor that was asleep takes up to hundreds of microseconds to wake in a virtual
    machine. All that is more than what is measured here. What keeps the processors awake gives way
    to everything else at once.

    Yields:
        Where the other end should run; where this process runs if there is only one processor.
    """
    everywhere = os.sched_getaffinity(0)
    ours, theirs = {min(everywhere)}, {max(everywhere)}
    with ExitStack() as stack:
        for processors in (ours, theirs):
            stack.enter_context(run_python("-c", _STAY_AWAKE, processors=processors))
        os.sched_setaffinity(0, ours)
        stack.callback(os.sched_setaffinity, 0, everywhere)
        yield theirs


def socket_path(folder: Path, index: int) -> Path:
    """Where NIC number `index` of `run_daemon` listens."""
    return folder / f"vm{index}.sock"


@contextmanager
def run_daemon(
    folder: Path, nics: int, *, mac: str, ipv4: str, processors: Set[int] = frozenset()
) -> Iterator[Process]:
    """``mvirt-net serve``, ready.

    Args:
        folder: for its configuration and its sockets.
        nics: how many it has, in one network.
        mac, ipv4: of the first one.
        processors: see `run_python`.
    """
    config = folder / "bench.toml"
    text = _NETWORK
    for index in range(nics):
        text += _NIC.format(index=index, path=socket_path(folder, index))
        text += _FIRST_NIC_KEYS.format(mac=mac, ipv4=ipv4) if index == 0 else ""
    config.write_text(text)
    with serve_config(config, "--quiet", processors=processors) as process:
        yield process


@contextmanager
def serve_config(
    config: Path,
    *options: str,
    processors: Set[int] = frozenset(),
    stderr: int | None = None,
) -> Iterator[Process]:
    """``mvirt-net serve --config CONFIG OPTIONS``, ready; the rest as for `run_python`."""
    ready, ready_of_daemon = os.pipe()
    command = ("serve", "--config", str(config), *options, "--ready-fd", str(ready_of_daemon))
    with (
        os.fdopen(ready, "rb") as readable,
        os.fdopen(ready_of_daemon, "wb") as writable,
        run_python(
            *("-m", "mvirt_net", *command),
            pass_fds=[ready_of_daemon],
            processors=processors,
            stderr=stderr,
        ) as process,
    ):
        # Now only the daemon has the other end: if it dies there is an end of file.
        writable.close()
        if not select.select([readable], [], [], START_SECONDS)[0] or not readable.read(1):
            raise BenchError("the daemon did not start; see its log")
        yield process
