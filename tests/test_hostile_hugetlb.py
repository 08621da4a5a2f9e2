"""A frontend with huge pages whose file it keeps busy, so that the kernel makes the daemon wait.

The kernel's time is real, so the clock goes on by itself here, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.harness.client import DEFAULT_PROTOCOL_FEATURES, VhostTestClient
from tests.harness.footprint import shared_mappings
from tests.harness.hugetlb import HUGE_PAGE, huge_file, kept_busy, reserved_pages
from tests.harness.memory import RegionInfo
from tests.harness.scene import Scene
from tests.harness.vhost_user import Connection, ProtocolFeature, Request, encode

PAGES = 128
"""Enough to be allocated for tens of milliseconds."""
ATTEMPTS = 20
"""To find the file in use: there are moments in which it is not."""


@pytest.fixture
def many_huge_pages() -> Iterator[None]:
    with reserved_pages(PAGES):
        yield


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    """Goes like any other, and can be put forward."""
    mock_clock.rate = 1.0
    return mock_clock


async def is_waited_for(scene: Scene, client: VhostTestClient, region: RegionInfo) -> bool:
    """Have the region mapped; whether everything else went on before it was.

    Raises:
        trio.TooSlowError: the bystander was not answered in time meanwhile.
    """
    mapped = trio.Event()

    async def add() -> None:
        await client.connection.add_mem_region(region)
        mapped.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add)
        await wait_all_tasks_blocked()
        went_on = not mapped.is_set()
        while not mapped.is_set():
            await scene.ask_bystander()
    await client.connection.remove_mem_region(region)
    return went_on


@pytest.mark.usefixtures("many_huge_pages")
async def test_m57_mapping_of_a_file_in_use(clock: MockClock, scene: Scene) -> None:
    client = await scene.connect(
        protocol_features=DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.CONFIGURE_MEM_SLOTS
    )
    with huge_file(PAGES) as fd, kept_busy(fd, PAGES):
        region = RegionInfo(1 << 40, HUGE_PAGE, 1 << 50, 0, fd)
        for _ in range(ATTEMPTS):
            if await is_waited_for(scene, client, region):
                break
        else:
            pytest.fail("all waited whenever the file was in use")
    await scene.send_attackers_away()
    while shared_mappings() != scene.before.mappings:
        await trio.lowlevel.checkpoint()
    await pay(scene, clock)


async def pay(scene: Scene, clock: MockClock) -> None:
    """The next frontend waits for it."""
    connection = await Connection.open(scene.backend.socket_path)
    await connection.send_raw(encode(Request.GET_FEATURES))
    await wait_all_tasks_blocked()
    clock.jump(3600)
    await connection.receive()
    connection.close()
