"""The daemon that is soaked: a process, its NICs, its counters, and what the kernel says of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from bench.processes import BenchError, Process, serve_config
from tests.harness.client import VhostTestClient
from tests.harness.exchanges import arp_gateway

PATIENCE = 30
"""Seconds after which what should have happened will not happen any more, on a busy machine."""
LOOK_AGAIN = 0.02
"""Seconds between looks at something that nobody reports."""

_NETWORK = """
[[network]]
name = "soak"
ipv4_subnet = "10.0.0.0/16"
"""
_NIC = """
[[nic]]
name = "vm{number}"
network = "soak"
mac_address = "{mac}"
ipv4_address = "{ipv4}"
socket_path = "{path}"
"""


@attrs.frozen
class Place:
    """NIC `number` of a daemon whose sockets are in `folder`."""

    folder: Path
    number: int

    @property
    def mac(self) -> str:
        return f"52:54:00:00:{self.number >> 8:02x}:{self.number & 255:02x}"

    @property
    def ipv4(self) -> str:
        return f"10.0.{1 + self.number // 200}.{1 + self.number % 200}"

    @property
    def path(self) -> Path:
        return self.folder / f"vm{self.number}.sock"


@attrs.define(eq=False)
class SoakedDaemon:
    """Made by `run_soaked`.

    Args:
        process: what the kernel says of it.
        places: its NICs.
        problems: lines of its log that tell of a bug.
    """

    process: Process
    places: list[Place]
    problems: list[str]
    _states: trio.MemoryReceiveChannel[dict[str, Any]]

    async def stats(self) -> list[dict[str, Any]]:
        """The counters of each NIC, in the order of `places`, by SIGUSR1.

        Raises:
            trio.TooSlowError: it does not answer.
        """
        os.kill(self.process.pid, signal.SIGUSR1)
        with trio.fail_after(PATIENCE):
            return [await self._states.receive() for _ in self.places]

    async def files_without_frontends(self) -> int:
        """How many are open when all have gone, with those that stay open from the first on."""
        await come_and_go(self.places[0], 1)
        await until(lambda: self.process.guests_mapped() == 0, "the first frontend is gone")
        await self.settled()
        return self.process.open_files()

    async def settled(self) -> list[dict[str, Any]]:
        """The counters once they stand still."""
        before: list[dict[str, Any]] = []
        with trio.fail_after(PATIENCE):
            while (now := await self.stats()) != before:
                before = now
                await trio.sleep(LOOK_AGAIN)
        return now


async def come_and_go(place: Place, count: int) -> None:
    """Frontends with a handshake and one ARP each, which in turn end like QEMU and are killed."""
    for number in range(count):
        async with trio.open_nursery() as nursery:
            client = await VhostTestClient.connect(nursery, place.path)
            await arp_gateway(client, place.mac, place.ipv4)
            if number % 2:
                client.disconnect()
            await client.aclose()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something outside of this process.

    Raises:
        BenchError: it has not come to pass within `PATIENCE`; the text says `what`.
    """
    with trio.move_on_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  (no event comes from there)
            await trio.sleep(LOOK_AGAIN)
        return
    raise BenchError(f"not within {PATIENCE} s: {what}")


@asynccontextmanager
async def run_soaked(folder: Path, nics: int) -> AsyncIterator[SoakedDaemon]:
    """A daemon with so many NICs in one network, ready; killed at the end."""
    places = [Place(folder, number) for number in range(nics)]
    config = folder / "soak.toml"
    text = _NETWORK + "".join(
        _NIC.format(number=place.number, mac=place.mac, ipv4=place.ipv4, path=place.path)
        for place in places
    )
    await trio.Path(config).write_text(text)
    log, log_of_daemon = os.pipe()
    async with trio.lowlevel.FdStream(log) as stream:
        with serve_config(config, "--log-format", "json", stderr=log_of_daemon) as process:
            os.close(log_of_daemon)
            send, receive = trio.open_memory_channel[dict[str, Any]](nics)
            daemon = SoakedDaemon(process, places, [], receive)
            async with trio.open_nursery() as nursery, receive:
                nursery.start_soon(_read_log, stream, send, daemon.problems)
                # It says that it is ready before it has closed the descriptor for that.
                await daemon.stats()
                yield daemon
                nursery.cancel_scope.cancel()


async def _read_log(
    stream: trio.lowlevel.FdStream,
    states: trio.MemorySendChannel[dict[str, Any]],
    problems: list[str],
) -> None:
    """Task of `run_soaked`: keep what the log says; its end is the daemon's."""
    rest = b""
    async with states:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                record = json.loads(line)
                if record["event"] == "nic state":
                    await states.send(_counters(record))
                elif record["level"] in ("error", "critical"):
                    problems.append(line.decode())


def _counters(record: dict[str, Any]) -> dict[str, Any]:
    """What of a line does not depend on when it was written."""
    return {key: value for key, value in record.items() if not isinstance(value, str)}
