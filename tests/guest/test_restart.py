"""A guest pings every 10 ms while its daemon is stopped or killed and started again.

The daemon gives no promise about the length of the outage: most of it is QEMU's second between two
attempts to connect (``reconnect=1``). The tests hold that packets flow again by themselves, and say
what it took.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from .daemon import Daemon
from .fabric import GuestSpec, configure, open_fabric
from .image import Image
from .network import GATEWAY
from .qemu import Guest, GuestNic

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

PLAIN = GuestNic(mac="", socket_path=Path())
ENOUGH = 100
"""Answers that show that packets flow: a second of them."""

_ANSWER = re.compile(
    r"^\[([0-9.]+)\] \d+ bytes from .* icmp_seq=(\d+) ttl=\d+ time=([0-9.]+) ms", re.MULTILINE
)
_SENT = re.compile(r"^(\d+) packets transmitted", re.MULTILINE)


@attrs.frozen
class Outage:
    """What a ping every 10 ms saw of it."""

    sent: int
    lost: int
    duplicates: int
    silence: float
    """Seconds between two answers, the longest."""
    late: float
    """Seconds until the answer that took longest."""

    def __str__(self) -> str:
        return (
            f"{self.lost} of {self.sent} pings lost, {self.silence:.2f} s without an answer,"
            f" the latest one after {self.late:.2f} s"
        )


@attrs.frozen
class Ping:
    """A ping that goes on in a guest."""

    guest: Guest
    log: str

    @classmethod
    async def start(cls, guest: Guest, source: str, target: str) -> Ping:
        """Begin, and wait until it is answered."""
        log = f"/run/ping-{target}"
        await guest.run(
            f"ping -n -D -i 0.01 -I {source} {target} > {log} 2>&1 & echo $! > {log}.pid"
        )
        ping = cls(guest, log)
        await ping.wait_answered()
        return ping

    async def wait_answered(self) -> None:
        """Wait for `ENOUGH` answers from now on."""
        await self.guest.run(
            f"answers() {{ grep -c 'bytes from' {self.log}; }}\n"
            f"enough=$(($(answers) + {ENOUGH}))\n"
            "until [ $(answers) -ge $enough ]; do sleep 0.1; done"
        )

    async def finish(self) -> Outage:
        """End it."""
        await self.guest.run(f"kill -INT $(cat {self.log}.pid)")
        await self.guest.wait_until(f"grep -q 'packets transmitted' {self.log}")
        text = await self.guest.run(f"cat {self.log}")
        answers = _ANSWER.findall(text)
        found = _SENT.search(text)
        assert found is not None
        sent = int(found[1])
        came = [float(moment) for moment, _number, _took in answers]
        numbers = [number for _moment, number, _took in answers]
        return Outage(
            sent=sent,
            lost=sent - len(set(numbers)),
            duplicates=len(numbers) - len(set(numbers)),
            silence=max(b - a for a, b in itertools.pairwise(came)),
            late=max(float(took) for _moment, _number, took in answers) / 1000,
        )


async def stop(daemon: Daemon) -> None:
    assert await daemon.stop() == 0


async def kill(daemon: Daemon) -> None:
    await daemon.kill()


async def test_pings_go_on(
    image: Image, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    """To the gateway and to each other, through an orderly restart and through ``kill -9``.

    One NIC is in the configuration file; the other one was created, and is in the daemon's state.
    """
    specs = [
        GuestSpec("blue", [PLAIN], number=number, created=created)
        for number, created in ((1, False), (2, True))
    ]
    async with open_fabric(image, folder, specs) as fabric:
        sources = list(zip(fabric.guests, (place for [place] in fabric.places), strict=True))
        for guest, place in sources:
            await configure(guest, place)
        (a, pa), (b, pb) = sources
        ways = {
            "file, gateway": (a, pa, GATEWAY),
            "file, another guest": (a, pa, pb.ipv4),
            "created, gateway": (b, pb, GATEWAY),
            "created, another guest": (b, pb, pa.ipv4),
        }
        for end in (stop, kill):
            pings = {
                way: await Ping.start(guest, place.ipv4, target)
                for way, (guest, place, target) in ways.items()
            }
            await end(fabric.daemon)
            await fabric.daemon.start()
            for ping in pings.values():
                await ping.wait_answered()
            for way, ping in pings.items():
                outage = await ping.finish()
                record_property(f"{end.__name__}, {way}", outage)
                assert outage.duplicates == 0
