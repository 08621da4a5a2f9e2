"""A frontend that says anything, in any order, with any descriptors, while frames flow.

Each conversation is made from a number, so one that fails can be had again. Nothing is expected of
the answers; what must hold afterwards is the caller's to check.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator

import attrs
import trio

from .backend import TestBackend
from .client import DEFAULT_FEATURES, RX_QUEUE_IDX, TX_QUEUE_IDX, VhostTestClient
from .packets import GATEWAY_IP, arp_request
from .vhost_user import (
    Feature,
    ProtocolFeature,
    Request,
    encode_mem_table,
    encode_single_region,
    encode_state,
    encode_u64,
    encode_vring_addr,
)

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
ARP = arp_request(MAC, IP, GATEWAY_IP)

REQUESTS = [
    *(Request.SET_FEATURES, Request.SET_MEM_TABLE, Request.SET_MEM_TABLE),
    *(Request.SET_VRING_NUM, Request.SET_VRING_ADDR, Request.SET_VRING_ADDR),
    *(Request.SET_VRING_BASE, Request.GET_VRING_BASE, Request.SET_VRING_ENABLE),
    *(Request.SET_VRING_KICK, Request.SET_VRING_KICK, Request.SET_VRING_CALL),
    *(Request.SET_VRING_ERR, Request.ADD_MEM_REG, Request.REM_MEM_REG),
    *(Request.RESET_DEVICE, Request.RESET_OWNER, Request.NET_SET_MTU),
]
"""Those that change something; the others are taken from the whole range of numbers."""


@attrs.define(eq=False)
class HostileFrontend:
    """Does one thing after another to a backend; what, is decided by `rng`."""

    rng: random.Random
    client: VhostTestClient
    backend: TestBackend
    deeds: int = 0

    async def do_anything(self) -> None:
        self.deeds += 1
        choice = [self.request, self.restart_ring, self.send, self.tear_index, self.receive]
        [deed] = self.rng.choices(choice, weights=[50, 10, 30, 4, 6])
        await deed()

    async def send(self) -> None:
        self.client.queue_tx(ARP)
        self.client.kick(TX_QUEUE_IDX, force=True)

    async def receive(self) -> None:
        self.backend.nic.inject(ARP)
        await trio.lowlevel.checkpoint()

    async def tear_index(self) -> None:
        vring = self.rng.choice(self.client.vrings)
        vring.queue.write_avail_idx(self.rng.randrange(0x10000))

    async def restart_ring(self) -> None:
        index = self.rng.choice([RX_QUEUE_IDX, TX_QUEUE_IDX])
        await self.client.stop_vring(index)
        stands = self.client.vrings[index].queue.used_idx()
        await self.client.start_vring(index, self.rng.choice([0, stands]))

    async def request(self) -> None:
        number = self.rng.choice([*REQUESTS, self.rng.randrange(50)])
        with self.descriptors() as fds:
            await self.client.connection.request(number, self.payload(), fds)

    def payload(self) -> bytes:
        """One that fits some request."""
        rng, queue = self.rng, self.rng.choice(self.client.vrings).queue
        user, regions = self.client.memory.get_host_address, self.client.memory.get_region_info()
        parts = [user(part) for part in (queue.desc_table, queue.used_ring, queue.avail_ring)]
        parts[rng.randrange(3)] += rng.choice([0, 0, 0, 16, 4096, 1 << 40])
        makers: list[Callable[[], bytes]] = [
            lambda: encode_u64(rng.choice([0, 1, 0x100, 0x101, 1500, self.client.features])),
            lambda: encode_state(rng.choice([0, 1, 2]), rng.choice([0, 1, 3, 128, 256, 65535])),
            lambda: encode_vring_addr(queue.queue_idx, *parts),
            lambda: encode_mem_table(regions),
            lambda: encode_single_region(regions[0]),
            lambda: rng.randbytes(rng.randrange(64)),
        ]
        return rng.choice(makers)()

    @contextlib.contextmanager
    def descriptors(self) -> Iterator[list[int]]:
        """Some of any kind."""
        fds: list[int] = []
        try:
            for _ in range(self.rng.choice([0, 0, 1, 1, 1, 2, 8, 9])):
                match self.rng.choice(["memory", "kick", "pipe", "eventfd", "eventfd"]):
                    case "memory":
                        fds.append(os.dup(self.client.memory.get_region_info()[0].fd))
                    case "kick" if (kick := self.rng.choice(self.client.vrings).kick) is not None:
                        fds.append(os.dup(kick))
                    case "pipe":
                        fds.extend(os.pipe())
                    case _:
                        flags = self.rng.choice([0, os.EFD_SEMAPHORE, os.EFD_NONBLOCK])
                        fds.append(os.eventfd(self.rng.choice([0, 1, 1000]), flags))
            yield fds
        finally:
            for fd in fds:
                os.close(fd)


async def converse(backend: TestBackend, seed: int) -> int:
    """One hostile conversation, with all that is ours closed at its end.

    Returns:
        How many deeds it had. The backend may hang up before the last one, and a guest whose rings
        were moved, reset and broken under it may not understand its device any more.
    """
    rng = random.Random(seed)
    frontend = None
    try:
        async with trio.open_nursery() as nursery:
            client = await VhostTestClient.connect(
                nursery,
                backend.socket_path,
                features=DEFAULT_FEATURES | rng.choice([0, Feature.RING_PACKED]),
                protocol_features=~ProtocolFeature(0),
            )
            frontend = HostileFrontend(rng, client, backend)
            for _ in range(rng.randrange(5, 120)):
                await frontend.do_anything()
            nursery.cancel_scope.cancel()
    except* Exception:
        assert frontend is not None
    return frontend.deeds
