"""Listening on a unix socket path: taken over when stale, left alone when live, removed at the end.

**Theory of operation.** ``bind`` makes the socket file and refuses a path that exists. Then the
path is probed with ``connect``: when somebody answers it is theirs; when nobody does, it was left
behind by a process that died, and is removed. A file that is no socket is never touched. The file
that was made is remembered by device and inode, for it may be removed or replaced at any time by
somebody else, whose file must not be removed at the end in its place. Between ``bind`` and
``listen`` even another process that does the same may think it stale; so once we listen, and nobody
can think that any more, we look whether it is still there.

Owner, group and mode are set in that time too. Nobody can connect before ``listen``, so there is no
moment at which the socket is open to more people than it is meant for.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Self

import trio

from .errors import SocketAccessError, SocketInUseError, SocketPathError
from .log import get_logger
from .model import SocketAccess

BACKLOG = socket.SOMAXCONN
"""Connections that wait to be accepted, of which the kernel allows fewer (``net.core.somaxconn``).
As many as there may be, for one too many fails at once when it does not block (connect(2), EAGAIN).
They cost this process no descriptor."""

_UNCHANGED = -1
"""The owner or group that chown(2) leaves as it is."""
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_TAKE_OVERS = 3
"""Attempts to get a path that another process may be fighting for."""

_log = get_logger(__name__)


class Listener:
    """A listening unix stream socket that somebody else has made; its file, if any, is theirs.

    Use it as a context manager, or call `close`.

    Args:
        sock: owned from here on.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    def accept_nowait(self) -> socket.socket | None:
        """A connection that does not block, the caller's from here on; None: there is none.

        Raises:
            OSError: as accept(2).
        """
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return None
        sock.setblocking(False)
        return sock

    @property
    def is_in_place(self) -> bool:
        """Whether the file is where it was, if that is for us to know."""
        return True

    def close(self) -> None:
        """Stop listening. May be called again, inside trio only."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


class UnixListener(Listener):
    """One of our own, and its file; made by `open_unix_listener`."""

    __slots__ = ("_identity", "path")

    def __init__(self, sock: socket.socket, path: Path) -> None:
        super().__init__(sock)
        self.path = path.absolute()
        self._identity = _identity(self.path)

    def start(self, access: SocketAccess) -> None:
        """Let connections in from those whom `access` says.

        Raises:
            SocketInUseError: another process has taken the path since it was bound.
            OSError: as listen(2), chown(2) and chmod(2).
        """
        self._set_access(access)
        self.sock.listen(BACKLOG)
        if not self.is_in_place:
            raise SocketInUseError(f"{self.path}: another process took it at the same time")

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads here."""
        return _identity(self.path) == self._identity

    def close(self) -> None:
        """Stop listening and remove the socket file if it is still ours. May be called again."""
        if self.sock.fileno() >= 0:
            self._remove_file()
        super().close()

    def _remove_file(self) -> None:
        """Remove the socket file if it is still ours, or say why it stays."""
        try:
            if _identity_or_raise(self.path) == self._identity:
                self.path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("socket is left behind", path=str(self.path), reason=error.strerror)

    def _set_access(self, access: SocketAccess) -> None:
        """Give the socket file its owner, group and mode, never through a symbolic link."""
        mode = access.mode.bits
        owner = _UNCHANGED if access.socket_owner is None else access.socket_owner
        group = _UNCHANGED if access.socket_group is None else access.socket_group
        fd = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._identity or not stat.S_ISSOCK(
                status.st_mode
            ):
                return  # somebody else's by now, which `start` will find out
            # fchown and fchmod do not take such a descriptor, but its name does (open(2), O_PATH).
            name = f"/proc/self/fd/{fd}"
            if (owner, group) != (_UNCHANGED, _UNCHANGED):
                self._chown(name, owner, group)
            if stat.S_IMODE(status.st_mode) != mode:
                Path(name).chmod(mode)
        finally:
            os.close(fd)

    def _chown(self, name: str, owner: int, group: int) -> None:
        """Say what it was that went wrong: the path itself is one that we could bind to."""
        try:
            os.chown(name, owner, group)
        except PermissionError as error:
            named = {"user": owner, "group": group}
            whom = [f"{kind} {number}" for kind, number in named.items() if number != _UNCHANGED]
            raise SocketAccessError(
                f"{self.path}: cannot be given to {' and '.join(whom)}: {error.strerror}"
            ) from error


def open_unix_listener(path: Path, access: SocketAccess) -> UnixListener:
    """Listen on `path`; never blocks. The listener can be closed only inside trio.

    Args:
        path: of at most 107 bytes; its folder must exist, and be one in which nobody may make
            files who may not also have this socket.
        access: owner, group and mode of the file; its lists of users and groups are not for here.

    Raises:
        SocketInUseError: somebody listens there.
        SocketAccessError: there is no permission, or the file system is read-only.
        SocketPathError: anything else: no folder, a file that is no socket, a path too long.
    """
    try:
        listener = UnixListener(_bound_socket(path, access.mode.bits), path)
        try:
            listener.start(access)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        kind = SocketAccessError if error.errno in _NO_PERMISSION else SocketPathError
        raise kind(f"{path}: {error.strerror or error}") from error
    return listener


def _bound_socket(path: Path, mode: int) -> socket.socket:
    """A socket whose file is at `path`, in the place of a stale one if need be.

    Args:
        path: of the file.
        mode: its permissions.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The permissions of the file at its birth, less what the umask takes.
        os.fchmod(sock.fileno(), mode)
        for _ in range(_TAKE_OVERS):
            if _bind(sock, path):
                return sock
            _remove_stale(path)
    except BaseException:
        sock.close()
        raise
    sock.close()
    raise SocketInUseError(f"{path}: another process takes it again and again")


def _bind(sock: socket.socket, path: Path) -> bool:
    """Make the socket file; False when the path is taken."""
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True


def _remove_stale(path: Path) -> None:
    """Remove a socket file on which nobody listens.

    Raises:
        SocketInUseError: somebody does.
        SocketPathError: it is no socket.
        OSError: it cannot be probed or removed.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketPathError(f"{path}: exists and is not a socket")
    if _is_listened_on(path):
        raise SocketInUseError(f"{path}: another process listens there")
    if _identity(path) == (status.st_dev, status.st_ino):
        path.unlink(missing_ok=True)


def _is_listened_on(path: Path) -> bool:
    """Whether a connection would be accepted, or is queued for that. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            # Its queue of connections is full, so it has one.
            return True
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells the file at `path` from another one that takes its place; None: there is none."""
    try:
        return _identity_or_raise(path)
    except OSError:
        return None


def _identity_or_raise(path: Path) -> tuple[int, int]:
    """As `_identity`. Raises OSError."""
    status = path.lstat()
    return status.st_dev, status.st_ino
