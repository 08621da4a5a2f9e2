"""Long work in pieces, for packets wait while it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, TypeVar

import trio

DONE_IN_A_TURN: Final = 32
"""Networks or NICs that are looked at, or put into words, in one turn of the event loop: 1 ms."""

_T = TypeVar("_T")
_R = TypeVar("_R")


class InTurns(AsyncIterator[_R]):
    """What there is to say of many things, without keeping everybody else waiting.

    A checkpoint before the first of them, and then now and then. No generator, so nobody has to
    close it.

    Args:
        items: that must not change meanwhile.
        look: what is said of one when its turn comes; None: nothing, for it is gone by now.
    """

    def __init__(self, items: Iterable[_T], look: Callable[[_T], _R | None]) -> None:
        self._found = map(look, items)
        self._looked_at = 0

    async def __anext__(self) -> _R:
        while True:
            if self._looked_at % DONE_IN_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            self._looked_at += 1
            try:
                found = next(self._found)
            except StopIteration:
                raise StopAsyncIteration from None
            if found is not None:
                return found
