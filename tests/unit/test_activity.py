"""What a person looks at: the last events, and rates while somebody looks."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mvirt_net import DropReason, NicStats, Switch, open_switch
from mvirt_net.activity import (
    EVENTS,
    FRONTEND_EVENTS,
    INTERVAL,
    LINGER,
    SAMPLES,
    SLICE,
    Activity,
    Curves,
    Drops,
    EventKind,
    EventLog,
    Rates,
    Traffic,
)
from mvirt_net.control import Control
from mvirt_net.model import DaemonConfig, NetworkSpec, NicSpec
from mvirt_net.nic import NicEvent, NicEventKind
from mvirt_net.switch import EVENT_BACKLOG
from tests.harness.backend import IN_TRIO
from tests.harness.client import VhostTestClient
from tests.harness.clock import virtual_time
from tests.harness.process import MAC, UNKNOWN

pytestmark = virtual_time

START = datetime(2026, 11, 29, 12, tzinfo=UTC)
NOTHING = NicStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {})


NIC = {"name": "vm1", "network": "blue", "mac_address": MAC}


def ticking() -> Iterator[datetime]:
    now = START
    while True:
        yield now
        now += timedelta(seconds=1)


def log() -> EventLog:
    times = ticking()
    return EventLog(lambda: next(times))


@attrs.define
class Scene:
    """One network, one NIC, and what is seen of them."""

    switch: Switch
    control: Control
    activity: Activity
    nursery: trio.Nursery

    def told(self) -> list[tuple[EventKind, str]]:
        """What happened, in order."""
        events = self.activity.events.latest()
        return [(event.kind, f"{event.resource} {event.name}") for event in reversed(events)]

    async def connect(self, folder: Path) -> VhostTestClient:
        return await VhostTestClient.connect(self.nursery, folder / "vm1.sock")


@contextlib.asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Scene]:
    async with open_switch(polling=IN_TRIO) as switch, trio.open_nursery() as nursery:
        control = Control(switch, folder)
        await control.create_network({"name": "blue", "ipv4_subnet": "10.0.0.0/24"})
        await control.create_nic(NIC)
        activity = Activity(control, switch)
        nursery.start_soon(control.run)
        nursery.start_soon(activity.run)
        await wait_all_tasks_blocked()
        yield Scene(switch, control, activity, nursery)
        nursery.cancel_scope.cancel()


# Events.


async def test_the_last_events_are_kept() -> None:
    events = log()
    for number in range(EVENTS + 5):
        events.add(EventKind.CREATED, "nic", f"vm{number}")
    latest = events.latest()
    assert len(latest) == EVENTS
    assert (latest[0].name, latest[0].serial) == (f"vm{EVENTS + 4}", EVENTS + 5)
    assert latest[-1].name == "vm5"
    assert latest[0].at - latest[1].at == timedelta(seconds=1)


async def test_one_nic_does_not_drown_the_others() -> None:
    """Whose frontend connects again and again, or whose guest breaks its ring."""
    events = log()
    events.add(EventKind.CREATED, "nic", "loud")
    events.add(EventKind.CONNECTED, "nic", "quiet")
    for _ in range(EVENTS):
        events.add(EventKind.CONNECTED, "nic", "loud")
        events.add(EventKind.FAULTED, "nic", "loud", "again")
        events.add(EventKind.DISCONNECTED, "nic", "loud")
        events.add(EventKind.REFUSED, "nic", "loud")
    latest = events.latest()
    assert [event.name for event in latest] == ["loud"] * FRONTEND_EVENTS + ["quiet", "loud"]
    assert [event.kind for event in latest[:2]] == [EventKind.REFUSED, EventKind.DISCONNECTED]
    assert latest[-1].kind is EventKind.CREATED


async def test_every_kind_of_nic_event_has_its_own() -> None:
    assert {kind.value for kind in NicEventKind} < {kind.value for kind in EventKind}


async def test_what_is_there_at_the_start_has_not_happened(folder: Path) -> None:
    async with watching(folder) as scene:
        assert scene.told() == []
        assert [nic.spec.name for nic in scene.activity.nics.values()] == ["vm1"]
        assert [network.spec.name for network in scene.activity.networks.values()] == ["blue"]


async def test_what_is_made_changed_and_deleted(folder: Path) -> None:
    async with watching(folder) as scene:
        control = scene.control
        await control.create_network({"name": "red", "ipv4_subnet": "10.1.0.0/24"})
        await control.create_nic({"name": "vm2", "network": "red"})
        await control.update_nic("vm2", routed_ipv4_prefixes=["10.2.0.0/24"])
        await control.delete_network("red", force=True)
        await wait_all_tasks_blocked()
        assert scene.told() == [
            (EventKind.CREATED, "network red"),
            (EventKind.CREATED, "nic vm2"),
            (EventKind.UPDATED, "nic vm2"),
            (EventKind.DELETED, "nic vm2"),
            (EventKind.DELETED, "network red"),
        ]
        assert len(scene.activity.nics) == len(scene.activity.networks) == 1


async def test_a_frontend_comes_and_goes(folder: Path) -> None:
    async with watching(folder) as scene:
        client = await scene.connect(folder)
        await wait_all_tasks_blocked()
        [nic] = scene.activity.nics.values()
        assert nic.state.value == "active"
        await client.aclose()
        await wait_all_tasks_blocked()
        [nic] = scene.activity.nics.values()
        assert nic.state.value == "created"
        assert scene.told() == [
            (EventKind.CONNECTED, "nic vm1"),
            (EventKind.DISCONNECTED, "nic vm1"),
        ]


async def test_too_much_at_once_is_said_and_followed_again(folder: Path) -> None:
    async with watching(folder) as scene:
        for _ in range(EVENT_BACKLOG + 2):  # one is taken at once
            scene.switch._publish(NicEvent("vm1", NicEventKind.FAULTED, "again"))
        await wait_all_tasks_blocked()
        assert scene.told()[-1] == (EventKind.MISSED, " ")
        await trio.sleep(INTERVAL)
        await wait_all_tasks_blocked()
        scene.switch._publish(NicEvent("vm1", NicEventKind.REFUSED, "process 1"))
        await wait_all_tasks_blocked()
        last = scene.activity.events.latest()[0]
        assert (last.kind, last.name, last.detail) == (EventKind.REFUSED, "vm1", "process 1")


# Rates.


async def test_the_last_samples_are_kept() -> None:
    curves = Curves()
    assert curves.now is None
    for number in range(SAMPLES + 3):
        curves.add(Rates(tx_bytes=number, rx_bytes=-number))
    assert list(curves.tx) == list(range(3, SAMPLES + 3))
    assert list(curves.rx) == [-value for value in curves.tx]
    assert curves.now == Rates(tx_bytes=SAMPLES + 2, rx_bytes=-SAMPLES - 2)


async def test_rates_are_per_second() -> None:
    traffic = Traffic(None, NOTHING, at=10.0)
    later = attrs.evolve(
        NOTHING,
        tx_frames=10,
        tx_bytes=1000,
        rx_frames=20,
        rx_bytes=3000,
        drops={DropReason.NO_ROUTE: 4, DropReason.FRAGMENT: 2},
    )
    assert traffic.add(None, later, at=12.0) == Rates(500, 5, 1500, 10, 3)
    assert traffic.add(None, later, at=14.0) == Rates()
    assert (list(traffic.curves.tx), list(traffic.curves.rx)) == ([500, 0], [1500, 0])


async def test_drops_of_all_nics_are_added_up(folder: Path) -> None:
    async with watching(folder) as scene:
        await scene.control.create_nic({"network": "blue", "name": "vm2"})
        client = await scene.connect(folder)
        for _ in range(3):
            await client.send_packet(UNKNOWN)
        await scene.activity.look()
        assert scene.activity.drops == {DropReason.ETHERTYPE: Drops(3, 3, "vm1")}
        await trio.sleep(LINGER + 2 * INTERVAL)
        assert scene.activity.drops == {}


async def test_the_nic_that_has_most_drops() -> None:
    drops = Drops()
    for frames, nic in ((1, "a"), (5, "b"), (4, "c"), (5, "d")):
        drops.add(frames, nic)
    assert drops == Drops(15, 5, "b")


async def test_a_nic_that_took_the_place_of_another_starts_from_nothing(folder: Path) -> None:
    """Though it may have sent more frames by now, and fewer bytes, than the one before."""
    async with watching(folder) as scene:
        client = await scene.connect(folder)
        await scene.activity.look()
        await client.send_packet(UNKNOWN + bytes(1000))
        await trio.sleep(INTERVAL)
        await wait_all_tasks_blocked()
        await scene.control.delete_nic("vm1")
        await scene.control.create_nic(NIC)
        client = await scene.connect(folder)
        for _ in range(2):
            await client.send_packet(UNKNOWN)
        await trio.sleep(INTERVAL)
        await wait_all_tasks_blocked()
        rates = scene.activity.traffic["vm1"].curves.now
        assert rates == Rates(
            tx_bytes=2 * len(UNKNOWN) / INTERVAL, tx_frames=2 / INTERVAL, drops=2 / INTERVAL
        )


async def test_nothing_is_sampled_while_nobody_looks(folder: Path) -> None:
    async with watching(folder) as scene:
        await trio.sleep(10 * INTERVAL)
        assert scene.activity.traffic == {}


async def test_rates_of_traffic(folder: Path) -> None:
    async with watching(folder) as scene:
        client = await scene.connect(folder)
        await scene.activity.look()
        assert scene.activity.traffic["vm1"].curves.now is None
        for _ in range(10):
            await client.send_packet(UNKNOWN)
        await trio.sleep(INTERVAL)
        await wait_all_tasks_blocked()
        expected = Rates(
            tx_bytes=10 * len(UNKNOWN) / INTERVAL, tx_frames=10 / INTERVAL, drops=10 / INTERVAL
        )
        assert scene.activity.traffic["vm1"].curves.now == expected
        assert scene.activity.total.now == expected


async def test_samples_are_thrown_away_when_nobody_looks_any_more(folder: Path) -> None:
    async with watching(folder) as scene:
        await scene.activity.look()
        await trio.sleep(LINGER - INTERVAL)
        await scene.activity.look()
        await trio.sleep(LINGER - INTERVAL)
        kept = len(scene.activity.total.tx)
        assert kept > LINGER / INTERVAL
        await trio.sleep(2 * INTERVAL)
        assert scene.activity.traffic == {}
        assert len(scene.activity.total.tx) == 0
        await scene.activity.look()
        assert list(scene.activity.traffic) == ["vm1"]


async def test_a_nic_that_is_deleted_is_sampled_no_more(folder: Path) -> None:
    async with watching(folder) as scene:
        await scene.activity.look()
        await scene.control.delete_nic("vm1")
        await trio.sleep(INTERVAL)
        await wait_all_tasks_blocked()
        assert scene.activity.traffic == {}


class Turns(trio.abc.Instrument):
    """Counts how often a task has its turn."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "sample" in task.name


async def test_a_sample_of_many_is_taken_in_slices(folder: Path) -> None:
    async with watching(folder) as scene:
        for number in range(4 * SLICE):
            await scene.control.create_nic({"network": "blue", "name": f"more{number}"})
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        await scene.activity.look()
        trio.lowlevel.remove_instrument(turns)
        assert len(scene.activity.traffic) == 4 * SLICE + 1
        assert turns.count > 4


@pytest.mark.parametrize("looks", [1, 5])
async def test_many_who_look_cost_no_more_than_one(folder: Path, looks: int) -> None:
    async with watching(folder) as scene:
        async with trio.open_nursery() as nursery:
            for _ in range(looks):
                nursery.start_soon(scene.activity.look)
        await trio.sleep(3 * INTERVAL + INTERVAL / 2)
        assert len(scene.activity.total.tx) == 3


async def test_what_cannot_be_served_says_why(folder: Path) -> None:
    taken = folder / "taken.sock"
    async with watching(folder) as scene:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(taken))
            other.listen()
            red = NetworkSpec(name="red", ipv4_subnet="10.1.0.0/24")
            vm2 = NicSpec(name="vm2", network="red", socket_path=taken)
            await scene.control.reload(DaemonConfig(networks=(red,), nics=(vm2,)))
        await scene.activity.look()
        await wait_all_tasks_blocked()
        [nic] = [nic for nic in scene.activity.nics.values() if nic.spec.name == "vm2"]
        assert nic.state.value == "error"
        assert scene.activity.traffic_of(nic) is None
        event = scene.activity.events.latest()[0]
        assert (event.kind, event.name, event.detail) == (EventKind.CREATED, "vm2", nic.error)
        # Now that the place is free, another attempt.
        await scene.control.reload(DaemonConfig(networks=(red,), nics=(vm2,)))
        await wait_all_tasks_blocked()
        event = scene.activity.events.latest()[0]
        assert (event.kind, event.name, event.detail) == (EventKind.UPDATED, "vm2", "")
