"""The commands: what each takes and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .._version import __version__
from ..endpoints import DEFAULT_GRPC
from ..netmask import Netmask
from ..places import CONTROL_SOCKET
from .options import MAX_FD, PATH, run_options, socket_dir_option


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 stopped by a signal, 1 failure, 2 usage, 65 bad state, 69 socket or"
    " state in use, 77 no permission, 78 bad configuration.",
)
@click.option("-s", "--socket-path", type=PATH, metavar="PATH", help="Where the frontend connects.")
@click.option(
    "-F",
    "--fd",
    type=click.IntRange(0, MAX_FD),
    metavar="FDNUM",
    help="An inherited socket, listening or connected, instead of --socket-path.",
)
@click.option(
    "--print-capabilities", is_flag=True, help="Print them as JSON and exit, whatever else is said."
)
@click.option(
    "-a",
    "--address",
    metavar="IPV4[/LEN]",
    help="The guest's address; LEN counts for --netmask subnet (default 24).",
)
@click.option(
    "-M", "--mac-addr", metavar="MAC", help="The guest's MAC address; derived if not given."
)
@click.option("-m", "--mtu", type=int, default=1500, show_default=True, metavar="BYTES")
@click.option(
    "-D",
    "--dns",
    multiple=True,
    metavar="IP",
    help="DNS server for the guest, repeatable. By default 1.1.1.1 and 8.8.8.8.",
)
@click.option("--ntp", multiple=True, metavar="IP", help="NTP server for the guest, repeatable.")
@click.option(
    "--netmask",
    type=click.Choice([choice.value for choice in Netmask]),
    default=Netmask.HOST.value,
    show_default=True,
    help="The subnet mask that DHCP gives: /32, or the subnet's own.",
)
@click.option("-1", "--one-off", is_flag=True, help="Exit when the first frontend disconnects.")
@run_options
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Layer-3 networking for virtual machines over vhost-user.

    Without COMMAND, serve a single NIC with a network of its own:

    \b
      mvirt-net --socket-path /run/vm1.sock --address 10.0.0.5
    """
    if ctx.invoked_subcommand is None:
        from .single import serve_single

        serve_single(ctx, **options)
    elif flag := _first_given(ctx):
        raise click.UsageError(f"{flag} cannot stand before '{ctx.invoked_subcommand}'", ctx)


def _first_given(ctx: click.Context) -> str | None:
    """The first option that the user gave, in its long form."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if source is click.core.ParameterSource.COMMANDLINE:
            return max(parameter.opts, key=len)
    return None


@command.command("serve")
@click.option(
    "-c", "--config", "path", type=PATH, required=True, metavar="FILE", help="A TOML file."
)
@socket_dir_option
@click.option(
    "--grpc",
    multiple=True,
    is_flag=False,
    flag_value=DEFAULT_GRPC,
    metavar="ADDRESS",
    help="Be controlled by gRPC there: [::1]:50054 (if no ADDRESS) or unix:PATH; repeatable.",
)
@click.option(
    "--http",
    multiple=True,
    is_flag=False,
    flag_value=CONTROL_SOCKET,
    metavar="ADDRESS",
    help="Be controlled by JSON over HTTP there: unix:PATH or 127.0.0.1:8080; repeatable. Without"
    " ADDRESS at control.sock in the folder of --socket-dir, where 'mvirt-net ctl' looks for it.",
)
@click.option(
    "--capture-dir",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    metavar="DIR",
    help="Where captures are written that are asked for over HTTP.  [default: nowhere]",
)
@click.option(
    "--state",
    type=PATH,
    metavar="FILE",
    help="Where to keep what is created by --grpc or --http. By default state.db in"
    " $STATE_DIRECTORY, /var/lib/mvirt-net for root, $XDG_STATE_HOME/mvirt-net for others.",
)
@click.option("--no-state", is_flag=True, help="Forget it at the end, whatever the file says.")
@run_options
@click.pass_context
def serve_command(ctx: click.Context, /, **options: Any) -> None:
    """Serve the networks and NICs of a configuration file."""
    from .serve import serve

    serve(ctx, **options)


@command.command("check-config")
@click.argument("path", type=PATH, metavar="FILE")
@socket_dir_option
def check_command(path: Path, socket_dir: Path | None) -> None:
    """Check a configuration file and say all that is wrong with it."""
    from .check import check

    check(path, socket_dir)


@command.command("trace")
@click.option(
    "-c", "--config", "path", type=PATH, required=True, metavar="FILE", help="A TOML file."
)
@socket_dir_option
@click.option("--from", "nic", required=True, metavar="NIC", help="Whose guest sends the packet.")
@click.option("--packet", metavar="HEX", help="A whole Ethernet frame, instead of what follows.")
@click.option("--src", metavar="IP", help="Its source. By default the NIC's address.")
@click.option("--dst", metavar="IP", help="Its destination.")
@click.option(
    "--proto", type=click.Choice(["udp", "tcp", "icmp"]), default="udp", show_default=True
)
@click.option("--sport", type=click.IntRange(0, 65535), default=49152, show_default=True)
@click.option("--dport", type=click.IntRange(0, 65535), default=9, show_default=True)
@click.option("--ttl", type=click.IntRange(0, 255), default=64, show_default=True)
@click.option(
    "--size", type=click.IntRange(0, 65000), default=0, show_default=True, help="Of its payload."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def trace_command(ctx: click.Context, /, **options: Any) -> None:
    """Say where a packet would go, and why, without a daemon or a guest."""
    from .trace import trace_packet

    trace_packet(ctx, **options)
