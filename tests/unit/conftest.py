"""Fixtures of the unit tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.process import NOBODY


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of nobody's in which everybody can reach the sockets; `tmp_path` is root's alone."""
    with tempfile.TemporaryDirectory(prefix="mvirt-net-") as name:
        path = Path(name)
        path.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        yield path
