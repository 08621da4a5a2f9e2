"""What a guest does with its network, in the words of Debian's tools."""

from __future__ import annotations

import json
import re

import attrs

from .qemu import Agent, GuestError

GATEWAY = "169.254.0.1"

THREE = "-c 3 -l 3 -i 5"
"""Three echo requests at once, for whose answers ping waits five seconds.

Once it has an answer, ping waits after its last request for as long as the interval or as two round
trips, whichever is more, and not for what ``-W`` says. With ``-i 0.2``, an answer that a busy
machine holds up for half a second would count as lost.
"""

_RECEIVED = re.compile(r" (\d+) received,")


@attrs.frozen
class Configuration:
    """What a DHCP client has made of its lease."""

    addresses: list[str]
    """IPv4 only, with their prefix lengths."""
    mtu: int
    default_gateways: list[str]
    name_servers: list[str]


async def lease_by_udhcpc(guest: Agent, nic: str = "eth0") -> str:
    """Get a lease by busybox's client with Debian's script; returns what it printed."""
    return await guest.run(f"udhcpc -i {nic} -n -q")


async def lease_by_dhclient(guest: Agent, nic: str = "eth0") -> str:
    """Get a lease by ISC's client, which goes on in the background; returns what it printed."""
    return await guest.run(f"dhclient -1 -v {nic}")


async def configuration(guest: Agent, nic: str = "eth0") -> Configuration:
    """What `nic` looks like now."""
    # Each of ip's answers is one line of JSON.
    addresses, routes, *resolv_conf = (
        await guest.run(
            f"ip -json address show dev {nic}; ip -json -4 route show default dev {nic}\n"
            "cat /etc/resolv.conf 2> /dev/null || true"
        )
    ).splitlines()
    (link,) = json.loads(addresses)
    return Configuration(
        addresses=[
            f"{info['local']}/{info['prefixlen']}"
            for info in link["addr_info"]
            if info["family"] == "inet"
        ],
        mtu=link["mtu"],
        default_gateways=[route["gateway"] for route in json.loads(routes)],
        name_servers=[line.split()[1] for line in resolv_conf if line.startswith("nameserver ")],
    )


async def features(guest: Agent, nic: str = "eth0") -> set[int]:
    """The bits of the virtio features that driver and device have agreed on."""
    bits = (await guest.run(f"cat /sys/class/net/{nic}/device/features")).strip()
    return {number for number, bit in enumerate(bits) if bit == "1"}


async def forget(guest: Agent, nic: str = "eth0") -> None:
    """Leave nothing of an earlier lease: no address, no route, no name server."""
    await guest.run(
        f"ip address flush dev {nic}; ip link set {nic} down; rm -f /etc/resolv.conf"
        " /var/lib/dhcp/*"
    )


async def ping(guest: Agent, options: str = THREE, nic: str = "eth0") -> int:
    """Ping the gateway through `nic`; returns the number of answers."""
    return await ping_from(guest, nic, GATEWAY, options)


async def ping_from(guest: Agent, source: str, target: str, options: str = THREE) -> int:
    """Ping `target` from `source`, an address or a NIC; returns the number of answers."""
    output = await guest.try_run(f"ping -n -W 5 -I {source} {options} {target}")
    found = _RECEIVED.search(output.text)
    if found is None:
        raise GuestError(f"ping did not run:\n{output.text}")
    return int(found[1])


async def wait_for_gateway(guest: Agent, nic: str = "eth0") -> None:
    """Ping the gateway until it answers."""
    await guest.wait_until(f"ping -n -c 1 -W 1 -I {nic} {GATEWAY} > /dev/null")


async def wait_for_carrier(guest: Agent, *, up: bool, nic: str = "eth0") -> None:
    """Wait until the driver says that the cable is in, or out."""
    await guest.wait_until(f"[ $(cat /sys/class/net/{nic}/carrier) = {int(up)} ]")


async def rebind_driver(guest: Agent, nic: str = "eth0") -> None:
    """Take the virtio_net driver off its device and put it back."""
    await guest.run(
        f"device=$(basename $(readlink /sys/class/net/{nic}/device))\n"
        "cd /sys/bus/virtio/drivers/virtio_net\n"
        f"echo $device > unbind; [ ! -e /sys/class/net/{nic} ] || exit 1\n"
        f"echo $device > bind; [ -e /sys/class/net/{nic} ]"
    )
