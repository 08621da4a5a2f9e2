"""Frontends that say anything, in any order, with any descriptors, while frames flow.

Each conversation is made from a number, or by Hypothesis, so one that fails can be had again.
Nothing is expected of the answers. What is expected: nobody is harmed (`Scene.assert_unharmed`),
and nothing was logged that only a bug of ours can cause.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import GATEWAY_IP, TestBackend, VhostTestClient
from tests.harness.client import RX_QUEUE_IDX, TX_QUEUE_IDX
from tests.harness.clock import run_in_virtual_time, virtual_time
from tests.harness.packets import arp_request
from tests.harness.scene import IP, MAC, Scene
from tests.harness.vhost_user import (
    BackendRefusedError,
    ProtocolFeature,
    Request,
    encode_mem_table,
    encode_single_region,
    encode_state,
    encode_u64,
    encode_vring_addr,
)

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


async def converse(scene: Scene, seed: int) -> int:
    """One hostile conversation, with all that is the frontend's closed at its end.

    Returns:
        How many deeds it had. The backend may hang up before the last one, and a guest whose rings
        were moved, reset and broken under it may not understand its device any more.
    """
    rng = random.Random(seed)
    frontend = None
    try:
        async with trio.open_nursery() as nursery:
            client = await VhostTestClient.connect(
                nursery, scene.backend.socket_path, protocol_features=~ProtocolFeature(0)
            )
            frontend = HostileFrontend(rng, client, scene.backend)
            for _ in range(rng.randrange(5, 120)):
                await frontend.do_anything()
            nursery.cancel_scope.cancel()
    except* Exception:
        assert frontend is not None
    return frontend.deeds


@virtual_time
@pytest.mark.parametrize("hundred", range(3))
async def test_anything(scene: Scene, caplog: pytest.LogCaptureFixture, hundred: int) -> None:
    deeds = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        deeds += await converse(scene, seed)
        await scene.assert_unharmed()
    assert deeds > 1000
    assert [record.message for record in caplog.records if record.exc_info] == []


# Any order of requests while rings run


@attrs.frozen
class Step:
    """One thing that a frontend does."""

    what: str
    index: int
    value: int


STEPS = st.builds(
    Step,
    what=st.sampled_from(
        [
            *("enable", "disable", "stop", "num", "addr", "null", "base", "kick", "poll", "call"),
            *("no call", "err", "memory", "features", "reset", "owner", "mtu", "config", "frame"),
            *("frame", "start"),
        ]
    ),
    index=st.integers(0, 1),
    value=st.sampled_from([0, 1, 2, 16, 256, 1500, 65535, 65536]),
)


async def take(client: VhostTestClient, step: Step) -> None:
    """Do one step; what it needs of the client is there in every state."""
    connection, vring = client.connection, client.vrings[step.index]
    index, value, memory = step.index, step.value, client.memory.get_region_info()
    match step.what:
        case "enable" | "disable":
            await connection.set_vring_enable(index, step.what == "enable")
        case "stop":
            await connection.get_vring_base(index)
        case "num":
            await connection.set_vring_num(index, value)
        case "addr":
            await client.set_vring_addr(index)
        case "null":
            await connection.set_vring_addr(index, 0, 0, 0)
        case "base":
            await connection.set_vring_base(index, value)
        case "kick" | "poll":
            await connection.set_vring_kick(index, vring.kick if step.what == "kick" else None)
        case "call" | "no call":
            await connection.set_vring_call(index, vring.call if step.what == "call" else None)
        case "err":
            await connection.set_vring_err(index, vring.err)
        case "memory":
            await connection.set_mem_table(memory)
        case "features":
            await connection.set_features(client.features)
        case "reset":
            await connection.reset_device()
        case "owner":
            await connection.command(Request.RESET_OWNER)
        case "mtu":
            await connection.set_mtu(value)
        case "config":
            await connection.get_config(0, min(value or 1, 256))
        case "start":
            await client.start_vring(index, vring.queue.used_idx())
        case "frame":
            client.queue_tx(arp_request(MAC, IP, GATEWAY_IP))
            client.kick(TX_QUEUE_IDX, force=True)


@given(steps=st.lists(STEPS, min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_order_of_requests(steps: list[Step]) -> None:
    """Each is carried out or refused; no order harms anybody, and none ends the conversation."""
    run_in_virtual_time(partial(take_all, steps))


async def take_all(steps: list[Step]) -> None:
    async with trio.open_nursery() as nursery:
        scene = await Scene.start(nursery)
        client = await scene.connect(protocol_features=~ProtocolFeature(0), err=True, driver=False)
        for step in steps:
            with contextlib.suppress(BackendRefusedError):
                await take(client, step)
        await scene.assert_unharmed()
        nursery.cancel_scope.cancel()
