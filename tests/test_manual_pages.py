"""The manual pages name every command and option that there is, and are well-formed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mvirt_net.cli import command
from mvirt_net.exits import ExitCode

FOLDER = Path(__file__).parents[1] / "docs" / "man"
PAGES = sorted(FOLDER.glob("*.1"))
MAIN, CTL = FOLDER / "mvirt-net.1", FOLDER / "mvirt-net-ctl.1"


def commands(
    group: click.Group = command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All of them, and how they are called."""
    yield path, group
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        inner = group.get_command(ctx, name)
        assert inner is not None
        if isinstance(inner, click.Group):
            yield from commands(inner, (*path, name))
        else:
            yield (*path, name), inner


def flags(text: str) -> set[str]:
    """Those that a part of a page explains: in mdoc, ``.Fl -name`` is ``--name``."""
    lines = [line for line in text.splitlines() if line.startswith(".It Fl ")]
    words = [word for line in lines for word in re.findall(r"(?:Fl |, (?!Fl))(-?[\w-]+)", line)]
    return {f"-{word}" for word in words}


def part(text: str, name: str) -> str:
    """What a page says of a command: from its item to the next command or heading."""
    found = re.search(
        rf"^\.It Cm {name}( [^\n]*)?$(.*?)(?=^\.It Cm|^\.S)", text, re.DOTALL | re.MULTILINE
    )
    assert found, f"{name} is not there"
    return found[2]


COMMANDS = list(commands())


@pytest.mark.parametrize(("path", "one"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_and_option_is_there(path: tuple[str, ...], one: click.Command) -> None:
    if path[:1] == ("ctl",):
        text = CTL.read_text()
        explained = flags(text[: text.index(".Ss Networks")])
        if not isinstance(one, click.Group):
            explained |= flags(part(text, " ".join(path[1:])))
    else:
        text = MAIN.read_text()
        explained = flags(text)
        if path:
            part(text, " ".join(path))
    for parameter in one.params:
        if isinstance(parameter, click.Option):
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert flag in explained


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_exit_code_is_there(page: Path) -> None:
    codes = {int(code) for code in re.findall(r"^\.It (\d+)$", page.read_text(), re.MULTILINE)}
    ours = {ExitCode.OK, ExitCode.FAILURE, ExitCode.USAGE, ExitCode.NO_DAEMON}
    assert codes >= (set(ExitCode) if page == MAIN else ours | {ExitCode.NO_PERMISSION})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize(
    "command", [("mandoc", "-Tlint", "-Wwarning"), ("man", "--warnings=all", "-Tutf8", "-l")]
)
def test_well_formed(command: tuple[str, ...], page: Path) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    result = subprocess.run(
        [*command, page],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr == ""
    if command[0] == "mandoc":
        assert result.stdout == ""
