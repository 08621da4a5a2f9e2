"""Show that the hostile tests see their checks: take each check away, and its tests must fail.

``make mutants`` runs this; ``make mutants ROWS="m25 r03"`` only what has to do with these rows.
Each mutant is applied to a copy of the tree; the extension is built again when a C file was
changed. `tests/mutants.py` has the list.

Exits with 1 when a mutant has survived, and with 2 when the tests fail without any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from enum import Enum
from pathlib import Path

import attrs

from .mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 300
"""Seconds for the tests of one mutant; one that hangs is one that was noticed, and is named so, for
on a machine that is busy with other things it may be one that was only slow."""
NEEDED = ("pyproject.toml", "setup.py", "README.md", "src", "tests", "bench", "docs")


class Outcome(Enum):
    """Of tests; the value is what that makes of the mutant that they ran on."""

    PASSED = "SURVIVED"
    FAILED = "killed"
    HUNG = "hung"


@attrs.define(eq=False)
class Copy:
    """A tree to be changed, with an extension of its own."""

    root: Path
    built: bool = True
    """The extension is the one of the sources as they are."""

    @classmethod
    def make(cls, folder: Path) -> Copy:
        for name in NEEDED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)
        copy = cls(folder)
        copy.build()
        return copy

    def build(self) -> None:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
        subprocess.run(command, cwd=self.root, check=True, capture_output=True)

    def apply(self, mutant: Mutant) -> None:
        """Change the one place, and build if need be."""
        path = self.root / mutant.file
        path.write_text(mutant.mutate(path.read_text()))
        if mutant.in_c:
            self.build()
            self.built = True

    def restore(self, mutant: Mutant) -> None:
        """Undo `apply`, but for the extension, which the next C file builds anew."""
        shutil.copy2(ROOT / mutant.file, self.root / mutant.file)
        self.built = self.built and not mutant.in_c

    def test(self, tests: tuple[str, ...], *, limit: float | None = TIME_LIMIT) -> Outcome:
        """What becomes of the tests on the tree as it is, within `limit` seconds."""
        if not self.built:
            self.build()
            self.built = True
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src")}
        try:
            ended = subprocess.run(
                command,
                cwd=self.root,
                env=environment,
                capture_output=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome.HUNG
        if ended.returncode in (2, 3, 4, 5):
            raise RuntimeError(f"pytest did not run {tests}: {ended.stdout.decode()[-500:]}")
        return Outcome.FAILED if ended.returncode else Outcome.PASSED


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants of these rows, or all; those that need no build first."""
    mutants = [one for one in MUTANTS if not words or set(words) & set(one.rows.split())]
    return sorted(mutants, key=lambda mutant: mutant.in_c)


def survivors(copy: Copy, mutants: list[Mutant]) -> int:
    """Run each mutant's tests and say what became of it; how many have survived."""
    survived = 0
    for mutant in mutants:
        copy.apply(mutant)
        outcome = copy.test(mutant.tests)
        copy.restore(mutant)
        survived += outcome is Outcome.PASSED
        print(f"{outcome.value:8} {mutant}", flush=True)  # noqa: T201
    return survived


def main(words: list[str]) -> int:
    """Returns the exit code."""
    mutants = chosen([word.lower() for word in words])
    with tempfile.TemporaryDirectory(prefix="mvirt-net-mutants-") as folder:
        copy = Copy.make(Path(folder))
        every_test = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
        if copy.test(every_test, limit=None) is not Outcome.PASSED:
            print("the tests fail without any mutant")  # noqa: T201
            return 2
        survived = survivors(copy, mutants)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants killed")  # noqa: T201
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
