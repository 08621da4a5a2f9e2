"""The programs of docs/how-to/embed.md run as they are printed there."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.harness.client import VhostTestClient
from tests.harness.packets import GATEWAY_IP, arp_request, is_arp_reply
from tests.harness.vhost_user import Connection

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "embed.md"
CARD, DAEMON, CONNECTED_SOCKET = range(3)


def program(number: int) -> Callable[[Any], Awaitable[None]]:
    """The `main` of the numbered program of the page."""
    source = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(source[number], str(PAGE), "exec"), namespace)
    main: Callable[[Any], Awaitable[None]] = namespace["main"]
    return main


async def test_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vm1.sock"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program(CARD), str(path))
        await trio.testing.wait_all_tasks_blocked()
        client = await VhostTestClient.connect(nursery, path)
        await client.send_packet(arp_request("52:54:00:12:34:56", "10.0.0.1", GATEWAY_IP))
        assert is_arp_reply(await client.recv_packet())
        await client.aclose()
    assert not list(tmp_path.iterdir())
    first, *events, stats = capsys.readouterr().out.splitlines()
    assert first == f"vm1 has 10.0.0.1 and waits at {path}"
    assert [event.split() for event in events] == [["vm1", "connected"], ["vm1", "disconnected"]]
    assert stats.startswith("NicStats(tx_frames=1,")


async def test_daemon(
    tmp_path: Path, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vm1.sock"
    nursery.start_soon(program(DAEMON), str(path))
    await trio.testing.wait_all_tasks_blocked()
    with contextlib.closing(await Connection.open(path)) as connection:
        await connection.get_features()
        await connection.wait_hung_up()
    assert capsys.readouterr().out == "a VM is here\n"


async def test_connected_socket(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program(CONNECTED_SOCKET), ours.detach())
        with contextlib.closing(Connection(trio.socket.from_stdlib_socket(theirs))) as connection:
            assert await connection.get_features()
    assert capsys.readouterr().out == "the VM is gone\n"
