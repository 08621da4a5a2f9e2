"""The harness's frontend against a recorder that speaks just enough of the protocol."""

from __future__ import annotations

import array
import os
import socket
import struct
from pathlib import Path
from typing import Self

import attrs
import pytest
import trio

from tests.harness.client import ClientOptions, VhostTestClient
from tests.harness.memory import Region
from tests.harness.vhost_user import (
    BackendHungUpError,
    BackendRefusedError,
    Connection,
    Feature,
    ProtocolFeature,
    Request,
    encode,
    encode_u64,
)

GET = {
    Request.GET_FEATURES: struct.pack("<Q", 0xFF_FFFF_FFFF),
    Request.GET_PROTOCOL_FEATURES: struct.pack("<Q", 0xFFFF),
    Request.GET_QUEUE_NUM: struct.pack("<Q", 2),
    Request.GET_MAX_MEM_SLOTS: struct.pack("<Q", 32),
    Request.GET_CONFIG: struct.pack("<III", 0, 6, 0) + b"\x52\x54\x00\xaa\xbb\xcc",
}


@attrs.define(eq=False)
class Recorder:
    """Answers every request and remembers it; `refuse` are those that get a non-zero answer."""

    path: Path
    seen: list[tuple[Request, int, bytes, int]] = attrs.field(factory=list)
    refuse: set[Request] = attrs.field(factory=set)
    hang_up_at: Request | None = None
    connections: int = 0

    @classmethod
    async def start(cls, nursery: trio.Nursery, folder: Path) -> Self:
        recorder = cls(folder / "recorder.sock")
        await nursery.start(recorder._serve)
        return recorder

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            await listener.bind(os.fspath(self.path))
            listener.listen()
            task_status.started()
            while True:
                stream, _ = await listener.accept()
                self.connections += 1
                with stream:
                    while await self._answer_one(stream):
                        pass

    async def _answer_one(self, stream: trio.socket.SocketType) -> bool:
        data, ancillary, _, _ = await stream.recvmsg(12, socket.CMSG_SPACE(32 * 4))
        if not data:
            return False
        fds = array.array("i", b"".join(payload for _, _, payload in ancillary))
        for fd in fds:
            os.close(fd)
        number, flags, size = struct.unpack("<III", data)
        payload = await stream.recv(size) if size else b""
        request = Request(number)
        self.seen.append((request, flags, payload, len(fds)))
        if request == self.hang_up_at:
            return False
        if request == Request.GET_VRING_BASE:
            await stream.send(encode(request, payload[:4] + struct.pack("<I", 7), 5))
        elif request in GET:
            await stream.send(encode(request, GET[request], 5))
        elif flags & 8:
            await stream.send(encode(request, encode_u64(request in self.refuse), 5))
        return True

    @property
    def requests(self) -> list[Request]:
        return [request for request, *_ in self.seen]


@pytest.fixture
async def recorder(nursery: trio.Nursery, tmp_path: Path) -> Recorder:
    return await Recorder.start(nursery, tmp_path)


VRING_SETUP = [
    Request.SET_VRING_NUM,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_BASE,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ENABLE,
]


async def test_order_of_the_handshake(nursery: trio.Nursery, recorder: Recorder) -> None:
    await VhostTestClient.connect(nursery, recorder.path)
    assert recorder.requests == [
        Request.SET_OWNER,
        Request.GET_FEATURES,
        Request.SET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        Request.SET_MEM_TABLE,
        *VRING_SETUP,
        *VRING_SETUP,
    ]


async def test_messages_of_the_handshake(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(
        nursery, recorder.path, regions=[Region(0, 1 << 20, user_offset=0x10000)], base=3
    )
    expected = [
        (Request.SET_OWNER, 1, b"", 0),
        (Request.GET_FEATURES, 1, b"", 0),
        (Request.SET_FEATURES, 1, struct.pack("<Q", 0x1_6001_0020), 0),
        (Request.GET_PROTOCOL_FEATURES, 1, b"", 0),
        (Request.SET_PROTOCOL_FEATURES, 1, struct.pack("<Q", 0x208), 0),
        (Request.SET_MEM_TABLE, 9, struct.pack("<IIQQQQ", 1, 0, 0, 1 << 20, 0x10000, 0), 1),
    ]
    for index, desc in ((0, 0x10000), (1, 0x13000)):
        addr = struct.pack("<IIQQQQ", index, 0, desc, desc + 0x2000, desc + 0x1000, 0)
        expected += [
            (Request.SET_VRING_NUM, 9, struct.pack("<II", index, 256), 0),
            (Request.SET_VRING_ADDR, 9, addr, 0),
            (Request.SET_VRING_BASE, 9, struct.pack("<II", index, 3), 0),
            (Request.SET_VRING_KICK, 9, struct.pack("<Q", index), 1),
            (Request.SET_VRING_CALL, 9, struct.pack("<Q", index), 1),
            (Request.SET_VRING_ENABLE, 9, struct.pack("<II", index, 1), 0),
        ]
    assert recorder.seen == expected
    assert client.rx_queue.desc_table == 0
    assert client.tx_queue.used_ring == 0x5000


async def test_first_receive_buffers(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path)
    assert client.rx_queue.outstanding == 16
    assert client.memory.load16(client.rx_queue.avail_ring + 2) == 16
    kick = client.vrings[0].kick
    assert kick is not None
    assert os.eventfd_read(kick) == 1
    assert struct.unpack("<QIHH", client.memory.read(0, 16)) == (0x6000, 2048, 2, 0)


async def test_features_are_what_both_want(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(
        nursery,
        recorder.path,
        features=Feature.VERSION_1 | Feature.MRG_RXBUF | (1 << 60),
        protocol_features=ProtocolFeature.MQ,
    )
    assert client.has_feature(Feature.MRG_RXBUF)
    assert not client.has_feature(1 << 60)
    assert Request.SET_PROTOCOL_FEATURES not in recorder.requests
    assert all(flags == 1 for _, flags, _, _ in recorder.seen)


async def test_polling_gives_no_descriptors(nursery: trio.Nursery, recorder: Recorder) -> None:
    await VhostTestClient.connect(nursery, recorder.path, poll_kick=True, poll_call=True)
    vring_fds = [
        (payload, fds)
        for request, _, payload, fds in recorder.seen
        if request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL)
    ]
    assert vring_fds == [(struct.pack("<Q", value), 0) for value in (0x100, 0x100, 0x101, 0x101)]


async def test_err_comes_before_enable(nursery: trio.Nursery, recorder: Recorder) -> None:
    await VhostTestClient.connect(nursery, recorder.path, err=True)
    position = recorder.requests.index(Request.SET_VRING_ERR)
    assert recorder.requests[position + 1] == Request.SET_VRING_ENABLE


async def test_handshake_step_by_step(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path, handshake=False)
    assert recorder.seen == []
    await client.negotiate()
    await client.share_memory()
    await client.connection.get_queue_num()
    assert recorder.requests[-2:] == [Request.SET_MEM_TABLE, Request.GET_QUEUE_NUM]


async def test_mac_from_config(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path)
    assert await client.get_mac_from_config() == bytes.fromhex("525400aabbcc")
    assert recorder.seen[-1][2] == struct.pack("<III", 0, 6, 0) + bytes(6)


async def test_refusal_is_an_exception(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path)
    recorder.refuse.add(Request.NET_SET_MTU)
    with pytest.raises(BackendRefusedError, match="request 20 was answered with 1"):
        await client.connection.set_mtu(1)


async def test_hanging_up_is_an_exception(nursery: trio.Nursery, recorder: Recorder) -> None:
    recorder.hang_up_at = Request.SET_MEM_TABLE
    before = open_fds()
    with pytest.raises(BackendHungUpError):
        await VhostTestClient.connect(nursery, recorder.path)
    await trio.testing.wait_all_tasks_blocked()
    assert open_fds() == before


async def test_raw_bytes_and_descriptors(nursery: trio.Nursery, recorder: Recorder) -> None:
    connection = await Connection.open(recorder.path)
    await connection.send_raw(encode(Request.SET_OWNER, b"", flags=1), fds=[0, 1, 2])
    await connection.get_features()
    assert recorder.seen[0] == (Request.SET_OWNER, 1, b"", 3)
    connection.close()


async def test_wait_hung_up(nursery: trio.Nursery, recorder: Recorder) -> None:
    recorder.hang_up_at = Request.SET_OWNER
    connection = await Connection.open(recorder.path)
    await connection.set_owner()
    await connection.wait_hung_up()
    with pytest.raises(BackendHungUpError):
        await connection.receive()
    connection.close()


async def test_nothing_received_is_too_slow(
    nursery: trio.Nursery, recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path)
    start = trio.current_time()
    with pytest.raises(trio.TooSlowError, match="no frame"):
        await client.recv_packet(timeout=2.0)
    assert trio.current_time() - start == 2.0
    assert not await client.wait_for_rx(timeout=1.0)
    with pytest.raises(trio.TooSlowError, match="completed 0/1"):
        await client.send_packet(bytes(14))
    assert client.pending_tx_count() == 1


async def test_connecting_again_resumes(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path)
    client.memory.store16(client.tx_queue.used_ring + 2, 5)
    recorder.seen.clear()
    await client.reconnect()
    bases = [payload for request, _, payload, _ in recorder.seen if request == 10]
    assert bases == [struct.pack("<II", 0, 0), struct.pack("<II", 1, 5)]
    assert recorder.connections == 2
    assert client.rx_queue.outstanding == 16


async def test_stopping_tells_the_base(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path)
    assert await client.stop_vring(1) == 7
    assert recorder.seen[-1] == (Request.GET_VRING_BASE, 9, struct.pack("<II", 1, 0), 0)


async def test_reset_starts_again_at_zero(nursery: trio.Nursery, recorder: Recorder) -> None:
    client = await VhostTestClient.connect(nursery, recorder.path, base=65535)
    held = client.memory.allocated
    client.send_packet_nowait(bytes(60))
    recorder.seen.clear()
    await client.reset_driver()
    assert recorder.requests == [Request.GET_VRING_BASE] * 2 + VRING_SETUP * 2
    assert client.memory.load16(client.rx_queue.avail_ring + 2) == 16
    assert client.memory.load16(client.tx_queue.avail_ring + 2) == 0
    assert client.pending_tx_count() == 0
    assert client.memory.allocated == held


async def test_aclose_disables_and_leaves_nothing(
    nursery: trio.Nursery, recorder: Recorder
) -> None:
    before = open_fds()
    client = await VhostTestClient.connect(nursery, recorder.path, err=True)
    await client.aclose()
    assert recorder.requests[-2:] == [Request.SET_VRING_ENABLE] * 2
    assert [payload[4] for _, _, payload, _ in recorder.seen[-2:]] == [0, 0]
    await trio.testing.wait_all_tasks_blocked()
    assert open_fds() == before
    await client.aclose()


async def test_the_end_of_the_nursery_leaves_nothing(tmp_path: Path) -> None:
    before = open_fds()
    async with trio.open_nursery() as nursery:
        recorder = await Recorder.start(nursery, tmp_path)
        await VhostTestClient.connect(nursery, recorder.path, err=True)
        nursery.cancel_scope.cancel()
    assert open_fds() == before


@pytest.mark.parametrize("ring_size", [2, 256, 1024, 32768])
async def test_default_memory_holds_every_ring(ring_size: int) -> None:
    memory = ClientOptions(ring_size=ring_size).guest_memory()
    try:
        (region,) = memory.get_region_info()
        assert region.guest_addr == 0
        assert region.size >= max(2 << 20, 2 * 26 * ring_size)
    finally:
        memory.close()


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}
