"""The systemd units: systemd takes them, they leave little to the daemon, and that is enough."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from mvirt_net import cli
from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.driven import driven
from tests.harness.process import (
    HOT,
    MAC,
    NOBODY,
    WITHOUT_RIGHTS,
    make_hot,
    serves_a_guest,
    single,
    started,
)

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "contrib" / "systemd" / "mvirt-net.service"
SOCKET = ROOT / "contrib" / "systemd" / "mvirt-net-nic@.socket"
MOST_EXPOSURE = 2.0
PROGRAM = "/usr/local/bin/mvirt-net"


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """A mark for tests that run a program which `make test` installs."""
    reason = f"needs {program} (Debian package {package}), which 'make test' installs"
    return pytest.mark.skipif(shutil.which(program) is None, reason=reason)


needs_systemd = needs("systemd-analyze", "systemd")


def settings(name: str) -> list[str]:
    """The values of all lines of the unit that set `name`."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def analyze(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, check=False)


def verify(text: str, path: Path, *, program: str = PROGRAM) -> None:
    """Let systemd judge a unit; `program` is in it, ours is exchanged for one that is there."""
    assert program in text
    path.write_text(text.replace(PROGRAM, sys.executable))
    result = analyze("verify", "--man=no", str(path))
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
def test_is_valid(tmp_path: Path) -> None:
    verify(UNIT.read_text(), tmp_path / UNIT.name)


@needs_systemd
def test_socket_is_valid_and_starts_the_unit(tmp_path: Path) -> None:
    """An instance of it, next to the service that it names."""
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(PROGRAM, sys.executable))
    verify(SOCKET.read_text(), tmp_path / "mvirt-net-nic@vm1.socket", program=UNIT.name)


def test_socket_is_where_the_how_to_says() -> None:
    page = (ROOT / "docs" / "how-to" / "systemd.md").read_text()
    [path] = re.findall(r"^ListenStream=(.*)$", SOCKET.read_text(), re.MULTILINE)
    assert f'socket_path = "{path.replace("%i", "vm1")}"' in page
    # The service would remove them with its own folder.
    assert not path.startswith(f"/run/{settings('RuntimeDirectory')[0]}/")


@needs_systemd
def test_user_that_stays(tmp_path: Path) -> None:
    """systemd-sysusers makes it, and systemd-tmpfiles its folder."""
    for kind in ("sysusers.d", "tmpfiles.d"):
        folder = tmp_path / "usr" / "lib" / kind
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "contrib" / kind / "mvirt-net.conf", folder)
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True)
    [user] = re.findall(
        r"^mvirt-net:[^:]*:(\d+):(\d+):", (tmp_path / "etc" / "passwd").read_text(), re.MULTILINE
    )
    assert "kvm:" in (tmp_path / "etc" / "group").read_text()
    if os.geteuid() == 0:  # who alone can give a folder away
        subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create"], check=True)
        made = (tmp_path / "run" / "mvirt-net").stat()
        assert (made.st_uid, made.st_gid) == tuple(map(int, user))


def test_descriptor_for_qemu() -> None:
    """A VhostUserBackend of QEMU's vhost-user.json."""
    path = ROOT / "contrib" / "qemu" / "50-mvirt-net.json"
    descriptor = json.loads(path.read_text())
    assert descriptor.keys() == {"description", "type", "binary"}
    assert descriptor["type"] == cli.CAPABILITIES["type"]
    assert descriptor["binary"] == PROGRAM


@needs_systemd
def test_template_of_the_how_to(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "systemd.md").read_text()
    [script] = re.findall(r"^```sh\n(sed .*?)^```$", page, re.DOTALL | re.MULTILINE)
    template = tmp_path / "mvirt-net@.service"
    script = script.replace("/etc/systemd/system/mvirt-net@.service", str(template))
    subprocess.run(["bash", "-c", script], cwd=ROOT, check=True)
    text = template.read_text()
    assert "--config /etc/mvirt-net/%i.toml" in text
    assert "\nRuntimeDirectory=mvirt-net/%i\n" in text
    assert "\nStateDirectory=mvirt-net/%i\n" in text
    verify(text, tmp_path / "mvirt-net@blue.service")


@needs_systemd
def test_exposure() -> None:
    result = analyze("security", "--offline=true", "--no-pager", str(UNIT))
    [exposure] = re.findall(
        r"Overall exposure level for mvirt-net.service: ([0-9.]+)", result.stdout
    )
    assert float(exposure) <= MOST_EXPOSURE


def test_starts_what_there_is() -> None:
    """The command line of the unit is one of ours."""
    [line] = settings("ExecStart")
    program, subcommand, *args = line.split()
    assert (program, subcommand) == (PROGRAM, "serve")
    # The group need not exist here.
    args[args.index("kvm")] = "0"
    # With its parent: click keeps the help option that a command had first.
    parent = cli.command.make_context("mvirt-net", ["serve"])
    ctx = cli.command.commands["serve"].make_context("serve", args, parent=parent)
    assert ctx.params["path"] == Path("/etc/mvirt-net/mvirt-net.toml")
    assert ctx.params["socket_group"] == "0"
    for status in settings("RestartPreventExitStatus")[0].split():
        assert ExitCode(int(status)) in (
            ExitCode.USAGE,
            ExitCode.BAD_STATE,
            ExitCode.BAD_CONFIG,
        )


@needs_systemd
@needs("strace", "strace")
async def test_system_calls_are_allowed(
    nursery: trio.Nursery, folder: Path, tmp_path: Path
) -> None:
    """All that a daemon without root does, from the moment on when it has lost its rights; a worker
    that stays on a processor included.
    """
    trace, path = tmp_path / "trace", folder / "s"
    strace = ("strace", "-f", "--quiet=all", "-o", str(trace))
    cpu = str(min(os.sched_getaffinity(0)))
    args = (*single(path), "--mac-addr", MAC, "--pid", f"{folder}/pid")
    args += (*HOT, "--worker-cpus", cpu, "--socket-group", str(os.getgid() or NOBODY.pw_gid))
    with started(*args, command=("-c", WITHOUT_RIGHTS), wrapper=strace) as daemon:
        # Not its ready line, for strace keeps that descriptor open.
        await trio.to_thread.run_sync(daemon.wait_event, "serving")
        await serves_a_guest(nursery, path)
        client = await VhostTestClient.connect(nursery, path)
        await make_hot(client)
        daemon.send_to_child(signal.SIGUSR1)
        await trio.to_thread.run_sync(daemon.wait_event, "nic state")
        await client.aclose()
        daemon.send_to_child(signal.SIGTERM)
        _, log = await trio.to_thread.run_sync(daemon.process.communicate)
        assert daemon.wait() == ExitCode.OK, log
    used = system_calls(trace.read_text())
    assert {"accept4", "mmap", "landlock_restrict_self", "unlink", "sched_setaffinity"} <= used
    assert used - allowed_system_calls() == set()


@needs_systemd
@needs("strace", "strace")
def test_system_calls_of_control(folder: Path, tmp_path: Path) -> None:
    """Likewise: what is created is stored, and the configuration is read again."""
    trace, config = tmp_path / "trace", folder / "x.toml"
    config.write_text("")
    strace = ("strace", "-f", "--quiet=all", "-o", str(trace))
    args = ("serve", "-c", str(config), "--socket-dir", str(folder), "--state", f"{folder}/state")
    with driven(*args, as_nobody=True, wrapper=strace) as (daemon, verbs):
        verbs.create_network({"name": "blue", "ipv4_subnet": "10.0.0.0/24"})
        verbs.create_nic({"network": "blue", "name": "vm1"})
        daemon.send_to_child(signal.SIGHUP)
        daemon.wait_event("configuration reloaded")
        verbs.delete_network("blue", force=True)
        daemon.send_to_child(signal.SIGTERM)
        assert daemon.wait() == ExitCode.OK
    used = system_calls(trace.read_text())
    assert {"fdatasync", "bind", "unlink"} <= used
    assert used - allowed_system_calls() == set()


def system_calls(trace: str) -> set[str]:
    """Names from what strace wrote, from the last change of user on."""
    lines = trace.splitlines()
    begin = max((i for i, line in enumerate(lines) if " setuid(" in line), default=0)
    found = (re.match(r"\d+ +(\w+)\(", line) for line in lines[begin + 1 :])
    return {match[1] for match in found if match}


def allowed_system_calls() -> set[str]:
    """What the unit's SystemCallFilter= lines come to."""
    allowed: set[str] = set()
    for value in settings("SystemCallFilter"):
        names = {name for item in value.removeprefix("~").split() for name in system_call_set(item)}
        allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


def system_call_set(name: str) -> set[str]:
    """The members of a set like ``@system-service``, and of the sets in it; of a name, itself."""
    if not name.startswith("@"):
        return {name}
    lines = analyze("syscall-filter", name).stdout.splitlines()[1:]
    members = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return {call for member in members for call in system_call_set(member)}
