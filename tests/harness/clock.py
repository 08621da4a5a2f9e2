"""Virtual time for whole modules of tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.abc
from trio.testing import MockClock


def run_in_virtual_time(
    main: Callable[[], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> None:
    """`trio.run`, by default on a clock that jumps ahead when no task has anything left to do."""
    trio.run(main, clock=clock or MockClock(autojump_threshold=0), instruments=tuple(instruments))


virtual_time = pytest.mark.trio(run=run_in_virtual_time)
"""As `pytestmark` of a module: the `autojump_clock` fixture for all of its tests.

Hypothesis runs its examples on the real clock all the same.
"""
