"""How the daemon writes its log to stderr. An embedding program sets up its own `logging`."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import attrs
import structlog
from structlog.typing import EventDict, Processor

from .loglines import LogFormat, is_journal, with_priority
from .stderr import LossyStderr


class _Handler(logging.StreamHandler[TextIO]):
    """Says how many lines were lost before the first one that is not."""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(self.stream, LossyStderr) and (lost := self.stream.lost):
            super().emit(_loss(lost))
            # That line itself is not counted if it is lost, too.
            self.stream.lost = 0 if self.stream.lost == lost else lost
        super().emit(record)


def _loss(lines: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "log could not be written",
            "lost_lines": lines,
        }
    )


def set_up_logging(
    level: int = logging.INFO, log_format: LogFormat | None = None, stream: TextIO | None = None
) -> None:
    """Send everything from `level` up to `stream`.

    Args:
        level: as in `logging`.
        log_format: how a line looks; None means `LogFormat.CONSOLE` on a terminal, else
            `LogFormat.LOGFMT`. Whatever it is, lines for the journal begin with their level.
        stream: standard error when None.
    """
    stream = stream or sys.stderr
    is_terminal, for_journal = stream.isatty(), is_journal(stream)
    chosen = log_format or (LogFormat.CONSOLE if is_terminal else LogFormat.LOGFMT)
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper("iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(chosen, colors=is_terminal, for_journal=for_journal),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Below that the codec of HTTP/2's headers has a line for each of its steps.
    logging.getLogger("hpack").setLevel(logging.INFO)


def has_log() -> bool:
    """Whether `set_up_logging` was called."""
    return any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers)


def _renderers(log_format: LogFormat, *, colors: bool, for_journal: bool) -> list[Processor]:
    *before, renderer = _format(log_format, colors=colors)
    return [*before, _Prioritized(renderer) if for_journal else renderer]


@attrs.frozen
class _Prioritized:
    """A renderer for the journal."""

    render: Processor

    def __call__(self, logger: object, name: str, event: EventDict) -> str:
        level = event["level"]
        return with_priority(str(self.render(logger, name, event)), level)


def _format(log_format: LogFormat, *, colors: bool) -> list[Processor]:
    if log_format is LogFormat.CONSOLE:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    if log_format is LogFormat.JSON:
        return [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    first = ["timestamp", "level", "logger", "event"]
    return [
        structlog.processors.format_exc_info,
        _printable,
        structlog.processors.LogfmtRenderer(key_order=first),
    ]


def _printable(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Values as logfmt can hold them: plain ones as they are, others as text on one line."""
    return {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in event.items()
    }
