"""What the daemon may still reach once it serves: Landlock (landlock(7)).

A bug in the daemon that a guest or frontend can use should be worth little to them. From `confine`
on, this process opens no file and reads no folder; makes and removes files only beneath where it
was told; neither binds to a TCP port nor connects to one; sends no signal to another process, and
reaches no abstract unix socket but those that it is connected to. Descriptors that are open already
keep working, and so does what comes over the socket of a frontend. Nothing is imported after that
either: all modules must be loaded by then. What Landlock does not know: UDP, sockets with a path,
and changes of mode, times and attributes of files that belong to the process's user.

Kernels have this in versions. Each version that the kernel has is used up to the newest known here;
a kernel without any gets a line in the log and the daemon runs all the same.

For a process of our own only. A program that embeds mvirt-net decides for itself what it may do.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from .ffi import rights
from .ffi.rights import FsAccess, NetAccess, Scope
from .log import get_logger

log = get_logger(__name__)

_FS_SINCE = {
    1: (FsAccess.MAKE_SYM << 1) - 1,
    2: FsAccess.REFER,
    3: FsAccess.TRUNCATE,
    5: FsAccess.IOCTL_DEV,
}
"""Which version brought which actions on files; the first all up to MAKE_SYM."""
_NET_SINCE = {4: NetAccess.BIND_TCP | NetAccess.CONNECT_TCP}
_SCOPE_SINCE = {6: Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL}


def confine(allowed: Iterable[tuple[Path, FsAccess]]) -> int:
    """Deny this process everything that Landlock can, but for `allowed`; for good.

    Args:
        allowed: what may be done beneath a folder, or with a file. They must exist; what is said of
            one twice adds up.

    Returns:
        The version of Landlock that the kernel has, 0 when it has none and nothing has changed.

    Raises:
        OSError: a path in `allowed` cannot be found, or the kernel refuses for another reason.
    """
    abi = rights.landlock_abi()
    if abi == 0:
        log.warning("no sandbox: this kernel has no Landlock, or it is switched off")
        return abi
    _load_the_rest()
    handled = FsAccess(_up_to(abi, _FS_SINCE))
    net, scope = NetAccess(_up_to(abi, _NET_SINCE)), Scope(_up_to(abi, _SCOPE_SINCE))
    ruleset = rights.landlock_create(handled, net, scope)
    try:
        for path, access in allowed:
            _allow(ruleset, path, access & handled)
        rights.landlock_enforce(ruleset)
    finally:
        os.close(ruleset)
    log.info("sandboxed", landlock=abi)
    return abi


def _load_the_rest() -> None:
    """Load the modules that later versions of Python import with the first traceback."""
    try:
        raise LookupError
    except LookupError:
        traceback.format_exc()


def _up_to(abi: int, since: Mapping[int, int]) -> int:
    """All bits that a kernel with version `abi` knows."""
    bits = 0
    for version, brought in since.items():
        bits |= brought if version <= abi else 0
    return bits


def _allow(ruleset: int, path: Path, access: FsAccess) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights.landlock_allow(ruleset, access, fd)
    finally:
        os.close(fd)
