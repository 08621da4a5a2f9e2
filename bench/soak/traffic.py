"""Two guests that talk without end while a third one comes, floods them, and is killed.

What is counted at both ends of the daemon must agree with what it counts itself: each frame that it
has taken from anyone was delivered, or dropped and counted at its receiver.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import trio

from bench.processes import ROOT, BenchError, Process

from .daemon import SoakedDaemon, run_soaked, until
from .report import MIB, Check, Report, equal

GROWTH = 2 * MIB
"""Bytes of private memory that may come to the daemon's own from a tenth of the time to its end.
Two backlogs of 256 long frames, which may just be full, are nearly one."""
IDLE_SECONDS = 2.0
IDLE_PERCENT = 2.0
"""Of a processor, once all is silent but all are connected."""


@attrs.frozen
class Length:
    """How long: until both have sent so many `frames`, or, if that is 0, for `seconds`."""

    frames: int = 0
    seconds: float = 0.0
    watch_idle: bool = True
    """Whether to look at what the daemon does when there is nothing to do."""


@attrs.define(eq=False)
class Helper:
    """A child process with which we talk by lines."""

    name: str
    process: trio.Process
    _rest: bytes = b""

    async def say(self, line: str) -> None:
        """Send it a line."""
        await self._stdin.send_all(line.encode() + b"\n")

    async def end(self) -> None:
        """Let its stdin end."""
        await self._stdin.aclose()

    async def hear(self) -> str:
        """Its next line; BenchError when it ends instead."""
        stdout = self.process.stdout
        assert stdout is not None
        while b"\n" not in self._rest:
            chunk = await stdout.receive_some()
            if not chunk:
                raise BenchError(f"{self.name} has ended, why stands above")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    @property
    def _stdin(self) -> trio.abc.SendStream:
        assert self.process.stdin is not None
        return self.process.stdin


@asynccontextmanager
async def helper(module: str, *args: object) -> AsyncIterator[Helper]:
    """Run ``python -m MODULE ARGS``; it is killed at the end."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        yield Helper(module, process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()


async def traffic(length: Length, seed: str = "soak") -> Report:
    """The report on a conversation of that length."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="mvirt-soak-")))
        daemon = await stack.enter_async_context(run_soaked(folder, 3))
        peers = [
            await stack.enter_async_context(
                helper("bench.soak.peer", folder, own, 1 - own, 2, length.frames)
            )
            for own in (0, 1)
        ]
        for peer in peers:
            assert await peer.hear() == "connected"
        visitor = await stack.enter_async_context(
            helper("bench.soak.visitor", folder, 2, 0, 1, seed)
        )
        return await _Conversation(daemon, peers, visitor).report(length)


@attrs.define(eq=False)
class _Conversation:
    """Both peers connected, and the visitor on its way."""

    daemon: SoakedDaemon
    peers: list[Helper]
    visitor: Helper

    async def report(self, length: Length) -> Report:
        process = self.daemon.process
        files = process.open_files()
        begin, cpu = trio.current_time(), process.cpu_seconds()
        for peer in self.peers:
            await peer.say("go")
        private = await self._talk(length)
        await self.visitor.end()
        lives, connections = map(int, (await self.visitor.hear()).split())
        for peer in self.peers:
            await peer.say("stop")
        for peer in self.peers:
            await peer.hear()
        seconds, cpu = trio.current_time() - begin, process.cpu_seconds() - cpu
        await until(lambda: process.guests_mapped() == 2, "the visitor's memory is unmapped")
        stats = await self.daemon.settled()
        idle = await _busy_percent(process) if length.watch_idle else 0.0
        files_then = process.open_files()
        for peer in self.peers:
            await peer.end()
        seen = [json.loads(await peer.hear()) for peer in self.peers]
        grown = process.private_bytes() - private
        routed = sum(nic["routed"] for nic in stats)
        dropped = sum(map(_rx_drops, stats))
        figures = [
            ("seconds", seconds),
            ("frames of the two guests", sum(peer["sent"] for peer in seen)),
            ("  a second", sum(peer["sent"] for peer in seen) / seconds),
            ("frames of the third guest", stats[2]["routed"]),
            ("  connections", connections),
            ("  killed in the middle", lives),
            ("frames received and checked", sum(peer["received"] for peer in seen)),
            ("dropped and counted: backlog full", dropped),
            ("processor time of the daemon, %", 100 * cpu / seconds),
            ("private memory, MiB", private / MIB),
            ("  at the end, MiB", (private + grown) / MIB),
        ]
        checks = [
            *(_peer_checks(seen, stats)),
            equal("taken - delivered - dropped", routed - _delivered(stats) - dropped, 0),
            Check("drops for any other reason", _other_drops(stats), 0),
            equal("open files with two guests, again", files_then, files),
            Check("growth of private memory, MiB", grown / MIB, GROWTH / MIB),
            Check("processor time when all is silent, %", idle, IDLE_PERCENT),
            equal("problems in the log", len(self.daemon.problems), 0),
        ]
        return Report("Two guests that talk, and a third that comes and goes", figures, checks)

    async def _talk(self, length: Length) -> int:
        """Until enough is sent; the daemon's private bytes after the first tenth."""
        if length.frames:
            private = self.daemon.process.private_bytes()
            for peer in self.peers:
                assert await peer.hear() == "enough"
        else:
            await trio.sleep(length.seconds / 10)
            private = self.daemon.process.private_bytes()
            await trio.sleep(length.seconds * 9 / 10)
        return private


def _peer_checks(seen: list[dict[str, Any]], stats: list[dict[str, Any]]) -> list[Check]:
    """What the guests have seen, next to what the daemon says."""
    checks = []
    for name, own in (("A", 0), ("B", 1)):
        peer, other, nic = seen[own], seen[1 - own], stats[own]
        lost = other["sent"] - peer["other"]["frames"]
        checks += [
            equal(f"{name}: sent - taken", peer["sent"] - nic["tx_frames"], 0),
            equal(f"{name}: delivered - received", nic["rx_frames"] - peer["received"], 0),
            Check(f"{name}: lost of the other's - dropped here", lost - _rx_drops(nic), 0),
        ]
    return checks


_RX_DROPS = ("rx_ring_down", "rx_backlog_full", "rx_buffer_too_small", "rx_buffer_invalid")


def _rx_drops(nic: dict[str, Any]) -> int:
    """Frames for this NIC that its guest did not get."""
    return sum(nic.get(f"drop_{reason}", 0) for reason in _RX_DROPS)


def _delivered(stats: list[dict[str, Any]]) -> int:
    """Frames that the two guests got; the third one gets ARP replies only."""
    return sum(nic["rx_frames"] for nic in stats[:2])


def _other_drops(stats: list[dict[str, Any]]) -> int:
    """Drops that nothing here gives a reason for.

    Replies to the third guest's ARP are lost when it is killed, by its ring that is down; but
    nothing is lost of what it sends, nor for the two others but by their backlogs.
    """
    drops: int = sum(
        count for nic in stats for key, count in nic.items() if key.startswith("drop_")
    )
    expected: int = sum(nic.get("drop_rx_backlog_full", 0) for nic in stats[:2])
    unheard: int = stats[2].get("drop_rx_ring_down", 0)
    return drops - expected - unheard


async def _busy_percent(process: Process) -> float:
    """What it needs of a processor now."""
    cpu, begin = process.cpu_seconds(), trio.current_time()
    await trio.sleep(IDLE_SECONDS)
    return 100 * (process.cpu_seconds() - cpu) / (trio.current_time() - begin)
