"""The folders that the daemon makes for itself, where nobody has made them: sockets and state."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from ..accounts import Account
from ..exits import PROGRAM
from ..model import DaemonConfig, SocketAccess


def default_state() -> Path:
    """Of the state: what systemd gives us (StateDirectory=), else the usual place."""
    if given := os.environ.get("STATE_DIRECTORY"):
        folder = Path(given.partition(":")[0])
    elif os.geteuid() == 0:
        folder = Path("/var/lib", PROGRAM)
    else:
        # As the XDG Base Directory Specification has it.
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(home, PROGRAM)
    return folder / "state.db"


def make_state_dir(account: Account | None) -> None:
    """Make the folder of `default_state`, if there is none. Raises OSError."""
    path = default_state().parent
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_dir(path, account, 0o700)


def make_socket_dir(
    path: Path, config: DaemonConfig, listeners: Collection[str], account: Account | None
) -> None:
    """Make the folder for sockets, if there is none and there are sockets for it.

    Args:
        path: of the folder.
        config: what is served.
        listeners: NICs whose sockets others have made.
        account: whom we will run as, and who must be able to remove files then.

    Raises:
        OSError: it cannot be made, or not be given to them.
    """
    if accesses := _accesses_in(path.absolute(), config, listeners):
        _make_dir(path, account, *_way_in(accesses, account))


def _accesses_in(
    folder: Path, config: DaemonConfig, listeners: Collection[str]
) -> list[SocketAccess]:
    """Who may connect to each of the sockets that are, or may come to be, in the folder."""
    accesses: list[SocketAccess] = [
        nic
        for nic in config.nics
        if nic.socket_path
        and nic.socket_path.absolute().parent == folder
        and nic.name not in listeners
    ]
    if any(path.parent == folder for path in config.api.socket_paths):
        accesses.append(config.api)
    if config.api.is_wanted:
        # Of the NICs that will be created.
        accesses.append(config.defaults)
    return accesses


def _way_in(accesses: Collection[SocketAccess], account: Account | None) -> tuple[int, int | None]:
    """Mode and group of the folder for sockets: whoever may use one of them gets there.

    That is the group of them all, if they have the same one. Otherwise, or if another user or
    everybody may use one of them, anybody may go through the folder, and cannot see what is in it:
    the sockets themselves decide.
    """
    owner = os.geteuid() if account is None else account.uid
    groups = {access.socket_group for access in accesses}
    others = any(
        access.socket_owner not in (None, owner) or access.mode.bits & stat.S_IWOTH
        for access in accesses
    )
    if len(groups) == 1:
        return (0o751 if others else 0o750), groups.pop()
    return 0o751, None


def _make_dir(path: Path, account: Account | None, mode: int, group: int | None = None) -> None:
    """Make a folder of the daemon's own, if there is none; one that is there stays as it is.

    Args:
        path: of the folder.
        account: whom we will run as, and who must be able to remove files then.
        mode: its permissions, whatever the umask says.
        group: None: the process's own.

    Raises:
        OSError: it cannot be made, or not be given to them.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    owner = -1 if account is None else account.uid
    # By its descriptor: a link that somebody has put in its place meanwhile is not followed.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, owner, -1 if group is None else group)
        os.fchmod(fd, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)
