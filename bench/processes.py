"""The other processes: the daemon and its peers, and what the kernel says of them."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
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
_PLACE = """mac_address = "{mac}"
ipv4_address = "{ipv4}"
"""


class BenchError(Exception):
    """Something did not happen that should have; there is nothing to measure."""


@attrs.frozen
class Place:
    """The addresses of a NIC."""

    mac: str
    ipv4: str


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


def processor_busy_seconds(number: int) -> float:
    """Time that a processor was not idle since the machine has started, in ticks of 10 ms."""
    found = re.search(rf"^cpu{number} (.+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"there is no processor {number}")
    user, nice, system, _idle, _iowait, *interrupts = map(int, found[1].split()[:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _number(path: Path, key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"{path} has no {key}")
    return int(found[1])


@contextmanager
def run_program(
    *command: str,
    pass_fds: Sequence[int] = (),
    processors: Set[int] = frozenset(),
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a command from the root of the project; it is killed at the end.

    Args:
        processors: where it may run, from its first instruction; none: where this process may.
        stdin, stdout, stderr: as for `subprocess.Popen`.
        environment: what is added to ours.
    """
    pinned = ("taskset", "--cpu-list", ",".join(map(str, sorted(processors))))
    process = subprocess.Popen(
        [*(pinned if processors else ()), *command],
        cwd=ROOT,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        pass_fds=pass_fds,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def run_python(
    *args: str,
    pass_fds: Sequence[int] = (),
    processors: Set[int] = frozenset(),
    stderr: int | None = None,
) -> Iterator[Process]:
    """Run ``python ARGS``; the rest as for `run_program`."""
    with run_program(
        sys.executable, *args, pass_fds=pass_fds, processors=processors, stderr=stderr
    ) as process:
        yield Process(process.pid)


_STAY_AWAKE = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    for _ in range(500):
        pass
    os.sched_yield()
"""
"""It yields each 10 µs or so: else one of several threads that have just run may have to wait for
it until it has had its share, some milliseconds. To yield all the time makes wake-ups slower."""


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
    folder: Path,
    nics: int,
    *options: str,
    first: Sequence[Place],
    processors: Set[int] = frozenset(),
) -> Iterator[Process]:
    """``mvirt-net serve OPTIONS``, ready.

    Args:
        folder: for its configuration and its sockets.
        nics: how many it has, in one network.
        first: where the first ones are; the others get what is free.
        processors: see `run_program`.
    """
    config = folder / "bench.toml"
    text = _NETWORK
    for index in range(nics):
        text += _NIC.format(index=index, path=socket_path(folder, index))
        if index < len(first):
            text += _PLACE.format(mac=first[index].mac, ipv4=first[index].ipv4)
    config.write_text(text)
    with serve_config(config, "--quiet", *options, processors=processors) as process:
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
