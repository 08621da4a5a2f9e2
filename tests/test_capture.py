"""Captures of running NICs: what stands in the file, and what never comes to harm.

The clock is the real one: a thread writes, and virtual time would not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from mvirt_net import (
    ConfigError,
    DropReason,
    NetworkSpec,
    NicSpec,
    NotFoundError,
    Switch,
    TooManyCapturesError,
    open_switch,
)
from mvirt_net.capture import FLUSH_LIMIT, MAX_CAPTURES, Captured, CaptureSpec
from mvirt_net.ffi import MAX_FRAME
from tests.harness import GATEWAY_MAC, TestBackend
from tests.harness.exchanges import arp_gateway
from tests.harness.packets import ethernet_frame, udp_frame
from tests.harness.pcapng import INBOUND, OUTBOUND, PcapngFile

MAC, IP, IPV6 = "52:54:00:12:34:56", "10.0.0.5", "fd00::5"
MAC_B, IP_B = "52:54:00:00:00:0b", "10.0.0.6"

needs_tshark = pytest.mark.skipif(not shutil.which("tshark"), reason="Debian package: tshark")


@pytest.fixture
async def backend(nursery: trio.Nursery) -> TestBackend:
    return await TestBackend.start(nursery, MAC, IP)


def datagram(number: int, *, src: str = IP, mac: str = MAC) -> bytes:
    return udp_frame(mac, GATEWAY_MAC, src, IP_B, 1000, 2000, number.to_bytes(4, "big"))


UNKNOWN = ethernet_frame(GATEWAY_MAC, MAC, 0x88B5, bytes(50))
"""A frame that is dropped without a word."""


def read(path: Path) -> PcapngFile:
    return PcapngFile.parse(path.read_bytes())


def tshark(path: Path, *arguments: str) -> list[list[str]]:
    """A row for each packet."""
    return [line.split("\t") for line in output("tshark", "-r", str(path), *arguments).splitlines()]


def output(*command: str) -> str:
    """Of a program of others, which does without the sanitizers that `make sanitize` preloads."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


async def test_file_has_questions_answers_and_what_was_dropped(
    backend: TestBackend, tmp_path: Path
) -> None:
    client = await backend.connect()
    capture = await backend.switch.start_capture(tmp_path / "all.pcapng")
    await arp_gateway(client, MAC, IP)
    await client.send_packet(datagram(1, src="10.0.0.77"))
    await client.send_packet(UNKNOWN)
    await capture.aclose()
    file = read(tmp_path / "all.pcapng")
    assert file.names() == ["test-nic"]
    assert [(packet.direction, packet.comment) for packet in file.packets] == [
        (OUTBOUND, ""),
        (INBOUND, ""),
        (OUTBOUND, "dropped: source_address"),
        (OUTBOUND, "dropped: ethertype"),
    ]
    assert file.counts(0) == (4, 0)
    assert (capture.captured, capture.reason) == (Captured(4), "closed")
    assert capture.size == (tmp_path / "all.pcapng").stat().st_size


@needs_tshark
async def test_tshark_and_capinfos_read_it(backend: TestBackend, tmp_path: Path) -> None:
    client = await backend.connect()
    path = tmp_path / "all.pcapng"
    capture = await backend.switch.start_capture(path)
    await arp_gateway(client, MAC, IP)
    await client.send_packet(datagram(1, src="10.0.0.77"))
    await capture.aclose()
    fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.comment", "arp.opcode"]
    rows = await trio.to_thread.run_sync(
        lambda: tshark(path, "-T", "fields", *(f"-e{field}" for field in fields))
    )
    directions = {row[1] for row in rows}
    assert [row[0] for row in rows] == ["test-nic"] * 3
    assert directions == {"0x00000001", "0x00000002"}
    assert [row[3] for row in rows[:2]] == ["1", "2"]
    assert rows[2][2] == "dropped: source_address"
    told = await trio.to_thread.run_sync(output, "capinfos", str(path))
    assert "Number of packets:   3" in told
    assert "Name = test-nic" in told
    assert "Time precision = nanoseconds" in told
    assert "Strict time order:   True" in told


async def test_nics_that_come_later_are_in_a_capture_of_all(
    backend: TestBackend, tmp_path: Path
) -> None:
    client = await backend.connect()
    every = await backend.switch.start_capture(tmp_path / "all")
    one = await backend.switch.start_capture(tmp_path / "one", nics=["test-nic"])
    other = await backend.add_nic("late", MAC_B, IP_B)
    receiver = await backend.connect(other)
    await client.send_packet(datagram(1))
    await receiver.recv_packet()
    await backend.switch.remove_nic("late")
    await client.send_packet(datagram(2))
    for capture in (every, one):
        await capture.aclose()
    file = read(tmp_path / "all")
    assert file.names() == ["test-nic", "late"]
    # The last one is the ICMP error about the one before.
    assert [packet.interface for packet in file.packets] == [0, 1, 0, 0]
    assert file.counts(1) == (1, 0)
    assert file.packets[2].comment == "dropped: host_unreachable"
    assert file.packets[3].direction == INBOUND
    assert [packet.interface for packet in read(tmp_path / "one").packets] == [0, 0, 0]


async def test_start_and_stop_while_frames_flow(backend: TestBackend, tmp_path: Path) -> None:
    client = await backend.connect()
    receiver = await backend.connect(await backend.add_nic("b", MAC_B, IP_B))
    number = 0
    for name in ("first", "second"):
        before = number
        capture = await backend.switch.start_capture(tmp_path / name, nics=["test-nic"])
        for _ in range(20):
            number += 1
            await client.send_packet(datagram(number))
            await receiver.recv_packet()
        await capture.aclose()
        await client.send_packet(datagram(0))
        await receiver.recv_packet()
        numbers = [
            int.from_bytes(packet.data[-4:], "big") for packet in read(tmp_path / name).packets
        ]
        assert numbers == list(range(before + 1, number + 1))
    assert not backend.switch.captures


async def test_snaplen(backend: TestBackend, tmp_path: Path) -> None:
    client = await backend.connect()
    capture = await backend.switch.start_capture(tmp_path / "cut", snaplen=20)
    await client.send_packet(UNKNOWN)
    await capture.aclose()
    [packet] = read(tmp_path / "cut").packets
    assert packet.data == UNKNOWN[:20]
    assert packet.length == len(UNKNOWN)
    assert read(tmp_path / "cut").snaplens == [20]


async def test_limit_ends_it_with_a_whole_file(backend: TestBackend, tmp_path: Path) -> None:
    client = await backend.connect()
    capture = await backend.switch.start_capture(tmp_path / "short", limit=1000)
    while not capture.ended:
        await client.send_packet(datagram(1))
    assert capture.reason == "it has reached its limit"
    file = read(tmp_path / "short")
    assert 0 < len(file.packets) < 12
    assert not backend.switch.captures
    assert (tmp_path / "short").stat().st_size == capture.size


class FullDisk:
    """os.write() that has room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, fd: int, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.write(fd, data[: self.room])
        self.room -= written
        return written


async def test_full_disk_ends_the_capture_and_nothing_else(
    backend: TestBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = await backend.connect()
    monkeypatch.setattr("mvirt_net.capture.os.write", FullDisk(600))
    capture = await backend.switch.start_capture(tmp_path / "full")
    while not capture.ended:
        await client.send_packet(UNKNOWN)
    assert capture.reason == "No space left on device"
    lines = [record for record in caplog.records if record.message == "capture ended"]
    assert [record.levelname for record in lines] == ["WARNING"]
    await arp_gateway(client, MAC, IP)
    file = read(tmp_path / "full")
    assert file.names() == ["test-nic"]
    assert len(file.packets) > 0


@pytest.mark.parametrize("limit", [700, 100_000])
async def test_frames_beyond_the_limit_are_lost(
    backend: TestBackend, tmp_path: Path, limit: int
) -> None:
    client = await backend.connect()
    capture = await backend.switch.start_capture(tmp_path / "short", limit=limit)
    while not capture.ended:
        await client.send_burst([UNKNOWN] * 64)
    file, captured = read(tmp_path / "short"), capture.captured
    assert captured.lost > 0
    assert len(file.packets) == captured.frames - captured.lost
    assert file.counts(0) == (captured.frames, captured.lost)


@pytest.mark.parametrize("room", [10, 400, 600, 5000])
async def test_frames_that_a_failed_write_has_cost_are_lost(
    backend: TestBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    client = await backend.connect()
    monkeypatch.setattr("mvirt_net.capture.os.write", FullDisk(room))
    capture = await backend.switch.start_capture(tmp_path / "full")
    while not capture.ended:
        await client.send_burst([UNKNOWN] * 64)
    written = (tmp_path / "full").read_bytes()
    assert len(PcapngFile.parse(written).packets) == capture.captured.frames - capture.captured.lost
    assert len(written) == capture.size


async def test_frames_that_were_written_too_late_are_lost(
    backend: TestBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that hangs takes them from the file again."""
    client = await backend.connect()
    write, hanging, resumed = os.write, threading.Event(), threading.Event()

    def hang(fd: int, data: memoryview) -> int:
        if not hanging.is_set() and len(data) > 1000:
            hanging.set()
            resumed.wait()
        return write(fd, data)

    monkeypatch.setattr("mvirt_net.capture.os.write", hang)
    monkeypatch.setattr("mvirt_net.capture.FLUSH_LIMIT", 0.01)
    capture = await backend.switch.start_capture(tmp_path / "file")
    while not hanging.is_set():
        await client.send_burst([UNKNOWN] * 64)
    await capture.aclose()
    resumed.set()
    while is_open(tmp_path / "file"):
        await trio.to_thread.run_sync(time.sleep, 0.01)
    file = read(tmp_path / "file")
    assert capture.reason == "the file could not be written in time"
    assert len(file.packets) == capture.captured.frames - capture.captured.lost


def is_open(path: Path) -> bool:
    """Whether this process has it open."""
    fds = Path("/proc/self/fd").iterdir()
    return any(fd.is_symlink() and os.path.realpath(fd) == str(path) for fd in fds)


async def test_reader_that_goes_away_ends_the_capture(backend: TestBackend) -> None:
    client = await backend.connect()
    reader, writer = os.pipe()
    capture = await backend.switch.start_capture(writer)
    os.close(reader)
    while not capture.ended:
        await client.send_packet(datagram(1))
    assert capture.reason == "nobody reads any more"


async def test_reader_that_does_not_read_holds_up_nobody(backend: TestBackend) -> None:
    client = await backend.connect()
    reader, writer = os.pipe()
    capture = await backend.switch.start_capture(writer)
    while not capture.captured.lost:
        for _ in range(200):
            await client.send_packet(ethernet_frame(GATEWAY_MAC, MAC, 0x88B5, bytes(1400)))
    await capture.aclose()
    assert capture.reason == "the file could not be written in time"
    # The thread comes back when somebody reads, and closes the file.
    while await trio.to_thread.run_sync(os.read, reader, 1 << 16):
        pass
    os.close(reader)
    assert backend.nic.stats().drops[DropReason.ETHERTYPE] >= capture.captured.lost


async def test_reader_that_goes_when_it_has_not_read_in_time(backend: TestBackend) -> None:
    """The thread comes back with an error, and closes the file all the same."""
    client = await backend.connect()
    reader, writer = os.pipe()
    capture = await backend.switch.start_capture(writer)
    while not capture.captured.lost:
        for _ in range(200):
            await client.send_packet(ethernet_frame(GATEWAY_MAC, MAC, 0x88B5, bytes(1400)))
    await capture.aclose()
    os.close(reader)
    with trio.fail_after(30):
        while True:
            try:
                os.fstat(writer)
            except OSError:
                break
            await trio.sleep(0.01)


async def test_descriptor_of_a_pipe_is_read_while_it_runs(backend: TestBackend) -> None:
    client = await backend.connect()
    reader, writer = os.pipe()
    capture = await backend.switch.start_capture(writer, nics=["test-nic"])
    await client.send_packet(datagram(7))
    data = b""
    while len(data) < 100 or not PcapngFile.parse(data).packets:
        data += await trio.to_thread.run_sync(os.read, reader, 4096)
    await capture.aclose()
    os.close(reader)


async def test_file_is_the_owners_alone_and_links_are_not_followed(
    backend: TestBackend, tmp_path: Path
) -> None:
    capture = await backend.switch.start_capture(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    await capture.aclose()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="symbolic link"):
        await backend.switch.start_capture(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        await backend.switch.start_capture(tmp_path / "fifo")


async def test_nothing_is_made_for_a_nic_that_is_not_there(
    backend: TestBackend, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError):
        await backend.switch.start_capture(tmp_path / "none", nics=["test-nic", "nobody"])
    assert not (tmp_path / "none").exists()


async def test_switch_that_closes_ends_its_captures(nursery: trio.Nursery, tmp_path: Path) -> None:
    backend = await TestBackend.start(nursery, MAC, IP)
    capture = await backend.switch.start_capture(tmp_path / "file")
    await backend.aclose()
    assert capture.ended
    assert read(tmp_path / "file").counts(0) == (0, 0)


async def test_captures_are_bounded_and_say_so(backend: TestBackend, tmp_path: Path) -> None:
    start = backend.switch.start_capture
    for number in range(4):
        await start(tmp_path / str(number))
    for nics in (None, ["test-nic"]):
        with pytest.raises(TooManyCapturesError, match="4 captures"):
            await start(tmp_path / "fifth", nics=nics)
    # One more NIC is none too many.
    await backend.add_nic("late", MAC_B, IP_B)
    for number in range(4, MAX_CAPTURES):
        await start(tmp_path / str(number), nics=[])
    with pytest.raises(TooManyCapturesError, match="16 captures"):
        await start(tmp_path / "fifth", nics=[])
    assert not (tmp_path / "fifth").exists()


async def test_what_was_captured_is_counted_for_good(backend: TestBackend, tmp_path: Path) -> None:
    client = await backend.connect()
    for number in (1, 2):
        capture = await backend.switch.start_capture(tmp_path / "file")
        await client.send_packet(UNKNOWN)
        assert backend.switch.captured == Captured(number)
        await capture.aclose()
        assert backend.switch.captured == Captured(number)


class TestMany:
    """NICs without frontends, by whose number it counts."""

    COUNT = 100

    async def test_start_gives_others_turns(self, tmp_path: Path) -> None:
        async with open_switch() as switch:
            await self.fill(switch)
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(count)
                capture = await switch.start_capture(tmp_path / "all")
                before = turns
                await capture._statistics()
                after = turns
                nursery.cancel_scope.cancel()
            await capture.aclose()
            assert before > self.COUNT / 50
            assert after - before > self.COUNT / 50
            assert len(read(tmp_path / "all").names()) == self.COUNT

    async def test_nics_that_come_and_go_meanwhile(self, tmp_path: Path) -> None:
        async with open_switch() as switch:
            await self.fill(switch)
            async with trio.open_nursery() as nursery:
                start = partial(switch.start_capture, tmp_path / "all")
                nursery.start_soon(start)
                while not any(nic.captures for nic in switch.nics.values()):
                    await trio.lowlevel.checkpoint()
                await switch.remove_nic(f"nic{self.COUNT - 1}")
                await switch.remove_nic("nic0")
                await switch.add_nic(NicSpec(name="nic0", network="blue"))
            [capture] = switch.captures
            assert all(nic.captures == 1 for nic in switch.nics.values())
            await capture.aclose()
        assert sorted(read(tmp_path / "all").names()) == sorted(
            ["nic0", *(f"nic{number}" for number in range(self.COUNT - 1))]
        )

    async def test_one_file_has_so_many_nics(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those that come and go are not kept in memory for ever."""
        monkeypatch.setattr("mvirt_net.capture.MAX_INTERFACES", self.COUNT + 2)
        async with open_switch() as switch:
            await self.fill(switch)
            capture = await switch.start_capture(tmp_path / "all")
            for _ in range(3):
                await switch.add_nic(NicSpec(name="late", network="blue"))
                await switch.remove_nic("late")
            while switch.captures:
                await trio.lowlevel.checkpoint()
            assert capture.reason == "it has had too many NICs"
        assert len(read(tmp_path / "all").names()) == self.COUNT + 2

    async def test_switch_that_closes_meanwhile(self, tmp_path: Path) -> None:
        async with open_switch() as switch:
            await self.fill(switch)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.refused, switch, tmp_path / "all")
                while not any(nic.captures for nic in switch.nics.values()):
                    await trio.lowlevel.checkpoint()
                await switch.aclose()
            assert not switch.captures

    async def test_start_that_is_cancelled(self, tmp_path: Path) -> None:
        """What it has seen by then is counted as lost: counters never go back."""
        async with open_switch() as switch:
            await self.fill(switch)
            nic = switch.nics["nic0"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(switch.start_capture, tmp_path / "all")
                while not nic.captures:
                    await trio.lowlevel.checkpoint()
                nic.inject(UNKNOWN)
                assert switch.captured == Captured(frames=1)
                nursery.cancel_scope.cancel()
            assert not switch.captures
            assert switch.captured == Captured(frames=1, lost=1)
            assert not any(nic.captures for nic in switch.nics.values())

    async def fill(self, switch: Switch) -> None:
        await switch.add_network(NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/16"))
        for number in range(self.COUNT):
            await switch.add_nic(NicSpec(name=f"nic{number}", network="blue"))

    async def refused(self, switch: Switch, path: Path) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await switch.start_capture(path)


async def test_readers_that_do_not_read_are_waited_for_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Time is virtual here: all threads hang, and nothing else happens."""
    async with open_switch() as switch:
        pipes = [os.pipe() for _ in range(4)]
        for _, writer in pipes:
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, bytes(4096))
            os.set_blocking(writer, True)
            await switch.start_capture(writer)
        captures = switch.captures
        await wait_all_tasks_blocked()
        before = trio.current_time()
        await switch.aclose()
        assert trio.current_time() - before == FLUSH_LIMIT
        assert {capture.reason for capture in captures} == {"the file could not be written in time"}
        for reader, _ in pipes:
            os.close(reader)
        # Each thread closes its own.
        while any(is_fd(writer) for _, writer in pipes):
            await trio.to_thread.run_sync(time.sleep, 0.01)


def is_fd(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("key", "value"),
    [("snaplen", 0), ("snaplen", MAX_FRAME + 1), ("snaplen", 5_000_000_000), ("limit", 0)],
)
async def test_values_are_checked_before_anything_is_made(
    backend: TestBackend, tmp_path: Path, key: str, value: int
) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        await backend.switch.start_capture(tmp_path / "file", **{key: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"^{key}: "):
        CaptureSpec(tmp_path / "file", **{key: value})  # type: ignore[arg-type]
    assert not (tmp_path / "file").exists()
