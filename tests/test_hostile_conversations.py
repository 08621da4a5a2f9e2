"""Frontends that say anything, in any order, with any descriptors, while frames flow.

What is expected: the next frontend is served, no descriptor and no mapping is left, and nothing was
logged that only a bug of ours can cause. `python -m fuzz.conversations` does the same with numbers
that nobody has chosen.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.conftest import open_files
from tests.harness import TestBackend
from tests.harness.hostility import ARP, IP, MAC, converse
from tests.harness.packets import is_arp_reply


@pytest.mark.parametrize("hundred", range(3))
async def test_anything(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, hundred: int
) -> None:
    backend = await TestBackend.start(nursery, MAC, ipv4=IP)
    before, deeds = open_files(), 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        deeds += await converse(backend, seed)
        await trio.testing.wait_all_tasks_blocked()
        assert open_files() == before, seed
        assert "memfd:vhost-test-mem" not in Path("/proc/self/maps").read_text(), seed
    assert deeds > 1000
    client = await backend.connect()
    await client.send_packet(ARP)
    assert is_arp_reply(await client.recv_packet())
    assert [record.message for record in caplog.records if record.exc_info] == []
