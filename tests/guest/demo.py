"""``make demo``: Debian guests get their network from mvirt-net, before the reader's eyes.

Says ``demo: OK`` and ends with status 0, or says what went wrong and ends with status 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import trio

from .daemon import Daemon, DaemonError, run_daemon
from .debs import DebsError
from .fabric import GuestSpec, open_fabric, serve_iperf
from .image import Image, build_image
from .network import (
    GATEWAY,
    forget,
    lease_by_dhclient,
    lease_by_udhcpc,
    rebind_driver,
    wait_for_carrier,
    wait_for_gateway,
)
from .qemu import Guest, GuestError, GuestNic, boot_guest

DEADLINE = 300
"""Seconds for all of it, the image being there. On an idle machine it takes forty."""

MAC = "52:54:00:12:34:56"

CONFIG = """\
[[network]]
name = "blue"
ipv4_subnet = "10.0.0.0/24"

[[nic]]
name = "vm1"
network = "blue"
mac_address = "{mac}"
ipv4_address = "10.0.0.5"
socket_path = "{socket}"
"""


class DemoError(Exception):
    """The guest's network does not do what it must."""


def main() -> int:
    """Run the demo; returns the exit status."""
    began = time.monotonic()
    try:
        with step("build the guest's kernel and initramfs (kept in build/guest)"):
            image = build_image()
        with tempfile.TemporaryDirectory(prefix="mvirt-demo-") as folder:
            trio.run(_within_deadline, image, Path(folder))
    except (DaemonError, DebsError, DemoError, GuestError, trio.TooSlowError, OSError) as error:
        say("\n".join([f"demo: FAILED: {error}", *getattr(error, "__notes__", [])]))
        return 1
    except KeyboardInterrupt:
        say("demo: interrupted")
        return 130
    say(f"demo: OK ({time.monotonic() - began:.1f} s)")
    return 0


async def _within_deadline(image: Image, folder: Path) -> None:
    with trio.fail_after(DEADLINE):
        await demonstrate(image, folder)


async def demonstrate(image: Image, folder: Path) -> None:
    """One daemon, one guest, and all that happens to them.

    Args:
        image: what the guest boots.
        folder: for the configuration, the socket and the logs.
    """
    nic = GuestNic(mac=MAC, socket_path=folder / "vm1.sock")
    config = folder / "mvirt-net.toml"
    text = CONFIG.format(mac=MAC, socket=nic.socket_path)
    await trio.Path(config).write_text(text)
    say(indented(text))
    async with AsyncExitStack() as stack:
        with step("start the daemon on this: mvirt-net serve --config mvirt-net.toml"):
            daemon = await stack.enter_async_context(run_daemon(config))
        with step("boot Debian's kernel under QEMU (TCG), a virtio-net-pci on the NIC's socket"):
            guest = await stack.enter_async_context(boot_guest(image, folder, [nic]))
        await _leases(guest)
        await _restarts(guest, daemon)
    (folder / "two").mkdir()
    await _two_guests(image, folder / "two")


async def _leases(guest: Guest) -> None:
    with step("get a lease by udhcpc"):
        say(indented(await lease_by_udhcpc(guest)))
        # The kernel says NO-CARRIER for up to a second after the link was first set up.
        await guest.wait_until("[ $(cat /sys/class/net/eth0/operstate) = up ]")
        await show(guest, "ip address show dev eth0", "ip route", "cat /etc/resolv.conf")
        await show_ping(guest)
    await forget(guest)
    with step("get a lease by ISC dhclient"):
        say(indented(await lease_by_dhclient(guest)))
        await show(guest, "ip address show dev eth0", "ip route", "cat /etc/resolv.conf")
        await show_ping(guest)
        await guest.run("dhclient -x eth0")


async def _restarts(guest: Guest, daemon: Daemon) -> None:
    with step("restart the driver: unbind, bind, a lease again"):
        await rebind_driver(guest)
        say(indented(await lease_by_udhcpc(guest)))
        await show_ping(guest)
    with step("restart the daemon: SIGTERM, start; the guest does nothing"):
        await daemon.stop()
        await _come_back(guest, daemon)
    with step("restart the daemon: SIGKILL, start; the guest does nothing"):
        await daemon.kill()
        await _come_back(guest, daemon)


async def _come_back(guest: Guest, daemon: Daemon) -> None:
    await wait_for_carrier(guest, up=False)
    say(indented("the guest's cable is out"))
    await daemon.start()
    await wait_for_gateway(guest)
    say(indented("the gateway answers again"))
    await show_ping(guest)


async def _two_guests(image: Image, folder: Path) -> None:
    """Two guests in one network: what either sees of the other."""
    plain = GuestNic(mac="", socket_path=Path())
    specs = [GuestSpec("blue", [plain], number=number) for number in (1, 2)]
    async with AsyncExitStack() as stack:
        with step("start the daemon with two NICs in one network, and boot two guests"):
            fabric = await stack.enter_async_context(open_fabric(image, folder, specs))
        (a, b), (_, (pb,)) = fabric.guests, fabric.places
        with step("get addresses by DHCP and DHCPv6, and the default route by RA"):
            for guest in (a, b):
                await guest.run("ip link set eth0 up")
                await lease_by_udhcpc(guest)
                await guest.wait_until("ip -6 route show default | grep -q .")
                await guest.run("dhclient -6 -1 eth0")
                await guest.wait_until("! ip -6 addr show tentative | grep -q .")
            await show(a, "ip address show dev eth0", "ip route", "ip -6 route")
        with step("ping, trace the route"):
            await show(
                a,
                f"ping -c 3 -i 0.2 {pb.ipv4}",
                f"ping -c 3 -i 0.2 {pb.ipv6}",
                f"traceroute.db -n -q 1 {pb.ipv4}",
                f"traceroute.db -6 -n -q 1 {pb.ipv6}",
            )
        with step("iperf3, TCP and UDP"):
            await serve_iperf(b)
            await show(
                a,
                f"iperf3 -c {pb.ipv4} -t 2",
                f"iperf3 -c {pb.ipv6} -t 2",
                f"iperf3 -c {pb.ipv4} -u -b 20M -t 2",
            )
            await show(b, "nstat -asz | grep -i csum")


async def show(guest: Guest, *commands: str) -> None:
    """Commands as typed in the guest, each with what it says."""
    for command in commands:
        say(indented(f"guest# {command}\n{await guest.run(command)}"))


async def show_ping(guest: Guest) -> None:
    """A ping of the gateway, which has to answer three times of three."""
    command = f"ping -c 3 -i 0.2 -W 5 {GATEWAY}"
    output = await guest.try_run(command)
    say(indented(f"guest# {command}\n{output.text}"))
    if " 3 received," not in output.text:
        raise DemoError("the gateway did not answer each ping")


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done, and then how long it took."""
    say(f"* {title}")
    began = time.monotonic()
    yield
    say(f"  {time.monotonic() - began:.1f} s\n")


def indented(text: str) -> str:
    """`text` four columns to the right, without empty lines."""
    return "\n".join(f"    {line}" for line in text.splitlines() if line.strip())


def say(text: str) -> None:
    """Tell the reader, who watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
