"""What a scenario has found: figures for readers, and bounds that must hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

MIB = 1 << 20


@attrs.frozen
class Check:
    """A value and the most (or the only value) that it may be."""

    name: str
    value: float
    most: float
    least: float = float("-inf")

    @property
    def holds(self) -> bool:
        """Whether it is within its bounds."""
        return self.least <= self.value <= self.most


def equal(name: str, value: float, expected: float) -> Check:
    """A value that must be exactly this."""
    return Check(name, value, expected, expected)


@attrs.frozen
class Report:
    """One scenario's outcome: `figures` by name, with their units in it, and `checks`."""

    title: str
    figures: Sequence[tuple[str, float]]
    checks: Sequence[Check]

    @property
    def failures(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.holds]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([self.title, *self._lines(), ""])

    def _lines(self) -> Iterable[str]:
        for name, value in self.figures:
            yield f"  {name:<58} {value:>14,.6g}"
        for check in self.checks:
            verdict = "ok" if check.holds else "VIOLATED"
            sign = "=" if check.least == check.most else "<="
            yield f"  {check.name:<58} {check.value:>14,.6g} {sign} {check.most:,.6g}: {verdict}"
