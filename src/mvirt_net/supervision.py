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

from .log import get_logger

log = get_logger(__name__)


def sd_notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager `state`, ``READY=1``; nothing when there is none.

    A manager that went away is not a reason to stop serving, so failure is only logged. Never
    blocks: a full datagram queue is a failure too.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace (unix(7))
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
            notify.sendto(state.encode(), address)
    except OSError as error:
        log.warning("service manager not notified", state=state, error=str(error))


def announce_ready(fd: int | None) -> None:
    """Tell everybody who asked that frontends can connect now.

    Args:
        fd: gets one line and is closed, whatever comes of it; None when nobody gave one.
    """
    sd_notify("READY=1")
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

    At the end the file is left alone if another process has written its own id there meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    if path is None:
        yield
        return
    ours = f"{os.getpid()}\n".encode()
    path.write_bytes(ours)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_bytes() == ours:
                path.unlink()


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
