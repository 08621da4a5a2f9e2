"""Listening on a unix socket path: taken over when stale, left alone when live, removed at the end.

**Theory of operation.** ``bind`` makes the socket file and refuses a path that exists. Then the
path is probed with ``connect``: when somebody answers it is theirs; when nobody does, it was left
behind by a process that died, and is removed. A file that is no socket is never touched. The file
that was made is remembered by device and inode, for it may be removed or replaced at any time by
somebody else, whose file must not be removed at the end in its place. Between ``bind`` and
``listen`` even another process that does the same may think it stale; so once we listen, and nobody
can think that any more, we look whether it is still there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Self

import trio

from .errors import SocketAccessError, SocketInUseError, SocketPathError

SOCKET_MODE = 0o660
"""Permissions of the socket file: whoever may write to it may be the guest."""
BACKLOG = socket.SOMAXCONN
"""Connections that wait to be accepted, of which the kernel allows fewer (``net.core.somaxconn``).
As many as there may be, for one too many fails at once when it does not block (connect(2), EAGAIN).
They cost this process no descriptor."""

_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_TAKE_OVERS = 3
"""Attempts to get a path that another process may be fighting for."""


class UnixListener:
    """A listening unix stream socket and its file; made by `open_unix_listener`.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.path = path.absolute()
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._identity = _identity(self.path)

    def start(self) -> None:
        """Let connections in.

        Raises:
            SocketInUseError: another process has taken the path since it was bound.
            OSError: as listen(2).
        """
        _give_back_what_umask_took(self.path)
        self._sock.listen(BACKLOG)
        if not self.is_in_place:
            raise SocketInUseError(f"{self.path}: another process took it at the same time")

    async def accept(self) -> trio.socket.SocketType:
        """Wait for a connection. The socket returned is the caller's.

        Raises:
            OSError: as accept(2).
        """
        sock, _ = await self._sock.accept()
        return sock

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads here."""
        return _identity(self.path) == self._identity

    def close(self) -> None:
        """Stop listening and remove the socket file if it is still ours. May be called again."""
        if self._sock.fileno() >= 0 and self.is_in_place:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()


def open_unix_listener(path: Path) -> UnixListener:
    """Listen on `path`; never blocks. The listener can be closed only inside trio.

    Args:
        path: of at most 107 bytes; its folder must exist.

    Raises:
        SocketInUseError: somebody listens there.
        SocketAccessError: there is no permission, or the file system is read-only.
        SocketPathError: anything else: no folder, a file that is no socket, a path too long.
    """
    try:
        listener = UnixListener(_bound_socket(path), path)
        try:
            listener.start()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        kind = SocketAccessError if error.errno in _NO_PERMISSION else SocketPathError
        raise kind(f"{path}: {error.strerror or error}") from error
    return listener


def _bound_socket(path: Path) -> socket.socket:
    """A socket whose file is at `path`, in the place of a stale one if need be."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The permissions of the file at its birth, less what the umask takes.
        os.fchmod(sock.fileno(), SOCKET_MODE)
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


def _give_back_what_umask_took(path: Path) -> None:
    """Set `SOCKET_MODE` on the socket file at `path`, never through a symbolic link."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode) and stat.S_IMODE(mode) != SOCKET_MODE:
            # fchmod does not take such a descriptor, but its name does (open(2), O_PATH).
            Path(f"/proc/self/fd/{fd}").chmod(SOCKET_MODE)
    finally:
        os.close(fd)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells the file at `path` from another one that takes its place; None: there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
