"""The exceptions that leave this package: one for each decision that a caller can take."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


class MvirtNetError(Exception):
    """Base of everything raised on purpose by this package."""


class ConfigError(MvirtNetError):
    """A specification or configuration value is wrong; the user has to change it.

    Args:
        key: where the value stands, as the user writes it (``nic[1].mac_address``); may be empty.
        problem: one line, without the key.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem


class ConfigFileError(MvirtNetError):
    """A configuration file that cannot be used; its text has one line for each problem.

    Args:
        path: the file, as the user named it.
        problems: what is wrong with it; the keys are paths like ``nic[1].mac_address``.
    """

    def __init__(self, path: Path, problems: Sequence[ConfigError]) -> None:
        super().__init__("\n".join(_one_line(f"{path}: {problem}") for problem in problems))
        self.path = path
        self.problems = tuple(problems)


class DuplicateError(ConfigError):
    """A name, MAC address, IP address or socket path is taken already in this switch."""


class ExhaustedError(ConfigError):
    """There is no address left to give; a larger subnet or fewer NICs would help."""


class NotFoundError(MvirtNetError):
    """No network or NIC of that name."""


class SocketInUseError(MvirtNetError):
    """Another process listens on the socket path; it is left alone."""


class SocketAccessError(MvirtNetError):
    """There is no permission for the socket path, or its file system is read-only."""


class SocketPathError(MvirtNetError):
    """The socket path cannot be listened on for another reason: no folder, a file that is no
    socket, no descriptors left, and the like.
    """


class StoreError(MvirtNetError):
    """The state cannot be kept or read: a full disk, a damaged file."""


class StoreInUseError(StoreError):
    """Another daemon keeps its state in that file."""


class StoreDataError(StoreError):
    """The file is not one of ours, is damaged, or is of a newer version."""


class TooManyCapturesError(MvirtNetError):
    """One has to end before another can begin."""


class CaptureFileError(MvirtNetError):
    """The file of a capture cannot be made."""


class ExtraMissingError(MvirtNetError):
    """What was asked for needs packages that are not installed."""


class NoDaemonError(MvirtNetError):
    """Nobody answers at the control socket, or not as the daemon does."""


class VerbRefused(MvirtNetError):
    """The daemon would not do what its client asked it for.

    Args:
        message: why.
        status: of HTTP.
        field: the key of the request that is at fault, if it is one.
    """

    def __init__(self, message: str, status: int, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.field = field


class RequestRefused(MvirtNetError):
    """A vhost-user request cannot be carried out; nothing has changed.

    The session answers with an error where the frontend asked for an answer and ends the
    connection where it did not.
    """


class ConnectionBroken(MvirtNetError):
    """The vhost-user conversation cannot go on: malformed, too slow, or no way left to refuse."""


class GuestMemoryLost(MvirtNetError):
    """A frontend took back memory that it had shared (its file shrank); the connection is over."""


class UnsupportedProcessorError(MvirtNetError, ImportError):
    """The C core is for newer processors than this one; nothing of it can be loaded."""


class CoreError(MvirtNetError):
    """The C core refused; `errno` is the reason (a positive errno value)."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {os.strerror(errno)}")
        self.errno = errno


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a tree of groups, or just the one."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _one_line(text: str) -> str:
    """`text` with whatever does not print, a line feed above all, written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
