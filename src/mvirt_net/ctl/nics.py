"""The verbs about NICs."""

from __future__ import annotations

from typing import Any

import click

from .networks import replacement
from .session import NETWORKS, NICS, Session, completing, ctl, failures, flags, given
from .tables import Column, fields, render, terminal_width
from .text import printable

_FLAGS = {
    "name": "NAME",
    "id": "--id",
    "network": "--network",
    "mac_address": "--mac-addr",
    "ipv4_address": "--ipv4-address",
    "ipv6_address": "--ipv6-address",
    "routed_ipv4_prefixes": "--routed-ipv4-prefix",
    "routed_ipv6_prefixes": "--routed-ipv6-prefix",
}
"""The flag that gives a field."""

_COLUMNS = (
    Column("NAME"),
    Column("NETWORK"),
    Column("STATE"),
    Column("MAC"),
    Column("IPV4"),
    Column("IPV6"),
    Column("SOCKET", keep_end=True),
)

nic_argument = click.argument("nic", shell_complete=completing(NICS))
"""An id or a name."""

_ipv4_prefix_option = click.option(
    "--routed-ipv4-prefix",
    multiple=True,
    metavar="PREFIX",
    help="Routed to the guest besides its address, repeatable.",
)
_ipv6_prefix_option = click.option(
    "--routed-ipv6-prefix",
    multiple=True,
    metavar="PREFIX",
    help="Likewise, and delegated by DHCPv6.",
)


@ctl.group("nic")
def group() -> None:
    """NICs: create, list, show, update, delete."""


@group.command("list")
@click.option(
    "--network", metavar="NETWORK", shell_complete=completing(NETWORKS), help="Only those in it."
)
def list_(network: str | None) -> None:
    """List all NICs, or those of a network."""
    session = Session.current()
    with session.naming(NETWORKS, network or ""):
        answer = session.client.get(NICS, **given(network=network))
    rows = [
        (
            record["name"],
            record["network"],
            record["state"],
            record["mac_address"],
            record["ipv4_address"],
            record["ipv6_address"],
            record["socket_path"],
        )
        for record in answer[NICS]
    ]
    lines = render(_COLUMNS, rows, terminal_width())
    session.answer(answer, [*lines, *failures("NIC", answer[NICS])])


@group.command()
@nic_argument
def show(nic: str) -> None:
    """Show all of a NIC, given by name or id."""
    session = Session.current()
    with session.naming(NICS, nic):
        record = session.client.get(NICS, nic)
    session.answer(record, fields(record.items()))


@group.command()
@click.argument("name", required=False)
@click.option(
    "--network",
    required=True,
    metavar="NETWORK",
    shell_complete=completing(NETWORKS),
    help="Where it belongs, by name or id.",
)
@click.option("--mac-addr", "mac_address", metavar="MAC", help="By default derived from the name.")
@click.option("--ipv4-address", metavar="IP", help="By default the next free one.")
@click.option("--ipv6-address", metavar="IP", help="By default the next free one.")
@_ipv4_prefix_option
@_ipv6_prefix_option
@click.option("--id", metavar="ID", help="One of your own. By default one is made.")
def create(
    network: str,
    routed_ipv4_prefix: tuple[str, ...],
    routed_ipv6_prefix: tuple[str, ...],
    **options: Any,
) -> None:
    """Create a NIC and its socket. Without NAME it gets one."""
    session = Session.current()
    body = given(
        network=network,
        routed_ipv4_prefixes=routed_ipv4_prefix,
        routed_ipv6_prefixes=routed_ipv6_prefix,
        **options,
    )
    with session.naming(NETWORKS, network), flags(_FLAGS):
        record = session.client.post(NICS, body=body)
    what = ("mac_address", "ipv4_address", "ipv6_address", "socket_path")
    shown = ((name, record[name]) for name in what)
    session.answer(record, [f"NIC {printable(record['name'])} created", *fields(shown)])


@group.command()
@nic_argument
@_ipv4_prefix_option
@click.option("--no-routed-ipv4-prefixes", is_flag=True, help="None any more.")
@_ipv6_prefix_option
@click.option("--no-routed-ipv6-prefixes", is_flag=True, help="None any more.")
def update(
    nic: str,
    routed_ipv4_prefix: tuple[str, ...],
    no_routed_ipv4_prefixes: bool,
    routed_ipv6_prefix: tuple[str, ...],
    no_routed_ipv6_prefixes: bool,
) -> None:
    """Replace the prefixes that are routed to a NIC, under traffic; what is not given stays."""
    body = {
        **replacement(
            "routed_ipv4_prefixes",
            "--routed-ipv4-prefix",
            routed_ipv4_prefix,
            "--no-routed-ipv4-prefixes",
            no_routed_ipv4_prefixes,
        ),
        **replacement(
            "routed_ipv6_prefixes",
            "--routed-ipv6-prefix",
            routed_ipv6_prefix,
            "--no-routed-ipv6-prefixes",
            no_routed_ipv6_prefixes,
        ),
    }
    if not body:
        raise click.UsageError("nothing to update: give prefixes, or that there are to be none")
    session = Session.current()
    with session.naming(NICS, nic), flags(_FLAGS):
        record = session.client.patch(NICS, nic, body=body)
    session.answer(record, [f"NIC {printable(record['name'])} updated"])


@group.command()
@nic_argument
def delete(nic: str) -> None:
    """Delete a NIC; its guest is cut off."""
    session = Session.current()
    with session.naming(NICS, nic):
        session.client.delete(NICS, nic)
    session.answer({"deleted": nic}, [f"NIC {nic} deleted"])
