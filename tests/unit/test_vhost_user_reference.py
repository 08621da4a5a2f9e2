"""The reference page says of each message what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvirt_net.vhost_user import OFFERED_FEATURES, OFFERED_PROTOCOL_FEATURES, Request
from mvirt_net.vhost_user.messages import Opaque
from mvirt_net.vhost_user.session import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "vhost-user.md"


def rows_after(line: str) -> list[list[str]]:
    """The cells of the first table after a line that begins so, without its two head lines."""
    _, _, text = PAGE.read_text("utf-8").partition(f"\n{line}")
    table, _, _ = text[text.index("\n|") + 1 :].partition("\n\n")
    return [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]


def span(numbers: range) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first}" if first == last else f"{first}–{last}"  # noqa: RUF001


def test_messages() -> None:
    assert [row[:5] for row in rows_after("## Messages")] == [
        [
            f"{request:d}",
            f"`{request.name}`",
            span(TABLE[request].payload.SIZE),
            span(TABLE[request].fds),
            f"`{TABLE[request].needs.name}`" if TABLE[request].needs else "–",  # noqa: RUF001
        ]
        for request in Request
        if TABLE[request].payload is not Opaque
    ]


def test_messages_that_are_never_legal() -> None:
    assert [row[:2] for row in rows_after("Never legal")] == [
        [f"{request:d}", f"`{request.name}`"]
        for request in Request
        if TABLE[request].payload is Opaque
    ]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("Virtio features offered (`GET_FEATURES` = ", OFFERED_FEATURES),
        ("Protocol features offered (`GET_PROTOCOL_FEATURES` = ", OFFERED_PROTOCOL_FEATURES),
    ],
)
def test_features(line: str, offered: int) -> None:
    rows = rows_after(f"{line}`{offered:#x}`")
    assert sum(1 << int(bit) for row in rows for bit in row[0].split(", ")) == offered
