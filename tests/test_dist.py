"""What is published: a wheel that needs no compiler, and a source distribution with everything."""

from __future__ import annotations

import os
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import trio

from mvirt_net import __version__
from tests.harness.process import MAC, serves_a_guest, single, started

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.dist,
    pytest.mark.timeout(300),
]


def the_only(folder: Path, pattern: str) -> Path:
    [path] = folder.glob(pattern)
    return path


def test_source_distribution_is_the_repository(dist: Path) -> None:
    with tarfile.open(the_only(dist, "*.tar.gz")) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git repository")
    # Of a file that is removed, but not in git yet, there is nothing to pack.
    tracked = {name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()}
    assert tracked - packed == set()
    built = {name for name in packed if name.endswith((".so", ".o", ".pyc", "/_core.c"))}
    assert built == set()


def test_wheel_is_for_all_pythons_and_complete(dist: Path) -> None:
    wheel = the_only(dist, "*.whl")
    assert wheel.name.startswith(f"mvirt_net-{__version__}-cp311-abi3-manylinux_")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for suffix in (
        *("/licenses/LICENSE", "mvirt_net/py.typed", "mvirt_net/ffi/_core.abi3.so"),
        *("/systemd/mvirt-net.service", "/qemu/50-mvirt-net.json", "/mvirt-net.toml"),
        *("/man/man1/mvirt-net.1", "/man/man1/mvirt-net-ctl.1"),
        *("/bash-completion/completions/mvirt-net", "/zsh/site-functions/_mvirt-net"),
        *("/fish/vendor_completions.d/mvirt-net.fish", "/prometheus/mvirt-net.rules.yml"),
    ):
        assert [name for name in names if name.endswith(suffix)], suffix
    assert [name for name in names if name.endswith((".c", ".h"))] == []


async def test_installed_without_a_compiler(
    dist: Path, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """A new environment gets the wheel, and what that needs, and serves a guest."""
    folder = tmp_path / "venv"
    # Its Python is found by its full name, whatever is in the way of the one that runs the tests.
    await trio.to_thread.run_sync(lambda: venv.create(folder, with_pip=True))
    python = folder / "bin" / "python"
    # No compiler to be found, and nothing of this Python but what pip is told of its index.
    env = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME"))}
    env |= {"PATH": str(folder / "bin"), "CC": "false"}
    install = ("-m", "pip", "install", "-q", "--only-binary", ":all:")
    await trio.run_process([python, *install, the_only(dist, "*.whl")], env=env)
    said = await trio.run_process(
        [folder / "bin" / "mvirt-net", "--version"], env=env, capture_stdout=True
    )
    assert said.stdout.decode() == f"mvirt-net {__version__}\n"
    assert (folder / "share" / "mvirt-net" / "systemd" / "mvirt-net.service").is_file()
    args = (*single(tmp_path / "s"), "--mac-addr", MAC)
    with started(*args, python=python, env=env, cwd=tmp_path) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        await serves_a_guest(nursery, tmp_path / "s")
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        assert f"{folder}/lib" in maps
        assert str(ROOT) not in maps
        assert daemon.stop() == 0
