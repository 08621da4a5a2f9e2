"""Fixtures of the tests with faults, and how many faults there were."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .shim import FaultShim

Survived = Callable[[str, int], None]
"""What `survived` is."""


@pytest.fixture(scope="session")
def shim() -> Iterator[FaultShim]:
    """One for all tests; each process is under it that was started with its environment."""
    with tempfile.TemporaryDirectory(prefix="mvirt-shim-") as folder:
        shim = FaultShim(Path(folder))
        yield shim
        shim.close()


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Survived:
    """To be called with what went wrong, and how often, once the daemon has stood it."""

    def survived(what: str, times: int) -> None:
        assert times > 0, f"{what} never happened"
        record_property("faults", (what, times))

    return survived


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults there were, by kind, and that all of them were survived."""
    faults = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "faults"
    ]
    if faults:
        terminalreporter.section("faults injected and survived")
        for what, times in faults:
            terminalreporter.write_line(f"{times:6}  {what}")
        terminalreporter.write_line(f"{sum(times for _, times in faults):6}  together")
