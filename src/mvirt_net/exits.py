"""How the command ends: what it says of a failure, and with which code.

Also for a client that has loaded nothing of the daemon, so nothing of it is imported up here.
"""

from __future__ import annotations

import enum
import errno
import signal
import sys
from typing import Any, NoReturn

import click

from .errors import (
    ConfigError,
    ConfigFileError,
    MvirtNetError,
    NoDaemonError,
    SocketAccessError,
    SocketInUseError,
    StoreDataError,
    StoreInUseError,
    leaves,
)
from .loglines import is_journal, with_priority

PROGRAM = "mvirt-net"


class ExitCode(enum.IntEnum):
    """How the process ends; the numbers above 2 are those of ``sysexits.h``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    BAD_STATE = 65
    IN_USE = 69
    NO_DAEMON = 69
    """Of the client: EX_UNAVAILABLE, as `IN_USE` is the daemon's."""
    NO_PERMISSION = 77
    BAD_CONFIG = 78


_EXIT_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (click.ClickException, ExitCode.USAGE),
    (SocketInUseError, ExitCode.IN_USE),
    (StoreInUseError, ExitCode.IN_USE),
    (StoreDataError, ExitCode.BAD_STATE),
    (NoDaemonError, ExitCode.NO_DAEMON),
    (SocketAccessError, ExitCode.NO_PERMISSION),
    (ConfigFileError, ExitCode.BAD_CONFIG),
    (ConfigError, ExitCode.BAD_CONFIG),
    (MvirtNetError, ExitCode.FAILURE),
    (OSError, ExitCode.FAILURE),
)
"""The first class that an exception belongs to counts. Anything else is a bug of ours."""

_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""Its text is the help of a group of commands (since click 8.2; before, click prints that)."""


def end_by(number: signal.Signals) -> NoReturn:
    """End this process by a signal, so that a shell sees that it was one."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    raise AssertionError("that signal ends a process")


def report(error: BaseException) -> ExitCode:
    """Say on stderr what went wrong: one line for a failure, the traceback for a bug.

    Args:
        error: what ended the command, maybe a group.

    Returns:
        The code for it, the highest one for a group.
    """
    return max(_report_one(leaf) for leaf in leaves(_denied_to_trio(error)))


def _denied_to_trio(error: BaseException) -> BaseException:
    """What the system would not give to trio for itself, which it takes for a bug of its own."""
    trio = sys.modules.get("trio")
    if trio and isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        for leaf in leaves(error.__cause__):
            if isinstance(leaf, OSError):
                return leaf
    return error


def _report_one(error: BaseException) -> ExitCode:
    code = _code(error)
    if code is None:
        _log_bug(error)
        return ExitCode.FAILURE
    if isinstance(error, _NO_ARGUMENTS):
        click.echo(error.format_message(), err=True)
        return code
    for line in _message(error).splitlines():
        text = f"{PROGRAM}: {line}"
        click.echo(with_priority(text, "error") if is_journal(sys.stderr) else text, err=True)
    return code


def _log_bug(error: BaseException) -> None:
    from .log import get_logger
    from .logsetup import has_log, set_up_logging

    if not has_log():
        set_up_logging()
    get_logger(__name__).critical("internal error", exc_info=error)


def _code(error: BaseException) -> ExitCode | None:
    """The code of a failure; None for a bug."""
    if isinstance(error, OSError) and error.errno in _NO_PERMISSION:
        return ExitCode.NO_PERMISSION
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), None)


def _message(error: BaseException) -> str:
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else PROGRAM
        return f"{error.format_message().rstrip('.')} (see '{path} --help')"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    return str(error)
