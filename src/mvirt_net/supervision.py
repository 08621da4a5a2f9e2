"""What whoever started the daemon hears of it, outside its log, and what it gives us.

Two ways to say "the sockets are there": a datagram to systemd (sd_notify(3)) and a line on an
inherited descriptor, as s6 and shell scripts like it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from .log import get_logger

log = get_logger(__name__)


class ServiceManager:
    """Whoever wants to hear of us by sd_notify(3), if anybody does.

    The connection is made at once and kept: when there is something to tell, the daemon may have
    given up the rights for it. A manager that went away is not a reason to stop serving, so failure
    is only logged, when there is something to tell. Use it as a context manager.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._socket: socket.socket | None = None
        self._failure: OSError | None = None
        address = environ.get("NOTIFY_SOCKET")
        if not address:
            return
        if address.startswith("@"):  # the abstract namespace (unix(7))
            address = "\0" + address[1:]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(address)
        except OSError as error:
            self._failure = error

    def tell(self, state: str) -> None:
        """Tell it `state`, ``READY=1``. Never blocks: a full datagram queue is a failure too."""
        if self._socket is None:
            return
        try:
            if self._failure is not None:
                raise self._failure
            self._socket.send(state.encode())
        except OSError as error:
            log.warning("service manager not notified", state=state, error=str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self._socket is not None:
            self._socket.close()


def announce_ready(manager: ServiceManager, fd: int | None) -> None:
    """Tell everybody who asked that frontends can connect now.

    Args:
        manager: hears of it first.
        fd: gets one line and is closed, whatever comes of it; None when nobody gave one.
    """
    manager.tell("READY=1")
    if fd is None:
        return
    try:
        os.write(fd, b"ready\n")
    except OSError as error:
        log.warning("nobody reads the ready descriptor", fd=fd, error=str(error))
    finally:
        os.close(fd)


@contextlib.contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Keep our process id in `path` for as long as the context lasts.

    At the end the file is left alone if another process has written its own id there meanwhile, or
    if we have no right to remove it any more, which is logged.

    Raises:
        OSError: it cannot be written.
    """
    if path is None:
        yield
        return
    ours = f"{os.getpid()}\n".encode()
    try:
        _replace(path, ours)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield
    finally:
        try:
            if _content(path, len(ours) + 1) == ours:
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("pid file is left behind", path=str(path), reason=error.strerror)


def _content(path: Path, size: int) -> bytes:
    """The first bytes of a file, which may be a link or a pipe by now: neither is followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside and put it in the place of what is there, be it a link or whatever else.

    We may be root, and the folder somebody's who would have us write to a file of root's.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(beside, flags, 0o644)
    try:
        os.write(fd, content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def raise_fd_limit() -> None:
    """Use all the descriptors we may have: each connection needs five to seven.

    Fewer will do for a few NICs, so failure is only logged.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        # ValueError: above fs.nr_open, which may have been lowered since the limit was set.
        log.warning("limit of open descriptors not raised", soft=soft, error=str(error))
