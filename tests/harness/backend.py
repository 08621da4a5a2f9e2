"""The backend under test: a real switch with real NICs, in the test's nursery.

Nothing here imitates anything: the NICs are made through the public API, so that ARP, ND, DHCP and
routing are the product's own, behind its own `VhostNetBackend`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Self

import attrs
import trio

import mvirt_net

from .client import DEFAULT_FEATURES, VhostTestClient
from .packets import Ip, Mac, ip_bytes, ipv6_bytes, mac_bytes

NIC_NAME = "test-nic"
NETWORK_NAME = "test-network"
IN_TRIO = mvirt_net.PollingSpec(workers=0)
"""What tests are deterministic with, and what virtual time needs."""


class TestBackend:
    """One switch with one network and, at first, one NIC that listens in a folder of its own.

    Open with `start`.
    """

    __test__ = False

    layout = 0
    """Added to the features of every frontend; the `layout` fixture of the tests changes it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.switch: mvirt_net.Switch
        self.nic: mvirt_net.Nic
        self.folder: Path

    @classmethod
    async def start(
        cls,
        nursery: trio.Nursery,
        mac: Mac,
        ipv4: Ip | None = None,
        ipv6: Ip | None = None,
        *,
        polling: mvirt_net.PollingSpec = IN_TRIO,
        **network: Any,
    ) -> Self:
        """Start a backend that listens when this returns.

        Args:
            nursery: the backend lives in it and ends with it.
            mac: of the NIC.
            ipv4: of the NIC; without it the NIC answers neither ARP nor DHCP.
            ipv6: likewise for ND and DHCPv6.
            polling: of busy rings; by default nothing happens outside trio.
            network: fields of the network's `NetworkSpec`. By default its subnet and prefix are a
                /24 and a /64 around the addresses, and everything else is the product's own.
        """
        backend = cls(nursery)
        await nursery.start(backend._run, mac, ipv4, ipv6, polling, network)
        return backend

    async def _run(
        self,
        mac: Mac,
        ipv4: Ip | None,
        ipv6: Ip | None,
        polling: mvirt_net.PollingSpec,
        network: dict[str, Any],
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Run the switch until `aclose` or the end of the nursery; owns the folder."""
        try:
            with tempfile.TemporaryDirectory(prefix="mvirt-net-") as folder, self._scope:
                self.folder = Path(folder)
                async with mvirt_net.open_switch(polling=polling) as self.switch:
                    await self.add_network(NETWORK_NAME, ipv4, ipv6, **network)
                    self.nic = await self.add_nic(NIC_NAME, mac, ipv4, ipv6)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended.set()

    async def add_network(
        self, name: str, ipv4: Ip | None = None, ipv6: Ip | None = None, **fields: Any
    ) -> mvirt_net.NetworkSpec:
        """One more network; arguments as in `start`."""
        own = {
            "ipv4_subnet": None if ipv4 is None else subnet_around(ipv4),
            "ipv6_prefix": None if ipv6 is None else prefix_around(ipv6),
        }
        return await self.switch.add_network(mvirt_net.NetworkSpec(name=name, **{**own, **fields}))

    async def add_nic(
        self,
        name: str,
        mac: Mac,
        ipv4: Ip | None = None,
        ipv6: Ip | None = None,
        *,
        network: str = NETWORK_NAME,
        routed_ipv4_prefixes: Sequence[str] = (),
        routed_ipv6_prefixes: Sequence[str] = (),
    ) -> mvirt_net.Nic:
        """One more NIC, by default of the same network; `connect` takes it as an argument."""
        return await self.switch.add_nic(
            mvirt_net.NicSpec(
                name=name,
                network=network,
                mac_address=mac_bytes(mac),
                ipv4_address=None if ipv4 is None else IPv4Address(ip_bytes(ipv4)),
                ipv6_address=None if ipv6 is None else IPv6Address(ipv6_bytes(ipv6)),
                routed_ipv4_prefixes=routed_ipv4_prefixes,
                routed_ipv6_prefixes=routed_ipv6_prefixes,
                socket_path=self.folder / f"{name}.sock",
            )
        )

    @property
    def socket_path(self) -> Path:
        """Where the first NIC listens."""
        path = self.nic.spec.socket_path
        assert path is not None
        return path

    async def connect(self, nic: mvirt_net.Nic | None = None, **options: Any) -> VhostTestClient:
        """A frontend for a NIC, handshake done; one after another may come.

        Args:
            nic: by default the first.
            options: those of `ClientOptions`.
        """
        path = self.socket_path if nic is None else nic.spec.socket_path
        assert path is not None
        options["features"] = options.get("features", DEFAULT_FEATURES) | self.layout
        return await VhostTestClient.connect(self._nursery, path, **options)

    async def aclose(self) -> None:
        """End the backend: its NICs hang up and their sockets disappear."""
        self._scope.cancel()
        await self._ended.wait()


@attrs.frozen
class RoutingNicConfig:
    """One of the NICs of a `RoutingTestBackend`."""

    id: str
    mac: Mac
    ipv4: Ip | None = None
    ipv6: Ip | None = None


class RoutingTestBackend(TestBackend):
    """A backend with two NICs in one network, `nic` and `nic_b`. Open with `start`."""

    nic_b: mvirt_net.Nic

    @classmethod
    async def start(  # type: ignore[override]
        cls, nursery: trio.Nursery, a: RoutingNicConfig, b: RoutingNicConfig, **network: Any
    ) -> Self:
        """Start a backend that listens when this returns.

        Args:
            a, b: the NICs; the network's subnet and prefix are a /24 and a /64 around the first.
            network: as in `TestBackend.start`.
        """
        backend = await super().start(nursery, a.mac, a.ipv4, a.ipv6, **network)
        backend.nic_b = await backend.add_nic(b.id, b.mac, b.ipv4, b.ipv6)
        return backend

    async def connect_a(self, **options: Any) -> VhostTestClient:
        """A frontend for the first NIC, with these `ClientOptions`."""
        return await self.connect(**options)

    async def connect_b(self, **options: Any) -> VhostTestClient:
        """A frontend for the second NIC, with these `ClientOptions`."""
        return await self.connect(self.nic_b, **options)


def prefix_around(ipv6: Ip) -> IPv6Network:
    """The /64 around an address."""
    return IPv6Network((ipv6_bytes(ipv6), 64), strict=False)


def subnet_around(ipv4: Ip) -> IPv4Network:
    """The /24 around an address, or the next larger network in which it is a host's."""
    packed = ip_bytes(ipv4)
    for length in range(24, -1, -1):
        network = IPv4Network((packed, length), strict=False)
        if IPv4Address(packed) not in (network.network_address, network.broadcast_address):
            return network
    raise ValueError(f"{ipv4!r} is no host's address")
