"""The command ``python -m bench``."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click
import trio

from .calls import calls
from .core import ring_core
from .echo import inline
from .figures import FULL, QUICK, Scale, Table
from .guests import guests
from .hot import hot_rings
from .idle import idle
from .report import as_json, machine, text
from .roundtrip import round_trips
from .routing import growth, routing
from .throughput import throughput


def _run(measure: Callable[[Scale], Awaitable[Table]]) -> Callable[[Scale], Table]:
    return lambda scale: trio.run(measure, scale)


MEASUREMENTS: dict[str, Callable[[Scale], Table]] = {
    "roundtrip": _run(round_trips),
    "core": ring_core,
    "routing": routing,
    "growth": growth,
    "calls": calls,
    "inline": inline,
    "hot": _run(hot_rings),
    "throughput": _run(throughput),
    "idle": _run(idle),
    "guests": _run(guests),
}
UNASKED = [name for name in MEASUREMENTS if name != "guests"]
"""Real guests take ten minutes, and Debian's packages."""


@click.command()
@click.option("--quick", is_flag=True, help="See that it works; the figures mean nothing.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(MEASUREMENTS)),
    help="Repeatable. Default: all but guests.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here."
)
def main(quick: bool, only: Sequence[str], json_path: Path | None) -> None:
    """Measure what mvirt-net costs, next to a peer in the same run.

    "÷ peer" is our cost in units of the peer's, round by round; "± %" is how unsteady the rounds
    were. docs/explanation/performance.md says what is measured.
    """
    begin, facts, tables = time.monotonic(), machine(), []
    click.echo("".join(f"{name}: {fact}\n" for name, fact in facts.items()))
    for name in only or UNASKED:
        tables.append(MEASUREMENTS[name](QUICK if quick else FULL))
        click.echo(text(tables[-1]))
    if json_path is not None:
        json_path.write_text(json.dumps(as_json(facts, tables), indent=1, ensure_ascii=False))
    click.echo(f"bench: done in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(prog_name="python -m bench")
