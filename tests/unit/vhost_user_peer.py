"""Both neighbours of a vhost-user session: a frontend that packs its own bytes, and a device.

The frontend is written from the specification and shares nothing with the codec under test. The
device does what the real one promises, with numbers for memory, and fails the test when the session
asks for something that must never be asked. File descriptors are numbers, too; `Descriptors` knows
who has to close each of them.

Byte strings are those of a little-endian machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from mvirt_net.errors import ConnectionBroken, RequestRefused
from mvirt_net.model import MacAddress, MemoryRegion, VringAddr
from mvirt_net.vhost_user import (
    OFFERED_FEATURES,
    OFFERED_PROTOCOL_FEATURES,
    Header,
    Outcome,
    Request,
    Session,
    VirtioFeature,
)

MAC = MacAddress.parse("52:54:00:12:34:56")
MTU = 1450
RX, TX = 0, 1
NOFD = 0x100
SPLIT = OFFERED_FEATURES & ~VirtioFeature.F_RING_PACKED
"""All features that are offered, with split vrings."""
NEED_REPLY = 0x8
MIB = 1 << 20


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def state(index: int, num: int) -> bytes:
    return struct.pack("<II", index, num)


def vring_addr(index: int, addr: VringAddr, *, flags: int = 0, log: int = 0) -> bytes:
    return struct.pack("<IIQQQQ", index, flags, addr.desc, addr.used, addr.avail, log)


def region_bytes(region: MemoryRegion) -> bytes:
    return struct.pack(
        "<QQQQ", region.guest_addr, region.size, region.user_addr, region.mmap_offset
    )


def mem_table(*regions: MemoryRegion, count: int | None = None) -> bytes:
    head = struct.pack("<II", len(regions) if count is None else count, 0)
    return head + b"".join(map(region_bytes, regions))


def single_region(region: MemoryRegion) -> bytes:
    return bytes(8) + region_bytes(region)


def config(offset: int, size: int, *, flags: int = 0, room: int | None = None) -> bytes:
    return struct.pack("<III", offset, size, flags) + bytes(size if room is None else room)


REGION = MemoryRegion(guest_addr=0, size=2 * MIB, user_addr=0x7F00_0000_0000, mmap_offset=0)
UPPER = MemoryRegion(guest_addr=1 << 32, size=MIB, user_addr=0x7F10_0000_0000, mmap_offset=2 * MIB)
NULL = VringAddr(desc=0, used=0, avail=0)


def ring_at(user_addr: int) -> VringAddr:
    """Room for 256 entries: 4096, 518 and 2054 bytes."""
    return VringAddr(desc=user_addr, avail=user_addr + 0x1000, used=user_addr + 0x2000)


RINGS = (ring_at(REGION.user_addr), ring_at(REGION.user_addr + 0x4000))


class Descriptors:
    """File descriptors as numbers: each is closed exactly once."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self._next = 3

    def new(self, count: int) -> list[int]:
        fds = list(range(self._next, self._next + count))
        self._next += count
        self.open.update(fds)
        return fds

    def close(self, fd: int) -> None:
        assert fd in self.open, f"descriptor {fd} closed twice"
        self.open.remove(fd)


class FakeDevice:
    """The device of a session; `refuse` names methods that shall refuse."""

    def __init__(self, fds: Descriptors) -> None:
        self._descriptors = fds
        self.refuse: set[str] = set()
        self.features = 0
        self.mtu: int | None = None
        self.regions: list[MemoryRegion] = []
        self.running: dict[int, tuple[int, VringAddr]] = {}
        self.started: list[tuple[int, int | None]] = []
        """Each start: vring and base."""
        self.enabled = {RX: False, TX: False}
        """Of other pairs those that are."""
        self.owned: dict[tuple[str, int], int] = {}
        self.polled: set[int] = set()
        self.index_at_stop = 0

    def snapshot(self) -> object:
        """Everything that a refused request must not change."""
        return (
            self.features,
            self.mtu,
            tuple(self.regions),
            dict(self.running),
            len(self.started),
            dict(self.enabled),
            dict(self.owned),
            set(self.polled),
        )

    def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu

    def set_features(self, features: int) -> None:
        assert not self.running
        if features:
            self._may("set_features")
        self.features = features

    def set_memory_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        self._may("set_memory_table")
        assert len(regions) == len(fds)
        self._use(list(regions), fds)

    def add_memory_region(self, region: MemoryRegion, fd: int) -> None:
        self._may("add_memory_region")
        self._use([*self.regions, region], [fd])

    def remove_memory_region(self, region: MemoryRegion) -> None:
        self._may("remove_memory_region")
        assert region in self.regions
        self._use([other for other in self.regions if other != region], [])

    def check_vring(self, index: int, size: int, addr: VringAddr) -> None:
        self._may("check_vring")
        assert self.regions
        if not _within(self.regions, size, addr):
            raise RequestRefused("outside guest memory")

    def start_vring(self, index: int, size: int, addr: VringAddr, base: int | None) -> None:
        assert index not in self.running
        assert self.regions, "a vring starts without memory"
        assert addr != NULL
        assert ("kick", index) in self.owned or index in self.polled
        self._may("start_vring")
        self.check_vring(index, size, addr)
        self.running[index] = (size, addr)
        self.started.append((index, base))

    def move_vring(self, index: int, addr: VringAddr) -> None:
        self._may("move_vring")
        size, _ = self.running[index]
        self.check_vring(index, size, addr)
        self.running[index] = (size, addr)

    def stop_vring(self, index: int) -> int:
        del self.running[index]
        return self.index_at_stop

    def enable_vring(self, index: int, enabled: bool) -> None:
        assert isinstance(enabled, bool)
        assert 0 <= index < 16
        if enabled or index in (RX, TX):
            self.enabled[index] = enabled
        else:
            self.enabled.pop(index, None)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._own("kick", index, fd)
        self.polled.discard(index)
        if fd is None:
            self.polled.add(index)

    def drop_vring_kick(self, index: int) -> None:
        assert index not in self.running
        self._drop("kick", index)
        self.polled.discard(index)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._own("call", index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._own("err", index, fd)

    def _may(self, method: str) -> None:
        if method in self.refuse:
            raise RequestRefused(f"{method} does not want to")

    def _use(self, regions: list[MemoryRegion], fds: Sequence[int]) -> None:
        assert self._descriptors.open.issuperset(fds)
        for size, addr in self.running.values():
            if not _within(regions, size, addr):
                raise RequestRefused("a running vring is not within this memory")
        self.regions = regions

    def _own(self, kind: str, index: int, fd: int | None) -> None:
        assert 0 <= index < 16
        if fd is not None:
            assert fd in self._descriptors.open
            self._may(f"set_vring_{kind}")
        self._drop(kind, index)
        if fd is not None:
            self.owned[kind, index] = fd

    def _drop(self, kind: str, index: int) -> None:
        fd = self.owned.pop((kind, index), None)
        if fd is not None:
            self._descriptors.close(fd)


def _within(regions: Sequence[MemoryRegion], size: int, addr: VringAddr) -> bool:
    parts = ((addr.desc, 16 * size), (addr.avail, 6 + 2 * size), (addr.used, 6 + 8 * size))
    return all(
        any(r.user_addr <= start and start + length <= r.user_addr + r.size for r in regions)
        for start, length in parts
    )


class Frontend:
    """A frontend with its own session; after each message all descriptors are accounted for."""

    def __init__(self) -> None:
        self.fds = Descriptors()
        self.device = FakeDevice(self.fds)
        self.session = Session(self.device, mac=MAC, mtu=MTU)

    def exchange(self, request: int, payload: bytes = b"", fds: int = 0, flags: int = 1) -> Outcome:
        """Send a message with `fds` new descriptors and look at what comes back."""
        attached = self.fds.new(fds)
        try:
            header = Header.parse(struct.pack("<III", request, flags, len(payload)))
            return self.session.handle(header, payload, attached)
        finally:
            for fd in attached:
                self.fds.close(fd)
            assert self.fds.open == set(self.device.owned.values())

    def send(self, request: int, payload: bytes = b"", *, fds: int = 0) -> bytes | None:
        """Send a message that must not be refused; returns the payload of the reply, if any."""
        outcome = self.exchange(request, payload, fds)
        assert outcome.refused is None
        return None if outcome.reply is None else payload_of(outcome.reply, request)

    def call(self, request: int, payload: bytes = b"", *, fds: int = 0) -> bytes:
        """The same with NEED_REPLY: there must be a reply."""
        outcome = self.exchange(request, payload, fds, 1 | NEED_REPLY)
        assert outcome.refused is None
        assert outcome.reply is not None
        return payload_of(outcome.reply, request)

    def acked(self, request: int, payload: bytes = b"", *, fds: int = 0) -> None:
        """Send a message with NEED_REPLY that must be acknowledged with 0."""
        assert self.call(request, payload, fds=fds) == u64(0)

    def get_u64(self, request: int) -> int:
        (value,) = struct.unpack("<Q", self.send(request) or b"")
        assert isinstance(value, int)
        return value

    def get_base(self, index: int) -> int:
        reply = self.send(Request.GET_VRING_BASE, state(index, 0))
        assert reply is not None
        replied_index, base = struct.unpack("<II", reply)
        assert replied_index == index
        assert isinstance(base, int)
        return base


def payload_of(reply: bytes, request: int) -> bytes:
    """The payload of a reply whose header is right."""
    replied, flags, size = struct.unpack_from("<III", reply)
    assert (replied, flags, size) == (request, 5, len(reply) - 12)
    return reply[12:]


def fresh() -> Frontend:
    """Connected, nothing said."""
    return Frontend()


def negotiated(features: int = SPLIT) -> Frontend:
    """All protocol features that are offered, and by default all features but packed vrings."""
    frontend = fresh()
    frontend.send(Request.SET_OWNER)
    frontend.send(Request.SET_PROTOCOL_FEATURES, u64(OFFERED_PROTOCOL_FEATURES))
    frontend.send(Request.SET_FEATURES, u64(features))
    return frontend


def with_memory() -> Frontend:
    """`negotiated`, and the memory `REGION`."""
    frontend = negotiated()
    frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
    return frontend


def prepare_ring(frontend: Frontend, index: int) -> None:
    """All that a vring needs but the kick."""
    frontend.send(Request.SET_VRING_NUM, state(index, 256))
    frontend.send(Request.SET_VRING_BASE, state(index, 0))
    frontend.send(Request.SET_VRING_ADDR, vring_addr(index, RINGS[index]))


def running() -> Frontend:
    """`with_memory`, both vrings running and enabled."""
    frontend = with_memory()
    for index in (RX, TX):
        prepare_ring(frontend, index)
        frontend.send(Request.SET_VRING_KICK, u64(index), fds=1)
        frontend.send(Request.SET_VRING_CALL, u64(index), fds=1)
        frontend.send(Request.SET_VRING_ENABLE, state(index, 1))
    assert set(frontend.device.running) == {RX, TX}
    return frontend


def assert_refused(
    prepare: Callable[[], Frontend], request: int, payload: bytes = b"", *, fds: int = 0
) -> None:
    """Reaction E: an error reply to NEED_REPLY, else the end; either way nothing has changed.

    Args:
        prepare: makes a frontend that has negotiated REPLY_ACK.
    """
    asking = prepare()
    before = asking.device.snapshot()
    outcome = asking.exchange(request, payload, fds, 1 | NEED_REPLY)
    assert outcome.refused
    assert outcome.reply is not None
    assert payload_of(outcome.reply, request) == u64(1)
    assert asking.device.snapshot() == before
    assert_broken(prepare, request, payload, fds=fds)


def assert_broken(
    prepare: Callable[[], Frontend],
    request: int,
    payload: bytes = b"",
    *,
    fds: int = 0,
    flags: int = 1,
) -> None:
    """The connection ends, and nothing has changed."""
    frontend = prepare()
    before = frontend.device.snapshot()
    with pytest.raises(ConnectionBroken):
        frontend.exchange(request, payload, fds, flags)
    assert frontend.device.snapshot() == before
