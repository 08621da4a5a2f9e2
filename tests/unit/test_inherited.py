"""Sockets of a service manager: sd_listen_fds(3), and which NIC each is for."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvirt_net import inherited
from mvirt_net.errors import ConfigError
from mvirt_net.inherited import ActivatedSocket, match_activated, take_activated
from mvirt_net.model import NicSpec

FIRST = 300
"""In place of 3, which is somebody else's in the process of the tests."""


@pytest.fixture(autouse=True)
def first_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inherited, "FIRST_ACTIVATED_FD", FIRST)


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def hand_over(*sockets: socket.socket) -> None:
    """Put the sockets where `take_activated` looks for them; close the originals."""
    for number, sock in enumerate(sockets, FIRST):
        assert fcntl.fcntl(sock, fcntl.F_DUPFD, number) == number
        sock.close()


def environ(count: str, names: str | None = None) -> dict[str, str]:
    given = {"HOME": "/", "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
    return given if names is None else {**given, "LISTEN_FDNAMES": names}


class TestTake:
    def test_takes_all_and_forgets_the_variables(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a", tmp_path / "b"]
        hand_over(*map(listening, paths))
        given = environ("2", "x:")
        taken = take_activated(given)
        assert given == {"HOME": "/"}
        assert [(one.sock.fileno(), one.name, one.path) for one in taken] == [
            (FIRST, "x", paths[0]),
            (FIRST + 1, "", paths[1]),
        ]
        for one in taken:
            assert not one.sock.get_inheritable()
            one.sock.close()

    def test_without_names(self, tmp_path: Path) -> None:
        hand_over(listening(tmp_path / "a"))
        [taken] = take_activated(environ("1"))
        assert taken.name == "unknown"
        taken.sock.close()

    @pytest.mark.parametrize(
        "given",
        [
            {},
            {"LISTEN_FDS": "1"},
            {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
            {"LISTEN_PID": "me", "LISTEN_FDS": "x"},
        ],
    )
    def test_meant_for_another_process(self, given: dict[str, str], tmp_path: Path) -> None:
        """As a shell that was activated hands its environment on."""
        hand_over(listening(tmp_path / "a"))
        assert take_activated(given) == []
        assert given == {}
        os.close(FIRST)  # which is still open

    @pytest.mark.parametrize("count", ["", "x", "-1", "1e3", "٣", "9999999999"])
    def test_no_number(self, count: str) -> None:
        with pytest.raises(ConfigError, match=r"LISTEN_FDS: .* is no number of descriptors"):
            take_activated(environ(count))

    @pytest.mark.parametrize("names", ["", "a", "a:b:c"])
    def test_wrong_number_of_names(self, names: str) -> None:
        with pytest.raises(ConfigError, match=r"LISTEN_FDNAMES: . names for 2 descriptors"):
            take_activated(environ("2", names))

    def test_none(self) -> None:
        assert take_activated(environ("0")) == []


def datagram(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    return sock


def tcp(_path: Path) -> socket.socket:
    sock = socket.socket()
    sock.listen()
    return sock


def connected(_path: Path) -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


def abstract(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0{path}")
    sock.listen()
    return sock


class TestUnusable:
    @pytest.mark.parametrize("make", [datagram, tcp, connected, abstract])
    def test_refused_and_all_closed(self, make: object, tmp_path: Path) -> None:
        assert callable(make)
        hand_over(listening(tmp_path / "a"), make(tmp_path / "b"))
        with pytest.raises(ConfigError, match=rf"descriptor {FIRST + 1} \(b\): not a "):
            take_activated(environ("2", "a:b"))
        for fd in (FIRST, FIRST + 1):
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)

    def test_not_open(self) -> None:
        with pytest.raises(ConfigError, match=rf"descriptor {FIRST} \(unknown\): Bad file"):
            take_activated(environ("1"))


def nic(name: str, path: str | None) -> NicSpec:
    return NicSpec(name=name, network="blue", socket_path=path)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as one:
        yield one


class TestMatch:
    def test_by_path(self, sock: socket.socket) -> None:
        nics = [nic("vm1", "/run/a.sock"), nic("vm2", "/run/b.sock"), nic("vm3", None)]
        activated = ActivatedSocket("vm1", sock, Path("/run/b.sock"))
        assert match_activated([activated], nics) == {"vm2": sock}
        assert match_activated([], nics) == {}

    def test_nobodys(self, sock: socket.socket) -> None:
        activated = ActivatedSocket("vm1", sock, Path("/run/b.sock"))
        with pytest.raises(ConfigError, match=r"no NIC has /run/b.sock \(vm1\)"):
            match_activated([activated], [nic("vm1", "/run/a.sock"), nic("vm3", None)])

    def test_twice(self, sock: socket.socket) -> None:
        activated = ActivatedSocket("x", sock, Path("/run/a.sock"))
        with pytest.raises(ConfigError, match=r"two sockets at /run/a.sock \(x\)"):
            match_activated([activated, activated], [nic("vm1", "/run/a.sock")])
