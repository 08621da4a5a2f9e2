"""Debian's systemd starts the units for real, as process 1 of a guest that has only the wheel.

The frontends are those of the harness, in the guest.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .image import Image
from .qemu import Guest, boot_guest
from .systemd_image import GUEST_PYTHON, build_systemd_image

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "contrib" / "systemd"

pytestmark = [
    pytest.mark.guest,
    pytest.mark.dist,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        ".".join(map(str, sys.version_info[:2])) != GUEST_PYTHON,
        reason=f"needs Python {GUEST_PYTHON}, which is the guest's",
    ),
]

MEMORY = 960
"""MiB of a guest whose files are all in memory."""
CPU = "Nehalem"
"""The oldest for which the core is built (x86-64-v2); what QEMU has by default is older."""

CONFIG = """
[[network]]
name = "blue"
ipv4_subnet = "10.0.0.0/24"
[[nic]]
name = "vm1"
network = "blue"
mac_address = "52:54:00:12:34:56"
ipv4_address = "10.0.0.5"
socket_path = "{path}"
"""

GUEST = """
import sys
from pathlib import Path
import trio
from tests.harness.process import serves_a_guest

async def main():
    async with trio.open_nursery() as nursery:
        await serves_a_guest(nursery, Path(sys.argv[1]))

trio.run(main)
"""
"""A frontend with a guest behind it, which gets a lease; just to load it takes ten seconds."""

PROBE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as frontend:
    frontend.connect(sys.argv[1])
    frontend.sendall(b"\\1\\0\\0\\0\\1\\0\\0\\0\\0\\0\\0\\0")  # GET_FEATURES
    assert len(frontend.recv(20, socket.MSG_WAITALL)) == 20
"""
"""A frontend with one request, whose answer it awaits."""


@pytest.fixture(scope="module")
def systemd_image(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("systemd")
    for name, program in (("guest.py", GUEST), ("probe.py", PROBE)):
        (folder / name).write_text(program)
    more = {
        **{f"etc/systemd/system/{unit.name}": unit for unit in UNITS.iterdir()},
        "usr/test/guest.py": folder / "guest.py",
        "usr/test/probe.py": folder / "probe.py",
        "usr/test/tests/harness": ROOT / "tests" / "harness",
    }
    [wheel] = dist.glob("*.whl")
    return build_systemd_image(wheel, more, folder)


async def configure(guest: Guest, path: str) -> None:
    await guest.run("mkdir -p /etc/mvirt-net")
    text = CONFIG.format(path=path)
    await guest.run(f"cat > /etc/mvirt-net/mvirt-net.toml <<'END'\n{text}\nEND")


async def start(guest: Guest, unit: str) -> None:
    """systemctl start; of a failure, the journal tells."""
    await guest.run(f"systemctl start {unit} || {{ journalctl -b -n 30; exit 1; }}", timeout=100)


async def connect(guest: Guest, program: str, path: str) -> None:
    """Run a frontend in the guest."""
    await guest.run(f"cd /usr/test; python{GUEST_PYTHON} -B {program} {path}", timeout=90)


async def main_pid(guest: Guest) -> int:
    return int(await guest.run("systemctl show --value -p MainPID mvirt-net"))


async def journal(guest: Guest) -> str:
    return await guest.run("journalctl --no-pager -o cat -u mvirt-net")


async def test_units(systemd_image: Image, folder: Path) -> None:
    async with boot_guest(systemd_image, folder, memory=(MEMORY,), cpu=CPU) as guest:
        await service(guest, "/run/mvirt-net/vm1.sock")
        await sockets(guest, "/run/vhost-user/vm1.sock")


async def service(guest: Guest, path: str) -> None:
    """`systemctl start` returns when it serves; under what it is; that it comes back."""
    await configure(guest, path)
    await start(guest, "mvirt-net")
    assert (await guest.run(f"stat -c '%a %G' {path}")) == "660 kvm\n"
    await connect(guest, "guest.py", path)

    pid = await main_pid(guest)
    text = await guest.run(f"cat /proc/{pid}/status")
    status = dict(re.findall(r"^(\w+):\t(.*)$", text, re.MULTILINE))
    assert int(status["Uid"].split()[0]) >= 61184  # a dynamic one
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert "event=sandboxed" in await journal(guest)

    await guest.run("systemctl kill -s KILL mvirt-net")
    await guest.wait_until(f"[ $(systemctl show --value -p MainPID mvirt-net) != {pid} ]")
    await guest.wait_until("systemctl is-active -q mvirt-net")
    await connect(guest, "probe.py", path)

    await guest.run("systemctl stop mvirt-net")
    assert (await guest.try_run("ls /run/mvirt-net")).status != 0
    assert "event=stopped" in await journal(guest)


async def sockets(guest: Guest, path: str) -> None:
    """The daemon is started by the first frontend; the socket is there whatever comes of it."""
    await configure(guest, path)
    await start(guest, "mvirt-net-nic@vm1.socket")
    assert (await guest.run(f"stat -c '%a %U %G' {path}")) == "660 root kvm\n"
    assert await main_pid(guest) == 0
    await connect(guest, "probe.py", path)
    first = await main_pid(guest)
    assert first != 0

    await guest.run("systemctl stop mvirt-net")
    assert await main_pid(guest) == 0
    await connect(guest, "probe.py", path)
    assert await main_pid(guest) not in (0, first)
    assert "left behind" not in await journal(guest)

    await guest.run("systemctl stop mvirt-net-nic@vm1.socket mvirt-net")
    assert (await guest.try_run(f"ls {path}")).status != 0
