"""Two and three guests in two networks: routed, isolated, dual-stack, whatever their offloads."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import attrs
import pytest

from .fabric import (
    GATEWAY6,
    GuestSpec,
    checksum_errors,
    configure,
    iperf,
    open_fabric,
    received_packets,
    serve_iperf,
)
from .image import Image
from .network import GATEWAY, THREE, lease_by_dhclient, lease_by_udhcpc, ping_from
from .qemu import Guest, GuestNic

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

PLAIN = GuestNic(mac="", socket_path=Path())

CSUM = ("csum", "guest_csum")
TSO = ("host_tso4", "host_tso6", "host_ecn", "guest_tso4", "guest_tso6", "guest_ecn")
MRG = ("mrg_rxbuf",)
VARIANTS = tuple(
    attrs.evolve(
        PLAIN, without=[*(() if csum else CSUM), *(() if tso else TSO), *(() if mrg else MRG)]
    )
    for csum, tso, mrg in itertools.product((True, False), repeat=3)
)
"""Each combination of checksum and segmentation offloads and mergeable buffers."""


async def default_routes(guest: Guest) -> list[dict[str, object]]:
    routes: list[dict[str, object]] = json.loads(await guest.run("ip -6 -json route show default"))
    return routes


async def settled(guest: Guest) -> None:
    """Wait until no address is tentative: found to be nobody else's (RFC 4862, 5.4)."""
    await guest.wait_until("! ip -6 addr show tentative | grep -q .")


async def test_two_guests_reach_each_other_and_a_third_hears_nothing(
    image: Image, folder: Path
) -> None:
    """vm0 and vm1 are in one network, vm2 in another, with vm1's addresses."""
    specs = [
        GuestSpec("blue", [PLAIN], number=1),
        GuestSpec("blue", [PLAIN], number=2),
        GuestSpec("red", [PLAIN], number=2),
    ]
    async with open_fabric(image, folder, specs) as fabric:
        a, b, c = fabric.guests
        (pa,), (pb,), (pc,) = fabric.places
        assert (pb.ipv4, pb.ipv6) == (pc.ipv4, pc.ipv6)
        for guest, (place,) in zip(fabric.guests, fabric.places, strict=True):
            await lease_by_udhcpc(guest)
            await configure(guest, place)
        quiet = await received_packets(c)

        assert await ping_from(a, pa.ipv4, pb.ipv4) == 3
        assert await ping_from(b, pb.ipv4, pa.ipv4) == 3
        assert await ping_from(a, pa.ipv6, pb.ipv6) == 3
        assert await ping_from(b, pb.ipv6, pa.ipv6) == 3
        # Larger than a packet: fragments, put together by the other guest.
        assert await ping_from(a, pa.ipv4, pb.ipv4, f"{THREE} -s 8000") == 3
        assert await ping_from(a, pa.ipv6, pb.ipv6, f"{THREE} -s 8000") == 3
        assert await ping_from(a, pa.ipv4, pb.ipv4, "-f -c 2000") == 2000
        assert await ping_from(b, pb.ipv6, pa.ipv6, "-f -c 2000") == 2000

        hops = await a.run(f"traceroute.db -n -q 1 -w 5 -m 5 -s {pa.ipv4} {pb.ipv4}")
        assert [line.split()[1] for line in hops.splitlines()[1:]] == [GATEWAY, pb.ipv4]
        hops = await a.run(f"traceroute.db -6 -n -q 1 -w 5 -m 5 -s {pa.ipv6} {pb.ipv6}")
        assert [line.split()[1].partition("%")[0] for line in hops.splitlines()[1:]] == [
            GATEWAY6,
            pb.ipv6,
        ]
        # Nobody has this address; the gateway says so.
        said = (await a.try_run(f"ping -n -c 1 -W 5 -I {pa.ipv4} 10.0.9.9")).text
        assert f"From {GATEWAY} icmp_seq=1 Destination Host Unreachable" in said
        said = (await a.try_run(f"ping -n -c 1 -W 5 -I {pa.ipv4} 198.51.100.1")).text
        assert f"From {GATEWAY} icmp_seq=1 Destination Net Unreachable" in said

        # Addresses that are not vm0's own get nowhere, and nobody hears of it.
        heard = await received_packets(b)
        await a.run("ip addr add 10.0.1.99/32 dev eth0; ip rule add from 10.0.1.99 table 105")
        await a.run("ip -6 addr add fd00:0:0:1::1:99/128 dev eth0 nodad")
        await a.run("ip -6 rule add from fd00:0:0:1::1:99 table 105")
        assert await ping_from(a, "10.0.1.99", pb.ipv4, "-c 3 -i 0.2 -W 1") == 0
        assert await ping_from(a, "fd00:0:0:1::1:99", pb.ipv6, "-c 3 -i 0.2 -W 1") == 0
        # Three of each would be six more; its own gateway may advertise itself once meanwhile.
        assert await received_packets(b) - heard <= 1

        # vm2 has heard the first three advertisements of its own gateway, if anything.
        hears = await received_packets(c)
        assert hears - quiet <= 3
        assert await ping_from(c, pc.ipv4, pa.ipv4, "-c 2 -i 0.2 -W 1") == 0
        assert await ping_from(a, pa.ipv4, pb.ipv4) == 3
        for guest in fabric.guests:
            assert await checksum_errors(guest) == {}


async def test_ipv6_clients(image: Image, folder: Path) -> None:
    """The default route from the RA alone, the address by DHCPv6: dhclient -6, then dhcpcd."""
    async with open_fabric(image, folder, [GuestSpec("blue", [PLAIN], number=1)]) as fabric:
        (guest,) = fabric.guests
        ((place,),) = fabric.places
        await guest.run("echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra; ip link set eth0 up")
        # The kernel solicits once its own address has been found to be nobody else's.
        await guest.wait_until("ip -6 route show default | grep -q .")
        (route,) = await default_routes(guest)
        assert (route["gateway"], route["protocol"]) == (GATEWAY6, "ra")

        said = await guest.run("dhclient -6 -1 -v eth0")
        assert "XMT: Solicit" in said
        assert "RCV: Advertise" in said
        assert f"inet6 {place.ipv6}/128" in await guest.run("ip -6 addr show dev eth0")
        await settled(guest)
        assert "nameserver 2001:db8::53" in await guest.run("cat /etc/resolv.conf")
        assert await ping_from(guest, place.ipv6, f"{GATEWAY6}%eth0") == 3
        said = await guest.run("dhclient -6 -r -v eth0")
        assert "Release" in said
        assert place.ipv6 not in await guest.run("ip -6 addr show dev eth0")

        await guest.run("rm -f /etc/resolv.conf; ip link set eth0 down; ip link set eth0 up")
        await guest.run("dhcpcd -t 30 eth0", timeout=90)
        await guest.wait_until(f"ip -4 addr show dev eth0 | grep -q 'inet {place.ipv4}/32'")
        await guest.wait_until(f"ip -6 addr show dev eth0 | grep -q 'inet6 {place.ipv6}/128'")
        await guest.wait_until("ip -6 route show default | grep -q .")
        await settled(guest)
        assert await ping_from(guest, place.ipv6, f"{GATEWAY6}%eth0") == 3
        assert await checksum_errors(guest) == {}


async def test_every_pair_of_offloads(image: Image, folder: Path) -> None:
    """iperf3 from each combination of csum, tso and mrg to each other one, TCP and UDP.

    Each guest has a NIC for each combination; nothing arrives with a wrong checksum.
    """
    specs = [GuestSpec("blue", VARIANTS, number=number, memory=448) for number in (1, 2)]
    async with open_fabric(image, folder, specs) as fabric:
        a, b = fabric.guests
        for guest, places in zip(fabric.guests, fabric.places, strict=True):
            for place in places:
                await configure(guest, place)
        await serve_iperf(b)
        for pa, pb in itertools.product(*fabric.places):
            tcp = await iperf(a, pa.ipv4, pb.ipv4, "-n 1M")
            assert tcp.bytes_sent >= 1 << 20
        for pa, pb in zip(fabric.places[0], reversed(fabric.places[1]), strict=True):
            for source, target in ((pa.ipv6, pb.ipv6), (pa.ipv4, pb.ipv4)):
                backwards = await iperf(a, source, target, "-n 1M -R")
                assert backwards.bytes_sent >= 1 << 20
            port = 5300 + pb.host
            await serve_iperf(b, pb.ipv4, port)
            udp = await iperf(a, pa.ipv4, pb.ipv4, f"-p {port} -u -b 10M -n 1M -l 1400")
            assert udp.bytes_received > 0
            assert udp.lost == 0
        for guest in fabric.guests:
            assert await checksum_errors(guest) == {}
            for place in fabric.places[0]:
                driver = await guest.run(f"ethtool -S {place.device}")
                assert "rx_queue_0_packets" in driver
                assert not [
                    line
                    for line in driver.splitlines()
                    if "drops" in line and "xdp" not in line and not line.endswith(" 0")
                ]


@pytest.mark.parametrize("host_mtu", [None, 9000])
async def test_jumbo_network(image: Image, folder: Path, host_mtu: int | None) -> None:
    """Frames of 9,000 bytes, whether the driver was told by the device or by DHCP and RA."""
    nic = attrs.evolve(PLAIN, host_mtu=host_mtu)
    specs = [GuestSpec("blue", [nic], number=number) for number in (1, 2)]
    async with open_fabric(image, folder, specs, mtu=9000) as fabric:
        a, b = fabric.guests
        (pa,), (pb,) = fabric.places
        for guest in fabric.guests:
            await lease_by_dhclient(guest)
            assert "mtu 9000" in await guest.run("ip link show dev eth0")
        assert await ping_from(a, pa.ipv4, pb.ipv4, f"{THREE} -M do -s 8972") == 3
        for guest, place in ((a, pa), (b, pb)):
            await guest.run("dhclient -r eth0")
            await configure(guest, place, mtu=9000)
        assert await ping_from(a, pa.ipv6, pb.ipv6, f"{THREE} -M do -s 8952") == 3
        await serve_iperf(b)
        for source, target in ((pa.ipv4, pb.ipv4), (pa.ipv6, pb.ipv6)):
            assert (await iperf(a, source, target, "-n 4M")).bytes_sent >= 4 << 20
        assert await checksum_errors(b) == {}


async def test_path_mtu(image: Image, folder: Path) -> None:
    """A guest that believes in a larger MTU is told the right one, and TCP finds it by itself."""
    specs = [GuestSpec("blue", [PLAIN], number=number) for number in (1, 2)]
    async with open_fabric(image, folder, specs, mtu=1400) as fabric:
        a, b = fabric.guests
        (pa,), (pb,) = fabric.places
        await configure(a, pa, mtu=1500)
        await configure(b, pb, mtu=1400)
        said = (await a.try_run(f"ping -n -c 2 -M do -s 1472 -I {pa.ipv4} {pb.ipv4}")).text
        assert f"From {GATEWAY} icmp_seq=1 Frag needed and DF set (mtu = 1400)" in said
        assert "mtu=1400" in said or "mtu = 1400" in said
        assert await ping_from(a, pa.ipv4, pb.ipv4, f"{THREE} -M dont -s 3000") == 3
        await serve_iperf(b)
        for source, target in ((pa.ipv4, pb.ipv4), (pa.ipv6, pb.ipv6)):
            assert (await iperf(a, source, target, "-n 1M")).bytes_sent >= 1 << 20
        assert f"{pb.ipv6}" in await a.run(f"ip -6 route get {pb.ipv6} from {pa.ipv6}")
