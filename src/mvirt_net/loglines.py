"""What lines on standard error look like: the formats of the log, and what the journal reads.

Apart from `logsetup`, which writes a log: who says one line and ends loads nothing of that.
"""

from __future__ import annotations

import enum
import os
from typing import TextIO


class LogFormat(enum.StrEnum):
    """How a line of the log looks."""

    CONSOLE = "console"
    """For reading: time, level, event, pairs; in colours on a terminal."""
    LOGFMT = "logfmt"
    """``timestamp=… level=info event="…" nic=vm1``."""
    JSON = "json"
    """One JSON object a line."""


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog(3)'s, by structlog's names of levels."""


def is_journal(stream: TextIO) -> bool:
    """Whether systemd's journal reads what is written there (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def with_priority(text: str, level: str) -> str:
    """Lines for the journal, which takes a level from what they begin with (sd-daemon(3))."""
    prefix = f"<{_PRIORITIES[level]}>"
    return prefix + text.replace("\n", f"\n{prefix}")
