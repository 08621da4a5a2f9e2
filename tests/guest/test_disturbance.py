"""Whoever is killed, reset or paused under load: the others' connections go on, with every byte."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from .fabric import (
    Fabric,
    GuestSpec,
    Place,
    configure,
    finish_transfer,
    is_under_way,
    open_fabric,
    start_transfer,
    wait_received,
)
from .image import Image
from .network import GATEWAY, ping_from
from .qemu import Guest, GuestNic

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

PLAIN = GuestNic(mac="", socket_path=Path())
SENT = 24
"""MiB of a transfer."""


async def connect(guest: Guest, place: Place) -> None:
    """Addresses, and a route for whoever does not choose between them."""
    await configure(guest, place)
    await guest.run(f"ip route replace default via {GATEWAY} dev {place.device} onlink")


async def connect_all(fabric: Fabric) -> None:
    for guest, (place,) in zip(fabric.guests, fabric.places, strict=True):
        await connect(guest, place)


@pytest.mark.parametrize("without", [(), ("mrg_rxbuf", "event_idx", "indirect_desc")])
async def test_tcp_outlives_a_killed_daemon(
    image: Image, folder: Path, without: tuple[str, ...]
) -> None:
    """Killed and started again three times, in the middle of one TCP connection."""
    nic = GuestNic(mac="", socket_path=Path(), without=without)
    specs = [GuestSpec("blue", [nic], number=number) for number in (1, 2)]
    async with open_fabric(image, folder, specs) as fabric:
        a, b = fabric.guests
        (pa,), (pb,) = fabric.places
        await a.run("udhcpc -i eth0 -f -p /run/udhcpc.pid > /run/log 2>&1 &")
        await a.wait_until(f"grep -q 'lease of {pa.ipv4} obtained' /run/log")
        await connect_all(fabric)

        transfer = await start_transfer(a, b, pb.ipv4, SENT)
        flood = f"ping -f -n -I {pa.ipv4} {pb.ipv4} > /dev/null 2>&1"
        await a.run(f"{flood} & echo $! > /run/flood.pid")
        for part in (1, 2, 3):
            await wait_received(b, part * SENT // 4)
            await fabric.daemon.kill()
            assert await is_under_way(transfer)
            await fabric.daemon.start()
        await finish_transfer(transfer)
        # A ping's socket gets the replies of all pings, and may have no room for its own then.
        await a.run("kill -INT $(cat /run/flood.pid)")

        await a.run("kill -USR1 $(cat /run/udhcpc.pid)")
        await a.wait_until(f"[ $(grep -c 'lease of {pa.ipv4} obtained' /run/log) = 2 ]")
        # Its script, for which it waits, takes address and route away for a moment.
        await a.run("kill $(cat /run/udhcpc.pid)")
        await a.wait_until("[ ! -e /run/udhcpc.pid ]")
        assert await ping_from(a, pa.ipv4, pb.ipv4) == 3
        assert await ping_from(b, pb.ipv4, pa.ipv4) == 3


async def test_a_guest_is_paused_and_another_reset_and_killed(image: Image, folder: Path) -> None:
    """vm2 floods vm0, is reset, floods again and is killed; vm0 sends to vm1, which is paused."""
    specs = [GuestSpec("blue", [PLAIN], number=number) for number in (1, 2, 3)]
    async with open_fabric(image, folder, specs) as fabric:
        a, b, c = fabric.guests
        (pa,), (pb,), (pc,) = fabric.places
        await connect_all(fabric)
        flood = f"ping -f -n -I {pc.ipv4} {pa.ipv4} > /dev/null 2>&1 &"

        transfer = await start_transfer(a, b, pb.ipv4, SENT)
        await c.run(flood)
        await wait_received(b, SENT // 4)
        await b.pause()
        await c.reset()
        await connect(c, pc)
        # vm1's rings are stopped: nothing moves there, and nobody else is held up.
        assert await ping_from(c, pc.ipv4, pa.ipv4) == 3
        await b.resume()
        await c.run(flood)
        await wait_received(b, SENT // 2)

        assert fabric.daemon.mapped_memfds() == 3
        os.kill(c.pid, signal.SIGKILL)
        await finish_transfer(transfer)
        with trio.fail_after(30):
            while fabric.daemon.mapped_memfds() != 2:  # noqa: ASYNC110 — no event comes from there
                await trio.sleep(0.05)
        assert await ping_from(a, pa.ipv4, pb.ipv4, "-f -c 1000") == 1000
