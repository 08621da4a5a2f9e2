"""The command ``python -m bench.soak``."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence

import click
import trio

from bench.report import machine

from .crowd import crowd
from .cycles import cycles
from .report import Report
from .restarts import restarts
from .traffic import Length, traffic

SCENARIOS: dict[str, Callable[[float], Awaitable[Report]]] = {
    "crowd": lambda _minutes: crowd(200),
    "cycles": lambda _minutes: cycles(1000),
    "restarts": lambda _minutes: restarts(100),
    "traffic": lambda minutes: traffic(Length(seconds=60 * minutes)),
}


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long guests talk.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Repeatable. Default: all.",
)
def main(minutes: float, only: Sequence[str]) -> None:
    """See whether the daemon loses, leaks or spins, whatever comes and goes.

    Exits with status 1 when a bound is violated.
    """
    click.echo("".join(f"{name}: {fact}\n" for name, fact in machine().items()))
    failed = 0
    for name in only or SCENARIOS:
        report = trio.run(SCENARIOS[name], minutes)
        click.echo(report.text())
        failed += len(report.failures)
    click.echo(f"soak: {failed} bounds violated" if failed else "soak: all bounds hold")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(prog_name="python -m bench.soak")
