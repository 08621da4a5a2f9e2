"""The client of all backends: ``client.c``, a program on DPDK that takes commands."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ..build import compile_program
from ..processes import BenchError, run_program
from .backends import EAL, GATEWAY, Backend, Wiring, place

HERE = Path(__file__).parent
RING = 256
"""Entries, as a queue of QEMU has by default."""
MEMORY = 256
MEMORY_TO_BE_SEGMENTED = 512
"""MiB of huge pages."""

MRG_RXBUF, HOST_TSO4, GUEST_TSO4, RING_PACKED = 1 << 15, 1 << 11, 1 << 7, 1 << 34


@attrs.frozen
class Programs:
    """What was compiled."""

    client: Path
    epoll: Path
    ring: Path


def compile_all(folder: Path) -> Programs:
    """Build the programs that need DPDK."""
    programs = Programs(folder / "client", folder / "epoll", folder / "ring")
    # DPDK's headers are not ours to warn of.
    flags = [flag.replace("-I", "-isystem", 1) for flag in _pkg_config("--cflags")]
    libraries = [*_pkg_config("--libs"), "-lm"]
    sources = [HERE / name for name in ("client.c", "frames.c", "ports.c")]
    compile_program(sources, programs.client, [*flags, *libraries])
    compile_program([HERE / "epoll.c"], programs.epoll, [*flags, *libraries])
    compile_program([HERE / "ring.c"], programs.ring, [*flags, *libraries])
    return programs


def _pkg_config(what: str) -> list[str]:
    done = subprocess.run(
        ["pkg-config", what, "libdpdk"], check=True, capture_output=True, text=True
    )
    return shlex.split(done.stdout)


@attrs.frozen
class Client:
    """A client at the ports of one backend, waiting for commands."""

    _process: subprocess.Popen[str]
    features: Sequence[int]

    def request(self, command: str) -> dict[str, float]:
        """Measure; see client.c for what can be asked.

        Raises:
            BenchError: a frame was received that is not what it should be.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = _answer(self._process)
        if answer["wrong"]:
            raise BenchError(
                f"{command}: {answer['wrong']:.0f} frames were not what they should be"
            )
        return answer

    def lacks(self, wiring: Wiring) -> list[str]:
        """The names of what was asked for and not granted."""
        wanted = {
            "packed rings": RING_PACKED if wiring.packed else 0,
            "mergeable buffers": MRG_RXBUF if wiring.mergeable else 0,
            "TSO": HOST_TSO4 | GUEST_TSO4 if wiring.offloads else 0,
        }
        return [
            name for name, bits in wanted.items() if any(f & bits != bits for f in self.features)
        ]


@contextmanager
def open_client(
    program: Path, backend: Backend, wiring: Wiring, processors: set[int]
) -> Iterator[Client]:
    """A client whose ports are up."""
    (cpu,) = processors
    memory = MEMORY_TO_BE_SEGMENTED if wiring.offloads else MEMORY
    command = [str(program), f"--lcores=0@{cpu}", "-m", str(memory), *EAL]
    command += ["--log-level=pmd.net.virtio.init:debug"]
    command += [_vdev(backend, number, wiring) for number in range(len(backend.sockets))]
    command += ["--", "--gateway", GATEWAY, "--ring", str(RING)]
    command += [f"--tap={tap}" for tap in backend.taps]
    command += ["--routed"] if backend.routed else []
    command += ["--mergeable"] if wiring.mergeable else []
    command += ["--offloads"] if wiring.offloads else []
    command += ["--calls"] if wiring.calls else []
    inside = ["ip", "netns", "exec", backend.namespace] if backend.namespace else []
    with run_program(
        *inside,
        *command,
        processors=processors,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Client(process, _answer(process)["features"])


def _vdev(backend: Backend, number: int, wiring: Wiring) -> str:
    options = {
        "path": backend.sockets[number],
        "server": int(backend.connects),
        "mac": place(number).mac,
        "queue_size": RING,
        "packed_vq": int(wiring.packed),
        "mrg_rxbuf": int(wiring.mergeable),
    }
    words = ",".join(f"{name}={value}" for name, value in options.items())
    return f"--vdev=net_virtio_user{number},{words}"


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError("the client has ended; see its log")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise BenchError(f"the client refuses {answer['error']}")
    return answer
