"""A log that cannot be written: the network goes on, and so does the way to the exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.process import started
from tests.harness.vhost_user import BackendRefusedError

from .conftest import Survived
from .daemon import IP, MAC, write_config
from .shim import Fault, FaultShim


@contextlib.contextmanager
def disk_full() -> Iterator[dict[str, Any]]:
    with Path("/dev/full").open("wb") as full:
        yield {"stderr": full}


@contextlib.contextmanager
def reader_gone() -> Iterator[dict[str, Any]]:
    reader, writer = os.pipe()
    os.close(reader)
    yield {"stderr": writer}
    os.close(writer)


@contextlib.contextmanager
def reader_asleep() -> Iterator[dict[str, Any]]:
    reader, writer = os.pipe()
    fill(writer)
    yield {"stderr": writer}
    os.close(writer)
    os.close(reader)


@contextlib.contextmanager
def closed() -> Iterator[dict[str, Any]]:
    yield {"stderr": None, "preexec_fn": close_stderr}


def close_stderr() -> None:
    os.close(2)


def fill(pipe: int) -> None:
    """Leave no room in a pipe."""
    while select.select([], [pipe], [], 0)[1]:
        os.write(pipe, bytes(select.PIPE_BUF))


@pytest.fixture(params=[disk_full, reader_gone, reader_asleep, closed])
def broken_log(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Arguments of `started` for a standard error that takes nothing."""
    with request.param() as options:
        yield options


@contextlib.asynccontextmanager
async def refused(path: Path, times: int) -> AsyncIterator[None]:
    """A guest is served while its frontend makes the daemon log; it is there during the block."""
    async with trio.open_nursery() as nursery:
        client = await VhostTestClient.connect(nursery, path)
        for _ in range(times):
            with pytest.raises(BackendRefusedError):
                await client.connection.set_vring_num(0, 3)
            await arp_gateway(client, MAC, IP)
        yield
        await client.aclose()


async def test_guests_are_served(broken_log: dict[str, Any], tmp_path: Path) -> None:
    with started(*write_config(tmp_path), **broken_log) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        async with refused(tmp_path / "attacked.sock", 5):
            pass
        daemon.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK
    assert list(tmp_path.glob("*.sock")) == []


def test_the_exit_code_tells_anyway(broken_log: dict[str, Any]) -> None:
    with started("serve", "--config", "/none", **broken_log) as daemon:
        assert daemon.wait() == ExitCode.BAD_CONFIG


async def test_what_was_lost_is_said(tmp_path: Path) -> None:
    """A pipe that fills up while nobody reads it, and is read again."""
    reader, writer = os.pipe()
    with started(*write_config(tmp_path), stderr=writer) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        fill(writer)
        async with refused(tmp_path / "attacked.sock", 5):
            unread = os.read(reader, 1 << 20)
        daemon.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK
        os.close(writer)
        with os.fdopen(reader, "rb") as rest:
            text = unread + rest.read()
    records = [json.loads(line) for line in text.replace(b"\0", b"").splitlines()]
    lost = [record["lost_lines"] for record in records if "lost_lines" in record]
    # Connected, and refused five times.
    assert lost == [6]
    events = [record["event"] for record in records]
    assert "serving" in events
    assert events[-1] == "stopped"


async def test_each_line_that_fails(shim: FaultShim, tmp_path: Path, survived: Survived) -> None:
    """A file on a disk that is full, for one line after the other."""
    fault, total = Fault("write", (errno.ENOSPC, errno.EIO), fd=2), 0
    path, log_path = tmp_path / "attacked.sock", tmp_path / "log"
    with (
        log_path.open("wb") as log,
        started(*write_config(tmp_path), stderr=log, env=shim.environ) as daemon,
    ):
        await trio.to_thread.run_sync(daemon.wait_ready)
        while True:
            with shim.failing(fault, total + 1):
                # The second one is served when the end of the first one has been logged.
                for _ in range(2):
                    async with refused(path, 1):
                        pass
            if shim.failed == 0:
                break
            total += 1
        daemon.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK
    records = [json.loads(line) for line in log_path.read_text().splitlines()]
    assert [record for record in records if "exception" in record] == []
    assert sum(record.get("lost_lines", 0) for record in records) == total
    survived(f"log: {fault}", total)
