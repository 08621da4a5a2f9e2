"""The daemon's log in its three formats."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from mvirt_net.log import get_logger
from mvirt_net.logsetup import LogFormat, set_up_logging

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


def logged(
    log_format: LogFormat | None, level: int = logging.INFO, stream: io.StringIO | None = None
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
    return stream.getvalue()


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
