"""Each system call and allocation of set-up and tear-down failing in turn, in a real daemon."""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.memory import Region, TestGuestMemory
from tests.harness.process import single
from tests.harness.vhost_user import BackendHungUpError, BackendRefusedError, ProtocolFeature

from .conftest import Survived
from .daemon import IP, MAC, Scene, scene_of, write_config
from .forks import Forks, forking
from .shim import Fault, FaultShim

PATIENCE = 1.0
"""Seconds that a frontend waits for an answer which a fault may have prevented."""
EXTRA = Region(1 << 32, 2 << 20, user_offset=1 << 44)

WHILE_SERVING = [
    Fault("accept4", (errno.EMFILE, errno.ENOMEM)),
    Fault("accept4", (errno.ECONNABORTED,)),
    Fault("accept4", (errno.EMFILE,), lasting=True),
    Fault("recvmsg", (errno.ENOMEM, errno.ENOBUFS)),
    Fault("recvmsg-truncated"),
    Fault("send", (errno.ENOBUFS, errno.EPIPE)),
    Fault("eventfd", (errno.EMFILE,)),
    Fault("epoll_ctl", (errno.ENOSPC, errno.ENOMEM)),
    Fault("mmap", (errno.ENOMEM,), core_only=True),
    Fault("mmap", (errno.ENOMEM,), core_only=True, lasting=True),
    Fault("fstat", (errno.EIO,), core_only=True),
    Fault("fcntl", (errno.EPERM,), core_only=True),
    Fault("readlink", (errno.ENOMEM,), core_only=True),
    Fault("malloc", (errno.ENOMEM,), core_only=True),
    Fault("malloc", (errno.ENOMEM,), core_only=True, lasting=True),
    Fault("calloc", (errno.ENOMEM,), core_only=True),
    Fault("calloc", (errno.ENOMEM,), core_only=True, lasting=True),
]
AT_START = [
    Fault("epoll_create1", (errno.EMFILE,)),
    Fault("socketpair", (errno.EMFILE,)),
    Fault("socket", (errno.EMFILE,)),
    Fault("fchmod", (errno.EPERM,)),
    Fault("bind", (errno.ENOSPC, errno.EACCES)),
    Fault("listen", (errno.ENOMEM, errno.EADDRINUSE)),
    Fault("epoll_ctl", (errno.ENOSPC,)),
    Fault("malloc", (errno.ENOMEM,), core_only=True),
    Fault("calloc", (errno.ENOMEM,), core_only=True),
]


def ids(faults: list[Fault]) -> dict[str, Any]:
    """Arguments of parametrize."""
    return {"argvalues": faults, "ids": [str(fault).replace(" ", "-") for fault in faults]}


async def live(scene: Scene) -> None:
    """The life of a frontend: a question, more memory, less, a reboot, a stop, the end."""
    client: VhostTestClient | None = None
    memory = TestGuestMemory([EXTRA], data_offset=0)
    try:
        client = await scene.connect(protocol_features=~ProtocolFeature(0), err=True)
        await arp_gateway(client, MAC, IP)
        [extra] = memory.get_region_info()
        await client.connection.add_mem_region(extra)
        await client.connection.remove_mem_region(extra)
        await client.reset_driver()
        await arp_gateway(client, MAC, IP)
        for index in range(2):
            await client.stop_vring(index)
    finally:
        memory.close()
        if client is not None:
            client.disconnect()
            await client.aclose()


class End(enum.Enum):
    """How the life of a frontend ended."""

    PEACE = enum.auto()
    """All of it was lived."""
    FAILURE = enum.auto()
    """The backend refused something or hung up."""
    SILENCE = enum.auto()
    """An answer did not come."""


async def attack(scene: Scene) -> End:
    """Let a frontend live as far as it gets."""
    end = End.SILENCE
    try:
        with trio.move_on_after(PATIENCE):
            await live(scene)
            end = End.PEACE
    except* (BackendHungUpError, BackendRefusedError, ConnectionResetError):
        end = End.FAILURE
    return end


@pytest.fixture(scope="module")
def forks_of_all(shim: FaultShim) -> Iterator[Forks]:
    with forking(shim.environ) as forks:
        yield forks


@pytest.fixture
def forks(forks_of_all: Forks) -> Iterator[Forks]:
    """Daemons under the shim, one at a time."""
    yield forks_of_all
    forks_of_all.end()


@contextlib.asynccontextmanager
async def forked(forks: Forks, folder: Path) -> AsyncIterator[Scene]:
    """The scene of such a daemon; the end of the daemon is the test's."""
    log_path = folder / "log"
    os.mkfifo(log_path)
    log_fd = os.open(log_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    pid = forks.start(write_config(folder), log_path, armed=False)
    assert forks.wait_ready()
    async with scene_of(pid, log_fd, folder) as scene:
        yield scene


def assert_only_said(records: list[dict[str, Any]], *, noticed: bool, at_most: int = 1) -> None:
    """The log has a line about the fault if anybody noticed it, and it is no bug of ours."""
    assert not [record for record in records if "exception" in record]
    lines = [record for record in records if record["level"] != "info"]
    assert int(noticed) <= len(lines) <= at_most, lines


@pytest.mark.parametrize("fault", **ids(WHILE_SERVING))
async def test_while_serving(
    fault: Fault, shim: FaultShim, forks: Forks, tmp_path: Path, survived: Survived
) -> None:
    nth, total = 1, 0
    async with forked(forks, tmp_path) as scene:
        await scene.assert_unharmed()
        left = scene.open_fds(), scene.guest_mappings()
        while True:
            said = len(scene.log.records)
            with shim.failing(fault, nth):
                end = await attack(scene)
            await scene.assert_unharmed()
            assert (scene.open_fds(), scene.guest_mappings()) == left, nth
            # One that comes late is served after it has gone, and that has a line of its own.
            at_most, noticed = 1 + fault.lasting, end is End.FAILURE
            assert_only_said(scene.log.records[said:], noticed=noticed, at_most=at_most)
            if shim.failed > 0:
                nth, total = nth + 1, total + shim.failed
            elif end is End.PEACE:
                break
            # Else the machine was too slow for the call to be reached: once more.
        os.kill(scene.pid, signal.SIGTERM)
        assert await trio.to_thread.run_sync(forks.wait) == ExitCode.OK
    survived(f"while serving: {fault}", total)


def complaints(stderr: Path) -> list[str]:
    """What the daemon has said of its end besides its log."""
    text = stderr.read_text()
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("mvirt-net: ")]


@pytest.mark.parametrize("fault", **ids(AT_START))
def test_at_start(
    fault: Fault, shim: FaultShim, forks: Forks, tmp_path: Path, survived: Survived
) -> None:
    # One NIC has all the allocations that there are.
    args = single(tmp_path / "s.sock") if fault.core_only else write_config(tmp_path)
    stderr, total = tmp_path / "log", 0
    for nth in itertools.count(1):
        with shim.failing(fault, nth, armed=False):
            pid = forks.start(args, stderr, armed=True)
            started = forks.wait_ready()
        if started:
            os.kill(pid, signal.SIGTERM)
        code = forks.wait()
        if started:
            assert (code, complaints(stderr)) == (ExitCode.OK, []), nth
        else:
            assert code in {ExitCode.FAILURE, ExitCode.NO_PERMISSION}, nth
            assert len(complaints(stderr)) == 1, nth
        assert list(tmp_path.glob("*.sock")) == [], nth
        if shim.failed == 0:
            assert started
            break
        total += shim.failed
    survived(f"at start: {fault}", total)


async def test_at_stop(shim: FaultShim, forks: Forks, tmp_path: Path, survived: Survived) -> None:
    """Little can fail by then: what was got is given back."""
    fault, total = Fault("unlink", (errno.EACCES, errno.EROFS)), 0
    for nth in itertools.count(1):
        folder = tmp_path / str(nth)
        folder.mkdir()
        async with forked(forks, folder) as scene:
            said = len(scene.log.records)
            with shim.failing(fault, nth):
                os.kill(scene.pid, signal.SIGTERM)
                assert await trio.to_thread.run_sync(forks.wait) == ExitCode.OK, nth
            assert_only_said(scene.log.records[said:], noticed=False)
        if shim.failed == 0:
            break
        total += shim.failed
    survived(f"at stop: {fault}", total)
