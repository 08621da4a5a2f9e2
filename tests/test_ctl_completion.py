"""Completion as a shell does it, with the files that are installed for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.ctl import answer, answering, environment

FOLDER = Path(__file__).parents[1] / "contrib" / "completion"
PROGRAM = f"""#!{sys.executable}
import sys
from mvirt_net.cli import run
sys.exit(run())
"""
NICS = answer({"nics": [{"name": "vm1"}, {"name": "vm2"}, {"name": "db"}]})
NETWORKS = answer({"networks": [{"name": "blue"}]})


def complete(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words after ``mvirt-net``."""
    program = tmp_path / "mvirt-net"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        source {FOLDER / "mvirt-net.bash"}
        complete -p mvirt-net >/dev/null || exit
        COMP_WORDS=(mvirt-net "$@") COMP_CWORD=$#
        _mvirt_net_completion mvirt-net
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        env=environment(tmp_path / "s"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.split()


def test_verbs(tmp_path: Path) -> None:
    assert complete(tmp_path, "ctl", "") == ["capture", "network", "nic", "stats", "top", "watch"]
    assert complete(tmp_path, "ctl", "nic", "d") == ["delete"]


def test_options(tmp_path: Path) -> None:
    assert complete(tmp_path, "ctl", "top", "--s") == ["--sort", "--socket"]
    assert complete(tmp_path, "ctl", "top", "--sort", "d") == ["drops"]


@pytest.mark.parametrize(
    "verb", [("nic", "show"), ("nic", "update"), ("nic", "delete"), ("stats",)]
)
def test_names_of_nics(tmp_path: Path, verb: tuple[str, ...]) -> None:
    with answering(tmp_path / "s", NICS):
        assert complete(tmp_path, "ctl", *verb, "vm") == ["vm1", "vm2"]


@pytest.mark.parametrize("words", [("network", "delete", "b"), ("nic", "create", "--network", "")])
def test_names_of_networks(tmp_path: Path, words: tuple[str, ...]) -> None:
    with answering(tmp_path / "s", NETWORKS):
        assert complete(tmp_path, "ctl", *words) == ["blue"]


def test_names_of_captures(tmp_path: Path) -> None:
    with answering(tmp_path / "s", answer({"captures": [{"file": "a.pcapng"}]})):
        assert complete(tmp_path, "ctl", "capture", "stop", "") == ["a.pcapng"]


def test_names_from_the_socket_on_the_line(tmp_path: Path) -> None:
    with answering(tmp_path / "other", NICS):
        words = ("ctl", "-S", f"{tmp_path}/other", "nic", "show", "d")
        assert complete(tmp_path, *words) == ["db"]


def test_no_daemon_is_no_error(tmp_path: Path) -> None:
    assert complete(tmp_path, "ctl", "nic", "show", "") == []


@pytest.mark.parametrize("data", [b"nonsense", answer([]), answer({"nics": [{}]}), answer({})])
def test_nonsense_is_no_error(tmp_path: Path, data: bytes) -> None:
    with answering(tmp_path / "s", data):
        assert complete(tmp_path, "ctl", "nic", "show", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_file_that_the_shell_can_read(shell: str) -> None:
    path = FOLDER / f"mvirt-net.{shell}"
    assert f"_MVIRT_NET_COMPLETE={shell}_complete" in path.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", path], check=True)
