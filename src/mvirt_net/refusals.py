"""How a verb is refused: the errors of all that it uses, sorted by what a caller can do."""

from __future__ import annotations

import contextlib
import enum
import errno
from collections.abc import Iterator, Mapping

from .errors import (
    CaptureFileError,
    ConfigError,
    CoreError,
    DuplicateError,
    ExhaustedError,
    MvirtNetError,
    NotFoundError,
    SocketAccessError,
    SocketInUseError,
    SocketPathError,
    TooManyCapturesError,
)

MAX_MESSAGE = 500


class ErrorKind(enum.Enum):
    """What a caller can do about it; the names are those of gRPC's codes."""

    INVALID_ARGUMENT = enum.auto()
    NOT_FOUND = enum.auto()
    ALREADY_EXISTS = enum.auto()
    FAILED_PRECONDITION = enum.auto()
    RESOURCE_EXHAUSTED = enum.auto()
    INTERNAL = enum.auto()


class ControlError(MvirtNetError):
    """A verb was refused; nothing has changed.

    Args:
        kind: what a caller can do about it.
        message: one line, without the field; cut off after `MAX_MESSAGE` characters, as it may
            quote what was asked for.
        field: what it is about, the name of a field of a specification; may be empty.
    """

    def __init__(self, kind: ErrorKind, message: str, field: str = "") -> None:
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field


_KINDS: Mapping[type[MvirtNetError], ErrorKind] = {
    DuplicateError: ErrorKind.ALREADY_EXISTS,
    ExhaustedError: ErrorKind.RESOURCE_EXHAUSTED,
    TooManyCapturesError: ErrorKind.RESOURCE_EXHAUSTED,
    CaptureFileError: ErrorKind.FAILED_PRECONDITION,
    ConfigError: ErrorKind.INVALID_ARGUMENT,
    NotFoundError: ErrorKind.NOT_FOUND,
    SocketInUseError: ErrorKind.FAILED_PRECONDITION,
    SocketAccessError: ErrorKind.FAILED_PRECONDITION,
    SocketPathError: ErrorKind.FAILED_PRECONDITION,
}
"""The first class that an exception belongs to counts; anything else is INTERNAL."""
_SOCKET_ERRORS = (SocketInUseError, SocketAccessError, SocketPathError)
_NO_RESOURCES = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC})


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What switch and store raise, as refusals of a verb."""
    try:
        yield
    except ControlError:
        raise
    except MvirtNetError as error:
        field = error.key if isinstance(error, ConfigError) else ""
        if isinstance(error, _SOCKET_ERRORS):
            field = "socket_path"
        message = error.problem if isinstance(error, ConfigError) else str(error)
        raise ControlError(_kind(error), message, field) from error


def _kind(error: MvirtNetError) -> ErrorKind:
    if isinstance(error, CoreError) and error.errno in _NO_RESOURCES:
        return ErrorKind.RESOURCE_EXHAUSTED
    return next(
        (kind for cls, kind in _KINDS.items() if isinstance(error, cls)), ErrorKind.INTERNAL
    )
