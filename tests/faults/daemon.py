"""A daemon with two NICs that is made to fail, and the questions whether it still serves them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.harness import VhostTestClient
from tests.harness.config import one_network
from tests.harness.exchanges import arp_gateway
from tests.harness.process import Daemon, serve

MAC, IP = "52:54:00:12:34:56", "10.0.0.5"
"""Of the NIC that is attacked."""
BYSTANDER_MAC, BYSTANDER_IP = "52:54:00:00:00:99", "10.0.0.9"
CONFIG = one_network(
    attacked={"mac_address": MAC, "ipv4_address": IP},
    bystander={"mac_address": BYSTANDER_MAC, "ipv4_address": BYSTANDER_IP},
)


def write_config(folder: Path) -> tuple[str, ...]:
    """The arguments that serve `CONFIG`, with all files in `folder`."""
    return (*serve(folder, CONFIG), "--log-format", "json")


@attrs.define(eq=False)
class Log:
    """What a daemon has logged so far, by a task that reads its stderr."""

    records: list[dict[str, Any]] = attrs.field(factory=list)
    _grown: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def read(self, fd: int) -> None:
        """Read from `fd`, now ours, until its end."""
        rest = b""
        async with trio.lowlevel.FdStream(fd) as stream:
            async for data in stream:
                *lines, rest = (rest + data).split(b"\n")
                self.records += map(json.loads, lines)
                self._grown.unpark_all()

    async def wait_for(self, event: str, *, after: int, nic: str) -> None:
        """Wait until a record from number `after` on says `event` of a NIC."""
        while not any(
            (record["event"], record.get("nic")) == (event, nic) for record in self.records[after:]
        ):
            await self._grown.park()


@attrs.define(eq=False)
class Scene:
    """A daemon whose first NIC is attacked while a guest is on the other."""

    pid: int
    log: Log
    path: Path
    """Where the attacked NIC listens."""
    bystander: VhostTestClient
    _nursery: trio.Nursery

    async def connect(self, **options: Any) -> VhostTestClient:
        """A frontend of the attacked NIC, with these `ClientOptions`."""
        return await VhostTestClient.connect(self._nursery, self.path, **options)

    def open_fds(self) -> int:
        """How many descriptors the daemon has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  (no Paths)

    def guest_mappings(self) -> int:
        """How many mappings of guest memory the daemon has."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        return maps.count("/memfd:vhost-test-mem")

    async def assert_unharmed(self) -> None:
        """Both NICs serve their guests, and nothing is left of the frontends that were there."""
        await arp_gateway(self.bystander, BYSTANDER_MAC, BYSTANDER_IP)
        fresh = await self.connect()
        await arp_gateway(fresh, MAC, IP)
        # Its turn came when the one before was gone, so what is said from here on is about it.
        said = len(self.log.records)
        await fresh.aclose()
        await self.log.wait_for("frontend disconnected", after=said, nic="attacked")
        await arp_gateway(self.bystander, BYSTANDER_MAC, BYSTANDER_IP)


@contextlib.asynccontextmanager
async def scene_of(pid: int, log_fd: int, folder: Path) -> AsyncIterator[Scene]:
    """The scene of a daemon that is ready; its log is read from `log_fd`, now ours."""
    log = Log()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.read, log_fd)
        bystander = await VhostTestClient.connect(nursery, folder / "bystander.sock")
        yield Scene(pid, log, folder / "attacked.sock", bystander, nursery)
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def running(daemon: Daemon, folder: Path) -> AsyncIterator[Scene]:
    """The scene of a daemon that was started with `write_config(folder)`."""
    await trio.to_thread.run_sync(daemon.wait_ready)
    assert daemon.process.stderr is not None
    log_fd = os.dup(daemon.process.stderr.fileno())
    async with scene_of(daemon.process.pid, log_fd, folder) as scene:
        yield scene
