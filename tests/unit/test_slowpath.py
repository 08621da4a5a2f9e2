"""What becomes of the frames that the core leaves for Python."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest

from mvirt_net.dataplane.packet import Service
from mvirt_net.dataplane.slowpath import SlowPath
from mvirt_net.ffi import Punt
from mvirt_net.log import get_logger
from mvirt_net.model import DropReason, IcmpError, MacAddress, PuntKind
from tests.harness.packets import GATEWAY_MAC, parse_icmp_error, udp_frame

MAC = "52:54:00:12:34:56"
LOST = udp_frame(MAC, GATEWAY_MAC, "10.0.0.5", "192.0.2.1", 1, 2, b"lost")


@attrs.define
class Fixed:
    """A service that always answers the same, or fails."""

    answer: bytes | DropReason | Exception | None

    def handle(self, frame: bytes) -> bytes | DropReason | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@attrs.define
class Rig:
    services: Mapping[PuntKind, Service] = attrs.field(factory=dict)
    sent: list[bytes] = attrs.field(factory=list)
    path: SlowPath = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        log = get_logger("mvirt_net.test")
        self.path = SlowPath(MacAddress.parse(MAC), self.services, self.sent.append, log)


def test_answer_is_sent() -> None:
    rig = Rig({PuntKind.ARP: Fixed(b"reply")})
    assert rig.path.answer(Punt(PuntKind.ARP, b"")) is None
    assert rig.sent == [b"reply"]


@pytest.mark.parametrize("answer", [DropReason.ARP_MALFORMED, None])
def test_no_answer(answer: DropReason | None) -> None:
    rig = Rig({PuntKind.ARP: Fixed(answer)})
    assert rig.path.answer(Punt(PuntKind.ARP, b"")) is answer
    assert rig.sent == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PuntKind.ARP, DropReason.ARP_IGNORED),
        (PuntKind.DHCPV4, DropReason.DHCP_IGNORED),
        (PuntKind.ICMPV4, DropReason.ICMP_IGNORED),
        (PuntKind.NDP, DropReason.NDP_IGNORED),
        (PuntKind.ICMPV6, DropReason.ICMP_IGNORED),
        (PuntKind.DHCPV6, DropReason.DHCPV6_IGNORED),
    ],
)
def test_nobody_there(kind: PuntKind, reason: DropReason) -> None:
    assert Rig().path.answer(Punt(kind, b"")) is reason


def test_failing_service_costs_the_frame(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig({PuntKind.NDP: Fixed(RuntimeError("bug"))})
    for _ in range(3):
        assert rig.path.answer(Punt(PuntKind.NDP, b"")) is DropReason.NDP_IGNORED
    assert [record.message for record in caplog.records] == ["service failed"]


def test_services_may_be_replaced() -> None:
    rig = Rig()
    rig.path.services = {PuntKind.ARP: Fixed(b"new")}
    rig.path.answer(Punt(PuntKind.ARP, b""))
    assert rig.sent == [b"new"]


def test_icmp_error_is_written() -> None:
    rig = Rig()
    punt = Punt(PuntKind.ICMP_ERROR, LOST, IcmpError.TOO_BIG, 1400)
    assert rig.path.answer(punt) is None
    error = parse_icmp_error(rig.sent[0])
    assert (error.kind, error.code, error.mtu, error.quoted) == (3, 4, 1400, LOST[14:])


def test_icmp_error_that_cannot_be_written_counts_for_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The core has counted the packet that it was about."""
    rig = Rig()
    assert rig.path.answer(Punt(PuntKind.ICMP_ERROR, b"nonsense")) is None
    assert rig.sent == []
    assert [record.message for record in caplog.records] == ["service failed"]
