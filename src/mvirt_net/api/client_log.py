"""What clients of the control interfaces can cause to be said in the log: one line a second."""

from __future__ import annotations

import structlog
import trio

from ..log import Limited, LineRate, get_logger

LINE_INTERVAL = 1.0
"""Seconds between two lines. Clients can fail as fast as they like, and must not fill the disk."""


def get_client_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of the module `name` that leaves lines out, and says how many."""
    lines = LineRate(rate=1 / LINE_INTERVAL, burst=1)
    return get_logger(name, Limited(lambda: lines.take(trio.current_time())))
