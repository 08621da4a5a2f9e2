"""Clients of the control interfaces that misbehave, while guests are served."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.settings
import trio

from mvirt_net.api.connections import MAX_CONNECTIONS
from tests.harness.config import one_network
from tests.harness.process import (
    MAC,
    Daemon,
    run_failing,
    serve,
    serves_a_guest,
    started,
    two_nics,
)

WITHOUT_EXTRA = """
import sys
sys.modules["hypercorn"] = None
from mvirt_net.cli import main
sys.exit(main())
"""
"""A program: the daemon as if hypercorn was not installed."""
CONFIG = one_network(vm1={"mac_address": MAC, "ipv4_address": "10.0.0.5"})
"""Of the guest of `serves_a_guest`."""
HEADERS = [
    (":method", "POST"),
    (":path", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
LIST_SERVICES = b"\0\0\0\0\x03\x3a\x01*"
"""A ServerReflectionRequest for ``list_services: "*"``, with its prefix."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Daemon, Path, Path]]:
    """A daemon with a NIC, and its sockets for gRPC and HTTP."""
    grpc, http = folder / "grpc.sock", folder / "http.sock"
    arguments = ("--grpc", f"unix:{grpc}", "--http", f"unix:{http}")
    with started(*serve(folder, CONFIG), *arguments) as daemon:
        daemon.wait_ready()
        yield daemon, grpc, http


def connected(stack: contextlib.ExitStack, path: Path) -> socket.socket:
    """A connection that does not wait when nobody reads."""
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(path))
    sock.setblocking(False)
    return sock


def push(sock: socket.socket, data: bytes) -> None:
    """Send as much as there is room for."""
    with contextlib.suppress(BlockingIOError):
        while data:
            data = data[sock.send(data) :]


def flood_with_resets(sock: socket.socket) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for stream_id in range(1, 8000, 2):
        client.send_headers(stream_id, HEADERS)
        client.reset_stream(stream_id)
    push(sock, client.data_to_send())


def ask_with_closed_window(sock: socket.socket) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.send_headers(1, HEADERS)
    for _ in range(1000):
        client.send_data(1, LIST_SERVICES)
    push(sock, client.data_to_send())


async def test_guests_are_served_beside_clients_of_any_kind(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    with serving(tmp_path) as (daemon, grpc, http), contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 10):
            push(connected(stack, http), b"GET /v1/networks HTTP/1.1\r\nHost:")
        for _ in range(4):
            reads_nothing = connected(stack, grpc)
            ask_with_closed_window(reads_nothing)
            flood_with_resets(connected(stack, grpc))
            push(connected(stack, grpc), b"\x16\x03\x01 this is no HTTP")
        await serves_a_guest(nursery, tmp_path / "vm1.sock")
        # With all of them still there, the daemon is stopped, quickly.
        assert daemon.stop() == 0


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    arguments = (*two_nics(tmp_path), "--http", f"unix:{tmp_path}/http.sock")
    code, lines = run_failing(*arguments, command=("-c", WITHOUT_EXTRA))
    assert code == 1
    assert lines == [
        "mvirt-net: the control interfaces need a package that is not there (hypercorn.config):"
        " pip install 'mvirt-net[api]'"
    ]
    assert not list(tmp_path.glob("*.sock"))


def test_without_the_interfaces_the_packages_are_not_needed(tmp_path: Path) -> None:
    with started(*two_nics(tmp_path), command=("-c", WITHOUT_EXTRA)) as daemon:
        daemon.wait_ready()
        assert daemon.stop() == 0


def test_an_address_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = run_failing(*two_nics(tmp_path), "--grpc", address)
    assert code == 69
    assert lines[-1:] == [f"mvirt-net: {address}: Address already in use"]
