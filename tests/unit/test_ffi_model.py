"""The ring core against the pure-Python driver, with cases that Hypothesis invents."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mvirt_net.ffi import NextStep
from mvirt_net.model import RX_QUEUE, TX_QUEUE
from tests.harness.memory import Region
from tests.harness.packets import ethernet_frame
from tests.harness.virtio import split_lengths

from .rig import EVENT_IDX, INDIRECT_DESC, MAC, MRG_RXBUF, VERSION_1, Rig, open_rig

MIB = 1 << 20
LAYOUTS = (
    (Region(0, 2 * MIB),),
    (Region(0, MIB, 5 << 40), Region(MIB, MIB, 9 << 40, file=1)),
    (Region(1 << 32, 2 * MIB, user_offset=0),),
)

feature_sets = st.sets(st.sampled_from([EVENT_IDX, INDIRECT_DESC, MRG_RXBUF])).map(
    lambda bits: VERSION_1 | sum(bits)
)
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
        assert rig.port.stop_ring(TX_QUEUE) == (base + len(sent)) % 65536


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
    features=feature_sets,
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
            rig.port.enqueue(bytes(60))
            for _ in range(40):
                steps = {rig.port.drain().next, rig.port.flush()}
                if NextStep.CALL_AGAIN not in steps:
                    break
            else:
                raise AssertionError("endless work")
        for number in (RX_QUEUE, TX_QUEUE):
            rig.port.stop_ring(number)
            rig.port.start_ring(number, rig.size, rig.lay_out(number), 0)
        frame = ethernet_frame(b"\xff" * 6, MAC.packed, 0x0806, bytes(28))
        rig.send(frame)
        assert [punt.frame for punt in rig.drain()] == [frame]
