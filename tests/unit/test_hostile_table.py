"""The table of hostile input is whole, and every check and test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import attrs
import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/reference/hostile-input.md"
ROWS = [
    f"{kind}{n}" for kind, last in (("M", 57), ("R", 27), ("P", 17)) for n in range(1, last + 1)
]


@attrs.frozen
class Row:
    """One line of the table."""

    name: str
    what: str
    reaction: str
    checks: tuple[tuple[str, str], ...]
    """File below ``src/mvirt_net``, function or method."""
    tests: tuple[str, ...]


def read_rows() -> list[Row]:
    rows = []
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"[MRP]\d+", cells[0]):
            name, what, reaction, checks, tests = cells
            files = re.findall(r"`([^:`]+): ([^`]+)`", checks)
            rows.append(
                Row(name, what, reaction, tuple(files), tuple(re.findall(r"`(\w+)`", tests)))
            )
    return rows


def without_mutant() -> set[str]:
    return set(re.findall(r"[MRP]\d+", TABLE.read_text().split("## Without a mutant")[1]))


def functions(path: Path) -> set[str]:
    """What a source file defines: functions, and methods as ``Class.name``."""
    text = path.read_text()
    if path.suffix in (".c", ".h"):
        return set(re.findall(r"^[a-z][^;={}()]*?\*?(\w+)\([^;{}]*\)\n\{", text, re.MULTILINE))
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if hasattr(inner, "name")}
    return names


@cache
def texts_of_tests() -> dict[str, str]:
    """By the name of a test all that stands in its files beside it: its own source, its ids."""
    tests: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        ids = " ".join(text for text in strings_in(tree) if re.match(r"[mrpMRP]\d+\b", text))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                tests[node.name] = f"{tests.get(node.name, '')} {node.name.replace('_', ' ')} {ids}"
    return tests


def strings_in(tree: ast.AST) -> set[str]:
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {value for value in constants if isinstance(value, str)}


def test_every_row_is_there_once() -> None:
    assert [row.name for row in read_rows()] == ROWS


@pytest.mark.parametrize("row", read_rows(), ids=lambda row: row.name)
def test_row(row: Row) -> None:
    assert row.what
    assert row.reaction
    assert row.checks
    assert row.tests
    for file, function in row.checks:
        assert function in functions(ROOT / "src/mvirt_net" / file), (file, function)
    for test in row.tests:
        assert test in texts_of_tests(), test
    named = re.compile(rf"\b{row.name[0]}0?{row.name[1:]}\b", re.IGNORECASE)
    assert any(named.search(texts_of_tests()[test]) for test in row.tests)


def test_every_row_has_a_mutant_or_a_reason() -> None:
    with_mutant = {f"{row[0].upper()}{int(row[1:])}" for m in MUTANTS for row in m.rows.split()}
    assert with_mutant <= set(ROWS)
    assert with_mutant | without_mutant() == set(ROWS)
