"""Completion as a shell does it, with the files that are installed for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.ctl import answer, answering, environment
from tests.harness.terminal import Terminal, on_terminal

FOLDER = Path(__file__).parents[1] / "contrib" / "completion"
PROGRAM = f"""#!{sys.executable}
import sys
from mvirt_net.cli import run
sys.exit(run())
"""
NICS = answer({"nics": [{"name": "vm1"}, {"name": "vm2"}, {"name": "db"}]})
NETWORKS = answer({"networks": [{"name": "blue"}]})


def make_program(folder: Path) -> None:
    """The command, to be found in `folder`."""
    program = folder / "mvirt-net"
    program.write_text(PROGRAM)
    program.chmod(0o755)


def complete(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words after ``mvirt-net``."""
    make_program(tmp_path)
    script = f"""
        PATH={tmp_path}:$PATH
        source {FOLDER / "bash" / "mvirt-net"}
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


FILES = {"bash": "bash/mvirt-net", "zsh": "zsh/_mvirt-net", "fish": "fish/mvirt-net.fish"}


@pytest.mark.parametrize("shell", FILES)
def test_there_is_a_file_that_the_shell_can_read(shell: str) -> None:
    path = FOLDER / FILES[shell]
    assert f"_MVIRT_NET_COMPLETE={shell}_complete" in path.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", path], check=True)


@contextlib.contextmanager
def zsh(tmp_path: Path) -> Iterator[Terminal]:
    """A zsh that waits for a line, and finds the file as an installed one is found."""
    make_program(tmp_path)
    (tmp_path / ".zshrc").write_text(
        f"fpath=({FOLDER / 'zsh'} $fpath)\n"
        "autoload -Uz compinit\n"
        "compinit -u -D\n"
        "unsetopt LIST_BEEP PROMPT_SP\n"
        "PROMPT='ready> '\n"
    )
    env = environment(tmp_path / "s") | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ZDOTDIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    with on_terminal(["zsh", "-d", "-i"], env, lines=40) as terminal:
        terminal.expect(b"ready> ")
        yield terminal


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not here")
class TestZsh:
    def test_the_only_one_is_put_in(self, tmp_path: Path) -> None:
        with zsh(tmp_path) as terminal:
            terminal.type(b"mvirt-net ctl nic de\t")
            terminal.expect(b"mvirt-net ctl nic de")
            terminal.expect(b"lete")

    def test_several_are_listed_with_what_they_do(self, tmp_path: Path) -> None:
        with zsh(tmp_path) as terminal:
            terminal.type(b"mvirt-net ctl network \t\t")
            for name in (b"create", b"delete", b"list", b"show", b"update"):
                terminal.expect(name)
                terminal.expect(b"-- ")

    def test_names_of_nics(self, tmp_path: Path) -> None:
        with answering(tmp_path / "s", NICS, NICS), zsh(tmp_path) as terminal:
            terminal.type(b"mvirt-net ctl nic show d\t")
            terminal.expect(b"nic show db")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not here")
class TestFish:
    def complete(self, tmp_path: Path, line: str) -> list[str]:
        """What fish offers at the end of a line, each with what it says of it."""
        make_program(tmp_path)
        script = 'source $argv[1]; complete --do-complete "$argv[2]"'
        env = environment(tmp_path / "s") | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
        }
        result = subprocess.run(
            ["fish", "--no-config", "-c", script, str(FOLDER / FILES["fish"]), line],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == ""
        return result.stdout.splitlines()

    def test_verbs(self, tmp_path: Path) -> None:
        assert self.complete(tmp_path, "mvirt-net ctl nic d") == [
            "delete\tDelete a NIC; its guest is cut off."
        ]

    def test_options(self, tmp_path: Path) -> None:
        offered = self.complete(tmp_path, "mvirt-net ctl top --s")
        assert [line.partition("\t")[0] for line in offered] == ["--socket", "--sort"]

    def test_names_of_nics(self, tmp_path: Path) -> None:
        with answering(tmp_path / "s", NICS):
            assert self.complete(tmp_path, "mvirt-net ctl nic show vm") == ["vm1", "vm2"]
