"""The command lines that attach a VM."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mvirt_net.attach import WITHOUT_KVM, attach_lines, nic_lines
from mvirt_net.model import DaemonConfig, NetworkSpec, NicSpec


def lines(path: str = "/run/vm1.sock", **network: Any) -> list[str]:
    nic = NicSpec(
        name="vm1",
        network="blue",
        mac_address="52:54:00:12:34:56",
        ipv4_address="10.0.0.5",
        socket_path=path,
    )
    return nic_lines(nic, NetworkSpec(name="blue", **network))


def test_who_it_is_for() -> None:
    assert lines()[0] == "# vm1: network blue, 52:54:00:12:34:56, 10.0.0.5"


def test_qemu() -> None:
    words = shlex.split(lines()[1])
    assert words[0] == "qemu-system-x86_64"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options == {
        "-accel": "kvm",
        "-m": "1G",
        "-object": "memory-backend-memfd,id=mem,size=1G,share=on",
        "-machine": "q35,memory-backend=mem",
        "-chardev": "socket,id=net0,path=/run/vm1.sock,reconnect=1",
        "-netdev": "vhost-user,id=net0,chardev=net0",
        "-device": "virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56",
    }


def test_cloud_hypervisor() -> None:
    assert shlex.split(lines()[2]) == [
        "cloud-hypervisor",
        "--memory",
        "size=1G,shared=on",
        "--net",
        "vhost_user=true,socket=/run/vm1.sock,mac=52:54:00:12:34:56,num_queues=2,queue_size=256",
    ]


def test_mtu_is_said_when_it_is_not_ethernets() -> None:
    _, qemu, cloud_hypervisor = lines(mtu=9000)
    assert qemu.endswith("mac=52:54:00:12:34:56,host_mtu=9000")
    assert cloud_hypervisor.endswith("queue_size=256,mtu=9000")


@pytest.mark.parametrize(
    ("path", "for_qemu", "for_cloud_hypervisor"),
    [
        ("/run/a b.sock", "path=/run/a b.sock,", "socket=/run/a b.sock,"),
        ("/run/a,b.sock", "path=/run/a,,b.sock,", 'socket="/run/a,b.sock",'),
        ("/run/[a.sock", "path=/run/[a.sock,", 'socket="/run/[a.sock",'),
    ],
)
def test_paths_are_quoted_for_the_shell_and_for_the_program(
    path: str, for_qemu: str, for_cloud_hypervisor: str
) -> None:
    _, qemu, cloud_hypervisor = lines(path)
    assert for_qemu in " ".join(shlex.split(qemu))
    assert for_cloud_hypervisor in " ".join(shlex.split(cloud_hypervisor))


def test_a_relative_path_becomes_absolute() -> None:
    assert f"path={Path.cwd()}/vm1.sock," in lines("vm1.sock")[1]


def test_what_to_do_without_kvm_is_said_once() -> None:
    nics = [
        NicSpec(name=name, network="blue", mac_address=mac, socket_path=path)
        for name, mac, path in [
            ("vm1", "52:54:00:12:34:56", "/run/vm1.sock"),
            ("vm2", "52:54:00:12:34:57", None),
            ("vm3", "52:54:00:12:34:58", "/run/vm3.sock"),
        ]
    ]
    network = NetworkSpec(name="blue")
    said = list(attach_lines(DaemonConfig((network,), tuple(nics))))
    assert said == [WITHOUT_KVM, *nic_lines(nics[0], network), *nic_lines(nics[2], network)]


def test_nothing_to_attach_to() -> None:
    assert list(attach_lines(DaemonConfig())) == []
