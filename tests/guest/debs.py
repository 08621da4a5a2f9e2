"""Debian packages as raw material: downloaded by apt (which checks them), unpacked, not installed.

What is made of them is kept under ``build/guest`` of the clone, in a folder named after its
recipe; a changed recipe gets a new folder. Delete ``build/guest`` to take newer packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

BUILD_ROOT = Path(__file__).resolve().parents[2] / "build" / "guest"

_DOWNLOAD_SECONDS = 300


class DebsError(Exception):
    """A package cannot be had or unpacked; the text holds what apt or dpkg said."""


def kept(name: str, recipe: Sequence[bytes], make: Callable[[Path], None]) -> Path:
    """The folder ``build/guest/NAME-HASH``, filled by `make` when it is not there yet.

    Args:
        recipe: everything the content depends on.
        make: fills the empty folder it is given. When it raises, nothing is kept. Two processes
            may make the same folder at once; the first to finish wins.
    """
    digest = hashlib.sha256()
    for part in recipe:
        digest.update(hashlib.sha256(part).digest())
    folder = BUILD_ROOT / f"{name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    BUILD_ROOT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=BUILD_ROOT) as work:
        fresh = Path(work) / "fresh"
        fresh.mkdir()
        make(fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def unpack(packages: Sequence[str], root: Path) -> None:
    """Unpack Debian's present version of each of `packages` over the folder `root`.

    Raises:
        DebsError: apt knows no such package or cannot fetch it.
    """
    with tempfile.TemporaryDirectory(prefix="debs-", dir=root.parent) as folder:
        debs = _download(packages, Path(folder))
        for deb in debs:
            _run(["dpkg-deb", "--extract", str(deb), str(root)], cwd=root)


def dependencies(package: str) -> list[str]:
    """The names that `package` depends on directly, alternatives left out."""
    listing = _run(["apt-cache", "depends", "--important", package], cwd=Path("/"))
    words = [line.split() for line in listing.splitlines()]
    return [line[1] for line in words if len(line) == 2 and line[0] == "Depends:"]


def _download(packages: Sequence[str], folder: Path) -> list[Path]:
    # Root's apt would fetch as the user _apt, who cannot write into this folder.
    as_root = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _run(["apt-get", "--quiet", *as_root, "download", *packages], cwd=folder)
    debs = sorted(folder.glob("*.deb"))
    if len(debs) != len(set(packages)):
        raise DebsError(f"asked apt for {len(set(packages))} packages, got {len(debs)}")
    return debs


def _run(command: Sequence[str], *, cwd: Path) -> str:
    if shutil.which(command[0]) is None:
        raise DebsError(f"{command[0]} is not there: this needs Debian or a derivative")
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS
    )
    if done.returncode != 0:
        raise DebsError(
            f"{' '.join(command[:4])} … failed; does `apt-get update` help?\n{done.stderr.strip()}"
        )
    return done.stdout
