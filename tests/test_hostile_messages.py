"""What a hostile frontend may say, row by row of the project's list (M1 to M56), on a real socket.

Each row has its unit tests where it is decided; here the whole backend is asked, and afterwards it
must serve the same frontend where it has refused a request, and others in any case.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.harness import GATEWAY_IP, VhostTestClient
from tests.harness.client import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    RX_QUEUE_IDX,
    TX_QUEUE_IDX,
)
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway
from tests.harness.memory import Region, RegionInfo
from tests.harness.packets import arp_request
from tests.harness.scene import IP, MAC, Scene
from tests.harness.vhost_user import (
    HEADER,
    NEED_REPLY_FLAG,
    VERSION,
    BackendHungUpError,
    BackendRefusedError,
    Connection,
    ProtocolFeature,
    Request,
    encode,
    encode_mem_table,
    encode_state,
    encode_u64,
    encode_vring_addr,
)

pytestmark = virtual_time
"""Time stands still while anybody has anything to do, so no time-out depends on the machine."""

EVERY_PROTOCOL_FEATURE = (
    DEFAULT_PROTOCOL_FEATURES
    | ProtocolFeature.MQ
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
PAGE = 4096
USER = 1 << 40
"""User address of guest address 0."""
REGION = Region(0, 512 * PAGE, user_offset=USER)

Bad: TypeAlias = tuple[int, bytes, int]
"""Request, payload, number of eventfds."""


async def half_way(
    scene: Scene, protocol_features: int = EVERY_PROTOCOL_FEATURE
) -> VhostTestClient:
    """A frontend that has shared its memory and set up no ring yet."""
    client = await scene.connect(
        protocol_features=protocol_features, regions=[REGION], handshake=False
    )
    await client.negotiate()
    await client.share_memory()
    return client


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    """So many eventfds, closed at the end."""
    fds = [os.eventfd(0) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def regions(*specs: tuple[int, int, int, int]) -> bytes:
    """A memory table of (guest, size, user, offset)."""
    return encode_mem_table([RegionInfo(*spec, fd=-1) for spec in specs])


def config(offset: int, size: int, flags: int = 0) -> bytes:
    return struct.pack("<III", offset, size, flags)


def addr(desc: int = 0, used: int = 0x2000, avail: int = 0x1000) -> bytes:
    """Ring parts by guest address, for a ring of 256 descriptors."""
    return encode_vring_addr(1, USER + desc, USER + used, USER + avail)


BIG = 2**64 - PAGE
TABLE, STATE, U64 = Request.SET_MEM_TABLE, Request.SET_VRING_NUM, Request.SET_FEATURES

REFUSED: dict[str, Bad] = {
    "m06 SET_FEATURES short": (U64, bytes(7), 0),
    "m06 SET_FEATURES long": (U64, bytes(9), 0),
    "m06 SET_VRING_NUM short": (STATE, bytes(7), 0),
    "m06 SET_VRING_NUM empty": (STATE, b"", 0),
    "m06 SET_VRING_ADDR long": (Request.SET_VRING_ADDR, addr() + b"\0", 0),
    "m06 SET_MEM_TABLE short": (TABLE, regions((1 << 30, PAGE, BIG // 2, 0))[:-1], 1),
    "m06 SET_VRING_KICK short": (Request.SET_VRING_KICK, bytes(7), 1),
    "m10 0": (0, b"", 0),
    "m10 45": (45, b"", 0),
    "m10 largest": (0x7FFF_FFFF, b"", 0),
    "m10 with descriptors": (4711, b"1234", 3),
    "m12 unoffered feature": (U64, encode_u64(1 << 63), 0),
    "m12 UFO": (U64, encode_u64(DEFAULT_FEATURES | 1 << 10), 0),
    "m13 unoffered protocol feature": (Request.SET_PROTOCOL_FEATURES, encode_u64(1 << 12), 0),
    "m15 SET_VRING_NUM with a descriptor": (STATE, encode_state(1, 256), 1),
    "m15 SET_FEATURES with descriptors": (U64, encode_u64(DEFAULT_FEATURES), 8),
    "m16 no kick": (Request.SET_VRING_KICK, encode_u64(1), 0),
    "m16 two kicks": (Request.SET_VRING_KICK, encode_u64(1), 2),
    "m17 kick and its absence": (Request.SET_VRING_KICK, encode_u64(0x101), 1),
    "m17 call and its absence": (Request.SET_VRING_CALL, encode_u64(0x100), 1),
    "m24 no region": (TABLE, struct.pack("<II", 0, 0), 0),
    "m24 nine regions": (TABLE, struct.pack("<II", 9, 0) + bytes(9 * 32), 8),
    "m24 all regions": (TABLE, struct.pack("<II", 0xFFFF_FFFF, 0), 0),
    "m24 more regions than descriptors": (
        TABLE,
        regions((0, PAGE, USER, 0), (PAGE, PAGE, 2 * USER, 0)),
        1,
    ),
    "m25 size 0": (TABLE, regions((0, 0, USER, 0)), 1),
    "m25 guest address overflows": (TABLE, regions((BIG, 2 * PAGE, USER, 0)), 1),
    "m25 user address overflows": (TABLE, regions((0, 2 * PAGE, BIG, 0)), 1),
    "m25 offset overflows": (TABLE, regions((0, 2 * PAGE, USER, BIG)), 1),
    "m25 size 2^63": (TABLE, regions((0, 1 << 63, USER, 0)), 1),
    "m26 guest addresses overlap": (
        TABLE,
        regions((0, 2 * PAGE, USER, 0), (PAGE, PAGE, 2 * USER, 0)),
        2,
    ),
    "m26 user addresses overlap": (
        TABLE,
        regions((0, 2 * PAGE, USER, 0), (4 * PAGE, PAGE, USER + PAGE, 0)),
        2,
    ),
    "m28 an eventfd is no memory": (TABLE, regions((0, PAGE, USER, 0)), 1),
    "m33 unknown region": (
        Request.REM_MEM_REG,
        bytes(8) + struct.pack("<QQQQ", PAGE, PAGE, USER, 0),
        0,
    ),
    "m34 ring 2": (STATE, encode_state(2, 256), 0),
    "m34 ring 256": (STATE, encode_state(256, 256), 0),
    "m34 ring 65536": (STATE, encode_state(0x10000, 256), 0),
    "m34 last ring": (Request.SET_VRING_ENABLE, encode_state(0xFFFF_FFFF, 1), 0),
    "m34 kick of ring 2": (Request.SET_VRING_KICK, encode_u64(2), 1),
    "m34 kick with high bits": (Request.SET_VRING_KICK, encode_u64(1 << 32), 1),
    "m35 size 0": (STATE, encode_state(1, 0), 0),
    "m35 size 3": (STATE, encode_state(1, 3), 0),
    "m35 size 255": (STATE, encode_state(1, 255), 0),
    "m35 size 65536": (STATE, encode_state(1, 65536), 0),
    "m35 size 2^31": (STATE, encode_state(1, 1 << 31), 0),
    "m36 unaligned descriptors": (Request.SET_VRING_ADDR, addr(desc=8), 0),
    "m36 unaligned avail": (Request.SET_VRING_ADDR, addr(avail=0x1001), 0),
    "m36 unaligned used": (Request.SET_VRING_ADDR, addr(used=0x2002), 0),
    "m36 outside": (Request.SET_VRING_ADDR, addr(desc=REGION.size), 0),
    "m36 over the end": (Request.SET_VRING_ADDR, addr(desc=REGION.size - 16), 0),
    "m36 all the same": (Request.SET_VRING_ADDR, addr(0, 0, 0), 0),
    "m36 around the end of addresses": (
        Request.SET_VRING_ADDR,
        encode_vring_addr(1, 2**64 - 256, USER, USER + 0x4000),
        0,
    ),
    "m36 unknown flags": (
        Request.SET_VRING_ADDR,
        encode_vring_addr(1, USER, USER + 0x2000, USER + 0x1000, flags=2),
        0,
    ),
    "m37 guest addresses": (
        Request.SET_VRING_ADDR,
        encode_vring_addr(1, 0x10000, 0x12000, 0x11000),
        0,
    ),
    "m38 base 65536": (Request.SET_VRING_BASE, encode_state(1, 65536), 0),
    "m39 enable 2": (Request.SET_VRING_ENABLE, encode_state(1, 2), 0),
    "m46 SET_CONFIG": (Request.SET_CONFIG, config(0, 6) + bytes(6), 0),
    "m47 MTU 0": (Request.NET_SET_MTU, encode_u64(0), 0),
    "m47 MTU 67": (Request.NET_SET_MTU, encode_u64(67), 0),
    "m47 MTU 65536": (Request.NET_SET_MTU, encode_u64(65536), 0),
    "m48 backend channel": (21, b"", 1),
    "m49 inflight": (32, bytes(20), 1),
    "m50 postcopy": (29, b"", 1),
    "m50 crypto": (27, bytes(8), 0),
}


@pytest.mark.parametrize(("request_", "payload", "fds"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused_with_an_answer(
    scene: Scene, request_: int, payload: bytes, fds: int
) -> None:
    """The answer is not zero, nothing has changed, and the conversation goes on."""
    client = await half_way(scene)
    await client.connection.set_vring_num(TX_QUEUE_IDX, 256)
    with eventfds(fds) as attached, pytest.raises(BackendRefusedError):
        await client.connection.command(request_, payload, attached)
    for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
        await client.start_vring(index, 0)
    client.fill_rx_queue()
    await arp_gateway(client, MAC, IP)


@pytest.mark.parametrize(("request_", "payload", "fds"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused_where_no_answer_was_asked_for(
    scene: Scene, request_: int, payload: bytes, fds: int
) -> None:
    """There is no other way to say so than to hang up."""
    client = await half_way(scene)
    await client.connection.set_vring_num(TX_QUEUE_IDX, 256)
    with eventfds(fds) as attached:
        await client.connection.send_raw(encode(request_, payload, VERSION), attached)
    await client.connection.wait_hung_up()


BROKEN: dict[str, list[bytes]] = {
    "m03 half a header": [HEADER.pack(Request.SET_OWNER, VERSION, 0)[:7]],
    "m03 no payload": [HEADER.pack(Request.SET_FEATURES, VERSION, 8)],
    "m05 longest payload": [HEADER.pack(Request.SET_FEATURES, VERSION, 0xFFFF_FFFF)],
    "m05 payload past every maximum": [HEADER.pack(Request.SET_FEATURES, VERSION, 0x1001)],
    "m07 version 0": [encode(Request.GET_FEATURES, b"", 0)],
    "m07 version 2": [encode(Request.GET_FEATURES, b"", 2)],
    "m07 version 3": [encode(Request.GET_FEATURES, b"", 3)],
    "m08 a reply": [encode(Request.GET_FEATURES, b"", VERSION | 4)],
    "m08 reserved flag": [encode(Request.GET_FEATURES, b"", VERSION | 1 << 31)],
    "m50 postcopy, which has a reply of its own": [encode(28, b"", VERSION | NEED_REPLY_FLAG)],
    "m50 crypto, which has a reply of its own": [encode(26, bytes(8), VERSION | NEED_REPLY_FLAG)],
}


@pytest.mark.parametrize("parts", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_conversation(scene: Scene, parts: list[bytes]) -> None:
    """An unfinished message gets some seconds to be finished; for the rest there is no hope."""
    client = await half_way(scene)
    for part in parts:
        await client.connection.send_raw(part)
    await client.connection.wait_hung_up(timeout=10)


async def test_m01_connections_that_say_nothing(scene: Scene) -> None:
    for _ in range(300):
        (await Connection.open(scene.backend.socket_path)).close()


async def test_m02_second_frontend_has_to_wait(scene: Scene) -> None:
    first = await scene.connect()
    second = await Connection.open(scene.backend.socket_path)
    await second.send_raw(encode(Request.GET_FEATURES))
    await second.wait_hung_up()
    second.close()
    await arp_gateway(first, MAC, IP)


async def test_m04_message_that_comes_byte_by_byte(scene: Scene) -> None:
    """Slowness is no crime while the whole comes in time, and costs nobody else anything."""
    client = await half_way(scene)
    message = encode(Request.SET_FEATURES, encode_u64(client.features), VERSION | NEED_REPLY_FLAG)
    for byte in message:
        await client.connection.send_raw(bytes([byte]))
        await scene.ask_bystander()
    assert (await client.connection.receive()).payload == bytes(8)
    await client.start_device()
    await arp_gateway(client, MAC, IP)


async def test_m09_need_reply_before_it_was_agreed(scene: Scene) -> None:
    client = await scene.connect(handshake=False)
    await client.connection.send_raw(encode(Request.SET_OWNER, b"", VERSION | NEED_REPLY_FLAG))
    reply = await client.connection.request(Request.GET_FEATURES)
    assert reply is not None
    assert reply.request == Request.GET_FEATURES


@pytest.mark.parametrize("fds", [9, 32, 253])
async def test_m16_flood_of_descriptors(scene: Scene, fds: int) -> None:
    client = await half_way(scene)
    with eventfds(fds) as attached, contextlib.suppress(BackendRefusedError, BackendHungUpError):
        await client.connection.command(Request.SET_VRING_KICK, encode_u64(1), attached)


async def test_m18_descriptors_with_the_payload(scene: Scene) -> None:
    client = await half_way(scene)
    message = encode(Request.SET_VRING_KICK, encode_u64(1))
    with eventfds(1) as attached:
        await client.connection.send_raw(message[:12])
        await client.connection.send_raw(message[12:], attached)
    await client.connection.wait_hung_up()


async def test_m20_m52_requests_without_end(scene: Scene) -> None:
    """Nobody reads the replies; others are served, and at last the backend hangs up."""
    client = await half_way(scene)
    burst = encode(Request.GET_FEATURES) * 200

    async def flood() -> None:
        with contextlib.suppress(BackendHungUpError):
            while True:
                await client.connection.send_raw(burst)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            for _ in range(5):
                await scene.ask_bystander()


NoEventfd: TypeAlias = Callable[[], int]


def a_file() -> int:
    fd, path = tempfile.mkstemp()
    os.unlink(path)  # noqa: PTH108
    return fd


def a_closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def a_socket() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


NO_EVENTFDS: dict[str, NoEventfd] = {
    "directory": lambda: os.open("/", os.O_RDONLY),
    "file": a_file,
    "pipe": a_closed_pipe,
    "zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "socket": a_socket,
    "memfd": lambda: os.memfd_create("m"),
}


@pytest.mark.parametrize(
    "request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]
)
@pytest.mark.parametrize("make", NO_EVENTFDS.values(), ids=NO_EVENTFDS.keys())
async def test_m21_descriptors_that_are_no_eventfds(
    scene: Scene, make: NoEventfd, request_: Request
) -> None:
    client = await half_way(scene)
    fd = make()
    try:
        with pytest.raises(BackendRefusedError):
            await client.connection.command(request_, encode_u64(1), [fd])
    finally:
        os.close(fd)
    await client.start_device()
    await arp_gateway(client, MAC, IP)


async def test_m21_call_that_is_full_and_blocks(scene: Scene) -> None:
    """The device must not wait for room in it."""
    client = await scene.connect()
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    try:
        await client.connection.set_vring_call(TX_QUEUE_IDX, full)
        client.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
        await client.recv_packet()
    finally:
        os.close(full)


async def test_m22_one_eventfd_for_everything(scene: Scene) -> None:
    client = await scene.connect(driver=False)
    with eventfds(1) as (fd,):
        for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
            await client.connection.set_vring_kick(index, fd)
            await client.connection.set_vring_call(index, fd)
        client.queue_tx(arp_request(MAC, IP, GATEWAY_IP))
        os.eventfd_write(fd, 1)
        await wait_all_tasks_blocked()
        assert client.rx_queue.used_count() == 1


async def test_m40_stopping_what_does_not_run(scene: Scene) -> None:
    client = await half_way(scene)
    for _ in range(3):
        assert await client.stop_vring(TX_QUEUE_IDX) == 0
    await client.start_device()
    await arp_gateway(client, MAC, IP)
    assert [await client.stop_vring(TX_QUEUE_IDX) for _ in range(3)] == [1, 1, 1]


async def test_m42_kick_replaced_over_and_over(scene: Scene) -> None:
    client = await scene.connect()
    kick = client.vrings[TX_QUEUE_IDX].kick
    for number in range(200):
        await client.connection.set_vring_kick(TX_QUEUE_IDX, kick if number % 2 else None)
    await arp_gateway(client, MAC, IP)


async def test_m43_resets_while_rings_run(scene: Scene) -> None:
    """RESET_OWNER changes nothing; RESET_DEVICE forgets the rings."""
    client = await scene.connect(protocol_features=EVERY_PROTOCOL_FEATURE)
    await client.connection.command(Request.RESET_OWNER)
    await arp_gateway(client, MAC, IP)
    await client.connection.reset_device()
    client.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    assert client.pending_tx_count() == 1


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0), (0, 257), (256, 1), (250, 7), (0xFFFF_FFFF, 2), (2, 0xFFFF_FFFF)]
)
async def test_m45_config_space_that_is_not_there(scene: Scene, offset: int, size: int) -> None:
    client = await half_way(scene)
    body = bytes(min(size, 300))
    reply = await client.connection.request(Request.GET_CONFIG, config(offset, size) + body)
    assert reply is not None
    assert reply.payload == b""
    await client.start_device()
    await arp_gateway(client, MAC, IP)


@pytest.mark.parametrize("size", [1, 6, 8, 12, 17, 24, 60, 256])
async def test_m45_config_space_of_any_length(scene: Scene, size: int) -> None:
    client = await half_way(scene)
    known = bytes.fromhex(MAC.replace(":", "")) + struct.pack("<HHH", 1, 0, 1500)
    space = await client.connection.get_config(0, size)
    assert space[:8] == known[:size][:8]
    assert space[10:12] == known[:size][10:12]
    assert not any(space[12:])


async def test_m54_reconnects_while_frames_flow(scene: Scene) -> None:
    for _ in range(20):
        client = await scene.connect()
        await client.send_burst([arp_request(MAC, IP, GATEWAY_IP)] * 30)
        client.disconnect()
