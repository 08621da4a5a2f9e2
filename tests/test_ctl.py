"""``mvirt-net ctl`` against a real daemon: what it says to people, to programs, and of errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import attrs
import pytest
import trio

from mvirt_net import places
from mvirt_net.cli import main
from mvirt_net.ctl import client as client_module
from mvirt_net.ctl.client import Client
from mvirt_net.endpoints import UnixEndpoint
from mvirt_net.errors import NoDaemonError
from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.ctl import COMMAND, answer, answering, environment, run_ctl, stream
from tests.harness.process import NOBODY, UNKNOWN, Daemon, started, two_nics

pytestmark = pytest.mark.usefixtures("logging_left_alone")

MAC = "52:54:00:12:34:56"
MORE = f"""
[[network]]
name = "green"
ipv4_subnet = "10.1.0.0/24"
ipv6_prefix = "fd00::/64"
dns_servers = ["9.9.9.9"]
[[nic]]
name = "db"
network = "green"
mac_address = "{MAC}"
"""


@attrs.frozen
class Running:
    """A daemon and its control socket."""

    daemon: Daemon
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "control.sock"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A daemon for all tests that leave what they find in it as it is."""
    with tempfile.TemporaryDirectory(prefix="mvirt-net-") as name:
        folder = Path(name)
        args = two_nics(folder)
        config = folder / "x.toml"
        config.write_text(config.read_text() + MORE)
        # Everything by default: --http alone says that there is a control socket, not where.
        with started(*args, "--http") as daemon:
            daemon.wait_ready()
            yield Running(daemon, folder)
            assert daemon.stop() == ExitCode.OK


@attrs.frozen
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ctl = Callable[..., Answer]


@pytest.fixture
def ctl(
    running: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ctl:
    """Runs ``mvirt-net ctl`` in this process."""
    monkeypatch.setenv("MVIRT_NET_CONTROL", str(running.socket))

    def run(*args: str) -> Answer:
        capsys.readouterr()
        code = main(["ctl", *args])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def done(ctl: Ctl) -> Ctl:
    """The same, which must succeed."""

    def run(*args: str) -> Answer:
        result = ctl(*args)
        assert (result.code, result.err) == (ExitCode.OK, "")
        return result

    return run


class TestNetworks:
    def test_list(self, done: Ctl) -> None:
        assert done("network", "list").lines == [
            "NAME   IPV4         IPV6        MTU  NICS  DNS      NTP",
            "blue   10.0.0.0/24  -          1500     2  -        -",
            "green  10.1.0.0/24  fd00::/64  1500     1  9.9.9.9  -",
        ]

    def test_list_for_programs(self, done: Ctl) -> None:
        networks = done("network", "list", "--json").json["networks"]
        assert [network["name"] for network in networks] == ["blue", "green"]

    def test_show(self, done: Ctl) -> None:
        assert "ipv6_prefix:   fd00::/64" in done("network", "show", "green").lines

    def test_show_by_id(self, done: Ctl) -> None:
        record = done("network", "show", "green", "--json").json
        assert done("network", "show", record["id"], "--json").json == record

    def test_from_creation_to_deletion(self, done: Ctl) -> None:
        options = ("--mtu", "9000", "--netmask", "subnet", "--dns", "1.1.1.1", "--ntp", "10.5.0.9")
        subnets = ("--ipv4-subnet", "10.5.0.0/16", "--ipv6-prefix", "fd05::/64")
        assert done("network", "create", "red", *subnets, *options).out == "network red created\n"
        record = done("network", "show", "red", "--json").json
        assert (record["mtu"], record["ipv4_netmask"]) == (9000, "subnet")
        assert (record["dns_servers"], record["ntp_servers"]) == (["1.1.1.1"], ["10.5.0.9"])
        assert (record["ipv4_subnet"], record["ipv6_prefix"]) == ("10.5.0.0/16", "fd05::/64")
        assert done("network", "delete", "red").out == "network red deleted\n"
        assert "red" not in done("network", "list").out

    def test_with_an_id_of_ones_own(self, done: Ctl) -> None:
        mine = "6a1ad5b0-5f0e-4e3c-9d0e-0123456789ab"
        args = ("red", "--ipv4-subnet", "10.5.0.0/24", "--id", mine, "--json")
        assert done("network", "create", *args).json["id"] == mine
        gone = done("network", "delete", mine, "--json").json
        assert gone == {"deleted": mine, "nics_deleted": 0}

    def test_deletion_with_its_nics(self, done: Ctl, ctl: Ctl) -> None:
        done("network", "create", "red", "--ipv4-subnet", "10.5.0.0/24")
        done("nic", "create", "red1", "--network", "red")
        refused = ctl("network", "delete", "red")
        assert refused.code == ExitCode.FAILURE
        assert refused.err == (
            "mvirt-net: network 'red' has NICs (1): delete them first"
            " ('mvirt-net ctl nic list --network red'), or all with --force\n"
        )
        forced = done("network", "delete", "red", "--force")
        assert forced.out == "network red deleted, and its NICs (1)\n"

    def test_update(self, done: Ctl) -> None:
        def servers(*args: str) -> tuple[list[str], list[str]]:
            record = done("network", "update", "red", *args, "--json").json
            return record["dns_servers"], record["ntp_servers"]

        done("network", "create", "red", "--ipv4-subnet", "10.5.0.0/24", "--dns", "1.1.1.1")
        assert servers("--ntp", "10.5.0.9") == (["1.1.1.1"], ["10.5.0.9"])
        two = ("--dns", "8.8.8.8", "--dns", "9.9.9.9")
        assert servers(*two) == (["8.8.8.8", "9.9.9.9"], ["10.5.0.9"])
        assert servers("--no-dns", "--no-ntp") == ([], [])
        done("network", "delete", "red")

    def test_public(self, done: Ctl) -> None:
        done("network", "create", "red", "--ipv4-subnet", "10.5.0.0/24", "--public")
        assert "is_public:     yes" in done("network", "show", "red").lines
        done("network", "delete", "red")

    def test_update_asks_for_something(self, ctl: Ctl) -> None:
        assert ctl("network", "update", "blue").code == ExitCode.USAGE
        both = ctl("network", "update", "blue", "--dns", "1.1.1.1", "--no-dns")
        assert both.code == ExitCode.USAGE
        assert "--dns and --no-dns exclude each other" in both.err


class TestNics:
    def test_list(self, done: Ctl, running: Running) -> None:
        lines = done("nic", "list").lines
        assert lines[0].split() == ["NAME", "NETWORK", "STATE", "MAC", "IPV4", "IPV6", "SOCKET"]
        socket = str(running.folder / "db.sock")
        row = ["db", "green", "created", MAC, "10.1.0.1", "fd00::2", socket]
        assert [line.split() for line in lines[1:] if "green" in line] == [row]
        # A pipe is given every name in full, however long lines become.
        assert max(map(len, lines)) > 80

    def test_list_of_a_network(self, done: Ctl) -> None:
        names = [
            nic["name"] for nic in done("nic", "list", "--network", "blue", "--json").json["nics"]
        ]
        assert names == ["vm1", "vm2"]

    def test_from_creation_to_deletion(self, done: Ctl, running: Running) -> None:
        addresses = ("--ipv4-address", "10.1.0.77", "--mac-addr", "52:54:00:00:00:77")
        created = done("nic", "create", "n7", "--network", "green", *addresses)
        path = running.folder / "n7.sock"
        assert created.lines == [
            "NIC n7 created",
            "mac_address:   52:54:00:00:00:77",
            "ipv4_address:  10.1.0.77",
            "ipv6_address:  fd00::3",
            f"socket_path:   {path}",
        ]
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert done("nic", "delete", "n7").out == "NIC n7 deleted\n"
        assert not path.exists()

    def test_a_name_is_made(self, done: Ctl) -> None:
        record = done("nic", "create", "--network", "green", "--json").json
        assert done("nic", "delete", record["name"], "--json").json == {"deleted": record["name"]}

    def test_routed_prefixes(self, done: Ctl) -> None:
        def prefixes(*args: str) -> tuple[list[str], list[str]]:
            record = done("nic", "update", "n8", *args, "--json").json
            return record["routed_ipv4_prefixes"], record["routed_ipv6_prefixes"]

        done("nic", "create", "n8", "--network", "green", "--routed-ipv4-prefix", "10.8.0.0/24")
        two = ("--routed-ipv4-prefix", "10.8.1.0/24", "--routed-ipv4-prefix", "10.8.2.0/24")
        assert prefixes(*two) == (["10.8.1.0/24", "10.8.2.0/24"], [])
        six = ("--routed-ipv6-prefix", "fd08::/64")
        assert prefixes(*six) == (["10.8.1.0/24", "10.8.2.0/24"], ["fd08::/64"])
        assert prefixes("--no-routed-ipv4-prefixes") == ([], ["fd08::/64"])
        assert prefixes("--no-routed-ipv6-prefixes") == ([], [])
        done("nic", "delete", "n8")


class TestRefusals:
    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (("nic", "show", "vm3"), 1, "there is no NIC 'vm3'; did you mean vm2 or vm1?"),
            (("nic", "delete", "zzzz"), 1, "there is no NIC 'zzzz', only vm1, vm2, db"),
            (("nic", "show", "../x"), 1, "there is no NIC '../x', only vm1, vm2, db"),
            (("nic", "show", ""), 1, "there is no NIC '', only vm1, vm2, db"),
            (("stats", "vm9"), 1, "there is no NIC 'vm9'; did you mean vm2 or vm1?"),
            (("network", "show", "gren"), 1, "there is no network 'gren'; did you mean green?"),
            (("nic", "list", "--network", "x"), 1, "there is no network 'x', only blue, green"),
            (
                ("nic", "create", "a", "--network", "bleu"),
                1,
                "there is no network 'bleu'; did you mean blue?",
            ),
            (("nic", "show", "\x1b[2J"), 1, r"there is no NIC '\\x1b[2J', only vm1, vm2, db"),
        ],
    )
    def test_a_name_that_is_not_known(
        self, ctl: Ctl, args: tuple[str, ...], code: int, message: str
    ) -> None:
        assert ctl(*args) == Answer(code, "", f"mvirt-net: {message}\n")

    def test_a_name_that_is_taken(self, ctl: Ctl) -> None:
        result = ctl("nic", "create", "vm1", "--network", "blue")
        assert (result.code, result.out) == (ExitCode.FAILURE, "")
        assert "'vm1'" in result.err

    @pytest.mark.parametrize(
        "args", [("nic", "delete", "vm1"), ("network", "delete", "blue", "--force")]
    )
    def test_what_is_in_the_file_is_changed_there(self, ctl: Ctl, args: tuple[str, ...]) -> None:
        result = ctl(*args)
        assert (result.code, result.out) == (ExitCode.FAILURE, "")
        assert "is in the configuration file" in result.err

    def test_what_cannot_be_served_is_said(self, ctl: Ctl, tmp_path: Path) -> None:
        fields = ("network", "state", "mac_address", "ipv4_address", "ipv6_address", "socket_path")
        nic = {"name": "vm1", **dict.fromkeys(fields), "error": "its socket is taken"}
        with answering(tmp_path / "s", answer({"nics": [nic]})):
            result = ctl("nic", "list", "-S", str(tmp_path / "s"))
        assert result.lines[-1] == "NIC vm1 is not served: its socket is taken"

    @pytest.mark.parametrize(
        ("args", "flag"),
        [
            (
                ("nic", "create", "a", "--network", "blue", "--ipv4-address", "1.1.1.1"),
                "--ipv4-address",
            ),
            (("nic", "create", "a", "--network", "blue", "--mac-addr", "x"), "--mac-addr"),
            (("nic", "create", "..", "--network", "blue"), "NAME"),
            (
                ("nic", "create", "a", "--network", "blue", "--routed-ipv4-prefix", "x"),
                "--routed-ipv4-prefix",
            ),
            (("network", "create", "a", "--ipv4-subnet", "10.0.0.0/40"), "--ipv4-subnet"),
            (("network", "create", "a", "--ipv4-subnet", "10.7.0.0/24", "--mtu", "1"), "--mtu"),
            (("network", "create", "a", "--ipv4-subnet", "10.7.0.0/24", "--dns", "x"), "--dns"),
        ],
    )
    def test_a_value_that_makes_no_sense(self, ctl: Ctl, args: tuple[str, ...], flag: str) -> None:
        result = ctl(*args)
        assert (result.code, result.out) == (ExitCode.USAGE, "")
        assert result.err.startswith(f"mvirt-net: {flag}: ")
        assert result.err.endswith(f"(see 'mvirt-net ctl {args[0]} {args[1]} --help')\n")


class TestWhereTheDaemonIs:
    def test_the_option_counts_more_than_the_environment(self, ctl: Ctl, running: Running) -> None:
        path = str(running.socket)
        for args in (("network", "list"), ("stats",)):
            assert ctl("-S", "/none", *args).code == ExitCode.NO_DAEMON
            assert ctl("-S", path, *args).code == ExitCode.OK
            assert ctl(*args, "-S", f"unix:{path}").code == ExitCode.OK
            # The nearest one counts.
            assert ctl("-S", path, *args, "-S", "/none").code == ExitCode.NO_DAEMON

    def test_by_default_that_of_the_user_then_that_of_the_system(
        self, ctl: Ctl, running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("MVIRT_NET_CONTROL")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setattr(os, "geteuid", lambda: 7)
        monkeypatch.setattr(places, "_system_dir", lambda: tmp_path / "system")
        (tmp_path / "mvirt-net").symlink_to(running.folder)
        assert ctl("network", "list").code == ExitCode.OK
        (tmp_path / "mvirt-net").rename(tmp_path / "system")
        assert ctl("network", "list").code == ExitCode.OK
        (tmp_path / "system").unlink()
        result = ctl("network", "list")
        assert result.code == ExitCode.NO_DAEMON
        assert result.err == (
            f"mvirt-net: no daemon is running: no socket at {tmp_path}/mvirt-net/control.sock or"
            f" {tmp_path}/system/control.sock; start one with 'mvirt-net serve --config FILE"
            " --http',"
            " or name its socket by --socket or $MVIRT_NET_CONTROL\n"
        )

    def test_over_tcp(self, tmp_path: Path) -> None:
        with started(*two_nics(tmp_path), "--http", "127.0.0.1:0") as daemon:
            address = daemon.wait_event("control interface")["address"]
            for where in (address, f"http://{address}", f"http://{address}/"):
                result = run_ctl(where, "network", "list")
                assert (result.returncode, result.stderr) == (0, "")

    def test_other_hosts_are_not_asked(self, ctl: Ctl) -> None:
        result = ctl("network", "list", "-S", "http://192.0.2.1:80")
        assert result.code == ExitCode.USAGE
        assert "--socket: 192.0.2.1:80: not a loopback address" in result.err

    def test_a_daemon_that_has_ended(self, ctl: Ctl, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with answering(path):
            pass
        result = ctl("network", "list", "-S", str(path))
        assert result.code == ExitCode.NO_DAEMON
        assert result.err.startswith(
            f"mvirt-net: {path}: nobody listens there, the daemon has ended"
        )

    def test_the_socket_of_a_nic(self, ctl: Ctl, running: Running) -> None:
        path = running.folder / "vm2.sock"
        result = ctl("network", "list", "-S", str(path))
        assert result.code == ExitCode.NO_DAEMON
        assert "this is the socket of a NIC" in result.err

    def test_a_path_that_is_too_long(self, ctl: Ctl) -> None:
        result = ctl("network", "list", "-S", f"/{'x' * 200}")
        assert result.code == ExitCode.NO_DAEMON
        assert "path too long" in result.err

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    @pytest.mark.parametrize(
        ("mode", "folder_mode", "whose"),
        [
            (0o660, 0o755, "it is for user root and group daemon; join it"),
            (0o600, 0o755, "it is for user root only"),
            (0o660, 0o750, "it is for user root and group daemon; join it"),
        ],
    )
    def test_who_may_not_is_told_who_may(self, mode: int, folder_mode: int, whose: str) -> None:
        with tempfile.TemporaryDirectory(prefix="mvirt-net-") as name:
            path = Path(name, "mvirt-net", "control.sock")
            path.parent.mkdir()
            Path(name).chmod(0o755)
            with answering(path):
                path.chmod(mode)
                path.parent.chmod(folder_mode)
                for place in (path, path.parent):
                    os.chown(place, 0, 1)
                result = _as_nobody("network", "list", XDG_RUNTIME_DIR=name)
        assert result.returncode == ExitCode.NO_PERMISSION
        assert f"mvirt-net: {path}: permission denied: {whose}" in result.stderr


def _as_nobody(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import os, sys; from mvirt_net.cli import main;"
        " from mvirt_net.ctl import client, networks; os.setgroups([]);"
        f" os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid}); sys.exit(main())"
    )
    return subprocess.run(
        [COMMAND[0], "-c", program, "ctl", *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


class TestStrangeAnswers:
    """Whoever listens there need not be the daemon, nor the daemon be as old as the client."""

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "hung up"),
            (b"hello\r\n", "does not speak HTTP"),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
                "answers, but not as mvirt-net does",
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{",
                "answers, but not as mvirt-net does",
            ),
            (answer([1]), "answers, but not as mvirt-net does"),
            (
                b"HTTP/1.1 404 x\r\ncontent-length: 2\r\n\r\nno",
                "answers, but not as mvirt-net does",
            ),
        ],
    )
    def test_no_daemon(self, ctl: Ctl, tmp_path: Path, data: bytes, message: str) -> None:
        with answering(tmp_path / "s", data):
            result = ctl("network", "list", "-S", str(tmp_path / "s"))
        assert result.code == ExitCode.NO_DAEMON
        assert message in result.err

    def test_no_answer(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        # The kernel takes the connection for a listener that never does.
        with answering(path), pytest.raises(NoDaemonError, match=r"no answer in 0\.01 s"):
            Client(UnixEndpoint(path), timeout=0.01).get("networks")

    def test_an_answer_without_end(
        self, ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client_module, "MAX_ANSWER", 1000)
        with answering(tmp_path / "s", answer({"networks": ["x" * 2000]})):
            result = ctl("network", "list", "-S", str(tmp_path / "s"))
        assert result.code == ExitCode.NO_DAEMON

    def test_text_that_the_terminal_cannot_show(self, tmp_path: Path) -> None:
        with answering(tmp_path / "s", answer({"name": "groß 世"})):
            env = {**environment(tmp_path / "s"), "PYTHONIOENCODING": "latin-1"}
            result = subprocess.run(
                [*COMMAND, "nic", "show", "x"], env=env, capture_output=True, check=True
            )
        assert result.stdout == b"name:  gro\xdf \\u4e16\n"

    def test_hostile_text(self, ctl: Ctl, tmp_path: Path) -> None:
        """Whatever is said, no byte of it moves the cursor or writes into the title."""
        evil = "\x1b]0;title\x07\x1b[2J\r\n\x9b\x7f\u202e"
        problem = answer({"detail": evil, "field": evil}, "409 Conflict")
        record = dict.fromkeys(
            ("name", "network", "state", "mac_address", "ipv4_address", "ipv6_address"), evil
        )
        record["socket_path"] = evil
        nics = answer({"nics": [record]})
        outputs = []
        for data, args in (
            (problem, ("nic", "delete", "x")),
            (nics, ("nic", "list")),
            (nics, ("nic", "list", "--json")),
            (answer(record), ("nic", "show", "x")),
            (answer(record), ("nic", "create", "--network", "x")),
            (stream({"type": "nic", "id": evil, "nic": record}), ("watch",)),
            (stream({"type": "nic", "id": evil, "nic": record}), ("watch", "--json")),
        ):
            path = tmp_path / "s"
            with answering(path, data):
                result = ctl(*args, "-S", str(path))
            path.unlink()
            outputs.append(result.out + result.err)
        assert all(outputs)
        for output in outputs:
            assert not re.search(r"[^\x20-\x7e\n]", output)


class TestWatch:
    def test_what_there_is_and_what_changes(self, running: Running, done: Ctl) -> None:
        with _watching(running) as lines:
            seen = [next(lines)[10:] for _ in range(5)]
            assert "network blue exists: 10.0.0.0/24" in seen
            assert f"NIC db exists: green, created, {MAC}, 10.1.0.1, fd00::2" in seen
            created = done("nic", "create", "n9", "--network", "blue", "--json").json
            assert next(lines)[10:] == (
                f"NIC n9 created: blue, created, {created['mac_address']}, 10.0.0.3"
            )
            done("nic", "update", "n9", "--routed-ipv4-prefix", "10.9.0.0/24")
            assert next(lines)[10:] == "NIC n9 routed_ipv4_prefixes: - -> 10.9.0.0/24"
            done("nic", "delete", "n9")
            assert next(lines)[10:] == "NIC n9 deleted"

    def test_for_programs(self, running: Running, done: Ctl) -> None:
        with _watching(running, "--json") as lines:
            first = [json.loads(next(lines)) for _ in range(6)]
            assert first[-1] == {"type": "complete"}
            known = {change["nic"]["name"] for change in first if change["type"] == "nic"}
            assert known == {"vm1", "vm2", "db"}
            done("network", "create", "red", "--ipv4-subnet", "10.5.0.0/24")
            assert json.loads(next(lines))["network"]["name"] == "red"
            done("network", "delete", "red")
            assert json.loads(next(lines))["network"] is None

    def test_too_slow(self, ctl: Ctl, tmp_path: Path) -> None:
        with answering(tmp_path / "s", stream({"type": "complete"}, {"type": "behind"})):
            result = ctl("watch", "-S", str(tmp_path / "s"))
        assert result.code == ExitCode.FAILURE
        assert "watch anew" in result.err

    def test_the_daemon_ends(self, tmp_path: Path) -> None:
        with started(*two_nics(tmp_path), "--http") as daemon:
            daemon.wait_ready()
            running = Running(daemon, tmp_path)
            with _started_watch(running) as process:
                next(iter(cast(IO[str], process.stdout)))
                daemon.stop()
                _, err = process.communicate()
                assert process.returncode == ExitCode.NO_DAEMON
                assert "ended" in err

    def test_interrupted(self, running: Running) -> None:
        with _started_watch(running) as process:
            next(iter(cast(IO[str], process.stdout)))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert (process.returncode, err) == (-signal.SIGINT, "")


@contextlib.contextmanager
def _watching(running: Running, *args: str) -> Iterator[Iterator[str]]:
    """The lines of a watch as they come."""
    with _started_watch(running, *args) as process:
        yield (line.rstrip("\n") for line in cast(IO[str], process.stdout))


@contextlib.contextmanager
def _started_watch(running: Running, *args: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, "watch", *args],
        env=environment(running.socket),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class TestStats:
    async def test_counts_and_drops(self, running: Running, done: Ctl) -> None:
        async with trio.open_nursery() as nursery:
            client = await VhostTestClient.connect(nursery, running.folder / "db.sock")
            for _ in range(3):
                await client.send_packet(UNKNOWN)
            await client.aclose()
        numbers = done("stats", "--json").json
        assert numbers["nics"]["db"]["tx_frames"] == 3
        assert numbers["nics"]["db"]["drops"] == {"ethertype": 3}
        assert numbers["total"]["tx_frames"] == 3
        assert numbers["total"]["drops"] == {"ethertype": 3}
        table, drops = done("stats").out.split("\n\n")
        rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
        assert rows["NIC"][-1] == "DROPS"
        assert rows["db"][0] == rows["total"][0] == rows["db"][-1] == rows["total"][-1] == "3"
        assert list(rows) == ["NIC", "db", "vm1", "vm2", "total"]
        assert drops.splitlines() == ["DROPPED  REASON     NICS", "      3  ethertype  db 3"]
        one = done("stats", "db").lines
        assert one[0] == "NIC db"
        assert "tx_frames:          3" in one
        assert one[-2:] == ["DROPPED  REASON", "      3  ethertype"]
        assert done("stats", "db", "--json").json == {"nics": {"db": numbers["nics"]["db"]}}


class TestTop:
    """In a pipe, or for a script; tests/test_ctl_top.py has it on a terminal."""

    def test_once(self, done: Ctl) -> None:
        lines = done("top", "--once", "-i", "0.1").lines
        assert lines[0].startswith("3 NICs, 0 active  tx 0 frames/s 0 bit/s")
        assert lines[1].split()[0] == "NIC"
        assert [line.split()[:3] for line in lines[2:]] == [
            ["db", "green", "created"],
            ["vm1", "blue", "created"],
            ["vm2", "blue", "created"],
        ]

    def test_several_for_programs(self, done: Ctl) -> None:
        lines = done("top", "-n", "2", "-i", "0.1", "--json").lines
        assert len(lines) == 2
        for line in lines:
            view = json.loads(line)
            assert view["seconds"] >= 0.1
            assert [nic["name"] for nic in view["nics"]] == ["db", "vm1", "vm2"]
            assert view["nics"][0]["tx_frames_per_s"] == 0

    def test_nobody_reads_any_more(self, running: Running) -> None:
        with subprocess.Popen(
            [*COMMAND, "top", "-i", "0.1"],
            env=environment(running.socket),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert "NICs" in process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == ""
        assert process.returncode == -signal.SIGPIPE
