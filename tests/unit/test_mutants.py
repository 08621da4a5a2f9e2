"""The list of mutants cannot rot: each change still has its one place, and its tests exist."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@cache
def definitions(path: str) -> frozenset[str]:
    """Names of the functions and classes in a test file, methods as ``Class::name``."""
    names = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{m.name}" for m in node.body if hasattr(m, "name")}
    return frozenset(names)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_place_is_unique_and_tests_exist(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert mutant.mutate(text) != text
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert not name or name in definitions(path), test
