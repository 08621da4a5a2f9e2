"""What a session does with legal requests."""

from __future__ import annotations

import attrs
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
    config,
    fresh,
    mem_table,
    negotiated,
    prepare_ring,
    ring_at,
    running,
    single_region,
    state,
    u64,
    vring_addr,
    with_memory,
)

WITHOUT_BIT_30 = SPLIT & ~VirtioFeature.PROTOCOL_FEATURES


class TestTable:
    def test_every_message_of_the_specification_has_a_row(self) -> None:
        assert set(TABLE) == set(Request)

    def test_requests_that_are_answered_with_a_value(self) -> None:
        assert {request for request, rule in TABLE.items() if rule.answer is Answer.OWN} >= {
            Request.GET_FEATURES,
            Request.GET_PROTOCOL_FEATURES,
            Request.GET_VRING_BASE,
            Request.GET_QUEUE_NUM,
            Request.GET_MAX_MEM_SLOTS,
        }


class TestReplies:
    def test_whole_reply(self) -> None:
        outcome = fresh().exchange(Request.GET_FEATURES)
        assert outcome.reply == bytes.fromhex("01000000 05000000 08000000 abbb43700d00c001")

    @pytest.mark.parametrize(
        ("request_id", "value"),
        [
            (Request.GET_FEATURES, 0x1C0_000D_7043_BBAB),
            (Request.GET_PROTOCOL_FEATURES, 0xA219),
            (Request.GET_QUEUE_NUM, 16),
            (Request.GET_MAX_MEM_SLOTS, 32),
        ],
    )
    def test_values_come_once_with_or_without_need_reply(self, request_id: int, value: int) -> None:
        frontend = negotiated()
        assert frontend.send(request_id) == u64(value)
        assert frontend.call(request_id) == u64(value)

    def test_no_reply_without_need_reply(self) -> None:
        assert negotiated().send(Request.SET_FEATURES, u64(SPLIT)) is None

    def test_acknowledgement(self) -> None:
        outcome = negotiated().exchange(Request.RESET_OWNER, flags=1 | NEED_REPLY)
        assert outcome.reply == bytes.fromhex("04000000 05000000 08000000 0000000000000000")

    @pytest.mark.parametrize("features", [OFFERED_PROTOCOL_FEATURES, 0])
    def test_reply_ack_counts_before_and_after_it_is_set(self, features: int) -> None:
        frontend = negotiated() if not features else fresh()
        frontend.acked(Request.SET_PROTOCOL_FEATURES, u64(features))


class TestFeatures:
    def test_nothing_is_negotiated_at_first(self) -> None:
        session = fresh().session
        assert session.features == 0
        assert session.protocol_features == 0

    def test_negotiated_features_reach_the_device(self) -> None:
        frontend = fresh()
        wanted = VirtioFeature.F_VERSION_1 | VirtioFeature.PROTOCOL_FEATURES
        frontend.send(Request.SET_FEATURES, u64(wanted))
        assert frontend.session.features == wanted
        assert frontend.device.features == wanted

    def test_negotiated_protocol_features(self) -> None:
        frontend = fresh()
        frontend.send(Request.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.MQ))
        assert frontend.session.protocol_features == ProtocolFeature.MQ

    def test_the_same_features_may_come_while_a_vring_runs(self) -> None:
        frontend = running()
        frontend.acked(Request.SET_FEATURES, u64(SPLIT))
        assert set(frontend.device.running) == {RX, TX}

    def test_other_features_after_the_vrings_stopped(self) -> None:
        frontend = running()
        for index in (RX, TX):
            frontend.get_base(index)
        frontend.send(Request.SET_FEATURES, u64(WITHOUT_BIT_30))
        assert frontend.device.features == WITHOUT_BIT_30


class TestEnable:
    def test_vrings_are_disabled_at_first(self) -> None:
        assert negotiated().device.enabled == {RX: False, TX: False}

    def test_features_without_bit_30_enable_all(self) -> None:
        frontend = fresh()
        frontend.send(Request.SET_FEATURES, u64(WITHOUT_BIT_30))
        assert frontend.device.enabled == dict.fromkeys(range(16), True)

    def test_features_with_bit_30_disable_none(self) -> None:
        frontend = fresh()
        frontend.send(Request.SET_VRING_ENABLE, state(TX, 1))
        frontend.send(Request.SET_FEATURES, u64(SPLIT))
        assert frontend.device.enabled == {RX: False, TX: True}

    def test_enable_outlives_stop_and_start(self) -> None:
        frontend = running()
        frontend.get_base(RX)
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.enabled[RX]

    def test_disable_leaves_the_vring_running(self) -> None:
        frontend = running()
        frontend.send(Request.SET_VRING_ENABLE, state(RX, 0))
        assert frontend.device.enabled == {RX: False, TX: True}
        assert RX in frontend.device.running


class TestStart:
    def test_the_kick_starts_a_complete_vring(self) -> None:
        frontend = with_memory()
        prepare_ring(frontend, RX)
        assert frontend.device.started == []
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started == [(RX, 0)]
        assert frontend.device.running == {RX: (256, RINGS[RX])}

    def test_no_descriptor_means_poll_and_starts_too(self) -> None:
        frontend = with_memory()
        prepare_ring(frontend, TX)
        frontend.send(Request.SET_VRING_KICK, u64(TX | NOFD))
        assert frontend.device.polled == {TX}
        assert TX in frontend.device.running

    def test_without_a_base_the_device_looks_at_the_used_ring(self) -> None:
        frontend = with_memory()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started == [(RX, None)]

    def test_held_until_there_is_a_memory_table(self) -> None:
        frontend = negotiated()
        prepare_ring(frontend, RX)
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.running == {}
        frontend.acked(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        assert set(frontend.device.running) == {RX}

    def test_held_until_there_is_a_region_around_it(self) -> None:
        frontend = negotiated()
        prepare_ring(frontend, RX)
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        frontend.acked(Request.ADD_MEM_REG, single_region(UPPER), fds=1)
        assert frontend.device.running == {}
        frontend.acked(Request.ADD_MEM_REG, single_region(REGION), fds=1)
        assert set(frontend.device.running) == {RX}

    def test_held_until_there_are_addresses(self) -> None:
        frontend = with_memory()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, NULL))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.running == {}
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
        assert set(frontend.device.running) == {RX}

    def test_null_addresses_take_back_the_former_ones(self) -> None:
        frontend = with_memory()
        prepare_ring(frontend, RX)
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, NULL))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.running == {}

    def test_user_address_0_is_an_address(self) -> None:
        frontend = negotiated()
        low = VringAddr(desc=0, avail=0x1000, used=0x2000)
        frontend.send(Request.SET_MEM_TABLE, mem_table(MemoryRegion(0, 2 * MIB, 0, 0)), fds=1)
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, low))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.running == {RX: (256, low)}

    def test_each_vring_by_itself(self) -> None:
        frontend = with_memory()
        prepare_ring(frontend, TX)
        frontend.send(Request.SET_VRING_KICK, u64(TX), fds=1)
        assert set(frontend.device.running) == {TX}

    def test_a_kick_that_cannot_start_the_vring_is_refused_and_forgotten(self) -> None:
        frontend = negotiated()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, ring_at(0x1000)))
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        with pytest.raises(ConnectionBroken, match="outside guest memory"):
            frontend.exchange(Request.SET_VRING_KICK, u64(RX), 1)
        assert frontend.device.owned == {}
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
        assert frontend.device.running == {}

    def test_addresses_that_cannot_start_the_vring_are_refused_and_forgotten(self) -> None:
        frontend = with_memory()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        frontend.device.refuse = {"start_vring"}
        with pytest.raises(ConnectionBroken):
            frontend.exchange(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
        frontend.device.refuse = set()
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        assert frontend.device.running == {}


class TestStop:
    def test_get_vring_base_stops(self) -> None:
        frontend = running()
        frontend.device.index_at_stop = 0xFFFE
        assert frontend.get_base(RX) == 0xFFFE
        assert set(frontend.device.running) == {TX}

    def test_the_kick_is_closed_call_stays(self) -> None:
        frontend = running()
        frontend.get_base(RX)
        assert set(frontend.device.owned) == {("call", RX), ("call", TX), ("kick", TX)}

    def test_polling_ends(self) -> None:
        frontend = running()
        frontend.send(Request.SET_VRING_KICK, u64(RX | NOFD))
        frontend.get_base(RX)
        assert frontend.device.polled == set()

    def test_only_a_kick_starts_it_again(self) -> None:
        frontend = running()
        frontend.get_base(RX)
        prepare_ring(frontend, RX)
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        frontend.send(Request.SET_VRING_ENABLE, state(RX, 1))
        assert RX not in frontend.device.running
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert RX in frontend.device.running

    def test_goes_on_where_it_stopped(self) -> None:
        frontend = running()
        frontend.device.index_at_stop = 300
        frontend.get_base(RX)
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started[-1] == (RX, 300)

    def test_goes_on_where_the_frontend_says(self) -> None:
        frontend = running()
        frontend.device.index_at_stop = 300
        frontend.get_base(RX)
        frontend.send(Request.SET_VRING_BASE, state(RX, 0))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started[-1] == (RX, 0)

    def test_of_a_vring_that_was_given_a_base_only(self) -> None:
        frontend = negotiated()
        frontend.send(Request.SET_VRING_BASE, state(TX, 77))
        assert frontend.get_base(TX) == 77

    def test_a_held_kick_is_forgotten(self) -> None:
        frontend = negotiated()
        prepare_ring(frontend, RX)
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        frontend.get_base(RX)
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        assert frontend.device.running == {}
        assert frontend.device.owned == {}


class TestRunning:
    def test_addresses_may_change(self) -> None:
        frontend = running()
        elsewhere = ring_at(REGION.user_addr + MIB)
        frontend.acked(Request.SET_VRING_ADDR, vring_addr(RX, elsewhere))
        assert frontend.device.running[RX] == (256, elsewhere)
        assert len(frontend.device.started) == 2

    def test_moved_addresses_are_those_of_the_next_start(self) -> None:
        frontend = running()
        elsewhere = ring_at(REGION.user_addr + MIB)
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, elsewhere))
        frontend.get_base(RX)
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.running[RX] == (256, elsewhere)

    def test_memory_may_change_around_it(self) -> None:
        frontend = running()
        frontend.acked(Request.SET_MEM_TABLE, mem_table(REGION, UPPER), fds=2)
        assert frontend.device.regions == [REGION, UPPER]

    def test_the_address_of_the_log_does_not_matter(self) -> None:
        frontend = with_memory()
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX], log=1))


class TestDescriptors:
    @pytest.mark.parametrize("request_id", [Request.SET_VRING_CALL, Request.SET_VRING_ERR])
    def test_call_and_err_before_everything_else(self, request_id: Request) -> None:
        frontend = fresh()
        frontend.send(request_id, u64(TX), fds=1)
        kind = request_id.name.removeprefix("SET_VRING_").lower()
        assert set(frontend.device.owned) == {(kind, TX)}

    @pytest.mark.parametrize("request_id", [Request.SET_VRING_CALL, Request.SET_VRING_ERR])
    def test_no_descriptor_any_more(self, request_id: int) -> None:
        frontend = fresh()
        frontend.send(request_id, u64(TX), fds=1)
        frontend.send(request_id, u64(TX | NOFD))
        assert frontend.device.owned == {}

    def test_set_log_fd_is_accepted_and_closed(self) -> None:
        frontend = negotiated()
        frontend.acked(Request.SET_LOG_FD, fds=1)
        assert frontend.device.owned == {}

    @pytest.mark.parametrize("fds", [0, 1])
    def test_rem_mem_reg_with_the_descriptor_of_older_qemu(self, fds: int) -> None:
        frontend = with_memory()
        frontend.acked(Request.REM_MEM_REG, single_region(REGION), fds=fds)
        assert frontend.device.regions == []


class TestMemory:
    def test_a_table_replaces_all(self) -> None:
        frontend = with_memory()
        frontend.acked(Request.SET_MEM_TABLE, mem_table(UPPER), fds=1)
        assert frontend.device.regions == [UPPER]

    def test_add_and_remove(self) -> None:
        frontend = with_memory()
        frontend.acked(Request.ADD_MEM_REG, single_region(UPPER), fds=1)
        assert frontend.device.regions == [REGION, UPPER]
        frontend.acked(Request.REM_MEM_REG, single_region(REGION))
        assert frontend.device.regions == [UPPER]

    def test_removal_does_not_compare_the_mmap_offset(self) -> None:
        # QEMU sends 0 there.
        frontend = negotiated()
        frontend.send(Request.ADD_MEM_REG, single_region(UPPER), fds=1)
        same = attrs.evolve(UPPER, mmap_offset=0)
        frontend.acked(Request.REM_MEM_REG, single_region(same))
        assert frontend.device.regions == []

    def test_a_region_that_was_removed_can_come_back(self) -> None:
        frontend = with_memory()
        frontend.acked(Request.REM_MEM_REG, single_region(REGION))
        frontend.acked(Request.ADD_MEM_REG, single_region(REGION), fds=1)
        assert frontend.device.regions == [REGION]

    def test_no_start_after_all_memory_was_removed(self) -> None:
        frontend = with_memory()
        prepare_ring(frontend, RX)
        frontend.send(Request.REM_MEM_REG, single_region(REGION))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.running == {}

    def test_regions_may_touch(self) -> None:
        above = MemoryRegion(REGION.size, MIB, REGION.user_addr + REGION.size, REGION.size)
        negotiated().acked(Request.SET_MEM_TABLE, mem_table(above, REGION), fds=2)

    def test_as_many_regions_as_were_promised(self) -> None:
        frontend = negotiated()
        for slot in range(frontend.get_u64(Request.GET_MAX_MEM_SLOTS)):
            region = MemoryRegion(slot * MIB, MIB, slot * MIB, 0)
            frontend.acked(Request.ADD_MEM_REG, single_region(region), fds=1)
        assert len(frontend.device.regions) == 32


class TestConfig:
    # MAC, link up, 8 pairs, MTU 1450.
    SPACE = bytes.fromhex("525400123456 0100 0800 aa05") + bytes(244)

    def read(self, frontend: Frontend, offset: int, size: int, flags: int = 0) -> bytes:
        reply = frontend.send(Request.GET_CONFIG, config(offset, size, flags=flags))
        assert reply is not None
        assert reply[:12] == config(offset, size, flags=flags)[:12]
        return reply[12:]

    @pytest.mark.parametrize("size", [1, 6, 8, 12, 17, 24, 255, 256])
    def test_exactly_as_much_as_was_asked_for(self, size: int) -> None:
        assert self.read(negotiated(), 0, size) == self.SPACE[:size]

    def test_anywhere(self) -> None:
        frontend = negotiated()
        for offset in range(256):
            assert self.read(frontend, offset, 256 - offset) == self.SPACE[offset:]
            assert self.read(frontend, offset, 1) == self.SPACE[offset : offset + 1]

    @pytest.mark.parametrize("flags", [0, 1, 2, 3])
    def test_flags_are_echoed(self, flags: int) -> None:
        self.read(negotiated(), 0, 17, flags)

    def test_set_mtu_is_what_the_guest_sees(self) -> None:
        frontend = negotiated()
        frontend.acked(Request.NET_SET_MTU, u64(9000))
        assert self.read(frontend, 10, 2) == (9000).to_bytes(2, "little")
        assert frontend.device.mtu == 9000

    @pytest.mark.parametrize("mtu", [68, 65535])
    def test_extreme_mtu(self, mtu: int) -> None:
        frontend = negotiated()
        frontend.acked(Request.NET_SET_MTU, u64(mtu))
        assert self.read(frontend, 10, 2) == mtu.to_bytes(2, "little")


class TestReset:
    def test_reset_device_forgets_the_vrings(self) -> None:
        frontend = running()
        frontend.send(Request.SET_VRING_ERR, u64(RX), fds=1)
        frontend.acked(Request.RESET_DEVICE)
        assert frontend.device.running == {}
        assert frontend.device.enabled == {RX: False, TX: False}
        assert frontend.device.owned == {}
        assert frontend.get_base(RX) == 0

    def test_reset_device_forgets_the_features(self) -> None:
        frontend = running()
        frontend.send(Request.RESET_DEVICE)
        assert frontend.session.features == 0
        assert frontend.device.features == 0

    def test_reset_device_keeps_memory_and_protocol_features(self) -> None:
        frontend = running()
        frontend.send(Request.RESET_DEVICE)
        assert frontend.device.regions == [REGION]
        assert frontend.session.protocol_features == OFFERED_PROTOCOL_FEATURES

    def test_start_after_reset_device(self) -> None:
        frontend = running()
        frontend.send(Request.RESET_DEVICE)
        frontend.send(Request.SET_FEATURES, u64(SPLIT))
        frontend.send(Request.SET_VRING_NUM, state(RX, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started[-1] == (RX, None)

    def test_reset_owner_changes_nothing_for_the_vrings(self) -> None:
        frontend = running()
        before = frontend.device.snapshot()
        frontend.acked(Request.RESET_OWNER)
        assert frontend.device.snapshot() == before

    def test_reset_owner_makes_room_for_an_owner(self) -> None:
        frontend = negotiated()
        frontend.acked(Request.RESET_OWNER)
        frontend.acked(Request.SET_OWNER)


def test_send_rarp_is_acknowledged() -> None:
    negotiated().acked(Request.SEND_RARP, bytes.fromhex("525400123456 0000"))


class TestPacked:
    """Vrings in the other layout (virtio 1.2, 2.8)."""

    BEGINNING = 0x8000_8000
    RING = VringAddr(desc=REGION.user_addr, avail=REGION.user_addr + 16, used=REGION.user_addr + 20)
    """Of a single entry: as small as a packed vring can be, and none that a split one can."""

    def with_memory(self) -> Frontend:
        frontend = negotiated(SPLIT | VirtioFeature.F_RING_PACKED)
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        return frontend

    def start(self, frontend: Frontend, *, size: int = 1, base: int | None = None) -> None:
        frontend.send(Request.SET_VRING_NUM, state(RX, size))
        if base is not None:
            frontend.send(Request.SET_VRING_BASE, state(RX, base))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, self.RING if size == 1 else RINGS[RX]))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)

    @pytest.mark.parametrize("base", [BEGINNING, 0x8000, 0, None])
    def test_starts_with_what_the_frontend_says(self, base: int | None) -> None:
        frontend = self.with_memory()
        self.start(frontend, base=base)
        assert frontend.device.started == [(RX, base)]

    @pytest.mark.parametrize("size", [1, 3, 255, 256, 32768])
    def test_sizes(self, size: int) -> None:
        frontend = self.with_memory()
        frontend.acked(Request.SET_VRING_NUM, state(RX, size))

    def test_goes_on_where_it_stopped(self) -> None:
        frontend = self.with_memory()
        self.start(frontend, size=100)
        frontend.device.index_at_stop = 0x8063_8063
        assert [frontend.get_base(RX), frontend.get_base(RX)] == [0x8063_8063] * 2
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started[-1] == (RX, 0x8063_8063)

    def test_that_never_ran_stands_at_its_beginning(self) -> None:
        assert self.with_memory().get_base(RX) == self.BEGINNING

    def test_features_may_come_last(self) -> None:
        frontend = fresh()
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        frontend.send(Request.SET_VRING_NUM, state(RX, 1))
        frontend.send(Request.SET_VRING_BASE, state(RX, self.BEGINNING))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, self.RING))
        frontend.send(Request.SET_FEATURES, u64(SPLIT | VirtioFeature.F_RING_PACKED))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started == [(RX, self.BEGINNING)]

    @pytest.mark.parametrize(("size", "base"), [(1, 0), (3, 0), (4, 0x8000_8000)])
    def test_what_is_none_of_a_split_vring_is_refused_at_its_start(
        self, size: int, base: int
    ) -> None:
        frontend = fresh()
        frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        frontend.send(Request.SET_VRING_NUM, state(RX, size))
        frontend.send(Request.SET_VRING_BASE, state(RX, base))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(RX, RINGS[RX]))
        frontend.send(Request.SET_FEATURES, u64(SPLIT))
        with pytest.raises(ConnectionBroken):
            frontend.exchange(Request.SET_VRING_KICK, u64(RX), 1)
        assert frontend.device.started == []

    def test_the_index_of_one_layout_says_nothing_about_the_other(self) -> None:
        frontend = running()
        frontend.device.index_at_stop = 40000
        for index in (RX, TX):
            frontend.get_base(index)
        frontend.send(Request.SET_FEATURES, u64(SPLIT | VirtioFeature.F_RING_PACKED))
        frontend.send(Request.SET_VRING_KICK, u64(RX), fds=1)
        assert frontend.device.started[-1] == (RX, None)
