"""The command lines that attach a VM to a NIC."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from .model import DaemonConfig, NetworkSpec, NicSpec

WITHOUT_KVM = "# without KVM: -accel tcg, and vectors=0 on the device (QEMU 7.2 crashes otherwise)"
"""What to change in a QEMU line; without it the guest's driver makes QEMU's MSI-X code fail."""

_DEFAULT_MTU = 1500


def attach_lines(config: DaemonConfig) -> Iterator[str]:
    """What a user has to know to attach VMs, as lines for a shell.

    Args:
        config: NICs without a socket path are left out; the others are filled in.
    """
    networks = {network.name: network for network in config.networks}
    nics = [nic for nic in config.nics if nic.socket_path is not None]
    if nics:
        yield WITHOUT_KVM
    for nic in nics:
        yield from nic_lines(nic, networks[nic.network])


def nic_lines(nic: NicSpec, network: NetworkSpec) -> list[str]:
    """What a user types to attach a VM with 1 GiB of memory to `nic`, one command a line.

    The disk or kernel is the user's to add. Both commands share all of the VM's memory with the
    backend, without which vhost-user cannot work.

    Args:
        nic: filled in, with a socket path.
        network: the NIC's network.
    """
    assert nic.socket_path is not None
    # The VM may be started from another folder.
    socket = nic.socket_path.absolute()
    return [
        f"# {nic.name}: network {network.name}, {_addresses(nic)}",
        shlex.join(_qemu(nic, network, socket)),
        shlex.join(_cloud_hypervisor(nic, network, socket)),
    ]


def _addresses(nic: NicSpec) -> str:
    given = (nic.mac_address, nic.ipv4_address, nic.ipv6_address)
    return ", ".join(str(address) for address in given if address is not None)


def _qemu(nic: NicSpec, network: NetworkSpec, socket: Path) -> list[str]:
    # A comma inside a QEMU option is written twice (qemu(1)).
    path = str(socket).replace(",", ",,")
    mtu = "" if network.mtu == _DEFAULT_MTU else f",host_mtu={network.mtu}"
    return [
        *("qemu-system-x86_64", "-accel", "kvm", "-m", "1G"),
        *("-object", "memory-backend-memfd,id=mem,size=1G,share=on"),
        *("-machine", "q35,memory-backend=mem"),
        *("-chardev", f"socket,id=net0,path={path},reconnect=1"),
        *("-netdev", "vhost-user,id=net0,chardev=net0"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={nic.mac_address}{mtu}"),
    ]


def _cloud_hypervisor(nic: NicSpec, network: NetworkSpec, socket: Path) -> list[str]:
    # Its option parser leaves commas and brackets between double quotes alone.
    path = f'"{socket}"' if set(str(socket)) & set(",[]") else str(socket)
    mtu = "" if network.mtu == _DEFAULT_MTU else f",mtu={network.mtu}"
    return [
        *("cloud-hypervisor", "--memory", "size=1G,shared=on"),
        "--net",
        f"vhost_user=true,socket={path},mac={nic.mac_address},num_queues=2,queue_size=256{mtu}",
    ]
