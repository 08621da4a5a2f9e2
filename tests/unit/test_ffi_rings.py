"""The C core's rings against the harness's driver, without a socket in between."""

from __future__ import annotations

import errno
import os

import pytest

from mvirt_net.errors import CoreError
from mvirt_net.ffi import NextStep
from mvirt_net.model import RX_QUEUE, TX_QUEUE, DropReason, PuntKind, VringAddr
from tests.harness.memory import Region
from tests.harness.packed import pack_desc
from tests.harness.packets import GATEWAY_IP, arp_request, ethernet_frame
from tests.harness.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VirtioNetHdr,
    VringDesc,
)
from tests.layouts import BOTH_LAYOUTS, PACKED_ONLY, SPLIT_ONLY

from .rig import (
    EVENT_IDX,
    INDIRECT_DESC,
    MAC,
    MRG_RXBUF,
    PAGE,
    RING_PACKED,
    VERSION_1,
    Rig,
    open_rig,
)

pytestmark = BOTH_LAYOUTS

ARP = arp_request(MAC.packed, [10, 0, 0, 5], GATEWAY_IP)


def frame(length: int, fill: int = 0xA5) -> bytes:
    """An Ethernet frame of `length` bytes for the guest."""
    return ethernet_frame(MAC.packed, [2, 0, 0, 0, 0, 1], 0x0800, bytes([fill]) * (length - 14))


def receive(rig: Rig) -> list[bytes]:
    """Flush the backlog and take all frames that have arrived."""
    rig.flush()
    frames = []
    while received := rig.rx.pop_frame(mergeable=bool(rig.features & MRG_RXBUF)):
        frames.append(received.frame)
    return frames


# TX


def test_frame_for_a_service_is_handed_up_and_its_buffer_returned() -> None:
    with open_rig() as rig:
        rig.start()
        head = rig.send(ARP)
        punts = rig.drain()
        assert [(punt.kind, punt.frame) for punt in punts] == [(PuntKind.ARP, ARP)]
        used = rig.tx.pop_used()
        assert used is not None
        assert (used.head, used.length) == (head, 0)
        assert rig.port.stats().tx_frames == rig.port.stats().punts == 1
        assert rig.port.stats().tx_bytes == len(ARP)


@SPLIT_ONLY
@pytest.mark.parametrize("size", [2, 4, 256, 32768])
def test_ring_sizes_and_wrap_around_of_the_indices(size: int) -> None:
    with open_rig(size=size, regions=[Region(0, 4 << 20)]) as rig:
        rig.start(base=65534)
        for _ in range(5):
            addr = rig.buffer(12 + len(ARP))
            rig.tx.add_tx_buffer(addr, ARP)
            assert len(rig.drain()) == 1
            assert rig.tx.pop_used() is not None
            rig.guest.free_buffer(addr)
        assert rig.port.stop_ring(TX_QUEUE) == 3


def test_header_and_data_split_into_single_bytes() -> None:
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        total = 12 + len(ARP)
        for table in (None, rig.buffer(16 * total)):
            start = rig.buffer(2 * total)
            rig.tx.add_tx_buffer([(start + 2 * i, 1) for i in range(total)], ARP, table=table)
            assert [punt.frame for punt in rig.drain()] == [ARP]


def test_buffer_that_crosses_adjacent_regions() -> None:
    regions = [Region(0, 1 << 20), Region(1 << 20, 1 << 20, user_offset=5 << 40, file=1)]
    with open_rig(regions=regions) as rig:
        rig.start()
        addr = rig.guest.reserve((1 << 20) - 20, 12 + len(ARP))
        rig.tx.add_tx_buffer(addr, ARP)
        assert [punt.frame for punt in rig.drain()] == [ARP]


def test_legacy_driver_without_num_buffers() -> None:
    with open_rig(features=0) as rig:
        rig.start()
        addr = rig.buffer(100)
        rig.guest.write(addr, bytes(10) + ARP)
        rig.tx.add_chain([(addr, 10 + len(ARP))], ())
        assert [punt.frame for punt in rig.drain()] == [ARP]
        room = rig.buffer(100)
        rig.rx.add_chain((), [(room, 100)])
        rig.port.enqueue(ARP)
        rig.flush()
        used = rig.rx.pop_used()
        assert used is not None
        assert used.length == 10 + len(ARP)
        assert rig.guest.read(room, used.length) == bytes(10) + ARP


def test_disabled_tx_ring_is_consumed_and_discarded() -> None:
    with open_rig() as rig:
        rig.start()
        rig.port.enable_ring(TX_QUEUE, False)
        rig.send(ARP)
        assert rig.drain() == []
        assert rig.tx.pop_used() is not None
        assert rig.drops() == {"RING_DISABLED": 1}


def test_one_drain_takes_a_bounded_number_of_punts() -> None:
    with open_rig() as rig:
        rig.start()
        for _ in range(200):
            rig.send(ARP)
        drained = rig.port.drain()
        assert len(drained.punts) <= 64
        assert drained.next is NextStep.CALL_AGAIN
        assert len(drained.punts) + len(rig.drain()) == 200


def test_one_drain_takes_a_bounded_number_of_bytes() -> None:
    """Frames of 64 KiB without a service: 16 of them are 1 MiB."""
    with open_rig(size=1024, regions=[Region(0, 4 << 20)]) as rig:
        rig.start()
        addr = rig.buffer(12 + 65000)
        rig.guest.write(addr, bytes(12) + frame(65000))
        for _ in range(1000):
            rig.tx.add_chain([(addr, 12 + 65000)], ())
        assert rig.port.drain().next is NextStep.CALL_AGAIN
        assert 1 <= rig.port.stats().tx_frames <= 17
        rig.drain()
        assert rig.port.stats().tx_frames == 1000


# Notifications


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_kicks_are_asked_for_only_when_the_tx_ring_is_empty(features: int) -> None:
    with open_rig(features=features) as rig:
        rig.start()
        rig.drain()
        rig.tx.kick_needed()
        rig.send(ARP)
        assert rig.tx.kick_needed()
        rig.drain()
        assert rig.port.stats().kicks == 1
        for _ in range(70):
            rig.send(ARP)
        assert rig.port.drain().next is NextStep.CALL_AGAIN
        rig.tx.kick_needed()
        rig.send(ARP)
        assert not rig.tx.kick_needed()


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_rx_ring_needs_no_kicks_until_a_frame_waits(features: int) -> None:
    with open_rig(features=features) as rig:
        rig.start()
        rig.rx.kick_needed()
        rig.offer(2048, 4)
        assert not rig.rx.kick_needed()
        for _ in range(5):
            rig.port.enqueue(ARP)
        assert rig.flush() is NextStep.KICK
        assert rig.port.backlog == 1
        rig.offer(2048)
        assert rig.rx.kick_needed()
        assert len(receive(rig)) == 5
        assert rig.flush() is NextStep.NOTHING
        rig.offer(2048)
        assert not rig.rx.kick_needed()


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_rx_buffers_that_are_used_as_they_come_need_no_kick(features: int) -> None:
    """A driver that gives several and then looks: all that waited for them is there already."""
    with open_rig(features=features) as rig:
        rig.start()
        for _ in range(2):
            rig.port.enqueue(ARP)
        assert rig.flush() is NextStep.KICK
        rig.rx.kick_needed()
        rig.offer(2048)
        assert rig.flush() is NextStep.KICK
        rig.offer(2048)
        assert rig.flush() is NextStep.NOTHING
        assert not rig.rx.kick_needed()


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_driver_is_called_once_a_batch_and_only_if_it_wants(features: int) -> None:
    with open_rig(features=features) as rig:
        rig.start()
        rig.tx.enable_call()
        for _ in range(10):
            rig.send(ARP)
        rig.drain()
        assert rig.called(TX_QUEUE) == 1
        assert rig.port.stats().calls == 1
        while rig.tx.pop_used():
            pass
        rig.tx.disable_call()
        for _ in range(10):
            rig.send(ARP)
        rig.drain()
        assert rig.called(TX_QUEUE) == 0
        while rig.tx.pop_used():
            pass
        assert not rig.tx.enable_call()
        rig.send(ARP)
        rig.drain()
        assert rig.called(TX_QUEUE) == 1


def test_event_idx_calls_when_the_driver_said() -> None:
    with open_rig(features=VERSION_1 | EVENT_IDX) as rig:
        rig.start()
        rig.send(ARP)
        rig.drain()
        rig.called(TX_QUEUE)
        rig.tx.pop_used()
        rig.tx.enable_call(after=3)
        for expected in (0, 0, 1):
            rig.send(ARP)
            rig.drain()
            assert rig.called(TX_QUEUE) == expected


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | EVENT_IDX])
def test_call_that_comes_after_the_frames_is_told_of_them(features: int) -> None:
    """QEMU replaces the call descriptor once the ring runs; what the first one got is lost."""
    with open_rig(features=features) as rig:
        rig.start()
        throw_away = os.eventfd(0, os.EFD_NONBLOCK)
        rig.port.set_call(TX_QUEUE, throw_away)
        rig.port.set_call(RX_QUEUE, None)
        rig.offer(2048)
        rig.send(ARP)
        rig.drain()
        rig.port.enqueue(ARP)
        rig.flush()
        for queue in (RX_QUEUE, TX_QUEUE):
            assert rig.called(queue) == 0
            rig.port.set_call(queue, rig.calls[queue])
            assert rig.called(queue) == 1
        os.close(throw_away)


def test_new_call_of_a_ring_without_news_stays_silent() -> None:
    with open_rig() as rig:
        rig.start()
        rig.port.set_call(TX_QUEUE, rig.calls[TX_QUEUE])
        assert rig.called(TX_QUEUE) == 0


@SPLIT_ONLY
def test_err_that_comes_after_the_break_is_told_of_it() -> None:
    with open_rig() as rig:
        rig.start()
        rig.port.set_err(TX_QUEUE, None)
        rig.tx.offer_raw(300)
        rig.port.drain()
        rig.port.set_err(TX_QUEUE, rig.errs[TX_QUEUE])
        assert rig.erred(TX_QUEUE)


def test_driver_that_polls_is_never_called() -> None:
    with open_rig() as rig:
        rig.start()
        rig.port.set_call(TX_QUEUE, None)
        rig.send(ARP)
        rig.drain()
        assert rig.called(TX_QUEUE) == 0
        assert rig.port.stats().calls == 0


# RX


def test_frame_arrives_whole_with_its_header_cleared() -> None:
    with open_rig() as rig:
        rig.start()
        addr = rig.buffer(200)
        rig.guest.write(addr, b"\xff" * 200)
        rig.rx.add_rx_buffer([(addr, 5), (addr + 50, 9), (addr + 100, 100)])
        rig.port.enqueue(ARP)
        rig.flush()
        received = rig.rx.pop_frame()
        assert received is not None
        assert received.frame == ARP
        assert received.header == VirtioNetHdr(num_buffers=1)
        assert rig.port.stats().rx_frames == 1


def test_mergeable_buffers_take_a_frame_in_parts() -> None:
    with open_rig(features=VERSION_1 | MRG_RXBUF) as rig:
        rig.start()
        rig.offer(100, 8)
        rig.offer(2048, 2)
        big, small = frame(700), frame(60, 1)
        rig.port.enqueue(big)
        rig.port.enqueue(small)
        assert receive(rig) == [big, small]


def test_frame_that_fits_exactly() -> None:
    with open_rig() as rig:
        rig.start()
        rig.offer(12 + 60)
        rig.port.enqueue(frame(60))
        assert receive(rig) == [frame(60)]


def test_r14_chain_that_is_too_small_costs_the_frame_alone() -> None:
    with open_rig() as rig:
        rig.start()
        rig.offer(12 + 60)
        rig.port.enqueue(frame(61))
        rig.port.enqueue(frame(60))
        assert receive(rig) == [frame(60)]
        assert rig.drops() == {"RX_BUFFER_TOO_SMALL": 1}


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | MRG_RXBUF])
def test_r14_chains_without_room_for_a_header_are_given_back(features: int) -> None:
    with open_rig(features=features) as rig:
        rig.start()
        for size in (1, 11):
            rig.offer(size)
        rig.offer(2048)
        rig.port.enqueue(ARP)
        rig.flush()
        assert [used.length for used in (rig.rx.pop_used(), rig.rx.pop_used()) if used] == [0, 0]
        received = rig.rx.pop_frame()
        assert received is not None
        assert received.frame == ARP


def test_r14_ring_that_has_buffers_but_too_few_for_the_frame() -> None:
    """CVE-2026-74356's livelock: no waiting for what may never come."""
    with open_rig(features=VERSION_1 | MRG_RXBUF) as rig:
        rig.start()
        rig.offer(100, 3)
        rig.port.enqueue(frame(1000))
        rig.port.enqueue(frame(60))
        assert receive(rig) == [frame(60)]
        assert rig.drops() == {"RX_BUFFER_TOO_SMALL": 1}


def test_r10_bad_buffer_in_the_middle_of_a_frame_goes_back_with_all_before_it() -> None:
    with open_rig(features=VERSION_1 | MRG_RXBUF) as rig:
        rig.start()
        rig.offer(100, 2)
        rig.rx.add_chain([(rig.buffer(100), 100)], ())
        rig.offer(2048, 1)
        rig.port.enqueue(frame(1000))
        rig.flush()
        lengths = [used.length for _ in range(3) if (used := rig.rx.pop_used())]
        assert lengths == [0, 0, 0]
        rig.port.enqueue(ARP)
        assert receive(rig) == [ARP]
        assert rig.drops() == {"RX_BUFFER_INVALID": 1}


def test_backlog_is_bounded() -> None:
    with open_rig() as rig:
        rig.start()
        taken = [rig.port.enqueue(ARP) for _ in range(300)]
        assert taken == [True] * 256 + [False] * 44
        assert rig.drops() == {"RX_BACKLOG_FULL": 44}


@pytest.mark.parametrize("started", [False, True])
def test_frames_for_a_ring_that_is_down_are_dropped(started: bool) -> None:
    with open_rig() as rig:
        if started:
            rig.start()
            rig.port.enable_ring(RX_QUEUE, False)
        assert not rig.port.enqueue(ARP)
        assert rig.flush() is NextStep.NOTHING
        assert rig.drops() == {"RX_RING_DOWN": 1}


def test_stopping_the_rx_ring_drops_its_backlog() -> None:
    with open_rig() as rig:
        rig.start()
        rig.port.enqueue(ARP)
        rig.port.stop_ring(RX_QUEUE)
        assert rig.port.backlog == 0
        assert rig.drops() == {"RX_RING_DOWN": 1}


def test_disabled_rx_ring_is_left_untouched() -> None:
    with open_rig() as rig:
        addr = rig.lay_out(RX_QUEUE)
        before = rig.guest.read(rig.rx.used_ring, 16)
        rig.port.start_ring(RX_QUEUE, rig.size, addr, 0)
        rig.flush()
        assert rig.guest.read(rig.rx.used_ring, 16) == before


@pytest.mark.parametrize("length", [0, 13, 65550])
def test_frames_that_are_none_are_refused(length: int) -> None:
    with open_rig() as rig:
        rig.start()
        with pytest.raises(CoreError) as caught:
            rig.port.enqueue(bytes(length))
        assert caught.value.errno == errno.EINVAL


def test_longest_frame_goes_both_ways() -> None:
    with open_rig(features=VERSION_1 | MRG_RXBUF) as rig:
        rig.start()
        rig.offer(2048, 40)
        longest = frame(14 + 65535)
        rig.port.enqueue(longest)
        assert receive(rig) == [longest]
        rig.send(longest)
        rig.send(longest + b"!")
        rig.drain()
        assert rig.drops() == {"SOURCE_MAC": 1, "TX_TOO_LONG": 1}


# Start, stop, move


@SPLIT_ONLY
@pytest.mark.parametrize(
    ("base", "used", "avail", "expected"),
    [
        pytest.param(0, 0, 0, 0, id="fresh"),
        pytest.param(7, 7, 7, 7, id="restart"),
        pytest.param(None, 7, 9, 7, id="none-given"),
        pytest.param(7, 7, 20, 7, id="buffers-waiting"),
        pytest.param(20, 7, 20, 7, id="base-is-the-available-index"),
        pytest.param(19, 7, 20, 7, id="base-was-the-available-index"),
        pytest.param(3, 7, 20, 7, id="base-behind-the-used-index"),
        pytest.param(5, 0, 0, 5, id="base-of-an-empty-ring"),
        pytest.param(100, 100, 100, 100, id="far"),
        pytest.param(65535, 65535, 2, 65535, id="wrapped"),
        pytest.param(40000, 0, 40000, 40000, id="used-index-makes-no-sense"),
    ],
)
def test_r22_where_a_ring_starts(base: int | None, used: int, avail: int, expected: int) -> None:
    with open_rig() as rig:
        addr = rig.lay_out(TX_QUEUE)
        rig.guest.store16(rig.tx.used_ring + 2, used)
        rig.guest.store16(rig.tx.avail_ring + 2, avail)
        rig.port.start_ring(TX_QUEUE, rig.size, addr, base)
        assert rig.port.stop_ring(TX_QUEUE) == expected
        assert rig.port.stop_ring(TX_QUEUE) == expected


def test_nothing_is_written_to_a_stopped_ring() -> None:
    with open_rig() as rig:
        rig.start()
        rig.send(ARP)
        rig.drain()
        rig.offer(2048)
        for queue in (RX_QUEUE, TX_QUEUE):
            rig.port.stop_ring(queue)
        before = rig.guest.read(0, 1 << 20)
        rig.send(ARP)
        rig.guest.write(0, before)
        rig.port.enqueue(ARP)
        assert rig.port.drain().next is NextStep.NOTHING
        assert rig.flush() is NextStep.NOTHING
        assert rig.guest.read(0, 1 << 20) == before


def test_running_ring_moves() -> None:
    with open_rig() as rig:
        rig.start()
        rig.send(ARP)
        rig.drain()
        addr = rig.lay_out(TX_QUEUE, base=1)
        rig.port.move_ring(TX_QUEUE, addr)
        rig.send(ARP)
        assert len(rig.drain()) == 1
        assert rig.tx.used_idx() == 2


@SPLIT_ONLY
@pytest.mark.parametrize("size", [0, 1, 3, 255, 65536, 1 << 31])
def test_m35_ring_sizes_that_are_none(size: int) -> None:
    with open_rig() as rig, pytest.raises(CoreError) as caught:
        rig.port.check_ring(size, rig.lay_out(TX_QUEUE))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("part", "offset"), [("desc", 8), ("avail", 1), ("used", 2), ("desc", 1), ("used", 1)]
)
def test_m36_misaligned_parts(part: str, offset: int) -> None:
    with open_rig() as rig:
        addr = {"desc": 0x10000, "avail": 0x20000, "used": 0x30000}
        addr = {name: rig.user_addr(at) for name, at in addr.items()}
        rig.port.check_ring(256, VringAddr(**addr))
        addr[part] += offset
        with pytest.raises(CoreError) as caught:
            rig.port.check_ring(256, VringAddr(**addr))
        assert caught.value.errno == errno.EINVAL


@SPLIT_ONLY
@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize("where", ["end", "hole", "overflow", "null", "guest address"])
def test_m36_m37_parts_outside_memory(part: str, where: str) -> None:
    regions = [Region(0, 1 << 20, 5 << 40), Region(1 << 20, 1 << 20, 9 << 40, file=1)]
    with open_rig(regions=regions) as rig:
        addr = {"desc": 0x10000, "avail": 0x20000, "used": 0x30000}
        addr = {name: rig.user_addr(at) for name, at in addr.items()}
        addr[part] = {
            "end": rig.user_addr((1 << 20) - 16),  # goes on in the next region's guest addresses
            "hole": 7 << 40,
            "overflow": (1 << 64) - 256,
            "null": 0,
            "guest address": 0x40000,
        }[where]
        with pytest.raises(CoreError) as caught:
            rig.port.check_ring(256, VringAddr(**addr))
        assert caught.value.errno == errno.EFAULT


@SPLIT_ONLY
def test_r21_parts_that_overlap_one_another() -> None:
    with open_rig() as rig:
        base = rig.user_addr(0x10000)
        for addr in (
            VringAddr(base, base, base),
            VringAddr(desc=base, avail=base + 4094, used=base + 0x8000),
            VringAddr(desc=base, avail=base + 0x8000, used=base + 0x8200),
            VringAddr(desc=base + 0x800, avail=base + 0x8000, used=base),
        ):
            with pytest.raises(CoreError) as caught:
                rig.port.check_ring(256, addr)
            assert caught.value.errno == errno.EINVAL


def test_features_stay_while_a_ring_runs() -> None:
    with open_rig() as rig:
        rig.start()
        rig.port.set_features(rig.features)
        with pytest.raises(CoreError) as caught:
            rig.port.set_features(0)
        assert caught.value.errno == errno.EBUSY


# What drivers must not do


def break_tx(rig: Rig) -> None:
    """The TX ring must be broken by now, say so, and work again after a restart."""
    assert rig.port.drain().next is NextStep.NOTHING
    assert rig.port.ring_broken(TX_QUEUE)
    assert rig.erred(TX_QUEUE)
    assert not rig.port.ring_broken(RX_QUEUE)
    assert rig.port.drain().next is NextStep.NOTHING
    assert not rig.erred(TX_QUEUE), "said once"
    rig.port.stop_ring(TX_QUEUE)
    rig.port.start_ring(TX_QUEUE, rig.size, rig.lay_out(TX_QUEUE), 0)
    rig.send(ARP)
    assert len(rig.drain()) == 1


@SPLIT_ONLY
@pytest.mark.parametrize("jump", [257, 32768, 65535])
def test_r01_available_index_that_jumps(jump: int) -> None:
    with open_rig() as rig:
        rig.start()
        rig.tx.write_avail_idx(jump)
        break_tx(rig)


@SPLIT_ONLY
@pytest.mark.parametrize("head", [256, 65535])
def test_r02_head_outside_the_table(head: int) -> None:
    with open_rig() as rig:
        rig.start()
        rig.tx.offer_raw(head)
        break_tx(rig)


def next_desc(index: int) -> VringDesc:
    return VringDesc(0x1000, 16, VRING_DESC_F_NEXT, index)


@SPLIT_ONLY
@pytest.mark.parametrize(
    "table",
    [
        pytest.param({0: next_desc(256)}, id="outside"),
        pytest.param({0: next_desc(0)}, id="itself"),
        pytest.param({0: next_desc(1), 1: next_desc(0)}, id="circle"),
        pytest.param({i: next_desc((i + 1) % 256) for i in range(256)}, id="all-round"),
    ],
)
def test_r03_links_without_an_end(table: dict[int, VringDesc]) -> None:
    with open_rig() as rig:
        rig.start()
        for index, desc in table.items():
            rig.tx.write_desc(index, desc)
        rig.tx.offer_raw(0)
        break_tx(rig)


@SPLIT_ONLY
def test_r04_same_chain_twice_is_sent_twice() -> None:
    with open_rig() as rig:
        rig.start()
        head = rig.send(ARP)
        rig.tx.offer_raw(head)
        assert len(rig.drain()) == 2


@pytest.mark.parametrize(
    ("length", "flags"),
    [
        (0, 0),
        (15, 0),
        (17, 0),
        (16 * 257, 0),
        (16 * 65535, 0),
        (0xFFFFFFF0, 0),
        (16, VRING_DESC_F_NEXT),
    ],
)
def test_r05_r06_indirect_descriptors_that_break_the_ring(length: int, flags: int) -> None:
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        rig.tx.write_desc(0, VringDesc(0x1000, length, VRING_DESC_F_INDIRECT | flags, 1))
        rig.tx.offer_raw(0)
        break_tx(rig)


def test_r05_indirect_without_negotiation() -> None:
    with open_rig() as rig:
        rig.start()
        rig.send(ARP, table=rig.buffer(16))
        break_tx(rig)


@SPLIT_ONLY
@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(VringDesc(0x1000, 16, VRING_DESC_F_INDIRECT), id="nested"),
        pytest.param(VringDesc(0x1000, 16, VRING_DESC_F_NEXT, 1), id="next-outside"),
        pytest.param(VringDesc(0x1000, 16, VRING_DESC_F_NEXT, 0), id="next-itself"),
    ],
)
def test_r05_r06_indirect_tables_that_break_the_ring(inner: VringDesc) -> None:
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        table = rig.buffer(16)
        rig.guest.write(table, inner.pack())
        rig.tx.write_desc(0, VringDesc(table, 16, VRING_DESC_F_INDIRECT))
        rig.tx.offer_raw(0)
        break_tx(rig)


@pytest.mark.parametrize("addr", [1 << 40, (2 << 20) - 8, (1 << 64) - 16])
def test_r06_indirect_table_outside_memory(addr: int) -> None:
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        rig.tx.write_desc(0, VringDesc(addr, 16, VRING_DESC_F_INDIRECT))
        rig.tx.offer_raw(0)
        break_tx(rig)


@SPLIT_ONLY
def test_indirect_table_may_follow_direct_descriptors() -> None:
    """Virtio 1.2, 2.7.5.3.2: the device must handle it."""
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        addr, table = rig.buffer(12 + len(ARP)), rig.buffer(32)
        rig.guest.write(addr, bytes(12) + ARP)
        descs = [
            VringDesc(addr + 12, 10, VRING_DESC_F_NEXT, 1),
            VringDesc(addr + 22, len(ARP) - 10),
        ]
        rig.guest.write(table, b"".join(desc.pack() for desc in descs))
        rig.tx.write_desc(0, VringDesc(addr, 12, VRING_DESC_F_NEXT, 1))
        rig.tx.write_desc(1, VringDesc(table, 32, VRING_DESC_F_INDIRECT))
        rig.tx.offer_raw(0)
        assert [punt.frame for punt in rig.drain()] == [ARP]


def send_table(rig: Rig, lengths: list[int], write_only: int) -> list[bytes]:
    """Send an ARP request in an indirect table, one descriptor of which is for the device to write.

    Args:
        lengths: of all descriptors but the last.
    """
    addr, table = rig.buffer(12 + len(ARP)), rig.buffer(16 * (len(lengths) + 1))
    rig.guest.write(addr, bytes(12) + ARP)
    descs = b""
    for index, length in enumerate([*lengths, 12 + len(ARP) - sum(lengths)]):
        flags = VRING_DESC_F_WRITE if index == write_only else 0
        descs += pack_desc(VringDesc(addr, length, flags))
        addr += length
    rig.guest.write(table, descs)
    rig.tx.write_desc(0, VringDesc(table, len(descs), VRING_DESC_F_INDIRECT))
    rig.tx.offer_raw(0)
    return [punt.frame for punt in rig.drain()]


@PACKED_ONLY
def test_header_in_an_indirect_table_as_the_driver_of_dpdk_describes_it() -> None:
    """It says that the device may write it, which no other driver does."""
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        assert send_table(rig, [12], write_only=0) == [ARP]
        assert rig.drops() == {}


@PACKED_ONLY
@pytest.mark.parametrize(
    ("lengths", "write_only"),
    [
        pytest.param([12], 1, id="frame"),
        pytest.param([13], 0, id="more-than-header"),
        pytest.param([], 0, id="all-in-one"),
        pytest.param([14, 12], 1, id="not-the-first"),
    ],
)
def test_r10_write_only_in_an_indirect_table(lengths: list[int], write_only: int) -> None:
    with open_rig(features=VERSION_1 | INDIRECT_DESC) as rig:
        rig.start()
        assert send_table(rig, lengths, write_only) == []
        assert rig.drops() == {"TX_BUFFER_INVALID": 1}


@pytest.mark.parametrize(
    ("descs", "reason"),
    [
        pytest.param([(0x1000, 0, 0)], "TX_TOO_SHORT", id="r07-empty"),
        pytest.param([(0x1000, 0, 0), (0x1000, 0, 0)], "TX_TOO_SHORT", id="r07-all-empty"),
        pytest.param([(0x1000, 0xFFFFFFFF, 0)], "TX_BUFFER_INVALID", id="r08-4-gib"),
        pytest.param([(0x1000, 65535, 0), (0x1000, 65535, 0)], "TX_TOO_LONG", id="r08-sum"),
        pytest.param([(1 << 40, 64, 0)], "TX_BUFFER_INVALID", id="r08-hole"),
        pytest.param([((2 << 20) - 1, 64, 0)], "TX_BUFFER_INVALID", id="r08-past-the-end"),
        pytest.param([((1 << 64) - 8, 64, 0)], "TX_BUFFER_INVALID", id="r08-wraps"),
        pytest.param([(0x1000, 64, VRING_DESC_F_WRITE)], "TX_BUFFER_INVALID", id="r10-write-only"),
        pytest.param(
            [(0x1000, 64, 0), (0x1000, 64, VRING_DESC_F_WRITE)], "TX_BUFFER_INVALID", id="r10-mixed"
        ),
        pytest.param([(0x1000, 1, 0)], "TX_TOO_SHORT", id="r11-1"),
        pytest.param([(0x1000, 12, 0)], "TX_TOO_SHORT", id="r11-12"),
        pytest.param([(0x1000, 25, 0)], "TX_TOO_SHORT", id="r13-13"),
        pytest.param([(0x1000, 26, 0)], "SOURCE_MAC", id="r13-14"),
    ],
)
def test_buffers_that_cost_themselves_alone(descs: list[tuple[int, int, int]], reason: str) -> None:
    with open_rig() as rig:
        rig.start()
        for index, (addr, length, flags) in enumerate(descs):
            last = index == len(descs) - 1
            rig.tx.write_desc(
                index,
                VringDesc(addr, length, flags | (0 if last else VRING_DESC_F_NEXT), index + 1),
            )
        rig.tx.offer_raw(0)
        assert rig.drain() == []
        assert rig.drops() == {reason: 1}
        used = rig.tx.pop_used()
        assert used is not None
        assert used.length == 0
        rig.tx.write_avail(rig.tx.next_avail, 0)
        rig.send(ARP)
        assert len(rig.drain()) == 1


def test_r15_chains_of_more_than_1024_descriptors_are_dropped() -> None:
    with open_rig(size=2048) as rig:
        rig.start()
        addr = rig.buffer(2000)
        rig.guest.write(addr, bytes(12) + frame(1988))
        for count, drops in ((1024, {"SOURCE_MAC": 1}), (1025, {"TX_BUFFER_INVALID": 1})):
            rig.tx.add_chain([(addr + i, 1) for i in range(count)], ())
            rig.drain()
            assert rig.tx.pop_used() is not None
            for reason in rig.port.stats().drops:
                assert reason.name in {"SOURCE_MAC", "TX_BUFFER_INVALID"}
            assert drops.items() <= rig.drops().items()


@SPLIT_ONLY
def test_r07_endless_empty_chains_do_not_hold_up_the_device() -> None:
    """A frame may take 1024 descriptors; the chains that it did not fit in are given back."""
    with open_rig(features=VERSION_1 | MRG_RXBUF, size=2048) as rig:
        rig.start()
        for index in range(2048):
            last = index == 1024
            flags = VRING_DESC_F_WRITE | (0 if last else VRING_DESC_F_NEXT)
            length = 12 if index == 2047 else 0
            following = 0 if last else index + 1
            if index == 2047:
                flags = VRING_DESC_F_WRITE
            rig.rx.write_desc(index, VringDesc(0x1000, length, flags, following))
        rig.rx.offer_raw(2047)
        for _ in range(2000):
            rig.rx.offer_raw(1, publish=False)
        rig.rx.publish()
        rig.port.enqueue(ARP)
        rig.flush()
        assert rig.drops() == {"RX_BUFFER_INVALID": 1}
        assert 2 <= rig.rx.used_idx() <= 4


@SPLIT_ONLY
def test_r15_indirect_table_counts_for_its_chain() -> None:
    with open_rig(features=VERSION_1 | INDIRECT_DESC, size=1024) as rig:
        rig.start()
        table = rig.buffer(16 * 1024)
        flags = [VRING_DESC_F_NEXT] * 1023 + [0]
        descs = [VringDesc(0x1000, 1, flag, i + 1).pack() for i, flag in enumerate(flags)]
        rig.guest.write(table, b"".join(descs))
        rig.tx.write_desc(0, VringDesc(0x1000, 1, VRING_DESC_F_NEXT, 1))
        rig.tx.write_desc(1, VringDesc(table, 16 * 1024, VRING_DESC_F_INDIRECT))
        rig.tx.offer_raw(0)
        rig.drain()
        assert rig.drops() == {"TX_BUFFER_INVALID": 1}


def test_r09_frames_in_the_ring_itself_harm_nobody() -> None:
    with open_rig() as rig:
        rig.start()
        for start in (rig.tx.desc_table, rig.tx.used_ring, rig.tx.avail_ring):
            rig.tx.add_chain([(start, 300)], ())
        rig.drain()
        assert rig.port.stats().tx_frames == 3
        rig.rx.add_chain((), [(rig.rx.used_ring, 2048)])
        rig.port.enqueue(frame(1500, 0xFF))
        rig.flush()
        rig.port.stop_ring(RX_QUEUE)
        assert not rig.port.ring_broken(TX_QUEUE)


def test_r18_garbage_in_the_event_fields() -> None:
    with open_rig(features=VERSION_1 | EVENT_IDX) as rig:
        rig.start()
        for event in (0, 32768, 65535, 1):
            rig.tx.set_used_event(event)
            rig.send(ARP)
            assert len(rig.drain()) == 1


@pytest.mark.parametrize(
    "header",
    [
        VirtioNetHdr(flags=1, csum_start=34, csum_offset=6),
        VirtioNetHdr(gso_type=1, gso_size=1448),
        VirtioNetHdr(gso_type=0x80),
        VirtioNetHdr(gso_type=5),
    ],
)
def test_p01_p03_offloads_that_were_not_negotiated(header: VirtioNetHdr) -> None:
    with open_rig() as rig:
        rig.start()
        rig.send(ARP, header=header)
        assert rig.drain() == []
        assert rig.drops() == {"OFFLOAD_NOT_NEGOTIATED": 1}


def test_p01_p05_unknown_flags_and_num_buffers_are_ignored() -> None:
    with open_rig() as rig:
        rig.start()
        rig.send(ARP, header=VirtioNetHdr(flags=0xFE, num_buffers=77, hdr_len=9, csum_start=3))
        assert len(rig.drain()) == 1


def test_drop_reasons_are_counted_from_outside_too() -> None:
    with open_rig() as rig:
        rig.port.count_drop(DropReason.DHCP_IGNORED)
        assert rig.port.stats().drops == {DropReason.DHCP_IGNORED: 1}


def test_memory_above_4_gib_at_an_offset() -> None:
    """Guest memory above 4 GiB, user address unlike guest address, offset into the file."""
    regions = [
        Region(0, 16 * PAGE, user_offset=3 << 40),
        Region(1 << 32, 1 << 20, user_offset=(5 << 40) - (1 << 32), mmap_offset=16 * PAGE),
    ]
    with open_rig(regions=regions) as rig:
        rig.start()
        rig.send(ARP)
        assert [punt.frame for punt in rig.drain()] == [ARP]


# What packed rings have of their own


@SPLIT_ONLY
@pytest.mark.parametrize("size", [0, 32769, 65536, 1 << 31])
def test_m35_packed_ring_sizes_that_are_none(size: int) -> None:
    with open_rig(features=VERSION_1 | RING_PACKED) as rig, pytest.raises(CoreError) as caught:
        rig.port.check_ring(size, rig.lay_out(RX_QUEUE))
    assert caught.value.errno == errno.EINVAL


@SPLIT_ONLY
@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [
        (8, 0x2000, 0x3000),
        (0, 0x2002, 0x3000),
        (0, 0x2000, 0x3002),
        (0, 0x2000, 0x2000),
        (0, 0, 0x3000),
        (0, 16 * 256 - 4, 0x3000),
        (0x2000, 0x1000, 0x2008),
    ],
)
def test_r21_m36_packed_parts_that_cannot_be(desc: int, avail: int, used: int) -> None:
    with open_rig(features=VERSION_1 | RING_PACKED) as rig:
        addr = VringAddr(
            desc=rig.user_addr(desc), avail=rig.user_addr(avail), used=rig.user_addr(used)
        )
        with pytest.raises(CoreError) as caught:
            rig.port.check_ring(256, addr)
        assert caught.value.errno == errno.EINVAL


@SPLIT_ONLY
@pytest.mark.parametrize("part", ["desc", "avail", "used"])
@pytest.mark.parametrize("where", [7 << 40, (1 << 64) - 4096, 0], ids=["hole", "end", "null"])
def test_m36_m37_packed_parts_outside_memory(part: str, where: int) -> None:
    with open_rig(features=VERSION_1 | RING_PACKED, regions=[Region(0, 1 << 20, 5 << 40)]) as rig:
        parts = {"desc": 0x10000, "avail": 0x20000, "used": 0x30000}
        addr = {name: rig.user_addr(at) for name, at in parts.items()} | {part: where}
        with pytest.raises(CoreError) as caught:
            rig.port.check_ring(256, VringAddr(**addr))
        assert caught.value.errno == errno.EFAULT


@SPLIT_ONLY
@pytest.mark.parametrize("base", [3, 0x8003, 3 << 16, 0x8003 << 16, 0x7FFF, 1 << 32])
def test_m38_packed_base_that_cannot_be(base: int) -> None:
    with open_rig(features=VERSION_1 | RING_PACKED, size=3) as rig:
        addr = rig.lay_out(RX_QUEUE)
        with pytest.raises(CoreError) as caught:
            rig.port.start_ring(RX_QUEUE, 3, addr, base)
        assert caught.value.errno == errno.EINVAL


@SPLIT_ONLY
def test_packed_frames_of_many_buffers_take_turns() -> None:
    """More chains than may be taken and unpublished at once; none is lost, and none comes twice."""
    with open_rig(
        features=VERSION_1 | RING_PACKED | MRG_RXBUF, size=8192, regions=[Region(0, 4 << 20)]
    ) as rig:
        rig.start()
        rig.offer(12, 8192)
        sent = [frame(12 * 900, number) for number in range(9)]
        for one in sent:
            assert rig.port.enqueue(one)
        assert receive(rig) == sent
