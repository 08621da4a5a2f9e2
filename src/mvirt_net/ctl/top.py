"""The verb ``top``: rates of all NICs, again and again.

On a terminal it takes the whole of it (`screen`); anywhere else, and with ``-n``, it prints one
table after another. The daemon is asked by a thread of its own for each sample, so that keys are
answered while it does not answer.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from datetime import UTC, datetime

import attrs
import click

from ..errors import MvirtNetError
from ..exits import end_by
from .client import Client
from .rates import Order, Page, Sample, View
from .screen import DOWN, ENDING, PAGE_DOWN, PAGE_UP, UP, Happened, Screen
from .session import NICS, Session, ctl
from .tables import GAP, terminal_width
from .text import printable, to_json

_BY_KEY = {order.key: order for order in Order}


@ctl.command()
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 3600.0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks, from 0.1 to 3600.",
)
@click.option(
    "-s",
    "--sort",
    type=click.Choice([order.value for order in Order]),
    default=Order.BITS.value,
    show_default=True,
    help="What comes first; on a terminal, keys change it.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="Print N tables and end, as in a pipe.",
)
@click.option("--once", is_flag=True, help="The same as -n 1.")
def top(interval: float, sort: str, count: int | None, once: bool) -> None:
    """Show what each NIC sends, receives and drops a second.

    With --json, one object for each interval, on a line of its own.
    """
    session, order = Session.current(), Order(sort)
    count = 1 if once else count
    first = take_sample(session.client)
    if count is None and not session.as_json and _is_screen():
        _Live(session.client, interval, order, first).run()
    else:
        _print(session, interval, order, first, count)


def take_sample(client: Client) -> Sample:
    """Raises as `Client`."""
    records = {record["name"]: record for record in client.get(NICS)[NICS]}
    stats = client.get("stats")["nics"]
    return Sample(time.monotonic(), records, stats)


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _print(
    session: Session, interval: float, order: Order, first: Sample, count: int | None
) -> None:
    """A view after each interval; without `count`, until interrupted."""
    number, before = 0, first
    while count is None or number < count:
        time.sleep(interval)
        after = take_sample(session.client)
        view, now = View.between(before, after), datetime.now(UTC)
        if session.as_json:
            click.echo(to_json(view.as_json(now)))
        else:
            blank = [""] if number else []
            for line in [*blank, GAP.join(view.summary()), *view.table(order, terminal_width())]:
                click.echo(line)
        number, before = number + 1, after


@attrs.define(eq=False)
class _Live:
    """The view that fills a terminal."""

    client: Client
    interval: float
    order: Order
    _last: Sample
    _view: View = attrs.field(init=False)
    _trouble: str = ""
    """Why the daemon was not heard lately."""
    _answers: queue.SimpleQueue[Sample | BaseException] = attrs.field(
        init=False, factory=queue.SimpleQueue
    )
    _asking: bool = False
    """Whether a thread is."""
    _first: int = 0
    """The row at the top."""
    _room: int = 0
    """How many there are on the screen."""

    @_view.default
    def _first_view(self) -> View:
        return View.between(None, self._last)

    def run(self) -> None:
        """Until q, ^C or another signal that ends it; by ^C it ends as by q."""
        with Screen() as screen:
            ended_by = self._loop(screen)
        if ended_by not in (None, signal.SIGINT):
            end_by(signal.Signals(ended_by))

    def _loop(self, screen: Screen) -> int | None:
        """Returns the signal that ended it, if one did."""
        due = time.monotonic() + self.interval
        while True:
            self._draw(screen)
            happened = screen.wait(due - time.monotonic())
            for number in ENDING:
                if number in happened.signals:
                    return number
            if "q" in happened.keys:
                return None
            if happened.hung_up:
                return signal.SIGHUP
            self._heed(happened, screen)
            self._take_answers()
            if " " in happened.keys or time.monotonic() >= due:
                self._ask(screen)
                due = time.monotonic() + self.interval

    def _draw(self, screen: Screen) -> None:
        how = f"every {self.interval:g} s, by {self.order.value}"
        title = f"mvirt-net top  {datetime.now():%H:%M:%S}  {how}"
        page = Page.of(
            self._view, self.order, title, screen.size, first=self._first, trouble=self._trouble
        )
        self._first, self._room = page.first, page.room
        screen.draw(page.lines)

    def _heed(self, happened: Happened, screen: Screen) -> None:
        steps = {UP: -1, DOWN: 1, PAGE_UP: -self._room, PAGE_DOWN: self._room}
        for key in happened.keys:
            self._first += steps.get(key, 0)
            if key in _BY_KEY:
                self.order, self._first = _BY_KEY[key], 0
        if signal.SIGTSTP in happened.signals:
            screen.stop()

    def _ask(self, screen: Screen) -> None:
        if not self._asking:
            self._asking = True
            threading.Thread(target=self._fetch, args=(screen,), daemon=True).start()

    def _fetch(self, screen: Screen) -> None:
        """Runs in a thread; whatever comes of it is for `_take_answers`."""
        try:
            self._answers.put(take_sample(self.client))
        except BaseException as error:
            self._answers.put(error)
        screen.ring()

    def _take_answers(self) -> None:
        while not self._answers.empty():
            self._asking = False
            answer = self._answers.get()
            if isinstance(answer, Sample):
                self._view = View.between(self._last, answer)
                self._last, self._trouble = answer, ""
            elif isinstance(answer, MvirtNetError):
                self._trouble = printable(answer)
            else:
                raise answer
