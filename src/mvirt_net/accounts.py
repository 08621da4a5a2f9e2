"""Users and groups by name or number, looked up in the system's database.

That happens when a value is read, never later. Once the daemon has given up its rights it can look
up nothing any more, and a name must not mean somebody else then: a configuration that is read again
can only use the names that it had before.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from typing import Any, Self

import attrs

_known: dict[tuple[str, str], int] = {}
"""What was looked up, by kind and name."""
_closed = False

_MAX_ID = 2**32 - 2
"""The one above it means "leave as it is" to chown(2) and setresuid(2)."""


def user_id(value: Any) -> int:
    """The number of the user that `value` names, itself a name or a number, as text or not.

    Raises:
        ValueError: there is no user of that name, or it is no possible number.
        TypeError: it is neither.
    """
    return _id(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(value: Any) -> int:
    """As `user_id`, of a group."""
    return _id(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def close_database() -> None:
    """From now on, only what was looked up before is known."""
    global _closed
    _closed = True


def _look_up(name: str, what: str, look_up: Callable[[str], int]) -> int:
    """Raises ValueError."""
    if not _closed:
        try:
            _known[what, name] = look_up(name)
        except (KeyError, ValueError) as error:
            # ValueError: a zero byte.
            raise ValueError(f"there is no {what} {name!r}") from error
    elif (what, name) not in _known:
        raise ValueError(f"{what} {name!r} is new: write its number, or start the daemon anew")
    return _known[what, name]


def _id(value: Any, what: str, look_up: Callable[[str], int]) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is neither the name nor the number of a {what}")
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        return _look_up(value, what, look_up)
    number = int(value)
    if not 0 <= number <= _MAX_ID:
        raise ValueError(f"{number} is not the number of a {what}")
    return number


@attrs.frozen
class Account:
    """Whose rights a process may have."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary groups, `gid` among them."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``USER`` or ``USER:GROUP``, names or numbers.

        Without GROUP it is the user's own; of a number that no user has, the same number. The
        supplementary groups are those of the user; a number that no user has is in none.

        Raises:
            ValueError: there is no such user or group.
        """
        user, colon, group = text.partition(":")
        uid = user_id(user)
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            gid = group_id(group) if colon else uid
            return cls(uid, gid, (gid,))
        gid = group_id(group) if colon else entry.pw_gid
        return cls(uid, gid, tuple(sorted(os.getgrouplist(entry.pw_name, gid))))
