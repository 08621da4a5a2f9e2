"""The routing table of the core: longest prefix match, replacement, refusal."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvirt_net.errors import CoreError
from mvirt_net.ffi import Network, Port
from mvirt_net.model import MacAddress

AnyNetwork = IPv4Network | IPv6Network


def mac(number: int) -> MacAddress:
    return MacAddress(bytes([2, 0, 0, 1, number >> 8, number & 255]))


class Table:
    """A network with ports that only have routes; a route is asked for by `lookup`."""

    def __init__(self, ports: int, subnets: Iterable[AnyNetwork] = ()) -> None:
        self.network = Network(subnets=subnets)
        self.ports = [Port(self.network, mac(number)) for number in range(ports)]

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_exc: object) -> None:
        with ExitStack() as stack:
            for port in self.ports:
                stack.callback(port.close)
            stack.callback(self.network.close)

    def lookup(self, address: str) -> int | str | None:
        """The number of the port; "on-link", or None for no route."""
        found = self.network.lookup(ipaddress.ip_address(address))
        return self.ports.index(found) if isinstance(found, Port) else found


def nets(*texts: str) -> list[AnyNetwork]:
    return [ip_network(text) for text in texts]


def test_nothing_is_routed_at_first() -> None:
    with Table(1) as table:
        for address in ("0.0.0.0", "10.0.0.5", "255.255.255.255", "::", "fd00::1", "ff" * 2 + "::"):
            assert table.lookup(address) is None


def test_host_routes() -> None:
    with Table(3) as table:
        for number, port in enumerate(table.ports):
            port.set_routes(nets(f"10.0.0.{5 + number}", f"fd00::{5 + number}"))
        assert [table.lookup(f"10.0.0.{host}") for host in range(4, 9)] == [None, 0, 1, 2, None]
        assert [table.lookup(f"fd00::{host}") for host in range(4, 9)] == [None, 0, 1, 2, None]


def test_longest_prefix_wins_whatever_the_order() -> None:
    prefixes = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"]
    for order in (prefixes, prefixes[::-1]):
        with Table(5) as table:
            for prefix in order:
                table.ports[prefixes.index(prefix)].set_routes(nets(prefix))
            assert table.lookup("10.1.2.3") == 4
            assert table.lookup("10.1.2.4") == 3
            assert table.lookup("10.1.3.0") == 2
            assert table.lookup("10.2.0.0") == 1
            assert table.lookup("11.0.0.0") == 0
            assert table.lookup("255.255.255.255") == 0
            assert table.lookup("10.1.2.2") == 3


def test_whole_space_and_its_ends() -> None:
    with Table(3) as table:
        table.ports[0].set_routes(nets("::/0", "0.0.0.0/0"))
        table.ports[1].set_routes(nets("ffff:ffff:ffff:ffff::/64", "255.255.255.255/32"))
        table.ports[2].set_routes(nets("::/128", "0.0.0.0/32"))
        assert table.lookup("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") == 1
        assert table.lookup("ffff:ffff:ffff:fffe:ffff:ffff:ffff:ffff") == 0
        assert [table.lookup("::"), table.lookup("::1")] == [2, 0]
        assert [table.lookup("255.255.255.255"), table.lookup("255.255.255.254")] == [1, 0]
        assert [table.lookup("0.0.0.0"), table.lookup("0.0.0.1")] == [2, 0]


def test_subnet_is_on_link_where_no_port_is() -> None:
    with Table(1, nets("10.0.0.0/24", "fd00::/64")) as table:
        table.ports[0].set_routes(nets("10.0.0.5", "fd00::5"))
        assert [table.lookup("10.0.0.5"), table.lookup("10.0.0.6")] == [0, "on-link"]
        assert [table.lookup("fd00::5"), table.lookup("fd00::6")] == [0, "on-link"]
        assert [table.lookup("10.0.1.0"), table.lookup("fd00:0:0:1::")] == [None, None]


def test_subnet_of_one_address_is_its_port() -> None:
    with Table(1, nets("10.0.0.5/32")) as table:
        assert table.lookup("10.0.0.5") == "on-link"
        table.ports[0].set_routes(nets("10.0.0.5/32"))
        assert table.lookup("10.0.0.5") == 0
        table.ports[0].set_routes([])
        assert table.lookup("10.0.0.5") == "on-link"


def test_routes_are_replaced_as_a_whole() -> None:
    with Table(2) as table:
        table.ports[0].set_routes(nets("10.0.0.0/24", "fd00::/64"))
        table.ports[0].set_routes(nets("10.0.1.0/24"))
        assert [table.lookup("10.0.0.1"), table.lookup("10.0.1.1"), table.lookup("fd00::1")] == [
            None,
            0,
            None,
        ]
        table.ports[1].set_routes(nets("10.0.0.0/24"))
        assert table.lookup("10.0.0.1") == 1


def test_refused_routes_change_nothing() -> None:
    with Table(2) as table:
        table.ports[0].set_routes(nets("10.0.0.0/24", "fd00::/64"))
        table.ports[1].set_routes(nets("10.0.1.0/24"))
        for wrong in (["10.0.0.0/24"], ["10.0.2.0/24", "fd00::/64"], ["10.0.9.0/24"] * 2):
            with pytest.raises(CoreError):
                table.ports[1].set_routes(nets(*wrong))
            assert [table.lookup("10.0.0.1"), table.lookup("10.0.1.1")] == [0, 1]
            assert table.lookup("10.0.2.1") is None


def test_routes_go_with_their_port() -> None:
    with Table(2) as table:
        table.ports[0].set_routes(nets("10.0.0.0/8"))
        table.ports[1].set_routes(nets("10.0.0.5"))
        table.ports.pop().close()
        assert table.lookup("10.0.0.5") == 0


def test_network_outlives_its_close_while_it_has_ports() -> None:
    network = Network()
    port = Port(network, mac(0))
    network.close()
    network.close()
    port.set_routes(nets("10.0.0.5"))
    port.close()


def test_thousands_of_routes() -> None:
    with Table(4) as table:
        hosts = [[f"10.{i >> 8}.{i & 255}.{port}" for i in range(2500)] for port in range(4)]
        for port, addresses in zip(table.ports, hosts, strict=True):
            port.set_routes(nets(*addresses))
        for number, addresses in enumerate(hosts):
            assert {table.lookup(address) for address in addresses} == {number}
        assert table.lookup("10.0.0.4") is None


def prefixes_of(version: int, bits: int) -> st.SearchStrategy[AnyNetwork]:
    """Prefixes in a few corners of the address space, so that they nest and touch."""
    top = (1 << bits) - 1
    bases = st.sampled_from([0, top, 10 << (bits - 8), (10 << (bits - 8)) | 5 << 4])

    def network(base: int, noise: int, length: int) -> AnyNetwork:
        value = (base ^ noise) & top & ~((1 << (bits - length)) - 1)
        cls = IPv4Network if version == 4 else IPv6Network
        return cls((value, length))

    return st.builds(network, bases, st.integers(0, 1 << 10), st.integers(0, bits))


def longest(
    routes: Sequence[tuple[AnyNetwork, int]], address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> int | None:
    """The model: look at every prefix."""
    holding = [(net.prefixlen, port) for net, port in routes if address in net]
    return max(holding)[1] if holding else None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), version=st.sampled_from([4, 6]))
def test_lookup_is_what_looking_at_every_prefix_finds(data: st.DataObject, version: int) -> None:
    bits = 32 if version == 4 else 128
    routes = data.draw(st.dictionaries(prefixes_of(version, bits), st.integers(0, 4), max_size=40))
    address_class = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    with Table(5) as table:
        for number, port in enumerate(table.ports):
            port.set_routes([net for net, owner in routes.items() if owner == number])
        edges = {
            int(edge) + step
            for net in routes
            for edge in (net.network_address, net.broadcast_address)
            for step in (-1, 0, 1)
        }
        edges |= {data.draw(st.integers(0, (1 << bits) - 1)) for _ in range(5)}
        for value in edges:
            if 0 <= value < 1 << bits:
                address = address_class(value)
                assert table.lookup(str(address)) == longest(list(routes.items()), address)
        # One port's routes go, the others' stay.
        table.ports[0].set_routes([])
        left = [(net, owner) for net, owner in routes.items() if owner != 0]
        for net in routes:
            assert table.lookup(str(net[0])) == longest(left, net[0])
