"""The verb ``watch``: what there is, then what changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import attrs
import click

from ..errors import NoDaemonError, VerbRefused
from .session import Session, ctl
from .text import printable, to_json, words

_LABELS = {"network": "network", "nic": "NIC"}
_UNTOLD = frozenset({"updated_at", "nic_count"})
"""Fields whose change is news of something else."""


@ctl.command()
def watch() -> None:
    """Say what there is, then each change, until interrupted.

    With --json, one object a line, as the daemon sends them.
    """
    session = Session.current()
    narrator = Narrator()
    for change in session.client.stream("watch"):
        if session.as_json:
            click.echo(to_json(change))
        else:
            for line in narrator.tell(change):
                click.echo(f"{datetime.now():%H:%M:%S}  {line}")
        if change.get("type") == "behind":
            raise VerbRefused("changes came faster than they were taken: watch anew", 0)
    raise NoDaemonError("the daemon has ended")


@attrs.define(eq=False)
class Narrator:
    """Turns records into news: what is new, what is different, what is gone."""

    _known: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    _complete: bool = False
    """Whether all has been told that was there at the beginning."""

    def tell(self, change: dict[str, Any]) -> Iterator[str]:
        """A line for a change, or none when it is nothing new."""
        kind = change.get("type")
        if kind == "complete":
            self._complete = True
            return
        if kind not in _LABELS:
            return
        new, old = change[kind], self._known.pop(change["id"], None)
        if new is not None:
            self._known[change["id"]] = new
        if news := self._news(old, new):
            name = (new or old or {}).get("name", change["id"])
            yield f"{_LABELS[kind]} {printable(name)} {news}"

    def _news(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
        if new is None:
            return "deleted"
        if old is None:
            return f"{'created' if self._complete else 'exists'}: {_summary(new)}"
        different = [name for name in new if name not in _UNTOLD and new[name] != old.get(name)]
        return ", ".join(
            f"{name}: {words(old.get(name))} -> {words(new[name])}" for name in different
        )


def _summary(record: dict[str, Any]) -> str:
    names = ("network", "state", "mac_address", "ipv4_address", "ipv4_subnet", "ipv6_address")
    shown = (*names, "ipv6_prefix")
    return ", ".join(words(record[name]) for name in shown if record.get(name))
