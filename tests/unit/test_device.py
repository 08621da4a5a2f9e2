"""The device: who owns which descriptor and mapping, and in what order they go."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from mvirt_net.dataplane.device import VhostDevice
from mvirt_net.dataplane.fds import close_fd
from mvirt_net.errors import CoreError, RequestRefused
from mvirt_net.ffi import GuestMemory, Network, NextStep, Port, write_event
from mvirt_net.model import RX_QUEUE, TX_QUEUE, MacAddress, MemoryRegion, VringAddr

MAC = MacAddress.parse("52:54:00:12:34:56")
QUEUES = (RX_QUEUE, TX_QUEUE)
RING_SIZE = 8
REGION_SIZE = 0x10000
USER = 0x7F00_0000_0000

NOT_EVENTFDS = [
    "folder",
    "regular file",
    "closed pipe end",
    "/dev/zero",
    "epoll",
    "socket",
    "memfd",
]


def region(number: int) -> MemoryRegion:
    """The numbered region, one after another in a file, apart in both address spaces."""
    start = number * 2 * REGION_SIZE
    return MemoryRegion(
        guest_addr=start, size=REGION_SIZE, user_addr=USER + start, mmap_offset=number * REGION_SIZE
    )


def ring_in(number: int, queue: int = RX_QUEUE) -> VringAddr:
    """A place for a ring in the numbered region."""
    start = region(number).user_addr + queue * 0x4000
    return VringAddr(desc=start, avail=start + 0x1000, used=start + 0x2000)


@pytest.fixture
def memory_file() -> Iterator[int]:
    fd = os.memfd_create("test_device", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4 * REGION_SIZE)
    yield fd
    os.close(fd)


class SpyPort(Port):
    """A port that keeps a diary and refuses to do one thing."""

    def __init__(self) -> None:
        super().__init__(Network(), MAC)
        self.diary: list[str] = []
        self.refuse = ""

    def enter(self, what: str) -> None:
        self.diary.append(what)
        if what == self.refuse:
            raise CoreError(what, 5)

    def set_features(self, features: int) -> None:
        self.enter(f"features {features:#x}")
        super().set_features(features)

    def set_memory(self, memory: GuestMemory | None) -> None:
        self.enter("memory" if memory else "no memory")
        super().set_memory(memory)

    def stop_ring(self, queue: int) -> int:
        self.enter(f"stop {queue}")
        return super().stop_ring(queue)

    def flush(self, pair: int = 0) -> NextStep:
        self.enter(f"flush {pair}")
        return super().flush(pair)

    def enable_ring(self, queue: int, enabled: bool) -> None:
        self.enter(f"enable {queue} {enabled}")
        super().enable_ring(queue, enabled)

    def set_call(self, queue: int, fd: int | None) -> None:
        self.enter(f"call {queue}" if fd else f"no call {queue}")
        super().set_call(queue, fd)

    def set_err(self, queue: int, fd: int | None) -> None:
        self.enter(f"err {queue}" if fd else f"no err {queue}")
        super().set_err(queue, fd)


@attrs.define(eq=False)
class Bench:
    """A device with all that it acts on."""

    port: SpyPort
    woken: list[int] = attrs.field(factory=list)
    names: dict[int, str] = attrs.field(factory=dict)
    device: VhostDevice = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.device = VhostDevice(self.port, wake=self.woken.append, release_fd=self.release)
        self.names[self.device.fault_fd] = "fault"

    def release(self, fd: int) -> None:
        self.port.enter(f"close {self.names.get(fd, 'fd')}")
        close_fd(fd)

    def eventfd(self, name: str) -> int:
        """One that is to become the device's."""
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.names[fd] = name
        return fd

    def start(self, queue: int, number: int = 0, base: int | None = 0) -> None:
        self.device.set_vring_kick(queue, self.eventfd(f"kick {queue}"))
        self.device.set_vring_call(queue, self.eventfd(f"call {queue}"))
        self.device.set_vring_err(queue, self.eventfd(f"err {queue}"))
        self.device.start_vring(queue, RING_SIZE, ring_in(number, queue % 2), base)


@pytest.fixture
def bench() -> Iterator[Bench]:
    port = SpyPort()
    before = mappings()
    bench = Bench(port)
    yield bench
    bench.device.close()
    assert mappings() == before
    port.close()


def mappings() -> int:
    """Mappings of `memory_file` in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:test_device")


class TestMemory:
    def test_table(self, bench: Bench, memory_file: int) -> None:
        bench.device.set_memory_table([region(0), region(1)], [memory_file, memory_file])
        for number in (0, 1):
            bench.device.check_vring(RX_QUEUE, RING_SIZE, ring_in(number))
        with pytest.raises(RequestRefused):
            bench.device.check_vring(RX_QUEUE, RING_SIZE, ring_in(2))

    @pytest.mark.parametrize("bad", [0, 1, 2])
    def test_table_is_taken_whole_or_not_at_all(
        self, bench: Bench, memory_file: int, bad: int
    ) -> None:
        bench.device.set_memory_table([region(0)], [memory_file])
        table = [region(1), region(2), region(3)]
        table[bad] = attrs.evolve(table[bad], mmap_offset=64 * REGION_SIZE)
        with pytest.raises(RequestRefused):
            bench.device.set_memory_table(table, [memory_file] * 3)
        bench.device.check_vring(RX_QUEUE, RING_SIZE, ring_in(0))
        with pytest.raises(RequestRefused):
            bench.device.check_vring(RX_QUEUE, RING_SIZE, ring_in(1))

    def test_m32_table_without_a_running_ring(self, bench: Bench, memory_file: int) -> None:
        bench.device.set_memory_table([region(0), region(1)], [memory_file] * 2)
        bench.start(RX_QUEUE, 1)
        bench.device.set_memory_table([region(1)], [memory_file])
        with pytest.raises(RequestRefused):
            bench.device.set_memory_table([region(0)], [memory_file])
        bench.device.check_vring(RX_QUEUE, RING_SIZE, ring_in(1))

    def test_regions_one_by_one(self, bench: Bench, memory_file: int) -> None:
        bench.device.add_memory_region(region(0), memory_file)
        bench.device.add_memory_region(region(1), memory_file)
        bench.start(TX_QUEUE, 1)
        with pytest.raises(RequestRefused):
            bench.device.add_memory_region(region(1), memory_file)
        with pytest.raises(RequestRefused):
            bench.device.remove_memory_region(region(1))
        bench.device.remove_memory_region(region(0))
        with pytest.raises(RequestRefused):
            bench.device.remove_memory_region(region(0))
        bench.device.stop_vring(TX_QUEUE)
        bench.device.remove_memory_region(region(1))

    def test_fault_event_tells_of_memory_that_vanished(
        self, bench: Bench, memory_file: int
    ) -> None:
        bench.device.set_memory_table([region(0)], [memory_file])
        bench.start(TX_QUEUE)
        bench.device.enable_vring(TX_QUEUE, True)
        os.ftruncate(memory_file, 0)
        bench.port.drain()
        assert select.select([bench.device.fault_fd], [], [], 0)[0]


class TestRings:
    def test_life(self, bench: Bench, memory_file: int) -> None:
        bench.device.set_features(1 << 32)
        bench.device.set_memory_table([region(0)], [memory_file])
        bench.start(TX_QUEUE, base=5)
        with pytest.raises(RequestRefused):
            bench.device.set_features(0)
        with pytest.raises(RequestRefused):
            bench.device.start_vring(TX_QUEUE, RING_SIZE, ring_in(0, TX_QUEUE), 5)
        with pytest.raises(RequestRefused):
            bench.device.move_vring(TX_QUEUE, ring_in(1, TX_QUEUE))
        bench.device.move_vring(TX_QUEUE, ring_in(0, RX_QUEUE))
        assert bench.device.stop_vring(TX_QUEUE) == 5

    @pytest.mark.parametrize("queue", QUEUES)
    def test_task_is_woken_by_what_concerns_it(
        self, bench: Bench, memory_file: int, queue: int
    ) -> None:
        def wakes(change: Callable[[], object]) -> bool:
            bench.woken.clear()
            change()
            return bench.woken == [queue]

        bench.device.set_memory_table([region(0)], [memory_file])
        assert wakes(lambda: bench.device.set_vring_kick(queue, bench.eventfd("kick")))
        place = ring_in(0, queue)
        assert wakes(lambda: bench.device.start_vring(queue, RING_SIZE, place, 0))
        assert wakes(lambda: bench.device.move_vring(queue, place))
        assert wakes(lambda: bench.device.enable_vring(queue, True))
        assert wakes(lambda: bench.device.set_vring_kick(queue, None))


class TestDescriptors:
    @pytest.mark.parametrize("kind", ["kick", "call", "err"])
    def test_replaced_ones_are_closed(self, bench: Bench, kind: str) -> None:
        set_fd = getattr(bench.device, f"set_vring_{kind}")
        for number in range(3):
            set_fd(RX_QUEUE, bench.eventfd(str(number)))
        set_fd(RX_QUEUE, None)
        closed = [entry for entry in bench.port.diary if entry.startswith("close")]
        assert closed == ["close 0", "close 1", "close 2"]

    @pytest.mark.parametrize("kind", ["call", "err"])
    def test_core_lets_go_before_one_is_closed(self, bench: Bench, kind: str) -> None:
        set_fd = getattr(bench.device, f"set_vring_{kind}")
        set_fd(RX_QUEUE, bench.eventfd("old"))
        set_fd(RX_QUEUE, bench.eventfd("new"))
        assert bench.port.diary[-2:] == [f"{kind} 0", "close old"]

    @pytest.mark.parametrize("what", NOT_EVENTFDS)
    @pytest.mark.parametrize("kind", ["kick", "call", "err"])
    def test_m21_only_eventfds(self, bench: Bench, kind: str, what: str) -> None:
        set_fd = getattr(bench.device, f"set_vring_{kind}")
        set_fd(TX_QUEUE, bench.eventfd("good"))
        with not_an_eventfd(what) as fd:
            with pytest.raises(RequestRefused, match="not an eventfd"):
                set_fd(TX_QUEUE, fd)
            os.fstat(fd)
        assert "close good" not in bench.port.diary

    def test_m21_blocking_call_that_is_full(self, bench: Bench) -> None:
        full = bench.eventfd("full")
        os.eventfd_write(full, 2**64 - 2)
        bench.device.set_vring_call(TX_QUEUE, full)
        write_event(full)
        assert os.eventfd_read(full) >= 2**64 - 2

    def test_m22_one_eventfd_for_everything(self, bench: Bench, memory_file: int) -> None:
        bench.device.set_memory_table([region(0)], [memory_file])
        with contextlib.closing(os.fdopen(os.eventfd(0), "rb", buffering=0)) as shared:
            for queue in QUEUES:
                for kind in ("kick", "call", "err"):
                    getattr(bench.device, f"set_vring_{kind}")(queue, os.dup(shared.fileno()))
                bench.device.start_vring(queue, RING_SIZE, ring_in(0, queue), 0)

    def test_kick_is_reset(self, bench: Bench) -> None:
        kick = bench.eventfd("kick")
        bench.device.set_vring_kick(RX_QUEUE, kick)
        os.eventfd_write(kick, 3)
        bench.device.take_kick(RX_QUEUE)
        assert not select.select([kick], [], [], 0)[0]
        bench.device.take_kick(RX_QUEUE)

    def test_kick_that_cannot_be_read_is_given_up(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_port: Port, _fd: int) -> bool:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Port, "take_kick", broken)
        bench.device.set_vring_kick(RX_QUEUE, bench.eventfd("kick"))
        bench.device.take_kick(RX_QUEUE)
        assert bench.device.fds(RX_QUEUE).kick is None
        assert not bench.device.fds(RX_QUEUE).polled
        bench.device.take_kick(RX_QUEUE)

    def test_no_descriptor_means_polling_until_the_ring_is_dropped(self, bench: Bench) -> None:
        bench.device.set_vring_kick(RX_QUEUE, None)
        assert bench.device.fds(RX_QUEUE).polled
        bench.device.drop_vring_kick(RX_QUEUE)
        assert not bench.device.fds(RX_QUEUE).polled

    def test_none_left_for_the_device_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_memory(_cls: type[GuestMemory], _fault_fd: int) -> GuestMemory:
            raise MemoryError

        port = SpyPort()
        monkeypatch.setattr(GuestMemory, "empty", classmethod(no_memory))
        with pytest.raises(MemoryError):
            VhostDevice(port, wake=lambda _index: None)
        port.close()


CLOSE_ORDER = [
    # Stop rings, and give the guest what is on its way in between.
    *("stop 1", "stop 5", "flush 0", "flush 2", "stop 0", "stop 4"),
    *(f"enable {queue} False" for queue in range(16)),
    "features 0x0",
    # Unmap.
    *("no memory", "unmap", "close fault"),
    # Close descriptors.
    *("no call 0", "close call 0", "no call 1", "close call 1"),
    *("no call 4", "close call 4", "no call 5", "close call 5"),
    *("no err 0", "close err 0", "no err 1", "close err 1"),
    *("no err 4", "close err 4", "no err 5", "close err 5"),
    *("close kick 0", "close kick 1", "close kick 4", "close kick 5"),
]

KEPT_BECAUSE_OF = {
    # The core refuses to forget the memory of a ring that runs.
    **{f"stop {queue}": {"unmap", "close fault"} for queue in (0, 1, 4, 5)},
    "no memory": {"unmap", "close fault"},
    "unmap": {"close fault"},
    **{f"no call {queue}": {f"close call {queue}"} for queue in (0, 1, 4, 5)},
    **{f"no err {queue}": {f"close err {queue}"} for queue in (0, 1, 4, 5)},
}
"""What must not be done any more after a failure, because the core may still use it."""


@attrs.frozen
class Closed:
    """What became of a device that was closed."""

    diary: list[str]
    failures: int
    left_open: set[str]


class TestClose:
    @pytest.fixture
    def close(
        self, memory_file: int, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[str], Closed]]:
        """Close a busy device, one step of which fails."""
        port = SpyPort()

        def close(refuse: str) -> Closed:
            bench = Bench(port)
            bench.device.set_memory_table([region(0)], [memory_file])
            for queue in (*QUEUES, 4, 5):
                bench.start(queue)
            monkeypatch.setattr(GuestMemory, "close", spied(GuestMemory.close))
            port.diary.clear()
            port.refuse = refuse
            failures = 0
            try:
                bench.device.close()
            except ExceptionGroup as group:
                failures = len(group.exceptions)
            return Closed(port.diary, failures, close_what_is_open(bench.names))

        def spied(unmap: Callable[[GuestMemory], None]) -> Callable[[GuestMemory], None]:
            def spied_unmap(memory: GuestMemory) -> None:
                port.enter("unmap")
                unmap(memory)

            return spied_unmap

        yield close
        port.close()

    def test_order(self, close: Callable[[str], Closed]) -> None:
        assert close("nothing") == Closed(CLOSE_ORDER, 0, set())

    @pytest.mark.parametrize("step", CLOSE_ORDER)
    def test_each_step_may_fail(self, close: Callable[[str], Closed], step: str) -> None:
        kept = KEPT_BECAUSE_OF.get(step, set())
        closed = close(step)
        assert closed.diary == [entry for entry in CLOSE_ORDER if entry not in kept]
        assert closed.failures >= 1
        not_closed = {entry for entry in {*kept, step} if entry.startswith("close ")}
        assert {f"close {name}" for name in closed.left_open} == not_closed

    def test_port_can_be_used_again(self, memory_file: int) -> None:
        port = SpyPort()
        for _ in range(2):
            bench = Bench(port)
            bench.device.set_features(1 << 32)
            bench.device.set_memory_table([region(0)], [memory_file])
            for queue in QUEUES:
                bench.start(queue)
                bench.device.enable_vring(queue, True)
            bench.device.close()
        port.close()


def close_what_is_open(names: dict[int, str]) -> set[str]:
    """Close those descriptors that still are what they were named for; their names."""
    found = set()
    for fd, name in names.items():
        with contextlib.suppress(OSError):
            os.close(fd)
            found.add(name)
    return found


@contextlib.contextmanager
def not_an_eventfd(what: str) -> Iterator[int]:
    """A descriptor of another kind, for the length of the block."""
    with contextlib.ExitStack() as stack:
        match what:
            case "folder":
                fd = os.open("/", os.O_RDONLY)
                stack.callback(os.close, fd)
            case "regular file":
                fd = stack.enter_context(tempfile.TemporaryFile()).fileno()
            case "closed pipe end":
                fd, other = os.pipe()
                os.close(other)
                stack.callback(os.close, fd)
            case "/dev/zero":
                fd = stack.enter_context(Path("/dev/zero").open("rb")).fileno()
            case "epoll":
                fd = stack.enter_context(select.epoll()).fileno()
            case "socket":
                fd = stack.enter_context(socket.socket(socket.AF_UNIX)).fileno()
            case _:
                fd = os.memfd_create("test_device")
                stack.callback(os.close, fd)
        yield fd
