"""gRPC as the official client speaks it to a live daemon, over TCP and a unix socket."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import mvirt_net.api
from tests.harness.process import Daemon, ask_features, serve, started, two_nics

ROOT = Path(__file__).parents[1]

CASES = (
    "every_verb",
    "every_error",
    "watching",
    "deadlines",
    "compression",
    "many_at_once",
    "healthy",
    "reflected",
)


@contextlib.contextmanager
def client(case: str, target: str) -> Iterator[subprocess.Popen[str]]:
    """A case of `tests.harness.grpc_client`, which must succeed."""
    command = [sys.executable, "-m", "tests.harness.grpc_client", case, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
            assert process.wait() == 0
        finally:
            process.kill()


def wait_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@contextlib.contextmanager
def serving(folder: Path, address: str) -> Iterator[tuple[Daemon, str]]:
    """A daemon with the NICs of two_nics, and where it is controlled."""
    with started(*two_nics(folder), "--grpc", address) as daemon:
        actual = daemon.wait_event("control interface")["address"]
        daemon.wait_ready()
        yield daemon, actual


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))  # noqa: PTH208


@pytest.mark.parametrize("case", CASES)
def test_over_tcp(case: str, tmp_path: Path) -> None:
    with serving(tmp_path, "[::1]:0") as (daemon, address):
        with client(case, address):
            pass
        assert daemon.stop() == 0


def test_over_a_unix_socket_without_leaving_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with serving(tmp_path, f"unix:{path}") as (daemon, address):
        assert path.stat().st_mode & 0o777 == 0o660
        before = descriptors(daemon)
        for case in ("every_verb", "watching"):
            with client(case, address):
                pass
        # The daemon closes a connection some time after its client.
        while descriptors(daemon) > before:
            time.sleep(0.01)
        assert daemon.stop() == 0
    assert not path.exists()


def test_the_program_of_the_how_to(tmp_path: Path) -> None:
    """It prints what the page says, but for where and what the daemon of this test is."""
    page = (ROOT / "docs" / "how-to" / "control-plane.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    [printed] = re.findall(r"^prints\n\n```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    proto = Path(mvirt_net.api.__file__).parent / "proto"
    compiler = (sys.executable, "-m", "grpc_tools.protoc", "-I", proto)
    outputs = ("--python_out=.", "--grpc_python_out=.", "net.proto")
    subprocess.run([*compiler, *outputs], cwd=tmp_path, check=True)
    with started(*serve(tmp_path, ""), "--grpc", "[::1]:0") as daemon:
        address = str(daemon.wait_event("control interface")["address"])
        daemon.wait_ready()
        command = [sys.executable, "-c", program.replace("[::1]:50054", address)]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = printed.replace("/run/mvirt-net", str(tmp_path))
    assert told.stdout == expected.replace("version 0.1.0", f"version {mvirt_net.__version__}")


def test_the_state_of_a_nic_follows_its_frontend(tmp_path: Path) -> None:
    with serving(tmp_path, "[::1]:0") as (daemon, address):
        with client("frontend", address) as watcher:
            wait_line(watcher, "watching")
            with socket.socket(socket.AF_UNIX) as frontend:
                frontend.connect(str(tmp_path / "vm1.sock"))
                ask_features(frontend)
                wait_line(watcher, "active")
        assert daemon.stop() == 0


def test_watchers_do_not_delay_the_end(tmp_path: Path) -> None:
    with serving(tmp_path, "[::1]:0") as (daemon, address), client("stopped", address) as watcher:
        wait_line(watcher, "watching")
        assert daemon.stop() == 0
