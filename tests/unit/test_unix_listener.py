"""The socket file: whose it is, what it looks like, and what is left of it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvirt_net.errors import SocketAccessError, SocketInUseError, SocketPathError
from mvirt_net.model import SocketAccess
from mvirt_net.unix_listener import UnixListener, open_unix_listener

DEFAULT = SocketAccess()

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nic.sock"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def listening(path: Path, backlog: int = 1) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(backlog)
    return sock


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.connect(str(path))
    return sock


async def test_accepts(path: Path) -> None:
    with open_unix_listener(path, DEFAULT) as listener, connect(path) as theirs:
        ours = listener.accept_nowait()
        assert ours is not None
        ours.send(b"x")
        ours.close()
        assert listener.accept_nowait() is None
        assert theirs.recv(2) == b"x"


async def test_holds_connections_until_they_are_accepted(path: Path) -> None:
    with open_unix_listener(path, DEFAULT) as listener:
        # More than that only if the kernel's net.core.somaxconn says so.
        theirs = [connect(path) for _ in range(120)]
        for sock in theirs:
            ours = listener.accept_nowait()
            assert ours is not None
            ours.close()
            sock.close()


@pytest.mark.parametrize("mask", [0o000, 0o007, 0o022, 0o077, 0o777])
async def test_mode(path: Path, mask: int) -> None:
    with umask(mask), open_unix_listener(path, DEFAULT):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize("mode", ["0600", "0660", "0666"])
async def test_mode_of_choice(path: Path, mode: str) -> None:
    with umask(0o077), open_unix_listener(path, SocketAccess(socket_mode=mode)):
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)


@as_root
async def test_owner_and_group(path: Path) -> None:
    with open_unix_listener(path, SocketAccess(socket_owner=5, socket_group=6)) as listener:
        status = path.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 6, 0o660)
        assert listener.is_in_place
    assert not path.exists()


async def test_owner_group_and_mode_are_set_before_anybody_can_connect(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file looks like meanwhile, there is nobody to connect to."""
    seen: list[str] = []

    def chown(name: str, owner: int, group: int) -> None:
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(str(path))
        seen.append("refused")

    monkeypatch.setattr(os, "chown", chown)
    with open_unix_listener(path, SocketAccess(socket_group=os.getegid())):
        connect(path).close()
    assert seen == ["refused"]


async def test_another_file_in_its_place_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts another socket there just before it would get its owner and mode."""
    opened = os.open
    theirs: list[socket.socket] = []

    def replace_and_open(name: Path, flags: int) -> int:
        if not theirs:
            path.unlink()
            theirs.append(listening(path))
            path.chmod(0o600)
        return opened(name, flags)

    monkeypatch.setattr(os, "open", replace_and_open)
    with pytest.raises(SocketInUseError, match="at the same time"):
        open_unix_listener(path, SocketAccess(socket_mode="0666", socket_owner=os.geteuid()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    theirs[0].close()


async def test_cannot_be_given_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    expected = r"nic\.sock: cannot be given to user 5 and group 6: Operation not permitted"
    with pytest.raises(SocketAccessError, match=expected):
        open_unix_listener(path, SocketAccess(socket_owner=5, socket_group=6))
    assert not path.exists()


async def test_file_that_cannot_be_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with open_unix_listener(path, DEFAULT):
        monkeypatch.setattr(Path, "unlink", refuse)
    [record] = caplog.records
    assert record.message == "socket is left behind"
    assert record.reason == "Permission denied"  # type: ignore[attr-defined]


async def test_stale_socket_is_taken_over(path: Path) -> None:
    listening(path).close()
    with open_unix_listener(path, DEFAULT), connect(path):
        pass
    assert not path.exists()


async def test_socket_that_was_never_listened_on_is_taken_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with open_unix_listener(path, DEFAULT), connect(path):
        pass


def test_live_socket_is_left_alone(path: Path) -> None:
    with listening(path):
        with pytest.raises(SocketInUseError, match=r"nic\.sock: another process listens there"):
            open_unix_listener(path, DEFAULT)
        connect(path).close()


def test_live_socket_with_a_full_queue(path: Path) -> None:
    with listening(path, backlog=0), connect(path), pytest.raises(SocketInUseError):
        open_unix_listener(path, DEFAULT)


def test_socket_that_comes_back_again_and_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def unlink_and_bind(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        listening(self).close()

    listening(path).close()
    monkeypatch.setattr(Path, "unlink", unlink_and_bind)
    with pytest.raises(SocketInUseError, match="again and again"):
        open_unix_listener(path, DEFAULT)


@pytest.mark.parametrize("kind", ["file", "folder", "link to a socket", "dangling link"])
def test_what_is_no_socket_is_left_alone(path: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case "link to a socket":
            listening(target).close()
            path.symlink_to(target)
        case _:
            path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(SocketPathError, match="not a socket"):
        open_unix_listener(path, DEFAULT)
    assert path.lstat() == before


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SocketPathError, match=r"none/nic\.sock: No such file or directory"):
        open_unix_listener(tmp_path / "none" / "nic.sock", DEFAULT)


def test_path_too_long(tmp_path: Path) -> None:
    with pytest.raises(SocketPathError, match="too long"):
        open_unix_listener(tmp_path / ("x" * 108), DEFAULT)


def test_no_descriptor_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", no_socket)
    with pytest.raises(SocketPathError, match="Too many open files"):
        open_unix_listener(path, DEFAULT)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_permission(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("mvirt_net.unix_listener._bind", refuse)
    with pytest.raises(SocketAccessError, match=os.strerror(number)):
        open_unix_listener(path, DEFAULT)


@pytest.mark.parametrize("replacement", ["nothing", "socket"])
async def test_taken_over_between_bind_and_listen(
    path: Path, monkeypatch: pytest.MonkeyPatch, replacement: str
) -> None:
    """Another daemon that starts at the same moment found nobody listening yet."""
    theirs: list[socket.socket] = []

    def take_over(_listener: UnixListener, _access: SocketAccess) -> None:
        path.unlink()
        if replacement == "socket":
            theirs.append(listening(path))

    monkeypatch.setattr(UnixListener, "_set_access", take_over)
    with pytest.raises(SocketInUseError, match="at the same time"):
        open_unix_listener(path, DEFAULT)
    for sock in theirs:
        connect(path).close()
        sock.close()


@pytest.mark.parametrize("step", ["fchmod", "fstat"])
async def test_failure_leaves_nothing_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(SocketAccessError, match="Operation not permitted"):
            open_unix_listener(path, DEFAULT)
    assert not path.exists()


async def test_close_removes_the_file_and_may_come_twice(path: Path) -> None:
    listener = open_unix_listener(path, DEFAULT)
    listener.close()
    assert not path.exists()
    with open_unix_listener(path, DEFAULT):
        listener.close()
        assert path.exists()


@pytest.mark.parametrize("replacement", ["nothing", "socket", "folder", "link"])
async def test_m55_file_of_somebody_else_is_not_removed(
    path: Path, tmp_path: Path, replacement: str
) -> None:
    with open_unix_listener(path, DEFAULT) as listener:
        assert listener.is_in_place
        path.unlink()
        match replacement:
            case "socket":
                listening(path).close()
            case "folder":
                path.mkdir()
            case "link":
                path.symlink_to(tmp_path)
        assert not listener.is_in_place
    assert os.path.lexists(path) == (replacement != "nothing")
