"""The daemon as a real process: readiness, signals, sockets and exit codes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import resource
import signal
import socket
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.pcapng import PcapngFile
from tests.harness.process import (
    CONFIG,
    HOT,
    MAC,
    UNKNOWN,
    WITHOUT_RIGHTS,
    Daemon,
    ask_features,
    make_hot,
    notified,
    run_failing,
    serves_a_guest,
    single,
    started,
    two_nics,
)


@pytest.fixture
def config(tmp_path: Path) -> tuple[str, ...]:
    """Arguments that serve two NICs in `tmp_path`."""
    return two_nics(tmp_path)


class TestLife:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_from_ready_to_the_end(
        self, number: int, config: tuple[str, ...], tmp_path: Path
    ) -> None:
        sockets = [tmp_path / "vm1.sock", tmp_path / "vm2.sock"]
        with started(*config) as daemon:
            daemon.wait_ready()
            for path in sockets:
                assert path.is_socket()
                assert path.stat().st_mode & 0o777 == 0o660
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(path))
            assert daemon.stop(number) == ExitCode.OK
            assert "Traceback" not in daemon.process.communicate()[1]
        assert not any(path.exists() for path in sockets)

    def test_pid_file(self, tmp_path: Path) -> None:
        pid_path = tmp_path / "pid"
        with started(*single(tmp_path / "s"), "--pid", str(pid_path)) as daemon:
            daemon.wait_ready()
            assert pid_path.read_text() == f"{daemon.process.pid}\n"
            assert daemon.stop() == ExitCode.OK
        assert not pid_path.exists()

    def test_pid_file_in_the_place_of_a_link(self, tmp_path: Path) -> None:
        """The folder may be somebody's who would have root write to a file of root's."""
        victim, pid_path = tmp_path / "victim", tmp_path / "pid"
        victim.write_text("precious")
        pid_path.symlink_to(victim)
        with started(*single(tmp_path / "s"), "--pid", str(pid_path)) as daemon:
            daemon.wait_ready()
            assert not pid_path.is_symlink()
            assert pid_path.read_text() == f"{daemon.process.pid}\n"
            daemon.stop()
        assert victim.read_text() == "precious"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]

    def test_pid_file_that_has_become_a_pipe(self, tmp_path: Path) -> None:
        """Nobody writes to it; the end does not wait for that."""
        pid_path = tmp_path / "pid"
        with started(*single(tmp_path / "s"), "--pid", str(pid_path)) as daemon:
            daemon.wait_ready()
            pid_path.unlink()
            os.mkfifo(pid_path)
            assert daemon.stop() == ExitCode.OK
        assert pid_path.is_fifo()

    def test_pid_file_of_a_running_daemon_is_left_alone(self, tmp_path: Path) -> None:
        args = (*single(tmp_path / "s"), "--pid", str(tmp_path / "pid"))
        with started(*args) as daemon:
            daemon.wait_ready()
            code, _ = run_failing(*args)
            assert code == ExitCode.IN_USE
            assert (tmp_path / "pid").read_text() == f"{daemon.process.pid}\n"
            assert daemon.stop() == ExitCode.OK

    def test_pid_file_that_another_process_took_is_left_alone(self, tmp_path: Path) -> None:
        pid_path = tmp_path / "pid"
        with started(*single(tmp_path / "s"), "--pid", str(pid_path)) as daemon:
            daemon.wait_ready()
            pid_path.write_text("1\n")
            assert daemon.stop() == ExitCode.OK
        assert pid_path.read_text() == "1\n"

    def test_pid_file_cannot_be_written(self, tmp_path: Path) -> None:
        code, lines = run_failing(*single(tmp_path / "s"), "--pid", "/none/pid")
        assert code == ExitCode.FAILURE
        assert lines[-1] == "mvirt-net: /none/pid: No such file or directory"
        assert not (tmp_path / "s").exists()

    def test_attach_lines_on_stdout(self, config: tuple[str, ...], tmp_path: Path) -> None:
        with started(*config, "--print-attach") as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGTERM)
            stdout, _ = daemon.process.communicate()
        assert stdout.count(f"path={tmp_path}/vm1.sock,") == 1
        assert stdout.count(f"socket={tmp_path}/vm2.sock,") == 1

    def test_nobody_reads_the_attach_lines(self, config: tuple[str, ...]) -> None:
        with started(*config, "--print-attach") as daemon:
            assert daemon.process.stdout is not None
            daemon.process.stdout.close()
            daemon.wait_ready()
            assert daemon.stop() == ExitCode.OK

    def test_nobody_reads_the_ready_line(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with started(*single(tmp_path / "s"), "--ready-fd", str(writer), fd=writer) as daemon:
            os.close(writer)
            # The last --ready-fd counts, so this one is still the reader's.
            daemon.wait_ready()
            assert daemon.stop() == ExitCode.OK

    def test_as_many_descriptors_as_allowed(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s"), preexec_fn=_lower_fd_limit) as daemon:
            daemon.wait_ready()
            soft, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
            assert soft == hard == 500
            assert daemon.stop() == ExitCode.OK

    def test_descriptor_limit_cannot_be_raised(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s"), command=("-c", _FIXED_LIMITS)) as daemon:
            daemon.wait_ready()
            assert daemon.wait_event("limit of open descriptors not raised")
            assert daemon.stop() == ExitCode.OK


_FIXED_LIMITS = """
import resource, sys
from mvirt_net import cli
def refuse(*limits):
    raise ValueError("not allowed to raise maximum limit")
resource.setrlimit = refuse
sys.exit(cli.main())
"""


def _lower_fd_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500))


class TestSockets:
    def test_live_one_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            code, lines = run_failing(*single(path))
        assert code == ExitCode.IN_USE
        assert lines == [f"mvirt-net: {path}: another process listens there"]
        assert path.is_socket()

    def test_stale_one_is_taken_over(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with started(*single(path)) as daemon:
            daemon.wait_ready()
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
            assert daemon.stop() == ExitCode.OK

    def test_those_made_before_the_failure_are_removed(
        self, config: tuple[str, ...], tmp_path: Path
    ) -> None:
        (tmp_path / "vm2.sock").write_text("not a socket")
        code, lines = run_failing(*config)
        assert code == ExitCode.FAILURE
        assert lines[-1] == f"mvirt-net: {tmp_path}/vm2.sock: exists and is not a socket"
        assert not (tmp_path / "vm1.sock").exists()

    def test_no_permission(self, tmp_path: Path) -> None:
        # Python and its modules may lie where only root may read, so the rights are dropped late.
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
        code, lines = run_failing(*single(folder / "s"), command=("-c", WITHOUT_RIGHTS))
        assert code == ExitCode.NO_PERMISSION
        assert lines == [f"mvirt-net: {folder}/s: Permission denied"]

    def test_bad_config(self, tmp_path: Path) -> None:
        path = tmp_path / "x.toml"
        path.write_text(CONFIG + 'mac_address = "52:54:00:12:34"\n')
        code, lines = run_failing("serve", "--config", str(path))
        assert code == ExitCode.BAD_CONFIG
        assert lines == [
            f"mvirt-net: {path}: nic[1].mac_address:"
            " '52:54:00:12:34' is not a MAC address like 52:54:00:12:34:56"
        ]


async def test_pcap_on_standard_output(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with started(*single(path), "--mac-addr", MAC, "--pcap", "-") as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        client = await VhostTestClient.connect(nursery, path)
        await arp_gateway(client, MAC, "10.0.0.5")
        await client.aclose()
        daemon.send(signal.SIGTERM)
        assert daemon.process.stdout is not None
        stdout = os.dup(daemon.process.stdout.fileno())
        async with trio.lowlevel.FdStream(stdout) as stream:
            written = b"".join([piece async for piece in stream])
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK
    assert len(PcapngFile.parse(written).packets) == 2


class TestSignals:
    def test_sigusr1_dumps_state(self, config: tuple[str, ...], tmp_path: Path) -> None:
        with started(*config, "--pcap", str(tmp_path / "pcap")) as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGUSR1)
            state = daemon.wait_event("state")
            assert (state["networks"], state["nics"], state["captures"]) == (1, 2, 1)
            network = daemon.wait_event("network state")
            assert (network["nics"], network["mtu"]) == (2, 1500)
            for name in ("vm1", "vm2"):
                state = daemon.wait_event("nic state")
                assert (state["nic"], state["connected"], state["tx_frames"]) == (name, False, 0)
                assert state["captures"] == 1
            capture = daemon.wait_event("capture state")
            assert (capture["file"], capture["frames"]) == (str(tmp_path / "pcap"), 0)
            assert daemon.stop() == ExitCode.OK

    def test_end_does_not_wait_for_a_dump(self, config: tuple[str, ...], tmp_path: Path) -> None:
        count = 200
        with (tmp_path / "x.toml").open("a") as file:
            for number in range(3, count + 1):
                file.write(f'[[nic]]\nname = "vm{number}"\nnetwork = "blue"\n')
        with started(*config, command=("-c", _SIGTERM_IN_DUMP)) as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGUSR1)
            assert daemon.process.stderr is not None
            told = [json.loads(line)["event"] for line in daemon.process.stderr]
            assert daemon.wait() == ExitCode.OK
        assert "stopping" in told
        assert 1 <= told.count("nic state") < count
        assert "nic state" not in told[told.index("stopping") :]

    def test_sighup_without_a_file(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s")) as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGHUP)
            assert daemon.wait_event("there is no configuration file to reload")
            assert (tmp_path / "s").is_socket()
            assert daemon.stop() == ExitCode.OK

    def test_second_sigterm_ends_at_once(self, tmp_path: Path) -> None:
        with started(*single(tmp_path / "s"), command=("-c", _STUCK)) as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGTERM)
            daemon.wait_event("stopping")
            assert daemon.stop(signal.SIGTERM) == -signal.SIGTERM

    @pytest.mark.parametrize("hang", ["await trio.sleep_forever()", "time.sleep(60)"])
    def test_hanging_end_is_cut_short(self, hang: str, tmp_path: Path) -> None:
        script = _HANGING_CLOSE.format(hang=hang)
        with started(*single(tmp_path / "s"), command=("-c", script)) as daemon:
            daemon.wait_ready()
            daemon.send(signal.SIGTERM)
            assert daemon.wait_event("stopping takes too long, giving up on order")
            assert daemon.wait() == ExitCode.FAILURE

    def test_sigterm_during_start(self, tmp_path: Path) -> None:
        args = ("--pid", f"{tmp_path}/pid", "--print-attach")
        script = _SIGTERM_AT_START
        with (
            notified(tmp_path) as (manager, environ),
            started(*single(tmp_path / "s"), *args, command=("-c", script), env=environ) as daemon,
        ):
            daemon.wait_unready()
            stdout, _ = daemon.process.communicate()
            assert daemon.wait() == ExitCode.OK
            assert stdout == "None\n"
            assert manager.recv(100) == b"STOPPING=1"
            with pytest.raises(BlockingIOError):
                manager.recv(100, socket.MSG_DONTWAIT)
        assert not (tmp_path / "pid").exists()

    def test_terminal_hangs_up(self, tmp_path: Path) -> None:
        terminal, terminal_of_daemon = pty.openpty()
        on_terminal: dict[str, Any] = {
            "stderr": terminal_of_daemon,
            "start_new_session": True,
            "preexec_fn": _take_terminal,
        }
        with started(*single(tmp_path / "s"), **on_terminal) as daemon:
            os.close(terminal_of_daemon)
            daemon.wait_ready()
            daemon.send(signal.SIGHUP)
            with open(terminal, closefd=False) as lines:
                assert any("no configuration file to reload" in line for line in lines)
            os.close(terminal)
            assert daemon.wait() == ExitCode.OK
        assert not (tmp_path / "s").exists()


def _take_terminal() -> None:
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)


_STUCK = """
import sys, time
from mvirt_net import cli, runner
async def serve(config, *, shutdown_trigger, task_status, **others):
    task_status.started(None)
    await shutdown_trigger()
    time.sleep(60)
runner.serve = serve
sys.exit(cli.main())
"""

_SIGTERM_IN_DUMP = """
import os, signal, sys
from mvirt_net import cli, runner
state = runner._nic_state
def state_and_sigterm(nic):
    runner._nic_state = state
    os.kill(os.getpid(), signal.SIGTERM)
    return state(nic)
runner._nic_state = state_and_sigterm
sys.exit(cli.main())
"""

_HANGING_CLOSE = """
import sys, time, trio
from mvirt_net import cli, nic, runner
async def aclose(self):
    {hang}
nic.Nic.aclose, runner.STOP_TIME_LIMIT = aclose, 0.01
sys.exit(cli.main())
"""

# The descriptor of --ready-fd, the last but two of the arguments, is looked at again at the end.
_SIGTERM_AT_START = """
import os, signal, sys
from mvirt_net import cli, runner
serve = runner.serve
async def stopped_serve(config, *, shutdown_trigger, **others):
    signal.raise_signal(signal.SIGTERM)
    await shutdown_trigger()
    await serve(config, shutdown_trigger=shutdown_trigger, **others)
runner.serve = stopped_serve
code = cli.main()
try:
    print(os.fstat(int(sys.argv[-3])))
except OSError:
    print(None)
sys.exit(code)
"""


class TestServiceManager:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_is_notified(self, abstract: bool, tmp_path: Path) -> None:
        with (
            notified(tmp_path, abstract=abstract) as (manager, environ),
            started(*single(tmp_path / "s"), env=environ) as daemon,
        ):
            assert manager.recv(100) == b"READY=1"
            assert (tmp_path / "s").is_socket()
            daemon.send(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert daemon.wait() == ExitCode.OK

    def test_is_gone(self, tmp_path: Path) -> None:
        environ = {**os.environ, "NOTIFY_SOCKET": f"{tmp_path}/none"}
        with started(*single(tmp_path / "s"), env=environ) as daemon:
            daemon.wait_ready()
            assert daemon.wait_event("service manager not notified")["state"] == "READY=1"
            assert daemon.stop() == ExitCode.OK


class TestOneFrontend:
    def test_one_off(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with started(*single(path), "--one-off") as daemon:
            daemon.wait_ready()
            with socket.socket(socket.AF_UNIX) as probe:
                # No frontend: it asks nothing.
                probe.connect(str(path))
            with socket.socket(socket.AF_UNIX) as frontend:
                frontend.connect(str(path))
                ask_features(frontend)
            assert daemon.wait() == ExitCode.OK
        assert not path.exists()

    def test_connected_fd(self) -> None:
        frontend, backend = socket.socketpair()
        fd = backend.fileno()
        with frontend, started("--fd", str(fd), "--address", "10.0.0.5", fd=fd) as daemon:
            backend.close()
            daemon.wait_ready()
            ask_features(frontend)
            frontend.close()
            assert daemon.wait() == ExitCode.OK

    def test_connected_fd_and_sigterm(self) -> None:
        frontend, backend = socket.socketpair()
        fd = backend.fileno()
        with frontend, started("--fd", str(fd), "--address", "10.0.0.5", fd=fd) as daemon:
            backend.close()
            daemon.wait_ready()
            ask_features(frontend)
            assert daemon.stop() == ExitCode.OK
            assert frontend.recv(1) == b""

    @pytest.mark.parametrize("one_off", [False, True])
    def test_listening_fd(self, one_off: bool, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            fd = listener.fileno()
            args = ["--fd", str(fd), "--address", "10.0.0.5", *(["-1"] if one_off else [])]
            with started(*args, fd=fd) as daemon:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(tmp_path / "s"))
                for _ in range(1 if one_off else 2):
                    with socket.socket(socket.AF_UNIX) as frontend:
                        frontend.connect(str(tmp_path / "s"))
                        ask_features(frontend)
                if not one_off:
                    daemon.send(signal.SIGTERM)
                assert daemon.wait() == ExitCode.OK
        # Whoever made the socket file removes it.
        assert (tmp_path / "s").is_socket()


@contextlib.contextmanager
def started_on_listener(path: Path) -> Iterator[Daemon]:
    """A daemon that has inherited a socket which listens on `path`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        with started("--fd", str(fd), "--address", "10.0.0.5", fd=fd) as daemon:
            daemon.wait_ready()
            yield daemon


class TestInheritedListener:
    def test_outlives_a_lack_of_descriptors(self, tmp_path: Path) -> None:
        with (
            started_on_listener(tmp_path / "s") as daemon,
            socket.socket(socket.AF_UNIX) as frontend,
        ):
            limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            frontend.connect(str(tmp_path / "s"))
            daemon.wait_event("cannot accept a frontend")
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
            ask_features(frontend)
            assert daemon.stop() == ExitCode.OK

    def test_second_frontend_is_answered(self, tmp_path: Path) -> None:
        with (
            started_on_listener(tmp_path / "s") as daemon,
            socket.socket(socket.AF_UNIX) as first,
            socket.socket(socket.AF_UNIX) as second,
        ):
            first.connect(str(tmp_path / "s"))
            ask_features(first)
            second.connect(str(tmp_path / "s"))
            assert second.recv(1) == b""
            ask_features(first)
            assert daemon.stop() == ExitCode.OK


async def test_a_guest_is_seen_in_the_counters(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with started(*single(path), "--mac-addr", "52:54:00:12:34:56") as daemon:
        await trio.to_thread.run_sync(daemon.wait_ready)
        client = await VhostTestClient.connect(nursery, path)
        await client.send_packet(bytes.fromhex("ffffffffffff 525400123456 88b5") + bytes(46))
        daemon.send(signal.SIGUSR1)
        state = await trio.to_thread.run_sync(daemon.wait_event, "nic state")
        assert state["connected"]
        assert state["tx_frames"] == state["drop_ethertype"] == 1
        for queue in (0, 1):
            ring = await trio.to_thread.run_sync(daemon.wait_event, "ring state")
            assert (ring["nic"], ring["queue"]) == (state["nic"], queue)
            assert ring["running"]
            assert ring["enabled"]
            assert not ring["hot"]
            assert ring["next"] == queue  # one frame was taken from TX, none put into RX
        await client.aclose()
        daemon.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK


class TestWorkers:
    async def test_no_worker_without_a_hot_ring(self, nursery: trio.Nursery, folder: Path) -> None:
        with started(*single(folder / "s"), "--mac-addr", MAC) as daemon:
            await trio.to_thread.run_sync(daemon.wait_ready)
            await serves_a_guest(nursery, folder / "s")
            assert threads(daemon)[1:] == ["mvirt-watcher"]
            assert daemon.stop() == ExitCode.OK

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_stops_in_the_middle_of_a_flood(
        self, nursery: trio.Nursery, folder: Path, number: int
    ) -> None:
        path = folder / "s"
        with started(*single(path), "--mac-addr", MAC, *HOT) as daemon:
            await trio.to_thread.run_sync(daemon.wait_ready)
            client = await VhostTestClient.connect(nursery, path)
            await make_hot(client)
            daemon.send(signal.SIGUSR1)
            state = await trio.to_thread.run_sync(daemon.wait_event, "state")
            assert state["hot_rings"] == 1
            state = await trio.to_thread.run_sync(daemon.wait_event, "nic state")
            assert state["hot"]
            assert [name for name in threads(daemon) if name.startswith("mvirt-worker")]
            async with trio.open_nursery() as flooding:
                flooding.start_soon(flood, client)
                daemon.send(number)
                assert await trio.to_thread.run_sync(daemon.wait) == ExitCode.OK
                flooding.cancel_scope.cancel()
            await client.aclose()


def threads(daemon: Daemon) -> list[str]:
    """The names of its threads."""
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    return [(task / "comm").read_text().strip() for task in tasks]


async def flood(client: VhostTestClient) -> None:
    """Have the ring full, as far as the device takes anything."""
    while True:
        with contextlib.suppress(trio.TooSlowError):
            await client.send_burst([UNKNOWN] * 64)
