"""The verbs: what they do to NICs with real frontends, what they refuse, what a failure leaves."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mvirt_net import (
    ConfigError,
    DaemonConfig,
    DuplicateError,
    MacAddress,
    NetworkSpec,
    NicSpec,
    SocketPathError,
    open_switch,
)
from mvirt_net.config import load
from mvirt_net.control import (
    MAX_PREFIXES,
    MAX_SERVERS,
    WATCH_BACKLOG,
    Control,
    ControlError,
    ErrorKind,
    NetworkRecord,
    NicRecord,
    NicState,
)
from mvirt_net.errors import CoreError, StoreError
from mvirt_net.ffi import Port
from mvirt_net.inventory import NetworkEntry, NicEntry, file_id
from mvirt_net.model import ApiSpec, SocketAccess
from mvirt_net.nic import Nic
from mvirt_net.store import NoStore, StoredState
from mvirt_net.turns import DONE_IN_A_TURN
from mvirt_net.watching import WATCH_PATIENCE, Watch
from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.packets import (
    GATEWAY_MAC,
    dhcp_discover,
    icmp_echo_request,
    is_router_advertisement,
    parse_dhcp_response,
    parse_icmp_echo_request,
    parse_router_advertisement,
)
from tests.harness.packets.link import ip_bytes

BLUE = {"name": "blue", "ipv4_subnet": "10.0.0.0/24"}
MAC = "52:54:00:12:34:56"
OTHER_MAC = "52:54:00:12:34:57"
ID = "8b3ca5a4-56ab-4d9e-9df3-3d6ab1f4a1f0"


class FakeStore(NoStore):
    """Keeps in memory, refuses when told to, and waits when told to."""

    def __init__(self) -> None:
        self.networks: dict[str, NetworkEntry] = {}
        self.nics: dict[str, NicEntry] = {}
        self.refuses = False
        self.goes_on: trio.Event | None = None
        self.waiting = trio.Event()

    def load(self) -> StoredState:
        return StoredState(tuple(self.networks.values()), tuple(self.nics.values()))

    async def _turn(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.goes_on is not None:
            self.waiting.set()
            await self.goes_on.wait()
        if self.refuses:
            raise StoreError("the disk is full")

    async def put_network(self, entry: NetworkEntry) -> None:
        await self._turn()
        self.networks[entry.id] = entry

    async def delete_network(self, id_: str) -> None:
        await self._turn()
        del self.networks[id_]
        self.nics = {key: nic for key, nic in self.nics.items() if nic.network_id != id_}

    async def put_nic(self, entry: NicEntry, *, in_stored_network: bool) -> None:
        await self._turn()
        assert in_stored_network == (entry.network_id in self.networks)
        self.put_nic_blocking(entry, in_stored_network=in_stored_network)

    async def delete_nic(self, id_: str) -> None:
        await self._turn()
        del self.nics[id_]

    def put_nic_blocking(self, entry: NicEntry, *, in_stored_network: bool) -> None:
        self.nics[entry.id] = entry


@attrs.define
class Rig:
    """A control of its own, and what is around it."""

    control: Control
    switch: Any
    store: FakeStore
    folder: Path
    nursery: trio.Nursery

    async def blue(self, **fields: Any) -> NetworkRecord:
        return await self.control.create_network({**BLUE, **fields})

    async def nic(self, name: str = "vm1", **fields: Any) -> NicRecord:
        return await self.control.create_nic({"network": "blue", "name": name, **fields})

    async def connect(self, nic: NicRecord) -> VhostTestClient:
        assert nic.spec.socket_path is not None
        return await VhostTestClient.connect(self.nursery, nic.spec.socket_path)

    def assert_agreed(self) -> None:
        """List, switch and store say the same."""
        networks = {r.id: r.spec for r in self.control.list_networks()}
        nics = {r.id: r.spec for r in self.control.list_nics()}
        assert list(networks.values()) == list(self.switch.networks.values())
        assert list(nics.values()) == [nic.spec for nic in self.switch.nics.values()]
        assert networks == {key: entry.spec for key, entry in self.store.networks.items()}
        assert nics == {key: entry.spec for key, entry in self.store.nics.items()}
        sockets = {spec.socket_path for spec in nics.values()}
        assert sockets == set(self.folder.glob("*.sock"))


@contextlib.asynccontextmanager
async def controlled(
    folder: Path,
    nursery: trio.Nursery,
    store: FakeStore | None = None,
    config: DaemonConfig = DaemonConfig(),  # noqa: B008  (frozen)
    reserved: Mapping[Path, str] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[Rig]:
    store = store or FakeStore()
    async with open_switch(reserved=reserved) as switch:
        control = Control(switch, folder, store, **options)
        await control.start(config)
        yield Rig(control, switch, store, folder, nursery)
        await control.aclose()


@pytest.fixture
async def rig(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    async with controlled(tmp_path, nursery) as rig:
        yield rig


@contextlib.contextmanager
def refused(kind: ErrorKind, message: str, field: str = "") -> Any:
    """The body is refused just so."""
    with pytest.raises(ControlError) as caught:
        yield
    assert (caught.value.kind, caught.value.field) == (kind, field)
    assert message in caught.value.message


class TestNetworks:
    async def test_create_get_list(self, rig: Rig) -> None:
        record = await rig.blue()
        assert str(uuid.UUID(record.id)) == record.id
        assert record.spec == NetworkSpec(**BLUE)
        assert (record.nic_count, record.in_file, record.error) == (0, False, "")
        assert record.created_at == record.updated_at
        assert rig.control.get_network(record.id) == record
        assert rig.control.get_network("blue") == record
        assert rig.control.list_networks() == [record]
        rig.assert_agreed()

    async def test_id_of_the_caller(self, rig: Rig) -> None:
        record = await rig.control.create_network(BLUE, id=ID.upper())
        assert record.id == ID
        red = {**BLUE, "name": "red"}
        with refused(ErrorKind.ALREADY_EXISTS, "already exists", "id"):
            await rig.control.create_network(red, id=ID)
        with refused(ErrorKind.INVALID_ARGUMENT, "not a UUID", "id"):
            await rig.control.create_network(red, id="blue")
        with refused(ErrorKind.INVALID_ARGUMENT, "those of the configuration file", "id"):
            await rig.control.create_network(red, id=file_id("network", "red"))

    async def test_id_in_capital_letters_is_found(self, rig: Rig) -> None:
        network = await rig.control.create_network(BLUE, id=ID)
        nic = await rig.nic(network=ID.upper())
        assert rig.control.get_network(ID.upper()) == rig.control.get_network("blue")
        assert rig.control.list_nics(f"urn:uuid:{ID}") == [nic]
        assert (await rig.control.update_nic(nic.id.upper(), routed_ipv4_prefixes=[])).id == nic.id
        await rig.control.delete_nic(nic.id.upper())
        await rig.control.delete_network(network.id.upper())
        rig.assert_agreed()

    async def test_name_like_the_id_of_another(self, rig: Rig) -> None:
        first = await rig.control.create_network(BLUE, id=ID)
        second = await rig.blue(name=ID)
        assert rig.control.get_network(ID).id == first.id
        await rig.control.delete_network(ID)
        assert rig.control.get_network(ID).id == second.id

    @pytest.mark.parametrize(
        ("fields", "message", "field"),
        [
            ({"name": ""}, "name is required", "name"),
            ({"name": "  "}, "name is required", "name"),
            ({"name": "a b"}, "is not a name", "name"),
            ({"name": 5}, "is not a name", "name"),
            ({"ipv4_subnet": None}, "at least one of", ""),
            ({"ipv4_subnet": "10.0.0.0/33"}, "not a valid netmask", "ipv4_subnet"),
            ({"ipv4_subnet": "10.0.0.1/24"}, "host bits", "ipv4_subnet"),
            ({"ipv4_subnet": "127.0.0.0/24"}, "never routed", "ipv4_subnet"),
            ({"ipv6_prefix": "fe80::/64"}, "never routed", "ipv6_prefix"),
            ({"dns_servers": ["dns.example"]}, "dns.example", "dns_servers"),
            ({"mtu": 60}, "not an MTU", "mtu"),
            ({"is_public": "yes"}, "neither true nor false", "is_public"),
            ({"colour": "blue"}, "no such field", "colour"),
        ],
    )
    async def test_wrong(self, rig: Rig, fields: dict[str, Any], message: str, field: str) -> None:
        with refused(ErrorKind.INVALID_ARGUMENT, message, field):
            await rig.blue(**fields)
        assert not rig.control.list_networks()
        rig.assert_agreed()

    async def test_upstreams_order_of_checks(self, rig: Rig) -> None:
        await rig.blue()
        with refused(ErrorKind.INVALID_ARGUMENT, "name is required", "name"):
            await rig.blue(name="", ipv4_subnet="x")
        with refused(ErrorKind.INVALID_ARGUMENT, "at least one of"):
            await rig.blue(ipv4_subnet="", ipv6_prefix="")
        with refused(ErrorKind.INVALID_ARGUMENT, "'x'", "ipv4_subnet"):
            await rig.blue(ipv4_subnet="x")
        with refused(ErrorKind.ALREADY_EXISTS, "network 'blue' already exists", "name"):
            await rig.blue()

    async def test_public_ones_do_not_overlap(self, rig: Rig) -> None:
        await rig.blue(is_public=True)
        await rig.blue(name="private", ipv4_subnet="10.0.0.0/25")
        with refused(ErrorKind.INVALID_ARGUMENT, "public network 'blue'", "ipv4_subnet"):
            await rig.blue(name="red", ipv4_subnet="10.0.0.128/25", is_public=True)
        await rig.blue(name="red", ipv4_subnet="10.0.1.0/24", is_public=True)

    async def test_unknown(self, rig: Rig) -> None:
        with refused(ErrorKind.NOT_FOUND, "network not found"):
            rig.control.get_network("blue")
        with refused(ErrorKind.NOT_FOUND, "network not found"):
            await rig.control.update_network("blue", dns_servers=[])
        with refused(ErrorKind.NOT_FOUND, "network not found"):
            await rig.control.delete_network("blue")
        with refused(ErrorKind.NOT_FOUND, "network not found"):
            rig.control.list_nics("blue")

    async def test_delete(self, rig: Rig) -> None:
        record = await rig.blue()
        assert await rig.control.delete_network(record.id) == 0
        rig.assert_agreed()
        assert (await rig.blue()).id != record.id

    async def test_delete_with_nics_needs_force(self, rig: Rig) -> None:
        await rig.blue()
        first, _second = await rig.nic("vm1"), await rig.nic("vm2")
        client = await rig.connect(first)
        with refused(ErrorKind.FAILED_PRECONDITION, "network has 2 NICs, use force=true to delete"):
            await rig.control.delete_network("blue")
        rig.assert_agreed()
        assert await rig.control.delete_network("blue", force=True) == 2
        rig.assert_agreed()
        await client.connection.wait_hung_up()
        await client.aclose()
        assert not rig.control.list_nics()

    async def test_update_reaches_the_guest(self, rig: Rig) -> None:
        """At once: by the next answer to DHCP, and by router advertisements without a question."""
        before = await rig.blue(ipv6_prefix="fd00::/64")
        client = await rig.connect(await rig.nic(mac_address=MAC))
        record = await rig.control.update_network(
            "blue", dns_servers=["10.0.0.53", "fd00::53"], ntp_servers=["10.0.0.123"]
        )
        frame = await client.recv_packet()
        assert is_router_advertisement(frame)
        assert parse_router_advertisement(frame).dns_servers == (IPv6Address("fd00::53").packed,)
        await client.send_packet(dhcp_discover(MAC, 1))
        offer = parse_dhcp_response(await client.recv_packet())
        assert list(offer.dns_servers) == [ip_bytes("10.0.0.53")]
        assert record.spec.dns_servers == (IPv4Address("10.0.0.53"), IPv6Address("fd00::53"))
        assert record.spec.ntp_servers == (IPv4Address("10.0.0.123"),)
        assert record.updated_at > before.updated_at
        assert record.created_at == before.created_at
        rig.assert_agreed()
        await client.aclose()

    async def test_update_of_what_is_not_said(self, rig: Rig) -> None:
        before = await rig.blue(dns_servers=["9.9.9.9"], ntp_servers=["10.0.0.123"])
        record = await rig.control.update_network("blue", dns_servers=[])
        assert record.spec == attrs.evolve(before.spec, dns_servers=())

    async def test_wrong_update(self, rig: Rig) -> None:
        before = await rig.blue()
        with refused(ErrorKind.INVALID_ARGUMENT, "1.1.1", "dns_servers"):
            await rig.control.update_network("blue", dns_servers=["1.1.1"])
        with refused(ErrorKind.INVALID_ARGUMENT, "more than 16", "ntp_servers"):
            await rig.control.update_network("blue", ntp_servers=["1.1.1.1"] * (MAX_SERVERS + 1))
        assert rig.control.get_network("blue") == before

    async def test_refusals_are_short_whatever_they_quote(self, rig: Rig) -> None:
        with pytest.raises(ControlError) as info:
            await rig.control.create_network({"name": "x" * 1_000_000, "ipv4_subnet": "10.0.0.0/8"})
        assert info.value.message.startswith("'xxx")
        assert len(info.value.message) <= 500


class TestNics:
    async def test_create_get_list(self, rig: Rig) -> None:
        network = await rig.blue(ipv6_prefix="fd00::/64")
        red = await rig.blue(name="red")
        record = await rig.nic()
        assert record.network_id == network.id
        assert record.spec.ipv4_address == IPv4Address("10.0.0.1")
        assert record.spec.ipv6_address == IPv6Address("fd00::2")
        assert isinstance(record.spec.mac_address, MacAddress)
        assert record.spec.socket_path == rig.folder / "vm1.sock"
        assert record.state is NicState.CREATED
        other = await rig.control.create_nic({"network": red.id})
        assert other.spec.name == f"nic-{other.id[:8]}"
        assert rig.control.get_nic(record.id) == rig.control.get_nic("vm1") == record
        assert rig.control.list_nics() == [record, other]
        assert rig.control.list_nics("red") == rig.control.list_nics(red.id) == [other]
        assert rig.control.get_network("blue").nic_count == 1
        assert {name async for name, _ in rig.control.each_stats()} == {"vm1", other.spec.name}
        rig.assert_agreed()

    async def test_a_guest_uses_it(self, rig: Rig) -> None:
        await rig.blue()
        nic = await rig.nic(mac_address=MAC, ipv4_address="10.0.0.5")
        client = await rig.connect(nic)
        await arp_gateway(client, MAC, "10.0.0.5")
        assert rig.control.get_nic(nic.id).state is NicState.ACTIVE
        await rig.control.delete_nic("vm1")
        await client.connection.wait_hung_up()
        await client.aclose()
        rig.assert_agreed()
        with refused(ErrorKind.NOT_FOUND, "NIC not found"):
            rig.control.get_nic(nic.id)

    @pytest.mark.parametrize(
        ("fields", "message", "field"),
        [
            ({"network": ""}, "network is required", "network"),
            ({"mac_address": "52:54:00"}, "is not a MAC address", "mac_address"),
            ({"mac_address": "01:00:5e:00:00:01"}, "not a unicast", "mac_address"),
            ({"mac_address": "ff:ff:ff:ff:ff:ff"}, "not a unicast", "mac_address"),
            ({"mac_address": "02:00:00:00:00:01"}, "the gateway's", "mac_address"),
            ({"ipv4_address": "10.0.0"}, "10.0.0", "ipv4_address"),
            ({"ipv4_address": "10.0.1.5"}, "not in the network's", "ipv4_address"),
            ({"ipv4_address": "10.0.0.0"}, "not a host's", "ipv4_address"),
            ({"ipv4_address": "10.0.0.255"}, "not a host's", "ipv4_address"),
            ({"ipv4_address": "169.254.0.1"}, "not in the network's", "ipv4_address"),
            ({"ipv6_address": "fd00::5"}, "no ipv6_prefix", "ipv6_address"),
            ({"routed_ipv4_prefixes": ["10.1.0.1/24"]}, "host bits", "routed_ipv4_prefixes"),
            ({"routed_ipv4_prefixes": ["127.0.0.0/8"]}, "never routed", "routed_ipv4_prefixes[0]"),
            ({"socket_path": "x" * 120}, "more than 107", "socket_path"),
            ({"socket_mode": "rw"}, "not a mode", "socket_mode"),
            ({"name": "../x"}, "is not a name", "name"),
            ({"colour": 1}, "no such field", "colour"),
            (
                {"routed_ipv4_prefixes": ["10.1.0.0/24"] * (MAX_PREFIXES + 1)},
                "more than 256",
                "routed_ipv4_prefixes",
            ),
        ],
    )
    async def test_wrong(self, rig: Rig, fields: dict[str, Any], message: str, field: str) -> None:
        await rig.blue()
        with refused(ErrorKind.INVALID_ARGUMENT, message, field):
            await rig.nic(**fields)
        assert not rig.control.list_nics()
        rig.assert_agreed()

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"name": "vm1"}, "name"),
            ({"mac_address": MAC}, "mac_address"),
            ({"ipv4_address": "10.0.0.5"}, "ipv4_address"),
            ({"socket_path": "vm1.sock"}, "socket_path"),
        ],
    )
    async def test_taken(self, rig: Rig, fields: dict[str, Any], field: str) -> None:
        await rig.blue()
        await rig.nic(mac_address=MAC, ipv4_address="10.0.0.5")
        with refused(ErrorKind.ALREADY_EXISTS, "", field):
            await rig.nic(**{"name": "vm2", **fields})
        rig.assert_agreed()

    async def test_socket_of_a_control_interface(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """Also of a NIC that was stored before there was such an interface."""
        async with controlled(tmp_path, nursery) as rig:
            await rig.blue()
            nic = await rig.nic("control")
        api = ApiSpec(http=[f"unix:{tmp_path}/control.sock"])
        reserved = api.socket_paths
        async with controlled(
            tmp_path, nursery, rig.store, DaemonConfig(api=api), reserved=reserved
        ) as rig:
            taken = f"{tmp_path}/control.sock is taken by the control interface http"
            assert taken in rig.control.get_nic(nic.id).error
            with refused(ErrorKind.ALREADY_EXISTS, "taken by NIC 'control'", "socket_path"):
                await rig.nic("vm1", socket_path="control.sock")
            await rig.control.delete_nic(nic.id)
            with refused(ErrorKind.ALREADY_EXISTS, "the control interface http", "socket_path"):
                await rig.nic("vm1", socket_path="x/../control.sock")

    async def test_others_have_turns_while_many_are_listed(self, rig: Rig) -> None:
        """And what goes meanwhile is left out."""
        await rig.blue()
        nics = [await rig.nic(f"vm{n}") for n in range(2 * DONE_IN_A_TURN + 1)]
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        found: list[NicRecord] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            async for nic in rig.control.each_nic("blue"):
                if not found:
                    await rig.control.delete_nic(nics[-1].id)
                    turns = 0
                found.append(nic)
            nursery.cancel_scope.cancel()
        assert turns  # between the first and the last of them
        assert found == nics[:-1]
        assert [n async for n in rig.control.each_network()] == rig.control.list_networks()
        assert len([stats async for stats in rig.control.each_stats()]) == len(found)
        with refused(ErrorKind.NOT_FOUND, "network not found"):
            rig.control.each_nic("red")

    async def test_none_left(self, rig: Rig) -> None:
        await rig.blue(ipv4_subnet="10.0.0.0/30")
        await rig.nic("vm1")
        await rig.nic("vm2")
        with refused(ErrorKind.RESOURCE_EXHAUSTED, "10.0.0.0/30", "ipv4_address"):
            await rig.nic("vm3")
        rig.assert_agreed()
        await rig.control.delete_nic("vm1")
        assert (await rig.nic("vm3")).spec.ipv4_address == IPv4Address("10.0.0.1")

    async def test_unknown(self, rig: Rig) -> None:
        with refused(ErrorKind.NOT_FOUND, "network not found"):
            await rig.nic()
        with refused(ErrorKind.NOT_FOUND, "NIC not found"):
            rig.control.get_nic("vm1")
        with refused(ErrorKind.NOT_FOUND, "NIC not found"):
            await rig.control.update_nic("vm1", routed_ipv4_prefixes=[])
        with refused(ErrorKind.NOT_FOUND, "NIC not found"):
            await rig.control.delete_nic("vm1")

    async def test_socket_that_cannot_be_made_leaves_nothing(self, rig: Rig) -> None:
        await rig.blue()
        (rig.folder / "vm1.sock").mkdir()
        with refused(ErrorKind.FAILED_PRECONDITION, "is not a socket", "socket_path"):
            await rig.nic()
        (rig.folder / "vm1.sock").rmdir()
        rig.assert_agreed()
        await rig.nic()

    async def test_socket_of_another_process(self, rig: Rig) -> None:
        await rig.blue()
        with trio.socket.socket(trio.socket.AF_UNIX) as theirs:
            await theirs.bind(str(rig.folder / "vm1.sock"))
            theirs.listen()
            with refused(ErrorKind.FAILED_PRECONDITION, "another process", "socket_path"):
                await rig.nic()

    async def test_routes_change_under_traffic(self, rig: Rig) -> None:
        await rig.blue()
        sender = await rig.connect(await rig.nic("vm1", mac_address=MAC, ipv4_address="10.0.0.5"))
        nic = await rig.nic("vm2", mac_address=OTHER_MAC, ipv4_address="10.0.0.6")
        receiver = await rig.connect(nic)
        ping = icmp_echo_request(MAC, GATEWAY_MAC, "10.0.0.5", "192.0.2.9", 1, 1, b"hello")
        await sender.send_packet(ping)
        await sender.recv_packet()  # that nobody is there
        record = await rig.control.update_nic("vm2", routed_ipv4_prefixes=["192.0.2.0/24"])
        await sender.send_packet(ping)
        assert parse_icmp_echo_request(await receiver.recv_packet()).data == b"hello"
        assert record.updated_at > nic.updated_at
        rig.assert_agreed()
        await sender.aclose()
        await receiver.aclose()

    async def test_wrong_routes_change_nothing(self, rig: Rig) -> None:
        await rig.blue()
        await rig.nic("vm1", routed_ipv4_prefixes=["192.0.2.0/24"])
        before = await rig.nic("vm2", routed_ipv4_prefixes=["198.51.100.0/24"])
        for prefixes in (["192.0.2.0/25"], ["x"], ["10.0.0.0/24"]):
            with pytest.raises(ControlError) as caught:
                await rig.control.update_nic("vm2", routed_ipv4_prefixes=prefixes)
            assert caught.value.kind is ErrorKind.INVALID_ARGUMENT
        assert rig.control.get_nic("vm2") == before
        rig.assert_agreed()

    async def test_who_may_connect_by_default(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        """The defaults are not stored: they are another file's next time."""
        defaults = SocketAccess(socket_mode="0600", allow_uid=[12345])
        async with controlled(tmp_path, nursery, defaults=defaults) as rig:
            await rig.blue()
            record = await rig.nic()
            assert record.spec.allow_uid == frozenset({12345})
            assert (tmp_path / "vm1.sock").stat().st_mode & 0o777 == 0o600
            [stored] = rig.store.nics.values()
            assert (stored.spec.allow_uid, stored.spec.socket_mode) == (None, None)


def out_of_memory(*_args: object) -> None:
    raise CoreError("routes", errno.ENOMEM)


class TestOutOfMemory:
    """Nothing has changed."""

    async def test_update(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        await rig.blue()
        await rig.nic(routed_ipv4_prefixes=["192.0.2.0/24"])
        with monkeypatch.context() as patched:
            patched.setattr(Port, "set_routes", out_of_memory)
            with refused(ErrorKind.RESOURCE_EXHAUSTED, "Cannot allocate memory"):
                await rig.control.update_nic("vm1", routed_ipv4_prefixes=["198.51.100.0/24"])
        rig.assert_agreed()
        # What was not given is free, and what the NIC has is not.
        await rig.nic("vm2", routed_ipv4_prefixes=["198.51.100.0/24"])
        with refused(ErrorKind.INVALID_ARGUMENT, "overlaps", "routed_ipv4_prefixes[0]"):
            await rig.nic("vm3", routed_ipv4_prefixes=["192.0.2.0/24"])

    async def test_create(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        await rig.blue()
        with monkeypatch.context() as patched:
            patched.setattr(Port, "set_routes", out_of_memory)
            with refused(ErrorKind.RESOURCE_EXHAUSTED, "Cannot allocate memory"):
                await rig.nic()
        rig.assert_agreed()
        await rig.nic()


class TestFailureOfTheStore:
    """Nothing has changed, and the same verb works as soon as the store does."""

    async def test_create(self, rig: Rig) -> None:
        rig.store.refuses = True
        with refused(ErrorKind.INTERNAL, "disk is full"):
            await rig.blue()
        rig.assert_agreed()
        rig.store.refuses = False
        await rig.blue()
        rig.store.refuses = True
        with refused(ErrorKind.INTERNAL, "disk is full"):
            await rig.nic()
        rig.assert_agreed()
        rig.store.refuses = False
        await rig.nic()
        rig.assert_agreed()

    async def test_update_and_delete(self, rig: Rig) -> None:
        await rig.blue()
        client = await rig.connect(await rig.nic(mac_address=MAC, ipv4_address="10.0.0.5"))
        before = rig.control.list_networks(), rig.control.list_nics()
        rig.store.refuses = True
        for verb in (
            lambda: rig.control.update_network("blue", dns_servers=["9.9.9.9"]),
            lambda: rig.control.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.0/24"]),
            lambda: rig.control.delete_nic("vm1"),
            lambda: rig.control.delete_network("blue", force=True),
        ):
            with refused(ErrorKind.INTERNAL, "disk is full"):
                await verb()
            rig.assert_agreed()
            assert (rig.control.list_networks(), rig.control.list_nics()) == before
        await arp_gateway(client, MAC, "10.0.0.5")
        await client.aclose()


class TestCancellation:
    """Whenever it comes, list, switch and store agree afterwards."""

    async def cancelled_while_storing(self, rig: Rig, verb: Any) -> None:
        rig.store.goes_on, rig.store.waiting = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(verb)
            await rig.store.waiting.wait()
            nursery.cancel_scope.cancel()
            rig.store.goes_on.set()
        rig.store.goes_on = None
        rig.assert_agreed()

    async def test_while_storing(self, rig: Rig) -> None:
        await self.cancelled_while_storing(rig, rig.blue)
        await self.cancelled_while_storing(rig, rig.nic)
        assert [nic.spec.name for nic in rig.control.list_nics()] == ["vm1"]
        control = rig.control
        prefixes = ["192.0.2.0/24"]
        for verb in (
            lambda: control.update_network("blue", dns_servers=["9.9.9.9"]),
            lambda: control.update_nic("vm1", routed_ipv4_prefixes=prefixes),
            lambda: control.delete_nic("vm1"),
            lambda: control.delete_network("blue"),
        ):
            await self.cancelled_while_storing(rig, verb)
        assert not control.list_networks()

    async def test_while_storing_what_is_refused(self, rig: Rig) -> None:
        rig.store.refuses = True

        async def verb() -> None:
            with refused(ErrorKind.INTERNAL, "disk is full"):
                await rig.blue()

        await self.cancelled_while_storing(rig, verb)
        assert not rig.control.list_networks()

    async def test_before_it_begins(self, rig: Rig) -> None:
        await rig.blue()
        for verb in (lambda: rig.blue(name="red"), rig.nic):
            with trio.CancelScope() as scope:
                scope.cancel()
                await verb()
            assert scope.cancelled_caught
            rig.assert_agreed()


def file(folder: Path, text: str) -> DaemonConfig:
    """What a configuration file says."""
    path = folder / "x.toml"
    path.write_text(text)
    return load(path, folder)


FILE = '[[network]]\nname = "blue"\nipv4_subnet = "10.0.0.0/24"\n'
FILE_NIC = '[[nic]]\nname = "vm1"\nnetwork = "blue"\n'


class TestBesideTheFile:
    """What was created gives way to what the file has, and comes back when that goes."""

    async def test_of_the_file_cannot_be_changed(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        config = file(tmp_path, FILE + FILE_NIC)
        async with controlled(tmp_path, nursery, config=config) as rig:
            [network], [nic] = rig.control.list_networks(), rig.control.list_nics()
            assert network.in_file
            assert nic.in_file
            assert nic.network_id == network.id
            control = rig.control
            for verb in (
                lambda: control.update_network(network.id, dns_servers=[]),
                lambda: control.delete_network("blue", force=True),
                lambda: control.update_nic("vm1", routed_ipv4_prefixes=[]),
                lambda: control.delete_nic(nic.id),
            ):
                with refused(ErrorKind.FAILED_PRECONDITION, "change it there and reload (SIGHUP)"):
                    await verb()
            created = await rig.nic("vm2")
            assert control.list_nics("blue") == [nic, created]
            assert not rig.store.networks
            assert list(rig.store.nics) == [created.id]
        async with controlled(tmp_path, nursery, rig.store, config) as rig:
            ids = [record.id for record in rig.control.list_nics()]
            assert ids == [nic.id, created.id]
            assert rig.control.get_network("blue").id == network.id

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (FILE + FILE_NIC.replace("vm1", "vm2"), "there is a NIC 'vm2' already"),
            (FILE + FILE_NIC + f'mac_address = "{MAC}"', f"{MAC} is taken by NIC 'vm1'"),
            (FILE + FILE_NIC + 'ipv4_address = "10.0.0.5"', "10.0.0.5 is taken by NIC 'vm1'"),
            (FILE + FILE_NIC + 'socket_path = "vm2.sock"', "is taken by NIC 'vm1'"),
            (
                FILE + FILE_NIC + 'routed_ipv4_prefixes = ["10.0.0.4/31"]',
                "is in a prefix routed to",
            ),
            (FILE + FILE_NIC + 'routed_ipv4_prefixes = ["192.0.2.0/25"]', "overlaps a prefix"),
            (FILE.replace("10.0.0", "10.0.1"), "not in the network's 10.0.1.0/24"),
            ("", "'blue' is not in the configuration file any more"),
        ],
    )
    @pytest.mark.parametrize("reloaded", [True, False])
    async def test_nic_in_conflict(
        self, reloaded: bool, text: str, reason: str, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """Whether the file is changed while the daemon runs, or while it does not."""
        without, conflicting = file(tmp_path, FILE), file(tmp_path, text)
        async with controlled(tmp_path, nursery, config=without) as rig:
            nic = await rig.nic(
                "vm2",
                mac_address=MAC,
                ipv4_address="10.0.0.5",
                routed_ipv4_prefixes=["192.0.2.0/24"],
            )
            if reloaded:
                await rig.control.reload(conflicting)
                self.assert_in_conflict(rig, nic, reason)
                await rig.control.reload(without)
                assert rig.control.get_nic(nic.id) == nic
        if reloaded:
            return
        async with controlled(tmp_path, nursery, rig.store, conflicting) as rig:
            self.assert_in_conflict(rig, nic, reason)
            if text:
                # What it had stays its own.
                with refused(ErrorKind.ALREADY_EXISTS, "", "mac_address"):
                    await rig.nic("vm3", mac_address=MAC)
        async with controlled(tmp_path, nursery, rig.store, without) as rig:
            assert rig.control.get_nic(nic.id) == nic

    @staticmethod
    def assert_in_conflict(rig: Rig, nic: NicRecord, reason: str) -> None:
        now = rig.control.get_nic(nic.id)
        assert now.state is NicState.ERROR
        assert reason in now.error
        assert attrs.evolve(now, state=nic.state, error="") == nic

    async def test_network_in_conflict(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        async with controlled(tmp_path, nursery) as rig:
            await rig.blue(name="red", is_public=True)
            nic = await rig.control.create_nic({"network": "red", "name": "vm2"})
            network = rig.control.get_network("red")
            await rig.control.reload(file(tmp_path, FILE + "is_public = true\n"))
            error = rig.control.get_network("red").error
            assert "overlaps 10.0.0.0/24 of the public network 'blue'" in error
            assert "'red' is not served" in rig.control.get_nic("vm2").error
            assert not list(tmp_path.glob("*.sock"))
            with refused(ErrorKind.FAILED_PRECONDITION, "is not served", "network"):
                await rig.control.create_nic({"network": "red"})
            with refused(ErrorKind.ALREADY_EXISTS, "already exists", "name"):
                await rig.blue(name="red", ipv4_subnet="10.0.1.0/24")
            await rig.control.reload(DaemonConfig())
            assert rig.control.list_networks() == [network]
            assert rig.control.list_nics() == [nic]

    async def test_changed_and_deleted_while_in_conflict(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        text = FILE.replace("blue", "red") + FILE_NIC.replace("blue", "red")
        async with controlled(tmp_path, nursery) as rig:
            await rig.blue(name="red")
            nic = await rig.control.create_nic({"network": "red", "name": "vm2"})
            red = rig.control.get_network("red")
            await rig.control.reload(file(tmp_path, text))
            # By name it is the one that is served.
            assert rig.control.get_network("red").in_file
            assert rig.control.get_network(red.id).error
            await rig.control.update_network(red.id, dns_servers=["9.9.9.9"])
            await rig.control.update_nic(nic.id, routed_ipv4_prefixes=["192.0.2.0/24"])
            await rig.control.reload(DaemonConfig())
            assert [str(ip) for ip in rig.control.get_network("red").spec.dns_servers] == [
                "9.9.9.9"
            ]
            assert rig.control.get_nic("vm2").spec.routed_ipv4_prefixes
            rig.assert_agreed()
            await rig.control.reload(file(tmp_path, text))
            assert await rig.control.delete_network(red.id, force=True) == 1
            assert not rig.store.networks
            assert not rig.store.nics
            assert [nic.spec.name for nic in rig.control.list_nics()] == ["vm1"]

    async def test_what_is_given_to_the_file_is_not_what_was_created(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        async with controlled(tmp_path, nursery, config=file(tmp_path, FILE)) as rig:
            created = await rig.nic("vm2")
            await rig.control.reload(file(tmp_path, FILE + FILE_NIC))
            assert rig.control.get_nic("vm2") == created
            assert rig.control.get_nic("vm1").spec.ipv4_address == IPv4Address("10.0.0.2")
            # Nor what one in conflict had, nor is that given to another that is created.
            await rig.control.reload(file(tmp_path, FILE + FILE_NIC.replace("vm1", "vm2")))
            assert rig.control.get_nic(created.id).error
            assert rig.control.get_nic("vm2").spec.ipv4_address == IPv4Address("10.0.0.2")
            assert (await rig.nic("vm3")).spec.ipv4_address == IPv4Address("10.0.0.3")

    async def test_the_file_needs_what_was_created(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        text = FILE.replace("/24", "/30")
        async with controlled(tmp_path, nursery, config=file(tmp_path, text)) as rig:
            await rig.nic("vm9")
            text += FILE_NIC + FILE_NIC.replace("vm1", "vm2")
            await rig.control.reload(file(tmp_path, text))
            states = {nic.spec.name: nic.state for nic in rig.control.list_nics()}
            assert states == {
                "vm1": NicState.CREATED,
                "vm2": NicState.CREATED,
                "vm9": NicState.ERROR,
            }

    async def test_family_that_its_network_has_only_now(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """A NIC that was created is given an address, which is stored."""
        async with controlled(tmp_path, nursery, config=file(tmp_path, FILE)) as rig:
            nic = await rig.nic("vm2")
            config = file(tmp_path, FILE + 'ipv6_prefix = "fd00::/64"\n')
            await rig.control.reload(config)
            spec = rig.control.get_nic("vm2").spec
            assert spec == attrs.evolve(nic.spec, ipv6_address="fd00::2")
            assert rig.store.nics[nic.id].spec == spec

    async def test_a_socket_that_cannot_be_made(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """Of what was created, that is no reason not to start; of what is in the file, it is."""
        config = file(tmp_path, FILE)
        async with controlled(tmp_path, nursery, config=config) as rig:
            nic = await rig.nic("vm1")
        (tmp_path / "vm1.sock").mkdir()
        async with controlled(tmp_path, nursery, rig.store, config) as rig:
            assert "is not a socket" in rig.control.get_nic("vm1").error
            (tmp_path / "vm1.sock").rmdir()
            await rig.control.reload(config)
            assert rig.control.get_nic("vm1") == nic
        (tmp_path / "vm1.sock").mkdir()
        with pytest.raises(SocketPathError):
            async with controlled(tmp_path, nursery, config=file(tmp_path, FILE + FILE_NIC)):
                pass

    async def test_wrong_file_at_the_start(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        config = DaemonConfig((NetworkSpec(name="blue"), NetworkSpec(name="blue")))
        with pytest.raises(DuplicateError):
            async with controlled(tmp_path, nursery, config=config):
                pass


class TestReload:
    """The file goes, comes and changes under running guests."""

    TWO = (
        FILE
        + f'[[nic]]\nname = "vm1"\nnetwork = "blue"\nmac_address = "{MAC}"\n'
        + f'[[nic]]\nname = "vm2"\nnetwork = "blue"\nmac_address = "{OTHER_MAC}"\n'
    )

    async def test_unchanged_nics_are_not_touched(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """Not even when a NIC that stands before them would be given their address now."""
        async with controlled(tmp_path, nursery, config=file(tmp_path, self.TWO)) as rig:
            before = rig.control.get_nic("vm1")
            client = await rig.connect(before)
            await arp_gateway(client, MAC, "10.0.0.1")
            new = FILE.replace("blue", "red") + FILE_NIC.replace("vm1", "vm0")
            text = new + self.TWO.partition('[[nic]]\nname = "vm2"')[0]
            await rig.control.reload(file(tmp_path, text))
            await arp_gateway(client, MAC, "10.0.0.1")
            after = rig.control.get_nic("vm1")
            assert after == attrs.evolve(before, state=NicState.ACTIVE)
            # What vm2 had is free, and vm0 has it now.
            addresses = {n.spec.name: str(n.spec.ipv4_address) for n in rig.control.list_nics()}
            assert addresses == {"vm0": "10.0.0.2", "vm1": "10.0.0.1"}
            assert {n.spec.name for n in rig.control.list_networks()} == {"red", "blue"}
            assert {path.name for path in tmp_path.glob("*.sock")} == {"vm0.sock", "vm1.sock"}
            await client.aclose()

    async def test_the_same_file_again_touches_nothing(
        self, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No routes are set anew, and no router advertisements sent, which guests would hear."""
        text = self.TWO.replace("/24", '/24"\nipv6_prefix = "fd00::/64', 1)
        config = file(tmp_path, text)
        async with controlled(tmp_path, nursery, config=config) as rig:
            client = await rig.connect(rig.control.get_nic("vm1"))
            await arp_gateway(client, MAC, "10.0.0.1")
            touched: list[str] = []
            for cls, name in ((Port, "set_routes"), (Nic, "update"), (Nic, "update_network")):
                monkeypatch.setattr(cls, name, lambda *_args, name=name: touched.append(name))
            await rig.control.reload(file(tmp_path, text))
            assert touched == []
            await arp_gateway(client, MAC, "10.0.0.1")
            await client.aclose()

    async def test_live_changes(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        """Two NICs exchange the prefixes that are routed to them; DNS servers are others."""
        routed = 'routed_ipv4_prefixes = ["192.0.2.0/24"]\n'
        other = 'routed_ipv4_prefixes = ["198.51.100.0/24"]\n'
        head, tail = self.TWO.split('[[nic]]\nname = "vm2"')
        tail = '[[nic]]\nname = "vm2"' + tail
        config = file(tmp_path, head + routed + tail + other)
        async with controlled(tmp_path, nursery, config=config) as rig:
            clients = [await rig.connect(nic) for nic in rig.control.list_nics()]
            await arp_gateway(clients[0], MAC, "10.0.0.1")
            head = head.replace("[[nic]]", 'dns_servers = ["10.0.0.53"]\n[[nic]]')
            await rig.control.reload(file(tmp_path, head + other + tail + routed))
            await clients[0].send_packet(dhcp_discover(MAC, 1))
            offer = parse_dhcp_response(await clients[0].recv_packet())
            assert list(offer.dns_servers) == [ip_bytes("10.0.0.53")]
            ping = icmp_echo_request(MAC, GATEWAY_MAC, "10.0.0.1", "192.0.2.9", 1, 1, b"hello")
            await clients[0].send_packet(ping)
            assert parse_icmp_echo_request(await clients[1].recv_packet()).data == b"hello"
            assert all(nic.state is NicState.ACTIVE for nic in rig.control.list_nics())
            for client in clients:
                await client.aclose()

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (f'mac_address = "{MAC}"', 'mac_address = "52:54:00:00:00:09"'),
            (f'mac_address = "{MAC}"', f'mac_address = "{MAC}"\nipv4_address = "10.0.0.9"'),
            (f'mac_address = "{MAC}"', f'mac_address = "{MAC}"\nsocket_path = "x.sock"'),
            ("10.0.0.0/24", "10.0.0.0/25"),
        ],
    )
    async def test_changes_that_need_another_nic(
        self, old: str, new: str, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        async with controlled(tmp_path, nursery, config=file(tmp_path, self.TWO)) as rig:
            client = await rig.connect(rig.control.get_nic("vm1"))
            await rig.control.reload(file(tmp_path, self.TWO.replace(old, new, 1)))
            await client.connection.wait_hung_up()
            await client.aclose()
            client = await rig.connect(rig.control.get_nic("vm1"))
            await client.aclose()

    async def test_wrong_file_changes_nothing(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        async with controlled(tmp_path, nursery, config=file(tmp_path, self.TWO)) as rig:
            before = rig.control.list_networks(), rig.control.list_nics()
            wrong = DaemonConfig((NetworkSpec(name="blue"), NetworkSpec(name="blue")))
            with pytest.raises(DuplicateError):
                await rig.control.reload(wrong)
            assert (rig.control.list_networks(), rig.control.list_nics()) == before

    async def test_nic_that_cannot_be_served(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        async with controlled(tmp_path, nursery, config=file(tmp_path, FILE)) as rig:
            (tmp_path / "vm1.sock").mkdir()
            config = file(tmp_path, FILE + FILE_NIC)
            await rig.control.reload(config)
            assert "is not a socket" in rig.control.get_nic("vm1").error
            (tmp_path / "vm1.sock").rmdir()
            await rig.control.reload(config)
            assert rig.control.get_nic("vm1").state is NicState.CREATED

    async def test_out_of_memory(
        self, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A NIC whose routes cannot be changed is not served, until they can."""
        async with controlled(tmp_path, nursery, config=file(tmp_path, FILE + FILE_NIC)) as rig:
            before = rig.control.get_nic("vm1")
            config = file(tmp_path, FILE + FILE_NIC + 'routed_ipv4_prefixes = ["192.0.2.0/24"]')
            with monkeypatch.context() as patched:
                patched.setattr(Port, "set_routes", out_of_memory)
                await rig.control.reload(config)
            assert "Cannot allocate memory" in rig.control.get_nic("vm1").error
            assert not list(tmp_path.glob("*.sock"))
            await rig.control.reload(config)
            assert rig.control.get_nic("vm1").state is NicState.CREATED
            await rig.control.reload(file(tmp_path, FILE + FILE_NIC))
            assert attrs.evolve(rig.control.get_nic("vm1"), updated_at=before.updated_at) == before

    async def test_is_watched(self, tmp_path: Path, nursery: trio.Nursery) -> None:
        async with controlled(tmp_path, nursery, config=file(tmp_path, self.TWO)) as rig:
            gone = rig.control.get_nic("vm2")
            async with rig.control.watch() as changes:
                text = self.TWO.partition('[[nic]]\nname = "vm2"')[0] + FILE_NIC.replace("1", "3")
                await rig.control.reload(file(tmp_path, text))
                await rig.control.aclose()
                seen = [(c.resource, c.id, c.record and c.record.spec.name) async for c in changes]
            vm3 = rig.control.get_nic("vm3")
            assert seen == [("nic", gone.id, None), ("nic", vm3.id, "vm3")]

    async def test_a_watcher_hears_of_all_however_much_it_is(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        names = [f"vm{n}" for n in range(WATCH_BACKLOG + 20)]
        many = file(
            tmp_path,
            FILE.replace("/24", "/23") + "".join(FILE_NIC.replace("vm1", n) for n in names),
        )
        async with controlled(tmp_path, nursery) as rig, rig.control.watch() as changes:
            for config, expected in ((many, True), (DaemonConfig(), False)):
                await rig.control.reload(config)
                seen = [await changes.receive() for _ in range(len(names) + 1)]
                assert all((change.record is not None) is expected for change in seen)
                assert len({change.id for change in seen}) == len(seen)

    async def test_addresses_that_could_not_be_stored_are_stored_later(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """With the next verb, whatever it is, or the next reload."""
        both = file(tmp_path, FILE + 'ipv6_prefix = "fd00::/64"\n')
        for verb, args in (("create_network", {**BLUE, "name": "red"}), ("reload", both)):
            config = file(tmp_path, FILE)
            async with controlled(tmp_path, nursery, config=config) as rig:
                nic = await rig.nic("vm1")
                rig.store.refuses = True
                await rig.control.reload(both)
                given = rig.control.get_nic("vm1").spec
                assert given.ipv6_address is not None
                with refused(ErrorKind.INTERNAL, "disk is full"):
                    await rig.blue(name="green")
                assert rig.store.nics[nic.id].spec.ipv6_address is None
                rig.store.refuses = False
                await getattr(rig.control, verb)(args)
                assert rig.store.nics[nic.id].spec == given

    async def test_what_others_put_into_the_switch_stays(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        async with controlled(tmp_path, nursery, config=file(tmp_path, FILE)) as rig:
            await rig.switch.add_network(NetworkSpec(name="theirs"))
            await rig.switch.add_nic(NicSpec(name="theirs", network="theirs"))
            await rig.control.reload(DaemonConfig())
            assert list(rig.switch.nics) == list(rig.switch.networks) == ["theirs"]


class TestWatching:
    async def test_all_that_happens(self, rig: Rig) -> None:
        rig.nursery.start_soon(rig.control.run)
        async with rig.control.watch() as changes:
            network = await rig.blue()
            change = await changes.receive()
            assert (change.resource, change.id, change.record) == ("network", network.id, network)
            nic = await rig.nic(mac_address=MAC, ipv4_address="10.0.0.5")
            assert (await changes.receive()).record == nic
            client = await rig.connect(nic)
            assert (await _nic_change(changes)).state is NicState.ACTIVE
            client.disconnect()
            await client.aclose()
            assert (await _nic_change(changes)).state is NicState.CREATED
            updated = await rig.control.update_nic("vm1", routed_ipv4_prefixes=["192.0.2.0/24"])
            assert (await changes.receive()).record == updated
            await rig.control.delete_network("blue", force=True)
            gone = [await changes.receive(), await changes.receive()]
            assert [(c.resource, c.id, c.record) for c in gone] == [
                ("nic", nic.id, None),
                ("network", network.id, None),
            ]

    async def test_a_nic_that_goes_with_its_frontend(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """It is never told of as if something were wrong with it, nor is one that is made anew."""
        config = file(tmp_path, FILE + FILE_NIC)
        async with controlled(tmp_path, nursery, config=config) as rig:
            nursery.start_soon(rig.control.run)
            clients = [
                await rig.connect(nic) for nic in (rig.control.get_nic("vm1"), await rig.nic("vm2"))
            ]
            for client in clients:
                await client.connection.get_features()
            async with rig.control.watch() as changes:
                await rig.control.delete_nic("vm2")
                await rig.control.reload(file(tmp_path, FILE.replace("/24", "/25") + FILE_NIC))
                await rig.control.aclose()
                seen = [change async for change in changes]
            for client in clients:
                await client.aclose()
            gone, network, anew = seen
            assert (gone.resource, gone.record) == ("nic", None)
            assert network.resource == "network"
            assert isinstance(anew.record, NicRecord)
            assert anew.record.state is NicState.CREATED

    async def test_too_far_behind(self, rig: Rig, mock_clock: MockClock) -> None:
        """And not reading: one that reads, however far behind, goes on."""
        await rig.blue()
        async with rig.control.watch() as silent, rig.control.watch() as slow:
            for _ in range(WATCH_BACKLOG + 1):
                await rig.control.update_network("blue", dns_servers=[])
            mock_clock.jump(WATCH_PATIENCE)
            await slow.receive()
            await rig.control.update_network("blue", dns_servers=["9.9.9.9"])
            assert [change async for change in silent] == []
            for _ in range(WATCH_BACKLOG + 1):
                record = (await slow.receive()).record
            assert isinstance(record, NetworkRecord)
            assert record.spec.dns_servers == (IPv4Address("9.9.9.9"),)
            await rig.control.delete_network("blue")
            assert (await slow.receive()).record is None

    async def test_ends_with_the_control(self, rig: Rig) -> None:
        async with rig.control.watch() as changes:
            await rig.control.aclose()
            assert [change async for change in changes] == []
        async with rig.control.watch() as changes:
            assert [change async for change in changes] == []
        with pytest.raises(trio.ClosedResourceError):
            await rig.blue()


async def _nic_change(changes: Watch) -> NicRecord:
    record = (await changes.receive()).record
    assert isinstance(record, NicRecord)
    return record


NAMES = st.sampled_from(["a", "b", "c"])
SUBNETS = st.sampled_from(["10.0.0.0/30", "10.0.1.0/24", "10.0.1.128/25"])
MACS = st.sampled_from([None, MAC, OTHER_MAC])
PREFIXES = st.lists(st.sampled_from(["192.0.2.0/24", "10.0.1.128/26", "10.0.0.0/31"]), max_size=2)
FILES = st.lists(
    st.tuples(NAMES, SUBNETS, st.booleans(), st.booleans()), max_size=2, unique_by=lambda t: t[0]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create_network"), NAMES, SUBNETS, st.booleans()),
        st.tuples(st.just("delete_network"), NAMES, st.booleans()),
        st.tuples(st.just("create_nic"), NAMES, NAMES, MACS),
        st.tuples(st.just("update_nic"), NAMES, PREFIXES),
        st.tuples(st.just("delete_nic"), NAMES),
        st.tuples(st.just("full_disk"), st.booleans()),
        st.tuples(st.just("reload"), FILES, MACS),
        st.tuples(st.just("restart")),
    ),
    max_size=12,
)


class TestAnySequence:
    """Of verbs, reloads and restarts: what was answered stays true, and nothing is served twice."""

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(STEPS)
    def test_of_steps(self, steps: list[Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trio.run(self.run, Path(folder), steps)

    async def run(self, folder: Path, steps: list[Any]) -> None:
        store, config, todo = FakeStore(), DaemonConfig(), list(steps)
        ids: set[str] = set()
        while True:
            async with (
                trio.open_nursery() as nursery,
                controlled(folder, nursery, store, config) as rig,
            ):
                self.assert_true(rig, ids)
                while todo and todo[0] != ("restart",):
                    config = await self.step(rig, ids, config, *todo.pop(0))
                    self.assert_true(rig, ids)
            if not todo:
                return
            todo.pop(0)

    async def step(
        self, rig: Rig, ids: set[str], config: DaemonConfig, verb: str, *args: Any
    ) -> DaemonConfig:
        control = rig.control
        with contextlib.suppress(ControlError):
            if verb == "create_network":
                fields = dict(zip(("name", "ipv4_subnet", "is_public"), args, strict=True))
                ids.add((await control.create_network(fields)).id)
            elif verb == "create_nic":
                fields = dict(zip(("name", "network", "mac_address"), args, strict=True))
                ids.add((await control.create_nic(fields)).id)
            elif verb == "update_nic":
                await control.update_nic(args[0], routed_ipv4_prefixes=args[1])
            elif verb == "full_disk":
                [rig.store.refuses] = args
            elif verb == "delete_nic":
                nic = control.get_nic(*args)
                await control.delete_nic(nic.id)
                ids.remove(nic.id)
            elif verb == "delete_network":
                network = control.get_network(args[0])
                nics = {nic.id for nic in control.list_nics(network.id)}
                assert await control.delete_network(network.id, force=args[1]) == len(nics)
                ids -= nics | {network.id}
            else:
                return await self.reload(rig, config, *args)
        return config

    async def reload(
        self, rig: Rig, config: DaemonConfig, tables: Any, mac: str | None
    ) -> DaemonConfig:
        new = DaemonConfig(
            tuple(
                NetworkSpec(name=name, ipv4_subnet=subnet, is_public=public)
                for name, subnet, public, _has_nic in tables
            ),
            tuple(
                NicSpec(
                    name=name,
                    network=name,
                    mac_address=mac,
                    socket_path=rig.folder / f"{name}.sock",
                )
                for name, _subnet, _public, has_nic in tables
                if has_nic
            ),
        )
        try:
            await rig.control.reload(new)
        except ConfigError:
            return config
        return new

    @staticmethod
    def assert_true(rig: Rig, ids: set[str]) -> None:
        networks, nics = rig.control.list_networks(), rig.control.list_nics()
        records: list[NetworkRecord | NicRecord] = [*networks, *nics]
        made = {record.id for record in records if not record.in_file}
        assert made == ids == {*rig.store.networks, *rig.store.nics}
        assert all(not record.error for record in records if record.in_file)
        served = {record.spec.name: record.spec for record in nics if not record.error}
        assert served == {name: nic.spec for name, nic in rig.switch.nics.items()}
        assert len(served) == sum(not record.error for record in nics)
        assert {n.spec.name: n.spec for n in networks if not n.error} == rig.switch.networks
        stored = {entry.id: entry.spec for entry in rig.store.nics.values()}
        assert {nic.id: nic.spec for nic in nics if not nic.in_file} == stored
        sockets = {spec.socket_path for spec in served.values()}
        assert sockets == set(rig.folder.glob("*.sock"))
