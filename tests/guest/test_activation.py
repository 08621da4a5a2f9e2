"""QEMU connects to a socket that is there before the daemon, and so starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.harness.config import one_network
from tests.harness.process import MAC, activator

from .image import Image
from .network import lease_by_udhcpc, ping
from .qemu import GuestNic, boot_guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


async def test_qemu_starts_the_daemon(image: Image, folder: Path) -> None:
    path, config, log = folder / "vm1.sock", folder / "x.toml", folder / "log"
    config.write_text(one_network(vm1={"mac_address": MAC, "socket_path": path}))
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
