"""The folder for sockets: whoever may use a socket in it gets there, and few others."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from mvirt_net.accounts import Account
from mvirt_net.cli import command
from mvirt_net.cli.folders import make_socket_dir
from mvirt_net.model import ApiSpec, DaemonConfig, NetworkSpec, NicSpec, SocketAccess

BLUE = NetworkSpec(name="blue")
Given = list[tuple[int, int]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Owner and group that folders were given, which only root can do."""
    found: Given = []
    monkeypatch.setattr(os, "fchown", lambda _fd, owner, group: found.append((owner, group)))
    return found


@pytest.fixture(autouse=True, params=[0o022, 0o077])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def made(folder: Path, config: DaemonConfig, account: Account | None = None) -> int:
    """The permissions of the folder."""
    make_socket_dir(folder, config, (), account)
    return stat.S_IMODE(folder.stat().st_mode)


def nic(folder: Path, name: str, **fields: Any) -> NicSpec:
    return NicSpec(name=name, network="blue", socket_path=folder / f"{name}.sock", **fields)


def with_nics(folder: Path, *accesses: dict[str, Any]) -> DaemonConfig:
    nics = tuple(nic(folder, f"vm{n}", **access) for n, access in enumerate(accesses))
    return DaemonConfig(networks=(BLUE,), nics=nics)


@pytest.mark.parametrize(
    ("accesses", "mode", "group"),
    [
        ([{}], 0o750, -1),
        ([{"socket_group": 6}], 0o750, 6),
        ([{"socket_group": 6}] * 2, 0o750, 6),
        ([{"socket_group": 6}, {"socket_group": 7}], 0o751, -1),
        ([{"socket_group": 6}, {}], 0o751, -1),
        ([{"socket_group": 6, "socket_owner": 5}], 0o751, 6),
        ([{"socket_group": 6, "socket_owner": os.geteuid()}], 0o750, 6),
        ([{"socket_mode": "0666"}], 0o751, -1),
    ],
)
def test_for_nics(
    tmp_path: Path, given: Given, accesses: list[dict[str, Any]], mode: int, group: int
) -> None:
    folder = tmp_path / "s"
    assert made(folder, with_nics(folder, *accesses)) == mode
    assert given == [(-1, group)]


@pytest.mark.parametrize(
    ("api_group", "default_group", "mode", "group"),
    [
        (None, None, 0o750, -1),
        (6, 6, 0o750, 6),
        (6, None, 0o751, -1),
        (None, 6, 0o751, -1),
        (6, 7, 0o751, -1),
    ],
)
def test_for_control_interfaces(
    tmp_path: Path,
    given: Given,
    api_group: int | None,
    default_group: int | None,
    mode: int,
    group: int,
) -> None:
    """Those who control, and the frontends of the NICs that they will make."""
    folder = tmp_path / "s"
    api = ApiSpec(http=[f"unix:{folder}/control.sock"], socket_group=api_group)
    config = DaemonConfig(api=api, defaults=SocketAccess(socket_group=default_group))
    assert made(folder, config) == mode
    assert given == [(-1, group)]


def test_interfaces_elsewhere_do_not_count(tmp_path: Path, given: Given) -> None:
    folder = tmp_path / "s"
    api = ApiSpec(http=["127.0.0.1:1", "unix:/run/x.sock"], socket_group=6)
    assert made(folder, DaemonConfig(api=api, defaults=SocketAccess(socket_group=7))) == 0o750
    assert given == [(-1, 7)]


def test_for_another_account(tmp_path: Path, given: Given) -> None:
    """Which the sockets belong to; to it, the folder does not have to be opened."""
    folder = tmp_path / "s"
    config = with_nics(folder, {"socket_owner": 4, "socket_group": 6})
    assert made(folder, config, Account(uid=4, gid=6, groups=())) == 0o750
    assert given == [(4, 6)]


def test_for_no_socket_none_is_made(tmp_path: Path, given: Given) -> None:
    folder = tmp_path / "s"
    config = with_nics(tmp_path, {})
    make_socket_dir(folder, config, (), None)
    make_socket_dir(tmp_path / "t", with_nics(tmp_path / "t", {}), {"vm0": None}, None)
    assert list(tmp_path.iterdir()) == []
    assert given == []


def test_one_that_is_there_stays_as_it_is(tmp_path: Path, given: Given) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o700)
    assert made(folder, with_nics(folder, {"socket_group": 6})) == 0o700
    assert given == []


def test_a_reload_finds_the_usual_state_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the daemon may be another user, who has no home."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    config = folder / "x.toml"
    config.touch()
    started: list[DaemonConfig] = []
    reloads: list[Callable[[], DaemonConfig]] = []

    def run(
        _ctx: click.Context, config: DaemonConfig, *, reload: Callable[[], DaemonConfig], **_: Any
    ) -> None:
        started.append(config)
        reloads.append(reload)

    monkeypatch.setattr("mvirt_net.cli.serve.run", run)
    args = ["serve", "--config", str(config), "--socket-dir", str(folder / "s"), "--http"]
    command.main(args, standalone_mode=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/nonexistent")
    assert started[0].state == folder / "mvirt-net" / "state.db"
    assert [reload() for reload in reloads] == started
