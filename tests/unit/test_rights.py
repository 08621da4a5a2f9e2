"""The daemon as a process: what it may still do when it serves, and who may connect to it.

Only root can start it in some of these ways. Such tests say so when somebody else runs them.
"""

from __future__ import annotations

import ctypes
import grp
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from mvirt_net.exits import ExitCode
from mvirt_net.ffi import rights
from tests.harness import VhostTestClient
from tests.harness.packets import dhcp_discover
from tests.harness.process import (
    CONFIG,
    MAC,
    NOBODY,
    WITHOUT_RIGHTS,
    Daemon,
    ask_features,
    run_failing,
    serves_a_guest,
    single,
    started,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as another user")
needs_landlock = pytest.mark.skipif(
    rights.landlock_abi() == 0, reason="this kernel has no Landlock, or it is switched off"
)

PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1


def status(daemon: Daemon) -> dict[str, str]:
    """What the kernel says of the process (proc(5), /proc/pid/status)."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def assert_no_rights(daemon: Daemon) -> None:
    """Neither capabilities nor a way to get them."""
    now = status(daemon)
    sets = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    assert {name: int(now[name], 16) for name in sets} == dict.fromkeys(sets, 0)
    assert now["NoNewPrivs"] == "1"


async def stop(daemon: Daemon) -> str:
    """End it in order; returns the rest of its log."""
    daemon.send(signal.SIGTERM)
    _, log = await trio.to_thread.run_sync(daemon.process.communicate)
    assert daemon.wait() == ExitCode.OK, log
    return log


class TestWithoutRoot:
    async def test_serves(self, nursery: trio.Nursery, folder: Path) -> None:
        path = folder / "s"
        args = (*single(path), "--mac-addr", MAC)
        with started(*args, command=("-c", WITHOUT_RIGHTS)) as daemon:
            daemon.wait_ready()
            assert status(daemon)["Uid"].split() == 4 * [str(_uid_without_rights())]
            assert_no_rights(daemon)
            await serves_a_guest(nursery, path)
            assert "left behind" not in await stop(daemon)
        assert not path.exists()

    def test_runas_is_refused(self, folder: Path) -> None:
        code, lines = run_failing(
            *single(folder / "s"), "--runas", "nobody", command=("-c", WITHOUT_RIGHTS)
        )
        assert code == ExitCode.NO_PERMISSION
        assert lines == ["mvirt-net: --runas: only root can run as another user"]
        assert not (folder / "s").exists()


def connect_as(group: str, path: Path, attempt: str = "socket.connect(path)") -> str:
    """What becomes of a process of that group, and no other, that tries: an OSError, or nothing."""
    program = f"""
import os, socket, sys
gid, path = int(sys.argv[1]), sys.argv[2]
socket = socket.socket(socket.AF_UNIX)
os.setgroups([])
os.setgid(gid)
os.setuid(4000000)
try:
    {attempt}
except OSError as error:
    print(type(error).__name__)
"""
    gid = grp.getgrnam(group).gr_gid
    command = [sys.executable, "-c", program, str(gid), str(path)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def _uid_without_rights() -> int:
    """Of the process that runs `WITHOUT_RIGHTS`."""
    return NOBODY.pw_uid if os.geteuid() == 0 else os.geteuid()


@as_root
class TestRunas:
    async def test_serves(self, nursery: trio.Nursery, folder: Path) -> None:
        path = folder / "s"
        args = (*single(path), "--mac-addr", MAC, "--runas", "nobody")
        with started(*args) as daemon:
            daemon.wait_ready()
            now = status(daemon)
            assert now["Uid"].split() == 4 * [str(NOBODY.pw_uid)]
            assert now["Gid"].split() == 4 * [str(NOBODY.pw_gid)]
            assert now["Groups"] == str(NOBODY.pw_gid)
            assert int(now["CapBnd"], 16) == 0
            assert_no_rights(daemon)
            owner = path.stat()
            assert (owner.st_uid, owner.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
            await serves_a_guest(nursery, path)
            log = await stop(daemon)
        assert "left behind" not in log
        assert "running as root" not in log
        assert not path.exists()

    def test_group(self, folder: Path) -> None:
        group = grp.getgrnam("daemon").gr_gid
        with started(*single(folder / "s"), "--runas", "nobody:daemon") as daemon:
            daemon.wait_ready()
            now = status(daemon)
            assert now["Gid"].split() == 4 * [str(group)]
            assert str(group) in now["Groups"].split()
            assert (folder / "s").stat().st_gid == group
            assert daemon.stop() == ExitCode.OK

    def test_number_without_a_user(self, folder: Path) -> None:
        folder.chmod(0o777)
        with started(*single(folder / "s"), "--runas", "4000000:4000001") as daemon:
            daemon.wait_ready()
            now = status(daemon)
            assert now["Uid"].split() == 4 * ["4000000"]
            assert now["Gid"].split() == 4 * ["4000001"]
            assert now["Groups"] == "4000001"
            assert daemon.stop() == ExitCode.OK
        assert not (folder / "s").exists()

    def test_folder_for_sockets(self, folder: Path) -> None:
        config = folder / "x.toml"
        config.write_text(CONFIG)
        group = grp.getgrnam("daemon").gr_gid
        args = (
            "--runas",
            "nobody",
            "--socket-group",
            "daemon",
            "--socket-dir",
            f"{folder}/sockets",
        )
        with started("serve", "--config", str(config), *args) as daemon:
            daemon.wait_ready()
            made = (folder / "sockets").stat()
            assert (made.st_uid, made.st_gid) == (NOBODY.pw_uid, group)
            assert stat.S_IMODE(made.st_mode) == 0o750
            assert (folder / "sockets" / "vm1.sock").stat().st_gid == group
            assert daemon.stop() == ExitCode.OK
        assert list((folder / "sockets").iterdir()) == []

    def test_the_group_of_a_control_interface_gets_there(self, folder: Path) -> None:
        """Beside frontends of another group, neither of which sees what is in the folder."""
        config, path = folder / "x.toml", folder / "sockets" / "control.sock"
        config.write_text(f'{CONFIG}[api]\nhttp = "unix:{path}"\nsocket_group = "mail"\n')
        made = ("--socket-group", "daemon", "--socket-dir", str(path.parent), "--no-state")
        with started("serve", "--config", str(config), "--runas", "nobody", *made) as daemon:
            daemon.wait_ready()
            assert connect_as("mail", path) == ""
            assert connect_as("daemon", path.with_name("vm1.sock")) == ""
            assert connect_as("daemon", path) == "PermissionError"
            assert connect_as("mail", path.with_name("vm1.sock")) == "PermissionError"
            assert connect_as("mail", path.parent, "os.listdir(path)") == "PermissionError"
            assert daemon.stop() == ExitCode.OK

    def test_what_it_has_no_right_to_remove_stays(self, folder: Path) -> None:
        os.chown(folder, 0, 0)
        path, pid_path = folder / "s", folder / "pid"
        args = (*single(path), "--runas", "nobody", "--pid", str(pid_path))
        with started(*args) as daemon:
            daemon.wait_ready()
            assert pid_path.read_text() == f"{daemon.process.pid}\n"
            said = daemon.wait_event("socket will be left behind: no right to remove it")
            assert said["path"] == str(path)
            daemon.send(signal.SIGTERM)
            assert daemon.wait_event("socket is left behind")["reason"] == "Permission denied"
            assert daemon.wait_event("pid file is left behind")["path"] == str(pid_path)
            assert daemon.wait() == ExitCode.OK
        assert path.is_socket()
        with started(*args) as daemon:
            daemon.wait_ready()
            assert daemon.stop() == ExitCode.OK

    def test_neither_core_dump_nor_debugger(self, folder: Path) -> None:
        with started(*single(folder / "s"), "--runas", "nobody") as daemon:
            daemon.wait_ready()
            # What belongs to root in there, nobody can look at (proc(5), PR_SET_DUMPABLE).
            assert Path(f"/proc/{daemon.process.pid}/environ").stat().st_uid == 0
            assert daemon.stop() == ExitCode.OK


def test_another_thread_would_keep_its_rights(tmp_path: Path) -> None:
    code, lines = run_failing(*single(tmp_path / "s"), command=("-c", _WITH_A_THREAD))
    assert code == ExitCode.FAILURE
    assert lines == ["mvirt-net: cannot give up rights: another thread is running"]
    assert not (tmp_path / "s").exists()


_WITH_A_THREAD = """
import sys, threading
from mvirt_net import cli
threading.Thread(target=threading.Event().wait, daemon=True).start()
sys.exit(cli.main())
"""


@as_root
class TestRootWithoutRunas:
    def test_has_no_capabilities(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s")) as daemon:
            daemon.wait_ready()
            assert daemon.wait_event("running as root, if without capabilities: see --runas")
            assert status(daemon)["Uid"].split() == 4 * ["0"]
            assert int(status(daemon)["CapBnd"], 16) == 0
            assert_no_rights(daemon)
            assert daemon.stop() == ExitCode.OK

    def test_on_purpose(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s"), "--runas", "root") as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGTERM)
            assert "running as root" not in daemon.process.communicate()[1]
        assert not (tmp_path / "s").exists()


@needs_landlock
class TestSandbox:
    async def test_nothing_is_imported(self, nursery: trio.Nursery, tmp_path: Path) -> None:
        """Not by a guest, a bug of ours and its traceback, signals, or the end."""
        path = tmp_path / "s"
        args = (*single(path), "--mac-addr", MAC, "--pid", f"{tmp_path}/pid")
        with started(*args, command=("-c", TELLS_OF_IMPORTS)) as daemon:
            daemon.wait_ready()
            await serves_a_guest(nursery, path)
            with socket.socket(socket.AF_UNIX) as hostile:
                hostile.connect(str(path))
                hostile.send(bytes(12))
                assert hostile.recv(1) == b""
            daemon.send(signal.SIGUSR1)
            daemon.send(signal.SIGHUP)
            daemon.wait_event("there is no configuration file to reload")
            client = await VhostTestClient.connect(nursery, path)
            await client.send_packet(dhcp_discover(MAC, 0xBAD))
            assert "a bug" in daemon.wait_event("service failed")["exception"]
            await client.aclose()
            daemon.send(signal.SIGTERM)
            stdout, log = await trio.to_thread.run_sync(daemon.process.communicate)
            assert daemon.wait() == ExitCode.OK, log
        assert stdout == ""
        assert not list(tmp_path.iterdir())

    def test_files(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        folder = tmp_path / "sockets"
        folder.mkdir()
        (folder / "old").touch()
        (elsewhere / "file").touch()
        attempts = {
            "open('/etc/passwd')": "PermissionError",
            "os.listdir('/')": "PermissionError",
            f"open('{folder}/x', 'w')": "PermissionError",
            f"os.mkdir('{folder}/x')": "PermissionError",
            f"socket.socket(socket.AF_UNIX).bind('{elsewhere}/x')": "PermissionError",
            f"os.remove('{elsewhere}/file')": "PermissionError",
            f"os.rename('{elsewhere}/file', '{folder}/file')": "PermissionError",
            "os.execv('/bin/true', ['true'])": "PermissionError",
            f"socket.socket(socket.AF_UNIX).bind('{folder}/x')": "PermissionError",
            f"os.remove('{folder}/old')": "",
        }
        assert outcomes(folder, attempts) == attempts

    @pytest.mark.skipif(rights.landlock_abi() < 4, reason="Landlock of this kernel has no network")
    def test_network(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            attempts = {
                f"socket.create_connection({server.getsockname()})": "PermissionError",
                "socket.socket().bind(('127.0.0.1', 0))": "PermissionError",
            }
            assert outcomes(tmp_path, attempts) == attempts

    @pytest.mark.skipif(rights.landlock_abi() < 6, reason="Landlock of this kernel has no scopes")
    def test_other_processes(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(f"\0{tmp_path}")
            other.listen()
            attempts = {
                f"socket.socket(socket.AF_UNIX).connect('\\0{tmp_path}')": "PermissionError",
                "os.kill(os.getppid(), 0)": "PermissionError",
                "os.kill(os.getpid(), 0)": "",
            }
            assert outcomes(tmp_path, attempts) == attempts

    def test_can_be_left_out(self, tmp_path: Path) -> None:
        attempts = {"open('/etc/passwd').close()": "", "os.kill(os.getppid(), 0)": ""}
        assert outcomes(tmp_path, attempts, "--no-sandbox") == attempts

    def test_kernel_without_landlock(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s"), command=("-c", _NO_LANDLOCK)) as daemon:
            daemon.wait_ready()
            event = "no sandbox: this kernel has no Landlock, or it is switched off"
            assert daemon.wait_event(event)["level"] == "warning"
            with socket.socket(socket.AF_UNIX) as frontend:
                frontend.connect(str(tmp_path / "s"))
                ask_features(frontend)
            assert daemon.stop() == ExitCode.OK


def outcomes(folder: Path, attempts: Iterable[str], *args: str) -> dict[str, str]:
    """What becomes of statements in a daemon that serves a socket in `folder`: the name of the
    OSError that each raises, "" for none.
    """
    with started(*single(folder / "s"), *args, command=("-c", _ATTEMPTS, *attempts)) as daemon:
        daemon.wait_ready()
        daemon.send(signal.SIGTERM)
        stdout, log = daemon.process.communicate()
        assert daemon.wait() == ExitCode.OK, log
    return dict(line.rsplit(" -> ", 1) for line in stdout.splitlines())


# The interpreter tells of each module that is looked for, found or not (sys.addaudithook).
TELLS_OF_IMPORTS = """
import sys
from mvirt_net import cli, sandbox
from mvirt_net.dataplane.dhcpv4 import Dhcpv4Server
confine, handle = sandbox.confine, Dhcpv4Server.handle
def tell(event, args):
    if event == "import":
        print(args[0], flush=True)
def confine_and_tell(allowed):
    abi = confine(allowed)
    sys.addaudithook(tell)
    return abi
def handle_or_fail(self, frame):
    if bytes.fromhex("00000bad") in bytes(frame):
        raise RuntimeError("a bug")
    return handle(self, frame)
sandbox.confine, Dhcpv4Server.handle = confine_and_tell, handle_or_fail
sys.exit(cli.main())
"""

# Its first arguments are statements, up to the first one that is a flag.
_ATTEMPTS = """
import itertools, os, socket, sys
from mvirt_net import cli, runner
args = iter(sys.argv[1:])
attempts = list(itertools.takewhile(lambda arg: arg != "--socket-path", args))
announce_ready = runner.announce_ready
def announce_and_attempt(*args):
    announce_ready(*args)
    for attempt in attempts:
        outcome = ""
        try:
            exec(attempt)
        except OSError as error:
            outcome = type(error).__name__
        print(attempt, "->", outcome)
runner.announce_ready = announce_and_attempt
sys.exit(cli.main(["--socket-path", *args]))
"""

_NO_LANDLOCK = """
import sys
from mvirt_net import cli
from mvirt_net.ffi import rights
rights.landlock_abi = lambda: 0
sys.exit(cli.main())
"""


def _deny_write_execute() -> None:
    """What systemd's MemoryDenyWriteExecute= does; no return if it does not work (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_MDWE")
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return
    raise AssertionError("memory that is writable and executable could be had")


async def test_no_memory_that_is_writable_and_executable(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The daemon runs, and serves, where systemd's MemoryDenyWriteExecute= is set."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3):
        pytest.skip("PR_SET_MDWE needs Linux 6.3")
    path = tmp_path / "s"
    args = (*single(path), "--mac-addr", MAC)
    with started(*args, preexec_fn=_deny_write_execute) as daemon:
        daemon.wait_ready()
        await serves_a_guest(nursery, path)
        await stop(daemon)
    assert not path.exists()


class TestSocketFile:
    def test_mode(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s"), "--socket-mode", "0606") as daemon:
            daemon.wait_ready()
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o606
            assert daemon.stop() == ExitCode.OK

    @as_root
    def test_owner_and_group(self, tmp_path: Path) -> None:
        config = tmp_path / "x.toml"
        config.write_text(
            "[defaults]\nsocket_owner = 5\nsocket_group = 6\n" + CONFIG + "socket_group = 7\n"
        )
        args = ("serve", "--config", str(config), "--socket-dir", str(tmp_path))
        with started(*args, "--socket-owner", "8") as daemon:
            daemon.wait_ready()
            owners = {
                name: ((tmp_path / name).stat().st_uid, (tmp_path / name).stat().st_gid)
                for name in ("vm1.sock", "vm2.sock")
            }
            assert owners == {"vm1.sock": (8, 6), "vm2.sock": (8, 7)}
            assert daemon.stop() == ExitCode.OK

    def test_owner_without_the_right_to(self, folder: Path) -> None:
        args = (*single(folder / "s"), "--socket-owner", "5")
        code, lines = run_failing(*args, command=("-c", WITHOUT_RIGHTS))
        assert code == ExitCode.NO_PERMISSION
        assert lines == [
            f"mvirt-net: {folder}/s: cannot be given to user 5: Operation not permitted"
        ]
        assert not (folder / "s").exists()


class TestAllowed:
    def test_is_let_in_and_named(self, tmp_path: Path) -> None:
        args = (*single(tmp_path / "s"), "--allow-uid", str(os.geteuid()))
        with started(*args) as daemon, socket.socket(socket.AF_UNIX) as frontend:
            daemon.wait_ready()
            frontend.connect(str(tmp_path / "s"))
            ask_features(frontend)
            said = daemon.wait_event("frontend connected")
            expected = (os.getpid(), os.geteuid(), os.getegid())
            assert (said["pid"], said["uid"], said["gid"]) == expected
            assert daemon.stop() == ExitCode.OK

    def test_another_is_sent_away(self, tmp_path: Path) -> None:
        args = (*single(tmp_path / "s"), "--allow-uid", "4000000", "--allow-gid", "4000000")
        with started(*args) as daemon, socket.socket(socket.AF_UNIX) as frontend:
            daemon.wait_ready()
            frontend.connect(str(tmp_path / "s"))
            assert frontend.recv(1) == b""
            said = daemon.wait_event("frontend sent away: it may not connect")
            assert (said["pid"], said["uid"]) == (os.getpid(), os.geteuid())
            daemon.send(signal.SIGUSR1)
            assert daemon.wait_event("nic state")["refused_frontends"] == 1
            assert daemon.stop() == ExitCode.OK
