"""A third guest that comes and goes: ``python -m bench.soak.visitor FOLDER OWN A B SEED``.

Each life is a process of its own, forked from this one. It connects, asks for the gateway, connects
again and floods A and B with numbered frames; it hangs up in the middle of that, and begins again,
until it is killed (SIGKILL) in the middle of whatever it does then. Goes on until the end of file
on stdin, but for `LEAST` connections, and then says how often: ``LIVES CONNECTIONS``.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import trio

from bench.guest import connected_wires
from tests.harness.client import TX_QUEUE_IDX, VhostTestClient
from tests.harness.exchanges import arp_gateway

from .daemon import Place
from .numbered import NumberedTx

LEAST = 10
LONGEST_LIFE = 1.0
"""Seconds."""
LONGEST_FLOOD = 4000
"""Frames of one connection."""
CONNECTIONS = 1000
"""At most in one life; the flows of all lives are numbered by it."""
BATCH = 64


async def live(own: Place, targets: list[Place], life: int, seed: str, counter: int) -> None:
    """One life, until it is killed; adds 1 to the eventfd `counter` for each connection."""
    chance = random.Random(seed)
    for connection in range(CONNECTIONS):
        os.eventfd_write(counter, 1)
        async with trio.open_nursery() as nursery:
            client = await VhostTestClient.connect(nursery, own.path)
            await arp_gateway(client, own.mac, own.ipv4)
            client.disconnect()
            await client.aclose()
        async with connected_wires(own.path) as wires:
            number = life * CONNECTIONS + connection
            with closing(NumberedTx(wires.client.tx_queue, own, targets, number)) as tx:
                limit = chance.randrange(LONGEST_FLOOD)
                while tx.sent < limit:
                    if count := min(BATCH, tx.room(), limit - tx.sent):
                        tx.send(count)
                        wires.client.kick(TX_QUEUE_IDX)
                    else:
                        await trio.lowlevel.checkpoint()
            wires.client.disconnect()
    await trio.sleep_forever()


def visit(own: Place, targets: list[Place], seed: str) -> tuple[int, int]:
    """One life after another until the end of file; their number and that of the connections."""
    chance = random.Random(seed)
    counter = os.eventfd(0, os.EFD_NONBLOCK)
    over = select.poll()
    over.register(sys.stdin, select.POLLIN | select.POLLHUP)
    lives = connections = 0
    while connections < LEAST or not over.poll(0):
        pid = os.fork()
        if pid == 0:
            trio.run(live, own, targets, lives, f"{seed} {lives}", counter)
        lives += 1
        time.sleep(chance.random() * LONGEST_LIFE)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"life {lives} ended by itself")
        with contextlib.suppress(BlockingIOError):
            connections += os.eventfd_read(counter)
    return lives, connections


if __name__ == "__main__":
    own, *targets = (Place(Path(sys.argv[1]), int(number)) for number in sys.argv[2:5])
    print(*visit(own, targets, sys.argv[5]))  # noqa: T201
