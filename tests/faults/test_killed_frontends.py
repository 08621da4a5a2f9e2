"""Frontends that die after every message of the recorded handshakes, and within every one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from mvirt_net.vhost_user import Outcome
from tests.harness.exchanges import arp_gateway
from tests.harness.footprint import open_files
from tests.harness.scene import IP, MAC, Scene
from tests.harness.vhost_user import HEADER
from tests.unit.vhost_user_frontends import CloudHypervisor, Qemu, VirtioUser
from tests.unit.vhost_user_peer import Frontend

from .conftest import Survived
from .victims import MEMORY_NAME, Line, Victims, speak, victims


class Recording(Frontend):
    """Notes what a frontend says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lines: list[Line] = []

    def exchange(self, request: int, payload: bytes = b"", fds: int = 0, flags: int = 1) -> Outcome:
        outcome = super().exchange(request, payload, fds, flags)
        reply = outcome.reply or b""
        self.lines.append(Line(request, flags, payload.hex(), fds, len(reply)))
        return outcome


class RecordedQemu(Recording, Qemu):
    def live(self) -> None:
        self.start()
        self.driver_ok(0, 0)
        self.driver_down()


class RecordedVirtioUser(Recording, VirtioUser):
    def live(self) -> None:
        self.device.index_at_stop = 99
        self.probe()
        self.start()
        self.stop()


class RecordedCloudHypervisor(Recording, CloudHypervisor):
    def live(self) -> None:
        self.device.index_at_stop = 77
        self.connect()
        self.activate(0, 0)
        self.reset()


Recorded = RecordedQemu | RecordedVirtioUser | RecordedCloudHypervisor

CONVERSATIONS: dict[str, Callable[[], Recorded]] = {
    "QEMU": lambda: RecordedQemu(memory_slots=False),
    "QEMU with memory slots": lambda: RecordedQemu(memory_slots=True),
    "DPDK virtio-user": RecordedVirtioUser,
    "cloud-hypervisor": RecordedCloudHypervisor,
}


def cuts(line: Line) -> Iterator[int]:
    """How many bytes of a message come: half a header, half a payload, all."""
    yield HEADER.size // 2
    if line.payload:
        yield HEADER.size + len(line.payload) // 4
    yield len(line.data)


@attrs.define(eq=False)
class Closing:
    """A frontend that closes its socket; the counterpart of `Victims`."""

    def speak(self, path: Path, lines: list[Line], last_size: int) -> None:
        with contextlib.ExitStack() as at_end:
            speak(path, lines, last_size, at_end)


@pytest.fixture(scope="module")
def killed() -> Iterator[Victims]:
    with victims() as process:
        yield process


@pytest.fixture(params=["closed", "killed"])
def end(request: pytest.FixtureRequest, killed: Victims) -> Closing | Victims:
    """How frontends end."""
    return Closing() if request.param == "closed" else killed


async def assert_nothing_left(scene: Scene, before: Any) -> None:
    await scene.ask_bystander()
    fresh = await scene.backend.connect()
    await arp_gateway(fresh, MAC, IP)
    await fresh.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert open_files() == before
    # The bystander's, here and there.
    assert Path("/proc/self/maps").read_text().count(MEMORY_NAME) == 2


@pytest.mark.parametrize("who", CONVERSATIONS)
async def test_at_every_step(
    nursery: trio.Nursery,
    who: str,
    end: Closing | Victims,
    survived: Survived,
    caplog: pytest.LogCaptureFixture,
) -> None:
    frontend = CONVERSATIONS[who]()
    frontend.live()
    lines = frontend.lines
    scene = await Scene.start(nursery)
    await scene.ask_bystander()
    before, times = open_files(), 0
    for number, line in enumerate(lines, 1):
        # To the backend both ends look the same, so one of them is enough for the rest.
        for size in cuts(line) if isinstance(end, Victims) else [len(line.data)]:
            path = scene.backend.socket_path
            await trio.to_thread.run_sync(end.speak, path, lines[:number], size)
            await assert_nothing_left(scene, before)
            times += 1
    assert [record.message for record in caplog.records if record.exc_info] == []
    how = "closed" if isinstance(end, Closing) else "killed"
    survived(f"frontend {how} in its handshake: {who}", times)
