"""Who is at the other end of a socket, and whether that process may connect."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio

from mvirt_net.model import SocketAccess
from mvirt_net.peer import PeerCredentials, peer_credentials

PEER = PeerCredentials(pid=1, uid=10, gid=20, groups=frozenset({21, 22}))


def test_socket_pair() -> None:
    ours, theirs = (trio.socket.from_stdlib_socket(sock) for sock in socket.socketpair())
    with ours, theirs:
        peer = peer_credentials(ours)
    assert peer == PeerCredentials(
        os.getpid(), os.geteuid(), os.getegid(), frozenset(os.getgroups())
    )


def test_groups_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvirt_net.peer._SO_PEERGROUPS", 9999)
    ours, theirs = (trio.socket.from_stdlib_socket(sock) for sock in socket.socketpair())
    with ours, theirs:
        assert peer_credentials(ours).groups == frozenset()


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        ({}, True),
        ({"allow_uid": [9, 10]}, True),
        ({"allow_uid": [20]}, False),
        ({"allow_gid": [20]}, True),
        ({"allow_gid": [22]}, True),
        ({"allow_gid": [10]}, False),
        ({"allow_uid": [10], "allow_gid": [9]}, True),
        ({"allow_uid": [9], "allow_gid": [21]}, True),
        ({"allow_uid": [9], "allow_gid": [9]}, False),
    ],
)
def test_may_connect(access: dict[str, Any], expected: bool) -> None:
    assert PEER.may_connect(SocketAccess(**access)) is expected


def test_root_is_nobody_special() -> None:
    root = PeerCredentials(pid=1, uid=0, gid=0)
    assert not root.may_connect(SocketAccess(allow_uid=[10]))
