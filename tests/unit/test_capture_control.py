"""Captures asked for while the daemon runs: what is refused, what is listed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio

from mvirt_net import ConfigError, DuplicateError, NotFoundError, TooManyCapturesError
from mvirt_net.capture import FLUSH_LIMIT, MAX_CAPTURES
from mvirt_net.capture_control import CaptureControl, CaptureRecord
from mvirt_net.errors import CaptureFileError
from tests.harness import GATEWAY_MAC, TestBackend
from tests.harness.exchanges import arp_gateway
from tests.harness.packets import ethernet_frame
from tests.harness.pcapng import PcapngFile

MAC, IP = "52:54:00:12:34:56", "10.0.0.5"


@pytest.fixture
async def backend(nursery: trio.Nursery) -> TestBackend:
    return await TestBackend.start(nursery, MAC, IP)


@pytest.fixture
def control(backend: TestBackend, tmp_path: Path) -> CaptureControl:
    return CaptureControl(backend.switch, tmp_path)


async def test_from_start_to_stop(
    backend: TestBackend, control: CaptureControl, tmp_path: Path
) -> None:
    client = await backend.connect()
    started = await control.start("vm.pcapng", nics=["test-nic"])
    assert started == CaptureRecord(
        file="vm.pcapng", nics=("test-nic",), frames=0, lost=0, bytes=0, ended=""
    )
    await arp_gateway(client, MAC, IP)
    assert control.get("vm.pcapng").frames == 2
    assert control.list() == [control.get("vm.pcapng")]
    stopped = await control.stop("vm.pcapng")
    path = tmp_path / "vm.pcapng"
    assert (stopped.frames, stopped.ended) == (2, "closed")
    assert stopped.bytes == path.stat().st_size
    assert len(PcapngFile.parse(path.read_bytes()).packets) == 2
    assert control.list() == []
    with pytest.raises(NotFoundError):
        await control.stop("vm.pcapng")


@pytest.mark.parametrize("file", ["", ".hidden", "a/b", "..", "a\n", "-x", "x" * 201])
async def test_names_stay_in_the_folder(control: CaptureControl, file: str) -> None:
    with pytest.raises(ConfigError, match=r"^file: "):
        await control.start(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [("nics", []), ("snaplen", 0), ("snaplen", 1 << 20), ("snaplen", 5_000_000_000), ("limit", 0)],
)
async def test_values_are_checked(
    control: CaptureControl, key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: "):
        await control.start("file", **{key: value})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


async def test_no_file_is_written_over(control: CaptureControl, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("precious")
    with pytest.raises(DuplicateError):
        await control.start("old")
    assert (tmp_path / "old").read_text() == "precious"
    await control.start("new")
    (tmp_path / "new").unlink()
    with pytest.raises(DuplicateError):
        await control.start("new")


async def test_no_file_is_left_when_it_is_refused(control: CaptureControl, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        await control.start("file", nics=["nobody"])
    for number in range(4):
        await control.start(str(number))
    with pytest.raises(TooManyCapturesError):
        await control.start("file")
    assert not (tmp_path / "file").exists()


async def test_folder_that_is_not_there(backend: TestBackend, tmp_path: Path) -> None:
    with pytest.raises(CaptureFileError, match="--capture-dir"):
        await CaptureControl(backend.switch, None).start("file")
    with pytest.raises(CaptureFileError, match="No such file"):
        await CaptureControl(backend.switch, tmp_path / "gone").start("file")


async def test_those_that_ended_are_listed_until_others_came(
    backend: TestBackend, control: CaptureControl
) -> None:
    client = await backend.connect()
    for number in range(MAX_CAPTURES + 1):
        await control.start(str(number), limit=1)
        while not control.get(str(number)).ended:
            await arp_gateway(client, MAC, IP)
    records = control.list()
    assert [record.file for record in records] == [str(n + 1) for n in range(MAX_CAPTURES)]
    assert {record.ended for record in records} == {"it has reached its limit"}


class TestStream:
    async def test_packets_come_while_it_runs(
        self, backend: TestBackend, control: CaptureControl
    ) -> None:
        client = await backend.connect()
        data = b""
        async with control.stream(nics=["test-nic"], snaplen=20) as pieces:
            await arp_gateway(client, MAC, IP)
            while len(data) < 100 or len(PcapngFile.parse(data).packets) < 2:
                data += await anext(pieces)
            assert control.list() == []
        assert not backend.switch.captures
        assert [len(packet.data) for packet in PcapngFile.parse(data).packets] == [20, 20]

    async def test_ends_with_its_limit(self, backend: TestBackend, control: CaptureControl) -> None:
        client = await backend.connect()
        async with control.stream(limit=1000) as pieces:
            while backend.switch.captures:
                await arp_gateway(client, MAC, IP)
            data = b"".join([piece async for piece in pieces])
        assert PcapngFile.parse(data).counts(0)[1] > 0

    async def test_who_does_not_read_is_not_waited_for(
        self,
        backend: TestBackend,
        control: CaptureControl,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A thread hangs, as the pipe is full, and would for longer than this test may take."""
        caplog.set_level(logging.INFO)
        client = await backend.connect()
        frame = ethernet_frame(GATEWAY_MAC, MAC, 0x88B5, bytes(1400))
        async with control.stream():
            while not backend.switch.captured.lost:
                await client.send_burst([frame] * 64)
            before = trio.current_time()
        assert trio.current_time() - before < FLUSH_LIMIT
        lines = [record for record in caplog.records if record.message == "capture ended"]
        assert [record.levelname for record in lines] == ["INFO"]

    async def test_refused(self, backend: TestBackend, control: CaptureControl) -> None:
        for nics, error in (([], ConfigError), (["nobody"], NotFoundError)):
            with pytest.raises(error):
                async with control.stream(nics=nics):
                    pass
        for number in range(4):
            await control.start(str(number))
        with pytest.raises(TooManyCapturesError):
            async with control.stream():
                pass
