"""What the daemon gives up, once its sockets are there, of the rights that it was started with.

Whoever starts it: no capability is left, and no program that it might be made to execute could get
one back (no_new_privs). Root may also name the account to go on as. Without one, root stays
root, but without its capabilities: a user like any other, to whom much of the system belongs.

User and group count for the whole process, the rest for one thread and those that it makes. So all
this comes before there is a second one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from .accounts import Account
from .errors import MvirtNetError
from .ffi import rights
from .log import get_logger

log = get_logger(__name__)


def check_may_become(account: Account | None) -> None:
    """Find out early whether `become` has a chance.

    Raises:
        PermissionError: only root can, and we are not.
    """
    if account is not None and os.geteuid() != 0:
        raise PermissionError(errno.EPERM, "only root can run as another user", "--runas")


@contextlib.contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """For the body, have the rights of `account`, if any, on files: what is made is theirs, and
    what they may not reach cannot be opened.

    Raises:
        OSError: the kernel refuses.
    """
    if account is None:
        yield
        return
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    try:
        os.setgroups(account.groups)
        os.setegid(account.gid)
        os.seteuid(account.uid)
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def freeze() -> None:
    """Rights can only shrink from here on.

    Raises:
        MvirtNetError: another thread is running, which would keep what this one gives up.
        OSError: the kernel refuses.
    """
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208  (names are all that is needed)
        raise MvirtNetError("cannot give up rights: another thread is running")
    rights.freeze()


def become(account: Account | None) -> None:
    """Go on as `account`, if any, and without capabilities; for good.

    Raises:
        OSError: the kernel refuses, as in a container that holds back what root needs for it.
    """
    # What takes capabilities itself comes first.
    rights.clear_bounding_set()
    if account is not None:
        try:
            os.setgroups(account.groups)
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
        except PermissionError as error:
            raise PermissionError(error.errno, error.strerror, "--runas") from error
        # Other processes of that user, who may be `nobody`, are none of our friends. The kernel
        # does this too, unless fs.suid_dumpable says otherwise.
        rights.deny_inspection()
    elif os.geteuid() == 0:
        log.warning("running as root, if without capabilities: see --runas")
    rights.clear_capabilities()
    log.info("rights given up", uid=os.geteuid(), gid=os.getegid())
