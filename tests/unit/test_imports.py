"""What is loaded, and when: who asks a running daemon for a list does not wait for trio and C."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import mvirt_net
from mvirt_net import ffi
from mvirt_net.exits import ExitCode
from mvirt_net.ffi.build import LINK_FLAGS
from tests.harness.ctl import answer, answering, environment

HEAVY = {
    *("trio", "asyncio", "structlog", "cattrs", "dpkt", "sqlite3", "hypercorn", "google.protobuf"),
    *("prometheus_client", "mvirt_net.model", "mvirt_net.ffi", "mvirt_net.ffi._core"),
}
PROGRAM = """
import json, sys
from mvirt_net.cli import main
code = main(sys.argv[1:])
print()
print(json.dumps([code, sorted(sys.modules)]))
"""
OLD_PROCESSOR = """
import sys
from mvirt_net.cli import main

class Loader:
    def find_spec(self, name, *_):
        if name == "mvirt_net.ffi._core":
            raise ImportError("_core.abi3.so: CPU ISA level is lower than required")

sys.meta_path.insert(0, Loader())
sys.exit(main(sys.argv[1:]))
"""


def loaded_by(program: str, *args: str, address: Path | str = "") -> tuple[int, set[str]]:
    """The exit code of a command, and the modules that are there in the end."""
    result = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=environment(address),
        capture_output=True,
        text=True,
        check=True,
    )
    code, modules = json.loads(result.stdout.splitlines()[-1])
    return code, set(modules)


def test_client_loads_nothing_of_the_daemon(tmp_path: Path) -> None:
    with answering(tmp_path / "s", answer({"networks": []})):
        code, modules = loaded_by(PROGRAM, "ctl", "network", "list", address=tmp_path / "s")
    assert code == ExitCode.OK
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["--print-capabilities"], ["serve", "-h"], ["ctl", "-h"]]
)
def test_nor_does_who_only_asks_for_help(args: Sequence[str]) -> None:
    code, modules = loaded_by(PROGRAM, *args)
    assert code == ExitCode.OK
    assert modules & HEAVY == set()


def test_nor_does_the_import_of_the_package() -> None:
    program = "import json, sys, mvirt_net; print(json.dumps([0, sorted(sys.modules)]))"
    _, modules = loaded_by(program)
    assert modules & HEAVY == set()


class TestOldProcessor:
    def test_is_told_what_is_needed(self, tmp_path: Path) -> None:
        args = ("--socket-path", f"{tmp_path}/s", "--address", "10.0.0.5")
        result = subprocess.run(
            [sys.executable, "-c", OLD_PROCESSOR, *args],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == ExitCode.FAILURE
        [line] = result.stderr.splitlines()
        assert line.startswith("mvirt-net: this build needs a processor with SSE 4.2 and POPCNT")

    @pytest.mark.skipif(not LINK_FLAGS, reason="the core is for every processor of this kind")
    def test_extension_says_what_it_needs(self) -> None:
        """By that mark glibc's loader goes: GNU_PROPERTY_X86_ISA_1_NEEDED."""
        notes = subprocess.run(
            ["readelf", "--notes", "--wide", ffi._core.__file__],
            capture_output=True,
            text=True,
            check=True,
        )
        [needed] = re.findall("x86 ISA needed: (.*)", notes.stdout)
        assert "x86-64-v2" in needed


class TestPublicNames:
    def test_are_all_there(self) -> None:
        for name in mvirt_net.__all__:
            assert getattr(mvirt_net, name) is not None
        assert set(mvirt_net.__all__) <= set(dir(mvirt_net))

    def test_type_checkers_are_told_the_same(self) -> None:
        tree = ast.parse(Path(mvirt_net.__file__).read_text())
        told = {
            alias.asname: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for alias in node.names
        }
        assert told.pop("__version__") == "_version"
        assert told == mvirt_net._HOMES

    def test_another_one_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'bogus'"):
            getattr(mvirt_net, "bogus")  # noqa: B009

    def test_are_all_in_the_reference(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "reference" / "python.md").read_text()
        rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
        named = [name for row in rows for name in re.findall("`(.*?)`", row)]
        assert sorted(named) == sorted(mvirt_net.__all__)
