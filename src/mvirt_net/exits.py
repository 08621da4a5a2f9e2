"""How the command ends: what it says of a failure, and with which code."""

from __future__ import annotations

import enum
import errno

import click
import trio

from .config import ConfigFileError
from .errors import (
    ConfigError,
    MvirtNetError,
    NoDaemonError,
    SocketAccessError,
    SocketInUseError,
    leaves,
)
from .log import get_logger
from .store import StoreDataError, StoreInUseError

log = get_logger(__name__)

PROGRAM = "mvirt-net"


class ExitCode(enum.IntEnum):
    """How the process ends; the numbers above 2 are those of ``sysexits.h``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    BAD_STATE = 65
    IN_USE = 69
    NO_DAEMON = 69
    """The client's EX_UNAVAILABLE, as the other is the daemon's."""
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
    if isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        for leaf in leaves(error.__cause__):
            if isinstance(leaf, OSError):
                return leaf
    return error


def _report_one(error: BaseException) -> ExitCode:
    code = _code(error)
    if code is None:
        log.critical("internal error", exc_info=error)
        return ExitCode.FAILURE
    for line in _message(error).splitlines():
        click.echo(f"{PROGRAM}: {line}", err=True)
    return code


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
