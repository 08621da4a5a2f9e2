"""The configuration file: what it means, and every way in which it can be wrong."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvirt_net.config import load
from mvirt_net.errors import ConfigFileError
from mvirt_net.model import (
    DaemonConfig,
    FileMode,
    MacAddress,
    Netmask,
    NetworkSpec,
    NicSpec,
    PollingSpec,
    SocketAccess,
)
from mvirt_net.registry import plan

SOCKETS = Path("/run/sockets")

WHOLE = """
state = "/var/lib/mvirt-net/state.db"

[[network]]
name = "blue"
ipv4_subnet = "10.0.0.0/24"
ipv4_netmask = "subnet"
ipv6_prefix = "fd00:0:0:1::/64"
dns_servers = ["9.9.9.9", "2620:fe::fe"]
ntp_servers = ["10.0.0.123"]
mtu = 9000
is_public = true

[[nic]]
name = "vm1"
network = "blue"
mac_address = "52:54:00:12:34:56"
ipv4_address = "10.0.0.5"
ipv6_address = "fd00:0:0:1::5"
routed_ipv4_prefixes = ["10.0.1.0/24"]
routed_ipv6_prefixes = ["fd00:0:0:2::/64"]
socket_path = "/run/mvirt-net/vm1.sock"
socket_mode = "0666"
socket_owner = "root"
socket_group = 107
allow_uid = ["root", 64055]
allow_gid = ["107"]
"""

BLUE = '[[network]]\nname = "blue"\nipv4_subnet = "10.0.0.0/24"\n'


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "x.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_text(tmp_path: Path, text: str) -> DaemonConfig:
    """Networks and NICs of a file, each NIC with what it is given."""
    return plan(load(write(tmp_path, text), socket_dir=SOCKETS)).config


def problems(tmp_path: Path, text: str | bytes) -> list[str]:
    """What `load` says about `text`, without the file's name that begins each line."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigFileError) as caught:
        load(path, socket_dir=SOCKETS)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


class TestGood:
    def test_every_key(self, tmp_path: Path) -> None:
        assert load_text(tmp_path, WHOLE) == DaemonConfig(
            (
                NetworkSpec(
                    name="blue",
                    ipv4_subnet=IPv4Network("10.0.0.0/24"),
                    ipv4_netmask=Netmask.SUBNET,
                    ipv6_prefix=IPv6Network("fd00:0:0:1::/64"),
                    dns_servers=(IPv4Address("9.9.9.9"), IPv6Address("2620:fe::fe")),
                    ntp_servers=(IPv4Address("10.0.0.123"),),
                    mtu=9000,
                    is_public=True,
                ),
            ),
            (
                NicSpec(
                    name="vm1",
                    network="blue",
                    mac_address=MacAddress.parse("52:54:00:12:34:56"),
                    ipv4_address=IPv4Address("10.0.0.5"),
                    ipv6_address=IPv6Address("fd00:0:0:1::5"),
                    routed_ipv4_prefixes=(IPv4Network("10.0.1.0/24"),),
                    routed_ipv6_prefixes=(IPv6Network("fd00:0:0:2::/64"),),
                    socket_path=Path("/run/mvirt-net/vm1.sock"),
                    socket_mode=FileMode(0o666),
                    socket_owner=0,
                    socket_group=107,
                    allow_uid=[0, 64055],
                    allow_gid=[107],
                ),
            ),
            socket_dir=SOCKETS,
            state=Path("/var/lib/mvirt-net/state.db"),
        )

    def test_no_state(self, tmp_path: Path) -> None:
        assert load_text(tmp_path, "state = false").state is False
        assert load_text(tmp_path, "").state is None

    @pytest.mark.parametrize("value", ["true", "1", '"state.db"', "[]"])
    def test_wrong_state(self, value: str, tmp_path: Path) -> None:
        [problem] = problems(tmp_path, f"state = {value}")
        assert problem.startswith("state: ")
        assert problem.endswith(" is neither an absolute path nor false")

    def test_polling(self, tmp_path: Path) -> None:
        text = "[polling]\nworkers = 2\nbusy_poll = 100\nworker_cpus = [2, 3]\n"
        assert load_text(tmp_path, text).polling == PollingSpec(
            workers=2, busy_poll=100, worker_cpus=(2, 3)
        )

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("workers = -1", "workers: -1 is not a number from 0 to 64"),
            ("workers = true", "workers: True is not a number from 0 to 64"),
            ("busy_poll = 1.5", "busy_poll: 1.5 is not a number of microseconds"),
            ("busy_poll = 1000001", "busy_poll: 1000001 is not a number of microseconds"),
            ("worker_cpus = 1", "worker_cpus: 1 is not a list"),
            ('worker_cpus = ["1"]', "worker_cpus: '1' is not the number of a processor"),
            ("spin = 1", "spin: unknown key"),
        ],
    )
    def test_wrong_polling(self, line: str, expected: str, tmp_path: Path) -> None:
        [problem] = problems(tmp_path, f"[polling]\n{line}\n")
        assert problem.startswith(f"polling.{expected}")

    def test_empty(self, tmp_path: Path) -> None:
        assert load_text(tmp_path, "") == DaemonConfig(socket_dir=SOCKETS)

    def test_what_is_absent_is_given(self, tmp_path: Path) -> None:
        config = load_text(tmp_path, BLUE + '[[nic]]\nname = "vm1"\nnetwork = "blue"\n')
        [nic] = config.nics
        assert nic.mac_address is not None
        assert nic.ipv4_address == IPv4Address("10.0.0.1")
        assert nic.ipv6_address is None
        assert nic.socket_path == SOCKETS / "vm1.sock"

    def test_relative_socket_path(self, tmp_path: Path) -> None:
        text = BLUE + '[[nic]]\nname = "vm1"\nnetwork = "blue"\nsocket_path = "a/b.sock"\n'
        assert load_text(tmp_path, text).nics[0].socket_path == SOCKETS / "a/b.sock"

    def test_an_explicit_address_wins_over_an_earlier_gift(self, tmp_path: Path) -> None:
        text = (
            '[[nic]]\nname = "vm1"\nnetwork = "blue"\n'
            '[[nic]]\nname = "vm2"\nnetwork = "blue"\nipv4_address = "10.0.0.1"\n'
        )
        config = load_text(tmp_path, text + BLUE)
        assert [str(nic.ipv4_address) for nic in config.nics] == ["10.0.0.2", "10.0.0.1"]


class TestForm:
    """Problems that one table has by itself."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("x = 1", "x: unknown key"),
            ("networks = []", "networks: unknown key; did you mean network?"),
            (
                '[[network]]\nname = "a"\nmtuu = 1',
                "network[0].mtuu: unknown key; did you mean mtu?",
            ),
            ('[[network]]\nname = "a"\n"x\\ny" = 1', "network[0].x\\ny: unknown key"),
            ("[[network]]", "network[0].name: missing"),
            (BLUE + '[[nic]]\nname = "a"', "nic[0].network: missing"),
            ("network = 1", "network: not an array of tables (its header needs double brackets)"),
            ("[nic]", "nic: not an array of tables (its header needs double brackets)"),
            ('nic = ["a"]', "nic[0]: not a table"),
        ],
    )
    def test_keys_and_tables(self, tmp_path: Path, text: str, expected: str) -> None:
        assert problems(tmp_path, text) == [expected]

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("mtu = 67", "mtu: 67 is not an MTU from 68 to 65535"),
            ("mtu = true", "mtu: True is not an MTU from 68 to 65535"),
            ('ipv4_subnet = "10.0.0.1/24"', "ipv4_subnet: 10.0.0.1/24 has host bits set"),
            ("ipv4_subnet = 4", "ipv4_subnet: 4 is not text"),
            ('dns_servers = ["fe80::1%x"]', "dns_servers: 'fe80::1%x' has a zone"),
            ('ipv4_netmask = "x"', "ipv4_netmask: 'x' is not 'host' or 'subnet'"),
            ('dns_servers = "1.1.1.1"', "dns_servers: '1.1.1.1' is not a list"),
            ("dns_servers = 5", "dns_servers: 5 is not a list"),
            ("dns_servers = { a = 1 }", "dns_servers: {'a': 1} is not a list"),
            ('ipv6_prefix = "fe80::/64"', "ipv6_prefix: fe80::/64 overlaps fe80::/10, which is"),
        ],
    )
    def test_network_values(self, tmp_path: Path, line: str, expected: str) -> None:
        [problem] = problems(tmp_path, f'[[network]]\nname = "a"\n{line}\n')
        assert problem.startswith(f"network[0].{expected}")

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ('mac_address = "52:54:00:12:34"', "mac_address"),
            ('mac_address = "02:00:00:00:00:01"', "mac_address"),
            ('mac_address = "01:00:5e:00:00:01"', "mac_address"),
            ("mac_address = 5", "mac_address"),
            ("mac_address = []", "mac_address"),
            ('ipv4_address = "10.0.0.256"', "ipv4_address"),
            ('ipv4_address = "10.0.1.5"', "ipv4_address"),
            ('ipv4_address = "10.0.0.255"', "ipv4_address"),
            ('ipv6_address = "fd00::1"', "ipv6_address"),
            ('ipv6_address = "fd00::1%eth0"', "ipv6_address"),
            ('routed_ipv4_prefixes = ["10.0.0.0/8", "x"]', "routed_ipv4_prefixes"),
            ('routed_ipv4_prefixes = ["10.1.0.0/16", "10.1.0.0/24"]', "routed_ipv4_prefixes[1]"),
            ("socket_path = 5", "socket_path"),
            ('socket_path = ""', "socket_path"),
            ('socket_path = "a\\u0000b"', "socket_path"),
            (f'socket_path = "{"x" * 100}"', "socket_path"),
        ],
    )
    def test_nic_values(self, tmp_path: Path, line: str, key: str) -> None:
        nic = f'[[nic]]\nname = "vm1"\nnetwork = "blue"\n{line}\n'
        [problem] = problems(tmp_path, BLUE + nic)
        assert problem.startswith(f"nic[0].{key}: ")

    def test_socket_path_that_is_no_text(self, tmp_path: Path) -> None:
        nic = '[[nic]]\nname = "vm1"\nnetwork = "blue"\nsocket_path = {}\n'
        for value in ("5", "[]"):
            [problem] = problems(tmp_path, BLUE + nic.format(value))
            assert problem == f"nic[0].socket_path: {value} is not text"

    def test_name(self, tmp_path: Path) -> None:
        [problem] = problems(tmp_path, '[[network]]\nname = "../x"\n')
        assert problem.startswith("network[0].name: '../x' is not a name")

    def test_all_at_once(self, tmp_path: Path) -> None:
        text = '[[network]]\nmtu = 0\nx = 1\n[[nic]]\nname = "a"\nmac_address = "z"\n'
        assert [line.split(": ")[0] for line in problems(tmp_path, text)] == [
            "network[0].name",
            "network[0].mtu",
            "network[0].x",
            "nic[0].network",
            "nic[0].mac_address",
        ]


class TestFit:
    """Problems that tables have with each other; the rules have their own tests (`registry`)."""

    NIC = '[[nic]]\nname = "{}"\nnetwork = "blue"\n'

    def test_second_network_of_a_name(self, tmp_path: Path) -> None:
        assert problems(tmp_path, BLUE + BLUE) == [
            "network[1].name: there is a network 'blue' already"
        ]

    def test_unknown_network(self, tmp_path: Path) -> None:
        assert problems(tmp_path, self.NIC.format("vm1")) == [
            "nic[0].network: there is no network 'blue'"
        ]

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ('mac_address = "52:54:00:12:34:56"', "mac_address"),
            ('ipv4_address = "10.0.0.5"', "ipv4_address"),
            ('socket_path = "x.sock"', "socket_path"),
            ('routed_ipv4_prefixes = ["10.1.0.0/16"]', "routed_ipv4_prefixes[0]"),
        ],
    )
    def test_what_only_one_may_have(self, tmp_path: Path, line: str, key: str) -> None:
        text = BLUE + "".join(f"{self.NIC.format(name)}{line}\n" for name in ("vm1", "vm2"))
        [problem] = problems(tmp_path, text)
        assert problem.startswith(f"nic[1].{key}: ")
        assert problem.endswith("NIC 'vm1'")

    def test_second_nic_of_a_name(self, tmp_path: Path) -> None:
        assert problems(tmp_path, BLUE + self.NIC.format("a") * 2) == [
            "nic[1].name: there is a NIC 'a' already"
        ]

    def test_given_socket_path_is_another_ones_default(self, tmp_path: Path) -> None:
        text = BLUE + self.NIC.format("a") + self.NIC.format("b") + 'socket_path = "a.sock"\n'
        assert problems(tmp_path, text) == [
            "nic[1].socket_path: /run/sockets/a.sock is taken by NIC 'a'"
        ]


class TestFile:
    def test_syntax(self, tmp_path: Path) -> None:
        [problem] = problems(tmp_path, "[[network]]\nname = \n")
        assert problem == "Invalid value (at line 2, column 8)"

    def test_not_utf8(self, tmp_path: Path) -> None:
        assert problems(tmp_path, b"# \xff") == ["not UTF-8 text (at byte 2)"]

    def test_nested_without_end(self, tmp_path: Path) -> None:
        assert problems(tmp_path, "x = " + "[" * 100_000) == ["nested too deeply"]

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.toml", socket_dir=SOCKETS)

    @given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_bytes(self, tmp_path: Path, text: bytes) -> None:
        # Good or one exception, never another.
        with contextlib.suppress(ConfigFileError):
            load(write(tmp_path, text), socket_dir=SOCKETS)

    VALUES = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    )

    @given(st.sampled_from([*"abx", "name", "network", "mtu", "ipv4_address"]), VALUES)
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_value(self, tmp_path: Path, key: str, value: object) -> None:
        written = repr(value).replace("None", "1979-05-27").lower()
        text = f"{BLUE}[[nic]]\n{key} = {written}\n"
        for line in problems(tmp_path, text):
            assert line.isprintable()


def test_the_example_is_good() -> None:
    path = Path(__file__).parents[2] / "examples" / "mvirt-net.toml"
    config = load(path, socket_dir=SOCKETS)
    assert config.networks
    assert config.nics


class TestSocketAccess:
    NICS = BLUE + "".join(
        f'[[nic]]\nname = "{name}"\nnetwork = "blue"\n' for name in ("vm1", "vm2")
    )

    def access(
        self, tmp_path: Path, text: str, option: SocketAccess, fallback: SocketAccess
    ) -> list[tuple[str, int | None, int | None]]:
        """Mode, owner and group of each NIC."""
        config = load(write(tmp_path, text), SOCKETS, option, fallback)
        return [(str(nic.socket_mode), nic.socket_owner, nic.socket_group) for nic in config.nics]

    def test_precedence(self, tmp_path: Path) -> None:
        """A NIC's own key, then the option, then the file's default, then what is left."""
        text = '[defaults]\nsocket_mode = "0600"\nsocket_owner = 1\n' + self.NICS
        option = SocketAccess(socket_owner=2)
        fallback = SocketAccess(socket_group=3, socket_owner=3)
        assert self.access(tmp_path, text + "socket_owner = 4\n", option, fallback) == [
            ("0600", 2, 3),
            ("0600", 4, 3),
        ]

    def test_the_lists_go_together(self, tmp_path: Path) -> None:
        text = "[defaults]\nallow_uid = [1]\nallow_gid = [2]\n" + self.NICS + "allow_gid = [3]\n"
        first, second = load_text(tmp_path, text).nics
        assert (first.allow_uid, first.allow_gid) == (frozenset({1}), frozenset({2}))
        assert (second.allow_uid, second.allow_gid) == (None, frozenset({3}))

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("socket_mode = 660", "socket_mode: 660 is not a mode like '0660'"),
            ("socket_mode = 0o660", "socket_mode: 432 is not a mode like '0660'"),
            ('socket_mode = "1660"', "socket_mode: '1660' is not a mode like '0660'"),
            ('socket_mode = "u=rw"', "socket_mode: 'u=rw' is not a mode like '0660'"),
            ('socket_group = "none-such"', "socket_group: there is no group 'none-such'"),
            ("socket_owner = -1", "socket_owner: -1 is not the number of a user"),
            ("socket_owner = true", "socket_owner: True is neither the name nor the number of a"),
            ("allow_uid = []", "allow_uid: an empty list lets nobody in"),
            ('allow_gid = "root"', "allow_gid: 'root' is not a list"),
            ('allow_gid = ["none-such"]', "allow_gid: there is no group 'none-such'"),
        ],
    )
    @pytest.mark.parametrize("table", ["defaults", "nic[1]"])
    def test_wrong(self, table: str, line: str, expected: str, tmp_path: Path) -> None:
        defaults = f"[defaults]\n{line}\n" if table == "defaults" else ""
        nic = "" if table == "defaults" else line
        [problem] = problems(tmp_path, defaults + self.NICS + nic)
        assert problem.startswith(f"{table}.{expected}")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('[defaults]\nsocket_path = "x"\n', "defaults.socket_path: unknown key"),
            ("[[defaults]]\n", "defaults: not a table"),
            ("defaults = 1\n", "defaults: not a table"),
        ],
    )
    def test_wrong_defaults(self, text: str, expected: str, tmp_path: Path) -> None:
        [problem] = problems(tmp_path, text)
        assert problem.startswith(expected)
