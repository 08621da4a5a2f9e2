"""QEMU connects to a socket that is there before the daemon, and so starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.harness.process import activator

from .image import Image
from .network import lease_by_udhcpc, ping
from .qemu import GuestNic, boot_guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

MAC = "52:54:00:12:34:56"
CONFIG = """
[[network]]
name = "blue"
ipv4_subnet = "10.0.0.0/24"
[[nic]]
name = "vm1"
network = "blue"
mac_address = "{mac}"
socket_path = "{path}"
"""


async def test_qemu_starts_the_daemon(image: Image, folder: Path) -> None:
    path, config, log = folder / "vm1.sock", folder / "x.toml", folder / "log"
    config.write_text(CONFIG.format(mac=MAC, path=path))
    command = (sys.executable, "-m", "mvirt_net", "serve", "--config", str(config))
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [*activator(path), *command], stdin=subprocess.DEVNULL, stderr=stderr
        )
    try:
        async with boot_guest(image, folder, [GuestNic(mac=MAC, socket_path=path)]) as guest:
            await lease_by_udhcpc(guest)
            assert await ping(guest) == 3
        process.terminate()
        assert await process.wait() == 0, log.read_text()
        assert path.is_socket()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
