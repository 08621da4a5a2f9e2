"""What holds for every test of this project."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest
import trio

from tests.harness.backend import TestBackend
from tests.harness.footprint import open_files
from tests.harness.hugetlb import reserved_pages
from tests.harness.scene import Scene
from tests.layouts import PACKED, SPLIT
from tests.unit import rig

# The same examples each time, and no limit but that of every test: machines stand still at times.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# A shell that runs the tests in the background has them ignore it, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]

HUGE_PAGES = 16
"""Of 2 MiB. DPDK maps eight, and takes one more before it gives another back."""


@pytest.fixture(autouse=True)
def no_fd_leaks() -> Iterator[None]:
    """Fail a test that leaves more file descriptors open than it found."""
    before = open_files()
    yield
    leaked = open_files() - before
    assert not leaked, f"file descriptors left open: {dict(leaked)}"


@contextlib.contextmanager
def _state_directory() -> Iterator[None]:
    """Where a daemon that a test starts keeps its state by default: nowhere near the host's."""
    before = os.environ.get("STATE_DIRECTORY")
    folder = Path(tempfile.gettempdir(), f"mvirt-net-state-{uuid.uuid4()}")
    os.environ["STATE_DIRECTORY"] = str(folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)
    if before is None:
        del os.environ["STATE_DIRECTORY"]
    else:
        os.environ["STATE_DIRECTORY"] = before


@pytest.fixture(autouse=True, scope="session")
def state_directory_of_modules() -> Iterator[None]:
    """For daemons that serve more than one test."""
    with _state_directory():
        yield


@pytest.fixture(autouse=True)
def state_directory() -> Iterator[None]:
    """For those of one test."""
    with _state_directory():
        yield


@pytest.fixture(params=[SPLIT, PACKED], ids=["split", "packed"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The layout of all rings of a test's guests: see `tests.layouts`."""
    features: int = request.param
    monkeypatch.setattr(TestBackend, "layout", features)
    monkeypatch.setattr(rig, "layout", features)
    return features


@pytest.fixture
async def scene(nursery: trio.Nursery) -> AsyncIterator[Scene]:
    """Where a hostile test takes place; after each of them everybody else must be unharmed."""
    scene = await Scene.start(nursery)
    yield scene
    await scene.assert_unharmed()


@pytest.fixture
def logging_left_alone() -> Iterator[None]:
    """`cli.main` sets up logging for its process, which is that of all tests here."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Reserves some huge pages for a test, if there are none; only root may."""
    with reserved_pages(HUGE_PAGES):
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `virtual_time` hold for a whole module: of a test's marks pytest-trio takes the nearest,
    and with `trio_mode` it puts one of its own on each test.
    """
    for mark in item.iter_markers("trio"):
        if "run" in mark.kwargs:
            item.add_marker(pytest.mark.trio(run=mark.kwargs["run"]), append=False)
            break


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` makes: the wheel is built from the source distribution."""
    if find_spec("build") is None or find_spec("auditwheel") is None:
        pytest.skip("needs the group 'dist' of pyproject.toml, which 'make test' installs")
    folder = tmp_path_factory.mktemp("dist")
    command = [str(ROOT / "scripts" / "dist"), sys.executable, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
