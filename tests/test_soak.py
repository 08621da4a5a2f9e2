"""The soak (``python -m bench.soak``) at a scale of seconds: the same daemon, the same bounds."""

from __future__ import annotations

import pytest

from bench.soak.crowd import crowd
from bench.soak.cycles import cycles
from bench.soak.report import Report
from bench.soak.restarts import restarts
from bench.soak.traffic import Length, traffic

pytestmark = pytest.mark.timeout(300)
"""For all guests and the daemon on one busy processor; it takes some seconds."""


def check(report: Report) -> None:
    assert report.failures == [], report.text()


async def test_200_guests_at_once() -> None:
    check(await crowd(200))


async def test_100_frontends_one_after_another() -> None:
    check(await cycles(100))


async def test_10_daemons_killed_with_frames_in_their_hands() -> None:
    check(await restarts(10))


async def test_100_000_frames_while_a_third_guest_comes_and_goes() -> None:
    check(await traffic(Length(frames=50_000, watch_idle=False)))
