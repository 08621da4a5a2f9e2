"""That the soak notices what it is there for: each way in which a frame or a bound can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from bench.soak.daemon import Place
from bench.soak.numbered import BUFFER_SIZE, Flow, FrameError, NumberedRx, NumberedTx
from bench.soak.report import Check, Report, equal
from tests.harness.memory import TestGuestMemory
from tests.harness.packets import GATEWAY_MAC, ipv4_packet, mac_bytes
from tests.harness.virtio import VirtioNetHdr, VirtioQueue

A, B = Place(Path("/none"), 0), Place(Path("/none"), 1)
HEADER = VirtioNetHdr(num_buffers=1)
RX, TX = 0, 1


@attrs.define(eq=False)
class Bench:
    """A's TX ring, B's RX ring, and a device between them that does what it is told."""

    memory: TestGuestMemory
    rx: NumberedRx
    tx: NumberedTx
    rx_queue: VirtioQueue
    tx_queue: VirtioQueue
    flow: Flow

    def frames(self, count: int, *, life: int = 0) -> list[bytes]:
        """The next frames of A, as B should see them; another life begins at 0."""
        if life:
            self.tx.close()
            self.tx = NumberedTx(self.tx_queue, A, [B], life)
        first = self.tx.sent
        self.tx.send(count)
        return [self._routed(slot % self.tx_queue.size) for slot in range(first, first + count)]

    def deliver(self, *frames: bytes, header: VirtioNetHdr = HEADER) -> None:
        queue = self.rx_queue
        used = queue.used_idx()
        for frame in frames:
            slot = used % queue.size
            data = header.pack() + frame
            self.memory.write(self._address(queue, slot), data)
            elem = slot.to_bytes(4, "little") + len(data).to_bytes(4, "little")
            self.memory.write(queue.used_ring + 4 + 8 * slot, elem)
            used += 1
        self.memory.store16(queue.used_ring + 2, used & 0xFFFF)
        self.rx.receive()

    def _routed(self, slot: int) -> bytes:
        addr, length = self._address(self.tx_queue, slot), self._length(slot)
        frame = self.memory.read(addr, length)[12:]
        macs, packet = mac_bytes(B.mac) + GATEWAY_MAC, frame[14:]
        return macs + frame[12:14] + ipv4_packet(A.ipv4, B.ipv4, 17, packet[20:], ttl=63)

    def _address(self, queue: VirtioQueue, slot: int) -> int:
        return int.from_bytes(self.memory.read(queue.desc_table + 16 * slot, 8), "little")

    def _length(self, slot: int) -> int:
        return int.from_bytes(
            self.memory.read(self.tx_queue.desc_table + 16 * slot + 8, 4), "little"
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    with closing(TestGuestMemory()) as memory:
        queues = [
            VirtioQueue(
                memory,
                index,
                memory.desc_table_addr(index),
                memory.avail_ring_addr(index),
                memory.used_ring_addr(index),
                size=128,
            )
            for index in (RX, TX)
        ]
        flow = Flow()
        rx = NumberedRx(queues[RX], B, {A: flow}, {A: 1})
        tx = NumberedTx(queues[TX], A, [B], life=0)
        bench = Bench(memory, rx, tx, queues[RX], queues[TX], flow)
        yield bench
        bench.rx.close()
        bench.tx.close()


def test_all_frames_in_their_order(bench: Bench) -> None:
    bench.deliver(*bench.frames(100))
    assert (bench.flow.frames, bench.flow.missing, bench.flow.next_number) == (100, 0, 100)


def test_missing_frames_are_counted(bench: Bench) -> None:
    first, _, _, fourth = bench.frames(4)
    bench.deliver(first, fourth)
    assert (bench.flow.frames, bench.flow.missing) == (2, 2)


def test_each_life_begins_anew(bench: Bench) -> None:
    bench.deliver(*bench.frames(5))
    bench.deliver(*bench.frames(3, life=7))
    assert (bench.flow.frames, bench.flow.lives, bench.flow.missing) == (8, 2, 0)


def test_a_frame_of_an_earlier_life_is_noticed(bench: Bench) -> None:
    frames = bench.frames(2)
    bench.deliver(*bench.frames(1, life=1))
    with pytest.raises(FrameError, match="too late"):
        bench.deliver(frames[1])


@pytest.mark.parametrize("order", [(0, 0), (1, 0), (0, 1, 2, 1)])
def test_frames_that_come_twice_or_late_are_noticed(bench: Bench, order: tuple[int, ...]) -> None:
    frames = bench.frames(3)
    with pytest.raises(FrameError, match="twice or too late"):
        bench.deliver(*(frames[number] for number in order))


@pytest.mark.parametrize("position", [0, 6, 22, 41, 45, 52, 60, -1])
def test_a_changed_byte_is_noticed(bench: Bench, position: int) -> None:
    frame = bytearray(bench.frames(1)[0])
    frame[position] ^= 1
    with pytest.raises(FrameError):
        bench.deliver(bytes(frame))


@pytest.mark.parametrize("length", [13, 100])
def test_a_cut_frame_is_noticed(bench: Bench, length: int) -> None:
    with pytest.raises(FrameError):
        bench.deliver(bench.frames(1)[0][:length])


def test_a_wrong_virtio_net_hdr_is_noticed(bench: Bench) -> None:
    with pytest.raises(FrameError, match="virtio_net_hdr"):
        bench.deliver(*bench.frames(1), header=VirtioNetHdr(flags=1, num_buffers=1))


def test_a_buffer_out_of_turn_is_noticed(bench: Bench) -> None:
    queue = bench.rx_queue
    bench.memory.write(queue.used_ring + 4, (5).to_bytes(4, "little") + (99).to_bytes(4, "little"))
    bench.memory.store16(queue.used_ring + 2, 1)
    with pytest.raises(FrameError, match="buffer 5"):
        bench.rx.receive()


def test_longest_frame_fits_in_a_buffer(bench: Bench) -> None:
    assert max(map(len, bench.frames(64))) == 1514 <= BUFFER_SIZE - 12


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (Check("a", 1.0, most=1.0), True),
        (Check("a", 1.1, most=1.0), False),
        (equal("a", 3, 3), True),
        (equal("a", 2, 3), False),
        (equal("a", 4, 3), False),
    ],
)
def test_report_says_which_bound_was_violated(check: Check, holds: bool) -> None:
    report = Report("title", [("figure", 1.5)], [check])
    assert report.failures == ([] if holds else [check])
    assert ("VIOLATED" in report.text()) is not holds
