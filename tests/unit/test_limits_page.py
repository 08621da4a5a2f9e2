"""The page of limits says what the code says."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import mvirt_net

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "limits.md"
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "ms": 1e-3}
"""Those that are not the unit of the constant itself."""

ROWS = re.findall(r"^\| (.+?) \| (.+?) \|.*\| `([\w.]+)` \|$", PAGE.read_text(), re.MULTILINE)


def constant(name: str) -> object:
    """What is called so below `mvirt_net`, of a C enumeration by the extension's `lib`."""
    found = re.fullmatch(r"(.+?)\.((?:lib\.)?[A-Z0-9_]+)", name, re.ASCII)
    assert found is not None, name
    value: object = import_module(f"mvirt_net.{found[1]}")
    for part in found[2].split("."):
        value = getattr(value, part)
    return value


def value_of(name: str) -> float:
    """The constant that the page calls so."""
    value = constant(name)
    assert isinstance(value, int | float)
    return value


def test_there_are_rows() -> None:
    assert len(ROWS) > 25


@pytest.mark.parametrize(("what", "said", "name"), ROWS, ids=[name for _, _, name in ROWS])
def test_is_what_the_code_has(what: str, said: str, name: str) -> None:
    numbers = {
        float(number.replace(",", "")) * UNITS.get(unit, 1)
        for number, unit in re.findall(r"(\d[\d,.]*)(?: ([A-Za-z]+))?", said)
    }
    assert value_of(name) in numbers, what


def test_events_of_embedding_programs() -> None:
    [(said, name)] = re.findall(r"falls ([\d,]+) events behind.*\n.*`([\w.]+)`", PAGE.read_text())
    assert value_of(name) == int(said.replace(",", ""))


LIMITING = re.compile(
    r"(^|_)(MAX|MOST|LIMIT|TIMEOUT|BACKLOG|ROOM|BURST|RATE|IDLE|PATIENCE|LOGGED|EVENTS|SAMPLES|LINGER"
    r"|PAUSE)(_|$)"
)
"""What the name of a constant has that bounds something."""

NO_ROWS = {
    "accounts._MAX_ID": "of the kernel",
    "api.connections.ACCEPT_PAUSE": "as nic.ACCEPT_PAUSE",
    "api.exchange.ENDING_TIMEOUT": "of a library, which nobody else sees",
    "cli.options.MAX_FD": "of the kernel",
    "dataplane.dhcpv4.MIN_DATAGRAM_LIMIT": "what a client must take",
    "dataplane.dhcpv6_messages.MAX_REQUEST": "as dataplane.dhcpv4.MAX_REQUEST_SIZE",
    "dataplane.heat.MOST_ATTEMPTS": "a factor",
    "dataplane.lookout.RETRY_PAUSE": "as api.connections.ACCEPT_PAUSE",
    "dataplane.lookout._EVENTS": "flags of epoll",
    "dataplane.ndp.HOP_LIMIT": "a value of a header",
    "dataplane.ndp.MAX_SOLICITED_DELAY": "a delay that RFC 4861 asks for",
    "dataplane.ndp._ADVERTISED_HOP_LIMIT": "a value that guests are told",
    "ffi.port.MAX_FRAME": "the same as MV_MAX_FRAME",
    "ffi.memory.MAX_REGIONS": "as vhost_user.session.MAX_MEM_SLOTS",
    "ffi.capture.MAX_TAPS": "the same as MV_MAX_TAPS",
    "vhost_user.checks.MAX_VRING_SIZE": "as MV_MAX_RING_SIZE",
    "vhost_user.checks._MAX_PACKED_BASE": "a value of a message",
    "vhost_user.checks._MAX_SPLIT_BASE": "a value of a message",
}
"""Those that have no row, and why."""


def limiting_constants() -> set[str]:
    """Numbers of modules that are called so, by their names below `mvirt_net`."""
    source = Path(mvirt_net.__file__).parent
    found = set()
    for path in source.rglob("*.py"):
        module = ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            for target in targets:
                for name in ast.walk(target) if target is not None else ():
                    if isinstance(name, ast.Name) and LIMITING.search(name.id):
                        found.add(f"{module}.{name.id}")
    return {name for name in found if isinstance(constant(name), int | float)}


def test_every_limit_has_a_row() -> None:
    rows = {name for _what, _said, name in ROWS} | {"switch.EVENT_BACKLOG"}
    constants = limiting_constants()
    assert constants - rows - NO_ROWS.keys() == set(), "neither on the page nor in NO_ROWS"
    assert NO_ROWS.keys() <= constants - rows
