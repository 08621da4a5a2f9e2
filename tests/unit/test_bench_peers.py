"""What is made of what was measured side by side: states, pairs, tables. Nothing is measured."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

from bench.memory_state import (
    ENOUGH,
    REPEATS,
    Round,
    Rounds,
    best_state,
    compiled_probe,
    is_same_state,
    paired_rounds,
)
from bench.peers.backends import EPOLL, OURS, OVS, RING, TAPS, TESTPMD, Backend, Wiring
from bench.peers.client import GUEST_TSO4, HOST_TSO4, MRG_RXBUF, RING_PACKED, Client
from bench.peers.neighbours import Beside, neighbour_table
from bench.peers.notifications import COUNTERS, Counted, Writes, notification_table
from bench.peers.plan import FULL, LARGE, QUICK
from bench.peers.plot import numbers_of
from bench.peers.subjects import ATTEMPTS, Sample, Subject
from bench.peers.tables import (
    CROWD_FIGURES,
    TAKEN,
    TRIP,
    Crowd,
    Flood,
    Load,
    Pings,
    cpu_table,
    crowd_table,
    load_table,
    ping_table,
    rate_tables,
    with_state,
)
from bench.processes import BenchError

FAST, SLOW = 60.0, 305.0


def scripted(trips: Sequence[float]) -> Callable[[], float]:
    """A probe that sees these round trips, and then the last one for ever."""
    left = list(trips)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def counting() -> Callable[[], int]:
    numbers: Iterator[int] = iter(range(1000))
    return lambda: next(numbers)


def sample(rate: float = 1e6, p50: float | None = None, p99: float | None = None) -> Sample:
    return Sample(rate=rate, loss=0.1, cpu=2e-7, p50=p50, p99=p99)


def rounds(**results: Sequence[Sample]) -> Rounds[Sample]:
    names = {"ours": OURS, "testpmd": TESTPMD, "ovs": OVS, "taps": TAPS, "epoll": EPOLL}
    names |= {"ring": RING}
    return Rounds(FAST, {names.get(name, name): each for name, each in results.items()}, 3)


@pytest.mark.parametrize(
    ("trips", "same"),
    [([60, 65, 70], True), ([145, 215], True), ([60, 60, 305], False), ([60, 108], False)],
)
def test_states_are_told_apart_by_a_factor(trips: Sequence[float], same: bool) -> None:
    assert is_same_state(trips) is same


def test_rounds_of_the_state_that_most_have_are_used_in_their_order() -> None:
    all_rounds: list[Round[float]] = [
        Round(trip, {"a": trip}) for trip in (SLOW, FAST, SLOW + 9, FAST + 5, SLOW + 3)
    ]
    assert [each.trip for each in best_state(all_rounds, 3)] == [SLOW, SLOW + 9, SLOW + 3]


def test_the_fastest_state_is_used_that_has_enough_rounds() -> None:
    all_rounds: list[Round[float]] = [
        Round(trip, {}) for trip in (SLOW, FAST, SLOW + 9, FAST + 5, SLOW + 3)
    ]
    assert [each.trip for each in best_state(all_rounds, 2)] == [FAST, FAST + 5]


def test_of_two_states_with_as_many_rounds_the_faster_is_used() -> None:
    all_rounds: list[Round[float]] = [Round(SLOW, {}), Round(FAST, {})]
    assert [each.trip for each in best_state(all_rounds, 2)] == [FAST]


def test_no_rounds_are_no_state() -> None:
    assert best_state(list[Round[int]](), 1) == []


def test_a_slow_state_is_not_left_alone_with_the_figure_at_once() -> None:
    rounds = ENOUGH + 1
    trips = [FAST] * 2 + [SLOW] * 2 * rounds + [FAST]
    result = paired_rounds({"a": counting()}, scripted(trips), rounds)
    assert result.trip == FAST
    assert result.results == {"a": [0, *range(rounds + 1, 2 * rounds)]}
    assert result.rejected == rounds


def test_a_slow_state_that_stays_is_what_there_is() -> None:
    rounds = ENOUGH + 1
    result = paired_rounds({"a": counting()}, scripted([FAST, FAST, SLOW]), rounds)
    assert result.trip == SLOW
    assert len(result.results["a"]) == 2 * rounds - 1


def test_quiet_machine_rejects_nothing() -> None:
    result = paired_rounds({"a": counting(), "b": counting()}, scripted([FAST]), 2)
    assert result == Rounds(FAST, {"a": [0, 1], "b": [0, 1]}, 0)


def test_turn_during_which_the_state_changes_is_repeated() -> None:
    result = paired_rounds({"a": counting()}, scripted([FAST, SLOW, FAST, FAST]), 1)
    assert result == Rounds(FAST, {"a": [1]}, 1)


def test_turn_in_another_state_than_the_rest_of_its_round_is_repeated() -> None:
    trips = [FAST, FAST, SLOW, SLOW, FAST, FAST]
    result = paired_rounds({"a": counting(), "b": counting()}, scripted(trips), 1)
    assert result == Rounds(FAST, {"a": [0], "b": [1]}, 1)


def test_round_whose_state_does_not_come_back_is_given_up() -> None:
    trips = [FAST, FAST, *([SLOW] * 2 * REPEATS), SLOW]
    result = paired_rounds({"a": counting(), "b": counting()}, scripted(trips), 1)
    assert result.results == {"a": [1], "b": [REPEATS]}
    assert result.trip == SLOW
    assert result.rejected == REPEATS + 1


def test_rounds_of_another_state_count_as_rejected() -> None:
    trips = [SLOW, SLOW, FAST]
    result = paired_rounds({"a": counting()}, scripted(trips), 2)
    assert result == Rounds(FAST, {"a": [1, 2]}, 1)


def test_machine_that_never_rests_yields_nothing_but_an_end() -> None:
    flips = [FAST, SLOW] * 1000
    result = paired_rounds({"a": counting()}, scripted(flips), 2)
    assert result.results == {"a": []}
    assert math.isnan(result.trip)
    assert result.rejected == 3 * 2 * REPEATS


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two processors")
def test_probe_measures() -> None:
    first, *_, last = sorted(os.sched_getaffinity(0))
    with compiled_probe([first, last]) as probe:
        assert probe() > 0


def test_rates_are_compared_round_by_round_and_none_is_said_of_who_is_not_there() -> None:
    flood = Flood(
        64,
        2,
        Wiring(packed=True),
        rounds(ours=[sample(2e6), sample(9e6)], testpmd=[sample(1e6), sample(3e6)]),
    )
    plain, large = rate_tables([flood], ["a note"])
    (row,) = plain.rows
    assert row.name == "64 B, both ways, packed, MRG"
    assert row.cells[OURS] == pytest.approx(5.5)
    assert row.cells[f"÷ {TESTPMD}"] == pytest.approx(2.5)
    assert row.cells[OVS] is None
    assert row.cells[f"÷ {OVS}"] is None
    assert row.cells[TRIP] == FAST
    assert row.cells["left out"] == 3
    assert plain.notes[-1] == "a note"
    assert not large.rows


def test_large_frames_are_counted_in_bits() -> None:
    flood = Flood(LARGE, 1, Wiring(offloads=True), rounds(ours=[sample(1e5)]))
    plain, large = rate_tables([flood], [])
    assert not plain.rows
    assert large.rows[0].name == "64 KiB TSO, one way, split, MRG"
    assert large.rows[0].cells[OURS] == pytest.approx(8e-9 * LARGE * 1e5)


def test_bare_ring_is_the_ceiling_of_frames_that_are_copied_as_they_are() -> None:
    measured = rounds(ours=[sample(2e6)], ring=[sample(8e6)])
    floods = [Flood(64, 1, Wiring(), measured), Flood(LARGE, 1, Wiring(offloads=True), measured)]
    plain, large = rate_tables(floods, [])
    assert plain.rows[0].cells[RING] == pytest.approx(8)
    assert plain.rows[0].cells[f"÷ {RING}"] == pytest.approx(0.25)
    assert any(note.startswith(RING) for note in plain.notes)
    assert RING not in large.columns


def test_without_any_round_a_row_says_nothing() -> None:
    (plain, _) = rate_tables([Flood(64, 1, Wiring(), rounds(ours=[], testpmd=[]))], [])
    cells = plain.rows[0].cells
    assert cells[OURS] is cells[f"÷ {TESTPMD}"] is cells[TRIP] is None


def test_cost_and_loss() -> None:
    (row,) = cpu_table([Flood(64, 1, Wiring(), rounds(ours=[sample()]))]).rows
    assert row.cells[OURS] == pytest.approx(200)
    assert row.cells[f"lost by {OURS}, %"] == pytest.approx(10)
    assert row.cells[TAPS] is None


def test_idle_ping_is_compared_with_epoll_and_a_hot_one_with_open_vswitch() -> None:
    idle = rounds(ours=[sample(p50=30, p99=60)], epoll=[sample(p50=20)], ovs=[sample(p50=1)])
    hot = rounds(ours=[sample(p50=2)], epoll=[sample(p50=8)], ovs=[sample(p50=1)])
    table = ping_table(Pings(idle, hot, {OURS: 0.1}))
    cells = next(row.cells for row in table.rows if row.name == OURS)
    assert cells[f"÷ {EPOLL}"] == pytest.approx(1.5)
    assert cells[f"÷ {OVS}"] == pytest.approx(2)
    assert cells["idle p99 µs"] == 60
    assert cells["idle % of a core"] == 0.1


def test_latency_is_not_said_of_who_does_not_keep_up() -> None:
    kept_up, behind = sample(0.96e6, p50=3, p99=9), sample(0.94e6, p50=300, p99=900)
    (row,) = load_table([Load(1e6, rounds(ours=[kept_up], ovs=[behind]))]).rows
    assert row.name == "1 Mframes/s"
    assert (row.cells[f"{OURS} p50"], row.cells[f"{OURS} p99"]) == (3, 9)
    assert row.cells[f"{OVS} p50"] is None


def test_one_disturbed_round_does_not_hide_a_latency() -> None:
    kept_up, behind = sample(0.96e6, p50=3, p99=9), sample(0.94e6, p50=5, p99=900)
    (row,) = load_table([Load(1e6, rounds(ours=[kept_up, behind, kept_up]))]).rows
    assert (row.cells[f"{OURS} p50"], row.cells[f"{OURS} p99"]) == (3, 9)


def test_many_nics_are_compared_with_the_fewest() -> None:
    measured = {
        kind: rounds(**{"2": [sample(4e6, p50=10)], "34": [sample(2e6, p50=12)]})
        for kind in CROWD_FIGURES
    }
    table = crowd_table([Crowd(2, 0.0, 1 << 20), Crowd(34, 0.1, 2 << 20)], measured)
    fewest, many = (row.cells for row in table.rows)
    assert "KiB a NIC" not in fewest
    assert many["KiB a NIC"] == 32
    assert many["one pair ÷ fewest"] == pytest.approx(0.5)
    assert many["ping ÷ fewest"] == pytest.approx(1.2)
    assert set(many) <= set(table.columns)
    assert numbers_of(table) == [2, 34]


def test_light_pair_is_told_of_beside_what_the_others_got_through() -> None:
    alone = Beside(1e3, 0, rounds(ours=[sample(p50=20, p99=40)], ovs=[sample(p50=2, p99=4)]))
    flooded = attrs.evolve(sample(p50=50, p99=190), loss=0, flooded=3e6)
    beside = [Beside(1e3, count, rounds(ours=[flooded])) for count in (1, 3)]
    table = neighbour_table([alone, *beside])
    assert [row.name for row in table.rows] == [
        *("1,000/s alone", "1,000/s beside 1 flood", "1,000/s beside 3 floods")
    ]
    first, second, _ = (row.cells for row in table.rows)
    assert (first[f"{OURS} p50"], first[f"{OVS} p99"]) == (20, 4)
    assert first[f"{OURS} lost %"] == pytest.approx(10)
    assert first[f"{OURS} floods"] is None
    assert first[f"{TESTPMD} p50"] is first[f"{TESTPMD} lost %"] is None
    assert (second[f"{OURS} p99"], second[f"{OURS} floods"]) == (190, 3)
    assert set(first) == set(table.columns)


def test_eventfd_writes_are_those_of_the_median_round() -> None:
    writes = [Writes(1000, 3), Writes(0, 1), Writes(5, 2)]
    (row,) = notification_table({"flood": Rounds(FAST, {OURS: writes}, 0)}).rows
    assert (row.name, row.cells["kicks"], row.cells["calls"]) == ("flood", 5, 2)
    assert row.cells[TAKEN] == 3


def test_row_says_how_many_rounds_of_one_state_it_is_made_of() -> None:
    pings = Pings(rounds(ours=[sample()] * 7), rounds(ours=[sample()] * 5), {})
    cells = ping_table(pings).rows[0].cells
    assert (cells[TAKEN], cells["left out"]) == (5, 6)


def test_row_of_too_few_rounds_is_marked() -> None:
    few, enough = (
        Flood(64, directions, Wiring(), rounds(ours=[sample()] * count))
        for directions, count in ((1, ENOUGH - 1), (2, ENOUGH))
    )
    table = cpu_table([few, enough])
    assert [row.name[-1] for row in with_state(table).rows] == ["*", "G"]
    assert with_state(table).notes[-1] == "*: fewer than 5 rounds."
    assert with_state(cpu_table([enough])).rows == cpu_table([enough]).rows


@pytest.mark.parametrize(
    ("features", "wiring", "lacking"),
    [
        ([RING_PACKED | MRG_RXBUF] * 2, Wiring(packed=True), []),
        ([MRG_RXBUF] * 2, Wiring(packed=True), ["packed rings"]),
        ([MRG_RXBUF, 0], Wiring(), ["mergeable buffers"]),
        ([HOST_TSO4] * 2, Wiring(mergeable=False, offloads=True), ["TSO"]),
        ([HOST_TSO4 | GUEST_TSO4] * 2, Wiring(mergeable=False, offloads=True), []),
    ],
)
def test_client_knows_what_was_not_granted(
    features: Sequence[int], wiring: Wiring, lacking: Sequence[str]
) -> None:
    client = Client(cast("Any", SimpleNamespace()), features)
    assert client.lacks(wiring) == lacking


def test_quick_plan_has_one_of_each_kind() -> None:
    assert FULL.rounds >= 5
    for plan in (FULL, QUICK):
        wirings = [*plan.wirings, *plan.large_wirings]
        assert {True, False} == {w.packed for w in wirings} == {w.mergeable for w in wirings}
        assert {64, 512, 1500} == set(plan.sizes)


class Scripted:
    """A client that gives these answers."""

    def __init__(self, *answers: dict[str, float]) -> None:
        self.answers = list(answers)

    def request(self, command: str) -> dict[str, float]:
        return self.answers.pop(0)


def answer(received: int, **more: float) -> dict[str, float]:
    counts = {
        "sent": 150.0,
        "unsent": 50.0,
        "received": received,
        "arrived": received,
        "all_arrived": received,
    }
    return {"seconds": 0.5, "flooded": 0, **counts, **more}


@attrs.define
class Recorded:
    """A backend that writes down what it is told."""

    name: str = OVS
    told: list[str] = attrs.Factory(list)

    def go_on(self) -> None:
        self.told.append("go on")

    def stop(self) -> None:
        self.told.append("stop")

    def cpu_seconds(self) -> float:
        return float(len(self.told))


def subject(backend: Recorded, *answers: dict[str, float]) -> Subject:
    site = cast("Any", SimpleNamespace())
    return Subject(cast("Any", backend), cast("Any", Scripted(*answers)), site)


def test_turn_that_brought_nothing_is_repeated_and_the_backend_runs_in_turns_only() -> None:
    backend = Recorded()
    measured = subject(backend, answer(0), answer(150, p50_us=7.0)).measure("flood")
    assert (measured.rate, measured.loss, measured.p50) == (300, 0.25, 7.0)
    assert backend.told == ["go on", "stop"] * 2


def test_notifications_are_counted_while_the_daemon_runs_and_for_each_thousand_frames() -> None:
    backend = Recorded()
    counters = [((10, 1, 0), (0, 0, 4)), ((210, 3, 0), (0, 0, 9))]

    def stats(_what: str) -> dict[str, Any]:
        assert backend.told[-1] == "go on"
        nics = zip("ab", counters.pop(0), strict=True)
        return {"nics": {nic: dict(zip(COUNTERS, counts, strict=True)) for nic, counts in nics}}

    control = cast("Any", SimpleNamespace(get=stats))
    assert Counted(subject(backend, answer(200)), control).measure("flood") == Writes(10, 25)
    assert backend.told[-1] == "stop"


def test_backend_that_passes_nothing_on_ends_the_benchmark() -> None:
    with pytest.raises(BenchError, match="OVS L3: flood: nothing has arrived"):
        subject(Recorded(), *[answer(0)] * ATTEMPTS).measure("flood")


def test_backend_stands_still_when_it_is_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        Backend(OVS, [process.pid]).stop()
        stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        process.kill()
    assert stopped is not None
    assert stopped.si_status == signal.SIGSTOP


def test_wrong_frame_ends_the_benchmark() -> None:
    reply = json.dumps({"wrong": 3}) + "\n"
    pipes = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO(reply))
    with pytest.raises(BenchError, match="3 frames were not what they should be"):
        Client(cast("Any", pipes), []).request("flood")


def test_client_that_ends_ends_the_benchmark() -> None:
    pipes = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO())
    with pytest.raises(BenchError, match="has ended"):
        Client(cast("Any", pipes), []).request("flood")
