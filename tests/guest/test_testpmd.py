"""DPDK's virtio-user: another driver, which polls, and whose frames can be counted exactly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from mvirt_net import DropReason, NetworkSpec, Nic, NicSpec, open_switch
from tests.harness.packets import arp_request, ethernet_frame

from .testpmd import Testpmd, run_testpmd

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

MAC = "52:54:00:12:34:56"
ADDRESS = "10.0.0.5"
GATEWAY_MAC = "02:00:00:00:00:01"
GATEWAY = "169.254.0.1"

BURST = 32
"""Frames that testpmd sends at a time."""

ONE_FILE = ("--no-huge", "-m", "192", "--no-shconf")
"""Memory of ordinary pages in one file, which is one region."""
EIGHT_FILES = ("--in-memory", "-m", "12")
"""A file and a region for each of eight huge pages, the most that virtio-user tells of."""


@attrs.define
class Setup:
    """testpmd on a NIC of a switch in this process."""

    testpmd: Testpmd
    nic: Nic
    injected: int = 0
    """Frames that the test has sent to testpmd."""

    def has_all(self) -> bool:
        """Whether all frames are in the ring: the injected ones and what an error has brought it.

        What it sent without a route brings it ICMP errors, which count before they get there.
        """
        stats = self.nic.stats()
        return stats.rx_frames == self.injected + stats.icmp_errors


@asynccontextmanager
async def switch_with_testpmd(
    dpdk: Path, folder: Path, *, memory: tuple[str, ...] = ONE_FILE, vdev: str = "", more: str = ""
) -> AsyncIterator[Setup]:
    """A switch with one NIC, and testpmd on it, which sends to the gateway by the right MACs."""
    path = folder / "nic.sock"
    options = [f"--tx-ip={ADDRESS},198.51.100.1", f"--eth-peer=0,{GATEWAY_MAC}", *more.split()]
    async with open_switch() as switch:
        await switch.add_network(NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24"))
        spec = NicSpec(
            name="vm1", network="blue", mac_address=MAC, ipv4_address=ADDRESS, socket_path=path
        )
        nic = await switch.add_nic(spec)
        devargs = f"path={path},mac={MAC}{vdev}"
        async with run_testpmd(dpdk, devargs, memory=memory, options=options) as testpmd:
            yield Setup(testpmd, nic)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the other side of it is another process."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 — no event comes from there
            await trio.sleep(0.005)


async def sends_counted_frames(setup: Setup) -> None:
    """An exact number of frames, then as many as it can, all of them counted and without route."""
    testpmd, nic = setup.testpmd, setup.nic
    before = nic.stats().tx_frames
    await testpmd.command("set fwd rxonly")
    await testpmd.command("start tx_first 4")
    await testpmd.command("stop")
    await wait_for(lambda: nic.stats().tx_frames >= before + 4 * BURST)
    assert nic.stats().tx_frames == before + 4 * BURST

    await testpmd.command("set fwd txonly")
    await testpmd.command("start")
    await wait_for(lambda: nic.stats().tx_frames > before + 50_000)
    await testpmd.command("stop")
    _received, sent = await testpmd.counters()
    await wait_for(lambda: nic.stats().drops[DropReason.NO_ROUTE] >= sent)
    stats = nic.stats()
    assert stats.tx_frames == sent
    assert stats.drops[DropReason.NO_ROUTE] == sent


async def inject(setup: Setup, frame: bytes, count: int) -> None:
    """Send `frame` to the guest `count` times; returns when all have been put in its ring."""
    setup.injected += count
    assert all(setup.nic.inject(frame) for _ in range(count))
    await wait_for(setup.has_all)


async def receives_injected_frames(setup: Setup, size: int = 60) -> None:
    """More frames than the ring has entries, all of them received, none dropped."""
    testpmd, nic = setup.testpmd, setup.nic
    frame = ethernet_frame(MAC, GATEWAY_MAC, 0x88B5, bytes(size - 14))
    await testpmd.command("set fwd rxonly")
    await testpmd.command("start")
    for _ in range(12):
        await inject(setup, frame, 100)
    with trio.fail_after(30):
        while (await testpmd.counters())[0] < nic.stats().rx_frames:
            pass
    await testpmd.command("stop")
    received, _sent = await testpmd.counters()
    assert received == nic.stats().rx_frames
    assert setup.has_all()


async def answers_arp(setup: Setup) -> None:
    """testpmd answers for any address; its answers come back and are ignored, each counted."""
    testpmd, nic = setup.testpmd, setup.nic
    request = arp_request(GATEWAY_MAC, GATEWAY, ADDRESS)
    await testpmd.command("set fwd icmpecho")
    await testpmd.command("start")
    await inject(setup, request, 50)
    await wait_for(lambda: nic.stats().drops.get(DropReason.ARP_IGNORED, 0) == 50)
    await testpmd.command("stop")


@pytest.mark.parametrize(
    "vdev",
    [
        "",
        ",mrg_rxbuf=0",
        ",in_order=0",
        ",mrg_rxbuf=0,in_order=0,queue_size=1024",
        ",mrg_rxbuf=0,in_order=0,vectorized=1",
        ",packed_vq=1",
        ",packed_vq=1,mrg_rxbuf=0,in_order=0,queue_size=1024",
        ",packed_vq=1,vectorized=1",
    ],
)
async def test_frames_both_ways(dpdk: Path, folder: Path, vdev: str) -> None:
    async with switch_with_testpmd(dpdk, folder, vdev=vdev) as setup:
        await sends_counted_frames(setup)
        await receives_injected_frames(setup)
        await answers_arp(setup)
        # It polls, and says so in its rings.
        assert setup.nic.stats().calls == 0


@pytest.mark.usefixtures("huge_pages")
async def test_eight_memory_regions(dpdk: Path, folder: Path) -> None:
    few = "--total-num-mbufs=1025"
    async with switch_with_testpmd(dpdk, folder, memory=EIGHT_FILES, more=few) as setup:
        await sends_counted_frames(setup)
        await receives_injected_frames(setup)


@pytest.mark.parametrize("vdev", ["", ",packed_vq=1"])
async def test_two_queue_pairs(dpdk: Path, folder: Path, vdev: str) -> None:
    two = "--rxq=2 --txq=2 --tx-udp=1000,2000"
    async with switch_with_testpmd(dpdk, folder, vdev=f",queues=2{vdev}", more=two) as setup:
        await setup.testpmd.command("set fwd rxonly")
        await setup.testpmd.command("start tx_first 4")
        await setup.testpmd.command("stop")
        # It sends by both.
        await wait_for(lambda: setup.nic.stats().tx_frames == 2 * 4 * BURST)
        await receives_injected_frames(setup)
        await answers_arp(setup)


async def test_frontend_with_more_pairs_than_it_uses(dpdk: Path, folder: Path) -> None:
    async with switch_with_testpmd(dpdk, folder, vdev=",queues=8") as setup:
        await sends_counted_frames(setup)
        await receives_injected_frames(setup)


async def test_port_stopped_and_started(dpdk: Path, folder: Path) -> None:
    async with switch_with_testpmd(dpdk, folder) as setup:
        for _ in range(3):
            await sends_counted_frames(setup)
            await receives_injected_frames(setup)
            await setup.testpmd.command("port stop 0")
            await setup.testpmd.command("port start 0")


async def test_frames_of_several_segments(dpdk: Path, folder: Path) -> None:
    async with switch_with_testpmd(dpdk, folder) as setup:
        testpmd, nic = setup.testpmd, setup.nic
        await testpmd.command("set txpkts 100,300,600,500")
        await testpmd.command("set fwd rxonly")
        await testpmd.command("start tx_first 16")
        await testpmd.command("stop")
        # testpmd itself drops what finds no room in the ring.
        _received, sent = await testpmd.counters()
        assert sent >= BURST
        await wait_for(lambda: nic.stats().tx_frames == sent)
        assert nic.stats().tx_bytes == sent * 1500


async def test_frames_larger_than_a_buffer(dpdk: Path, folder: Path) -> None:
    more = "--mbuf-size=512 --enable-scatter"
    async with switch_with_testpmd(dpdk, folder, more=more) as setup:
        await receives_injected_frames(setup, size=1514)
        text = await setup.testpmd.command("show port stats 0")
        assert f"RX-bytes:  {1200 * 1514}" in text


async def test_next_frontend_on_the_same_socket(dpdk: Path, folder: Path) -> None:
    async with switch_with_testpmd(dpdk, folder) as setup:
        await sends_counted_frames(setup)
        before = setup.nic.stats().tx_frames
        path = f"path={folder / 'nic.sock'},mac={MAC}"
        setup.testpmd.kill()
        async with run_testpmd(dpdk, path, memory=ONE_FILE) as second:
            await second.command("set fwd rxonly")
            await second.command("start tx_first 4")
            await wait_for(lambda: setup.nic.stats().tx_frames == before + 4 * BURST)
