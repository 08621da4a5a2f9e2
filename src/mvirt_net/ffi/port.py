"""Ports: the rings, backlog and counters of a NIC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import attrs

from ..model import DropReason, MacAddress, NicStats, VringAddr
from ._core import ffi, lib
from .drain import Drained, copy_punts, drain_room
from .event import event_result
from .memory import GuestMemory
from .network import Network, Prefix, prefix_array
from .results import NextStep, allocated, check

if TYPE_CHECKING:
    from .capture import CaptureRing

MAX_FRAME: int = lib.MV_MAX_FRAME
"""Bytes of the longest frame, Ethernet header included, virtio_net_hdr not."""


def _ring_addr(addr: VringAddr) -> Any:
    return ffi.new(
        "struct mv_ring_addr *", {"desc": addr.desc, "used": addr.used, "avail": addr.avail}
    )


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

    __slots__ = (
        "__weakref__",
        "_captures",
        "_handle",
        "_memory",
        "_network",
        "hot_pairs",
        "takeovers",
        "wake",
    )

    def __init__(self, network: Network, mac: MacAddress) -> None:
        self.wake: Callable[[int], None] = _nobody
        """Called when a drain of another port finds that this pair of it is to be flushed."""
        self.hot_pairs: tuple[int, ...] = ()
        """Those whose TX ring a `Poller` has."""
        self.takeovers = 0
        """How often one took one."""
        self._network = network
        self._captures: tuple[CaptureRing, ...] = ()
        tag = network._add(self)
        self._handle = allocated("port", lib.mv_port_new(network._handle, mac.packed, tag))
        # What C points to must not be freed under it.
        self._memory: GuestMemory | None = None

    def set_routes(self, prefixes: Iterable[Prefix]) -> None:
        """Have exactly the packets for these prefixes come here, and let the guest send from them.

        Takes effect at once and as a whole. The longest prefix of an address counts.

        Raises:
            CoreError: another port has one of them, or one is there twice; nothing has changed.
        """
        check("routes", lib.mv_port_set_routes(self._handle, *prefix_array(prefixes)))

    def set_mtu(self, mtu: int) -> None:
        """Send the guest no IP packet of more bytes, nor than the network's MTU."""
        lib.mv_port_set_mtu(self._handle, mtu)

    def set_features(self, features: int) -> None:
        """Use the virtio features that the driver accepted. Raises CoreError while a ring runs."""
        check("features", lib.mv_port_set_features(self._handle, features))

    def set_memory(self, memory: GuestMemory | None) -> None:
        """Use this table from now on; running rings are found again in it.

        The table stays the caller's, who closes it after it was replaced.

        Raises:
            CoreError: a running ring does not lie within the new table; nothing has changed.
        """
        handle = ffi.NULL if memory is None else memory._handle
        check("memory table", lib.mv_port_set_memory(self._handle, handle))
        self._memory = memory

    def check_ring(self, size: int, addr: VringAddr) -> None:
        """Raise CoreError unless a ring of `size` entries could be at `addr`."""
        check("ring address", lib.mv_ring_check(self._handle, size, _ring_addr(addr)))

    def start_ring(self, queue: int, size: int, addr: VringAddr, base: int | None) -> None:
        """Start a stopped ring.

        Args:
            base: as SET_VRING_BASE said it; None for nothing. The ring's own state may count more
                (``mv_ring_start`` in mvirt.h).

        Raises:
            CoreError: as `check_ring`, or the ring runs already.
        """
        start = -1 if base is None else base
        check(
            "ring start",
            lib.mv_ring_start(self._handle, queue, size, _ring_addr(addr), start),
        )

    def move_ring(self, queue: int, addr: VringAddr) -> None:
        """Move the parts of a running ring, as SET_VRING_ADDR may. Raises CoreError."""
        check("ring address", lib.mv_ring_move(self._handle, queue, _ring_addr(addr)))

    def stop_ring(self, queue: int) -> int:
        """Stop a ring and return where it stands, for GET_VRING_BASE; the same again afterwards."""
        return check("ring stop", lib.mv_ring_stop(self._handle, queue))

    def enable_ring(self, queue: int, enabled: bool) -> None:
        """Enable or disable a ring, whether it runs or not."""
        check("ring enable", lib.mv_ring_enable(self._handle, queue, enabled))

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
        check("call", lib.mv_ring_set_call(self._handle, queue, -1 if fd is None else fd))

    def set_err(self, queue: int, fd: int | None) -> None:
        """The eventfd that reports a broken ring to the frontend. The fd stays the caller's."""
        check("err", lib.mv_ring_set_err(self._handle, queue, -1 if fd is None else fd))

    def drain(self, now: float = 0.0, pair: int = 0) -> Drained:
        """Take frames off the TX ring of a pair for about 50 µs.

        They are routed to other ports, dropped and counted, or left for the slow path.

        Args:
            now: seconds of any clock; by it is limited what goes to services, and ICMP errors.
        """
        room = drain_room
        drained = room.drained
        step = lib.mv_port_drain(
            room.worker, self._handle, pair, int(now * 1e9), room.buffer, drained
        )
        woken = self._pairs(drained.woken, drained.n_woken)
        return Drained(NextStep(step), copy_punts(drained, room.view), woken)

    def _pairs(self, woken: Any, n: int) -> list[tuple[Port, int]]:
        """The pairs that drains of this port leave to be flushed, but those that are gone."""
        ports = self._network._ports
        there = (woken[i] for i in range(n))
        return [(ports[to.tag], to.pair) for to in there if to.tag in ports]

    def enqueue(self, frame: bytes) -> bool:
        """Put a frame (14 to `MAX_FRAME` bytes) in the RX backlog of the first pair that is up.

        Returns:
            False when it was dropped and counted: the ring is down or the backlog full.

        Raises:
            CoreError: EINVAL for a frame too short or too long.
        """
        return bool(check("frame", lib.mv_port_enqueue(self._handle, frame, len(frame))))

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
        stats = drain_room.stats
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
        return event_result(lib.mv_port_take_kick(self._handle, fd))

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
        for ring in self._captures:
            ring.untap(self)
        handle, self._handle = self._handle, ffi.NULL
        self._memory = None
        lib.mv_port_free(handle)


def _nobody(_pair: int) -> None:
    """Who is woken while nobody serves a port."""
