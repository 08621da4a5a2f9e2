"""DPDK's testpmd with a virtio-user port, a second frontend made by other people.

Debian's ``dpdk-dev``, which holds testpmd, pulls some 200 packages in when it is installed; here
its files and those of the libraries that it is linked with are only unpacked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from . import debs

PACKAGES = (
    "dpdk-dev",
    "ibverbs-providers",
    "libbsd0",
    "libdbus-1-3",
    "libelf1",
    "libfdt1",
    "libibverbs1",
    "libjansson4",
    "libmd0",
    "libnl-3-200",
    "libnl-route-3-200",
    "libnuma1",
    "libpcap0.8",
    "zlib1g",
    # The drivers that we are after.
    "librte-net-virtio23",
    "librte-net-vhost23",
)
"""Besides these, what ``dpdk-dev`` says it depends on of DPDK itself."""

_TESTPMD = "dpdk-testpmd"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PRELOADED = ("librte_net_virtio.so.23", "librte_net_vhost.so.23", "librte_mempool_ring.so.23")

START_SECONDS = 60
COMMAND_SECONDS = 30
_PROMPT = b"testpmd> "


class TestpmdError(Exception):
    """testpmd ended or does not answer; the text holds what it wrote."""

    __test__ = False


@attrs.define(eq=False)
class Testpmd:
    """testpmd at its prompt; made by `run_testpmd`."""

    __test__ = False

    _process: trio.Process
    _unread: bytes = b""

    async def command(self, text: str) -> str:
        """Give a command; returns what testpmd writes before its next prompt.

        Raises:
            TestpmdError: no prompt comes.
        """
        assert self._process.stdin is not None
        await self._process.stdin.send_all(text.encode() + b"\n")
        return await self.read_to_prompt(COMMAND_SECONDS)

    async def read_to_prompt(self, seconds: float) -> str:
        """What comes before the next prompt, within `seconds`."""
        assert self._process.stdout is not None
        with trio.move_on_after(seconds):
            while _PROMPT not in self._unread:
                chunk = await self._process.stdout.receive_some(65536)
                if not chunk:
                    break
                self._unread += chunk
        text, prompt, self._unread = self._unread.partition(_PROMPT)
        if not prompt:
            raise TestpmdError(f"no prompt from testpmd; it wrote:\n{text.decode()}")
        return text.decode(errors="replace")

    def kill(self) -> None:
        """End it without a word to its backend."""
        self._process.kill()

    async def aclose(self) -> None:
        """Close our ends of its pipes."""
        assert self._process.stdio is not None
        await trio.aclose_forcefully(self._process.stdio)

    async def counters(self) -> tuple[int, int]:
        """The frames that the port has received and sent, by its own count."""
        text = await self.command("show port stats 0")
        received = re.search(r"RX-packets: (\d+)", text)
        sent = re.search(r"TX-packets: (\d+)", text)
        if received is None or sent is None:
            raise TestpmdError(f"no counters in:\n{text}")
        return int(received[1]), int(sent[1])


def unpack_dpdk() -> Path:
    """The folder into which DPDK is unpacked, downloaded when it is not there yet (7 MB).

    Raises:
        DebsError: the packages cannot be had.
    """
    return debs.kept("dpdk", [Path(__file__).read_bytes(), Path(debs.__file__).read_bytes()], _make)


@asynccontextmanager
async def run_testpmd(
    root: Path, vdev: str, *, memory: Sequence[str], options: Sequence[str] = ()
) -> AsyncIterator[Testpmd]:
    """testpmd with one virtio-user port, at its prompt, not forwarding; killed at the end.

    Args:
        root: from `unpack_dpdk`.
        vdev: the devargs of ``net_virtio_user0``: ``path=…,mac=…``.
        memory: EAL's options for the memory that is shared with the backend.
        options: testpmd's own.
    """
    arguments = [*memory, f"--vdev=net_virtio_user0,{vdev}"]
    async with _run(root, arguments, options) as testpmd:
        yield testpmd


@asynccontextmanager
async def run_vhost_switch(root: Path, sockets: Sequence[Path]) -> AsyncIterator[Testpmd]:
    """testpmd as a backend: two net_vhost ports that pass frames on to each other when started.

    Args:
        root: from `unpack_dpdk`.
        sockets: where the two ports listen. Both offer checksum and segmentation offloads.
    """
    arguments = ["--no-huge", "-m", "512", "--no-shconf"]
    for number, path in enumerate(sockets):
        arguments.append(f"--vdev=net_vhost{number},iface={path},queues=1,tso=1")
    async with _run(root, arguments, ["--forward-mode=io", "--total-num-mbufs=16384"]) as testpmd:
        yield testpmd


@asynccontextmanager
async def _run(
    root: Path, arguments: Sequence[str], options: Sequence[str]
) -> AsyncIterator[Testpmd]:
    """testpmd at its prompt, with these arguments for EAL and these options of its own."""
    cpus = sorted(os.sched_getaffinity(0))
    command = [
        # What testpmd prints would come after its next prompt, many prompts late.
        *("stdbuf", "-oL"),
        _program(root),
        # One lcore for the prompt, and one that forwards, on a CPU of its own where there is one.
        f"--lcores=0@{cpus[0]},1@{cpus[-1]}",
        *("--no-pci", "--no-telemetry", *arguments, "--"),
        *("--interactive", "--total-num-mbufs=4096", *options),
    ]
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_environment(root)},
    )
    testpmd = Testpmd(process)
    try:
        await testpmd.read_to_prompt(START_SECONDS)
        yield testpmd
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await testpmd.aclose()


def _make(folder: Path) -> None:
    ours = [name for name in debs.dependencies("dpdk-dev") if name.startswith("librte")]
    debs.unpack([*PACKAGES, *ours], folder)


def _program(root: Path) -> str:
    """Where DPDK is installed it loads the drivers that are, so all of it must be of there."""
    return shutil.which(_TESTPMD) or str(root / "usr/bin" / _TESTPMD)


def _environment(root: Path) -> dict[str, str]:
    """Where the libraries are.

    DPDK's own option for drivers, ``-d``, refuses folders below a world-writable one, as a clone
    in ``/tmp`` is; the dynamic loader does not mind.
    """
    if shutil.which(_TESTPMD):
        return {}
    libraries = root / _LIBRARIES
    return {
        "LD_LIBRARY_PATH": f"{libraries}:{root / 'lib/x86_64-linux-gnu'}",
        "LD_PRELOAD": " ".join(str(libraries / name) for name in _PRELOADED),
    }
