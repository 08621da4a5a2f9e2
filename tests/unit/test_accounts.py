"""Users and groups, by name or number."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest

from mvirt_net.accounts import Account, group_id, user_id

NOBODY = pwd.getpwnam("nobody")
DAEMON = pwd.getpwnam("daemon")
UNUSED = 4_000_000
"""A number that no user and no group has."""


@pytest.mark.parametrize("value", ["nobody", NOBODY.pw_uid, str(NOBODY.pw_uid)])
def test_user(value: Any) -> None:
    assert user_id(value) == NOBODY.pw_uid


@pytest.mark.parametrize("value", ["daemon", DAEMON.pw_gid, str(DAEMON.pw_gid)])
def test_group(value: Any) -> None:
    assert group_id(value) == grp.getgrnam("daemon").gr_gid


def test_number_that_nobody_has() -> None:
    assert user_id(UNUSED) == group_id(str(UNUSED)) == UNUSED


@pytest.mark.parametrize("value", ["no such", "", "-1", "1.5", "٣", "a\0b"])
def test_unknown_names(value: str) -> None:
    with pytest.raises(ValueError, match="there is no user"):
        user_id(value)
    with pytest.raises(ValueError, match="there is no group"):
        group_id(value)


@pytest.mark.parametrize("value", [-1, 2**32 - 1, "4294967295", 2**40])
def test_impossible_numbers(value: int | str) -> None:
    with pytest.raises(ValueError, match="is not the number of a user"):
        user_id(value)


@pytest.mark.parametrize("value", [True, 1.0, None, ["nobody"]])
def test_other_types(value: Any) -> None:
    with pytest.raises(TypeError, match="neither the name nor the number of a group"):
        group_id(value)


@pytest.mark.parametrize("text", ["nobody", str(NOBODY.pw_uid)])
def test_account_of_a_user(text: str) -> None:
    account = Account.parse(text)
    assert (account.uid, account.gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert set(account.groups) == set(os.getgrouplist("nobody", NOBODY.pw_gid))


@pytest.mark.parametrize("group", ["daemon", str(DAEMON.pw_gid)])
def test_account_with_a_group(group: str) -> None:
    account = Account.parse(f"nobody:{group}")
    assert account.gid == DAEMON.pw_gid
    assert account.gid in account.groups
    assert NOBODY.pw_gid not in account.groups


def test_account_of_a_number_that_nobody_has() -> None:
    assert Account.parse(f"{UNUSED}") == Account(UNUSED, UNUSED, (UNUSED,))
    assert Account.parse(f"{UNUSED}:0") == Account(UNUSED, 0, (0,))


@pytest.mark.parametrize("text", ["", ":0", "0:", "no such", "0:no such", "0:0:0"])
def test_no_account(text: str) -> None:
    with pytest.raises(ValueError, match="there is no"):
        Account.parse(text)
