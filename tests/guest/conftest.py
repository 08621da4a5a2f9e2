"""Fixtures of the tests with real frontends, and the seconds and figures of each of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .image import Image, build_image
from .testpmd import unpack_dpdk


@pytest.fixture(scope="session")
def image() -> Image:
    """The guest's kernel and initramfs."""
    return build_image()


@pytest.fixture(scope="session")
def dpdk() -> Path:
    """Where DPDK is unpacked."""
    return unpack_dpdk()


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder; its path is short enough for the name of a socket, unlike `tmp_path`'s."""
    with tempfile.TemporaryDirectory(prefix="mvirt-") as path:
        yield Path(path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long each test of this folder took, without ``--durations``, and what it measured
    (``record_property``).
    """
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" and report.nodeid.startswith("tests/guest/")
    ]
    if reports:
        terminalreporter.section("real guests and frontends")
        for report in reports:
            name = report.nodeid.partition("::")[2]
            terminalreporter.write_line(f"{report.duration:6.1f} s  {report.outcome}  {name}")
            for what, figure in report.user_properties:
                terminalreporter.write_line(f"{'':10}{what}: {figure}")
        total = sum(report.duration for report in reports)
        terminalreporter.write_line(f"{total:6.1f} s  together")
