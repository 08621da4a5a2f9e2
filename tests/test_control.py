"""The verbs: what they do to NICs with real frontends, what they refuse, what a failure leaves."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from mvirt_net import DaemonConfig, MacAddress, NetworkSpec, open_switch
from mvirt_net.control import (
    WATCH_BACKLOG,
    Change,
    Control,
    ControlError,
    ErrorKind,
    NetworkRecord,
    NicRecord,
    NicState,
)
from mvirt_net.inventory import NetworkEntry, NicEntry
from mvirt_net.model import SocketAccess
from mvirt_net.store import NoStore, StoredState, StoreError
from tests.harness import VhostTestClient
from tests.harness.exchanges import arp_gateway
from tests.harness.packets import (
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
    **options: Any,
) -> AsyncIterator[Rig]:
    store = store or FakeStore()
    async with open_switch() as switch:
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
        assert rig.control.get_network("blue") == before


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
        assert set(rig.control.stats()) == {"vm1", other.spec.name}
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
        ping = icmp_echo_request(MAC, "02:00:00:00:00:01", "10.0.0.5", "192.0.2.9", 1, 1, b"hello")
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

    async def test_too_far_behind(self, rig: Rig) -> None:
        await rig.blue()
        async with rig.control.watch() as slow, rig.control.watch() as fast:
            for _ in range(WATCH_BACKLOG + 1):
                await rig.control.update_network("blue", dns_servers=[])
                await fast.receive()
            assert len([change async for change in slow]) == WATCH_BACKLOG
            await rig.control.delete_network("blue")
            assert (await fast.receive()).record is None

    async def test_ends_with_the_control(self, rig: Rig) -> None:
        async with rig.control.watch() as changes:
            await rig.control.aclose()
            assert [change async for change in changes] == []
        async with rig.control.watch() as changes:
            assert [change async for change in changes] == []
        with pytest.raises(trio.ClosedResourceError):
            await rig.blue()


async def _nic_change(changes: trio.MemoryReceiveChannel[Change]) -> NicRecord:
    record = (await changes.receive()).record
    assert isinstance(record, NicRecord)
    return record
