"""A backend under attack: one NIC for the attacker, another with a guest that must not notice.

`Scene.assert_unharmed` is what must hold after every attack, written once: the `scene` fixture of
``tests/conftest.py`` calls it at the end of every hostile test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import DropReason

from .backend import TestBackend
from .client import VhostTestClient
from .exchanges import arp_gateway
from .footprint import Footprint

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
IPV6 = "fd00::5"
"""Of the NIC that is attacked."""
BYSTANDER_MAC = "52:54:00:00:00:99"
BYSTANDER_IP = "10.0.0.9"
BYSTANDER_IPV6 = "fd00::9"

ANSWER_LIMIT = 0.2
"""Seconds of virtual time in which the bystander is answered, whatever goes on beside it."""
STEPS_TO_REST = 10_000
"""Steps of all tasks together until nothing is left to do after an attack. 300 connections that
end at once take some thousands; a task that spins takes any number."""
STEPS_AT_REST = 20
"""Steps of all tasks together in a second without anything to do."""
MEMORY_LIMIT = 16 << 20
"""Bytes that an attack may leave allocated. It is far more than any leaves, because what Python's
allocator keeps for later is in it, and far less than what an unbounded queue would take."""


class StepCounter(trio.abc.Instrument):
    """Counts how often any task runs, and cancels `scope` after `limit` times."""

    def __init__(self, limit: int) -> None:
        self.steps = 0
        self.scope = trio.CancelScope()
        self._limit = limit

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio calls this before it resumes a task."""
        self.steps += 1
        if self.steps == self._limit:
            self.scope.cancel()


@contextlib.contextmanager
def at_most_steps(limit: int, what: str) -> Iterator[None]:
    """Fail when all tasks together need more than `limit` steps for the body."""
    counter = StepCounter(limit)
    trio.lowlevel.add_instrument(counter)
    try:
        with counter.scope:
            yield
    finally:
        trio.lowlevel.remove_instrument(counter)
    assert not counter.scope.cancelled_caught, f"{what} took more than {limit} steps of tasks"


@attrs.define(eq=False)
class Scene:
    """A backend with an attacked NIC, and a bystander on another NIC of the same network."""

    backend: TestBackend
    bystander: VhostTestClient
    before: Footprint
    """With the bystander connected, and no attacker."""
    attackers: list[VhostTestClient] = attrs.field(factory=list)
    keeps_busy: bool = False
    """The attack gives the backend work without end, for as long as the attacker is there."""

    @classmethod
    async def start(cls, nursery: trio.Nursery, *, dual_stack: bool = False) -> Self:
        """Start the backend and connect the bystander.

        Args:
            dual_stack: give both NICs an IPv6 address too.
        """
        own, theirs = (IPV6, BYSTANDER_IPV6) if dual_stack else (None, None)
        backend = await TestBackend.start(nursery, MAC, ipv4=IP, ipv6=own)
        nic = await backend.add_nic("bystander", BYSTANDER_MAC, BYSTANDER_IP, theirs)
        bystander = await backend.connect(nic)
        await wait_all_tasks_blocked()
        return cls(backend, bystander, Footprint.take())

    async def connect(self, **options: Any) -> VhostTestClient:
        """A frontend of the attacked NIC, with these `ClientOptions`."""
        client = await self.backend.connect(**options)
        self.attackers.append(client)
        return client

    def drops(self) -> dict[DropReason, int]:
        """What the attacked NIC has dropped."""
        return dict(self.backend.nic.stats().drops)

    async def ask_bystander(self) -> None:
        """The bystander asks for the gateway, and has its answer in time.

        Raises:
            trio.TooSlowError: it has not.
        """
        with trio.fail_after(ANSWER_LIMIT):
            await arp_gateway(self.bystander, BYSTANDER_MAC, BYSTANDER_IP)

    async def assert_unharmed(self) -> None:
        """What must hold after every attack.

        The backend comes to rest while the attacker is still there; the bystander is served in
        time; with the attacker gone, its NIC serves a frontend that behaves; then nothing runs
        any more, and no descriptor, no mapping and hardly any memory is left of it all.
        """
        if not self.keeps_busy:
            await self._come_to_rest("coming to rest under attack")
        await self.ask_bystander()
        await self.send_attackers_away()
        client = await self.connect()
        await arp_gateway(client, MAC, IP)
        await self.ask_bystander()
        await self.send_attackers_away()
        with at_most_steps(STEPS_AT_REST, "a second without work"):
            await trio.sleep(1)
        self._assert_nothing_left()

    async def send_attackers_away(self) -> None:
        """Hang up all frontends of the attacked NIC, as if they were killed."""
        while self.attackers:
            client = self.attackers.pop()
            client.disconnect()
            await client.aclose()
        await self._come_to_rest("the end of an attacker")

    @staticmethod
    async def _come_to_rest(what: str) -> None:
        with at_most_steps(STEPS_TO_REST, what):
            await wait_all_tasks_blocked()

    def _assert_nothing_left(self) -> None:
        now = Footprint.take()
        assert not now.files - self.before.files, f"left open: {now.files - self.before.files}"
        assert now.mappings == self.before.mappings, "guest memory is still mapped"
        grown = now.memory - self.before.memory
        assert grown < MEMORY_LIMIT, f"{grown} bytes more than before the attack"
