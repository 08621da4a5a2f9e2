"""What a hostile frontend may say, row by row of the project's list (M1 to M57), on a real socket.

Each row has its unit tests where it is decided; here the whole backend is asked, and afterwards it
must serve the same frontend where it has refused a request, and others in any case.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net.dataplane.channel import MESSAGE_TIME_LIMIT, REPLY_TIME_LIMIT
from mvirt_net.dataplane.mapping import MAPPING_TIME_LIMIT, _turn
from mvirt_net.ffi import Mapping
from tests.harness import GATEWAY_IP, VhostTestClient
from tests.harness.client import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    RX_QUEUE_IDX,
    TX_QUEUE_IDX,
)
from tests.harness.clock import virtual_time
from tests.harness.exchanges import arp_gateway
from tests.harness.footprint import shared_mappings
from tests.harness.memory import Region, RegionInfo
from tests.harness.multitude import watched
from tests.harness.packets import arp_request, is_arp_reply
from tests.harness.scene import IP, MAC, Scene
from tests.harness.vhost_user import (
    HEADER,
    NEED_REPLY_FLAG,
    OWN_REPLY,
    VERSION,
    BackendHungUpError,
    BackendRefusedError,
    Connection,
    Feature,
    ProtocolFeature,
    Request,
    encode,
    encode_mem_table,
    encode_single_region,
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
    "m34 ring 16": (STATE, encode_state(16, 256), 0),
    "m34 ring 256": (STATE, encode_state(256, 256), 0),
    "m34 ring 65536": (STATE, encode_state(0x10000, 256), 0),
    "m34 last ring": (Request.SET_VRING_ENABLE, encode_state(0xFFFF_FFFF, 1), 0),
    "m34 kick of ring 16": (Request.SET_VRING_KICK, encode_u64(16), 1),
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
    "m36 before the size": (
        Request.SET_VRING_ADDR,
        encode_vring_addr(0, USER, USER + 0x2000, USER + 0x1000),
        0,
    ),
    "m36 one byte over the end": (Request.SET_VRING_ADDR, addr(used=REGION.size - 0x804), 0),
    "m36 avail on desc": (Request.SET_VRING_ADDR, addr(avail=0xFFE), 0),
    "m36 null beside others": (
        Request.SET_VRING_ADDR,
        encode_vring_addr(1, USER, USER + 0x2000, 0),
        0,
    ),
    "m36 log without LOG_ALL": (
        Request.SET_VRING_ADDR,
        encode_vring_addr(1, USER, USER + 0x2000, USER + 0x1000, flags=1, log=USER),
        0,
    ),
    "m44 log": (Request.SET_LOG_BASE, struct.pack("<QQ", 0, 0), 1),
    "m44 log whose offset overflows": (Request.SET_LOG_BASE, struct.pack("<QQ", 4096, BIG), 1),
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


UNFINISHED: dict[str, bytes] = {
    "m04 a byte": b"\1",
    "m04 half a header": HEADER.pack(Request.SET_OWNER, VERSION, 0)[:7],
    "m04 no payload": HEADER.pack(Request.SET_FEATURES, VERSION, 8),
}


@pytest.mark.parametrize("part", UNFINISHED.values(), ids=UNFINISHED.keys())
async def test_m04_message_that_never_ends(scene: Scene, part: bytes) -> None:
    """It gets some seconds to be finished, in which others are served."""
    client = await half_way(scene)
    await client.connection.send_raw(part)
    await scene.ask_bystander()
    await client.connection.wait_hung_up(timeout=MESSAGE_TIME_LIMIT + 1)


@pytest.mark.parametrize("part", UNFINISHED.values(), ids=UNFINISHED.keys())
async def test_m03_end_inside_a_message(scene: Scene, part: bytes) -> None:
    """The next frontend has its turn at once."""
    client = await half_way(scene)
    await client.connection.send_raw(part)
    client.disconnect()
    with trio.fail_after(0.1):
        await arp_gateway(await scene.connect(), MAC, IP)


BROKEN: dict[str, list[bytes]] = {
    "m05 longest payload": [HEADER.pack(Request.SET_FEATURES, VERSION, 0xFFFF_FFFF)],
    "m05 payload past every maximum": [HEADER.pack(Request.SET_FEATURES, VERSION, 0x1001)],
    "m07 version 0": [encode(Request.GET_FEATURES, b"", 0)],
    "m07 version 2": [encode(Request.GET_FEATURES, b"", 2)],
    "m07 version 3": [encode(Request.GET_FEATURES, b"", 3)],
    "m08 a reply": [encode(Request.GET_FEATURES, b"", VERSION | 4)],
    "m08 reserved flag": [encode(Request.GET_FEATURES, b"", VERSION | 1 << 31)],
    "m49 inflight, which has a reply of its own": [
        encode(31, struct.pack("<QQHH", 0, 0, queues, size), VERSION | NEED_REPLY_FLAG)
        for queues, size in ((0, 0), (65535, 65535))
    ],
    "m50 postcopy, which has a reply of its own": [encode(28, b"", VERSION | NEED_REPLY_FLAG)],
    "m50 crypto, which has a reply of its own": [encode(26, bytes(8), VERSION | NEED_REPLY_FLAG)],
}


@pytest.mark.parametrize("parts", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_conversation(scene: Scene, parts: list[bytes]) -> None:
    """There is no hope for it, so nothing more is waited for."""
    client = await half_way(scene)
    for part in parts:
        await client.connection.send_raw(part)
    await client.connection.wait_hung_up(timeout=MESSAGE_TIME_LIMIT / 2)


async def test_m01_connections_that_say_nothing(scene: Scene) -> None:
    for number in range(2_000):
        (await Connection.open(scene.backend.socket_path)).close()
        if number % 100 == 0:
            await wait_all_tasks_blocked()


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


def a_connected_socket() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def an_epoll() -> int:
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


NO_EVENTFDS: dict[str, NoEventfd] = {
    "directory": lambda: os.open("/", os.O_RDONLY),
    "file": a_file,
    "pipe": a_closed_pipe,
    "zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "socket": a_socket,
    "connected socket": a_connected_socket,
    "epoll": an_epoll,
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


async def test_m21_call_that_is_made_to_block_afterwards(scene: Scene) -> None:
    """Both ends share its flags, so that the device has made it non-blocking is no protection."""
    client = await scene.connect()
    full = os.eventfd(0)
    try:
        await client.connection.set_vring_call(TX_QUEUE_IDX, full)
        os.eventfd_write(full, 2**64 - 2)
        os.set_blocking(full, True)
        client.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
        await client.recv_packet()
    finally:
        os.close(full)


async def wait_for_service(scene: Scene) -> None:
    """The next frontend has to wait for what the ones before it have done."""
    with contextlib.closing(await Connection.open(scene.backend.socket_path)) as connection:
        await connection.send_raw(encode(Request.GET_FEATURES))
        await connection.receive(timeout=3600)


async def test_m21_call_that_wakes_a_multitude_again_and_again(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Its NIC waits for as long as leaves the others nearly all of their time, and says so."""
    nic = scene.backend.nic
    slow = os.eventfd(0)
    try:
        with watched(slow, 500):
            for _ in range(2):
                client = await scene.connect(
                    driver=False, features=DEFAULT_FEATURES & ~Feature.EVENT_IDX
                )
                await client.connection.set_vring_call(TX_QUEUE_IDX, slow)
                for _ in range(3):
                    client.send_packet_nowait(arp_request(MAC, IP, GATEWAY_IP))
                    await wait_all_tasks_blocked()
                await scene.ask_bystander()
                await scene.send_attackers_away()
                began = trio.current_time()
                await wait_for_service(scene)
                assert trio.current_time() - began > 1
    finally:
        os.close(slow)
    assert nic.stats().slow_signals == 4
    told = [record for record in caplog.records if "has to wait" in record.message]
    assert len(told) == 2


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


# Each message id


SIZES: dict[int, int] = {
    **dict.fromkeys((2, 7, 8, 10, 11, 12, 13, 14, 16, 18, 19, 20), 8),
    **dict.fromkeys((5, 9, 37, 38), 40),
    **dict.fromkeys((24, 25), 13),
    7: 0,
}
"""Bytes of a payload that fits; 0 for all the others."""
WITH_VALUE = OWN_REPLY - {Request.GET_CONFIG}
"""Requests whose replies cannot express an error."""
ONE_FD = {Request.SET_LOG_FD, Request.REM_MEM_REG, Request.SET_MEM_TABLE, Request.ADD_MEM_REG}
TAKES_FDS = ONE_FD | {Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR}


async def assert_refused(client: VhostTestClient, request: int, body: bytes, fds: int) -> None:
    """In the way that the request has: an answer that is not zero, an empty one, or the end."""
    with eventfds(fds) as attached:
        await client.connection.send_raw(encode(request, body, VERSION | NEED_REPLY_FLAG), attached)
    if request in WITH_VALUE or request in NEVER_WITH_VALUE:
        await client.connection.wait_hung_up()
        return
    reply = await client.connection.receive()
    expected = b"" if request == Request.GET_CONFIG else encode_u64(1)
    assert (reply.request, reply.payload) == (request, expected)


NEVER_WITH_VALUE = {22, 26, 28, 30, 31, 40, 41, 42, 43, 44}
"""Requests that are not supported, and whose replies cannot say so."""


@pytest.mark.parametrize("request_", Request)
async def test_m06_payload_of_another_size(scene: Scene, request_: Request) -> None:
    """Each request one byte shorter, one longer, and empty, with the descriptors that it takes."""
    size = SIZES.get(request_, 0)
    fds = int(request_ in TAKES_FDS and request_ != Request.REM_MEM_REG)
    for wrong in {size - 1, size + 1, 0} - {-1, size}:
        client = await half_way(scene)
        await assert_refused(client, request_, bytes(wrong), fds)
        await scene.send_attackers_away()


@pytest.mark.parametrize("request_", range(1, 45))
@pytest.mark.parametrize("fds", [1, 15])
async def test_m15_descriptors_with_any_request(scene: Scene, request_: int, fds: int) -> None:
    """One too many of them: they are closed, which the scene sees, and the request is refused."""
    client = await half_way(scene)
    await client.connection.set_vring_num(TX_QUEUE_IDX, 256)
    body = bytes(SIZES.get(request_, 0))
    if request_ in (Request.GET_CONFIG, Request.SET_CONFIG):
        body = config(0, 1) + b"\0"
    await assert_refused(client, request_, body, fds + (request_ in TAKES_FDS))


@pytest.mark.parametrize("fds", [17, 253])
async def test_m16_more_descriptors_than_any_request_takes(scene: Scene, fds: int) -> None:
    """The kernel has cut them off (MSG_CTRUNC), so nobody knows what was meant."""
    client = await half_way(scene)
    with eventfds(fds) as attached:
        message = encode(Request.SET_VRING_KICK, encode_u64(1), VERSION | NEED_REPLY_FLAG)
        await client.connection.send_raw(message, attached)
    await client.connection.wait_hung_up()


@pytest.mark.parametrize("at", [1, 6, 11])
async def test_m18_descriptors_with_the_second_half_of_a_header(scene: Scene, at: int) -> None:
    client = await half_way(scene)
    message = encode(Request.SET_VRING_KICK, encode_u64(1))
    with eventfds(2) as (first, second):
        await client.connection.send_raw(message[:at], [first])
        await client.connection.send_raw(message[at:], [second])
    await client.connection.wait_hung_up()


async def test_m19_credentials_are_ignored(scene: Scene) -> None:
    """So is a byte out of band, and the message itself is served."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        await sock.connect(os.fspath(scene.backend.socket_path))
        credentials = struct.pack("=iii", os.getpid(), os.getuid(), os.getgid())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
        await sock.sendmsg([encode(Request.GET_FEATURES)], ancillary)
        assert len(await sock.recv(100)) == HEADER.size + 8
        await sock.send(b"!", socket.MSG_OOB)
        await sock.send(encode(Request.GET_FEATURES))
        assert len(await sock.recv(100)) == HEADER.size + 8


async def test_m23_kick_that_is_always_readable(scene: Scene) -> None:
    """It keeps its own task busy, for one bounded turn after another, and nobody else's."""
    scene.keeps_busy = True
    client = await scene.connect()
    endless = os.eventfd(0, os.EFD_SEMAPHORE)
    os.eventfd_write(endless, 2**64 - 2)
    try:
        for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
            await client.connection.set_vring_kick(index, endless)
        for _ in range(20):
            await scene.ask_bystander()
        await arp_gateway(client, MAC, IP)
    finally:
        os.close(endless)


# Memory that cannot be had


@attrs.frozen
class BadMemory:
    """A file, and a region of it."""

    make: NoEventfd
    size: int = PAGE
    offset: int = 0


def a_memfd(size: int, flags: int = 0) -> int:
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | flags)
    os.ftruncate(fd, size)
    return fd


def read_only() -> int:
    fd = a_memfd(PAGE)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def sealed() -> int:
    fd = a_memfd(PAGE, os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return fd


def large_file() -> int:
    """On the disk, of the right size."""
    fd = a_file()
    os.ftruncate(fd, PAGE)
    return fd


HUGE_PAGE = 2 << 20

BAD_MEMORY: dict[str, BadMemory] = {
    "m27 offset beyond the file": BadMemory(lambda: a_memfd(PAGE), offset=PAGE),
    "m27 offset not on a page": BadMemory(lambda: a_memfd(2 * PAGE), offset=512),
    "m27 size beyond the file": BadMemory(lambda: a_memfd(PAGE), size=2 * PAGE),
    "m27 empty file": BadMemory(lambda: a_memfd(0)),
    "m28 a closed pipe": BadMemory(a_closed_pipe),
    "m28 /dev/zero": BadMemory(lambda: os.open("/dev/zero", os.O_RDWR)),
    "m28 a directory": BadMemory(lambda: os.open("/", os.O_RDONLY)),
    "m28 a socket": BadMemory(a_socket),
    "m28 a file of /proc": BadMemory(lambda: os.open("/proc/self/mem", os.O_RDWR)),
    "m28 read-only": BadMemory(read_only),
    "m28 sealed against writing": BadMemory(sealed),
    "m30 2^46 bytes": BadMemory(lambda: a_memfd(1 << 46), size=1 << 46),
    "m30 2^62 bytes": BadMemory(lambda: a_memfd(1 << 62), size=1 << 62),
    "m31 half a huge page": BadMemory(
        lambda: a_memfd(HUGE_PAGE, os.MFD_HUGETLB | os.MFD_HUGE_2MB), size=HUGE_PAGE // 2
    ),
}


@pytest.mark.parametrize("bad", BAD_MEMORY.values(), ids=BAD_MEMORY.keys())
async def test_m26_to_m31_memory_that_cannot_be_had(scene: Scene, bad: BadMemory) -> None:
    """In a table, which stays as it was, and as a region to be added to it."""
    client = await half_way(scene)
    region = RegionInfo(1 << 40, bad.size, 1 << 50, bad.offset, fd=bad.make())
    try:
        with pytest.raises(BackendRefusedError):
            await client.connection.set_mem_table([*client.memory.get_region_info(), region])
        with pytest.raises(BackendRefusedError):
            await client.connection.add_mem_region(region)
    finally:
        os.close(region.fd)
    for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
        await client.start_vring(index, 0)
    client.fill_rx_queue()
    await arp_gateway(client, MAC, IP)


async def test_m26_same_file_twice_is_an_alias(scene: Scene) -> None:
    client = await half_way(scene)
    (region,) = client.memory.get_region_info()
    alias = attrs.evolve(region, guest_addr=1 << 40, user_addr=1 << 50)
    await client.connection.set_mem_table([region, alias])
    for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
        await client.start_vring(index, 0)
    client.fill_rx_queue()
    await arp_gateway(client, MAC, IP)


async def test_m30_regions_that_are_too_large_together(scene: Scene) -> None:
    client = await half_way(scene)
    fd = a_memfd(1 << 42)
    try:
        table = [RegionInfo(n << 45, 1 << 42, n << 46, 0, fd) for n in range(1, 9)]
        with pytest.raises(BackendRefusedError):
            await client.connection.set_mem_table(table)
    finally:
        os.close(fd)
    await client.start_device()
    await arp_gateway(client, MAC, IP)


async def test_m33_more_regions_than_slots(scene: Scene) -> None:
    client = await half_way(scene)
    slots = await client.connection.get_max_mem_slots()
    fd = a_memfd(PAGE)
    try:
        for number in range(1, slots + 1):
            region = RegionInfo(number << 32, PAGE, 1 << 50 | number << 32, 0, fd)
            if number < slots:
                await client.connection.add_mem_region(region)
                continue
            with pytest.raises(BackendRefusedError):
                await client.connection.add_mem_region(region)
    finally:
        os.close(fd)
    (own,) = client.memory.get_region_info()
    # Once more for each queue pair that there may be (QEMU before 8.0), and no more than that.
    for _ in range(7):
        await client.connection.add_mem_region(own)
    with pytest.raises(BackendRefusedError):
        await client.connection.add_mem_region(own)
    await client.start_vring(TX_QUEUE_IDX, 0)
    for _ in range(7):
        await client.connection.remove_mem_region(own)
    with pytest.raises(BackendRefusedError):
        await client.connection.remove_mem_region(own)


async def test_m32_table_that_drops_running_rings(scene: Scene) -> None:
    """It is refused, and the rings go on."""
    client = await scene.connect()
    fd = a_memfd(PAGE)
    try:
        with pytest.raises(BackendRefusedError):
            await client.connection.set_mem_table([RegionInfo(0, PAGE, USER, 0, fd)])
    finally:
        os.close(fd)
    await arp_gateway(client, MAC, IP)


async def test_m36_ring_over_two_regions(scene: Scene) -> None:
    """Adjacent in the frontend's addresses, they may lie anywhere in ours."""
    halves = [Region(0, PAGE, user_offset=USER), Region(PAGE, 511 * PAGE, user_offset=USER, file=1)]
    client = await scene.connect(regions=halves, handshake=False)
    await client.negotiate()
    await client.share_memory()
    await client.connection.set_vring_num(TX_QUEUE_IDX, 256)
    for bad in (addr(desc=16), addr(avail=PAGE - 2, desc=2 * PAGE, used=4 * PAGE)):
        with pytest.raises(BackendRefusedError):
            await client.connection.command(Request.SET_VRING_ADDR, bad)


async def test_m39_kick_and_enable_before_everything(scene: Scene) -> None:
    """They are remembered: with the last thing that it needs a ring starts."""
    client = await scene.connect(regions=[REGION], handshake=False)
    for index, vring in enumerate(client.vrings):
        await client.connection.set_vring_kick(index, vring.kick)
        await client.connection.set_vring_call(index, vring.call)
        for _ in range(3):
            await client.connection.set_vring_enable(index, True)
    client.queue_tx(arp_request(MAC, IP, GATEWAY_IP))
    client.kick(TX_QUEUE_IDX, force=True)
    await wait_all_tasks_blocked()
    await client.negotiate()
    for index in (RX_QUEUE_IDX, TX_QUEUE_IDX):
        await client.connection.set_vring_num(index, 256)
        await client.set_vring_addr(index)
    await client.share_memory()
    client.fill_rx_queue()
    assert is_arp_reply(await client.recv_packet())


# Replies that nobody reads, ends in the middle of things, files that change


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_m48_backend_channel_is_refused_and_closed(scene: Scene, kind: int) -> None:
    """Nothing is ever written there, so nobody has to read it."""
    client = await half_way(scene)
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs, pytest.raises(BackendRefusedError):
        await client.connection.command(21, b"", [theirs.fileno()])
    await client.start_device()
    await arp_gateway(client, MAC, IP)


async def test_m51_peer_that_stops_reading(scene: Scene) -> None:
    """It is left alone for some seconds, and then for good."""
    client = await half_way(scene)
    with trio.move_on_after(1):
        while True:
            await client.connection.send_raw(encode(Request.GET_FEATURES) * 100)
    await scene.ask_bystander()
    await trio.sleep(REPLY_TIME_LIMIT + 1)
    with trio.fail_after(0.1), pytest.raises(BackendHungUpError):
        await client.connection.send_raw(encode(Request.GET_FEATURES))


@pytest.mark.parametrize("rx_buffers", [0, 16])
async def test_m53_frontend_that_goes_in_the_middle_of_things(
    scene: Scene, rx_buffers: int
) -> None:
    """With frames in both rings, and half a message on its way."""
    for part in (0, 5, HEADER.size):
        client = await scene.connect(rx_buffers=rx_buffers)
        for _ in range(100):
            client.queue_tx(arp_request(MAC, IP, GATEWAY_IP))
        client.kick(TX_QUEUE_IDX, force=True)
        await client.connection.send_raw(encode(Request.GET_FEATURES))
        await client.connection.send_raw(encode(Request.SET_FEATURES, bytes(8))[:part])
        await scene.send_attackers_away()


@pytest.mark.parametrize("replacement", ["nothing", "folder", "link", "file"])
async def test_m55_socket_path_taken_by_another_file(
    scene: Scene, caplog: pytest.LogCaptureFixture, replacement: str
) -> None:
    """The frontend that is there goes on, the log says it, and what took the place stays."""
    client, path = await scene.connect(), scene.backend.socket_path
    aside = path.with_name("aside")
    path.rename(aside)
    match replacement:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/null")
        case "file":
            path.touch()
    await arp_gateway(client, MAC, IP)
    await scene.send_attackers_away()
    said = [record for record in caplog.records if "removed or replaced" in record.getMessage()]
    assert len(said) == 1
    assert os.path.lexists(path) is (replacement != "nothing")
    if replacement == "folder":
        path.rmdir()
    elif replacement != "nothing":
        path.unlink()
    aside.rename(path)


async def test_m56_memory_file_that_grows(scene: Scene) -> None:
    """What is mapped is what the table said."""
    client = await scene.connect()
    (region,) = client.memory.get_region_info()
    os.ftruncate(region.fd, 4 * region.size)
    await arp_gateway(client, MAC, IP)


async def test_m57_memory_that_takes_too_long_to_map(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That ends the connection, and nobody else's. What comes of it at last is unmapped."""
    begun, release = threading.Event(), threading.Event()
    map_at_once = Mapping.map

    def map_when_told(mapping: Mapping, fd: int) -> bool:
        begun.set()
        assert release.wait(30)
        return map_at_once(mapping, fd)

    without_attacker = shared_mappings()
    client = await scene.connect(protocol_features=EVERY_PROTOCOL_FEATURE)
    region = RegionInfo(1 << 40, PAGE, 1 << 50, 0, fd=a_memfd(PAGE))
    with monkeypatch.context() as patched:
        patched.setattr(Mapping, "may_wait", True)
        patched.setattr(Mapping, "map", map_when_told)
        message = encode(Request.ADD_MEM_REG, encode_single_region(region))
        await client.connection.send_raw(message, [region.fd])
        os.close(region.fd)
        while not begun.is_set():
            await trio.lowlevel.checkpoint()
        await scene.ask_bystander()
        began = trio.current_time()
        await client.connection.wait_hung_up(timeout=3600)
        assert trio.current_time() - began == pytest.approx(MAPPING_TIME_LIMIT, abs=0.5)
        await scene.send_attackers_away()
        # Who only talks need not wait for the thread that is still there.
        with contextlib.closing(await Connection.open(scene.backend.socket_path)) as connection:
            await connection.get_features()
        release.set()
        while _turn.get().borrowed_tokens:
            await trio.lowlevel.checkpoint()
    while shared_mappings() != without_attacker:
        await trio.lowlevel.checkpoint()
    [broken] = [record for record in caplog.records if record.message == "connection broken"]
    assert "mapping its memory took too long" in vars(broken)["reason"]
    await wait_for_service(scene)
