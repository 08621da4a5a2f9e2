"""How much of the services' time one guest may have: what comes faster never leaves the core."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest

from mvirt_net.ffi import HotRing, NextStep, Poller, Punt, work_of
from mvirt_net.ffi._core import lib
from mvirt_net.model import PuntKind
from tests.harness.packets import (
    GATEWAY_IP,
    GATEWAY_IPV6,
    GATEWAY_MAC,
    arp_request,
    dhcp_discover,
    dhcpv6_solicit,
    icmp_echo_request,
    icmpv6_echo_request,
    neighbor_solicitation,
    udp_frame,
)

from .rig import IPV4, MAC, Rig, open_rig
from .test_ffi_poller import running, wait_released

LINK_LOCAL = "fe80::5054:ff:fe12:3456"
DHCP = dhcp_discover(MAC.packed, 1)
LOST = udp_frame(MAC.packed, GATEWAY_MAC, IPV4, "192.0.2.1", 1, 2, b"")
"""An ICMP error says so."""
QUESTIONS: Mapping[PuntKind, bytes] = {
    PuntKind.ARP: arp_request(MAC.packed, IPV4, GATEWAY_IP),
    PuntKind.DHCPV4: DHCP,
    PuntKind.ICMPV4: icmp_echo_request(MAC.packed, GATEWAY_MAC, IPV4, GATEWAY_IP, 1, 1, b"ping"),
    PuntKind.NDP: neighbor_solicitation(MAC.packed, LINK_LOCAL, GATEWAY_IPV6),
    PuntKind.ICMPV6: icmpv6_echo_request(
        MAC.packed, GATEWAY_MAC, LINK_LOCAL, GATEWAY_IPV6, 1, 1, b"ping"
    ),
    PuntKind.DHCPV6: dhcpv6_solicit(MAC.packed, LINK_LOCAL, 1, 1),
}
BURST = lib.MV_WORK_BURST // 100
"""DHCP messages that are answered at once."""
PAUSE = lib.MV_WORK_PAUSE / lib.MV_WORK_RATE
"""Seconds until there is more, once there was too little."""
EVENLY = 1e-6
"""Seconds more, for a clock that is not a whole number of nanoseconds."""


def ask(rig: Rig, frame: bytes, count: int, now: float) -> list[Punt]:
    """What the services have to answer when a guest sends so many frames at once."""
    punts: list[Punt] = []
    buffer = rig.buffer(12 + len(frame))
    for begin in range(0, count, rig.size // 2):
        for _ in range(min(count - begin, rig.size // 2)):
            rig.tx.add_tx_buffer(buffer, frame)
        step = NextStep.CALL_AGAIN
        while step is NextStep.CALL_AGAIN:
            drained = rig.port.drain(now)
            punts += drained.punts
            step = drained.next
        while rig.tx.pop_used() is not None:
            pass
    return punts


def exhaust(rig: Rig, now: float) -> None:
    """Spend all that a guest has saved up, and one message more."""
    assert len(ask(rig, DHCP, BURST + 1, now)) == BURST


def test_all_pairs_of_a_nic_have_one_allowance() -> None:
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        second = 3
        rig.port.start_ring(second, rig.size, rig.lay_out(second), rig.queues[second].wire_base(0))
        rig.port.enable_ring(second, True)
        rig.queues[second].add_tx_buffer(rig.buffer(12 + len(DHCP)), DHCP)
        assert rig.port.drain(1.0, pair=1).punts == []
        assert rig.drops() == {"PUNT_LIMIT": 2}


def test_p17_burst_is_answered_and_the_rest_is_dropped() -> None:
    with open_rig() as rig:
        rig.start()
        assert len(ask(rig, DHCP, BURST + 300, 1.0)) == BURST
        stats = rig.port.stats()
        assert stats.tx_frames == stats.punts == BURST + 300
        assert rig.drops() == {"PUNT_LIMIT": 300}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_all_services_have_one_limit(kind: PuntKind) -> None:
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        assert ask(rig, QUESTIONS[kind], 3, 1.0) == []
        assert rig.drops() == {"PUNT_LIMIT": 4}
        [punt] = ask(rig, QUESTIONS[kind], 1, 1.0 + PAUSE + EVENLY)
        assert (punt.kind, punt.frame) == (kind, QUESTIONS[kind])


def test_icmp_error_is_not_sent_beyond_the_limit() -> None:
    """What it would be about is counted as ever, and nothing else."""
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        assert ask(rig, LOST, 1, 1.0) == []
        assert rig.drops() == {"PUNT_LIMIT": 1, "NO_ROUTE": 1}
        assert rig.port.stats().icmp_errors == 0
        assert [punt.kind for punt in ask(rig, LOST, 1, 2.0)] == [PuntKind.ICMP_ERROR]


def test_nothing_is_given_until_the_pause_is_over() -> None:
    """Else the services would wake up for each frame of a flood that there is time for."""
    arp = QUESTIONS[PuntKind.ARP]
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        assert ask(rig, arp, 10, 1.0 + PAUSE - EVENLY) == []
        assert len(ask(rig, arp, 100, 1.0 + PAUSE + EVENLY)) == lib.MV_WORK_PAUSE // 4


def test_what_is_saved_up_is_given_without_a_pause() -> None:
    """Only who asks for more than there is has to wait."""
    with open_rig() as rig:
        rig.start()
        assert len(ask(rig, DHCP, BURST, 1.0)) == BURST
        assert len(ask(rig, QUESTIONS[PuntKind.ARP], 1, 1.0 + 4 / lib.MV_WORK_RATE + EVENLY)) == 1


def test_p17_in_the_long_run_it_is_the_rate() -> None:
    """However often a guest asks: a second of flood, in steps that fit no pause."""
    steps = 1000
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        got = sum(len(ask(rig, DHCP, 5, 1.0 + n / steps)) for n in range(1, steps + 1))
        assert 0 <= lib.MV_WORK_RATE // 100 - got <= BURST // 100


def test_no_more_than_a_burst_is_saved_up() -> None:
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 1.0)
        exhaust(rig, 1e6)


def test_clock_that_goes_back_gives_nothing() -> None:
    """Threads that drain look at it one after another, and may be stopped in between."""
    with open_rig() as rig:
        rig.start()
        exhaust(rig, 10.0)
        assert ask(rig, DHCP, 1, 9.0) == []
        assert ask(rig, DHCP, 1, 10.0) == []
        assert len(ask(rig, DHCP, 1, 10.0 + PAUSE + EVENLY)) == 1


def test_p17_ring_that_a_thread_polls_has_the_same_limit() -> None:
    """None of a flood is left to the services, so that they need not even be told."""
    with open_rig() as rig, running(Poller(0)) as poller:
        rig.start()
        exhaust(rig, 1e9)
        for _ in range(100):
            rig.send(DHCP)
        # By its clock the limit was met in the future, so that no time is saved up meanwhile.
        with contextlib.closing(HotRing(poller, rig.port, 1.0)) as ring:
            wait_released(ring)
            assert ring.take() is None
        assert rig.port.drain(1e9).punts == []
        assert rig.drops() == {"PUNT_LIMIT": 101}
        rig.send(DHCP)
        with contextlib.closing(HotRing(poller, rig.port, 2e9)) as ring:
            wait_released(ring)
            drained = ring.take()
        assert drained is not None
        assert [punt.frame for punt in drained.punts] == [DHCP]


@pytest.mark.parametrize("kind", [PuntKind.DHCPV4, PuntKind.DHCPV6])
def test_long_message_costs_what_it_may_take(kind: PuntKind) -> None:
    """Full of options it takes ten times as long as an ordinary one."""
    assert work_of(kind, 342) == work_of(kind, 0)
    assert work_of(kind, 1514) > 300


@pytest.mark.parametrize("kind", PuntKind)
def test_every_service_has_a_price_that_a_busy_guest_can_pay(kind: PuntKind) -> None:
    """512 NICs or one: a boot, with its retries, never meets the limit."""
    assert 0 < 100 * work_of(kind, 0) <= lib.MV_WORK_BURST <= lib.MV_WORK_RATE
