"""The command line: what the flags mean, and one line and one code for whatever is wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import types
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import attrs
import click
import pytest
import trio

import mvirt_net
from mvirt_net import cli, runner
from mvirt_net.cli import main
from mvirt_net.endpoints import DEFAULT_GRPC
from mvirt_net.errors import (
    ConfigFileError,
    MvirtNetError,
    SocketAccessError,
    SocketInUseError,
    SocketPathError,
)
from mvirt_net.exits import ExitCode
from mvirt_net.model import (
    ApiSpec,
    DaemonConfig,
    FileMode,
    MacAddress,
    Netmask,
    NetworkSpec,
    NicSpec,
    PollingSpec,
    SocketAccess,
)
from mvirt_net.places import daemon_socket_dir
from mvirt_net.registry import plan
from mvirt_net.runner import RunOptions
from mvirt_net.switch import Switch

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "mvirt-net.toml"
ONE_NIC = ("--socket-path", "/run/vm1.sock", "--address", "10.0.0.5")


pytestmark = pytest.mark.usefixtures("logging_left_alone")


@attrs.define
class Runs:
    """What `runner.run` was called with, and what it is to do then."""

    calls: list[tuple[DaemonConfig, RunOptions]] = attrs.field(factory=list)
    failure: Exception | None = None

    def __call__(self, config: DaemonConfig, options: RunOptions) -> None:
        self.calls.append((config, options))
        if options.sock is not None:
            options.sock.close()
        if self.failure is not None:
            raise self.failure

    @property
    def config(self) -> DaemonConfig:
        [(config, _)] = self.calls
        return config

    def tell_ready(self) -> None:
        """Call what is called when frontends can connect, with NICs that have all addresses."""
        nics = {nic.name: types.SimpleNamespace(spec=nic) for nic in plan(self.config).config.nics}
        networks = {network.name: network for network in self.config.networks}
        self.options.on_ready(cast(Switch, types.SimpleNamespace(networks=networks, nics=nics)))

    @property
    def options(self) -> RunOptions:
        [(_, options)] = self.calls
        return options


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs()
    monkeypatch.setattr(runner, "run", runs)
    return runs


class TestInformation:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == ExitCode.OK
        assert capsys.readouterr().out == f"mvirt-net {mvirt_net.__version__}\n"

    @pytest.mark.parametrize("args", [["--help"], ["-h"], ["serve", "-h"], ["check-config", "-h"]])
    def test_help(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(args) == ExitCode.OK
        assert capsys.readouterr().out.startswith("Usage: mvirt-net")

    @pytest.mark.parametrize(
        "others", [[], ["--fd", "x"], ["--bogus"], ["serve", "--config"], ["--version"]]
    )
    def test_capabilities_whatever_else_is_said(
        self, others: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for args in ([*others, "--print-capabilities"], ["--print-capabilities", *others]):
            assert main(args) == ExitCode.OK
            captured = capsys.readouterr()
            assert json.loads(captured.out) == {"type": "net"}
            assert captured.err == ""


class TestUsage:
    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            ([], "exactly one of --socket-path and --fd is needed (see 'mvirt-net --help')"),
            (["-a", "10.0.0.5"], "exactly one of --socket-path and --fd is needed"),
            ([*ONE_NIC, "--fd", "9"], "exactly one of --socket-path and --fd is needed"),
            (["-s", "x"], "--address is needed"),
            (["-F", "9", "--ready-fd", "9", "-a", "10.0.0.5"], "--fd and --ready-fd are the same"),
            (["-F", "-1", "-a", "10.0.0.5"], "Invalid value for '-F' / '--fd': -1 is not in"),
            (["-F", "9999", "-a", "10.0.0.5"], "--fd: 9999: Bad file descriptor"),
            ([*ONE_NIC, "--ready-fd", "9999"], "--ready-fd: 9999 is not open"),
            ([*ONE_NIC, "--ready-fd", "2"], "Invalid value for '--ready-fd': 2 is not in the"),
            ([*ONE_NIC, "--runas", "no-such"], "--runas: there is no user 'no-such'"),
            ([*ONE_NIC, "--runas", "root:no-such"], "--runas: there is no group 'no-such'"),
            ([*ONE_NIC, "--socket-mode", "rw"], "--socket-mode: 'rw' is not a mode like '0660'"),
            ([*ONE_NIC, "--socket-mode", ""], "--socket-mode: '' is not a mode like '0660'"),
            ([*ONE_NIC, "--socket-owner", "x y"], "--socket-owner: there is no user 'x y'"),
            ([*ONE_NIC, "--socket-group", "-1"], "--socket-group: there is no group '-1'"),
            ([*ONE_NIC, "--allow-uid", "x y"], "--allow-uid: there is no user 'x y'"),
            ([*ONE_NIC, "--allow-gid", "x y"], "--allow-gid: there is no group 'x y'"),
            (
                ["serve", "-c", str(EXAMPLE), "--socket-mode", "8"],
                "--socket-mode: '8' is not a mode like '0660' (see 'mvirt-net serve --help')",
            ),
            ([*ONE_NIC, "-q", "-d"], "--quiet and --debug exclude each other"),
            ([*ONE_NIC, "--bogus"], "No such option"),
            (["bogus"], "No such command 'bogus' (see 'mvirt-net --help')"),
            (["serve"], "Missing option '-c' / '--config' (see 'mvirt-net serve --help')"),
            (["check-config"], "Missing argument 'FILE' (see 'mvirt-net check-config --help')"),
            (["-d", "serve", "-c", "x"], "--debug cannot stand before 'serve'"),
            ([*ONE_NIC, "serve", "-c", "x"], "--socket-path cannot stand before 'serve'"),
        ],
    )
    def test_refused(
        self, args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(args) == ExitCode.USAGE
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mvirt-net: {expected}")

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            (["-a", "10.0.0.300"], "--address: Octet 300"),
            (["-a", "fd00::1"], "--address: "),
            (["-a", "169.254.0.1"], "--address: 169.254.0.1/32 overlaps 169.254.0.0/16"),
            (["-a", "10.0.0.255/24"], "--address: 10.0.0.255 is not a host's address"),
            (["-a", "10.0.0.5", "-M", "1:2"], "--mac-addr: '1:2' is not a MAC address"),
            (["-a", "10.0.0.5", "-M", "02:00:00:00:00:01"], "--mac-addr: 02:00:00:00:00:01 is the"),
            (["-a", "10.0.0.5", "-m", "67"], "--mtu: 67 is not an MTU"),
            (["-a", "10.0.0.5", "-m", "x"], "Invalid value for '-m' / '--mtu'"),
            (["-a", "10.0.0.5", "-D", "x"], "--dns: 'x' does not appear to be"),
            (["-a", "10.0.0.5", "--ntp", "x"], "--ntp: 'x' does not appear to be"),
            (["-a", "10.0.0.5", "--netmask", "x"], "Invalid value for '--netmask'"),
            (["-a", "10.0.0.5", "--workers", "65"], "--workers: 65 is not a number from 0 to 64"),
            (["-a", "10.0.0.5", "--busy-poll", "-1"], "--busy-poll: -1 is not a number of micro"),
            (["-a", "10.0.0.5", "--worker-cpus", "1,"], "--worker-cpus: '1,' is not a list"),
            (["-a", "10.0.0.5", "--worker-cpus", "3-2"], "--worker-cpus: '3-2' is not a list"),
            (["-a", "10.0.0.5", "--worker-cpus", "1024"], "--worker-cpus: 1024 is not the number"),
            (["-a", "10.0.0.5", "-s", "x" * 108], f"--socket-path: {'x' * 108} has 108 bytes"),
        ],
    )
    def test_values(
        self, args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["-s", "vm1.sock", *args]) == ExitCode.USAGE
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mvirt-net: {expected}")


class TestSingleNic:
    def test_least(self, runs: Runs) -> None:
        assert main(ONE_NIC) == ExitCode.OK
        assert runs.config.networks == (
            NetworkSpec(name="private", ipv4_subnet=IPv4Network("10.0.0.5/32")),
        )
        [nic] = runs.config.nics
        assert nic.name == "vm1"
        assert nic.ipv4_address == IPv4Address("10.0.0.5")
        assert nic.socket_path == Path("/run/vm1.sock")
        assert nic.mac_address is not None
        assert runs.options.sock is None
        assert not runs.options.one_off

    def test_all(self, runs: Runs, tmp_path: Path) -> None:
        with (tmp_path / "ready").open("wb") as ready:
            args = (
                *("-s", "/run/a b.sock", "-a", "10.1.2.3/20", "-M", "52:54:00:12:34:56"),
                *("-m", "9000", "-D", "9.9.9.9", "-D", "2620:fe::fe", "--ntp", "10.1.1.1"),
                *("--netmask", "subnet", "-1", "-P", "/run/x.pid"),
                *("--ready-fd", str(ready.fileno()), "-q", "--log-format", "json"),
            )
            assert main(args) == ExitCode.OK
            assert runs.options.ready_fd == ready.fileno()
        assert runs.config.networks == (
            NetworkSpec(
                name="private",
                ipv4_subnet=IPv4Network("10.1.0.0/20"),
                ipv4_netmask=Netmask.SUBNET,
                dns_servers=["9.9.9.9", "2620:fe::fe"],
                ntp_servers=["10.1.1.1"],
                mtu=9000,
            ),
        )
        assert runs.config.nics == (
            NicSpec(
                name="a-b",
                network="private",
                mac_address=MacAddress.parse("52:54:00:12:34:56"),
                ipv4_address=IPv4Address("10.1.2.3"),
                socket_path=Path("/run/a b.sock"),
            ),
        )
        assert runs.options.one_off
        assert runs.options.pid_path == Path("/run/x.pid")

    def test_polling(self, runs: Runs) -> None:
        args = ("--workers", "3", "--busy-poll", "0", "--worker-cpus", "1,4-6")
        assert main([*ONE_NIC, *args]) == ExitCode.OK
        assert runs.config.polling == PollingSpec(workers=3, busy_poll=0, worker_cpus=(1, 4, 5, 6))

    def test_subnet_without_a_length(self, runs: Runs) -> None:
        assert main([*ONE_NIC, "--netmask", "subnet"]) == ExitCode.OK
        assert runs.config.networks[0].ipv4_subnet == IPv4Network("10.0.0.0/24")

    def test_fd_listening(self, runs: Runs, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            fd = listener.detach()
            assert main(["--fd", str(fd), "-a", "10.0.0.5"]) == ExitCode.OK
        [(name, taken)] = runs.options.listeners.items()
        taken.close()
        assert runs.options.sock is None
        assert runs.config.nics[0].socket_path is None
        assert runs.config.nics[0].name == name == "nic"

    def test_fd_connected(self, runs: Runs) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            assert main(["--fd", str(theirs.detach()), "-a", "10.0.0.5"]) == ExitCode.OK
        assert runs.options.sock is not None

    @pytest.mark.parametrize(
        ("family", "kind", "expected"),
        [
            (socket.AF_UNIX, socket.SOCK_DGRAM, "not a unix stream socket"),
            (socket.AF_INET, socket.SOCK_STREAM, "not a unix stream socket"),
            (socket.AF_UNIX, socket.SOCK_STREAM, "Transport endpoint is not connected"),
        ],
    )
    def test_fd_of_another_kind(
        self,
        family: socket.AddressFamily,
        kind: socket.SocketKind,
        expected: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        fd = socket.socket(family, kind).detach()
        assert main(["--fd", str(fd), "-a", "10.0.0.5"]) == ExitCode.USAGE
        assert capsys.readouterr().err.startswith(f"mvirt-net: --fd: {fd}: {expected}")

    def test_attach_lines_when_asked(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*ONE_NIC, "--print-attach"]) == ExitCode.OK
        runs.tell_ready()
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
            "#",
            "#",
            "qemu-system-x86_64",
            "cloud-hypervisor",
        ]

    def test_no_attach_lines_off_a_terminal(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(ONE_NIC) == ExitCode.OK
        runs.tell_ready()
        assert capsys.readouterr().out == ""


class TestSocketAccess:
    ACCESS = (
        *("--socket-mode", "0606", "--socket-owner", "5", "--socket-group", "6"),
        *("--allow-uid", "7", "--allow-uid", "8", "--allow-gid", "9"),
    )
    EXPECTED = SocketAccess(
        socket_mode="0606", socket_owner=5, socket_group=6, allow_uid=[7, 8], allow_gid=[9]
    )

    def test_single_nic(self, runs: Runs) -> None:
        assert main([*ONE_NIC, *self.ACCESS]) == ExitCode.OK
        [nic] = runs.config.nics
        assert nic == nic.with_defaults(self.EXPECTED)
        assert (nic.socket_owner, nic.allow_gid) == (5, frozenset({9}))

    def test_serve(self, runs: Runs, tmp_path: Path) -> None:
        args = ["serve", "--config", str(EXAMPLE), "--socket-dir", str(tmp_path)]
        assert main([*args, *self.ACCESS]) == ExitCode.OK
        for nic in runs.config.nics:
            assert (nic.socket_owner, nic.allow_gid) == (5, frozenset({9}))

    def test_sockets_belong_to_whom_we_run_as(self, runs: Runs) -> None:
        assert main([*ONE_NIC, "--runas", "7:8", "--socket-group", "9"]) == ExitCode.OK
        [nic] = runs.config.nics
        assert (nic.socket_owner, nic.socket_group) == (7, 9)
        assert runs.options.runas is not None
        assert (runs.options.runas.uid, runs.options.runas.gid) == (7, 8)
        assert runs.options.sandboxed

    @pytest.mark.parametrize("flag", ["--socket-mode", "--socket-owner", "--socket-group"])
    def test_there_is_no_file(self, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            args = ["--fd", str(theirs.fileno()), "-a", "10.0.0.5", flag, "0660"]
            assert main(args) == ExitCode.USAGE
        assert capsys.readouterr().err.startswith(f"mvirt-net: {flag}: there is no socket path")

    def test_inherited_socket_and_runas(self, runs: Runs) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            args = ["--fd", str(theirs.detach()), "-a", "10.0.0.5", "--runas", "7", "--no-sandbox"]
            assert main(args) == ExitCode.OK
        assert runs.config.nics[0].socket_owner is None
        assert not runs.options.sandboxed


class TestServe:
    def test_example(self, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sockets = tmp_path / "sockets"
        args = ["serve", "--config", str(EXAMPLE), "--socket-dir", str(sockets), "--print-attach"]
        assert main(args) == ExitCode.OK
        assert [nic.socket_path for nic in runs.config.nics] == [
            sockets / f"vm{i}.sock" for i in (1, 2, 3)
        ]
        assert sockets.stat().st_mode & 0o777 == 0o750
        runs.tell_ready()
        assert len(capsys.readouterr().out.splitlines()) == 10

    def test_flags_of_polling_come_before_the_file(self, runs: Runs, tmp_path: Path) -> None:
        config = tmp_path / "x.toml"
        config.write_text("[polling]\nworkers = 2\nbusy_poll = 10\n")
        assert main(["serve", "-c", str(config), "--busy-poll", "20"]) == 0
        assert runs.config.polling == PollingSpec(workers=2, busy_poll=20)

    def test_flags_of_the_api_come_before_the_file(self, runs: Runs, tmp_path: Path) -> None:
        config, sockets = tmp_path / "x.toml", tmp_path / "s"
        config.write_text('[api]\ngrpc = "[::1]:1"\nhttp = ["unix:/run/a.sock"]\n')
        serve = ["serve", "-c", str(config), "--socket-dir", str(sockets)]
        assert main([*serve, "--grpc", "--http", "127.0.0.1:8080,unix:/run/b.sock"]) == 0
        assert runs.config.api == ApiSpec(
            grpc=DEFAULT_GRPC, http=["127.0.0.1:8080", "unix:/run/b.sock"]
        )
        runs.calls.clear()
        assert main([*serve, "--grpc", "[::1]:2", "--grpc", "unix:/run/c.sock"]) == 0
        assert runs.config.api == ApiSpec(
            grpc=["[::1]:2", "unix:/run/c.sock"], http="unix:/run/a.sock"
        )
        # NICs may come, and will need it.
        assert sockets.is_dir()

    def test_the_api_is_for_this_host(
        self, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "x.toml"
        config.write_text("")
        assert main(["serve", "-c", str(config), "--http", "0.0.0.0:80"]) == ExitCode.USAGE
        assert capsys.readouterr().err.startswith(
            "mvirt-net: --http: 0.0.0.0:80: not a loopback address"
        )
        assert not runs.calls

    @pytest.mark.parametrize(
        ("line", "flags", "expected"),
        [
            ("", [], None),
            ("state = '/x/state.db'", [], Path("/x/state.db")),
            ("state = '/x/state.db'", ["--no-state"], False),
            ("state = '/x/state.db'", ["--state", "/y/state.db"], Path("/y/state.db")),
            ("state = false", [], False),
            ("state = false", ["--state", "/y/state.db"], Path("/y/state.db")),
            ("", ["--state", "state.db"], Path.cwd() / "state.db"),
            ("[api]\nhttp = 'unix:/x'", ["--no-state"], False),
            ("state = false\n[api]\nhttp = 'unix:/x'", [], False),
        ],
    )
    def test_state(
        self, runs: Runs, tmp_path: Path, line: str, flags: list[str], expected: Path | None
    ) -> None:
        config = tmp_path / "x.toml"
        config.write_text(line)
        assert main(["serve", "-c", str(config), *flags]) == ExitCode.OK
        assert runs.config.state == expected

    @pytest.mark.parametrize(
        ("environ", "uid", "expected"),
        [
            ({"STATE_DIRECTORY": "{0}/a/b:/c", "XDG_STATE_HOME": "/x"}, 0, "{0}/a/b"),
            ({"XDG_STATE_HOME": "{0}/a"}, 7, "{0}/a/mvirt-net"),
            ({"HOME": "{0}"}, 7, "{0}/.local/state/mvirt-net"),
        ],
    )
    def test_state_by_default(
        self,
        runs: Runs,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        environ: dict[str, str],
        uid: int,
        expected: str,
    ) -> None:
        """Where it can be controlled; the folder is made, for the daemon alone."""
        for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value.format(tmp_path))
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        config = tmp_path / "x.toml"
        config.write_text("")
        sockets = ("--socket-dir", str(tmp_path / "s"))
        assert main(["serve", "-c", str(config), *sockets, "--http", "unix:/x"]) == ExitCode.OK
        folder = Path(expected.format(tmp_path))
        assert runs.config.state == folder / "state.db"
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_reload_reads_the_file_again_and_keeps_the_flags(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        config = tmp_path / "x.toml"
        config.write_text("")
        flags = ["--workers", "3", "--state", "/x/state.db", "--socket-mode", "0600"]
        assert main(["serve", "-c", str(config), *flags, "--socket-dir", str(tmp_path)]) == 0
        reload = runs.options.reload
        assert reload is not None
        assert reload() == runs.config
        config.write_text("[[network]]\nname = 'blue'\n[[nic]]\nname = 'vm1'\nnetwork = 'blue'\n")
        read = reload()
        assert (read.polling.workers, read.state) == (3, Path("/x/state.db"))
        [nic] = read.nics
        assert nic.socket_mode == read.defaults.socket_mode == FileMode(0o600)
        assert nic.socket_path == tmp_path / "vm1.sock"
        config.write_text("[[nic]]")
        with pytest.raises(ConfigFileError):
            reload()

    def test_socket_dir_is_not_made_for_nothing(self, runs: Runs, tmp_path: Path) -> None:
        config = tmp_path / "x.toml"
        config.write_text("")
        assert main(["serve", "-c", str(config), "--socket-dir", str(tmp_path / "s")]) == 0
        assert runs.config == DaemonConfig(socket_dir=tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_socket_dir_cannot_be_made(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["serve", "-c", str(EXAMPLE), "--socket-dir", "/none/s"]
        assert main(args) == ExitCode.FAILURE
        assert capsys.readouterr().err == "mvirt-net: /none/s: No such file or directory\n"
        assert not runs.calls

    @pytest.mark.parametrize(
        ("environ", "uid", "expected"),
        [
            ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/x"}, 0, "/run/a"),
            ({"XDG_RUNTIME_DIR": "/x"}, 0, "/run/mvirt-net"),
            ({"XDG_RUNTIME_DIR": "/x"}, 7, "/x/mvirt-net"),
            ({}, 7, "/run/user/7/mvirt-net"),
        ],
    )
    def test_socket_dir_by_default(
        self, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], uid: int, expected: str
    ) -> None:
        for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        assert daemon_socket_dir() == Path(expected)


class TestConfigFile:
    def test_good(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check-config", str(EXAMPLE)]) == ExitCode.OK
        assert capsys.readouterr().out == f"{EXAMPLE}: good (2 networks, 3 NICs)\n"

    @pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"]])
    def test_every_problem_on_its_line(
        self, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "x.toml"
        config.write_text('[[network]]\nname = "a"\nmtu = 1\n[[nic]]\nmac_address = "z"\n')
        assert main([*command, str(config)]) == ExitCode.BAD_CONFIG
        assert [line.split(": ")[:3] for line in capsys.readouterr().err.splitlines()] == [
            ["mvirt-net", str(config), "network[0].mtu"],
            ["mvirt-net", str(config), "nic[0].name"],
            ["mvirt-net", str(config), "nic[0].network"],
            ["mvirt-net", str(config), "nic[0].mac_address"],
        ]

    @pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"]])
    def test_absent(self, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*command, "/none/x.toml"]) == ExitCode.BAD_CONFIG
        assert capsys.readouterr().err == "mvirt-net: /none/x.toml: No such file or directory\n"

    def test_is_a_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check-config", str(tmp_path)]) == ExitCode.BAD_CONFIG
        assert capsys.readouterr().err == f"mvirt-net: {tmp_path}: Is a directory\n"

    def test_may_not_be_read(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(path: Path, *_: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("mvirt_net.cli.file.load", refuse)
        assert main(["check-config", "/x.toml"]) == ExitCode.NO_PERMISSION
        assert capsys.readouterr().err == "mvirt-net: /x.toml: Permission denied\n"

    def test_is_not_looked_at_before_it_is_read(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Otherwise click calls a file without permission a wrong usage."""
        path = tmp_path / "x.toml"
        path.touch()
        monkeypatch.setattr(os, "access", lambda *_args, **_named: False)
        assert main(["check-config", str(path)]) == ExitCode.OK


class TestInterrupted:
    """^C while the command is still being loaded, or reads its file."""

    def test_is_an_end_by_that_signal(self, tmp_path: Path) -> None:
        program = (
            "import sys; from mvirt_net import cli; import mvirt_net.cli.file as file\n"
            "def interrupted(*_): raise KeyboardInterrupt\n"
            "file.load = interrupted\n"
            "sys.exit(cli.run())"
        )
        result = subprocess.run(
            [sys.executable, "-c", program, "check-config", "x.toml"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == -signal.SIGINT
        assert result.stderr.strip() == ""


class TestNoCommand:
    def test_of_a_group_is_its_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["ctl"]) == ExitCode.USAGE
        assert capsys.readouterr().err.startswith("Usage: mvirt-net ctl ")


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "code", "expected"),
        [
            (SocketInUseError("x: taken"), 69, ["x: taken"]),
            (SocketAccessError("x: no"), 77, ["x: no"]),
            (PermissionError(13, "Permission denied", "/x"), 77, ["/x: Permission denied"]),
            (OSError(30, "Read-only file system", "/x"), 77, ["/x: Read-only file system"]),
            (
                SocketPathError("x: exists and is not a socket"),
                1,
                ["x: exists and is not a socket"],
            ),
            (OSError(24, "Too many open files"), 1, ["Too many open files"]),
            (MvirtNetError("whatever"), 1, ["whatever"]),
            (ExceptionGroup("", [SocketInUseError("x: taken")]), 69, ["x: taken"]),
            (
                ExceptionGroup(
                    "", [ExceptionGroup("", [SocketInUseError("x")]), SocketAccessError("y")]
                ),
                77,
                ["x", "y"],
            ),
        ],
    )
    def test_line_and_code(
        self,
        runs: Runs,
        failure: Exception,
        code: int,
        expected: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        runs.failure = failure
        assert main(ONE_NIC) == code
        assert capsys.readouterr().err.splitlines() == [f"mvirt-net: {line}" for line in expected]

    def test_what_trio_itself_is_denied(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs.failure = trio.TrioInternalError("internal error in Trio")
        denied = OSError(errno.ENOSPC, "No space left on device")
        runs.failure.__cause__ = ExceptionGroup("", [denied, AssertionError()])
        assert main(ONE_NIC) == ExitCode.FAILURE
        assert capsys.readouterr().err == "mvirt-net: No space left on device\n"

    def test_a_bug_has_a_traceback(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        runs.failure = ExceptionGroup("", [RuntimeError("never")])
        assert main(ONE_NIC) == ExitCode.FAILURE
        error = capsys.readouterr().err
        assert "internal error" in error
        assert "RuntimeError: never" in error


class TestReference:
    """The reference in docs/ names everything there is."""

    def test_flags(self) -> None:
        text = (ROOT / "docs" / "reference" / "cli.md").read_text()
        commands = [cli.command, *cli.command.commands.values()]
        flags = [
            flag
            for command in commands
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for flag in (*parameter.opts, *parameter.secondary_opts)
        ]
        assert len(flags) > 30
        assert [flag for flag in flags if f"`{flag}" not in text and f"{flag}\n" not in text] == []

    def test_keys(self) -> None:
        text = (ROOT / "docs" / "reference" / "config.md").read_text()
        networks, nics = text.split("## `[[nic]]`")
        for part, cls in ((networks, NetworkSpec), (nics, NicSpec)):
            for field in attrs.fields(cls):
                assert f"\n| `{field.name}` |" in part

    def test_exit_codes(self) -> None:
        text = (ROOT / "docs" / "reference" / "cli.md").read_text()
        for code in ExitCode:
            assert f"\n| {code.value} |" in text
