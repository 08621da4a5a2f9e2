"""The daemon's log in its three formats."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from mvirt_net.log import Limited, LineRate, get_logger
from mvirt_net.loglines import LogFormat
from mvirt_net.logsetup import set_up_logging

log = get_logger("mvirt_net.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_left_alone() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A file that passes for the journal's socket."""
    with (tmp_path / "journal").open("w+") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        yield file


def logged(
    log_format: LogFormat | None, level: int = logging.INFO, stream: TextIO | None = None
) -> str:
    """What becomes of three events."""
    stream = stream or io.StringIO()
    set_up_logging(level, log_format, stream)
    log.debug("seldom seen")
    log.info("frontend connected", nic="vm1", frames=3, note='a "b"\nc')
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("went wrong")
    stream.seek(0)
    return stream.read()


def test_json() -> None:
    first, second = map(json.loads, logged(LogFormat.JSON).splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "level": "info",
        "logger": "mvirt_net.test",
        "event": "frontend connected",
        "nic": "vm1",
        "frames": 3,
        "note": 'a "b"\nc',
    }
    assert second["level"] == "error"
    assert second["exception"].endswith("ValueError: no")


def test_logfmt() -> None:
    first, second = logged(LogFormat.LOGFMT).splitlines()
    assert first.startswith("timestamp=20")
    assert 'level=info logger=mvirt_net.test event="frontend connected" nic=vm1 frames=3' in first
    assert first.endswith(r'note="a \"b\"\nc"')
    assert "ValueError: no" in second


def test_console() -> None:
    text = logged(LogFormat.CONSOLE)
    assert "frontend connected" in text
    assert "nic=vm1" in text
    assert "\x1b" not in text
    assert text.endswith("ValueError: no\n")


def test_by_default_logfmt() -> None:
    assert logged(None).startswith("timestamp=")


def test_by_default_colours_on_a_terminal() -> None:
    assert "\x1b" in logged(None, stream=Terminal())


@pytest.mark.parametrize(
    ("level", "events"),
    [(logging.DEBUG, 3), (logging.INFO, 2), (logging.WARNING, 1)],
)
def test_levels(level: int, events: int) -> None:
    assert len(logged(LogFormat.JSON, level).splitlines()) == events


@pytest.mark.parametrize("log_format", [LogFormat.LOGFMT, LogFormat.CONSOLE, None])
def test_each_line_for_the_journal_has_its_level(
    journal: TextIO, log_format: LogFormat | None
) -> None:
    first, *rest = logged(log_format, stream=journal).splitlines()
    assert first.startswith("<6>")
    assert {line[:3] for line in rest} == {"<3>"}


def test_json_for_the_journal_is_json_behind_the_level(journal: TextIO) -> None:
    first, second = logged(LogFormat.JSON, stream=journal).splitlines()
    assert (first[:3], second[:3]) == ("<6>", "<3>")
    assert json.loads(first[3:])["event"] == "frontend connected"


def test_no_level_where_the_journal_does_not_read(
    monkeypatch: pytest.MonkeyPatch, journal: TextIO, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w+") as other:
        assert not logged(LogFormat.LOGFMT, stream=other).startswith("<")
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not logged(LogFormat.LOGFMT, stream=journal).startswith("<")


def test_lines_left_out_are_counted_by_the_next_one() -> None:
    stream = io.StringIO()
    set_up_logging(logging.INFO, LogFormat.JSON, stream)
    room = iter([True, False, False, True, True])
    limited = get_logger("mvirt_net.test", Limited(lambda: next(room))).bind(nic="vm1")
    limited.debug("not counted, for it is not logged anyway")
    for number in range(5):
        limited.warning("again", number=number)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["number"], line.get("left_out")) for line in lines] == [
        (0, None),
        (3, 2),
        (4, None),
    ]


def test_lines_come_in_a_burst_and_then_by_the_rate() -> None:
    lines = LineRate(rate=10, burst=5)
    assert [lines.take(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [lines.take(100.2) for _ in range(3)] == [True] * 2 + [False]


def test_no_more_lines_than_the_burst_are_saved_up() -> None:
    lines = LineRate(rate=10, burst=5)
    assert [lines.take(now) for now in [0.0, *[1e6] * 6]] == [True] * 6 + [False]
