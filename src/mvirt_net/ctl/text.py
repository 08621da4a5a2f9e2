"""Text for a terminal, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

NOTHING = "-"
"""Stands for a value that is not there, so that columns can be counted."""


def printable(text: object) -> str:
    """`text` on one line that moves no cursor: what is not printable is escaped as in Python."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def words(value: object) -> str:
    """A value of JSON for people to read, on one line, and never empty."""
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(words, value)) or NOTHING
        case None | "":
            return NOTHING
        case _:
            return printable(value)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in ASCII without control characters but the newlines that `indent` asks for."""
    # DEL can only be within a text, and is the one control character that json leaves as it is.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")
