"""Long lists as JSON: the same as in one go, with turns for others in between."""

from __future__ import annotations

import json

import pytest
import trio

from mvirt_net.api.answers import listed, named
from mvirt_net.api.exchange import TOLD_IN_A_TURN
from mvirt_net.api.http import json_body


@pytest.mark.parametrize("count", [0, 1, 2, 3 * TOLD_IN_A_TURN])
async def test_is_what_it_would_be_in_one_go(count: int) -> None:
    items = [f'{number} "\ud800\n' for number in range(count)]
    response = await listed("nics", items, lambda item: {"name": item})
    assert response.body == json_body({"nics": [{"name": item} for item in items]})
    response = await named("nics", [(item, 1) for item in items], lambda number: [number])
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
    await listed("nics", range(10 * TOLD_IN_A_TURN), str)
    assert turns > 5
    nursery.cancel_scope.cancel()
