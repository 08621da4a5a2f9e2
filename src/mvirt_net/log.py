"""Structured events on top of the standard `logging`.

The package logs through `logging` under the name ``mvirt_net``, so an embedding program decides
what becomes of it; the key-value pairs travel as ``extra``. The daemon's own formatting of them
is set up by `mvirt_net.cli`.
"""

from __future__ import annotations

import logging
from typing import cast

import structlog

logging.getLogger("mvirt_net").addHandler(logging.NullHandler())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for the module `name`; ``log.info("frontend connected", nic="vm1")``."""
    return cast(
        structlog.stdlib.BoundLogger,
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.stdlib.render_to_log_kwargs,
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=False,
        ),
    )
