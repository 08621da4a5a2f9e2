"""Long lists as JSON: the same as in one go, with turns for others in between."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypeVar

import pytest
import trio

from mvirt_net.api.answers import listed, named
from mvirt_net.api.http import json_body
from mvirt_net.turns import DONE_IN_A_TURN, InTurns

_T = TypeVar("_T")


def in_turns(items: Iterable[_T]) -> InTurns[_T]:
    return InTurns(items, lambda item: item)


@pytest.mark.parametrize("count", [0, 1, 2, 3 * DONE_IN_A_TURN])
async def test_is_what_it_would_be_in_one_go(count: int) -> None:
    items = [f'{number} "\ud800\n' for number in range(count)]
    response = await listed("nics", in_turns(items), lambda item: {"name": item})
    assert response.body == json_body({"nics": [{"name": item} for item in items]})
    response = await named("nics", in_turns([(item, 1) for item in items]), lambda number: [number])
    assert response.body == json_body({"nics": {item: [1] for item in items}})
    assert isinstance(response.body, bytes)
    assert len(json.loads(response.body)["nics"]) == count


async def test_others_have_their_turns(nursery: trio.Nursery) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(work)
    await listed("nics", in_turns(range(10 * DONE_IN_A_TURN)), str)
    assert turns > 5
    nursery.cancel_scope.cancel()
