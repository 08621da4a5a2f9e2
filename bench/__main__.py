"""The command ``python -m bench``."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.util import find_spec
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
from .instructions import instructions
from .many import many
from .peers.measure import peers
from .peers.plot import draw
from .processes import BenchError
from .report import as_json, machine, markdown, text
from .roundtrip import round_trips
from .routing import growth, routing
from .throughput import throughput


def _run(measure: Callable[[Scale], Awaitable[Table]]) -> Callable[[Scale], Sequence[Table]]:
    return lambda scale: [trio.run(measure, scale)]


def _call(measure: Callable[[Scale], Table]) -> Callable[[Scale], Sequence[Table]]:
    return lambda scale: [measure(scale)]


MEASUREMENTS: dict[str, Callable[[Scale], Sequence[Table]]] = {
    "roundtrip": _run(round_trips),
    "core": _call(ring_core),
    "routing": _call(routing),
    "growth": _call(growth),
    "calls": _call(calls),
    "inline": _call(inline),
    "hot": _run(hot_rings),
    "throughput": _run(throughput),
    "idle": _run(idle),
    "many": _call(many),
    "instructions": _call(instructions),
    "guests": _run(guests),
    "peers": lambda scale: trio.run(peers, scale),
}
ASKED = ("instructions", "guests", "peers")
"""They need Debian packages; real guests take five minutes, the peers fifteen, and root."""
UNASKED = [name for name in MEASUREMENTS if name not in ASKED]


@click.command()
@click.option("--quick", is_flag=True, help="See that it works; the figures mean nothing.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(MEASUREMENTS)),
    help=f"Repeatable. Default: all but {', '.join(ASKED)}.",
)
@click.option("--all", "everything", is_flag=True, help="All there is; needs root. 20 minutes.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here."
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a folder: tables.md, figures.json, and peers.svg if there are peers.",
)
def main(
    quick: bool,
    only: Sequence[str],
    everything: bool,
    json_path: Path | None,
    results: Path | None,
) -> None:
    """Measure what mvirt-net costs, next to a peer in the same run.

    "÷ peer" is our cost in units of the peer's, round by round; "± %" is how unsteady the rounds
    were. docs/explanation/performance.md says what is measured.
    """
    names = list(MEASUREMENTS) if everything else only or UNASKED
    if results is not None and "peers" in names and find_spec("matplotlib") is None:
        raise click.ClickException("the plot needs matplotlib: pip install --group bench")
    begin, facts = time.monotonic(), machine()
    tables: list[Table] = []
    click.echo("".join(f"{name}: {fact}\n" for name, fact in facts.items()))
    for name in names:
        try:
            measured = MEASUREMENTS[name](QUICK if quick else FULL)
        except BenchError as error:
            raise click.ClickException(f"{name}: {error}") from error
        click.echo("\n".join(map(text, measured)))
        tables += measured
        if results is not None:
            _write(results, facts, tables)
    if json_path is not None:
        json_path.write_text(_json(facts, tables))
    click.echo(f"bench: done in {time.monotonic() - begin:.0f} s")


def _write(results: Path, facts: Mapping[str, str], tables: Sequence[Table]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    parts = ["# Figures\n", "".join(f"- {name}: {fact}\n" for name, fact in facts.items())]
    (results / "figures.json").write_text(_json(facts, tables))
    if any(table.name == "peers-rate" for table in tables):
        draw({table.name: table for table in tables}, results / "peers.svg")
        parts.append("![What stands side by side, as curves](peers.svg)\n")
    (results / "tables.md").write_text("\n".join([*parts, *map(markdown, tables)]))


def _json(facts: Mapping[str, str], tables: Sequence[Table]) -> str:
    return json.dumps(as_json(facts, tables), indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main(prog_name="python -m bench")
