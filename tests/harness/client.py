"""A frontend with a guest behind it: handshake, buffers, and frames in both directions.

`VhostTestClient` is what a VMM and the network driver of its guest are together. It runs as a
task in the test's nursery: the task waits for the device's interrupts, takes back what was
transmitted, collects what was received, and closes every descriptor when it ends.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Self

import attrs
import trio

from .memory import MEMORY_SIZE, Region, TestGuestMemory
from .packed import PackedQueue
from .vhost_user import (
    BackendHungUpError,
    BackendRefusedError,
    Connection,
    Feature,
    ProtocolFeature,
)
from .virtio import (
    DESC_SIZE,
    QUEUE_SIZE,
    VIRTIO_NET_HDR_SIZE,
    QueueFullError,
    ReceivedFrame,
    Segment,
    UsedBuffer,
    VirtioNetHdr,
    VirtioQueue,
    split_lengths,
)

RX_QUEUE_IDX = 0
TX_QUEUE_IDX = 1
RX_BUFFER_SIZE = 2048
RX_BUFFER_COUNT = 16
TIMEOUT = 10.0
"""Seconds to wait for anything, unless told otherwise; a machine can be busy."""
POLL_INTERVAL = 0.001
"""Seconds between two looks at a ring whose interrupts are off."""

DEFAULT_FEATURES = (
    Feature.VERSION_1 | Feature.MAC | Feature.STATUS | Feature.EVENT_IDX | Feature.PROTOCOL_FEATURES
)
HOST_OFFLOADS = (
    Feature.CSUM | Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.HOST_ECN | Feature.HOST_USO
)
"""What the guest may leave to the device."""
GUEST_OFFLOADS = (
    Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.GUEST_USO4
    | Feature.GUEST_USO6
)
"""What the device may leave to the guest."""
OFFLOAD_FEATURES = HOST_OFFLOADS | GUEST_OFFLOADS | Feature.MRG_RXBUF
"""All of them, with buffers that go together; to be added to `DEFAULT_FEATURES`."""
DEFAULT_PROTOCOL_FEATURES = ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK

_PAGE = 4096


@attrs.frozen(kw_only=True)
class ClientOptions:
    """How the frontend and its guest behave.

    Args:
        features, protocol_features: masks; what the backend offers of them is negotiated.
        regions: layout of guest memory; None: one region at guest address 0, large enough.
        queue_pairs: how many the frontend starts and enables; with more than one it asks for MQ.
        used_pairs: how many of them the guest uses; None: all. The others get no buffers.
        ring_size: descriptors of each queue, 2 to 32768 (packed: 1 to 32768).
        base: where the ring indices start; of packed rings, how many slots were used before.
        rx_buffers: how many receive buffers to keep with the device, for each pair in use.
        rx_buffer_size: bytes of each; a sequence makes it a chain of descriptors of those lengths.
        indirect: put every chain into an indirect table (needs INDIRECT_DESC).
        refill: give a receive buffer back as soon as its frame was taken out of it.
        poll_kick: give no kick eventfd: the backend has to poll.
        poll_call: give no call eventfd: this side polls.
        err: give an err eventfd (see `VhostTestClient.wait_err`).
        driver: take interrupts and process the rings; False leaves that to the test.
        handshake: False leaves all of it to the test (see `VhostTestClient.handshake`).
    """

    features: int = DEFAULT_FEATURES
    protocol_features: int = DEFAULT_PROTOCOL_FEATURES
    regions: Sequence[Region] | None = None
    queue_pairs: int = 1
    used_pairs: int | None = None
    ring_size: int = QUEUE_SIZE
    base: int = 0
    rx_buffers: int = RX_BUFFER_COUNT
    rx_buffer_size: int | Sequence[int] = RX_BUFFER_SIZE
    indirect: bool = False
    refill: bool = True
    poll_kick: bool = False
    poll_call: bool = False
    err: bool = False
    driver: bool = True
    handshake: bool = True

    @property
    def layout(self) -> type[VirtioQueue]:
        """Which queues the guest has; RING_PACKED among the features makes them packed."""
        return PackedQueue if self.features & Feature.RING_PACKED else VirtioQueue

    @property
    def rx_lengths(self) -> Sequence[int]:
        """Lengths of the descriptors of one receive buffer."""
        size = self.rx_buffer_size
        return [size] if isinstance(size, int) else size

    @property
    def pairs_in_use(self) -> range:
        """Those that the guest's driver uses."""
        return range(self.queue_pairs if self.used_pairs is None else self.used_pairs)

    def guest_memory(self) -> TestGuestMemory:
        """Memory for the rings, the receive buffers, and a short frame for each descriptor."""
        if self.regions is not None:
            return TestGuestMemory(self.regions, data_offset=0)
        rings = sum(map(_whole_pages, self.layout.part_sizes(self.ring_size)))
        rx = self.rx_buffers * (sum(self.rx_lengths) + 32 * len(self.rx_lengths))
        tx = max(MEMORY_SIZE // 2, 128 * self.ring_size)
        size = max(MEMORY_SIZE, _whole_pages(2 * rings + rx + tx)) * self.queue_pairs
        return TestGuestMemory((Region(0, size),), data_offset=0)


@attrs.define(eq=False)
class VringEnd:
    """The frontend's end of one vring: the queue, its eventfds, and what was seen of them."""

    queue: VirtioQueue
    kick: int | None
    call: int | None
    err: int | None
    kicks: int = 0
    """Kicks written."""
    calls: int = 0
    """Interrupts taken; several that came before the driver looked count each."""
    progress: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    """Woken whenever the driver has looked at the used ring, or at one of the same kind."""

    @property
    def is_rx(self) -> bool:
        """Whether the guest receives by it."""
        return self.queue.queue_idx % 2 == RX_QUEUE_IDX

    @property
    def pair(self) -> int:
        """The queue pair that it belongs to."""
        return self.queue.queue_idx // 2

    def close(self) -> None:
        """Close the eventfds. Idempotent."""
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                trio.lowlevel.notify_closing(fd)
                os.close(fd)
        self.kick = self.call = self.err = None


class VhostTestClient:
    """A frontend and its guest's driver.

    Open with `connect`. Once the task has ended (`aclose`, or the nursery was cancelled) every
    descriptor and mapping is closed.

    Args:
        path: where the backend listens.
    """

    def __init__(self, path: str | os.PathLike[str], options: ClientOptions) -> None:
        self.path = path
        self.options = options
        self.features = 0
        """Negotiated virtio features."""
        self.protocol_features = 0
        """Negotiated protocol features."""
        self.received: collections.deque[ReceivedFrame] = collections.deque()
        """Frames that the driver has taken out of the RX ring and no test has asked for yet."""
        self._connection: Connection | None = None
        self._completed = 0
        self._own: set[int] = set()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.memory = options.guest_memory()
        progress = trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot()
        self.vrings = [
            self._make_vring(index, progress[index % 2]) for index in range(2 * options.queue_pairs)
        ]
        """Of pair i, 2i receives and 2i + 1 transmits."""

    def _make_vring(self, index: int, progress: trio.lowlevel.ParkingLot) -> VringEnd:
        options = self.options
        layout = options.layout
        desc, avail, used = (
            self.memory.alloc_buffer(_whole_pages(size), align=_PAGE)
            for size in layout.part_sizes(options.ring_size)
        )
        queue = layout(self.memory, index, desc, avail, used, size=options.ring_size)
        queue.init(options.base)
        return VringEnd(
            queue,
            kick=None if options.poll_kick else _eventfd(),
            call=None if options.poll_call else _eventfd(),
            err=_eventfd() if options.err else None,
            progress=progress,
        )

    # Life

    @classmethod
    async def connect(
        cls, nursery: trio.Nursery, path: str | os.PathLike[str], **options: Any
    ) -> Self:
        """Connect, do the handshake and start the task that is the guest.

        Args:
            options: those of `ClientOptions`.
        """
        client = cls(path, ClientOptions(**options))
        await nursery.start(client._run)
        return client

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        """Be the guest until cancelled; owns every descriptor of this object."""
        try:
            await self._open_connection()
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for vring in self.vrings:
                        if vring.call is not None and self.options.driver:
                            nursery.start_soon(self._serve_calls, vring, vring.call)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._close()

    async def _open_connection(self) -> None:
        self._connection = await Connection.open(self.path)
        if self.options.handshake:
            await self.handshake()

    def _close(self) -> None:
        self.disconnect()
        for vring in self.vrings:
            vring.close()
        self.memory.close()
        self._ended.set()

    async def aclose(self) -> None:
        """Disable the rings as a frontend does at its end, hang up, and end the task."""
        if self._connection is not None:
            with contextlib.suppress(BackendRefusedError, BackendHungUpError):
                await self.enable(False)
        self._scope.cancel()
        await self._ended.wait()

    def disconnect(self) -> None:
        """Hang up at once, like a frontend that is killed; guest memory stays as it is."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def reconnect(
        self, *, bases: Sequence[int] | None = None, wire_base: int | None = None
    ) -> None:
        """Connect again with the same guest, as QEMU does when its backend comes back.

        Like QEMU it enables the rings before anything else: a ring that starts disabled would
        discard what it finds.

        Args:
            bases: first avail index of each ring; by default where its used ring stands, so that
                what the device never returned is given to it again.
            wire_base: what SET_VRING_BASE says of both, whatever is right.
        """
        if bases is None:
            bases = [vring.queue.used_idx() for vring in self.vrings]
        self.disconnect()
        self._connection = await Connection.open(self.path)
        await self.negotiate()
        await self.enable(True)
        await self.share_memory()
        for index, base in enumerate(bases):
            await self.start_vring(index, base, wire_base=wire_base)

    @property
    def connection(self) -> Connection:
        """The socket, for requests of the test's own."""
        assert self._connection is not None, "not connected"
        return self._connection

    @property
    def rx_queue(self) -> VirtioQueue:
        """What the guest receives on, of the first pair."""
        return self.vrings[RX_QUEUE_IDX].queue

    @property
    def tx_queue(self) -> VirtioQueue:
        """What the guest transmits on, of the first pair."""
        return self.vrings[TX_QUEUE_IDX].queue

    # Handshake

    async def handshake(self) -> None:
        """Everything from SET_OWNER to the first receive buffers."""
        await self.negotiate()
        await self.start_device()

    async def start_device(self) -> None:
        """The part of the handshake that comes once the guest's driver is ready."""
        await self.share_memory()
        for vring in self.vrings:
            await self.start_vring(vring.queue.queue_idx, self.options.base)
        self.fill_rx_queue()

    async def negotiate(self) -> None:
        """SET_OWNER and both kinds of features."""
        connection = self.connection
        await connection.set_owner()
        several = self.options.queue_pairs > 1
        wanted = self.options.features | (Feature.MQ if several else 0)
        self.features = await connection.get_features() & wanted
        await connection.set_features(self.features)
        for vring in self.vrings:
            vring.queue.features = self.features
            vring.queue.event_idx = self.has_feature(Feature.EVENT_IDX)
            vring.queue.in_order = self.has_feature(Feature.IN_ORDER)
        if self.has_feature(Feature.PROTOCOL_FEATURES):
            offered = await connection.get_protocol_features()
            wanted = self.options.protocol_features | (ProtocolFeature.MQ if several else 0)
            self.protocol_features = offered & wanted
            await connection.set_protocol_features(self.protocol_features)

    async def share_memory(self) -> None:
        """SET_MEM_TABLE with the memory as it is laid out now."""
        await self.connection.set_mem_table(self.memory.get_region_info())

    async def start_vring(self, index: int, base: int, *, wire_base: int | None = None) -> None:
        """NUM, ADDR, BASE, KICK, CALL, ENABLE, and ERR before it if there is one.

        Args:
            wire_base: what SET_VRING_BASE says, if it is not that the ring stands at `base`.
        """
        connection, vring = self.connection, self.vrings[index]
        if wire_base is None:
            wire_base = vring.queue.wire_base(base)
        await connection.set_vring_num(index, vring.queue.size)
        await self.set_vring_addr(index)
        await connection.set_vring_base(index, wire_base)
        await connection.set_vring_kick(index, vring.kick)
        await connection.set_vring_call(index, vring.call)
        if vring.err is not None:
            await connection.set_vring_err(index, vring.err)
        await connection.set_vring_enable(index, True)

    async def set_vring_addr(self, index: int) -> None:
        """SET_VRING_ADDR with the queue's user addresses."""
        queue, user = self.vrings[index].queue, self.memory.get_host_address
        await self.connection.set_vring_addr(
            index, user(queue.desc_table), user(queue.used_ring), user(queue.avail_ring)
        )

    async def stop_vring(self, index: int) -> int:
        """GET_VRING_BASE: stop the ring; the next avail index that the device would look at."""
        return await self.connection.get_vring_base(index)

    async def enable(self, enabled: bool) -> None:
        """SET_VRING_ENABLE for all rings."""
        for index in range(len(self.vrings)):
            await self.connection.set_vring_enable(index, enabled)

    async def reset_driver(self) -> None:
        """What a reboot of the guest does: stop all rings, empty them, start them at 0."""
        for vring in self.vrings:
            await self.stop_vring(vring.queue.queue_idx)
            self.process(vring)
            for chain in vring.queue.detach_all():
                self._free(chain)
            vring.queue.init()
        for vring in self.vrings:
            await self.start_vring(vring.queue.queue_idx, 0)
        self.fill_rx_queue()

    def fill_rx_queue(self) -> None:
        """Give the device as many receive buffers as the options say, and kick."""
        for pair in self.options.pairs_in_use:
            with contextlib.suppress(QueueFullError):
                for _ in range(self.options.rx_buffers):
                    self.add_rx_buffer(pair)
            self.kick(2 * pair + RX_QUEUE_IDX)

    def has_feature(self, feature: int) -> bool:
        """Whether a feature bit (a mask, as `Feature.MAC`) was negotiated."""
        return bool(self.features & feature)

    async def get_mac_from_config(self) -> bytes:
        """The MAC address in the configuration space."""
        return await self.connection.get_config(0, 6)

    # Transmitting

    async def send_packet(self, frame: bytes, timeout: float = TIMEOUT, **how: Any) -> None:
        """Send a frame and wait until the device has taken it; `how` as in `send_packet_nowait`.

        Raises:
            trio.TooSlowError: it was not taken in `timeout` seconds.
        """
        target = self._completions_until_idle() + 1
        self.send_packet_nowait(frame, **how)
        await self._wait_tx(target, timeout)
        self._completed -= 1

    def send_packet_nowait(self, frame: bytes, *, pair: int = 0, **how: Any) -> int:
        """Queue a frame, kick if the device wants it, and return the head of the chain.

        Args:
            pair: the queue pair to send it by.
            how: other arguments of `queue_tx`.

        Raises:
            QueueFullError: no room in the ring.
        """
        head = self.queue_tx(frame, pair=pair, **how)
        self.kick(2 * pair + TX_QUEUE_IDX)
        return head

    def queue_tx(
        self,
        frame: bytes,
        *,
        pair: int = 0,
        header: VirtioNetHdr | None = None,
        split: Sequence[int] = (),
        publish: bool = True,
    ) -> int:
        """Queue a frame without kicking.

        Args:
            pair: the queue pair to send it by.
            header: the virtio_net_hdr in front of it, all zeros by default.
            split: lengths of the first descriptors; header and frame are one run of bytes, and
                what is left of it goes into one more.
            publish: move the avail index.
        """
        segments = self._allocate(split_lengths(VIRTIO_NET_HDR_SIZE + len(frame), split))
        table = self._allocate_table(len(segments))
        try:
            return self.vrings[2 * pair + TX_QUEUE_IDX].queue.add_tx_buffer(
                segments, frame, header=header, table=table, publish=publish
            )
        except QueueFullError:
            self._free(UsedBuffer(0, 0, readable=tuple(segments), table=table))
            raise

    async def send_burst(self, frames: Sequence[bytes], timeout: float = TIMEOUT) -> int:
        """Queue all frames, kick once, and wait until the device has taken them all.

        With EVENT_IDX the device is asked to interrupt once, after the last one.

        Returns:
            The number of frames.

        Raises:
            trio.TooSlowError: some were not taken in `timeout` seconds.
        """
        target = self._completions_until_idle() + len(frames)
        for frame in frames:
            self.queue_tx(frame, publish=False)
        self.tx_queue.enable_call(self.tx_queue.outstanding)
        self.tx_queue.publish()
        self.kick(TX_QUEUE_IDX)
        await self._wait_tx(target, timeout)
        self._completed -= len(frames)
        return len(frames)

    async def wait_tx_completion(self, timeout: float = TIMEOUT) -> int:
        """Wait for completions that nobody has counted yet, and return their number.

        Raises:
            trio.TooSlowError: none in `timeout` seconds.
        """
        await self._wait_tx(1, timeout)
        completed, self._completed = self._completed, 0
        return completed

    async def wait_tx_idle(self, timeout: float = TIMEOUT) -> None:
        """Wait until the device has returned every frame and every raw chain.

        Raises:
            trio.TooSlowError: it has not in `timeout` seconds.
        """
        vring = self.vrings[TX_QUEUE_IDX]
        with _deadline(timeout, lambda: f"TX: {self.pending_tx_count()} not returned"):
            await self._until(vring, lambda: self.pending_tx_count() == 0)

    def pending_tx_count(self) -> int:
        """Frames that the device has not returned yet."""
        return sum(vring.queue.outstanding for vring in self.vrings if not vring.is_rx)

    def _completions_until_idle(self) -> int:
        return self._completed + self.pending_tx_count()

    async def _wait_tx(self, target: int, timeout: float) -> None:
        vring = self.vrings[TX_QUEUE_IDX]
        with _deadline(timeout, lambda: f"TX: completed {self._completed}/{target}"):
            await self._until(vring, lambda: self._completed >= target)

    # Receiving

    async def recv_packet(self, timeout: float = TIMEOUT) -> bytes:
        """The next frame for the guest, without its header.

        Raises:
            trio.TooSlowError: none came in `timeout` seconds.
        """
        return (await self.recv_frame(timeout=timeout)).frame

    async def recv_frame(self, timeout: float = TIMEOUT) -> ReceivedFrame:
        """The next frame for the guest, with its header and the chains it came in.

        Raises:
            trio.TooSlowError: none came in `timeout` seconds.
        """
        vring = self.vrings[RX_QUEUE_IDX]
        with _deadline(timeout, lambda: "no frame was received"):
            await self._until(vring, lambda: bool(self.received))
        return self.received.popleft()

    async def wait_for_rx(self, timeout: float = TIMEOUT) -> bool:
        """Whether a frame is there, or comes in `timeout` seconds; it is not taken."""
        with trio.move_on_after(timeout):
            await self._until(self.vrings[RX_QUEUE_IDX], lambda: bool(self.received))
        return bool(self.received)

    async def wait_rx_used(self, count: int, timeout: float = TIMEOUT) -> list[UsedBuffer]:
        """Wait for returned receive buffers and take them as they are, whatever is in them.

        The driver itself leaves the RX ring alone while the device has raw chains.

        Raises:
            trio.TooSlowError: there are fewer than `count` after `timeout` seconds.
        """
        queue, vring = self.rx_queue, self.vrings[RX_QUEUE_IDX]
        with _deadline(timeout, lambda: f"RX: {queue.used_count()}/{count} returned"):
            if not queue.enable_call(count):
                await self._until(vring, lambda: queue.used_count() >= count)
        return [used for _ in range(count) if (used := queue.pop_used())]

    def add_rx_buffer(self, pair: int = 0) -> int:
        """Give the device one more receive buffer, without a kick. Returns the head."""
        lengths = self.options.rx_lengths
        segments, table = self._allocate(lengths), self._allocate_table(len(lengths))
        try:
            queue = self.vrings[2 * pair + RX_QUEUE_IDX].queue
            return queue.add_rx_buffer(segments, table=table)
        except QueueFullError:
            self._free(UsedBuffer(0, 0, writable=tuple(segments), table=table))
            raise

    # Notifications

    def kick(self, index: int, *, force: bool = False) -> None:
        """Kick if the device wants to hear of what was published, or if told to."""
        vring = self.vrings[index]
        if (vring.queue.kick_needed() or force) and vring.kick is not None:
            os.eventfd_write(vring.kick, 1)
            vring.kicks += 1

    async def wait_err(self, index: int, timeout: float = TIMEOUT) -> None:
        """Wait until the backend says that the ring is broken.

        Raises:
            trio.TooSlowError: it does not in `timeout` seconds.
        """
        err = self.vrings[index].err
        assert err is not None, "the err option was not given"
        with _deadline(timeout, lambda: f"no error on ring {index}"):
            await trio.lowlevel.wait_readable(err)
        os.eventfd_read(err)

    async def _serve_calls(self, vring: VringEnd, call: int) -> NoReturn:
        """Task: take interrupts of one ring until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(call)
            vring.calls += os.eventfd_read(call)
            self.process(vring)

    async def _until(self, vring: VringEnd, ready: Callable[[], bool]) -> None:
        """Wait for a state that only returned buffers can bring about."""
        while not ready():
            if vring.call is None:
                await trio.sleep(POLL_INTERVAL)
                for other in self.vrings:
                    if other.is_rx is vring.is_rx:
                        self.process(other)
            else:
                await vring.progress.park()

    def process(self, vring: VringEnd) -> None:
        """Do what the driver's interrupt handler does: take back every returned buffer.

        RX buffers are left where they are while the device has raw chains: no one knows here
        what is in those.
        """
        take = self._take_received if vring.is_rx else self._take_sent
        while True:
            while take(vring):
                pass
            if vring.call is None or vring.queue.raw_outstanding or not vring.queue.enable_call():
                break
        vring.progress.unpark_all()

    def _take_sent(self, vring: VringEnd) -> bool:
        used = vring.queue.pop_used()
        if used is None:
            return False
        if used.length:
            raise AssertionError(f"the device says it wrote {used.length} bytes to a TX buffer")
        self._free(used)
        self._completed += 1
        return True

    def _take_received(self, vring: VringEnd) -> bool:
        queue = vring.queue
        if queue.raw_outstanding:
            return False
        received = queue.pop_frame(mergeable=self.has_feature(Feature.MRG_RXBUF))
        if received is None:
            return False
        self.received.append(attrs.evolve(received, pair=vring.pair))
        for buffer in received.buffers:
            if self.options.refill:
                queue.add_rx_buffer(buffer.writable, table=buffer.table)
            else:
                self._free(buffer)
        self.kick(queue.queue_idx)
        return True

    # Memory

    def _allocate(self, lengths: Sequence[int]) -> list[Segment]:
        """Buffers that do not touch each other, each at whatever address comes next."""
        segments = [(self.memory.alloc_buffer(length + 1, align=1), length) for length in lengths]
        self._own.update(addr for addr, _ in segments)
        return segments

    def _allocate_table(self, length: int) -> int | None:
        if not self.options.indirect:
            return None
        table = self.memory.alloc_buffer(DESC_SIZE * length, align=DESC_SIZE)
        self._own.add(table)
        return table

    def _free(self, chain: UsedBuffer) -> None:
        """Give memory back; what a test has put into a chain itself stays the test's."""
        addrs = {addr for addr, _ in (*chain.readable, *chain.writable)}
        if chain.table is not None:
            addrs.add(chain.table)
        for addr in addrs & self._own:
            self._own.remove(addr)
            self.memory.free_buffer(addr)


@contextlib.contextmanager
def _deadline(seconds: float, problem: Callable[[], str]) -> Iterator[None]:
    """`trio.fail_after` with a word about what did not happen."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise trio.TooSlowError(problem())


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
