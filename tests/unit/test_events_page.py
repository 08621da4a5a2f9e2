"""The page that lists what the daemon logs, against what the source says."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "events.md"
LEVELS = {"debug", "info", "warning", "error", "critical"}
EXCEPTIONS = {"exc_info": "exception"}
"""Arguments of a logger that come out as another field."""

Event = tuple[frozenset[str], frozenset[str], bool]
"""Levels, fields, and whether some of these are not written out in the source."""


def _calls() -> Iterator[tuple[ast.Call, str, str]]:
    """Calls of loggers with an event that is written out, their level and the event."""
    for path in (ROOT / "src" / "mvirt_net").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and (level := _level(node.func)):
                event = node.args[0]
                if isinstance(event, ast.Constant):
                    yield node, level, str(event.value)
                elif isinstance(event, ast.JoinedStr):
                    parts = (
                        part.value if isinstance(part, ast.Constant) else "…"
                        for part in event.values
                    )
                    yield node, level, "".join(map(str, parts))


def _level(function: ast.expr) -> str:
    """Empty: it is no logger's. A level that is chosen as the program runs is ``log``."""
    if isinstance(function, ast.Name):
        return "log" if function.id == "log" else ""
    if not isinstance(function, ast.Attribute):
        return ""
    if function.attr == "_warn":
        return "warning"
    if "log" in ast.unparse(function.value) and function.attr in {*LEVELS, "exception"}:
        return "error" if function.attr == "exception" else function.attr
    return ""


def in_source() -> dict[str, Event]:
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    more: set[str] = set()
    for call, level, event in _calls():
        levels[event] |= {"info", "warning"} if level == "log" else {level}
        for keyword in call.keywords:
            if keyword.arg is None:
                more.add(event)
            else:
                fields[event].add(EXCEPTIONS.get(keyword.arg, keyword.arg))
        if isinstance(call.func, ast.Attribute) and call.func.attr == "exception":
            fields[event].add("exception")
    return {
        event: (frozenset(levels[event]), frozenset(fields[event]), event in more)
        for event in levels
    }


def on_page() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """By event, the levels and the fields of the rows."""
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|([^|]*)\|", PAGE.read_text(), re.M)
    events = {
        event: (frozenset(levels.split(", ")), frozenset(re.findall(r"`([a-z_]+)`", fields)))
        for event, levels, fields in rows
    }
    assert len(events) == len(rows), "an event has two rows"
    return events


def test_every_event_has_a_row_and_every_row_an_event() -> None:
    page, source = on_page().keys(), in_source().keys()
    assert source - page == set(), "events without a row in docs/reference/events.md"
    assert page - source == set(), "rows without an event"


def test_rows_have_the_levels() -> None:
    page = on_page()
    assert {event: page[event][0] for event in page} == {
        event: levels for event, (levels, _fields, _more) in in_source().items()
    }


def test_rows_have_the_fields() -> None:
    page = on_page()
    for event, (_levels, fields, more) in in_source().items():
        documented = page[event][1] - {"nic", "network", "address"}
        written = fields - {"nic", "network", "address"}
        assert written <= documented, event
        assert more or documented <= written, event
