"""The folders that are made when nobody has made them: for sockets, and for the state."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ..accounts import Account
from ..exits import PROGRAM


def default_state() -> Path:
    """In what systemd gives us (systemd.exec(5), StateDirectory=), else in the usual place."""
    if given := os.environ.get("STATE_DIRECTORY"):
        folder = Path(given.partition(":")[0])
    elif os.geteuid() == 0:
        folder = Path("/var/lib", PROGRAM)
    else:
        # As the XDG Base Directory Specification has it.
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(home, PROGRAM)
    return folder / "state.db"


def make_state_dir(path: Path, account: Account | None) -> None:
    """Make the usual folder for the state, if there is none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dir(path, account, (), mode=0o700)


def make_dir(
    path: Path, account: Account | None, groups: Collection[int | None], mode: int = 0o750
) -> None:
    """Make the folder for the sockets, if there is none.

    Args:
        path: of the folder.
        account: whom we will run as, and who must be able to remove files then.
        groups: of the sockets in it. The folder gets it, too, if it is one, so that whoever may
            use a socket gets there.

    Raises:
        OSError: it cannot be made, or not be given to them.
    """
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    owner = -1 if account is None else account.uid
    [group] = groups if len(groups) == 1 else [None]
    # By its descriptor: a link that somebody has put in its place meanwhile is not followed.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, owner, -1 if group is None else group)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)
