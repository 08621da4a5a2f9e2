"""What a person looks at: what has happened lately, and how fast packets flow.

**Theory of operation.** An `Activity` follows the changes of a `Control`, as any watcher does, and
the events of the NICs. Of both it keeps the last `EVENTS`. While nothing happens, that costs
nothing.

Rates need samples, and a sample of 512 NICs takes milliseconds, so that one every two seconds would
take more of a processor than everything else that an idle daemon does (0.1 % is the aim), and two
minutes of them would take memory for each NIC. So samples are taken while somebody looks: `look`
starts that, and `LINGER` seconds after the last look all of them are thrown away. A sample is taken
in slices, between which guests are served.
"""

from __future__ import annotations

import collections
import enum
import math
from array import array
from collections.abc import Callable
from datetime import UTC, datetime

import attrs
import trio

from .control import Change, Control, NetworkRecord, NicRecord, NicState
from .model import DropReason, NicStats
from .nic import Nic, NicEvent
from .switch import Switch

EVENTS = 100
"""How many are kept."""
FRONTEND_EVENTS = 10
"""How many of these may be what one NIC's frontends did: one that connects again and again must not
drown all else."""
SAMPLES = 60
"""How many are kept of each NIC."""
INTERVAL = 2.0
"""Seconds between two samples."""
LINGER = 60.0
"""Seconds for which samples are taken after the last look: a tab comes to the front again."""
SLICE = 16
"""NICs that are looked at before others have their turn: less than a millisecond."""


class EventKind(enum.StrEnum):
    """What happened; beside those of `NicEventKind`, which have the same names here."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    FAULTED = "faulted"
    REFUSED = "refused"
    MISSED = "missed"
    """Too much happened at once, and some of it is not among the events."""


_BY_FRONTENDS = frozenset(
    {EventKind.CONNECTED, EventKind.DISCONNECTED, EventKind.FAULTED, EventKind.REFUSED}
)


@attrs.frozen
class Event:
    """Something that happened to a network or NIC."""

    serial: int
    """Counts up from 1."""
    at: datetime
    kind: EventKind
    resource: str
    """``network``, ``nic``, or empty."""
    name: str
    detail: str = ""


class EventLog:
    """The last events, in the order in which they happened."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._events: collections.deque[Event] = collections.deque(maxlen=EVENTS)
        self._serial = 0

    def add(self, kind: EventKind, resource: str = "", name: str = "", detail: str = "") -> None:
        self._serial += 1
        if kind in _BY_FRONTENDS:
            self._make_room(resource, name)
        self._events.append(Event(self._serial, self._now(), kind, resource, name, detail))

    def _make_room(self, resource: str, name: str) -> None:
        """Forget the first of `FRONTEND_EVENTS` of a NIC."""
        told = [
            event
            for event in self._events
            if event.kind in _BY_FRONTENDS and (event.resource, event.name) == (resource, name)
        ]
        if len(told) == FRONTEND_EVENTS:
            self._events.remove(told[0])

    def latest(self) -> list[Event]:
        """The last one first."""
        return list(reversed(self._events))


@attrs.define
class Drops:
    """Frames that were dropped for one reason, as of the last sample."""

    frames: int = 0
    """At all NICs together."""
    most: int = 0
    most_at: str = ""
    """The NIC that has most of them, and how many."""

    def add(self, frames: int, nic: str) -> None:
        self.frames += frames
        if frames > self.most:
            self.most, self.most_at = frames, nic


@attrs.frozen
class Rates:
    """Per second, over one interval."""

    tx_bytes: float = 0.0
    tx_frames: float = 0.0
    rx_bytes: float = 0.0
    rx_frames: float = 0.0
    drops: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.tx_bytes + other.tx_bytes,
            self.tx_frames + other.tx_frames,
            self.rx_bytes + other.rx_bytes,
            self.rx_frames + other.rx_frames,
            self.drops + other.drops,
        )


class Curves:
    """The last `SAMPLES` rates, in bytes per second."""

    def __init__(self) -> None:
        self.tx = array("d")
        self.rx = array("d")
        self.now: Rates | None = None
        """None until there were two samples."""

    def add(self, rates: Rates) -> None:
        self.now = rates
        for curve, value in ((self.tx, rates.tx_bytes), (self.rx, rates.rx_bytes)):
            curve.append(value)
            del curve[:-SAMPLES]


_NOTHING = NicStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {})


class Traffic:
    """The counters of a NIC as of the last sample, and what became of them lately.

    Args:
        nic: whose; another one may have its name by the next sample.
        stats, at: the first sample, and its time in seconds.
    """

    def __init__(self, nic: Nic | None = None, stats: NicStats = _NOTHING, at: float = 0.0) -> None:
        self._nic = nic
        self.stats = stats
        self.curves = Curves()
        self._at = at

    def add(self, nic: Nic | None, stats: NicStats, at: float) -> Rates:
        """Another sample, `at` a later time in seconds. Returns the rates since the last one."""
        if nic is not self._nic:
            self._nic, self.stats = nic, _NOTHING
        rates = _rates(self.stats, stats, at - self._at)
        self.stats, self._at = stats, at
        self.curves.add(rates)
        return rates


def _rates(before: NicStats, after: NicStats, seconds: float) -> Rates:
    return Rates(
        (after.tx_bytes - before.tx_bytes) / seconds,
        (after.tx_frames - before.tx_frames) / seconds,
        (after.rx_bytes - before.rx_bytes) / seconds,
        (after.rx_frames - before.rx_frames) / seconds,
        (sum(after.drops.values()) - sum(before.drops.values())) / seconds,
    )


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class Activity:
    """Networks and NICs as they are, and what they have been doing.

    Args:
        control, switch: whose.
        now: the time of day.
    """

    def __init__(
        self, control: Control, switch: Switch, now: Callable[[], datetime] = _wall_clock
    ) -> None:
        self._control = control
        self._switch = switch
        self.now = now
        self.started_at = now()
        self.events = EventLog(now)
        self.networks: dict[str, NetworkRecord] = {}
        self.nics: dict[str, NicRecord] = {}
        """Both by id."""
        self.traffic: dict[str, Traffic] = {}
        """By the name of the NIC; empty while nobody looks."""
        self.drops: dict[DropReason, Drops] = {}
        """Likewise; added up with each sample, for it takes some time."""
        self.total = Curves()
        self._looked_at = -math.inf
        self._look = trio.Event()
        """Set while somebody looks."""
        self._sampled = trio.Event()
        """Set when there is a sample."""

    async def look(self) -> None:
        """Somebody looks: see to it that there are samples, and wait for the first one."""
        self._looked_at = trio.current_time()
        self._look.set()
        await self._sampled.wait()

    async def run(self) -> None:
        """Follow everything, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_changes)
            nursery.start_soon(self._follow_frontends)
            nursery.start_soon(self._sample_for_those_who_look)

    def traffic_of(self, nic: NicRecord) -> Traffic | None:
        """None when nothing is known of it; one that is not served may have another's name."""
        return None if nic.state is NicState.ERROR else self.traffic.get(nic.spec.name)

    # What happens.

    async def _follow_changes(self) -> None:
        """Started by `run`.

        What is there already has not happened now; what changes while that is looked at may be
        taken for it.
        """
        while True:
            async with self._control.watch() as changes:
                self.networks = {r.id: r async for r in self._control.each_network()}
                self.nics = {r.id: r async for r in self._control.each_nic()}
                async for change in changes:
                    self._note(change)
            await self._miss()

    async def _follow_frontends(self) -> None:
        """Started by `run`."""
        while True:
            async with self._switch.events() as events:
                async for event in events:
                    self._note_frontend(event)
            await self._miss()

    async def _miss(self) -> None:
        """What is followed has ended, because too much happened at once, or for good.

        The next attempt comes a moment later: of the latter there is no end.
        """
        self.events.add(EventKind.MISSED)
        await trio.sleep(INTERVAL)

    def _note(self, change: Change) -> None:
        records: dict[str, NetworkRecord | NicRecord]
        records = self.networks if change.resource == "network" else self.nics  # type: ignore[assignment]
        before = records.pop(change.id, None)
        known = change.record or before
        if change.record is not None:
            records[change.id] = change.record
        if known is not None and (kind := _kind(before, change.record)) is not None:
            detail = "" if change.record is None else change.record.error
            self.events.add(kind, change.resource, known.spec.name, detail)

    def _note_frontend(self, event: NicEvent) -> None:
        self.events.add(EventKind(event.kind.value), "nic", event.nic, event.detail)

    # Rates.

    async def _sample_for_those_who_look(self) -> None:
        """Started by `run`."""
        while True:
            await self._look.wait()
            while trio.current_time() - self._looked_at < LINGER:
                await self._sample()
                self._sampled.set()
                await trio.sleep(INTERVAL)
            self.traffic, self.drops, self.total = {}, {}, Curves()
            self._look, self._sampled = trio.Event(), trio.Event()

    async def _sample(self) -> None:
        """Look at the counters of all NICs, in slices."""
        before, after = self.traffic, {}
        drops: collections.defaultdict[DropReason, Drops] = collections.defaultdict(Drops)
        total = Rates()
        for count, (name, nic) in enumerate(list(self._switch.nics.items()), 1):
            if nic is self._switch.nics.get(name):  # it may have gone meanwhile
                at = trio.current_time()
                if (traffic := before.get(name)) is None:
                    traffic = Traffic(nic, nic.stats(), at)
                else:
                    total += traffic.add(nic, nic.stats(), at)
                after[name] = traffic
                for reason, frames in traffic.stats.drops.items():
                    drops[reason].add(frames, name)
            if count % SLICE == 0:
                await trio.lowlevel.checkpoint()
        self.traffic, self.drops = after, dict(drops)
        if before:
            self.total.add(total)


def _kind(
    before: NetworkRecord | NicRecord | None, after: NetworkRecord | NicRecord | None
) -> EventKind | None:
    """What a change is for somebody who reads of it; what frontends do is told of elsewhere."""
    if before is None:
        return EventKind.CREATED
    if after is None:
        return EventKind.DELETED
    if after.error and after.error != before.error:
        return EventKind.FAULTED
    return EventKind.UPDATED if (before.spec, before.error) != (after.spec, after.error) else None
