"""A daemon that is killed and started again: guests go on where they were."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.packets import (
    GATEWAY_IP,
    GATEWAY_MAC,
    arp_request,
    icmp_echo_request,
    parse_arp_reply,
    parse_icmp_echo_request,
)
from tests.harness.process import Daemon, started

from .conftest import Survived
from .daemon import BYSTANDER_IP, BYSTANDER_MAC, IP, MAC, write_config

KILLS = 2


@contextlib.asynccontextmanager
async def killed_at_end(folder: Path) -> AsyncIterator[Daemon]:
    """A daemon that has no time to remove its sockets."""
    with started(*write_config(folder)) as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        yield daemon
        daemon.send(signal.SIGKILL)
        assert await trio.to_thread.run_sync(daemon.wait) == -signal.SIGKILL


async def talk(a: VhostTestClient, b: VhostTestClient, number: int) -> None:
    """Both ask for the gateway, and one pings the other."""
    await arp_gateway(a, MAC, IP)
    await arp_gateway(b, BYSTANDER_MAC, BYSTANDER_IP)
    ping = icmp_echo_request(MAC, GATEWAY_MAC, IP, BYSTANDER_IP, 1, number, b"ping")
    await a.send_packet(ping)
    assert parse_icmp_echo_request(await b.recv_packet()).seq_no == number


async def test_guests_go_on(nursery: trio.Nursery, tmp_path: Path, survived: Survived) -> None:
    paths = tmp_path / "attacked.sock", tmp_path / "bystander.sock"
    async with killed_at_end(tmp_path):
        a, b = [await VhostTestClient.connect(nursery, path) for path in paths]
        await talk(a, b, 0)
    for number in range(1, KILLS + 1):
        assert all(path.is_socket() for path in paths)
        # Nobody is there to take it; it waits in the ring for the next daemon.
        a.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
        async with killed_at_end(tmp_path):
            await a.reconnect()
            await b.reconnect()
            assert parse_arp_reply(await a.recv_packet()).sender_ip == GATEWAY_IP
            await a.wait_tx_completion()
            await talk(a, b, number)
    await a.aclose()
    await b.aclose()
    survived("kill -9 of the daemon", KILLS + 1)
