"""Sockets that whoever started the daemon has opened for it.

One by its number (``--fd``), or any number of listening ones by systemd's protocol for socket
activation (sd_listen_fds(3)). Of the latter, each is for the NIC whose socket path it is bound to;
names (``FileDescriptorName=``) are only for messages, so that there is one truth about where a NIC
is found.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, MutableMapping
from pathlib import Path

import attrs

from .errors import ConfigError
from .model import NicSpec

FIRST_ACTIVATED_FD = 3
"""SD_LISTEN_FDS_START."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_socket(fd: int) -> socket.socket:
    """The unix stream socket, listening or connected, with the descriptor `fd`.

    The descriptor belongs to the socket from here on; it is closed when it is not one of that kind.

    Raises:
        ValueError: why frontends cannot be served on it.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(error.strerror) from error
    if problem := _why_unusable(sock):
        sock.close()
        raise ValueError(problem)
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether ``listen`` was called on `sock` (socket(7), SO_ACCEPTCONN)."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _why_unusable(sock: socket.socket) -> str | None:
    """What is wrong with the socket; None when frontends can be served on it."""
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        return "not a unix stream socket"
    try:
        if not is_listening(sock):
            sock.getpeername()
    except OSError as error:
        return error.strerror
    return None


# Socket activation.


@attrs.frozen
class ActivatedSocket:
    """A listening socket of a service manager, which keeps it and its file when we end."""

    name: str
    """As the manager calls it; not unique."""
    sock: socket.socket
    path: Path
    """Where it is bound."""


def take_activated(environ: MutableMapping[str, str] = os.environ) -> list[ActivatedSocket]:
    """The sockets that the environment speaks of, if it speaks to this process.

    As sd_listen_fds(3) with ``unset_environment``: children neither get the descriptors nor are
    told of them. The descriptors belong to the sockets from here on.

    Raises:
        ConfigError: the variables contradict each other, or a descriptor is no listening unix
            stream socket with a path; what was taken is closed.
    """
    pid, count, names = (environ.pop(name, None) for name in _VARIABLES)
    if pid != str(os.getpid()) or count is None:
        return []
    taken: list[ActivatedSocket] = []
    try:
        for fd, name in _numbered(count, names):
            taken.append(_take_one(fd, name))
    except ConfigError:
        for activated in taken:
            activated.sock.close()
        raise
    return taken


def _numbered(count: str, names: str | None) -> Iterable[tuple[int, str]]:
    """The descriptors and their names. Raises ConfigError."""
    if not re.fullmatch(r"[0-9]{1,9}", count, re.ASCII):
        raise ConfigError("LISTEN_FDS", f"{count!r} is no number of descriptors")
    number = int(count)
    listed = ["unknown"] * number if names is None else names.split(":")
    if len(listed) != number:
        raise ConfigError("LISTEN_FDNAMES", f"{len(listed)} names for {number} descriptors")
    return enumerate(listed, FIRST_ACTIVATED_FD)


def _take_one(fd: int, name: str) -> ActivatedSocket:
    try:
        sock = take_socket(fd)
        sock.set_inheritable(False)
        return ActivatedSocket(name, sock, _bound_path(sock))
    except ValueError as error:
        raise ConfigError("LISTEN_FDS", f"descriptor {fd} ({name}): {error}") from error


def _bound_path(sock: socket.socket) -> Path:
    """Where a listening socket is bound. Closes it and raises ValueError when there is none."""
    address = sock.getsockname()
    # Abstract addresses are bytes, and no address at all is an empty string.
    if not is_listening(sock) or not isinstance(address, str) or not address:
        sock.close()
        raise ValueError("not a listening socket with a path")
    return Path(address)


def match_activated(
    sockets: Iterable[ActivatedSocket], nics: Iterable[NicSpec]
) -> dict[str, socket.socket]:
    """Which socket is which NIC's, by the NIC's name.

    Raises:
        ConfigError: a socket is nobody's, and its frontends would wait for ever, or two have the
            same path, of which frontends reach the later one only.
    """
    by_path = {nic.socket_path: nic.name for nic in nics}
    matched: dict[str, socket.socket] = {}
    for activated in sockets:
        nic = by_path.get(activated.path)
        if nic is None:
            raise ConfigError("LISTEN_FDS", f"no NIC has {activated.path} ({activated.name})")
        if nic in matched:
            raise ConfigError("LISTEN_FDS", f"two sockets at {activated.path} ({activated.name})")
        matched[nic] = activated.sock
    return matched
