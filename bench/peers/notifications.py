"""How often the daemon and its guests' drivers notify each other."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from mvirt_net.ctl.client import Client as Control
from mvirt_net.endpoints import UnixEndpoint

from ..figures import Row, Table
from ..memory_state import Rounds, paired_rounds
from .backends import OURS, Wiring, open_daemon
from .plan import Plan
from .subjects import Site, Subject, open_subject
from .tables import STATE, middle, state

RATES = (1e3, 1e4, 1e5, 1e6)
COUNTERS = ("tx_frames", "kicks", "calls")


@attrs.frozen
class Writes:
    """eventfd writes for each 1,000 frames."""

    kicks: float
    calls: float


@attrs.frozen
class Counted:
    """A daemon that is asked what it has counted."""

    subject: Subject
    control: Control

    def measure(self, command: str) -> Writes:
        """What it counts during a command of the client."""
        before = self._counters()
        self.subject.measure(command)
        after = self._counters()
        frames, kicks, calls = (after[name] - before[name] for name in COUNTERS)
        return Writes(1000 * kicks / frames, 1000 * calls / frames)

    def _counters(self) -> Mapping[str, int]:
        with self.subject.running():
            nics = self.control.get("stats")["nics"].values()
        return {name: sum(nic[name] for nic in nics) for name in COUNTERS}


def count_notifications(site: Site, plan: Plan) -> dict[str, Rounds[Writes]]:
    """Rounds of everything that can be sent, by what it is called."""
    commands = {
        "ping, from idle": plan.ping,
        "ping, back to back": plan.hot_ping,
        **{f"{rate:,.0f} frames/s": plan.load(rate) for rate in RATES},
        "flood": f"flood size=64 seconds={plan.seconds}",
    }
    with TemporaryDirectory(prefix="mvirt-") as name:
        folder = Path(name)
        socket = folder / "http.sock"
        options = ("--http", f"unix:{socket}", "--no-state")
        with (
            open_daemon(folder, {site.backend}, options=options) as backend,
            open_subject(site, backend, Wiring(calls=True)) as subject,
        ):
            counted = Counted(subject, Control(UnixEndpoint(socket)))
            return {
                kind: paired_rounds(
                    {OURS: partial(counted.measure, command)}, site.probe, plan.rounds
                )
                for kind, command in commands.items()
            }


def notification_table(measured: Mapping[str, Rounds[Writes]]) -> Table:
    """Kicks and calls."""
    rows = []
    for kind, rounds in measured.items():
        writes = rounds.results[OURS]
        cells = {
            "kicks": middle([each.kicks for each in writes]),
            "calls": middle([each.calls for each in writes]),
        }
        rows.append(Row(kind, cells | state(rounds)))
    notes = (
        "mvirt-net alone, as it counts itself; 64 bytes, one way. What polls needs no kicks.",
        "The driver asks for all calls, as one that sleeps; that of the other tables polls, and"
        " gets none.",
    )
    columns = ("kicks", "calls", *STATE)
    title = "eventfd writes for each 1,000 frames"
    return Table("peers-notifications", title, columns, rows, notes)
