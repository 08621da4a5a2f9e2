"""``mvirt-net ctl``: a client of the running daemon.

It speaks to the daemon's HTTP interface (docs/reference/http.md) and knows nothing else of it: no
module here imports what serves or forwards. `client` asks, `tables` and `text` show, `session` is
what each verb gets of its options; the other modules are the verbs. A new verb is a function with
``@ctl.command()``, or that of its group, in a module that is imported below; ``--socket``,
``--json``, errors and the end by a signal are there by themselves.
"""

from __future__ import annotations

from . import captures, networks, nics, stats, top, watch
from .session import ctl

__all__ = ["captures", "ctl", "networks", "nics", "stats", "top", "watch"]
