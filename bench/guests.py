"""iperf3 between two guests, over mvirt-net and over DPDK's testpmd in the same run.

Each guest has two NICs: eth0 on the daemon, eth1 on a port of testpmd, which passes frames on from
one port to the other and looks at nothing (``--forward-mode=io``: the fastest there is, and no
routing). The guests are emulated (TCG), and both they and the backend share two processors, so a
figure says what a user of this machine would see; testpmd polls while it is measured and stands
still otherwise.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import attrs

from tests.guest.fabric import (
    Fabric,
    GuestSpec,
    configure,
    iperf,
    open_fabric,
    serve_iperf,
)
from tests.guest.image import build_image
from tests.guest.qemu import Guest, GuestNic
from tests.guest.testpmd import Testpmd, run_vhost_switch, unpack_dpdk

from .figures import Row, Scale, Table, ratio, spread

ALL_OFF = (
    *("csum", "guest_csum", "host_tso4", "host_tso6", "host_ecn"),
    *("guest_tso4", "guest_tso6", "guest_ecn"),
)
SECONDS = 2

COLUMNS = ("Mbit/s", "peer's", "÷ peer", "± %")
NOTES = (
    "Emulated guests (TCG); backend and both guests on two processors. iperf3, 2 s a run.",
    "÷ peer: our throughput in units of the peer's, higher is better.",
    "Peer: testpmd with two net_vhost ports, io forward, tso=1; it polls while it is measured.",
)


@attrs.frozen
class Link:
    """How two guests reach each other: addresses of the one that sends and of the other."""

    ipv4: tuple[str, str]
    ipv6: tuple[str, str]


async def guests(scale: Scale) -> Table:
    """The table of what two guests get."""
    rows = []
    for name, without in (("offloads on", ()), ("offloads off", ALL_OFF)):
        rows += await _measure(name, without, max(2, scale.rounds // 5))
    return Table("guests", "iperf3 between two guests", COLUMNS, rows, NOTES)


async def _measure(name: str, without: Sequence[str], rounds: int) -> list[Row]:
    nic = GuestNic(mac="", socket_path=Path(), without=without)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mvirt-")))
        sockets = [folder / f"peer{number}.sock" for number in range(2)]
        testpmd = await stack.enter_async_context(run_vhost_switch(unpack_dpdk(), sockets))
        specs = [
            GuestSpec(
                "blue",
                [nic],
                number=number,
                foreign=[attrs.evolve(nic, mac=f"52:54:00:01:00:0{number}", socket_path=path)],
            )
            for number, path in enumerate(sockets, start=1)
        ]
        fabric = await stack.enter_async_context(open_fabric(build_image(), folder, specs))
        ours, peer = await _links(fabric)
        return await _rows(name, fabric.guests[0], testpmd, ours, peer, rounds)


async def _links(fabric: Fabric) -> tuple[Link, Link]:
    """Addresses on both NICs of both guests; a server on the second."""
    for number, (guest, (place,)) in enumerate(
        zip(fabric.guests, fabric.places, strict=True), start=1
    ):
        await configure(guest, place)
        await guest.run(
            # UDP answers leave by the main table, for the server is bound to no address.
            "ip route add default via 169.254.0.1 dev eth0 onlink\n"
            "ip -6 route add default via fe80::1 dev eth0\n"
            "ip link set eth1 up\n"
            f"ip addr add 10.9.0.{number}/24 dev eth1\n"
            f"ip -6 addr add fd09::{number}/64 dev eth1 nodad"
        )
    await serve_iperf(fabric.guests[1])
    (first,), (second,) = fabric.places
    return (
        Link((first.ipv4, second.ipv4), (first.ipv6, second.ipv6)),
        Link(("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")),
    )


async def _rows(
    name: str, guest: Guest, testpmd: Testpmd, ours: Link, peer: Link, rounds: int
) -> list[Row]:
    rows = []
    for family in ("ipv4", "ipv6"):
        for protocol, options in (("TCP", ""), ("TCP, back", "-R"), ("UDP", "-u -b 0 -l 1400")):
            results: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(rounds):
                for who, link in (("ours", ours), ("peer", peer)):
                    if who == "peer":
                        await testpmd.command("start")
                    source, target = getattr(link, family)
                    run = await iperf(guest, source, target, f"-t {SECONDS} {options}")
                    results[who].append(run.mbits)
                    if who == "peer":
                        await testpmd.command("stop")
            cells = {
                "Mbit/s": statistics.median(results["ours"]),
                "peer's": statistics.median(results["peer"]),
                "÷ peer": ratio(results["ours"], results["peer"]),
                "± %": spread(results["ours"]),
            }
            label = "IPv4" if family == "ipv4" else "IPv6"
            rows.append(Row(f"{protocol}, {label}, {name}", cells))
    return rows
