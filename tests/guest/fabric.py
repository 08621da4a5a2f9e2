"""Several guests on one daemon: which NICs they have, in which networks, and how they talk.

The guests of a `Fabric` boot at once. Everything that they run is Debian's: iperf3, ping,
traceroute, the DHCP clients.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.harness.ctl import run_ctl

from .daemon import Daemon, run_daemon
from .image import Image
from .qemu import Guest, GuestError, GuestNic, boot_guest

GATEWAY6 = "fe80::1"

CHECKSUM_ERRORS = (
    *("IcmpInCsumErrors", "TcpInCsumErrors", "UdpInCsumErrors"),
    *("Udp6InCsumErrors", "Icmp6InCsumErrors"),
)
"""Counters of the kernel (nstat) that must stay 0."""

_NETWORK = """
[[network]]
name = "{name}"
ipv4_subnet = "10.0.0.0/16"
ipv6_prefix = "fd00:0:0:1::/64"
dns_servers = ["192.0.2.53", "2001:db8::53"]
mtu = {mtu}
"""
_NIC = """
[[nic]]
name = "{name}"
network = "{network}"
mac_address = "{mac}"
ipv4_address = "{ipv4}"
ipv6_address = "{ipv6}"
socket_path = "{socket}"
"""


@attrs.frozen
class Place:
    """A NIC of a guest: where it is, and the name by which the guest knows it."""

    network: str
    guest: int
    """The number of its guest, counted over the fabric."""
    host: int
    """The last part of its addresses."""
    device: str
    nic: GuestNic

    @property
    def name(self) -> str:
        """By which the daemon knows the NIC."""
        return self.nic.socket_path.stem

    @property
    def ipv4(self) -> str:
        return f"10.0.{self.guest}.{self.host}"

    @property
    def ipv6(self) -> str:
        # As everybody writes it.
        return str(IPv6Address(f"fd00:0:0:1::{self.guest:x}:{self.host:x}"))


@attrs.frozen
class GuestSpec:
    """A guest to boot.

    Args:
        network: of all its NICs.
        variants: its NICs; MAC address and socket path are filled in.
        number: what its addresses are made of; two guests of different networks may have the same.
        foreign: further NICs, complete, whose backend is somebody else.
        created: whether ``mvirt-net ctl`` creates its NICs, so that they are not in the file.
        memory: in MiB. A NIC that takes segmented packets without mergeable buffers fills 17.
    """

    network: str
    variants: Sequence[GuestNic]
    number: int
    foreign: Sequence[GuestNic] = ()
    created: bool = False
    memory: int = 192


@attrs.frozen
class Fabric:
    """A daemon and its guests, with the places of each."""

    daemon: Daemon
    guests: Sequence[Guest]
    places: Sequence[Sequence[Place]]


@asynccontextmanager
async def open_fabric(
    image: Image, folder: Path, specs: Sequence[GuestSpec], *, mtu: int = 1500
) -> AsyncIterator[Fabric]:
    """The daemon on a configuration with all NICs, and all guests, booted."""
    places = [_places(folder, index, spec) for index, spec in enumerate(specs)]
    networks = dict.fromkeys(spec.network for spec in specs)
    config = "".join(_NETWORK.format(name=name, mtu=mtu) for name in networks)
    created = []
    for own, spec in zip(places, specs, strict=True):
        if spec.created:
            created += own
        else:
            config += "".join(map(_table, own))
    path = folder / "mvirt-net.toml"
    await trio.Path(path).write_text(config)
    options = ("--socket-dir", str(folder), "--http") if created else ()
    async with run_daemon(path, *options) as daemon:
        for place in created:
            await _create(folder, place)
        async with _booted(image, folder, specs, places) as guests:
            yield Fabric(daemon, guests, places)


def _table(place: Place) -> str:
    """A NIC as in the configuration file."""
    return _NIC.format(
        name=place.name,
        network=place.network,
        mac=place.nic.mac,
        ipv4=place.ipv4,
        ipv6=place.ipv6,
        socket=place.nic.socket_path,
    )


async def _create(folder: Path, place: Place) -> None:
    """Create a NIC, whose socket is where the daemon puts it by itself."""
    addresses = ("--ipv4-address", place.ipv4, "--ipv6-address", place.ipv6)
    arguments = ("--network", place.network, "--mac-addr", place.nic.mac, *addresses)
    done = await trio.to_thread.run_sync(
        partial(run_ctl, folder / "control.sock", "nic", "create", place.name, *arguments)
    )
    assert done.returncode == 0, done.stderr


def _places(folder: Path, index: int, spec: GuestSpec) -> list[Place]:
    return [
        Place(
            network=spec.network,
            guest=spec.number,
            host=5 + number,
            device=f"eth{number}",
            nic=attrs.evolve(
                variant,
                mac=f"52:54:00:00:{index:02x}:{number:02x}",
                socket_path=folder / f"vm{index}-eth{number}.sock",
            ),
        )
        for number, variant in enumerate(spec.variants)
    ]


@asynccontextmanager
async def _booted(
    image: Image, folder: Path, specs: Sequence[GuestSpec], places: Sequence[Sequence[Place]]
) -> AsyncIterator[list[Guest]]:
    """All guests, booted side by side; a folder for the logs of each."""
    guests: dict[int, Guest] = {}
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        ready = trio.Semaphore(0)

        async def boot(index: int) -> None:
            own = folder / f"vm{index}"
            own.mkdir()
            nics = [*(place.nic for place in places[index]), *specs[index].foreign]
            async with boot_guest(image, own, nics, memory=(specs[index].memory,)) as guest:
                guests[index] = guest
                ready.release()
                await trio.sleep_forever()

        for index in range(len(places)):
            nursery.start_soon(boot, index)
        for _ in places:
            await ready.acquire()
        try:
            yield [guests[index] for index in sorted(guests)]
        finally:
            nursery.cancel_scope.cancel()


# What guests do.


async def configure(guest: Guest, place: Place, *, mtu: int = 1500) -> None:
    """Give a NIC its addresses by hand, as DHCP would, and routes of its own.

    Several NICs of one guest are in one network here, so what is bound to one of them must leave
    by it: each has a routing table for packets from its addresses.
    """
    table = 100 + place.host
    await guest.run(
        f"ip link set {place.device} up mtu {mtu}\n"
        f"ip addr add {place.ipv4}/32 dev {place.device}\n"
        f"ip -6 addr add {place.ipv6}/128 dev {place.device} nodad\n"
        f"ip route add default via 169.254.0.1 dev {place.device} onlink table {table}\n"
        f"ip rule add from {place.ipv4} table {table}\n"
        f"ip -6 route add default via {GATEWAY6} dev {place.device} table {table}\n"
        f"ip -6 rule add from {place.ipv6} table {table}\n"
        f"echo 0 > /proc/sys/net/ipv4/conf/{place.device}/rp_filter\n"
        "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter"
    )


IPERF_PORT = 5201


async def serve_iperf(guest: Guest, address: str = "", port: int = IPERF_PORT) -> None:
    """Start an iperf3 server that takes one client after another.

    Args:
        address: what it listens on; by default all. For UDP on one of several NICs it is needed:
            the kernel would choose where the answers come from.
    """
    bind = f"-B {address}" if address else ""
    await guest.run(f"iperf3 -s -D -p {port} {bind} > /dev/null")
    await guest.wait_until(f"netstat -ltn | grep -q ':{port} '")


@attrs.frozen
class Transfer:
    """What iperf3 says of one run."""

    bytes_sent: int
    bytes_received: int
    """Until the sender said that it was done, so maybe less than was sent by TCP."""
    mbits: float
    """Megabits a second, at the receiver."""
    lost: int
    """Datagrams; 0 for TCP."""
    retransmits: int
    """Segments; 0 for UDP."""
    command: str


async def iperf(
    guest: Guest, source: str, target: str, options: str, *, timeout: float = 60
) -> Transfer:
    """Run iperf3's client against a server on `target`.

    Raises:
        GuestError: it does not end well.
    """
    command = f"iperf3 -c {target} -B {source} {options}"
    output = await guest.try_run(f"{command} --json --connect-timeout 5000", timeout=timeout)
    try:
        result: Mapping[str, Any] = json.loads(output.text)
    except ValueError:
        raise GuestError(f"iperf3 did not run:\n{output.text}") from None
    if output.status != 0 or "error" in result:
        raise GuestError(f"{command}: {result.get('error', output.text[-500:])}")
    end = result["end"]
    received = end.get("sum_received", end.get("sum", {}))
    return Transfer(
        bytes_sent=int(end.get("sum_sent", received)["bytes"]),
        bytes_received=int(received["bytes"]),
        mbits=received["bits_per_second"] / 1e6,
        lost=int(end.get("sum", {}).get("lost_packets", 0)),
        retransmits=int(end.get("sum_sent", {}).get("retransmits", 0)),
        command=command,
    )


async def checksum_errors(guest: Guest) -> dict[str, int]:
    """The kernel's counters of wrong checksums that are not 0."""
    text = await guest.run("nstat -asz")
    counters = {
        words[0]: int(words[1])
        for line in text.splitlines()
        if len(words := line.split()) >= 2 and words[0] in CHECKSUM_ERRORS
    }
    if set(counters) != set(CHECKSUM_ERRORS):
        raise GuestError(f"nstat does not know all of {CHECKSUM_ERRORS}:\n{text}")
    return {name: count for name, count in counters.items() if count}


async def received_packets(guest: Guest, device: str = "eth0") -> int:
    """How many frames the driver of a NIC has received."""
    return int(await guest.run(f"cat /sys/class/net/{device}/statistics/rx_packets"))


TRANSFER_PORT = 7000


@attrs.frozen
class FileTransfer:
    """A file on its way from one guest to another over one TCP connection."""

    sender: Guest
    receiver: Guest


async def start_transfer(
    sender: Guest, receiver: Guest, target: str, megabytes: int
) -> FileTransfer:
    """Begin to send so many MiB of noise to `target`, an IPv4 address of `receiver`."""
    # Each nc ends when the other one's stdin does, so the receiver's never ends.
    await receiver.run(
        "rm -f /run/sum /run/open; mkfifo /run/open\n"
        f"(nc -l -p {TRANSFER_PORT} 0<> /run/open | md5sum > /run/sum.part\n"
        "mv /run/sum.part /run/sum) > /dev/null 2>&1 &"
    )
    await receiver.wait_until(f"netstat -ltn | grep -q ':{TRANSFER_PORT} '")
    # The same noise again and again, for there is no room for more, of a length such that no other
    # piece of it fits in a gap. With pauses, so that there is time for something to happen.
    await sender.run(
        "head -c 997k /dev/urandom > /tmp/noise\n"
        "echo 'for _ in $(seq 1000); do cat /tmp/noise || exit; sleep $1; done 2> /dev/null"
        f" | head -c {megabytes}m' > /tmp/sent\n"
        f"dash /tmp/sent 0.2 | nc {target} {TRANSFER_PORT} > /dev/null 2>&1 &"
    )
    return FileTransfer(sender, receiver)


async def wait_received(guest: Guest, megabytes: int) -> None:
    """Wait until so many MiB have come to eth0 since the guest's boot."""
    await guest.wait_until(
        f"[ $(cat /sys/class/net/eth0/statistics/rx_bytes) -ge {megabytes << 20} ]"
    )


async def is_under_way(transfer: FileTransfer) -> bool:
    """Whether the receiver has not seen the end yet."""
    return (await transfer.receiver.try_run("[ -e /run/sum ]")).status != 0


async def finish_transfer(transfer: FileTransfer, *, timeout: float = 120) -> None:
    """Wait until the receiver has it all.

    Raises:
        GuestError: it is not what was sent, or does not come within `timeout` seconds.
    """
    await transfer.receiver.wait_until("[ -e /run/sum ]", timeout=timeout)
    received = await transfer.receiver.run("cat /run/sum")
    sent = await transfer.sender.run("dash /tmp/sent 0 | md5sum", timeout=timeout)
    if received != sent:
        raise GuestError(f"received {received!r} in place of {sent!r}")
