"""Frontends that say anything, in any order, with any descriptors, while frames flow.

Each conversation is made from a number, or by Hypothesis, so one that fails can be had again.
Nothing is expected of the answers. What is expected: nobody is harmed (`Scene.assert_unharmed`),
and nothing was logged that only a bug of ours can cause. `python -m fuzz.conversations` does the
same with numbers that nobody has chosen.
"""

from __future__ import annotations

import contextlib
from functools import partial

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import GATEWAY_IP, VhostTestClient
from tests.harness.client import TX_QUEUE_IDX
from tests.harness.clock import run_in_virtual_time, virtual_time
from tests.harness.hostility import converse
from tests.harness.packets import arp_request
from tests.harness.scene import IP, MAC, Scene
from tests.harness.vhost_user import BackendRefusedError, ProtocolFeature, Request


@virtual_time
@pytest.mark.parametrize("hundred", range(3))
async def test_anything(scene: Scene, caplog: pytest.LogCaptureFixture, hundred: int) -> None:
    deeds = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        deeds += await converse(scene.backend, seed)
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
@settings(max_examples=60)
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
