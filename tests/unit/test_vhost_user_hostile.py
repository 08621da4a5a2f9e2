"""Bad messages, one test or more for each row (M…) of the list of hostile inputs.

Reactions: **E** an error reply if NEED_REPLY, else the end of the connection; **C** the end; **I**
ignored; **A** accepted safely. M5, M7 and M8, which a header alone decides, are among the tests of
the codec; rows about sockets and timing are among those of the connection.
"""

from __future__ import annotations

import pytest

from mvirt_net.errors import ConnectionBroken
from mvirt_net.model import MemoryRegion, VringAddr
from mvirt_net.vhost_user import (
    OFFERED_PROTOCOL_FEATURES,
    ProtocolFeature,
    Request,
    VirtioFeature,
)
from mvirt_net.vhost_user.session import TABLE, Answer

from .vhost_user_peer import (
    MIB,
    NEED_REPLY,
    NOFD,
    NULL,
    REGION,
    RINGS,
    RX,
    SPLIT,
    TX,
    UPPER,
    Frontend,
    assert_broken,
    assert_refused,
    config,
    fresh,
    mem_table,
    negotiated,
    payload_of,
    prepare_ring,
    ring_at,
    running,
    single_region,
    state,
    u64,
    vring_addr,
    with_memory,
)

SUPPORTED = {
    Request.GET_FEATURES: 0,
    Request.SET_FEATURES: 8,
    Request.SET_OWNER: 0,
    Request.RESET_OWNER: 0,
    Request.SET_MEM_TABLE: 40,
    Request.SET_LOG_FD: 0,
    Request.SET_VRING_NUM: 8,
    Request.SET_VRING_ADDR: 40,
    Request.SET_VRING_BASE: 8,
    Request.GET_VRING_BASE: 8,
    Request.SET_VRING_KICK: 8,
    Request.SET_VRING_CALL: 8,
    Request.SET_VRING_ERR: 8,
    Request.GET_PROTOCOL_FEATURES: 0,
    Request.SET_PROTOCOL_FEATURES: 8,
    Request.GET_QUEUE_NUM: 0,
    Request.SET_VRING_ENABLE: 8,
    Request.SEND_RARP: 8,
    Request.NET_SET_MTU: 8,
    Request.GET_CONFIG: 13,
    Request.SET_CONFIG: 13,
    Request.RESET_DEVICE: 0,
    Request.GET_MAX_MEM_SLOTS: 0,
    Request.ADD_MEM_REG: 40,
    Request.REM_MEM_REG: 40,
}
"""The messages that can be legal, and a size of their payload."""
VALUES = {
    Request.GET_FEATURES,
    Request.GET_VRING_BASE,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.GET_MAX_MEM_SLOTS,
}
NOT_SUPPORTED = (
    Request.SET_LOG_BASE,
    Request.SET_BACKEND_REQ_FD,
    Request.SET_VRING_ENDIAN,
    Request.CLOSE_CRYPTO_SESSION,
    Request.POSTCOPY_LISTEN,
    Request.SET_INFLIGHT_FD,
    Request.GPU_SET_SOCKET,
    Request.VRING_KICK,
    Request.SET_STATUS,
)
NOT_SUPPORTED_WITH_A_VALUE = (
    Request.IOTLB_MSG,
    Request.CREATE_CRYPTO_SESSION,
    Request.POSTCOPY_ADVISE,
    Request.POSTCOPY_END,
    Request.GET_INFLIGHT_FD,
    Request.GET_STATUS,
    Request.GET_SHARED_OBJECT,
    Request.SET_DEVICE_STATE_FD,
    Request.CHECK_DEVICE_STATE,
    Request.GET_SHMEM_CONFIG,
)
VRING_FILES = (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR)
BAD_VRINGS = (16, 17, 0x100, 0x10000, 0x80000000, 0xFFFFFFFF)


def assert_refused_in_its_way(request: Request, payload: bytes, *, fds: int = 0) -> None:
    """E, in the form that this request has for errors."""
    if request is Request.GET_CONFIG:
        assert_config_refused(payload, fds=fds)
    elif request in VALUES:
        assert_broken(negotiated, request, payload, fds=fds, flags=1 | NEED_REPLY)
        assert_broken(negotiated, request, payload, fds=fds)
    else:
        assert_refused(negotiated, request, payload, fds=fds)


def assert_config_refused(payload: bytes, *, fds: int = 0) -> None:
    """The empty GET_CONFIG, and the conversation goes on."""
    frontend = negotiated()
    outcome = frontend.exchange(Request.GET_CONFIG, payload, fds)
    assert outcome.refused
    assert outcome.reply is not None
    assert payload_of(outcome.reply, Request.GET_CONFIG) == b""
    assert frontend.send(Request.GET_CONFIG, config(0, 17))


@pytest.mark.parametrize(("request_id", "size"), SUPPORTED.items())
def test_m06_payload_size_off_by_one(request_id: Request, size: int) -> None:
    for wrong in {size - 1, size + 1, 0} - {-1, size}:
        assert_refused_in_its_way(request_id, bytes(wrong))


def test_m06_get_config_with_one_byte_too_many() -> None:
    assert_config_refused(config(0, 1, room=2))


def test_m09_need_reply_counts_for_nothing_before_reply_ack() -> None:
    frontend = fresh()
    outcome = frontend.exchange(Request.SET_OWNER, flags=1 | NEED_REPLY)
    assert outcome.reply is None
    assert_broken(fresh, Request.SET_FEATURES, u64(1 << 2), flags=1 | NEED_REPLY)


@pytest.mark.parametrize("request_id", [0, 45, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("fds", [0, 1, 8, 253])
def test_m10_unknown_request(request_id: int, fds: int) -> None:
    assert_refused(negotiated, request_id, bytes(5), fds=fds)


def test_m11_second_owner() -> None:
    assert_refused(negotiated, Request.SET_OWNER)


OFFERED_BITS = {
    *(0, 1, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 22),
    *(28, 29, 30, 32, 34, 35, 54, 55, 56),
}


@pytest.mark.parametrize("bit", sorted(set(range(64)) - OFFERED_BITS))
def test_m12_features_that_were_not_offered(bit: int) -> None:
    assert_refused(negotiated, Request.SET_FEATURES, u64(SPLIT | 1 << bit))


@pytest.mark.parametrize("bit", [3, 30, 32, 34])
def test_m12_other_features_while_a_vring_runs(bit: int) -> None:
    assert_refused(running, Request.SET_FEATURES, u64(SPLIT ^ 1 << bit))


def test_m12_features_that_the_device_refuses() -> None:
    def prepare() -> Frontend:
        frontend = negotiated()
        frontend.device.refuse = {"set_features"}
        return frontend

    assert_refused(prepare, Request.SET_FEATURES, u64(1 << 32))


@pytest.mark.parametrize("bit", sorted(set(range(64)) - {0, 3, 4, 9, 13, 15}))
def test_m13_protocol_features_that_were_not_offered(bit: int) -> None:
    features = u64(OFFERED_PROTOCOL_FEATURES | 1 << bit)
    assert_refused(negotiated, Request.SET_PROTOCOL_FEATURES, features)


@pytest.mark.parametrize(
    ("request_id", "payload", "fds", "feature"),
    [
        (Request.GET_QUEUE_NUM, b"", 0, ProtocolFeature.MQ),
        (Request.GET_CONFIG, config(0, 8), 0, ProtocolFeature.CONFIG),
        (Request.SET_CONFIG, config(0, 8), 0, ProtocolFeature.CONFIG),
        (Request.NET_SET_MTU, u64(1500), 0, ProtocolFeature.NET_MTU),
        (Request.RESET_DEVICE, b"", 0, ProtocolFeature.RESET_DEVICE),
        (Request.GET_MAX_MEM_SLOTS, b"", 0, ProtocolFeature.CONFIGURE_MEM_SLOTS),
        (Request.ADD_MEM_REG, single_region(UPPER), 1, ProtocolFeature.CONFIGURE_MEM_SLOTS),
        (Request.REM_MEM_REG, single_region(REGION), 0, ProtocolFeature.CONFIGURE_MEM_SLOTS),
    ],
)
def test_m14_without_its_protocol_feature(
    request_id: int, payload: bytes, fds: int, feature: ProtocolFeature
) -> None:
    def prepare() -> Frontend:
        frontend = with_memory()
        others = OFFERED_PROTOCOL_FEATURES & ~feature
        frontend.send(Request.SET_PROTOCOL_FEATURES, u64(others))
        return frontend

    if TABLE[request_id].answer is Answer.ACK:
        assert_refused(prepare, request_id, payload, fds=fds)
    else:
        assert_broken(prepare, request_id, payload, fds=fds, flags=1 | NEED_REPLY)


@pytest.mark.parametrize(
    "request_id",
    sorted(
        set(SUPPORTED)
        - {Request.SET_MEM_TABLE, Request.SET_LOG_FD, Request.ADD_MEM_REG, Request.REM_MEM_REG}
        - set(VRING_FILES)
    ),
)
@pytest.mark.parametrize("fds", [1, 8, 253])
def test_m15_descriptors_where_there_must_be_none(request_id: Request, fds: int) -> None:
    size = SUPPORTED[request_id]
    payload = config(0, 1) if size == 13 else bytes(size)
    assert_refused_in_its_way(request_id, payload, fds=fds)


@pytest.mark.parametrize(
    ("request_id", "payload", "wrong"),
    [
        (Request.ADD_MEM_REG, single_region(UPPER), (0, 2, 9)),
        (Request.REM_MEM_REG, single_region(REGION), (2, 9)),
        (Request.SET_LOG_FD, b"", (0, 2, 9)),
        (Request.SET_VRING_KICK, u64(RX), (0, 2, 9)),
        (Request.SET_VRING_CALL, u64(RX), (0, 2, 9)),
        (Request.SET_VRING_ERR, u64(RX), (0, 2, 9)),
        (Request.SET_MEM_TABLE, mem_table(UPPER), (0, 2, 9, 253)),
    ],
)
def test_m16_wrong_number_of_descriptors(
    request_id: int, payload: bytes, wrong: tuple[int, ...]
) -> None:
    for fds in wrong:
        assert_refused(with_memory, request_id, payload, fds=fds)


@pytest.mark.parametrize("request_id", VRING_FILES)
def test_m17_descriptor_and_the_bit_disagree(request_id: int) -> None:
    assert_refused(running, request_id, u64(RX | NOFD), fds=1)
    assert_refused(running, request_id, u64(RX), fds=0)


@pytest.mark.parametrize("request_id", VRING_FILES)
def test_m21_descriptor_that_the_device_refuses(request_id: Request) -> None:
    def prepare() -> Frontend:
        frontend = running()
        frontend.device.refuse = {request_id.name.lower()}
        return frontend

    assert_refused(prepare, request_id, u64(RX), fds=1)


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (mem_table(), 0),
        (mem_table(REGION, count=0), 1),
        (mem_table(REGION, count=9), 1),
        (mem_table(REGION, count=0xFFFFFFFF), 1),
        (mem_table(*[MemoryRegion(n * MIB, MIB, n * MIB, 0) for n in range(9)]), 9),
        (mem_table(REGION, UPPER), 1),
        (mem_table(REGION, UPPER), 3),
    ],
)
def test_m24_region_count(payload: bytes, fds: int) -> None:
    assert_refused(with_memory, Request.SET_MEM_TABLE, payload, fds=fds)


BAD_REGIONS = (
    # guest address, size, user address, mmap offset
    (0, 0, 0, 0),
    (0, 1, 0, 0),
    (0, MIB + 1, 0, 0),
    ((1 << 64) - 4096, 2 * 4096, 0, 0),
    (0, 2 * 4096, (1 << 64) - 4096, 0),
    (0, 2 * 4096, 0, (1 << 64) - 4096),
    (1, 4096, 0, 0),
    (0, 4096, 2048, 0),
)


@pytest.mark.parametrize("fields", BAD_REGIONS)
def test_m25_region_that_cannot_be(fields: tuple[int, int, int, int]) -> None:
    region = MemoryRegion(*fields)
    assert_refused(negotiated, Request.SET_MEM_TABLE, mem_table(region), fds=1)
    assert_refused(negotiated, Request.SET_MEM_TABLE, mem_table(UPPER, region), fds=2)
    assert_refused(negotiated, Request.ADD_MEM_REG, single_region(region), fds=1)


def test_m25_region_up_to_the_last_address() -> None:
    top = (1 << 64) - MIB
    table = mem_table(MemoryRegion(top, MIB, top, 0))
    negotiated().acked(Request.SET_MEM_TABLE, table, fds=1)


OVERLAPS = (
    MemoryRegion(REGION.guest_addr + MIB, MIB, UPPER.user_addr, 0),
    MemoryRegion(UPPER.guest_addr, MIB, REGION.user_addr + MIB, 0),
    MemoryRegion(0, 1 << 40, 0, 0),
    REGION,
)


@pytest.mark.parametrize("region", OVERLAPS)
def test_m26_overlapping_regions(region: MemoryRegion) -> None:
    assert_refused(negotiated, Request.SET_MEM_TABLE, mem_table(region, REGION), fds=2)


def test_m26_the_same_memory_twice_is_an_alias() -> None:
    alias = MemoryRegion(UPPER.guest_addr, REGION.size, UPPER.user_addr, REGION.mmap_offset)
    negotiated().acked(Request.SET_MEM_TABLE, mem_table(REGION, alias), fds=2)


def test_m27_mmap_offset_not_on_a_page() -> None:
    region = MemoryRegion(0, MIB, 0, 2048)
    assert_refused(negotiated, Request.SET_MEM_TABLE, mem_table(region), fds=1)


def test_m28_memory_that_the_device_refuses() -> None:
    def prepare() -> Frontend:
        frontend = with_memory()
        frontend.device.refuse = {"set_memory_table", "add_memory_region"}
        return frontend

    assert_refused(prepare, Request.SET_MEM_TABLE, mem_table(UPPER), fds=1)
    assert_refused(prepare, Request.ADD_MEM_REG, single_region(UPPER), fds=1)


def test_m32_memory_table_that_drops_a_running_vring() -> None:
    assert_refused(running, Request.SET_MEM_TABLE, mem_table(UPPER), fds=1)


@pytest.mark.parametrize("region", [region for region in OVERLAPS if region != REGION])
def test_m33_added_region_overlaps(region: MemoryRegion) -> None:
    assert_refused(with_memory, Request.ADD_MEM_REG, single_region(region), fds=1)


def test_m33_region_added_more_often_than_there_are_pairs() -> None:
    def prepare() -> Frontend:
        frontend = with_memory()
        for _ in range(7):
            frontend.acked(Request.ADD_MEM_REG, single_region(REGION), fds=1)
        return frontend

    assert_refused(prepare, Request.ADD_MEM_REG, single_region(REGION), fds=1)


def test_m33_more_regions_than_slots() -> None:
    def prepare() -> Frontend:
        frontend = negotiated()
        for slot in range(32):
            region = MemoryRegion(slot * MIB, MIB, slot * MIB, 0)
            frontend.send(Request.ADD_MEM_REG, single_region(region), fds=1)
        return frontend

    assert_refused(prepare, Request.ADD_MEM_REG, single_region(UPPER), fds=1)


@pytest.mark.parametrize(
    "region",
    [
        UPPER,
        MemoryRegion(MIB, REGION.size, REGION.user_addr, 0),
        MemoryRegion(0, REGION.size - 4096, REGION.user_addr, 0),
        MemoryRegion(0, REGION.size, REGION.user_addr + 4096, 0),
    ],
)
def test_m33_removal_of_an_unknown_region(region: MemoryRegion) -> None:
    assert_refused(with_memory, Request.REM_MEM_REG, single_region(region))


def test_m33_removal_of_the_region_of_a_running_vring() -> None:
    assert_refused(running, Request.REM_MEM_REG, single_region(REGION))


@pytest.mark.parametrize("index", BAD_VRINGS)
def test_m34_vring_that_does_not_exist(index: int) -> None:
    for request in (Request.SET_VRING_NUM, Request.SET_VRING_BASE):
        assert_refused(with_memory, request, state(index, 256))
    for num in (0, 1):
        assert_refused(with_memory, Request.SET_VRING_ENABLE, state(index, num))
    for addr in (NULL, RINGS[RX]):
        assert_refused(with_memory, Request.SET_VRING_ADDR, vring_addr(index, addr))
    assert_broken(with_memory, Request.GET_VRING_BASE, state(index, 0))


@pytest.mark.parametrize("request_id", VRING_FILES)
@pytest.mark.parametrize("index", [16, 255, 0x10000, 1 << 32, 1 << 63, 0x200])
def test_m34_descriptor_for_a_vring_that_does_not_exist(request_id: int, index: int) -> None:
    assert_refused(with_memory, request_id, u64(index), fds=1)
    assert_refused(with_memory, request_id, u64(index | NOFD))


@pytest.mark.parametrize("size", [0, 1, 3, 255, 257, 32769, 65536, 0x80000000, 0xFFFFFFFF])
def test_m35_vring_size_that_cannot_be(size: int) -> None:
    assert_refused(with_memory, Request.SET_VRING_NUM, state(RX, size))


@pytest.mark.parametrize("size", [1 << shift for shift in range(1, 16)])
def test_m35_every_vring_size_that_can_be(size: int) -> None:
    with_memory().acked(Request.SET_VRING_NUM, state(RX, size))


def test_m35_vring_size_while_running() -> None:
    assert_refused(running, Request.SET_VRING_NUM, state(RX, 128))


def test_m35_vring_size_that_no_longer_fits_the_addresses() -> None:
    frontend = with_memory()
    prepare_ring(frontend, RX)
    frontend.send(Request.SET_VRING_NUM, state(RX, 512))  # now desc reaches into avail
    with pytest.raises(ConnectionBroken, match="overlap"):
        frontend.exchange(Request.SET_VRING_KICK, u64(RX), 1)
    assert frontend.device.running == {}


BASE = REGION.user_addr
BAD_LAYOUTS = (
    VringAddr(desc=BASE + 8, avail=BASE + 0x1100, used=BASE + 0x2000),
    VringAddr(desc=BASE, avail=BASE + 0x1001, used=BASE + 0x2000),
    VringAddr(desc=BASE, avail=BASE + 0x1000, used=BASE + 0x2002),
    VringAddr(desc=BASE, avail=BASE, used=BASE),
    VringAddr(desc=BASE, avail=BASE + 0xFF0, used=BASE + 0x2000),
    VringAddr(desc=BASE + 0x1000, avail=BASE, used=BASE + 0x204),
    VringAddr(desc=BASE, avail=(1 << 64) - 0x100, used=BASE + 0x2000),
    VringAddr(desc=BASE, avail=BASE + 0x1000, used=(1 << 64) - 0x100),
    VringAddr(desc=(1 << 64) - 0x100, avail=BASE + 0x1000, used=BASE + 0x2000),
)
"""Misaligned, overlapping, beyond the last address."""
OUTSIDE = (
    ring_at(BASE + REGION.size),
    ring_at(BASE - 0x1000),
    VringAddr(desc=BASE + REGION.size - 0x800, avail=BASE, used=BASE + 0x1000),
    VringAddr(desc=BASE, avail=0, used=BASE + 0x2000),
    VringAddr(desc=0, avail=BASE + 0x1000, used=BASE + 0x2000),
)


@pytest.mark.parametrize("addr", BAD_LAYOUTS)
def test_m36_vring_layout_that_cannot_be(addr: VringAddr) -> None:
    def sized_without_memory() -> Frontend:
        frontend = negotiated()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        return frontend

    assert_refused(sized_without_memory, Request.SET_VRING_ADDR, vring_addr(RX, addr))
    assert_refused(running, Request.SET_VRING_ADDR, vring_addr(RX, addr))


@pytest.mark.parametrize("addr", OUTSIDE)
def test_m36_vring_outside_memory(addr: VringAddr) -> None:
    def sized() -> Frontend:
        frontend = with_memory()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        return frontend

    assert_refused(sized, Request.SET_VRING_ADDR, vring_addr(RX, addr))
    assert_refused(running, Request.SET_VRING_ADDR, vring_addr(RX, addr))


def test_m36_null_addresses_for_a_running_vring() -> None:
    assert_refused(running, Request.SET_VRING_ADDR, vring_addr(RX, NULL))


def test_m36_addresses_before_the_size() -> None:
    assert_refused(with_memory, Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))


@pytest.mark.parametrize("flags", [1, 2, 0x80000000])
def test_m36_flags(flags: int) -> None:
    # Bit 0 asks for dirty logging: LOG_ALL is not offered.
    assert_refused(running, Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX], flags=flags))


def test_m37_guest_address_instead_of_user_address() -> None:
    def sized() -> Frontend:
        frontend = with_memory()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        return frontend

    assert_refused(sized, Request.SET_VRING_ADDR, vring_addr(RX, ring_at(0x1000)))


@pytest.mark.parametrize("base", [0x10000, 0x80000000, 0xFFFFFFFF])
def test_m38_base_that_cannot_be(base: int) -> None:
    assert_refused(with_memory, Request.SET_VRING_BASE, state(RX, base))


@pytest.mark.parametrize("base", [300, 0x8000 | 299, 300 << 16, 0x7FFF_0000, 0xFFFF_FFFF])
def test_m38_packed_base_that_cannot_be(base: int) -> None:
    """A slot that the vring has not, in either half."""
    assert_refused(with_packed_vring, Request.SET_VRING_BASE, state(RX, base))


def with_packed_vring() -> Frontend:
    """`negotiated` for packed vrings, one of them with a size."""
    frontend = negotiated(SPLIT | VirtioFeature.F_RING_PACKED)
    frontend.send(Request.SET_VRING_NUM, state(RX, 299))
    return frontend


@pytest.mark.parametrize("size", [0, 32769, 65536, 0xFFFF_FFFF])
def test_m35_packed_vring_size_that_cannot_be(size: int) -> None:
    assert_refused(with_packed_vring, Request.SET_VRING_NUM, state(RX, size))


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [
        (8, 0x2000, 0x3000),
        (0, 0x2002, 0x3000),
        (0, 0x2000, 0x3002),
        (0, 0x2000, 0x2000),
        (0, 299 * 16 - 4, 0x3000),
        (0, 0x2000, 0),
    ],
)
def test_m36_packed_vring_layout_that_cannot_be(desc: int, avail: int, used: int) -> None:
    addr = VringAddr(desc=BASE + desc, avail=BASE + avail, used=BASE + used)
    assert_refused(with_packed_vring, Request.SET_VRING_ADDR, vring_addr(RX, addr))


def test_m38_base_while_running() -> None:
    assert_refused(running, Request.SET_VRING_BASE, state(RX, 0))


@pytest.mark.parametrize("payload", [u64(RX), u64(RX | NOFD)])
def test_m39_kick_before_everything_is_held(payload: bytes) -> None:
    frontend = fresh()
    frontend.send(Request.SET_VRING_KICK, payload, fds=0 if payload[1] else 1)
    assert frontend.device.running == {}
    assert frontend.session.lacks_memory
    frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
    assert not frontend.session.lacks_memory
    frontend.send(Request.SET_VRING_NUM, state(RX, 256))
    assert frontend.device.running == {}
    frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
    assert set(frontend.device.running) == {RX}


@pytest.mark.parametrize("num", [2, 3, 0x100, 0xFFFFFFFF])
def test_m39_neither_enable_nor_disable(num: int) -> None:
    assert_refused(running, Request.SET_VRING_ENABLE, state(RX, num))


def test_m39_enable_before_everything_is_remembered() -> None:
    frontend = fresh()
    for _ in range(5):
        frontend.send(Request.SET_VRING_ENABLE, state(RX, 1))
    assert frontend.device.enabled[RX]


def test_m40_get_vring_base_again_and_again() -> None:
    frontend = running()
    frontend.send(Request.SET_VRING_ENABLE, state(RX, 0))
    frontend.device.index_at_stop = 4711
    assert [frontend.get_base(RX) for _ in range(3)] == [4711] * 3


def test_m40_get_vring_base_of_a_vring_never_started() -> None:
    assert fresh().get_base(TX) == 0


def test_m41_enable_without_protocol_features() -> None:
    def prepare() -> Frontend:
        frontend = negotiated()
        features = SPLIT & ~VirtioFeature.PROTOCOL_FEATURES
        frontend.send(Request.SET_FEATURES, u64(features))
        assert frontend.device.enabled == dict.fromkeys(range(16), True)
        return frontend

    assert_refused(prepare, Request.SET_VRING_ENABLE, state(RX, 1))
    assert_refused(prepare, Request.SET_VRING_ENABLE, state(RX, 0))


def test_m42_kick_replaced_a_thousand_times_while_running() -> None:
    frontend = running()
    for _ in range(1000):
        frontend.send(Request.SET_VRING_KICK, u64(RX | NOFD))
        assert frontend.device.polled == {RX}
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.polled == set()
    assert len(frontend.device.started) == 2
    assert len(frontend.fds.open) == 4


def test_m43_reset_owner_while_running() -> None:
    frontend = running()
    before = frontend.device.snapshot()
    frontend.send(Request.RESET_OWNER)
    assert frontend.device.snapshot() == before


def test_m43_reset_device_while_running() -> None:
    frontend = running()
    frontend.send(Request.RESET_DEVICE)
    assert frontend.device.running == {}
    assert frontend.fds.open == set()


@pytest.mark.parametrize("fds", [0, 1])
def test_m44_set_log_base_without_its_feature(fds: int) -> None:
    assert_refused(running, Request.SET_LOG_BASE, bytes(16), fds=fds)


@pytest.mark.parametrize(
    "payload",
    [
        config(0, 0),
        config(0, 257),
        config(256, 1),
        config(255, 2),
        config(0xFFFFFFFF, 1),
        config(1, 256),
        config(0, 8, room=7),
        config(0, 8, room=9),
        config(0, 0xFFFFFFFF, room=8),
        config(0, 8, room=0),
        config(0, 8, flags=4),
        b"",
    ],
)
def test_m45_config_space_that_is_not_there(payload: bytes) -> None:
    assert_config_refused(payload)


@pytest.mark.parametrize("payload", [config(0, 6), config(6, 2, flags=2), config(0, 8, room=3)])
def test_m46_the_config_space_is_read_only(payload: bytes) -> None:
    assert_refused(negotiated, Request.SET_CONFIG, payload)


@pytest.mark.parametrize("mtu", [0, 67, 65536, (1 << 32) + 1500])
def test_m47_mtu_that_cannot_be(mtu: int) -> None:
    assert_refused(negotiated, Request.NET_SET_MTU, u64(mtu))


@pytest.mark.parametrize("request_id", NOT_SUPPORTED)
@pytest.mark.parametrize(("size", "fds"), [(0, 0), (8, 1), (20, 8), (4096, 0)])
def test_m48_m49_m50_not_supported(request_id: int, size: int, fds: int) -> None:
    assert_refused(running, request_id, bytes(size), fds=fds)


@pytest.mark.parametrize("request_id", NOT_SUPPORTED_WITH_A_VALUE)
@pytest.mark.parametrize("fds", [0, 1])
def test_m49_m50_not_supported_and_no_way_to_say_so(request_id: int, fds: int) -> None:
    # Their replies carry values: an acknowledgement would be read as one.
    assert_broken(running, request_id, bytes(20), fds=fds, flags=1 | NEED_REPLY)
    assert_broken(running, request_id, bytes(20), fds=fds)


def test_no_request_was_forgotten() -> None:
    assert {*SUPPORTED, *NOT_SUPPORTED, *NOT_SUPPORTED_WITH_A_VALUE} == set(Request)
