"""Any sequence of messages, valid and broken: one exception, one reply, no descriptor lost.

What a session must never do is asserted by its neighbours (`vhost_user_peer`): a vring does not
start without memory, addresses and a kick, nothing is stopped or moved that does not run, and after
each message every descriptor is either the device's or closed, once.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mvirt_net.errors import ConnectionBroken
from mvirt_net.model import MemoryRegion, VringAddr
from mvirt_net.vhost_user import Header, Request

from .fuzzing import fuzz
from .vhost_user_peer import (
    MIB,
    NOFD,
    NULL,
    REGION,
    RINGS,
    UPPER,
    Frontend,
    config,
    mem_table,
    negotiated,
    payload_of,
    ring_at,
    running,
    single_region,
    state,
    u64,
    vring_addr,
)

# Mostly values that make sense, so that sequences get somewhere.
indices = st.sampled_from((0, 0, 0, 1, 1, 1, 2, 0x100, 0xFFFFFFFF))
numbers = st.sampled_from((0, 1, 2, 128, 256, 256, 256, 300, 512, 65535, 65536, 0xFFFFFFFF))
addresses = st.sampled_from(
    (
        *RINGS,
        *RINGS,
        ring_at(REGION.user_addr + MIB),
        ring_at(UPPER.user_addr),
        ring_at(0),
        NULL,
        VringAddr(desc=REGION.user_addr, used=REGION.user_addr, avail=REGION.user_addr),
    )
)
regions = st.sampled_from(
    (
        REGION,
        REGION,
        UPPER,
        MemoryRegion(0, MIB, REGION.user_addr, 0),
        MemoryRegion(REGION.size, MIB, REGION.user_addr + REGION.size, 0),
        MemoryRegion(1, 1, 1, 1),
        MemoryRegion(0, 1 << 63, 0, 0),
    )
)
tables = st.lists(regions, max_size=9)
longs = st.integers(0, 2**64 - 1)

states = st.builds(state, indices, numbers)
flags = st.sampled_from((0, 0, 0, 1))
files = st.builds(lambda index, nofd: u64(index | nofd), indices, st.sampled_from((0, 0, NOFD)))
PAYLOADS: dict[int, st.SearchStrategy[bytes]] = {
    Request.SET_FEATURES: st.builds(
        u64, st.sampled_from((0, 1 << 30, 1 << 32, 0x9_7001_8028)) | longs
    ),
    Request.SET_PROTOCOL_FEATURES: st.builds(u64, st.sampled_from((0xA219, 0xA219, 8)) | longs),
    Request.SET_MEM_TABLE: st.builds(lambda table: mem_table(*table), tables),
    Request.SET_VRING_ADDR: st.builds(vring_addr, indices, addresses, flags=flags),
    Request.SET_VRING_KICK: files,
    Request.SET_VRING_CALL: files,
    Request.SET_VRING_ERR: files,
    Request.SET_VRING_NUM: states,
    Request.SET_VRING_BASE: states,
    Request.GET_VRING_BASE: states,
    Request.SET_VRING_ENABLE: states,
    Request.NET_SET_MTU: st.builds(u64, numbers),
    Request.GET_CONFIG: st.builds(config, numbers, st.integers(0, 300)),
    Request.ADD_MEM_REG: st.builds(single_region, regions),
    Request.REM_MEM_REG: st.builds(single_region, regions),
}


Message = tuple[int, bytes, int, int]
"""Request, payload, number of descriptors, header flags."""

VRING_SCRIPT: tuple[Message, ...] = tuple(
    message
    for index in (0, 1)
    for message in (
        (Request.SET_VRING_NUM, state(index, 256), 0, 9),
        (Request.SET_VRING_BASE, state(index, 0), 0, 9),
        (Request.SET_VRING_ADDR, vring_addr(index, RINGS[index]), 0, 9),
        (Request.SET_VRING_KICK, u64(index), 1, 9),
        (Request.SET_VRING_KICK, u64(index | NOFD), 0, 9),
        (Request.SET_VRING_CALL, u64(index), 1, 9),
        (Request.SET_VRING_ENABLE, state(index, 1), 0, 9),
        (Request.GET_VRING_BASE, state(index, 0), 0, 1),
    )
)
SCRIPT: tuple[Message, ...] = (
    *VRING_SCRIPT,
    *VRING_SCRIPT,
    (Request.SET_MEM_TABLE, mem_table(REGION), 1, 9),
    (Request.SET_MEM_TABLE, mem_table(UPPER, REGION), 2, 9),
    (Request.ADD_MEM_REG, single_region(REGION), 1, 9),
    (Request.ADD_MEM_REG, single_region(UPPER), 1, 9),
    (Request.REM_MEM_REG, single_region(REGION), 0, 9),
    (Request.SET_FEATURES, u64(0x9_7001_8028), 0, 9),
    (Request.RESET_DEVICE, b"", 0, 9),
)
"""Messages that work in some order, and do no harm in any other."""


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """One message that is right in many respects, or in none."""
    request = draw(st.sampled_from((*PAYLOADS, *PAYLOADS, *Request, 0, 45)))
    payload = draw(PAYLOADS.get(request, st.sampled_from((b"", bytes(8)))))
    fds = draw(st.sampled_from((0, 1, 1, 2, 9)))
    match draw(st.integers(0, 15)):
        case 0:
            payload = payload[:-1]
        case 1:
            payload += b"\0"
        case 2:
            payload = draw(st.binary(max_size=64))
        case _:
            fds = fitting_fds(request, payload)
    return request, payload, fds, draw(st.sampled_from((9, 9, 9, 9, 9, 9, 1)))


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """The script in any order, with other messages in between."""
    conversation = list(draw(st.permutations(SCRIPT)))
    for message in draw(st.lists(messages(), max_size=5)):
        conversation.insert(draw(st.integers(0, len(conversation))), message)
    return conversation


def fitting_fds(request: int, payload: bytes) -> int:
    """As many descriptors as a frontend that means well would send."""
    match request:
        case Request.SET_MEM_TABLE:
            return (len(payload) - 8) // 32
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            return 1 - payload[1]
        case Request.ADD_MEM_REG | Request.SET_LOG_FD:
            return 1
        case _:
            return 0


def play(frontend: Frontend, conversation: list[Message]) -> None:
    """Until the end of the list or of the connection."""
    for request, payload, fds, header_flags in conversation:
        try:
            outcome = frontend.exchange(request, payload, fds, header_flags)
        except ConnectionBroken:
            return
        if outcome.reply is not None:
            payload_of(outcome.reply, request)  # one reply and no more


@fuzz
@given(st.lists(messages(), max_size=40))
def test_from_the_beginning(conversation: list[Message]) -> None:
    play(Frontend(), conversation)


@fuzz
@given(conversations())
def test_after_the_negotiation(conversation: list[Message]) -> None:
    play(negotiated(), conversation)


@fuzz
@given(
    conversations(),
    st.sets(
        st.sampled_from(
            (
                "set_features",
                "set_memory_table",
                "add_memory_region",
                "remove_memory_region",
                "check_vring",
                "start_vring",
                "move_vring",
                "set_vring_kick",
                "set_vring_call",
                "set_vring_err",
            )
        ),
        max_size=3,
    ),
)
def test_with_running_vrings_and_a_device_that_refuses(
    conversation: list[Message], refuse: set[str]
) -> None:
    frontend = running()
    frontend.device.refuse = refuse
    play(frontend, conversation)


@fuzz
@given(st.integers(0, 2**32 - 1) | st.sampled_from(Request), st.binary(max_size=4096))
def test_any_bytes(request: int, payload: bytes) -> None:
    play(running(), [(request, payload, 1, 9)])


@fuzz
@given(st.binary(min_size=12, max_size=12))
def test_any_header(data: bytes) -> None:
    try:
        header = Header.parse(data)
    except ConnectionBroken:
        return
    assert header.size <= 4096
