"""Who is at the other end of a unix socket, as the kernel saw it at the time of connect(2)."""

from __future__ import annotations

import array
import socket
import struct

import attrs
import trio

from .model import SocketAccess

_SO_PEERGROUPS = 59
"""``asm-generic/socket.h``; Python has no name for it. Since Linux 4.13."""
_UCRED = struct.Struct("@iII")
"""``struct ucred`` (unix(7), SO_PEERCRED)."""
_MAX_GROUPS = 256
"""Supplementary groups that are looked at; Python reads no longer socket options."""

_Socket = socket.socket | trio.socket.SocketType


@attrs.frozen
class PeerCredentials:
    """A process: the one that connected, or that made the socket pair."""

    pid: int
    """0 for a process outside our PID namespace."""
    uid: int
    """The effective one, here and below; 65534 for one outside our user namespace."""
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""

    def may_connect(self, access: SocketAccess) -> bool:
        """Whether `access` lets this process in."""
        if access.allow_uid is None and access.allow_gid is None:
            return True
        groups = self.groups | {self.gid}
        return self.uid in (access.allow_uid or ()) or bool(groups & (access.allow_gid or set()))


def peer_credentials(sock: _Socket) -> PeerCredentials:
    """The process at the other end of a connected unix socket. Raises OSError."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(packed)
    return PeerCredentials(pid, uid, gid, _groups(sock))


def _groups(sock: _Socket) -> frozenset[int]:
    """The supplementary groups of the peer; none when they cannot be had, which lets in less."""
    groups = array.array("I")
    try:
        size = _MAX_GROUPS * groups.itemsize
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size))
    except OSError:
        # An old kernel (ENOPROTOOPT), or more groups than that (ERANGE).
        return frozenset()
    return frozenset(groups)
