"""libvirt starts the domain of the how-to, and its guest gets its network.

By ``virt-qemu-run``, which is libvirt's QEMU driver in a process of its own: no libvirtd and no
systemd are needed, and nothing of the host's libvirt is touched. Started by root, QEMU runs as
Debian's user ``libvirt-qemu``, and what lets it in is the group of the socket.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.harness.config import one_network
from tests.harness.process import MAC

from .daemon import run_daemon
from .image import Image
from .lines import LineStream
from .network import GATEWAY, configuration, lease_by_udhcpc, ping, wait_for_gateway
from .qemu import BOOT_SECONDS, KERNEL_ARGUMENTS, Agent

RUNNER = "virt-qemu-run"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "libvirt.md"
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which(RUNNER) is None,
        reason=f"needs {RUNNER} (Debian package libvirt-daemon-system), which 'make test' installs",
    ),
]


def documented() -> list[str]:
    """The XML of the page: the domain, and what it takes without KVM."""
    return re.findall(r"^```xml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def domain(folder: Path) -> str:
    """The page's domain without KVM, with a kernel in place of a disk, and a way to talk to it."""
    whole, without_kvm = map(ET.fromstring, documented())
    [socket] = whole.findall("devices/interface/source")
    assert socket.get("mode") == "client"
    socket.set("path", f"{folder}/vm1.sock")
    [override] = without_kvm.findall(f"{{{QEMU_NAMESPACE}}}override")
    whole.append(override)
    whole.set("type", without_kvm.get("type", ""))
    boot = whole.find("os")
    devices = whole.find("devices")
    assert boot is not None
    assert devices is not None
    ET.SubElement(boot, "kernel").text = f"{folder}/kernel"
    ET.SubElement(boot, "initrd").text = f"{folder}/initramfs"
    ET.SubElement(boot, "cmdline").text = KERNEL_ARGUMENTS
    devices.append(
        ET.fromstring(
            f"""<channel type='unix'>
              <source mode='connect' path='{folder}/agent.sock'/>
              <target type='virtio' name='agent'/>
            </channel>"""
        )
    )
    devices.append(
        ET.fromstring(f"<serial type='file'><source path='{folder}/console.log'/></serial>")
    )
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    return ET.tostring(whole, encoding="unicode")


@asynccontextmanager
async def started_by_libvirt(image: Image, folder: Path) -> AsyncIterator[Agent]:
    """The domain, booted; libvirt has ended it at the end."""
    shutil.copy(image.kernel, folder / "kernel")
    shutil.copy(image.initramfs, folder / "initramfs")
    (folder / "domain.xml").write_text(domain(folder))
    root = folder / "libvirt"
    (root / "etc").mkdir(parents=True)
    # No virtlogd, and nothing of ours changes hands.
    (root / "etc" / "qemu.conf").write_text(
        'stdio_handler = "file"\ndynamic_ownership = 0\nsecurity_default_confined = 0\n'
    )
    (folder / "console.log").touch()
    (folder / "console.log").chmod(0o666)
    with trio.socket.socket(trio.socket.AF_UNIX) as listener, (folder / "log").open("wb") as log:
        await listener.bind(f"{folder}/agent.sock")
        (folder / "agent.sock").chmod(0o777)
        listener.listen()
        process = await trio.lowlevel.open_process(
            [RUNNER, "--verbose", "--root", str(root), str(folder / "domain.xml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            with trio.fail_after(BOOT_SECONDS):
                connection, _ = await listener.accept()
            agent = LineStream(trio.SocketStream(connection))
            try:
                guest = Agent(agent)
                await guest.wait_booted()
                yield guest
            finally:
                agent.close()
        except Exception as error:
            for name in ("log", "console.log"):
                error.add_note((folder / name).read_text(errors="replace")[-3000:])
            raise
        finally:
            # It takes the guest with it.
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()


async def test_domain_of_the_how_to(image: Image, folder: Path) -> None:
    """Its guest gets its lease and reaches the gateway, also after a restart of the daemon."""
    as_root = os.geteuid() == 0
    folder.chmod(0o755)
    path = folder / "mvirt-net.toml"
    nic = {"mac_address": MAC, "ipv4_address": "10.0.0.5", "socket_path": f"{folder}/vm1.sock"}
    path.write_text(one_network(vm1=nic | ({"socket_group": "kvm"} if as_root else {})))
    async with run_daemon(path) as daemon, started_by_libvirt(image, folder) as guest:
        await lease_by_udhcpc(guest)
        now = await configuration(guest)
        assert (now.addresses, now.default_gateways) == (["10.0.0.5/32"], [GATEWAY])
        assert await ping(guest) == 3
        await daemon.stop()
        await daemon.start()
        await wait_for_gateway(guest)
