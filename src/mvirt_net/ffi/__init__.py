"""Typed owners of what the C core allocates. `mvirt.h` says what each call does and promises.

Nothing outside this package sees a C pointer. A negative result of the core becomes a CoreError;
arguments are checked here where C could not tell (lengths, ranges).
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Literal, Self

import attrs

from ..errors import CoreError
from ..model import (
    DropReason,
    IcmpError,
    MacAddress,
    MemoryRegion,
    NicStats,
    PuntKind,
    VringAddr,
)
from ._core import ffi, lib

__all__ = [
    "MAX_FRAME",
    "MAX_REGIONS",
    "MAX_TAPS",
    "CaptureRing",
    "Drained",
    "GuestMemory",
    "HotRing",
    "Mapping",
    "Network",
    "NextStep",
    "Poller",
    "Port",
    "Punt",
    "RingState",
    "events_never_block",
    "is_eventfd",
    "read_event",
    "unmap_aside",
    "write_event",
]

MAX_REGIONS: int = lib.MV_MAX_REGIONS
MAX_FRAME: int = lib.MV_MAX_FRAME
"""Bytes of the longest frame, Ethernet header included, virtio_net_hdr not."""
MAX_TAPS: int = lib.MV_MAX_TAPS
"""Captures that one port can have at once."""


class NextStep(enum.IntEnum):
    """What a ring needs next (``enum mv_next``)."""

    KICK = 0
    """Nothing to do before the driver's next kick, which was asked for."""
    CALL_AGAIN = 1
    """A bound was reached with work left: let others run, then call again."""
    NOTHING = 2
    """The ring is not running or broken; of a flush also: the backlog is empty."""
    MORE_BUFFERS = 3
    """Of a flush: as KICK, but the frame in front needs more buffers than there are."""


def _same_numbers(python: type[enum.IntEnum], c_enum: str, prefix: str) -> None:
    """Make sure at import that an enumeration here and its twin in mvirt.h agree."""
    ours = {f"{prefix}{member.name}": member.value for member in python}
    theirs = {name: value for value, name in ffi.typeof(f"enum {c_enum}").elements.items()}
    if ours != theirs:
        raise ImportError(f"{python.__name__} and enum {c_enum} of the C core differ: rebuild it")


_same_numbers(NextStep, "mv_next", "MV_NEXT_")
_same_numbers(DropReason, "mv_drop", "MV_DROP_")
_same_numbers(PuntKind, "mv_punt_kind", "MV_PUNT_")
_same_numbers(IcmpError, "mv_icmp_error", "MV_ICMP_")


def _check(what: str, result: int) -> int:
    if result < 0:
        raise CoreError(what, -result)
    return result


def _allocated(what: str, handle: Any) -> Any:
    """What the core has made, unless it had no memory for it."""
    if handle == ffi.NULL:
        raise CoreError(what, errno.ENOMEM)
    return handle


def _region_spec(region: MemoryRegion) -> Any:
    return ffi.new(
        "struct mv_region_spec *",
        {
            "guest_addr": region.guest_addr,
            "size": region.size,
            "user_addr": region.user_addr,
            "mmap_offset": region.mmap_offset,
        },
    )


def _ring_addr(addr: VringAddr) -> Any:
    return ffi.new(
        "struct mv_ring_addr *", {"desc": addr.desc, "used": addr.used, "avail": addr.avail}
    )


class GuestMemory:
    """A table of mapped guest memory regions; it never changes, tables share their mappings.

    Close a table only when no `Port` uses it any more. A mapping goes with its last table.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = _allocated("memory table", handle)

    @classmethod
    def empty(cls, fault_fd: int) -> Self:
        """A table without regions.

        Args:
            fault_fd: an eventfd to which 1 is added when memory vanishes because the frontend
                shortened its file (zero pages take its place then). It stays the caller's and
                must stay open until the last table made from this one is closed.

        Raises:
            CoreError: out of memory, as everything that makes a table.
        """
        return cls(lib.mv_memory_new(fault_fd))

    def with_region(self, region: MemoryRegion, fd: int) -> Self:
        """A new table with this region of file `fd` mapped besides the present ones.

        The fd stays the caller's and may be closed afterwards.

        Raises:
            CoreError: the region is misaligned, overlaps another, lies outside the file, cannot
                be mapped for writing, or is one too many.
        """
        table = type(self)(lib.mv_memory_copy(self._handle))
        try:
            _check("memory region", lib.mv_memory_add(table._handle, _region_spec(region), fd))
        except CoreError:
            table.close()
            raise
        return table

    def prepare(self, region: MemoryRegion, fd: int) -> Mapping:
        """What `with_region` does with the file, to be done in its time. Nothing is mapped yet."""
        return Mapping(self._handle, region, fd)

    def with_mapping(self, mapping: Mapping) -> Self:
        """A new table with this region, mapped already, besides the present ones.

        Raises:
            CoreError: as `with_region`.
        """
        table = type(self)(lib.mv_memory_copy(self._handle))
        try:
            mapping._give_to(table._handle)
        except CoreError:
            table.close()
            raise
        return table

    def without_region(self, region: MemoryRegion) -> Self:
        """A new table without the region of these addresses and this size.

        Raises:
            CoreError: there is no such region.
        """
        table = type(self)(lib.mv_memory_copy(self._handle))
        try:
            _check("memory region", lib.mv_memory_remove(table._handle, _region_spec(region)))
        except CoreError:
            table.close()
            raise
        return table

    def close(self) -> None:
        """Give up the table; unmaps what no other table shares. May be called again."""
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_memory_free(handle)


class Mapping:
    """A region of guest memory on its way into a table; `GuestMemory.prepare` makes it.

    What is wrong with it is kept until a table is to have it, so that the frontend hears of it when
    and how it would have without all this.
    """

    def __init__(self, table: Any, region: MemoryRegion, fd: int) -> None:
        place = ffi.new("mv_region **")
        self._result = lib.mv_region_new(place, table, _region_spec(region), fd)
        self._handle = place[0]

    @property
    def may_wait(self) -> bool:
        """Whether `map` may take long: the kernel may wait for others who use the file."""
        return self._handle != ffi.NULL and bool(lib.mv_region_may_wait(self._handle))

    def map(self, fd: int) -> bool:
        """Map it; False when it cannot be. Any thread may do this, and nothing else meanwhile.

        Args:
            fd: of the same file.
        """
        if self._result == 0:
            self._result = lib.mv_region_map(self._handle, fd)
        return bool(self._result == 0)

    def _give_to(self, table: Any) -> None:
        _check("memory region", self._result)
        _check("memory region", lib.mv_memory_adopt(table, self._handle))
        self._handle = ffi.NULL

    def close(self) -> None:
        """Unmap what no table has got. May be called again."""
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_region_free(handle)


def unmap_aside(begin: bool) -> None:
    """Leave unmapping to another thread, or as often as before no longer.

    While one thread waits in `Mapping.map`, others that unmap or map would wait for it.
    """
    if begin:
        lib.mv_unmap_aside_begin()
    else:
        lib.mv_unmap_aside_end()


Prefix = IPv4Network | IPv6Network


def _prefixes(prefixes: Iterable[Prefix]) -> tuple[Any, int]:
    """An array of ``struct mv_prefix`` and its length."""
    rows = [
        {
            "family": 0 if prefix.version == 4 else 1,
            "length": prefix.prefixlen,
            "address": list(prefix.network_address.packed),
        }
        for prefix in prefixes
    ]
    return ffi.new("struct mv_prefix[]", rows), len(rows)


class Network:
    """The routes of one isolated network; each `Port` is in one.

    Args:
        mtu: of its links, in bytes.
        subnets: the addresses that belong to it. One of them that no port has is a host that
            cannot be reached; any other address is no route.

    Raises:
        CoreError: the same subnet twice, or out of memory.
    """

    def __init__(self, mtu: int = 1500, subnets: Iterable[Prefix] = ()) -> None:
        self._handle = _allocated("network", lib.mv_network_new(mtu))
        self._tags = itertools.count()
        self._ports: weakref.WeakValueDictionary[int, Port] = weakref.WeakValueDictionary()
        try:
            _check("subnets", lib.mv_network_set_subnets(self._handle, *_prefixes(subnets)))
        except CoreError:
            self.close()
            raise

    def _add(self, port: Port) -> int:
        """The tag by which drains speak of this port."""
        tag = next(self._tags)
        self._ports[tag] = port
        return tag

    def lookup(self, address: IPv4Address | IPv6Address) -> Port | Literal["on-link"] | None:
        """Where a packet to `address` would go: a port, nobody on the link, or nowhere."""
        prefix, _ = _prefixes([ip_network(address)])
        return self._hop(lib.mv_network_lookup(self._handle, prefix, ffi.NULL))

    def match(
        self, address: IPv4Address | IPv6Address
    ) -> tuple[Port | Literal["on-link"] | None, int]:
        """The same, and the length of the prefix that decides it."""
        prefix, _ = _prefixes([ip_network(address)])
        length = ffi.new("unsigned int *")
        return self._hop(lib.mv_network_lookup(self._handle, prefix, length)), length[0]

    def _hop(self, tag: int) -> Port | Literal["on-link"] | None:
        if tag < 0:
            return "on-link" if tag == -errno.EHOSTUNREACH else None
        return self._ports[tag]

    def close(self) -> None:
        """Give up the network, which goes with the last of its ports. May be called again."""
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_network_free(handle)


class _DrainRoom(threading.local):
    """What a thread needs to drain or to read counters, and where that leaves what it found, which
    is nothing between two calls.
    """

    def __init__(self) -> None:
        self.worker = ffi.gc(_allocated("worker", lib.mv_worker_new()), lib.mv_worker_free)
        self.buffer = ffi.new("uint8_t[]", lib.MV_PUNT_BYTES)
        self.view = memoryview(ffi.buffer(self.buffer))
        self.drained = ffi.new("struct mv_drained *")
        self.stats = ffi.new("struct mv_stats *")


_drain_room = _DrainRoom()


def _punts(drained: Any, view: memoryview) -> list[Punt]:
    """Copies of the punts whose bytes are in `view`."""
    punts = []
    for i in range(drained.n_punts):
        entry = drained.punts[i]
        frame = bytes(view[entry.offset : entry.offset + entry.length])
        punts.append(Punt(PuntKind(entry.kind), frame, IcmpError(entry.error), entry.mtu))
    return punts


@attrs.frozen
class Punt:
    """A frame for the slow path, copied out of guest memory, without virtio_net_hdr."""

    kind: PuntKind
    frame: bytes
    error: IcmpError = IcmpError.TIME_EXCEEDED
    """Of an ICMP_ERROR: what its sender is to hear."""
    mtu: int = 0
    """Of an ICMP_ERROR for being TOO_BIG: what it was too big for, in bytes."""


@attrs.frozen
class Drained:
    """What one drain of the TX ring left to do."""

    next: NextStep
    punts: list[Punt]
    woken: list[Port]
    """Ports that have frames waiting now, or whose RX ring has broken: to be flushed."""


@attrs.frozen(kw_only=True)
class RingState:
    """A ring as it is at a moment."""

    queue: int
    """Of pair i, 2i is RX and 2i + 1 is TX."""
    running: bool
    enabled: bool
    broken: bool
    """It stands still until its next start because the driver broke its rules."""
    hot: bool
    """A worker thread polls it."""
    wants_kicks: bool
    """The driver was told to kick."""
    packed: bool
    size: int
    """In entries."""
    next: int
    """The place in it that is looked at next."""


class Port:
    """The rings, backlog and counters of one NIC; it outlives the NIC's connections.

    Several threads may `drain`, `flush` and `enqueue` at once; all that sets something belongs to
    one thread, for all ports of a network, and so do `GuestMemory` and `Network`. Queues are
    counted as vhost-user does: of pair i, 2i is RX (to the guest) and 2i + 1 is TX.

    Args:
        network: what it is in; open.
        mac: the NIC's MAC address; frames from any other are dropped.

    Raises:
        CoreError: out of memory.
    """

    def __init__(self, network: Network, mac: MacAddress) -> None:
        self.wake: Callable[[], None] = _nobody
        """Called when a drain of another port finds that this one is to be flushed."""
        self.hot_pairs: set[int] = set()
        """Those whose TX ring a `Poller` has."""
        self.takeovers = 0
        """How often one took one."""
        self._network = network
        self._captures: set[CaptureRing] = set()
        tag = network._add(self)
        self._handle = _allocated("port", lib.mv_port_new(network._handle, mac.packed, tag))
        # What C points to must not be freed under it.
        self._memory: GuestMemory | None = None

    def set_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Have exactly the packets for these prefixes come here, and let the guest send from them.

        Takes effect at once and as a whole. The longest prefix of an address counts.

        Raises:
            CoreError: another port has one of them, or one is there twice; nothing has changed.
        """
        _check("routes", lib.mv_port_set_routes(self._handle, *_prefixes(prefixes)))

    def set_mtu(self, mtu: int) -> None:
        """Send the guest no IP packet of more bytes, nor than the network's MTU."""
        lib.mv_port_set_mtu(self._handle, mtu)

    def set_features(self, features: int) -> None:
        """Use the virtio features that the driver accepted. Raises CoreError while a ring runs."""
        _check("features", lib.mv_port_set_features(self._handle, features))

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Use this table from now on; running rings are found again in it.

        The table stays the caller's, who closes it after it was replaced.

        Raises:
            CoreError: a running ring does not lie within the new table; nothing has changed.
        """
        handle = ffi.NULL if memory is None else memory._handle
        _check("memory table", lib.mv_port_set_memory(self._handle, handle))
        self._memory = memory

    def check_ring(self, size: int, addr: VringAddr) -> None:
        """Raise CoreError unless a ring of `size` entries could be at `addr`."""
        _check("ring address", lib.mv_ring_check(self._handle, size, _ring_addr(addr)))

    def start_ring(self, queue: int, size: int, addr: VringAddr, base: int | None) -> None:
        """Start a stopped ring.

        Args:
            base: as SET_VRING_BASE said it; None for nothing. The ring's own state may count more
                (``mv_ring_start`` in mvirt.h).

        Raises:
            CoreError: as `check_ring`, or the ring runs already.
        """
        start = -1 if base is None else base
        _check(
            "ring start",
            lib.mv_ring_start(self._handle, queue, size, _ring_addr(addr), start),
        )

    def move_ring(self, queue: int, addr: VringAddr) -> None:
        """Move the parts of a running ring, as SET_VRING_ADDR may. Raises CoreError."""
        _check("ring address", lib.mv_ring_move(self._handle, queue, _ring_addr(addr)))

    def stop_ring(self, queue: int) -> int:
        """Stop a ring and return where it stands, for GET_VRING_BASE; the same again afterwards."""
        return _check("ring stop", lib.mv_ring_stop(self._handle, queue))

    def enable_ring(self, queue: int, enabled: bool) -> None:
        """Enable or disable a ring, whether it runs or not."""
        _check("ring enable", lib.mv_ring_enable(self._handle, queue, enabled))

    def ring_broken(self, queue: int) -> bool:
        """Whether the ring stands still until its next start because the driver broke its rules."""
        return bool(lib.mv_ring_broken(self._handle, queue))

    def rings(self) -> Iterator[RingState]:
        """Those that run or are enabled."""
        state = ffi.new("struct mv_ring_state *")
        for queue in range(2 * lib.MV_MAX_PAIRS):
            lib.mv_ring_look(self._handle, queue, state)
            if state.running or state.enabled:
                yield RingState(
                    queue=queue,
                    running=state.running,
                    enabled=state.enabled,
                    broken=state.broken,
                    hot=bool(queue % 2) and queue // 2 in self.hot_pairs,
                    wants_kicks=state.wants_kicks,
                    packed=state.packed,
                    size=state.size,
                    next=state.next,
                )

    def set_call(self, queue: int, fd: int | None) -> None:
        """The eventfd that interrupts the driver; None: it polls. The fd stays the caller's."""
        _check("call", lib.mv_ring_set_call(self._handle, queue, -1 if fd is None else fd))

    def set_err(self, queue: int, fd: int | None) -> None:
        """The eventfd that reports a broken ring to the frontend. The fd stays the caller's."""
        _check("err", lib.mv_ring_set_err(self._handle, queue, -1 if fd is None else fd))

    def drain(self, now: float = 0.0, pair: int = 0) -> Drained:
        """Take frames off the TX ring of a pair for about 50 µs.

        They are routed to other ports, dropped and counted, or left for the slow path.

        Args:
            now: seconds of any clock; by it the rate of ICMP errors is limited.
        """
        room = _drain_room
        drained = room.drained
        step = lib.mv_port_drain(
            room.worker, self._handle, pair, int(now * 1e9), room.buffer, drained
        )
        return Drained(NextStep(step), _punts(drained, room.view), self._woken(drained))

    def _woken(self, drained: Any) -> list[Port]:
        """The ports that a drain of this one leaves to be flushed, but those that are gone."""
        ports = self._network._ports
        tags = (drained.woken[i] for i in range(drained.n_woken))
        return [ports[tag] for tag in tags if tag in ports]

    def enqueue(self, frame: bytes) -> bool:
        """Put a frame (14 to `MAX_FRAME` bytes) in the RX backlog of the first pair that is up.

        Returns:
            False when it was dropped and counted: the ring is down or the backlog full.

        Raises:
            CoreError: EINVAL for a frame too short or too long.
        """
        return bool(_check("frame", lib.mv_port_enqueue(self._handle, frame, len(frame))))

    def flush(self, pair: int = 0) -> NextStep:
        """Move the RX backlog of a pair to the guest as far as it has given buffers.

        This is also what finds the first buffers of a pair, without which no frames go there; only
        the first pair (0) gets frames without.
        """
        return NextStep(lib.mv_port_flush(self._handle, pair))

    def drop_first(self, pair: int = 0) -> None:
        """Give up on the frame that waits for more buffers; counted."""
        lib.mv_port_drop_first(self._handle, pair)

    @property
    def is_up(self) -> bool:
        """Whether the guest can receive: an RX ring runs, is enabled and is not broken."""
        return bool(lib.mv_port_is_up(self._handle))

    @property
    def backlog(self) -> int:
        """Frames that wait for RX buffers, in all pairs."""
        return int(lib.mv_port_backlog(self._handle))

    def count_drop(self, reason: DropReason) -> None:
        """Count a frame that was dropped outside the core."""
        lib.mv_port_count_drop(self._handle, reason)

    @property
    def taps(self) -> int:
        """How many captures it has."""
        return len(self._captures)

    def record_punt(self, frame: bytes, reason: DropReason | None) -> None:
        """Let captures see a frame of the guest that a service has dealt with, or dropped."""
        if self._captures:
            lib.mv_port_record_punt(
                self._handle, frame, len(frame), -1 if reason is None else reason
            )

    def stats(self) -> NicStats:
        """The counters as they are now."""
        stats = _drain_room.stats
        lib.mv_port_stats(self._handle, stats)
        # At once, for who asks 512 ports would wait for 20,000 items.
        counts = ffi.unpack(stats.drops, len(DropReason))
        drops = {DropReason(number): count for number, count in enumerate(counts) if count}
        return NicStats(
            tx_frames=stats.tx_frames,
            tx_bytes=stats.tx_bytes,
            rx_frames=stats.rx_frames,
            rx_bytes=stats.rx_bytes,
            kicks=stats.kicks,
            calls=stats.calls,
            punts=stats.punts,
            routed=stats.routed,
            icmp_errors=stats.icmp_errors,
            slow_signals=stats.slow_signals,
            drops=drops,
        )

    def tx_frames(self, pair: int) -> int:
        """How many of the TX frames came by this pair."""
        return int(lib.mv_port_tx_frames(self._handle, pair))

    def take_kick(self, fd: int) -> bool:
        """As `read_event`, of an eventfd of the frontend: the port owes for the time that it takes.

        Raises:
            OSError: also if it owes too much.
        """
        return _event_result(lib.mv_port_take_kick(self._handle, fd))

    @property
    def owes(self) -> float:
        """Seconds in which nothing should be done for it that can be made to take long."""
        return lib.mv_port_owes_ns(self._handle) / 1e9  # type: ignore[no-any-return]

    def charge(self, seconds: float) -> None:
        """Something done for it has held up the others so long. Nobody owes for a closed port."""
        lib.mv_port_charge(self._handle, int(seconds * 1e9))

    @property
    def due(self) -> int:
        """When it will have paid: a moment to be given to `settle`."""
        return int(lib.mv_port_due_ns(self._handle))

    def settle(self, due: int) -> None:
        """It has waited until then; what it has come to owe meanwhile is left."""
        lib.mv_port_settle(self._handle, due)

    def close(self) -> None:
        """Free the port. Nothing else may be called afterwards, but for `close` itself."""
        for ring in list(self._captures):
            ring.untap(self)
        handle, self._handle = self._handle, ffi.NULL
        self._memory = None
        lib.mv_port_free(handle)


def _nobody() -> None:
    """Who is woken while nobody serves a port."""


class Poller:
    """Polls TX rings in a thread, which the caller gives it by calling `run` there.

    Everything else belongs to the one thread that has the ports.

    Args:
        patience: seconds that a ring may be empty before it is given up; 0: none at all.

    Raises:
        CoreError: out of memory.
    """

    def __init__(self, patience: float) -> None:
        handle = _allocated("poller", lib.mv_poller_new(int(patience * 1e9)))
        self._handle = ffi.gc(handle, lib.mv_poller_free)

    def run(self) -> None:
        """Poll until `stop`. Signals are for other threads meanwhile."""
        lib.mv_poller_run(self._handle)

    def stop(self) -> None:
        """Give up all rings, for good, and have `run` return, now or when it is called."""
        lib.mv_poller_stop(self._handle)


class HotRing:
    """The TX ring of a port while a `Poller` has it; to be closed before anything of the port is.

    Args:
        poller: whose it is now.
        port, pair: its `drain` is for nobody else meanwhile, and must be called afterwards.
        now: seconds of the clock that `drain` is called with.
        stay: seconds for which it is not given up for being empty.

    Raises:
        OSError: no descriptor is left.
        CoreError: out of memory.
    """

    def __init__(
        self, poller: Poller, port: Port, now: float, stay: float = 0.0, *, pair: int = 0
    ) -> None:
        self._poller = poller
        self._port = port
        self._buffer = ffi.new("const uint8_t **")
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there may be something to `take`, or the ring was given up."""
        try:
            times = int(now * 1e9), int(stay * 1e9)
            handle = lib.mv_poller_add(poller._handle, port._handle, pair, *times, self.fd)
            self._handle = _allocated("hot ring", handle)
        except BaseException:
            os.close(self.fd)
            raise
        self._pair = pair
        port.hot_pairs.add(pair)
        port.takeovers += 1

    @property
    def released(self) -> bool:
        """Whether the poller has given the ring up; what it has left before can still be taken."""
        return bool(lib.mv_hot_released(self._handle))

    def take(self) -> Drained | None:
        """What the poller has left to do; None: nothing."""
        drained = lib.mv_hot_take(self._handle, self._buffer)
        if drained == ffi.NULL:
            return None
        view = memoryview(ffi.buffer(self._buffer[0], lib.MV_PUNT_BYTES))
        taken = Drained(NextStep.CALL_AGAIN, _punts(drained, view), self._port._woken(drained))
        lib.mv_hot_done(self._handle)
        return taken

    def close(self) -> None:
        """Take the ring from the poller if it still has it. May be called again.

        At the return it does not touch the port any more. Ports that it left to be flushed are
        woken; punts are forgotten.
        """
        if self._handle == ffi.NULL:
            return
        lib.mv_hot_remove(self._handle)
        while (drained := self.take()) is not None:
            for port in drained.woken:
                port.wake()
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_hot_free(handle)
        os.close(self.fd)
        self._port.hot_pairs.remove(self._pair)


def _comments() -> Any:
    """What captures say about frames that were dropped."""
    comments = ffi.new("struct mv_comments *")
    for reason in DropReason:
        comments.text[reason] = f"dropped: {reason.name.lower()}".encode()
    return comments


class CaptureRing:
    """Frames of some ports on their way into a file; `capture.c` says what is recorded and how.

    Args:
        room: bytes that may wait to be taken; what finds no room is lost, and counted so.
        snaplen: bytes of each frame at most.

    Raises:
        OSError: no descriptor is left.
        CoreError: out of memory.
    """

    PIECE = 1 << 17
    """Bytes that are taken at once at most; the largest block is half of it."""

    def __init__(self, room: int, snaplen: int) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when there is something to `take` where nothing was."""
        try:
            handle = lib.mv_capture_new(room, snaplen, self.fd, _comments())
            self._handle = _allocated("capture", handle)
        except BaseException:
            os.close(self.fd)
            raise
        self._buffer = ffi.new("uint8_t[]", self.PIECE)
        self._ports: set[Port] = set()

    def tap(self, port: Port) -> int:
        """Record what the guest of this port sends and receives from now on.

        Returns:
            The number of its interface in the file, counted from 0.

        Raises:
            CoreError: it is recorded already, or has four captures.
        """
        number = _check("capture", lib.mv_capture_tap(self._handle, port._handle))
        self._ports.add(port)
        port._captures.add(self)
        return number

    def untap(self, port: Port) -> None:
        """Record nothing of it any more. A port that closes does this itself."""
        if port in self._ports:
            lib.mv_capture_untap(self._handle, port._handle)
            self._ports.remove(port)
            port._captures.remove(self)

    def untap_all(self) -> None:
        """The same for all ports."""
        for port in list(self._ports):
            self.untap(port)

    def take(self, most: int = PIECE) -> bytes:
        """Whole blocks that wait, oldest first, of `most` bytes and `PIECE` at most."""
        n = lib.mv_capture_take(self._handle, self._buffer, min(most, self.PIECE))
        return bytes(ffi.buffer(self._buffer, n))

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return bool(lib.mv_capture_is_empty(self._handle))

    def lose(self, interface: int, frames: int) -> None:
        """So many frames of an interface, in blocks that were taken, come into no file."""
        lib.mv_capture_lose(self._handle, interface, frames)

    def lose_waiting(self) -> None:
        """Throw away what waits, and count it as lost."""
        lib.mv_capture_lose_waiting(self._handle)

    def counts(self, interface: int) -> tuple[int, int]:
        """Frames of an interface so far, and those of them that were lost."""
        seen, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.mv_capture_counts(self._handle, interface, seen, lost)
        return seen[0], lost[0]

    def totals(self) -> tuple[int, int]:
        """The same of all interfaces together."""
        seen, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        lib.mv_capture_totals(self._handle, seen, lost)
        return seen[0], lost[0]

    def close(self) -> None:
        """End it; what waits is lost. May be called again."""
        if self._handle == ffi.NULL:
            return
        self.untap_all()
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_capture_free(handle)
        os.close(self.fd)


class Watcher:
    """Waits for kicks of TX rings in a thread, which the caller gives it by calling `run` there.

    Everything else belongs to the one thread that has the ports.

    Raises:
        OSError: no memory or no descriptor is left.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when rings were given back, see `returned`."""
        handle = lib.mv_watcher_new(self.fd)
        if handle == ffi.NULL:
            error = ffi.errno
            os.close(self.fd)
            raise OSError(error, os.strerror(error))
        self._handle = handle

    def run(self) -> None:
        """Watch until `stop`. Signals are for other threads meanwhile."""
        lib.mv_watcher_run(self._handle)

    def stop(self) -> None:
        """Touch no ring any more, for good, and have `run` return, now or when it is called."""
        lib.mv_watcher_stop(self._handle)

    def returned(self) -> Iterator[int]:
        """The keys of the rings given back, each once."""
        while (key := lib.mv_watcher_next(self._handle)) >= 0:
            yield key

    def close(self) -> None:
        """Give it up; `run` has returned. Each `Watch` stays as good as it is."""
        lib.mv_watcher_free(self._handle)
        os.close(self.fd)


@attrs.frozen
class Watched:
    """Why a ring was given back, and what that leaves to do."""

    drained: Drained
    """Of the last drain, after which the ring is as after `Port.drain`."""
    quick: bool
    """Kicks came as quickly as the caller wanted to know."""


class Watch:
    """What a `Watcher` may have of a port's TX ring; to be closed before anything of the port is.

    Args:
        port, pair: its `drain` is for nobody else between `begin` and `end`.
        key: what `Watcher.returned` calls it, not negative.
        now: seconds of the clock that `drain` is called with.

    Raises:
        CoreError: out of memory.
    """

    __slots__ = ("_handle", "_port", "_watcher")

    def __init__(
        self, watcher: Watcher, port: Port, key: int, now: float, *, pair: int = 0
    ) -> None:
        self._watcher = watcher
        self._port = port
        handle = lib.mv_watch_new(watcher._handle, port._handle, pair, key, int(now * 1e9))
        self._handle = _allocated("watch", handle)

    def begin(self, kick: int, burst: int, seconds: float) -> None:
        """Have the ring drained when its driver kicks, until there is something for the caller.

        Args:
            kick: the driver's eventfd, open until `end`.
            burst: how many kicks in less than so many `seconds` are quick.

        Raises:
            OSError: it cannot be watched.
        """
        result = lib.mv_watch_begin(self._handle, kick, burst, int(seconds * 1e9))
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def end(self) -> Watched | None:
        """Take the ring back; None: it was not given back before.

        May be called again, with the same result. At the return the watcher does not touch the port
        any more.
        """
        watched = ffi.new("struct mv_watched *")
        lib.mv_watch_end(self._handle, watched)
        if not watched.given_back:
            return None
        punts, woken = [], []
        if watched.drained != ffi.NULL:
            view = memoryview(ffi.buffer(watched.buffer, lib.MV_PUNT_BYTES))
            punts, woken = _punts(watched.drained, view), self._port._woken(watched.drained)
        return Watched(Drained(NextStep(watched.next), punts, woken), bool(watched.quick))

    def close(self) -> None:
        """Take the ring back for good. May be called again.

        Ports that a drain left to be flushed are woken; punts are forgotten.
        """
        if self._handle == ffi.NULL:
            return
        if (watched := self.end()) is not None:
            for port in watched.drained.woken:
                port.wake()
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_watch_free(handle)


def _event_result(result: int) -> bool:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result == 1


def is_eventfd(fd: int) -> bool:
    """Whether `fd` is an eventfd. Raises OSError when it is no open file descriptor."""
    return _event_result(lib.mv_event_check(fd))


def read_event(fd: int) -> bool:
    """Take the count of an eventfd without ever blocking; False: it was 0. Raises OSError."""
    return _event_result(lib.mv_event_read(fd))


def write_event(fd: int) -> bool:
    """Add 1 to an eventfd without ever blocking. Raises OSError.

    Returns:
        Unless `events_never_block`, False for one whose counter is full.
    """
    return _event_result(lib.mv_event_write(fd))


def events_never_block() -> bool:
    """Whether this kernel lets `write_event` keep its word whatever a frontend does meanwhile."""
    return bool(lib.mv_event_never_blocks())
