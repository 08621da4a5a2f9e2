"""The dry run: what it says of a packet is what the core does with it."""

from __future__ import annotations

import json
import re
import shlex
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import ARP, Ether

from mvirt_net import NotFoundError
from mvirt_net.cli import main
from mvirt_net.model import DaemonConfig, DropReason, IcmpError, NetworkSpec, NicSpec, PuntKind
from mvirt_net.registry import plan
from mvirt_net.trace import Match, Trace, build_frame, describe, trace
from tests.harness.config import one_network
from tests.harness.packets import dhcp_discover

from .test_ffi_forward import assert_right

ROOT = Path(__file__).parents[2]
MAC, MAC_B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
GATEWAY = "02:00:00:00:00:01"
CONFIG = plan(
    DaemonConfig(
        (
            NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", ipv6_prefix="fd00::/64"),
            NetworkSpec(name="red", ipv4_subnet="10.0.0.0/24"),
        ),
        (
            NicSpec(
                name="a",
                network="blue",
                mac_address=MAC,
                ipv4_address="10.0.0.1",
                ipv6_address="fd00::1",
            ),
            NicSpec(
                name="b",
                network="blue",
                mac_address=MAC_B,
                ipv4_address="10.0.0.2",
                ipv6_address="fd00::2",
                routed_ipv4_prefixes=["192.0.2.0/25"],
            ),
            NicSpec(name="alone", network="red", ipv4_address="10.0.0.3"),
        ),
    )
).config
ETHER = Ether(src=MAC, dst=GATEWAY)


def outcome(packet: Any, nic: str = "a") -> Trace:
    return trace(CONFIG, nic, bytes(packet))


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
@pytest.mark.parametrize(("source", "target"), [("10.0.0.1", "192.0.2.9"), ("fd00::1", "fd00::2")])
def test_packet_for_another_nic_arrives_rewritten(protocol: str, source: str, target: str) -> None:
    frame = build_frame(
        Ether(src=MAC).build()[6:12],
        ip_address(source),
        ip_address(target),
        protocol=protocol,
        source_port=1000,
        target_port=53,
        ttl=7,
        size=33,
    )
    assert_right(frame)
    result = trace(CONFIG, "a", frame)
    [delivery] = result.deliveries
    assert delivery.nic == "b"
    received = assert_right(delivery.frame)
    assert (received.src, received.dst) == (GATEWAY, MAC_B)
    ttl = received[IP].ttl if IP in received else received[IPv6].hlim
    assert ttl == 6
    assert result.drops == {}
    assert result.error is None
    assert result.service is None
    prefix = "192.0.2.0/25" if target == "192.0.2.9" else "fd00::2/128"
    assert result.target == Match(ip_address(target), prefix, "b")
    assert result.source is not None
    assert result.source.nic == "a"


@pytest.mark.parametrize(
    ("packet", "reason", "error"),
    [
        (IP(src="10.0.0.2", dst="10.0.0.2") / UDP(), DropReason.SOURCE_ADDRESS, None),
        (IP(src="10.0.0.1", dst="10.0.0.3") / UDP(), DropReason.HOST_UNREACHABLE,
         IcmpError.HOST_UNREACHABLE),
        (IP(src="10.0.0.1", dst="1.1.1.1") / UDP(), DropReason.NO_ROUTE,
         IcmpError.NET_UNREACHABLE),
        (IP(src="10.0.0.1", dst="10.0.0.2", ttl=1) / UDP(), DropReason.TTL_EXCEEDED,
         IcmpError.TIME_EXCEEDED),
        (IP(src="10.0.0.1", dst="169.254.0.1") / TCP(), DropReason.NOT_SERVED,
         IcmpError.PROTOCOL_UNREACHABLE),
    ],
)  # fmt: skip
def test_dropped_packet_says_why_and_what_its_sender_hears(
    packet: Any, reason: DropReason, error: IcmpError | None
) -> None:
    result = outcome(ETHER / packet)
    assert result.drops == {"a": reason}
    assert result.error is error
    assert [delivery.nic for delivery in result.deliveries] == ([] if error is None else ["a"])
    for delivery in result.deliveries:
        assert assert_right(delivery.frame).haslayer(ICMP)


def test_match_is_what_the_longest_prefix_says() -> None:
    result = outcome(ETHER / IP(src="10.0.0.1", dst="10.0.0.77") / UDP())
    assert result.target == Match(ip_address("10.0.0.77"), "10.0.0.0/24", None)
    result = outcome(ETHER / IP(src="10.0.0.1", dst="192.0.2.200") / UDP())
    assert result.target == Match(ip_address("192.0.2.200"), None, None)


def test_hop_limit_of_ipv6() -> None:
    result = outcome(ETHER / IPv6(src="fd00::1", dst="fd00::2", hlim=1) / ICMPv6EchoRequest())
    assert result.drops == {"a": DropReason.TTL_EXCEEDED}
    assert Ether(result.deliveries[0].frame).haslayer(ICMPv6TimeExceeded)


def test_services_answer() -> None:
    asked = outcome(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(
        hwsrc=MAC, psrc="10.0.0.1", pdst="169.254.0.1"
    ))  # fmt: skip
    assert asked.service is PuntKind.ARP
    assert Ether(asked.deliveries[0].frame)[ARP].hwsrc == GATEWAY
    offered = trace(CONFIG, "a", dhcp_discover(MAC, 1))
    assert offered.service is PuntKind.DHCPV4
    assert Ether(offered.deliveries[0].frame)[UDP].dport == 68


def test_what_a_service_ignores_is_dropped() -> None:
    result = outcome(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=MAC, pdst="10.0.0.2"))
    assert result.drops == {"a": DropReason.ARP_IGNORED}
    assert result.deliveries == ()


@pytest.mark.parametrize("size", [14, 15, 60, 1514, 65549])
def test_any_bytes_have_an_outcome(size: int) -> None:
    result = trace(CONFIG, "a", bytes(size))
    assert result.drops == {"a": DropReason.SOURCE_MAC}
    assert describe(result.frame).endswith(f"{size} bytes")


def test_unknown_nic() -> None:
    with pytest.raises(NotFoundError):
        trace(CONFIG, "nobody", bytes(60))


# The command.

TOML = one_network(
    vm1={"mac_address": MAC, "ipv4_address": "10.0.0.5"},
    vm2={"mac_address": MAC_B, "ipv4_address": "10.0.0.6"},
)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "net.toml").write_text(TOML)
    return ["trace", "--config", str(tmp_path / "net.toml"), "--from", "vm1"]


def test_command_tells_each_step(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--dst", "10.0.0.6", "--ttl", "9"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"from vm1 in network blue: {MAC} > {GATEWAY}, 10.0.0.5 > 10.0.0.6, udp, TTL 9, 42 bytes",
        "source 10.0.0.5: by 10.0.0.5/32 that of vm1",
        "target 10.0.0.6: by 10.0.0.6/32 that of vm2",
        f"vm2 receives {GATEWAY} > {MAC_B}, 10.0.0.5 > 10.0.0.6, udp, TTL 8, 42 bytes",
    ]


def test_examples_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file that leaves addresses to the daemon."""
    page = (ROOT / "docs" / "how-to" / "capture.md").read_text()
    examples = re.findall(r"^\$ mvirt-net (trace .*)\n((?:[^$`].*\n)+)", page, re.M)
    assert len(examples) == 2
    for arguments, said in examples:
        one, *others = shlex.split(arguments)
        others = [str(ROOT / word) if word.startswith("examples/") else word for word in others]
        assert main([one, *others]) == 0
        assert capsys.readouterr().out == said


def test_command_for_programs(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    packet = ETHER / IP(src="10.0.0.99", dst="10.0.0.6") / UDP()
    assert main([*command, "--packet", bytes(packet).hex(), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["drops"] == {"vm1": "source_address"}
    assert told["received"] == []
    assert told["source"] == {"address": "10.0.0.99", "prefix": "10.0.0.0/24", "nic": None}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "exactly one of --packet and --dst"),
        (["--dst", "10.0.0.6", "--packet", "00"], "exactly one of --packet and --dst"),
        (["--packet", "xyz"], "hex"),
        (["--packet", "00ff"], "14 to 65549 bytes"),
        (["--dst", "fd00::1"], "vm1 has no IPv6 address"),
        (["--dst", "10.0.0.6", "--src", "fd00::1"], "different families"),
    ],
)
def test_wrong_usage(
    command: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert main([*command, *arguments]) == 2
    assert problem in capsys.readouterr().err
