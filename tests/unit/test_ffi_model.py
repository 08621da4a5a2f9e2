"""The ring core against the pure-Python driver, with cases that Hypothesis invents."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mvirt_net.ffi import NextStep
from mvirt_net.model import RX_QUEUE, TX_QUEUE
from tests.harness.memory import Region
from tests.harness.packed import PackedQueue
from tests.harness.packets import ethernet_frame
from tests.harness.virtio import VringDesc, split_lengths

from .rig import (
    EVENT_IDX,
    INDIRECT_DESC,
    MAC,
    MRG_RXBUF,
    RING_PACKED,
    VERSION_1,
    Rig,
    open_rig,
)

MIB = 1 << 20
LAYOUTS = (
    (Region(0, 2 * MIB),),
    (Region(0, MIB, 5 << 40), Region(MIB, MIB, 9 << 40, file=1)),
    (Region(1 << 32, 2 * MIB, user_offset=0),),
)

split_features = st.sets(st.sampled_from([EVENT_IDX, INDIRECT_DESC, MRG_RXBUF])).map(
    lambda bits: VERSION_1 | sum(bits)
)
feature_sets = st.tuples(split_features, st.sampled_from([0, RING_PACKED])).map(sum)
frames = st.lists(
    st.tuples(st.binary(max_size=3000), st.lists(st.integers(1, 400), max_size=12), st.booleans()),
    min_size=1,
    max_size=12,
)


def scattered(rig: Rig, total: int, cuts: list[int]) -> list[tuple[int, int]]:
    return [(rig.buffer(length), length) for length in split_lengths(total, cuts)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    features=feature_sets,
    size=st.sampled_from([4, 16, 256, 1024]),
    base=st.one_of(st.integers(0, 65535), st.integers(65530, 65535)),
    layout=st.sampled_from(LAYOUTS),
    sent=frames,
)
def test_what_the_driver_sends_is_what_the_services_get(
    features: int,
    size: int,
    base: int,
    layout: tuple[Region, ...],
    sent: list[tuple[bytes, list[int], bool]],
) -> None:
    with open_rig(features=features, size=size, regions=layout) as rig:
        rig.start(base)
        for payload, cuts, indirect in sent:
            frame = ethernet_frame(b"\xff" * 6, MAC.packed, 0x0806, payload)
            segments = scattered(rig, 12 + len(frame), cuts[: size - 1])
            wants_table = indirect and features & INDIRECT_DESC
            table = rig.buffer(16 * len(segments)) if wants_table else None
            rig.tx.add_tx_buffer(segments, frame, table=table)
            assert [punt.frame for punt in rig.drain()] == [frame]
            used = rig.tx.pop_used()
            assert used is not None
            assert used.length == 0
        stands = rig.tx.used_idx()
        assert rig.port.stop_ring(TX_QUEUE) == rig.tx.wire_base(stands)
        assert rig.tx.outstanding == 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    features=feature_sets,
    base=st.integers(0, 65535),
    layout=st.sampled_from(LAYOUTS),
    rooms=st.lists(
        st.tuples(st.integers(0, 2500), st.lists(st.integers(1, 300), max_size=5)), max_size=20
    ),
    lengths=st.lists(st.integers(14, 4000), min_size=1, max_size=10),
)
def test_what_arrives_is_a_part_of_what_was_sent_in_order(
    features: int,
    base: int,
    layout: tuple[Region, ...],
    rooms: list[tuple[int, list[int]]],
    lengths: list[int],
) -> None:
    """Each frame arrives whole, once and in order, or is counted as a drop, or waits."""
    mergeable = bool(features & MRG_RXBUF)
    with open_rig(features=features, size=256, regions=layout) as rig:
        rig.start(base)
        for size, cuts in rooms:
            if size:
                rig.rx.add_rx_buffer(scattered(rig, size, cuts))
        sent = [bytes([i]) * length for i, length in enumerate(lengths)]
        for frame in sent:
            assert rig.port.enqueue(frame)
        while (step := rig.flush()) is NextStep.MORE_BUFFERS:
            rig.port.drop_first()
        assert step in (NextStep.KICK, NextStep.NOTHING)
        arrived = []
        while rig.rx.has_used():
            element = rig.rx._used_element(rig.rx.last_used)
            if element.len == 0:  # given back empty
                rig.rx.pop_used()
                continue
            received = rig.rx.pop_frame(mergeable=mergeable)
            assert received is not None
            arrived.append(received.frame)
        dropped = sum(rig.port.stats().drops.values())
        assert len(arrived) + dropped + rig.port.backlog == len(sent)
        remaining = iter(sent)
        assert all(frame in remaining for frame in arrived)
        assert rig.port.stats().rx_frames == len(arrived)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    features=split_features,
    desc=st.lists(
        st.builds(
            lambda addr, length, flags, following: (
                addr.to_bytes(8, "little")
                + length.to_bytes(4, "little")
                + flags.to_bytes(2, "little")
                + following.to_bytes(2, "little")
            ),
            st.one_of(st.integers(0, 2 * MIB), st.integers(0, (1 << 64) - 1)),
            st.one_of(st.integers(0, 4096), st.integers(0, (1 << 32) - 1)),
            st.one_of(st.integers(0, 7), st.integers(0, 65535)),
            st.one_of(st.integers(0, 16), st.integers(0, 65535)),
        ),
        min_size=16,
        max_size=16,
    ),
    ring=st.binary(min_size=38, max_size=38),
    indices=st.lists(st.one_of(st.integers(0, 20), st.integers(0, 65535)), min_size=1, max_size=4),
)
def test_no_ring_content_harms_the_device(
    features: int, desc: list[bytes], ring: bytes, indices: list[int]
) -> None:
    """Any bytes in all parts of both rings: each call ends, and a fresh start works again."""
    with open_rig(features=features, size=16) as rig:
        rig.start()
        for queue in rig.queues.values():
            rig.guest.write(queue.desc_table, b"".join(desc))
            rig.guest.write(queue.avail_ring, ring)
        for index in indices:
            for queue in rig.queues.values():
                queue.write_avail_idx(index)
            work_to_an_end(rig)
        assert_works_again(rig)


def work_to_an_end(rig: Rig) -> None:
    """Drain and flush, with a frame for the guest, until nothing is left to do."""
    rig.port.enqueue(bytes(60))
    for _ in range(40):
        if NextStep.CALL_AGAIN not in {rig.port.drain().next, rig.port.flush()}:
            return
    raise AssertionError("endless work")


def assert_works_again(rig: Rig) -> None:
    """Both rings stop, and fresh ones are served."""
    for number in (RX_QUEUE, TX_QUEUE):
        rig.port.stop_ring(number)
        rig.port.start_ring(number, rig.size, rig.lay_out(number), None)
    frame = ethernet_frame(b"\xff" * 6, MAC.packed, 0x0806, bytes(28))
    rig.send(frame)
    assert [punt.frame for punt in rig.drain()] == [frame]


descriptors = st.lists(
    st.builds(
        VringDesc,
        st.one_of(st.integers(0, 2 * MIB), st.integers(0, (1 << 64) - 1)),
        st.one_of(st.integers(0, 4096), st.integers(0, (1 << 32) - 1)),
        st.one_of(
            st.builds(
                lambda low, lap: low | lap, st.integers(0, 7), st.sampled_from([0x80, 0x8000])
            ),
            st.integers(0, 65535),
        ),
        st.integers(0, 65535),
    ),
    max_size=16,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    features=split_features,
    size=st.integers(1, 16),
    base=st.one_of(st.none(), st.integers(0, 100)),
    rounds=st.lists(
        st.tuples(descriptors, st.integers(0, 15), st.binary(min_size=4, max_size=4)),
        min_size=1,
        max_size=4,
    ),
)
def test_no_packed_ring_content_harms_the_device(
    features: int,
    size: int,
    base: int | None,
    rounds: list[tuple[list[VringDesc], int, bytes]],
) -> None:
    """Any descriptors, anywhere in the ring, again and again; any event area."""
    with open_rig(features=features | RING_PACKED, size=size) as rig:
        rig.start(base)
        for descs, first, event in rounds:
            for queue in rig.queues.values():
                assert isinstance(queue, PackedQueue)
                for slot, desc in enumerate(descs, start=first):
                    queue.write_slot(slot, desc)
                rig.guest.write(queue.avail_ring, event)
            work_to_an_end(rig)
            for number in (RX_QUEUE, TX_QUEUE):
                stands = rig.port.stop_ring(number)
                assert stands & 0xFFFF == stands >> 16
                assert stands & 0x7FFF < size
                rig.port.start_ring(number, size, rig.addr(number), stands)
        assert_works_again(rig)
