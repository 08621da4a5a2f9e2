"""The verbs about networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from ..errors import VerbRefused
from .session import NETWORKS, Session, completing, ctl, failures, flags, given
from .tables import Column, fields, render, terminal_width
from .text import printable

_FLAGS = {
    "name": "NAME",
    "id": "--id",
    "ipv4_subnet": "--ipv4-subnet",
    "ipv6_prefix": "--ipv6-prefix",
    "ipv4_netmask": "--netmask",
    "dns_servers": "--dns",
    "ntp_servers": "--ntp",
    "mtu": "--mtu",
    "is_public": "--public",
}
"""The flag that gives a field."""

_COLUMNS = (
    Column("NAME"),
    Column("IPV4"),
    Column("IPV6"),
    Column("MTU", right=True),
    Column("NICS", right=True),
    Column("DNS"),
    Column("NTP"),
)

_CONFLICT = 409

network_argument = click.argument("network", shell_complete=completing(NETWORKS))
"""An id or a name."""

_dns_option = click.option(
    "--dns", multiple=True, metavar="IP", help="DNS server for the guests, repeatable."
)
_ntp_option = click.option(
    "--ntp", multiple=True, metavar="IP", help="NTP server for the guests, repeatable."
)


@ctl.group("network")
def group() -> None:
    """Networks: create, list, show, update, delete."""


@group.command("list")
def list_() -> None:
    """List all networks."""
    session = Session.current()
    answer = session.client.get(NETWORKS)
    rows = [
        (
            record["name"],
            record["ipv4_subnet"],
            record["ipv6_prefix"],
            record["mtu"],
            record["nic_count"],
            record["dns_servers"],
            record["ntp_servers"],
        )
        for record in answer[NETWORKS]
    ]
    lines = render(_COLUMNS, rows, terminal_width())
    session.answer(answer, [*lines, *failures("network", answer[NETWORKS])])


@group.command()
@network_argument
def show(network: str) -> None:
    """Show all of a network, given by name or id."""
    session = Session.current()
    with session.naming(NETWORKS, network):
        record = session.client.get(NETWORKS, network)
    session.answer(record, fields(record.items()))


@group.command()
@click.argument("name")
@click.option("--ipv4-subnet", metavar="SUBNET", help="Addresses of its NICs: 10.0.0.0/24.")
@click.option("--ipv6-prefix", metavar="PREFIX", help="Addresses of its NICs: fd00::/64.")
@click.option(
    "--netmask",
    "ipv4_netmask",
    type=click.Choice(["host", "subnet"]),
    help="The subnet mask that DHCP gives: /32, or the subnet's own.  [default: host]",
)
@click.option("--mtu", type=int, metavar="BYTES", help="Told to the guests.  [default: 1500]")
@_dns_option
@_ntp_option
@click.option(
    "--public",
    "is_public",
    is_flag=True,
    default=None,
    help="Its addresses mean the same outside; those of public networks may not overlap.",
)
@click.option("--id", metavar="ID", help="One of your own. By default one is made.")
def create(name: str, dns: tuple[str, ...], ntp: tuple[str, ...], **options: Any) -> None:
    """Create a network."""
    session = Session.current()
    body = given(name=name, dns_servers=dns, ntp_servers=ntp, **options)
    with flags(_FLAGS):
        record = session.client.post(NETWORKS, body=body)
    session.answer(record, [f"network {printable(record['name'])} created"])


@group.command()
@network_argument
@_dns_option
@click.option("--no-dns", is_flag=True, help="Those that the daemon names by default.")
@_ntp_option
@click.option("--no-ntp", is_flag=True, help="None.")
def update(
    network: str, dns: tuple[str, ...], no_dns: bool, ntp: tuple[str, ...], no_ntp: bool
) -> None:
    """Replace the servers that DHCP names; what is not given stays."""
    body = {
        **replacement("dns_servers", "--dns", dns, "--no-dns", no_dns),
        **replacement("ntp_servers", "--ntp", ntp, "--no-ntp", no_ntp),
    }
    if not body:
        raise click.UsageError("nothing to update: give --dns, --no-dns, --ntp or --no-ntp")
    session = Session.current()
    with session.naming(NETWORKS, network), flags(_FLAGS):
        record = session.client.patch(NETWORKS, network, body=body)
    session.answer(record, [f"network {printable(record['name'])} updated"])


@group.command()
@network_argument
@click.option("--force", is_flag=True, help="Its NICs, too; their guests are cut off.")
def delete(network: str, force: bool) -> None:
    """Delete a network, with --force also one that has NICs."""
    session = Session.current()
    with session.naming(NETWORKS, network), _explained(session, network, force):
        answer = session.client.delete(NETWORKS, network, force=str(force).lower())
    count = answer["nics_deleted"]
    more = f", and its NICs ({count})" if count else ""
    session.answer(
        {"deleted": network, "nics_deleted": count}, [f"network {network} deleted{more}"]
    )


@contextlib.contextmanager
def _explained(session: Session, network: str, force: bool) -> Iterator[None]:
    """When the network cannot be deleted for its NICs, say what to do."""
    try:
        yield
    except VerbRefused as error:
        if error.status != _CONFLICT or force:
            raise
        record = session.client.get(NETWORKS, network)
        if record.get("in_file") or not record["nic_count"]:
            raise
        raise VerbRefused(
            f"network {network!r} has NICs ({record['nic_count']}): delete them first"
            f" ('mvirt-net ctl nic list --network {network}'), or all with --force",
            error.status,
        ) from error


def replacement(
    field: str, flag: str, values: tuple[str, ...], no_flag: str, none: bool
) -> dict[str, list[str]]:
    """What replaces a list: the values of one flag, nothing for the other, or no replacement.

    Raises:
        click.UsageError: both flags are there.
    """
    if values and none:
        raise click.UsageError(f"{flag} and {no_flag} exclude each other")
    return {field: list(values)} if values or none else {}
