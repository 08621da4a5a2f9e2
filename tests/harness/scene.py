"""A backend under attack: one NIC for the attacker, another with a guest that must not notice."""

from __future__ import annotations

from typing import Any, Self

import attrs
import trio

from mvirt_net import DropReason

from .backend import TestBackend
from .client import VhostTestClient
from .exchanges import arp_gateway

MAC = "52:54:00:12:34:56"
IP = "10.0.0.5"
"""Of the NIC that is attacked."""
BYSTANDER_MAC = "52:54:00:00:00:99"
BYSTANDER_IP = "10.0.0.9"


@attrs.define(eq=False)
class Scene:
    """A backend with an attacked NIC, and a bystander on another NIC of the same network."""

    backend: TestBackend
    bystander: VhostTestClient
    attackers: list[VhostTestClient] = attrs.field(factory=list)

    @classmethod
    async def start(cls, nursery: trio.Nursery) -> Self:
        """Start the backend and connect the bystander."""
        backend = await TestBackend.start(nursery, MAC, ipv4=IP)
        nic = await backend.add_nic("bystander", BYSTANDER_MAC, BYSTANDER_IP)
        return cls(backend, await backend.connect(nic))

    async def connect(self, **options: Any) -> VhostTestClient:
        """A frontend of the attacked NIC, with these `ClientOptions`."""
        client = await self.backend.connect(**options)
        self.attackers.append(client)
        return client

    def drops(self) -> dict[DropReason, int]:
        """What the attacked NIC has dropped."""
        return dict(self.backend.nic.stats().drops)

    async def ask_bystander(self) -> None:
        """The bystander asks for the gateway. Raises like `arp_gateway`."""
        await arp_gateway(self.bystander, BYSTANDER_MAC, BYSTANDER_IP)

    async def assert_unharmed(self) -> None:
        """The bystander is served, and so is the next frontend of the attacked NIC."""
        await self.ask_bystander()
        for attacker in self.attackers:
            attacker.disconnect()
        await arp_gateway(await self.backend.connect(), MAC, IP)
