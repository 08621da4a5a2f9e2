"""Chains are looked at ahead of their turn, and a guest may change them before it comes.

Two guests that share memory need no luck for that: what one receives is written over the ring of
the other, so it is the device itself that changes descriptors between its two looks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from scapy.layers.inet import IP

from mvirt_net.ffi import Network
from mvirt_net.model import RX_QUEUE, TX_QUEUE

from .rig import RING_PACKED, VERSION_1, Rig, open_rig
from .test_ffi_forward import A4, ETHER, A, B

SIZE = 64
NEXT, AVAIL, USED = 1, 1 << 7, 1 << 15
TARGET = "10.0.1.2"
"""Its second half lands on the flags of the first slot: another NEXT."""
HEADERS = 12 + 14 + 20
"""Bytes in front of an IPv4 packet's payload."""


def packed_desc(addr: int, length: int, number: int, flags: int) -> bytes:
    return struct.pack("<QIHH", addr, length, number, flags)


def frame_of_descs(descs: bytes) -> bytes:
    """A frame whose payload lands on a ring from its second slot on."""
    packet = IP(src=A4, dst=TARGET, proto=17) / descs
    return bytes(12) + bytes(ETHER / packet)


@contextmanager
def two_in_one_memory(*, sends: int = 0, takes: int = 0) -> Iterator[tuple[Rig, Rig]]:
    """A sender with packed rings, and a receiver with split ones in the sender's memory.

    Args:
        sends, takes: more features of the one and of the other.
    """
    with ExitStack() as stack:
        network = Network()
        stack.callback(network.close)
        a = stack.enter_context(
            open_rig(
                network=network,
                mac=A,
                routes=[A4],
                features=VERSION_1 | RING_PACKED | sends,
                size=SIZE,
            )
        )
        features = VERSION_1 | takes
        other = stack.enter_context(
            open_rig(network=network, mac=B, routes=[TARGET], features=features, size=SIZE)
        )
        other.port.set_memory(a.table)
        a.buffer(64)
        a.start()
        b = Rig(other.port, a.guest, a.table, other.fault_fd, features, SIZE)
        b.start()
        yield a, b
        for rig in (a, b):
            for queue in (RX_QUEUE, TX_QUEUE):
                rig.port.stop_ring(queue)
        other.port.set_memory(None)


@pytest.mark.timeout(20)
def test_chain_that_grows_after_it_was_looked_at() -> None:
    """What was looked at behind it is no chain of its own any more, and the walk ends."""
    with two_in_one_memory() as (a, b):
        ring = a.tx.desc_table
        small = a.buffer(64)
        joined = b"".join(
            packed_desc(small, 1, slot, (AVAIL if slot == 1 else USED) | (NEXT if slot < 63 else 0))
            for slot in range(1, SIZE)
        )
        endless = b"".join(packed_desc(small, 1, slot, USED | NEXT) for slot in range(1, SIZE))
        where: list[tuple[int, int]] = []
        for descs in (joined, endless):
            frame = frame_of_descs(descs)
            where.append((a.buffer(len(frame)), len(frame)))
            a.guest.write(where[-1][0], frame)
        slots = [packed_desc(small, 40, slot, AVAIL) for slot in range(SIZE)]
        slots[0] = packed_desc(where[0][0], where[0][1], 0, AVAIL)
        slots[2] = packed_desc(where[1][0], where[1][1], 2, AVAIL)
        # Of no length, so that they are looked at again in their turn.
        slots[1] = packed_desc(small, 0, 1, AVAIL)
        slots[5] = packed_desc(small, 0, 5, AVAIL)
        for _ in range(4):
            b.rx.add_rx_buffer(ring + 16 - HEADERS, 2048)
        a.guest.write(ring, b"".join(slots))
        a.port.drain()
        assert a.port.ring_broken(TX_QUEUE)
        assert a.port.stop_ring(TX_QUEUE) & 0x7FFF < SIZE
