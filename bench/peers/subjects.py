"""A backend and the client at its ports, and one turn of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from ..memory_state import Rounds, paired_rounds
from ..processes import START_SECONDS, BenchError, processor_busy_seconds
from .backends import (
    EPOLL,
    OURS,
    OVS,
    RING,
    TAPS,
    TESTPMD,
    Backend,
    Wiring,
    open_daemon,
    open_epoll,
    open_ovs,
    open_ring,
    open_taps,
    open_testpmd,
)
from .client import Client, Programs, open_client
from .plan import LARGE

ATTEMPTS = 3
"""A turn on a busy machine may be over before the backend has had the processor."""


@attrs.frozen
class Site:
    """Where everything runs.

    Args:
        client, backend: the processors.
        probe: the round trip of a cache line between the two.
    """

    client: int
    backend: int
    programs: Programs
    probe: Callable[[], float]


@attrs.frozen
class Sample:
    """What one turn has shown.

    Args:
        rate: frames a second that have arrived.
        loss: the share of frames that were sent, or of a load were due, and have not.
        cpu: seconds of the backend's processor for each frame.
        p50, p99: microseconds; None if they were not looked at or nothing came.
        flooded: frames a second that have arrived of those that flooded beside.
    """

    rate: float
    loss: float
    cpu: float
    p50: float | None
    p99: float | None
    flooded: float = 0.0


@attrs.frozen
class Subject:
    """A backend that stands still, and a client that waits for a command."""

    backend: Backend
    client: Client
    site: Site

    def measure(self, command: str) -> Sample:
        """Let the backend run for one command.

        Raises:
            BenchError: nothing comes back, or what comes is wrong.
        """
        for _ in range(ATTEMPTS):
            with self.running():
                spent = self._cpu_seconds()
                answer = self.client.request(command)
                spent = self._cpu_seconds() - spent
            if answer["received"]:
                return _sample(answer, spent)
        raise BenchError(f"{self.backend.name}: {command}: nothing has arrived")

    def idle_percent(self, seconds: float) -> float:
        """How much of a processor the backend needs when nothing happens."""
        with self.running():
            spent, begin = self._cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            return 100 * (self._cpu_seconds() - spent) / (time.monotonic() - begin)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The backend runs meanwhile."""
        self.backend.go_on()
        try:
            yield
        finally:
            self.backend.stop()

    def _cpu_seconds(self) -> float:
        spent = self.backend.cpu_seconds()
        # What the kernel routes has no process: all that its processor does is counted.
        return processor_busy_seconds(self.site.backend) if spent is None else spent


def _sample(answer: Mapping[str, float], spent: float) -> Sample:
    """What the client answers; `spent` is the backend's processor time for all of it."""
    return Sample(
        rate=answer["received"] / answer["seconds"],
        loss=1 - answer["arrived"] / max(1, answer["sent"] + answer["unsent"]),
        cpu=spent / answer["all_arrived"],
        p50=answer.get("p50_us"),
        p99=answer.get("p99_us"),
        flooded=answer["flooded"] / answer["seconds"],
    )


@contextmanager
def open_subjects(
    site: Site, wiring: Wiring, names: Sequence[str], notes: list[str], ports: int = 2
) -> Iterator[list[Subject]]:
    """Those of these names that can do what the wiring asks for.

    Args:
        notes: gets a line for each of those that cannot.
        ports: of each; taps, and what is there for pings only, have two.
    """
    with ExitStack() as stack:
        subjects = []
        for name in names:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="mvirt-")))
            backend = stack.enter_context(_open(name, folder, wiring, site, ports))
            subject = stack.enter_context(open_subject(site, backend, wiring))
            lacking = [] if name == TAPS else subject.client.lacks(wiring)
            if lacking:
                notes.append(f"{name} has no {', '.join(lacking)} ({wiring}).")
            else:
                subjects.append(subject)
        yield subjects


@contextmanager
def open_subject(site: Site, backend: Backend, wiring: Wiring) -> Iterator[Subject]:
    """A client at a backend, which stands still from now on."""
    with open_client(site.programs.client, backend, wiring, {site.client}) as client:
        _see_it_work(backend, client, LARGE if wiring.offloads else 64)
        backend.stop()
        yield Subject(backend, client, site)


def _see_it_work(backend: Backend, client: Client, size: int) -> None:
    """Wait until a frame arrives: Open vSwitch takes its time after it has agreed to all."""
    end = time.monotonic() + START_SECONDS
    while not client.request(f"ping size={size} count=1")["arrived"]:
        if time.monotonic() > end:
            raise BenchError(f"{backend.name}: nothing arrives")


def _open(
    name: str, folder: Path, wiring: Wiring, site: Site, ports: int
) -> AbstractContextManager[Backend]:
    processors = {site.backend}
    openers: Mapping[str, Callable[[], AbstractContextManager[Backend]]] = {
        OURS: lambda: open_daemon(folder, processors, ports, ports),
        TESTPMD: lambda: open_testpmd(folder, processors, ports),
        OVS: lambda: open_ovs(folder, processors, ports, offloads=wiring.offloads),
        TAPS: lambda: open_taps(processors),
        EPOLL: lambda: open_epoll(folder, processors, site.programs.epoll),
        RING: lambda: open_ring(folder, processors, site.programs.ring),
    }
    return openers[name]()


def take_rounds(subjects: Mapping[str, Subject], command: str, rounds: int) -> Rounds[Sample]:
    """Paired rounds of one command."""
    if not subjects:
        return Rounds(float("nan"), {}, 0)
    site = next(iter(subjects.values())).site

    def turn(subject: Subject) -> Callable[[], Sample]:
        return lambda: subject.measure(command)

    turns = {name: turn(subject) for name, subject in subjects.items()}
    return paired_rounds(turns, site.probe, rounds)
