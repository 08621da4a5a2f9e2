"""Sockets that whoever started the daemon has opened for it."""

from __future__ import annotations

import socket


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
