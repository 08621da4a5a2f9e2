"""Debian's systemd starts the units for real, as process 1 of a guest that has only the wheel.

The frontends are those of the harness, in the guest.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.harness.config import one_network
from tests.harness.process import MAC

from .image import Image
from .qemu import Guest, boot_guest
from .systemd_image import GUEST_PYTHON, build_systemd_image

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "contrib" / "systemd"
CONFIG = "/etc/mvirt-net/mvirt-net.toml"

pytestmark = [
    pytest.mark.guest,
    pytest.mark.dist,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        ".".join(map(str, sys.version_info[:2])) != GUEST_PYTHON,
        reason=f"needs Python {GUEST_PYTHON}, which is the guest's",
    ),
]

MEMORY = 960
"""MiB of a guest whose files are all in memory."""
CPU = "Nehalem"
"""The oldest for which the core is built (x86-64-v2); what QEMU has by default is older."""

PATIENCE = 300
"""Seconds for whatever has Python load its modules, on a busy machine; a tenth is usual."""

PAGE = (ROOT / "docs" / "how-to" / "systemd.md").read_text()

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


def documented(first: str) -> str:
    """The piece of the how-to that begins with this line."""
    [piece] = re.findall(
        rf"^```\w*\n({re.escape(first)}\n.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    return str(piece)


async def write(guest: Guest, path: str, text: str) -> None:
    await guest.run(f"mkdir -p $(dirname {path}); cat > {path} <<'END'\n{text}\nEND")


async def configure(guest: Guest, path: str, more: str = "") -> None:
    """A configuration with a NIC at `path`."""
    nic = {"mac_address": MAC, "ipv4_address": "10.0.0.5", "socket_path": path}
    await write(guest, CONFIG, one_network(vm1=nic) + more)


async def start(guest: Guest, unit: str) -> None:
    """systemctl start; of a failure, the journal tells."""
    await guest.run(
        f"systemctl start {unit} || {{ journalctl -b -n 30; exit 1; }}", timeout=PATIENCE
    )


async def connect(guest: Guest, program: str, path: str) -> None:
    """Run a frontend in the guest."""
    await guest.run(f"cd /usr/test; python{GUEST_PYTHON} -B {program} {path}", timeout=PATIENCE)


async def main_pid(guest: Guest) -> int:
    return int(await guest.run("systemctl show --value -p MainPID mvirt-net"))


async def journal(guest: Guest, options: str = "") -> str:
    return await guest.run(f"journalctl --no-pager -o cat -u mvirt-net {options}")


async def test_units(systemd_image: Image, folder: Path) -> None:
    async with boot_guest(systemd_image, folder, memory=(MEMORY,), cpu=CPU) as guest:
        await service(guest, "/run/mvirt-net/vm1.sock")
        await control(guest, "/run/mvirt-net")
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
    judgement = await guest.run("systemd-analyze security --no-pager mvirt-net")
    [exposure] = re.findall(r"exposure level for mvirt-net.service: ([\d.]+)", judgement)
    assert re.findall(r"rates what is left at\s+([\d.]+)", PAGE) == [exposure]

    await guest.run("systemctl kill -s KILL mvirt-net")
    # A job is there by itself; to wait for it costs the guest nothing, unlike asking all the time.
    await guest.wait_until("[ $(systemctl show --value -p NRestarts mvirt-net) = 1 ]")
    await start(guest, "mvirt-net")
    assert await main_pid(guest) != pid
    await connect(guest, "probe.py", path)

    await guest.run("systemctl stop mvirt-net")
    assert (await guest.try_run("ls /run/mvirt-net")).status != 0
    assert "event=stopped" in await journal(guest)


async def control(guest: Guest, folder: str) -> None:
    """Control by what the how-to says; reload and restart; what was created lasts."""
    network = documented("[Service]\nPrivateNetwork=no")
    await write(guest, "/etc/systemd/system/mvirt-net.service.d/network.conf", network)
    interfaces = documented(f"# {CONFIG}\n[api]")
    [both] = re.findall(r"`(http = \[.*\])`", PAGE)
    interfaces = re.sub(r"^http = .*$", both, interfaces, flags=re.MULTILINE)
    await configure(guest, f"{folder}/vm1.sock", interfaces)
    await guest.run("systemctl daemon-reload")
    await start(guest, "mvirt-net")
    assert '"ok"' in await guest.run("wget -q -O - http://127.0.0.1:8080/healthz")
    assert (await guest.run(f"stat -c %a {folder}/grpc.sock")) == "660\n"
    await guest.run("mvirt-net ctl nic create vm2 --network blue", timeout=PATIENCE)

    pid = await main_pid(guest)
    third = f'[[nic]]\nname = "vm3"\nnetwork = "blue"\nsocket_path = "{folder}/vm3.sock"\n'
    await configure(guest, f"{folder}/vm1.sock", third + interfaces)
    await guest.run("systemctl reload mvirt-net")
    await guest.wait_until(f"[ -S {folder}/vm3.sock ]", timeout=PATIENCE)
    await guest.run(f"echo '[[nic]]' >> {CONFIG}; systemctl reload mvirt-net")
    await guest.wait_until("journalctl -u mvirt-net -p err | grep -q 'configuration not reloaded'")
    assert "level=info" not in await journal(guest, "-p err")
    assert await main_pid(guest) == pid

    # Such a file stops a restart, too, and nobody tries again.
    assert (await guest.try_run("systemctl restart mvirt-net", timeout=PATIENCE)).status != 0
    said = await guest.run(
        "systemctl show mvirt-net -p ActiveState,ExecMainStatus,NRestarts --value"
    )
    assert sorted(said.split()) == ["0", "78", "failed"]
    await configure(guest, f"{folder}/vm1.sock", interfaces)
    await guest.run("systemctl restart mvirt-net", timeout=PATIENCE)
    await connect(guest, "probe.py", f"{folder}/vm2.sock")
    await guest.run("systemctl stop mvirt-net")


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
