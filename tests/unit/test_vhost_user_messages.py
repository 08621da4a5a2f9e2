"""The codec, byte by byte. Byte strings are those of a little-endian machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvirt_net.errors import ConnectionBroken, RequestRefused
from mvirt_net.model import MemoryRegion, VringAddr
from mvirt_net.vhost_user.messages import (
    HEADER_SIZE,
    U64,
    ConfigAccess,
    Empty,
    Header,
    MemoryTable,
    Opaque,
    Payload,
    Request,
    SingleRegion,
    VringAddress,
    VringFile,
    VringState,
    reply,
    request_name,
)

from .fuzzing import fuzz
from .vhost_user_peer import mem_table, single_region, u64, vring_addr

REGION_BYTES = bytes.fromhex(
    "0000000001000000"  # guest address 0x1_0000_0000
    "0000200000000000"  # size 2 MiB
    "00000000007f0000"  # user address 0x7f00_0000_0000
    "0010000000000000"  # mmap offset 4096
)
REGION = MemoryRegion(
    guest_addr=1 << 32, size=2 << 20, user_addr=0x7F00_0000_0000, mmap_offset=4096
)
U64S = st.integers(0, 2**64 - 1)
U32S = st.integers(0, 2**32 - 1)


def assert_size_matters(payload: type[Payload], good: bytes) -> None:
    """One byte less, one more, and nothing at all are refused; `good` is not."""
    payload.parse(good)
    for bad in (good[:-1], good + b"\0", b""):
        with pytest.raises(RequestRefused, match=f"payload of {len(bad)} bytes"):
            payload.parse(bad)


class TestHeader:
    def test_size(self) -> None:
        assert HEADER_SIZE == 12

    def test_literal(self) -> None:
        header = Header.parse(bytes.fromhex("050000000100000028000000"))
        assert header == Header(request=Request.SET_MEM_TABLE, flags=1, size=40)
        assert not header.need_reply

    def test_need_reply(self) -> None:
        assert Header.parse(bytes.fromhex("020000000900000008000000")).need_reply

    def test_an_unknown_request_is_still_a_header(self) -> None:
        header = Header.parse(bytes.fromhex("ffffff7f0100000000000000"))
        assert header.request == 0x7FFFFFFF

    def test_longest_payload(self) -> None:
        assert Header.parse(bytes.fromhex("180000000100000000100000")).size == 4096

    @pytest.mark.parametrize("size", ["01100000", "00000080", "ffffffff"])
    def test_m05_payload_too_long(self, size: str) -> None:
        with pytest.raises(ConnectionBroken, match="GET_CONFIG with a payload of"):
            Header.parse(bytes.fromhex("1800000001000000" + size))

    @pytest.mark.parametrize("flags", ["00", "02", "03", "08"])
    def test_m07_other_versions(self, flags: str) -> None:
        with pytest.raises(ConnectionBroken, match="SET_OWNER with flags"):
            Header.parse(bytes.fromhex(f"03000000{flags}00000000000000"))

    @pytest.mark.parametrize("bit", [2, *range(4, 32)])
    def test_m08_flags_that_no_request_has(self, bit: int) -> None:
        flags = (1 | 1 << bit).to_bytes(4, "little")
        with pytest.raises(ConnectionBroken):
            Header.parse(b"\1\0\0\0" + flags + bytes(4))

    def test_reply_literal(self) -> None:
        assert reply(Request.GET_QUEUE_NUM, u64(2)) == bytes.fromhex(
            "11000000 05000000 08000000 0200000000000000"
        )

    def test_reply_without_payload(self) -> None:
        assert reply(Request.GET_CONFIG, b"") == bytes.fromhex("18000000 05000000 00000000")


class TestRequestName:
    def test_known(self) -> None:
        assert request_name(37) == "ADD_MEM_REG"

    @pytest.mark.parametrize("request_id", [0, 45, 0xFFFFFFFF])
    def test_unknown(self, request_id: int) -> None:
        assert request_name(request_id) == f"request {request_id}"


class TestEmpty:
    def test_literal(self) -> None:
        assert Empty.parse(b"") == Empty()

    def test_trailing(self) -> None:
        with pytest.raises(RequestRefused):
            Empty.parse(b"\0")


class TestOpaque:
    @pytest.mark.parametrize("size", [0, 1, 4096])
    def test_any_size(self, size: int) -> None:
        assert Opaque.parse(bytes(size)) == Opaque()


class TestU64:
    def test_literal(self) -> None:
        assert U64.parse(bytes.fromhex("00800050 09000000")) == U64(0x9_5000_8000)

    def test_wrong_size(self) -> None:
        assert_size_matters(U64, bytes(8))

    @fuzz
    @given(U64S)
    def test_round_trip(self, value: int) -> None:
        assert U64.parse(U64(value).pack()) == U64(value)


class TestVringState:
    def test_literal(self) -> None:
        assert VringState.parse(bytes.fromhex("01000000 00010000")) == VringState(1, 256)

    def test_pack_literal(self) -> None:
        assert VringState(1, 0xFFFE).pack() == bytes.fromhex("01000000 feff0000")

    def test_wrong_size(self) -> None:
        assert_size_matters(VringState, bytes(8))

    @fuzz
    @given(U32S, U32S)
    def test_round_trip(self, index: int, num: int) -> None:
        assert VringState.parse(VringState(index, num).pack()) == VringState(index, num)


class TestVringAddress:
    LITERAL = bytes.fromhex(
        "01000000 02000000"
        "0010000000000000"  # desc
        "0030000000000000"  # used comes before avail
        "0020000000000000"  # avail
        "ffffffffffffffff"  # log, of no interest
    )

    def test_literal(self) -> None:
        message = VringAddress.parse(self.LITERAL)
        assert (message.index, message.flags) == (1, 2)
        assert message.addr == VringAddr(desc=0x1000, used=0x3000, avail=0x2000)

    def test_wrong_size(self) -> None:
        assert_size_matters(VringAddress, self.LITERAL)

    @fuzz
    @given(U32S, U32S, U64S, U64S, U64S, U64S)
    def test_round_trip(
        self, index: int, flags: int, desc: int, used: int, avail: int, log: int
    ) -> None:
        addr = VringAddr(desc=desc, used=used, avail=avail)
        data = vring_addr(index, addr, flags=flags, log=log)
        assert VringAddress.parse(data) == VringAddress(index, flags, addr)


class TestVringFile:
    def test_literal(self) -> None:
        assert VringFile.parse(bytes.fromhex("0100000000000000")) == VringFile(1, no_fd=False)

    def test_without_descriptor(self) -> None:
        assert VringFile.parse(bytes.fromhex("0101000000000000")) == VringFile(1, no_fd=True)

    def test_wrong_size(self) -> None:
        assert_size_matters(VringFile, bytes(8))

    @pytest.mark.parametrize("bit", range(9, 64))
    def test_reserved_bits(self, bit: int) -> None:
        with pytest.raises(RequestRefused, match="vring 0x"):
            VringFile.parse(u64(1 << bit))


class TestMemoryTable:
    def test_literal(self) -> None:
        data = bytes.fromhex("01000000 00000000") + REGION_BYTES
        assert MemoryTable.parse(data) == MemoryTable((REGION,))

    def test_the_padding_may_hold_anything(self) -> None:
        data = bytes.fromhex("01000000 efbeadde") + REGION_BYTES
        assert MemoryTable.parse(data) == MemoryTable((REGION,))

    def test_eight_regions(self) -> None:
        assert len(MemoryTable.parse(mem_table(*[REGION] * 8)).regions) == 8

    def test_nine_regions(self) -> None:
        with pytest.raises(RequestRefused):
            MemoryTable.parse(mem_table(*[REGION] * 9))

    def test_no_regions(self) -> None:
        with pytest.raises(RequestRefused):
            MemoryTable.parse(mem_table())

    @pytest.mark.parametrize("count", [0, 1, 3, 9, 0xFFFFFFFF])
    def test_count_and_size_disagree(self, count: int) -> None:
        with pytest.raises(RequestRefused, match=f"{count} regions"):
            MemoryTable.parse(mem_table(REGION, REGION, count=count))

    def test_wrong_size(self) -> None:
        assert_size_matters(MemoryTable, mem_table(REGION))

    @fuzz
    @given(st.lists(st.builds(MemoryRegion, U64S, U64S, U64S, U64S), min_size=1, max_size=8))
    def test_round_trip(self, regions: list[MemoryRegion]) -> None:
        assert MemoryTable.parse(mem_table(*regions)).regions == tuple(regions)


class TestSingleRegion:
    def test_literal(self) -> None:
        data = bytes.fromhex("efbeaddeefbeadde") + REGION_BYTES
        assert SingleRegion.parse(data) == SingleRegion(REGION)

    def test_wrong_size(self) -> None:
        assert_size_matters(SingleRegion, single_region(REGION))

    @fuzz
    @given(st.builds(MemoryRegion, U64S, U64S, U64S, U64S))
    def test_round_trip(self, region: MemoryRegion) -> None:
        assert SingleRegion.parse(single_region(region)).region == region


class TestConfigAccess:
    # What cloud-hypervisor sends: 17 bytes from 0, flag "writable".
    LITERAL = bytes.fromhex("00000000 11000000 01000000") + bytes(17)

    def test_literal(self) -> None:
        assert ConfigAccess.parse(self.LITERAL) == ConfigAccess(0, 1, bytes(17))

    def test_pack_literal(self) -> None:
        assert ConfigAccess(6, 0, b"\1\0").pack() == bytes.fromhex(
            "06000000 02000000 00000000 0100"
        )

    def test_wrong_size(self) -> None:
        head = bytes.fromhex("00000000 01000000 00000000")
        ConfigAccess.parse(head + b"\0")
        for bad in (b"", head[:-1], head, head + bytes(257)):
            with pytest.raises(RequestRefused, match=f"payload of {len(bad)} bytes"):
                ConfigAccess.parse(bad)

    def test_size_and_content_disagree(self) -> None:
        with pytest.raises(RequestRefused, match="16 bytes of config space"):
            ConfigAccess.parse(bytes.fromhex("00000000 10000000 00000000") + bytes(17))

    @pytest.mark.parametrize("bit", range(2, 32))
    def test_unknown_flags(self, bit: int) -> None:
        flags = (1 << bit).to_bytes(4, "little")
        with pytest.raises(RequestRefused, match="flags"):
            ConfigAccess.parse(bytes.fromhex("00000000 01000000") + flags + b"\0")

    @fuzz
    @given(U32S, st.integers(0, 3), st.binary(min_size=1, max_size=256))
    def test_round_trip(self, offset: int, flags: int, data: bytes) -> None:
        access = ConfigAccess(offset, flags, data)
        assert ConfigAccess.parse(access.pack()) == access
