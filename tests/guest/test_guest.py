"""A Debian guest gets its network from the daemon, and gets it back whatever restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from .daemon import Daemon, run_daemon
from .image import Image
from .network import (
    GATEWAY,
    THREE,
    Configuration,
    configuration,
    features,
    forget,
    lease_by_dhclient,
    lease_by_udhcpc,
    ping,
    rebind_driver,
    wait_for_carrier,
    wait_for_gateway,
)
from .qemu import Guest, GuestNic, boot_guest

# Under TCG on a busy machine a boot can take half a minute, and the first test builds the image.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MTU = 1400
"""Of the network; not a guest's own, so that a guest which has it was told."""

_NETWORK = f"""
[[network]]
name = "blue"
ipv4_subnet = "10.0.0.0/24"
dns_servers = ["192.0.2.53", "192.0.2.54"]
mtu = {MTU}
"""
_NIC = """
[[nic]]
name = "vm{number}"
network = "blue"
mac_address = "{mac}"
ipv4_address = "10.0.0.{host}"
socket_path = "{socket}"
"""

FEATURE_BITS = {
    "host_mtu": 3,
    "mrg_rxbuf": 15,
    "indirect_desc": 28,
    "event_idx": 29,
    "packed": 34,
    "mq": 22,
}
"""Bits of the virtio features that Linux and QEMU use when the daemon has them (virtio 1.2)."""

LEASE = Configuration(
    addresses=["10.0.0.5/32"],
    mtu=MTU,
    default_gateways=[GATEWAY],
    name_servers=["192.0.2.53", "192.0.2.54"],
)


@attrs.frozen
class Setup:
    """A guest whose NICs the daemon serves."""

    guest: Guest
    daemon: Daemon


def nics_in(folder: Path, *variants: GuestNic) -> list[GuestNic]:
    """`variants` with MAC addresses and socket paths of their own."""
    return [
        attrs.evolve(nic, mac=f"52:54:00:00:00:{number:02x}", socket_path=folder / f"{number}.sock")
        for number, nic in enumerate(variants)
    ]


PLAIN = GuestNic(mac="", socket_path=Path())


@asynccontextmanager
async def guest_on_daemon(
    image: Image,
    folder: Path,
    *variants: GuestNic,
    memory: Sequence[int] = (256,),
    cpus: int = 1,
) -> AsyncIterator[Setup]:
    """The daemon with a NIC for each of `variants` (10.0.0.5, 10.0.0.6, …), and a guest on them."""
    nics = nics_in(folder, *(variants or (PLAIN,)))
    config = _NETWORK + "".join(
        _NIC.format(number=number, mac=nic.mac, host=5 + number, socket=nic.socket_path)
        for number, nic in enumerate(nics)
    )
    path = folder / "mvirt-net.toml"
    await trio.Path(path).write_text(config)
    async with (
        run_daemon(path) as daemon,
        boot_guest(image, folder, nics, memory=memory, cpus=cpus) as guest,
    ):
        yield Setup(guest, daemon)


async def test_udhcpc_leases_renews_and_releases(image: Image, folder: Path) -> None:
    async with guest_on_daemon(image, folder) as setup:
        guest = setup.guest
        await lease_by_udhcpc(guest)
        assert await configuration(guest) == LEASE
        assert await ping(guest) == 3

        await guest.run("udhcpc -i eth0 -f -p /run/udhcpc.pid > /run/log 2>&1 &")
        await guest.wait_until("grep -q 'lease of 10.0.0.5 obtained' /run/log")
        await guest.run("kill -USR1 $(cat /run/udhcpc.pid)")
        await guest.wait_until("[ $(grep -c 'lease of 10.0.0.5 obtained' /run/log) = 2 ]")
        assert "sending renew to server 169.254.0.1" in await guest.run("cat /run/log")
        assert await configuration(guest) == LEASE
        await guest.run("kill -USR2 $(cat /run/udhcpc.pid)")
        await guest.wait_until("grep -q 'entering released state' /run/log")
        assert (await configuration(guest)).addresses == []


async def test_dhclient_leases_reboots_renews_and_releases(image: Image, folder: Path) -> None:
    async with guest_on_daemon(image, folder) as setup:
        guest = setup.guest
        said = await lease_by_dhclient(guest)
        assert "DHCPDISCOVER" in said
        assert "DHCPACK of 10.0.0.5 from 169.254.0.1" in said
        assert await configuration(guest) == LEASE
        assert await ping(guest) == 3
        await guest.run("dhclient -x eth0")

        # It remembers its lease and asks for it at once: INIT-REBOOT (RFC 2131, 4.4.2).
        said = await lease_by_dhclient(guest)
        assert "DHCPDISCOVER" not in said
        assert "DHCPREQUEST for 10.0.0.5 on eth0 to 255.255.255.255" in said
        assert "DHCPACK of 10.0.0.5 from 169.254.0.1" in said
        assert await configuration(guest) == LEASE
        await guest.run("dhclient -x eth0")

        # A client that wants to renew each two seconds, since nobody waits for half a day.
        await guest.run(
            "(cat /etc/dhcp/dhclient.conf; echo 'supersede dhcp-renewal-time 2;') > /run/conf\n"
            "dhclient -d -v -cf /run/conf eth0 > /run/log 2>&1 &"
        )
        await guest.wait_until(
            "[ $(grep -c 'DHCPREQUEST for 10.0.0.5 on eth0 to 169.254.0.1' /run/log) -ge 2"
            " -a $(grep -c 'DHCPACK of 10.0.0.5 from 169.254.0.1' /run/log) -ge 3 ]"
        )
        assert await configuration(guest) == LEASE

        said = await guest.run("dhclient -r -v eth0")
        assert "DHCPRELEASE of 10.0.0.5 on eth0 to 169.254.0.1" in said
        assert (await configuration(guest)).addresses == []


async def test_driver_link_and_cable_come_back(image: Image, folder: Path) -> None:
    async with guest_on_daemon(image, folder) as setup:
        guest = setup.guest
        for _ in range(3):
            await rebind_driver(guest)
            await lease_by_udhcpc(guest)
            assert await configuration(guest) == LEASE
            assert await ping(guest) == 3
        await guest.run("ip link set eth0 down; ip link set eth0 up")
        # The kernel takes routes away with the link; the rest of the configuration is still there.
        await guest.run(f"ip route add default via {GATEWAY} dev eth0 onlink")
        assert await ping(guest) == 3
        assert await configuration(guest) == LEASE

        await guest.set_link(0, up=False)
        await wait_for_carrier(guest, up=False)
        assert await ping(guest, "-c 1 -W 1") == 0
        await guest.set_link(0, up=True)
        await wait_for_carrier(guest, up=True)
        await wait_for_gateway(guest)
        assert await ping(guest) == 3


LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@LAYOUTS
async def test_daemon_restarted_and_killed(image: Image, folder: Path, packed: bool) -> None:
    async with guest_on_daemon(image, folder, attrs.evolve(PLAIN, packed=packed)) as setup:
        guest, daemon = setup.guest, setup.daemon
        await lease_by_udhcpc(guest)
        # Rings that have wrapped: the daemon must find its place in them again.
        assert await ping(guest, "-f -c 300") == 300

        assert await daemon.stop() == 0
        await wait_for_carrier(guest, up=False)
        await daemon.start()
        await wait_for_gateway(guest)
        assert await ping(guest) == 3

        await daemon.kill()
        await wait_for_carrier(guest, up=False)
        await daemon.start()
        await wait_for_gateway(guest)
        assert await ping(guest) == 3
        assert await configuration(guest) == LEASE


@LAYOUTS
async def test_daemon_killed_under_load(image: Image, folder: Path, packed: bool) -> None:
    async with guest_on_daemon(image, folder, attrs.evolve(PLAIN, packed=packed)) as setup:
        guest, daemon = setup.guest, setup.daemon
        await lease_by_udhcpc(guest)
        await guest.run(f"ping -f -n {GATEWAY} > /run/flood 2>&1 & echo $! > /run/flood.pid")
        for _ in range(3):
            await wait_for_gateway(guest)
            await daemon.kill()
            await daemon.start()
        await wait_for_gateway(guest)
        await guest.run("kill -INT $(cat /run/flood.pid)")
        assert await ping(guest) == 3


async def test_guest_reset(image: Image, folder: Path) -> None:
    async with guest_on_daemon(image, folder) as setup:
        guest = setup.guest
        await lease_by_dhclient(guest)
        assert await ping(guest) == 3
        await guest.reset()
        assert (await configuration(guest)).addresses == []
        await lease_by_dhclient(guest)
        assert await configuration(guest) == LEASE
        assert await ping(guest) == 3


def expected_bits(nic: GuestNic) -> set[int]:
    """The bits of `FEATURE_BITS` that driver and device must have agreed on."""
    without = set(nic.without)
    without |= {name for name in ("host_mtu", "packed") if not getattr(nic, name)}
    without |= {"mq"} if nic.queue_pairs == 1 else set()
    return {bit for name, bit in FEATURE_BITS.items() if name not in without}


async def test_features_and_ring_sizes(image: Image, folder: Path) -> None:
    """NICs of one guest, each without some feature or with other rings, used one after another."""
    variants = [
        attrs.evolve(PLAIN, without=["mrg_rxbuf"]),
        attrs.evolve(PLAIN, without=["event_idx"]),
        attrs.evolve(PLAIN, without=["indirect_desc"]),
        attrs.evolve(PLAIN, without=["mrg_rxbuf", "event_idx", "indirect_desc"]),
        attrs.evolve(PLAIN, queue_size=1024),
        attrs.evolve(PLAIN, queue_size=512, host_mtu=MTU),
        attrs.evolve(PLAIN, packed=True),
        attrs.evolve(PLAIN, packed=True, without=["event_idx", "indirect_desc"]),
        attrs.evolve(PLAIN, packed=True, without=["mrg_rxbuf"], queue_size=1024),
    ]
    async with guest_on_daemon(image, folder, *variants) as setup:
        guest = setup.guest
        for number, variant in enumerate(variants):
            nic = f"eth{number}"
            assert await features(guest, nic) & set(FEATURE_BITS.values()) == expected_bits(variant)
            await lease_by_udhcpc(guest, nic)
            expected = attrs.evolve(LEASE, addresses=[f"10.0.0.{5 + number}/32"])
            assert await configuration(guest, nic) == expected
            # More than each ring has entries, then frames as large as the MTU allows.
            assert await ping(guest, "-f -c 1100", nic) == 1100
            assert await ping(guest, f"{THREE} -M do -s {MTU - 28}", nic) == 3
            await forget(guest, nic)


@pytest.mark.parametrize("cpus", [1, 2])
async def test_queue_pairs(image: Image, folder: Path, cpus: int) -> None:
    """NICs with more pairs than Linux uses, which is one for each CPU, and with just as many."""
    variants = [
        attrs.evolve(PLAIN, queue_pairs=2),
        attrs.evolve(PLAIN, queue_pairs=8),
        attrs.evolve(PLAIN, queue_pairs=2, packed=True),
    ]
    async with guest_on_daemon(image, folder, *variants, cpus=cpus) as setup:
        guest = setup.guest
        for number, variant in enumerate(variants):
            nic = f"eth{number}"
            assert await features(guest, nic) & set(FEATURE_BITS.values()) == expected_bits(variant)
            queues = (await guest.run(f"ls /sys/class/net/{nic}/queues")).split()
            assert len(queues) == 2 * min(cpus, variant.queue_pairs)
            await lease_by_udhcpc(guest, nic)
            assert await ping(guest, "-f -c 1100", nic) == 1100
            await forget(guest, nic)


async def test_memory_in_pieces(image: Image, folder: Path) -> None:
    """Guest memory in two files; a third one is plugged in and out while rings run."""
    async with guest_on_daemon(image, folder, memory=(128, 256)) as setup:
        guest, daemon = setup.guest, setup.daemon
        await lease_by_udhcpc(guest)
        assert await ping(guest, "-f -c 300") == 300
        assert daemon.mapped_memfds() == 2

        # Buffers that the driver allocates when the first piece is full are in the second one.
        await guest.run("head -c 100m /dev/zero > /tmp/full")
        await rebind_driver(guest)
        await lease_by_udhcpc(guest)
        assert await ping(guest, "-f -c 1100") == 1100
        await guest.run("rm /tmp/full")

        await guest.plug_memory(128)
        await wait_for_memfds(daemon, 3)
        assert await ping(guest, "-f -c 300") == 300
        await guest.unplug_memory()
        await wait_for_memfds(daemon, 2)
        assert await ping(guest, "-f -c 300") == 300


async def wait_for_memfds(daemon: Daemon, count: int) -> None:
    """Wait until the daemon has mapped that many pieces of guest memory."""
    with trio.fail_after(30):
        while daemon.mapped_memfds() != count:  # noqa: ASYNC110 — no event comes from there
            await trio.sleep(0.05)
