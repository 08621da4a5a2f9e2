"""The system calls by which this process gives up rights; `mvirt.h` says what each does.

What goes wrong is an OSError: these calls are the kernel's, the core adds nothing to them. They
count for the calling thread and for those that it makes afterwards.
"""

from __future__ import annotations

import enum
import os

from ._core import lib


class FsAccess(enum.IntFlag):
    """What Landlock can deny of the file system (``LANDLOCK_ACCESS_FS_*``)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


class NetAccess(enum.IntFlag):
    """What it can deny of the network (``LANDLOCK_ACCESS_NET_*``)."""

    BIND_TCP = 1 << 0
    CONNECT_TCP = 1 << 1


class Scope(enum.IntFlag):
    """What it can confine to this process and its children (``LANDLOCK_SCOPE_*``)."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


def landlock_abi() -> int:
    """Which version of Landlock the kernel has; 0 means none, or that it is switched off."""
    return max(0, int(lib.mv_landlock_abi()))


def landlock_create(fs: FsAccess, net: NetAccess, scoped: Scope) -> int:
    """A ruleset that denies all of these.

    Returns:
        A descriptor, the caller's.

    Raises:
        OSError: the kernel does not know one of them, and the like.
    """
    return _check(lib.mv_landlock_create(fs, net, scoped))


def landlock_allow(ruleset_fd: int, fs: FsAccess, parent_fd: int) -> None:
    """Allow actions on an open folder's contents, or on an open file. Raises OSError."""
    _check(lib.mv_landlock_allow(ruleset_fd, fs, parent_fd))


def landlock_enforce(ruleset_fd: int) -> None:
    """Put a ruleset in force, for good, after `freeze`. Raises OSError.

    What the C library would load later on is loaded before.
    """
    lib.mv_landlock_preload()
    _check(lib.mv_landlock_enforce(ruleset_fd))


def freeze() -> None:
    """Rights cannot grow any more, whatever is executed (PR_SET_NO_NEW_PRIVS). Raises OSError."""
    _check(lib.mv_rights_freeze())


def clear_bounding_set() -> None:
    """No exec gives capabilities any more, if we have the right to say so. Raises OSError."""
    _check(lib.mv_rights_clear_bounding_set())


def clear_capabilities() -> None:
    """Give up all capabilities that are held or can be passed on. Raises OSError."""
    _check(lib.mv_rights_clear_capabilities())


def deny_inspection() -> None:
    """No core dump and no debugger but root's (PR_SET_DUMPABLE). Raises OSError."""
    _check(lib.mv_rights_deny_inspection())


def _check(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
