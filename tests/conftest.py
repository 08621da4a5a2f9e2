"""What holds for every test of this project."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.harness.footprint import open_files
from tests.harness.scene import Scene


@pytest.fixture(autouse=True)
def no_fd_leaks() -> Iterator[None]:
    """Fail a test that leaves more file descriptors open than it found."""
    before = open_files()
    yield
    leaked = open_files() - before
    assert not leaked, f"file descriptors left open: {dict(leaked)}"


@pytest.fixture
async def scene(nursery: trio.Nursery) -> AsyncIterator[Scene]:
    """Where a hostile test takes place; after each of them everybody else must be unharmed."""
    scene = await Scene.start(nursery)
    yield scene
    await scene.assert_unharmed()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `virtual_time` hold for a whole module: of a test's marks pytest-trio takes the nearest,
    and with `trio_mode` it puts one of its own on each test.
    """
    for mark in item.iter_markers("trio"):
        if "run" in mark.kwargs:
            item.add_marker(pytest.mark.trio(run=mark.kwargs["run"]), append=False)
            break
