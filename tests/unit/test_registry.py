"""The registry: what may be in one switch together, and what a NIC is given."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvirt_net.errors import ConfigError, DuplicateError, ExhaustedError, NotFoundError
from mvirt_net.model import GATEWAY_MAC, ApiSpec, DaemonConfig, NetworkSpec, NicSpec
from mvirt_net.registry import Registry, generated_macs, plan

BLUE = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", ipv6_prefix="fd00:0:0:1::/64")


def registry_with(*nics: NicSpec, network: NetworkSpec = BLUE) -> Registry:
    registry = Registry()
    registry.add_network(network)
    for nic in nics:
        registry.add_nic(nic)
    return registry


def nic(name: str, **fields: Any) -> NicSpec:
    return NicSpec(name=name, network="blue", **fields)


def addresses(registry: Registry, count: int) -> list[str]:
    return [str(registry.add_nic(nic(f"vm{i}")).ipv4_address) for i in range(count)]


class TestNetworks:
    def test_is_kept(self) -> None:
        registry = Registry()
        assert registry.add_network(BLUE) == BLUE
        assert dict(registry.networks) == {"blue": BLUE}

    def test_name_taken(self) -> None:
        with pytest.raises(DuplicateError, match="name: there is a network 'blue' already"):
            registry_with().add_network(NetworkSpec(name="blue"))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("ipv4_subnet", "169.254.0.0/24"),
            ("ipv4_subnet", "0.0.0.0/0"),
            ("ipv4_subnet", "127.0.0.0/30"),
            ("ipv4_subnet", "224.1.0.0/16"),
            ("ipv4_subnet", "255.255.255.255/32"),
            ("ipv6_prefix", "fe80::/64"),
            ("ipv6_prefix", "ff02::/64"),
            ("ipv6_prefix", "::/0"),
        ],
    )
    def test_never_routed(self, field: str, value: str) -> None:
        with pytest.raises(ConfigError, match=f"{field}: .* is never routed") as caught:
            Registry().add_network(NetworkSpec(name="blue", **{field: value}))
        assert caught.value.key == field

    def test_mtu_below_ipv6s_least(self) -> None:
        with pytest.raises(ConfigError, match="mtu: 1279 is too small for IPv6"):
            Registry().add_network(NetworkSpec(name="blue", ipv6_prefix="fd00::/64", mtu=1279))
        Registry().add_network(NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", mtu=1279))

    def test_remove(self) -> None:
        registry = registry_with()
        registry.remove_network("blue")
        assert not registry.networks
        with pytest.raises(NotFoundError, match="'blue'"):
            registry.remove_network("blue")

    def test_remove_with_nics_in_it(self) -> None:
        registry = registry_with(nic("vm1"))
        with pytest.raises(ConfigError, match="network 'blue' still has the NIC 'vm1'"):
            registry.remove_network("blue")
        registry.remove_nic("vm1")
        registry.remove_network("blue")

    def test_may_share_addresses(self) -> None:
        registry = registry_with(nic("vm1", ipv4_address="10.0.0.5"))
        registry.add_network(NetworkSpec(name="red", ipv4_subnet="10.0.0.0/24"))
        registry.add_nic(NicSpec(name="vm2", network="red", ipv4_address="10.0.0.5"))


class TestGenerated:
    def test_mac_is_stable_and_its_own(self) -> None:
        first = registry_with().add_nic(nic("vm1")).mac_address
        assert first == registry_with(nic("vm0")).add_nic(nic("vm1")).mac_address
        assert first != registry_with().add_nic(nic("vm2")).mac_address

    @given(st.text(max_size=8), st.text(max_size=8))
    def test_mac_is_local_and_unicast(self, network: str, name: str) -> None:
        mac = next(generated_macs(network, name))
        assert mac.packed[0] & 3 == 2
        assert mac != GATEWAY_MAC

    def test_mac_taken(self) -> None:
        first, second = (
            mac for _, mac in zip(range(2), generated_macs("blue", "vm2"), strict=False)
        )
        registry = registry_with(nic("vm1", mac_address=first))
        assert registry.add_nic(nic("vm2")).mac_address == second

    @pytest.mark.parametrize(
        ("subnet", "expected"),
        [
            ("10.0.0.0/24", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
            ("10.0.0.252/30", ["10.0.0.253", "10.0.0.254"]),
            ("10.0.0.0/30", ["10.0.0.1", "10.0.0.2"]),
            ("10.0.0.0/31", ["10.0.0.0", "10.0.0.1"]),
            ("10.0.0.254/31", ["10.0.0.254", "10.0.0.255"]),
            ("10.0.0.0/32", ["10.0.0.0"]),
        ],
    )
    def test_ipv4_lowest(self, subnet: str, expected: list[str]) -> None:
        registry = registry_with(network=NetworkSpec(name="blue", ipv4_subnet=subnet))
        assert addresses(registry, len(expected)) == expected

    def test_ipv4_never_ends_in_0_or_255(self) -> None:
        registry = registry_with(network=NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/23"))
        given_out = addresses(registry, 254 + 254)
        assert given_out[253:255] == ["10.0.0.254", "10.0.1.1"]
        assert given_out[-1] == "10.0.1.254"
        with pytest.raises(ConfigError, match="ipv4_address: no address of"):
            registry.add_nic(nic("one-more"))
        assert "one-more" not in registry.nics

    def test_ipv4_freed_is_given_out_again(self) -> None:
        registry = registry_with(nic("a"), nic("b"), nic("c"))
        registry.remove_nic("b")
        assert addresses(registry, 2) == ["10.0.0.2", "10.0.0.4"]

    def test_ipv4_passes_over_what_is_taken_or_routed(self) -> None:
        registry = registry_with(
            nic("a", ipv4_address="10.0.0.1"),
            nic("b", ipv4_address="10.0.0.100", routed_ipv4_prefixes=["10.0.0.2/31"]),
            nic("c", ipv4_address="10.0.0.101", routed_ipv4_prefixes=["10.0.0.4/30"]),
        )
        assert addresses(registry, 1) == ["10.0.0.8"]

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("fd00::/64", ["fd00::2", "fd00::3"]),
            ("fd00::/126", ["fd00::2", "fd00::3"]),
            ("fd00::/127", ["fd00::", "fd00::1"]),
            ("fd00::9/128", ["fd00::9"]),
        ],
    )
    def test_ipv6_lowest(self, prefix: str, expected: list[str]) -> None:
        registry = registry_with(network=NetworkSpec(name="blue", ipv6_prefix=prefix))
        given_out = [registry.add_nic(nic(f"vm{i}")).ipv6_address for i in range(len(expected))]
        assert given_out == [IPv6Address(text) for text in expected]

    def test_nothing_without_subnet_and_prefix(self) -> None:
        spec = registry_with(network=NetworkSpec(name="blue")).add_nic(nic("vm1"))
        assert (spec.ipv4_address, spec.ipv6_address) == (None, None)
        assert spec.mac_address is not None


class TestClaims:
    def test_all_given(self) -> None:
        spec = nic(
            "vm1",
            mac_address="52:54:00:12:34:56",
            ipv4_address="10.0.0.5",
            ipv6_address="fd00:0:0:1::5",
            routed_ipv4_prefixes=["10.0.1.0/24", "10.0.2.0/24"],
            routed_ipv6_prefixes=["fd00:0:0:2::/64"],
            socket_path="/run/vm1.sock",
        )
        registry = registry_with()
        assert registry.add_nic(spec) == spec
        assert dict(registry.nics) == {"vm1": spec}

    TAKEN = nic(
        "vm1",
        mac_address="52:54:00:12:34:56",
        ipv4_address="10.0.0.5",
        ipv6_address="fd00:0:0:1::5",
        routed_ipv4_prefixes=["10.0.1.0/24"],
        routed_ipv6_prefixes=["fd00:0:0:2::/64"],
        socket_path="/run/vm1.sock",
    )

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"mac_address": "52:54:00:12:34:56"}, "mac_address: 52:54:00:12:34:56 is taken by"),
            ({"ipv4_address": "10.0.0.5"}, "ipv4_address: 10.0.0.5 is taken by NIC 'vm1'"),
            ({"ipv6_address": "fd00:0:0:1::5"}, "ipv6_address: fd00:0:0:1::5 is taken by"),
            ({"socket_path": "/run/vm1.sock"}, "socket_path: /run/vm1.sock is taken by"),
            ({"socket_path": "/run/x/../vm1.sock"}, "socket_path: .* is taken by NIC 'vm1'"),
        ],
    )
    def test_duplicates(self, fields: dict[str, Any], message: str) -> None:
        registry = registry_with(self.TAKEN)
        with pytest.raises(DuplicateError, match=message):
            registry.add_nic(nic("vm2", **fields))
        assert dict(registry.nics) == {"vm1": self.TAKEN}

    def test_name_taken(self) -> None:
        with pytest.raises(DuplicateError, match="name: there is a NIC 'vm1' already"):
            registry_with(self.TAKEN).add_nic(nic("vm1"))

    @pytest.mark.parametrize(
        ("fields", "key", "message"),
        [
            ({"ipv4_address": "10.0.1.5"}, "ipv4_address", "not in the network's 10.0.0.0/24"),
            ({"ipv4_address": "10.0.0.0"}, "ipv4_address", "not a host's address"),
            ({"ipv4_address": "10.0.0.255"}, "ipv4_address", "not a host's address"),
            ({"ipv6_address": "fd00:0:0:1::"}, "ipv6_address", "not a host's address"),
            ({"ipv6_address": "fd00::1"}, "ipv6_address", "not in the network's"),
            (
                {"routed_ipv4_prefixes": ["10.9.0.0/24", "10.0.1.128/25"]},
                "routed_ipv4_prefixes[1]",
                "10.0.1.128/25 overlaps a prefix routed to NIC 'vm1'",
            ),
            (
                {"routed_ipv4_prefixes": ["10.0.0.0/16"]},
                "routed_ipv4_prefixes[0]",
                "overlaps a prefix routed to NIC 'vm1'",
            ),
            (
                {"routed_ipv4_prefixes": ["10.0.0.4/31"]},
                "routed_ipv4_prefixes[0]",
                "10.0.0.4/31 holds the address of NIC 'vm1'",
            ),
            (
                {"routed_ipv4_prefixes": ["10.9.0.0/24", "10.9.0.0/25"]},
                "routed_ipv4_prefixes[1]",
                "10.9.0.0/25 overlaps 10.9.0.0/24",
            ),
            (
                {"routed_ipv6_prefixes": ["fd00::/16"]},
                "routed_ipv6_prefixes[0]",
                "overlaps a prefix routed to NIC 'vm1'",
            ),
            (
                {"routed_ipv4_prefixes": ["169.254.0.1/32"]},
                "routed_ipv4_prefixes[0]",
                "which is never routed",
            ),
            ({"socket_path": ""}, "socket_path", "does not name a file"),
            ({"socket_path": "/"}, "socket_path", "does not name a file"),
            ({"socket_path": "/run/a\0b"}, "socket_path", "does not name a file"),
            ({"socket_path": "/" + "x" * 107}, "socket_path", "108 bytes, more than 107"),
        ],
    )
    def test_refused(self, fields: dict[str, Any], key: str, message: str) -> None:
        registry = registry_with(self.TAKEN)
        with pytest.raises(ConfigError) as caught:
            registry.add_nic(nic("vm2", **fields))
        assert caught.value.key == key
        assert message in caught.value.problem
        assert dict(registry.nics) == {"vm1": self.TAKEN}

    def test_address_in_a_routed_prefix(self) -> None:
        registry = registry_with(nic("vm1", routed_ipv4_prefixes=["10.0.0.16/28"]))
        with pytest.raises(ConfigError, match="is in a prefix routed to NIC 'vm1'"):
            registry.add_nic(nic("vm2", ipv4_address="10.0.0.20"))

    def test_own_address_in_own_prefix(self) -> None:
        registry_with(nic("vm1", ipv4_address="10.0.0.20", routed_ipv4_prefixes=["10.0.0.16/28"]))

    def test_address_without_a_subnet(self) -> None:
        registry = registry_with(network=NetworkSpec(name="blue"))
        with pytest.raises(ConfigError, match="the network has no ipv4_subnet"):
            registry.add_nic(nic("vm1", ipv4_address="10.0.0.5"))

    def test_unknown_network(self) -> None:
        with pytest.raises(ConfigError, match="network: there is no network 'blue'"):
            Registry().add_nic(nic("vm1"))

    def test_removed_leaves_nothing_behind(self) -> None:
        registry = registry_with(self.TAKEN)
        registry.remove_nic("vm1")
        assert not registry.nics
        registry.add_nic(self.TAKEN)

    def test_remove_unknown(self) -> None:
        with pytest.raises(NotFoundError, match="there is no NIC 'vm1'"):
            registry_with().remove_nic("vm1")


class TestPlan:
    def test_claims_come_before_gifts(self) -> None:
        planned = plan(
            DaemonConfig(
                (BLUE,),
                (
                    nic("a"),
                    nic("b", ipv4_address="10.0.0.1"),
                    nic(
                        "c",
                        ipv6_address="fd00:0:0:1::2",
                        mac_address=next(generated_macs("blue", "a")),
                    ),
                    nic("d", routed_ipv4_prefixes=["10.0.0.2/31"]),
                ),
            )
        )
        assert not planned.problems
        assert [spec.name for spec in planned.config.nics] == ["a", "b", "c", "d"]
        assert [str(spec.ipv4_address) for spec in planned.config.nics] == [
            "10.0.0.4",
            "10.0.0.1",
            "10.0.0.5",
            "10.0.0.6",
        ]
        assert plan(planned.config) == planned

    def test_every_problem_with_its_path(self) -> None:
        planned = plan(
            DaemonConfig(
                (BLUE, BLUE, NetworkSpec(name="bad", ipv4_subnet="127.0.0.0/8")),
                (
                    nic("a"),
                    nic("a"),
                    NicSpec(name="b", network="bad"),
                    NicSpec(name="c", network="green"),
                    nic("d", ipv4_address="10.1.0.1"),
                ),
            )
        )
        assert [problem.key for problem in planned.problems] == [
            "network[1].name",
            "network[2].ipv4_subnet",
            "nic[1].name",
            "nic[3].network",
            "nic[4].ipv4_address",
        ]
        assert isinstance(planned.problems[0], DuplicateError)
        assert [spec.name for spec in planned.config.nics] == ["a"]

    def test_full_network(self) -> None:
        network = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/31")
        planned = plan(DaemonConfig((network,), (nic("a"), nic("b"), nic("c"))))
        assert [str(problem) for problem in planned.problems] == [
            "nic[2].ipv4_address: no address of 10.0.0.0/31 is free"
        ]

    def test_sockets_of_control_interfaces(self) -> None:
        api = ApiSpec(
            grpc=["unix:/run/g.sock", "[::1]:50054", "[::1]:0"],
            http=["unix:/run/x/../g.sock", "[::1]:50054", "[::1]:0", "unix:/run/h.sock"],
        )
        nics = (nic("a", socket_path="/run/h.sock"), nic("b", socket_path="/run/b.sock"))
        planned = plan(DaemonConfig((BLUE,), nics, api=api))
        assert [str(problem) for problem in planned.problems] == [
            "api.http[0]: unix:/run/x/../g.sock is among api.grpc, too",
            "api.http[1]: [::1]:50054 is among api.grpc, too",
            "nic[0].socket_path: /run/h.sock is taken by the control interface http",
        ]

    @given(st.lists(st.integers(0, 15) | st.none(), max_size=12))
    def test_adding_one_by_one_agrees(self, wanted: list[int | None]) -> None:
        base = IPv4Address("10.0.0.240")
        nics = tuple(
            nic(f"vm{i}", ipv4_address=None if offset is None else base + offset)
            for i, offset in enumerate(wanted)
        )
        network = NetworkSpec(name="blue", ipv4_subnet="10.0.0.240/28")
        planned = plan(DaemonConfig((network,), nics))
        registry = registry_with(network=network)
        for spec in planned.config.nics:
            assert registry.add_nic(spec) == spec
        used = [spec.ipv4_address for spec in planned.config.nics]
        assert len(set(used)) == len(used)
        assert len(planned.problems) + len(used) == len(wanted)


def test_a_large_prefix_is_passed_over_at_once() -> None:
    network = NetworkSpec(name="blue", ipv6_prefix=IPv6Network("fd00::/16"))
    registry = registry_with(
        nic("vm1", ipv6_address="fd00:8000::1", routed_ipv6_prefixes=["fd00::/17"]),
        network=network,
    )
    assert registry.add_nic(nic("vm2")).ipv6_address == IPv6Address("fd00:8000::")


class TestUpdateNic:
    """Other routed prefixes for a NIC that is there."""

    def registry(self) -> Registry:
        registry = Registry()
        registry.add_network(
            NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24", ipv6_prefix="fd00::/64")
        )
        for name in ("vm1", "vm2"):
            registry.add_nic(NicSpec(name=name, network="blue"))
        return registry

    def test_replaces_each_family_by_itself(self) -> None:
        registry = self.registry()
        registry.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.0/24"])
        spec = registry.update_nic("vm1", routed_ipv6_prefixes=["2001:db8::/48"])
        assert [str(net) for net in spec.routed_ipv4_prefixes] == ["192.0.2.0/24"]
        assert [str(net) for net in spec.routed_ipv6_prefixes] == ["2001:db8::/48"]
        assert registry.nics["vm1"] is spec
        spec = registry.update_nic("vm1", routed_ipv4_prefixes=[])
        assert spec.routed_ipv4_prefixes == ()
        assert len(spec.routed_ipv6_prefixes) == 1

    def test_what_it_had_may_be_part_of_what_it_gets(self) -> None:
        registry = self.registry()
        registry.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.0/25", "192.0.2.128/25"])
        registry.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.0/24"])
        registry.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.64/26", "198.51.100.0/24"])

    def test_what_it_gives_up_is_free(self) -> None:
        registry = self.registry()
        registry.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.0/24"])
        with pytest.raises(ConfigError, match="overlaps a prefix routed to NIC 'vm1'"):
            registry.update_nic("vm2", routed_ipv4_prefixes=["192.0.2.128/25"])
        registry.update_nic("vm1", routed_ipv4_prefixes=[])
        registry.update_nic("vm2", routed_ipv4_prefixes=["192.0.2.128/25"])

    @pytest.mark.parametrize(
        ("prefixes", "key"),
        [
            (["10.0.0.0/24"], "routed_ipv4_prefixes[0]"),
            (["192.0.2.0/24", "192.0.2.7/32"], "routed_ipv4_prefixes[1]"),
            (["198.51.100.0/24", "127.0.0.0/8"], "routed_ipv4_prefixes[1]"),
            (["192.0.2.1/24"], "routed_ipv4_prefixes"),
            ("192.0.2.0/24", "routed_ipv4_prefixes"),
        ],
    )
    def test_refused_and_nothing_changed(self, prefixes: Any, key: str) -> None:
        registry = self.registry()
        before = registry.nics["vm1"]
        with pytest.raises(ConfigError) as caught:
            registry.update_nic("vm1", routed_ipv4_prefixes=prefixes)
        assert caught.value.key == key
        assert registry.nics["vm1"] is before

    def test_unknown(self) -> None:
        with pytest.raises(NotFoundError):
            self.registry().update_nic("vm9", routed_ipv4_prefixes=[])

    def test_thousands(self) -> None:
        registry = self.registry()
        prefixes = [f"11.{i >> 8}.{i & 255}.0/24" for i in range(5000)]
        assert len(registry.update_nic("vm1", routed_ipv4_prefixes=prefixes).routes) == 5002


@pytest.mark.parametrize(
    "field", [{"socket_mode": "0600"}, {"socket_owner": 0}, {"socket_group": 0}]
)
def test_file_that_there_is_not(field: dict[str, Any]) -> None:
    registry = registry_with()
    with pytest.raises(ConfigError, match="there is no socket path") as caught:
        registry.add_nic(nic("vm1", **field))
    assert caught.value.key == next(iter(field))
    registry.add_nic(nic("vm1", socket_path="/run/s", **field))


class TestAvoided:
    def test_is_free_all_the_same(self) -> None:
        registry = registry_with()
        first, second = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
        assert registry.add_nic(nic("vm1"), {first}).ipv4_address == second
        assert registry.add_nic(nic("vm2")).ipv4_address == first
        registry.remove_nic("vm2")
        assert registry.add_nic(nic("vm2", ipv4_address="10.0.0.1"), {first})

    def test_none_is_left_then(self) -> None:
        registry = Registry()
        registry.add_network(NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/30"))
        registry.add_nic(nic("vm1"))
        with pytest.raises(ExhaustedError) as caught:
            registry.add_nic(nic("vm2"), {IPv4Address("10.0.0.2")})
        assert caught.value.key == "ipv4_address"
        assert list(registry.nics) == ["vm1"]


class TestAdopted:
    """A NIC that was there before keeps what it was given, if it can."""

    def adopted(self, registry: Registry, spec: NicSpec, **earlier: str) -> NicSpec:
        registry.claim_nic(spec)
        registry.adopt(spec.name, nic(spec.name, **earlier))
        return registry.fill_nic(spec.name)

    def test_what_was_given(self) -> None:
        earlier = {"mac_address": "52:54:00:00:00:09", "ipv4_address": "10.0.0.9"}
        spec = self.adopted(registry_with(), nic("vm1"), **earlier)
        assert (str(spec.mac_address), str(spec.ipv4_address)) == tuple(earlier.values())

    def test_not_what_it_asks_for_now(self) -> None:
        spec = nic("vm1", mac_address="52:54:00:00:00:08", ipv4_address="10.0.0.8")
        earlier = {"mac_address": "52:54:00:00:00:09", "ipv4_address": "10.0.0.9"}
        kept = self.adopted(registry_with(), spec, **earlier)
        assert (kept.mac_address, kept.ipv4_address) == (spec.mac_address, spec.ipv4_address)

    def test_not_what_another_one_has(self) -> None:
        registry = registry_with()
        taken = {"mac_address": "52:54:00:00:00:09", "ipv4_address": "10.0.0.9"}
        registry.add_nic(nic("vm2", **taken))
        spec = self.adopted(registry, nic("vm1"), **taken)
        assert str(spec.ipv4_address) == "10.0.0.1"
        assert str(spec.mac_address) != taken["mac_address"]

    def test_not_what_its_network_has_no_more(self) -> None:
        spec = self.adopted(registry_with(), nic("vm1"), ipv4_address="10.0.7.9")
        assert str(spec.ipv4_address) == "10.0.0.1"


class TestPublic:
    RED = NetworkSpec(name="red", ipv4_subnet="10.0.0.128/25", is_public=True)

    def registry(self) -> Registry:
        registry = Registry()
        registry.add_network(attrs.evolve(BLUE, is_public=True))
        return registry

    def test_do_not_overlap(self) -> None:
        registry = self.registry()
        with pytest.raises(ConfigError, match="public network 'blue'") as caught:
            registry.add_network(self.RED)
        assert caught.value.key == "ipv4_subnet"
        registry.add_network(attrs.evolve(self.RED, is_public=False))

    def test_nor_when_they_become_so(self) -> None:
        registry = self.registry()
        red = registry.add_network(attrs.evolve(self.RED, is_public=False))
        with pytest.raises(ConfigError, match="public network 'blue'"):
            registry.update_network("red", is_public=True)
        assert registry.networks["red"] == red
        registry.update_network("blue", is_public=False)
        assert registry.update_network("red", is_public=True).is_public

    def test_unknown(self) -> None:
        with pytest.raises(NotFoundError):
            self.registry().update_network("red", dns_servers=[])


ADDRESSES = st.integers(1, 14) | st.none()
PREFIXES = st.sets(st.sampled_from([(0, 30), (4, 30), (4, 31), (6, 32), (8, 29)]), max_size=2)


@given(st.lists(st.tuples(st.integers(0, 3), ADDRESSES, PREFIXES), max_size=20))
def test_what_goes_leaves_no_trace(turns: list[Any]) -> None:
    """However NICs come, change and go: the rest is as if only they had ever been there."""
    network = NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/28")
    registry = registry_with(network=network)
    for number, host, parts in turns:
        name = f"vm{number}"
        prefixes = [f"10.0.0.{first}/{length}" for first, length in sorted(parts)]
        with contextlib.suppress(ConfigError):
            if name not in registry.nics:
                address = None if host is None else f"10.0.0.{host}"
                spec = nic(name, ipv4_address=address, routed_ipv4_prefixes=prefixes)
                registry.add_nic(attrs.evolve(spec, socket_path=f"/run/{number % 2}.sock"))
            elif host is None:
                registry.remove_nic(name)
            else:
                registry.update_nic(name, routed_ipv4_prefixes=prefixes)
        fresh = registry_with(*registry.nics.values(), network=network)
        assert fresh.nics == registry.nics
        probe = nic("probe")
        assert outcome(fresh, probe) == outcome(registry, probe)
        for wanted in ("10.0.0.4/31", "10.0.0.8/29"):
            probe = nic("probe", ipv4_address="10.0.0.3", routed_ipv4_prefixes=[wanted])
            assert outcome(fresh, probe) == outcome(registry, probe)


def outcome(registry: Registry, probe: NicSpec) -> object:
    try:
        return registry.add_nic(probe)
    except ConfigError as error:
        return str(error)
    finally:
        if probe.name in registry.nics:
            registry.remove_nic(probe.name)
