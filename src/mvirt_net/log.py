"""Structured events on top of the standard `logging`.

The package logs through `logging` under the name ``mvirt_net``, so an embedding program decides
what becomes of it; the key-value pairs travel as ``extra``. The daemon's own formatting of them
is set up by `mvirt_net.cli`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import attrs
import structlog
from structlog.typing import EventDict

logging.getLogger("mvirt_net").addHandler(logging.NullHandler())


class Limited:
    """A processor for lines that others can cause at will: some are left out.

    The next line that is not left out says how many were, as ``left_out``.

    Args:
        take: whether there may be one more just now.
    """

    __slots__ = ("_left_out", "_take")

    def __init__(self, take: Callable[[], bool]) -> None:
        self._take = take
        self._left_out = 0

    def __call__(self, _logger: object, _name: str, event: EventDict) -> EventDict:
        if not self._take():
            self._left_out += 1
            raise structlog.DropEvent
        if self._left_out:
            event["left_out"], self._left_out = self._left_out, 0
        return event


@attrs.define(eq=False)
class LineRate:
    """How many lines there may be: a token bucket, full at first.

    Args:
        rate: lines a second.
        burst: lines that are saved up, at most.
    """

    rate: float
    burst: float
    _lines: float = attrs.field(init=False)
    _saved_at: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._lines = self.burst

    def take(self, now: float) -> bool:
        """Whether there may be one more line; it counts then. `now`: seconds of any clock."""
        if self._saved_at is not None:
            self._lines = min(self.burst, self._lines + (now - self._saved_at) * self.rate)
        self._saved_at = now
        if self._lines < 1:
            return False
        self._lines -= 1
        return True


def get_logger(name: str, *limits: Limited) -> structlog.stdlib.BoundLogger:
    """A logger for the module `name`; ``log.info("frontend connected", nic="vm1")``."""
    return cast(
        structlog.stdlib.BoundLogger,
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                *limits,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=False,
        ),
    )
