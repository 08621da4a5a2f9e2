"""Rings of numbered frames: what is sent says who sent it and when, and all of it is checked.

The payload of each frame is `NUMBERS`, their checksum, and then noise that depends on them, of a
length that depends on the frame's number. So a frame that is lost, doubled, overtaken, cut, or made
of parts of others is noticed. Buffers are laid out once, as in `bench.guest`: on these rings every
descriptor is a whole chain.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

import attrs

from tests.harness.packets import (
    GATEWAY_MAC,
    ethernet_frame,
    ip_bytes,
    ipv4_packet,
    udp_datagram,
)
from tests.harness.virtio import (
    VIRTIO_NET_HDR_SIZE,
    VRING_DESC_F_WRITE,
    VirtioNetHdr,
    VirtioQueue,
    VringDesc,
)

from .daemon import Place

BUFFER_SIZE = 2048
NUMBERS = struct.Struct("<QQQ")
"""The life of its sender, its number in it, and the number that its sender waits for."""

_HEAD_SIZE = 14 + 20 + 8
_USED = struct.Struct("<II")
_ETHERTYPE_IPV4, _UDP, _PORT = 0x0800, 17, 4000
_LEAST = NUMBERS.size + 4
_NOISE = random.Random(1).randbytes(4096)
_LENGTHS = [1472, *(random.Random(2).randrange(_LEAST, 400) for _ in range(62)), _LEAST]
"""Of UDP payloads, by the number: mostly small, with the longest and the shortest among them."""


class FrameError(AssertionError):
    """What came is not what was sent."""


@cache
def _head(source: Place, target: Place, length: int, *, routed: bool) -> bytes:
    """All that is in front of a payload; `routed` is what the receiver sees."""
    datagram = udp_datagram(source.ipv4, target.ipv4, _PORT, _PORT, bytes(length), checksum=False)
    packet = ipv4_packet(source.ipv4, target.ipv4, _UDP, datagram, ttl=63 if routed else 64)
    to_mac = target.mac if routed else GATEWAY_MAC
    from_mac = GATEWAY_MAC if routed else source.mac
    return ethernet_frame(to_mac, from_mac, _ETHERTYPE_IPV4, packet)[:_HEAD_SIZE]


def _payload(life: int, number: int, awaited: int) -> bytes:
    numbers = NUMBERS.pack(life, number, awaited)
    checksum = zlib.crc32(numbers)
    noise = checksum & 1023
    length = _LENGTHS[number % len(_LENGTHS)] - _LEAST
    return numbers + checksum.to_bytes(4, "little") + _NOISE[noise : noise + length]


class _Buffers:
    """The buffers of a ring, one a descriptor."""

    def __init__(self, queue: VirtioQueue, flags: int) -> None:
        self.queue = queue
        memory = queue.memory
        size = queue.size * BUFFER_SIZE
        self._base = memory.alloc_buffer(size)
        self.bytes = memory.view(self._base, size)
        self._flags = flags
        for slot in range(queue.size):
            queue.write_avail(slot, slot)
            self.describe(slot, BUFFER_SIZE)

    def describe(self, slot: int, length: int) -> None:
        desc = VringDesc(self._base + slot * BUFFER_SIZE, length, self._flags)
        self.queue.write_desc(slot, desc)

    def given(self, count: int) -> None:
        self.queue.next_avail = (self.queue.next_avail + count) & 0xFFFF
        self.queue.publish()

    def outstanding(self) -> int:
        """Buffers that the device has."""
        return (self.queue.next_avail - self.queue.used_idx()) & 0xFFFF


class NumberedTx:
    """The TX ring of `source`; each life begins with frame 0.

    Args:
        queue: set up but empty, as long as `_LENGTHS` goes into it.
        targets: who gets the frames, in turn.
    """

    def __init__(
        self, queue: VirtioQueue, source: Place, targets: Sequence[Place], life: int
    ) -> None:
        self._buffers = _Buffers(queue, flags=0)
        self._source = source
        self._targets = targets
        self._life = life
        self.sent = 0
        """Frames given to the device; also the next one's number."""

    def room(self) -> int:
        """How many frames could be given now."""
        return self._buffers.queue.size - self._buffers.outstanding()

    def send(self, count: int, awaited: int = 0) -> None:
        """Give so many frames, for which there is room."""
        for _ in range(count):
            self._write(self.sent, awaited)
            self.sent += 1
        self._buffers.given(count)

    def _write(self, number: int, awaited: int) -> None:
        slot = number % self._buffers.queue.size
        payload = _payload(self._life, number, awaited)
        target = self._targets[number % len(self._targets)]
        frame = _head(self._source, target, len(payload), routed=False) + payload
        at, end = slot * BUFFER_SIZE, VIRTIO_NET_HDR_SIZE + len(frame)
        self._buffers.bytes[at + VIRTIO_NET_HDR_SIZE : at + end] = frame
        self._buffers.describe(slot, end)

    def close(self) -> None:
        """Let go of guest memory."""
        self._buffers.bytes.release()


@attrs.define(eq=False)
class Flow:
    """What has come from one sender."""

    frames: int = 0
    missing: int = 0
    """Frames that never came although later ones of the same life did."""
    lives: int = 0
    next_life: int = 0
    """The lowest that a frame may be of."""
    next_number: int = 0
    """The lowest that a frame of the last life may have."""
    awaited: int = 0
    """What the sender said last that it waits for."""


class NumberedRx:
    """The RX ring of `target`, full of buffers from the start.

    Args:
        queue: set up but empty.
        flows: by sender; no one else may send.
        step: by sender, the distance of the numbers that it sends here.
    """

    def __init__(
        self,
        queue: VirtioQueue,
        target: Place,
        flows: Mapping[Place, Flow],
        step: Mapping[Place, int],
    ) -> None:
        self._buffers = _Buffers(queue, VRING_DESC_F_WRITE)
        self._used = queue.memory.view(queue.used_ring + 4, _USED.size * queue.size)
        self._target = target
        self._senders = {ip_bytes(place.ipv4): (place, flow) for place, flow in flows.items()}
        self._step = step
        self._buffers.given(queue.size)

    def receive(self) -> int:
        """Take what has come, check it, and give the buffers back; the number of frames.

        Raises:
            FrameError: a frame is not what was sent, or came twice, or late.
        """
        queue = self._buffers.queue
        count = queue.used_count()
        for position in range(queue.last_used, queue.last_used + count):
            self._take(position % queue.size)
        queue.last_used = (queue.last_used + count) & 0xFFFF
        if count:
            self._buffers.given(count)
        return count

    def _take(self, slot: int) -> None:
        head, length = _USED.unpack_from(self._used, _USED.size * slot)
        if head != slot or length < VIRTIO_NET_HDR_SIZE + _HEAD_SIZE + _LEAST:
            raise FrameError(f"buffer {head} with {length} bytes in place of buffer {slot}")
        data = bytes(self._buffers.bytes[slot * BUFFER_SIZE : slot * BUFFER_SIZE + length])
        if data[:VIRTIO_NET_HDR_SIZE] != _PLAIN_HEADER:
            raise FrameError(f"virtio_net_hdr {data[:VIRTIO_NET_HDR_SIZE].hex()}")
        self._check(data[VIRTIO_NET_HDR_SIZE:])

    def _check(self, frame: bytes) -> None:
        sender = self._senders.get(frame[26:30])
        if sender is None:
            raise FrameError(f"a frame from nobody: {frame[:64].hex()}")
        place, flow = sender
        life, number, awaited = NUMBERS.unpack_from(frame, _HEAD_SIZE)
        payload = _payload(life, number, awaited)
        if frame != _head(place, self._target, len(payload), routed=True) + payload:
            raise FrameError(f"frame {number} of {place.ipv4} came as {frame[:128].hex()}")
        self._count(flow, self._step[place], life, number, awaited)

    def _count(self, flow: Flow, step: int, life: int, number: int, awaited: int) -> None:
        if life >= flow.next_life:
            flow.lives += 1
            flow.next_life, flow.next_number = life + 1, number % step
        if life != flow.next_life - 1 or number < flow.next_number:
            raise FrameError(f"frame {life}:{number} twice or too late: {flow}")
        flow.missing += (number - flow.next_number) // step
        flow.next_number = number + step
        flow.frames += 1
        flow.awaited = max(flow.awaited, awaited)

    def close(self) -> None:
        """Let go of guest memory."""
        self._buffers.bytes.release()
        self._used.release()


_PLAIN_HEADER = VirtioNetHdr(num_buffers=1).pack()
