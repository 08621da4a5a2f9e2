"""``mvirt-net ctl capture`` against a real daemon: its files, and packets that come here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mvirt_net.cli import main
from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.ctl import COMMAND, answering, environment, run_ctl
from tests.harness.pcapng import PcapngFile
from tests.harness.process import UNKNOWN, Daemon, started, two_nics


@attrs.frozen
class Running:
    """A daemon with a folder for captures."""

    daemon: Daemon
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "control.sock"

    @property
    def captures(self) -> Path:
        return self.folder / "captures"


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Running]:
    captures = folder / "captures"
    captures.mkdir()
    with started(*two_nics(folder), "--http", "--capture-dir", str(captures)) as daemon:
        daemon.wait_ready()
        yield Running(daemon, folder)
        if daemon.process.poll() is None:
            assert daemon.stop() == ExitCode.OK


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """For tests that leave everything as it is."""
    with tempfile.TemporaryDirectory(prefix="mvirt-net-") as name, serving(Path(name)) as running:
        yield running


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="mvirt-net-") as name, serving(Path(name)) as running:
        yield running


@contextlib.contextmanager
def taking(running: Running, *args: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """One that writes what it gets here, and has begun to."""
    with subprocess.Popen(
        [*COMMAND, "capture", "start", *args],
        env=environment(running.socket),
        stderr=subprocess.PIPE,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def send(running: Running, nursery: trio.Nursery, nic: str) -> None:
    """One frame that is dropped without a word."""
    client = await VhostTestClient.connect(nursery, running.folder / f"{nic}.sock")
    await client.send_packet(UNKNOWN)
    await client.aclose()


async def until(happened: Callable[[], object]) -> None:
    """Another process does it, and says nothing."""
    while not happened():
        await trio.to_thread.run_sync(time.sleep, 0.01)


@attrs.frozen
class Answer:
    returncode: int
    stdout: str
    stderr: str


Ctl = Callable[..., Answer]


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], logging_left_alone: None) -> Ctl:
    """Runs ``mvirt-net ctl`` in this process."""

    def run(running: Running, *args: str) -> Answer:
        capsys.readouterr()
        code = main(["ctl", "-S", str(running.socket), *args])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def done(ctl: Ctl) -> Callable[..., str]:
    """The same for the verbs about captures, which must succeed."""

    def run(running: Running, *args: str) -> str:
        result = ctl(running, "capture", *args)
        assert (result.returncode, result.stderr) == (ExitCode.OK, "")
        return result.stdout

    return run


class TestFiles:
    def test_from_start_to_stop(self, running: Running, done: Callable[..., str]) -> None:
        assert done(running, "list") == "FILE  NICS  FRAMES  LOST  BYTES  ENDED\n"
        assert done(running, "start", "a.pcapng") == "capture a.pcapng started\n"
        one = json.loads(done(running, "start", "b.pcapng", "--nic", "vm2", "--json"))
        assert (one["file"], one["nics"]) == ("b.pcapng", ["vm2"])
        lines = [line.split()[:4] for line in done(running, "list").splitlines()]
        assert lines[1:] == [["a.pcapng", "all", "0", "0"], ["b.pcapng", "vm2", "0", "0"]]
        records = json.loads(done(running, "list", "--json"))["captures"]
        assert [record["file"] for record in records] == ["a.pcapng", "b.pcapng"]
        said = done(running, "stop", "a.pcapng")
        size = (running.captures / "a.pcapng").stat().st_size
        assert said == f"capture a.pcapng ended (closed): 0 frames, 0 of them lost, {size} bytes\n"
        assert json.loads(done(running, "stop", "b.pcapng", "--json"))["ended"] == "closed"
        assert done(running, "list").count("\n") == 1

    def test_nic_by_its_id(self, running: Running, ctl: Ctl, done: Callable[..., str]) -> None:
        nics = json.loads(ctl(running, "nic", "list", "--json").stdout)["nics"]
        [id_] = [nic["id"] for nic in nics if nic["name"] == "vm1"]
        assert json.loads(done(running, "start", "x", "--nic", id_, "-j"))["nics"] == ["vm1"]

    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (("start",), ExitCode.USAGE, "give either FILE or --write"),
            (("start", "x", "--write", "y"), ExitCode.USAGE, "give either FILE or --write"),
            (("start", ".x"), ExitCode.USAGE, "FILE: "),
            (("start", "x", "--snaplen", "5000000000"), ExitCode.USAGE, "--snaplen: not between"),
            (("start", "x", "--limit", "0"), ExitCode.USAGE, "--limit: not positive"),
            (("start", "x", "--nic", "vm3"), ExitCode.FAILURE, "did you mean vm2 or vm1?"),
            (("start", "-w", "y", "--nic", "vm3"), ExitCode.FAILURE, "did you mean vm2 or vm1?"),
            (("start", "-w", "y", "--snaplen", "0"), ExitCode.USAGE, "--snaplen: not between"),
            (("start", "-w", "y", "--json"), ExitCode.USAGE, "exclude each other"),
            (("start", "-w", "/nowhere/y"), ExitCode.FAILURE, "No such file"),
            (("stop", "x"), ExitCode.FAILURE, "there is no capture 'x', and no other"),
        ],
    )
    def test_refused(
        self,
        shared: Running,
        ctl: Ctl,
        args: tuple[str, ...],
        code: ExitCode,
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(shared.folder)
        result = ctl(shared, "capture", *args)
        assert (result.returncode, result.stdout) == (code, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert list(shared.captures.iterdir()) == []
        assert not Path("y").exists()

    def test_file_that_is_there(self, running: Running, ctl: Ctl) -> None:
        (running.captures / "x").write_text("precious")
        result = ctl(running, "capture", "start", "x")
        assert result.returncode == ExitCode.FAILURE
        assert "is there already" in result.stderr


class TestPackets:
    async def test_into_a_pipe(self, running: Running, nursery: trio.Nursery) -> None:
        with taking(running, "--write", "-", "--nic", "vm1", stdout=subprocess.PIPE) as process:
            await trio.to_thread.run_sync(running.daemon.wait_event, "capture started")
            await send(running, nursery, "vm2")
            await send(running, nursery, "vm1")
            assert process.stdout is not None
            data = b""
            while len(data) < 100 or not PcapngFile.parse(data).packets:
                data += await trio.to_thread.run_sync(os.read, process.stdout.fileno(), 1 << 16)
            process.send_signal(signal.SIGINT)
            _, err = await trio.to_thread.run_sync(process.communicate)
            assert (process.returncode, err) == (ExitCode.OK, b"1 frames captured\n")
        [packet] = PcapngFile.parse(data).packets
        assert packet.comment == "dropped: source_mac"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_into_a_file(
        self, running: Running, nursery: trio.Nursery, number: signal.Signals
    ) -> None:
        path = running.folder / "mine.pcapng"
        with taking(running, "-w", str(path)) as process:
            await trio.to_thread.run_sync(running.daemon.wait_event, "capture started")
            await send(running, nursery, "vm1")
            await until(lambda: path.exists() and PcapngFile.parse(path.read_bytes()).packets)
            process.send_signal(number)
            code = await trio.to_thread.run_sync(process.wait)
        assert code == (ExitCode.OK if number == signal.SIGINT else -signal.SIGTERM)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert PcapngFile.parse(path.read_bytes()).names() == ["vm1", "vm2"]
        end = await trio.to_thread.run_sync(running.daemon.wait_event, "capture ended")
        assert (end["reason"], end["level"]) == ("closed", "info")

    async def test_limit(self, running: Running, nursery: trio.Nursery) -> None:
        path = running.folder / "mine.pcapng"
        with taking(running, "-w", str(path), "--limit", "500") as process:
            await trio.to_thread.run_sync(running.daemon.wait_event, "capture started")
            while process.poll() is None:
                await send(running, nursery, "vm1")
            assert process.returncode == ExitCode.OK
        assert PcapngFile.parse(path.read_bytes()).counts(0)[1] > 0

    def test_nobody_reads_any_more(self, running: Running) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with taking(running, "-w", "-", stdout=writer) as process:
            os.close(writer)
            assert process.wait() == -signal.SIGPIPE
            assert process.stderr is not None
            assert process.stderr.read() == b""

    def test_the_daemon_ends(self, running: Running) -> None:
        with taking(running, "-w", str(running.folder / "mine")) as process:
            running.daemon.wait_event("capture started")
            assert running.daemon.stop() == ExitCode.OK
            _, err = process.communicate()
            assert process.returncode == ExitCode.NO_DAEMON
            assert b"the daemon has ended" in err

    def test_one_that_is_cut_off_has_not_reached_its_limit(self, tmp_path: Path) -> None:
        """The end of the answer is missing."""
        data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        with answering(tmp_path / "s", data):
            options = ("--limit", "1000000", "-w", str(tmp_path / "mine"))
            result = run_ctl(tmp_path / "s", "capture", "start", *options)
        assert result.returncode == ExitCode.NO_DAEMON
        assert "the daemon has ended, or has cut off" in result.stderr

    def test_whoever_answers_otherwise(self, tmp_path: Path) -> None:
        data = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2 << 20)
        with answering(tmp_path / "s", data):
            result = run_ctl(tmp_path / "s", "capture", "start", "-w", str(tmp_path / "mine"))
        assert result.returncode == ExitCode.NO_DAEMON
        assert "not as mvirt-net does" in result.stderr
