"""The backend under test: a real switch with real NICs, in the test's nursery.

Nothing here imitates anything: the NICs are made through the public API, so that ARP and DHCP are
answered by the product's own `ArpResponder` and `Dhcpv4Server` behind its own `VhostNetBackend`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Self

import trio

import mvirt_net

from .client import VhostTestClient
from .packets import Ip, Mac, ip_bytes, mac_bytes

NIC_NAME = "test-nic"
NETWORK_NAME = "test-network"


class TestBackend:
    """One switch with one network and, at first, one NIC that listens in a folder of its own.

    Open with `start`.
    """

    __test__ = False

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
        *,
        mtu: int = 1500,
        netmask: str = "host",
        dns_servers: Sequence[str] = (),
        ntp_servers: Sequence[str] = (),
    ) -> Self:
        """Start a backend that listens when this returns.

        Args:
            nursery: the backend lives in it and ends with it.
            mac: of the NIC.
            ipv4: of the NIC; without it the NIC answers neither ARP nor DHCP.
            mtu, netmask, dns_servers, ntp_servers: of the network; by default the product's own.
        """
        backend = cls(nursery)
        network = mvirt_net.NetworkSpec(
            name=NETWORK_NAME,
            ipv4_subnet=None if ipv4 is None else subnet_around(ipv4),
            ipv4_netmask=netmask,
            dns_servers=dns_servers,
            ntp_servers=ntp_servers,
            mtu=mtu,
        )
        await nursery.start(backend._run, network, mac, ipv4)
        return backend

    async def _run(
        self,
        network: mvirt_net.NetworkSpec,
        mac: Mac,
        ipv4: Ip | None,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Run the switch until `aclose` or the end of the nursery; owns the folder."""
        try:
            with tempfile.TemporaryDirectory(prefix="mvirt-net-") as folder, self._scope:
                self.folder = Path(folder)
                async with mvirt_net.open_switch() as self.switch:
                    await self.switch.add_network(network)
                    self.nic = await self.add_nic(NIC_NAME, mac, ipv4)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._ended.set()

    async def add_nic(self, name: str, mac: Mac, ipv4: Ip | None = None) -> mvirt_net.Nic:
        """One more NIC of the same network; `connect` takes it as an argument."""
        return await self.switch.add_nic(
            mvirt_net.NicSpec(
                name=name,
                network=NETWORK_NAME,
                mac_address=mac_bytes(mac),
                ipv4_address=None if ipv4 is None else IPv4Address(ip_bytes(ipv4)),
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
        return await VhostTestClient.connect(self._nursery, path, **options)

    async def aclose(self) -> None:
        """End the backend: its NICs hang up and their sockets disappear."""
        self._scope.cancel()
        await self._ended.wait()


def subnet_around(ipv4: Ip) -> IPv4Network:
    """The /24 around an address, or the next larger network in which it is a host's."""
    packed = ip_bytes(ipv4)
    for length in range(24, -1, -1):
        network = IPv4Network((packed, length), strict=False)
        if IPv4Address(packed) not in (network.network_address, network.broadcast_address):
            return network
    raise ValueError(f"{ipv4!r} is no host's address")
