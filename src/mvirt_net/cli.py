"""The command ``mvirt-net``.

Two ways to run it, and one to check a file. ``mvirt-net --socket-path …`` serves a single NIC and
keeps to QEMU's conventions for such programs (docs/interop/vhost-user.rst, "Backend program
conventions"); ``mvirt-net serve`` serves what a configuration file lists. Logs go to stderr; stdout
has only what was asked for. Every failure that a user can do something about is one line and has
one of the codes in `ExitCode`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Interface, ip_address
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from . import runner, trace
from ._version import __version__
from .accounts import Account
from .attach import attach_lines
from .capture import CaptureSpec
from .config import ConfigFileError, load
from .ctl import ctl
from .endpoints import DEFAULT_GRPC
from .errors import ConfigError
from .exits import PROGRAM, ExitCode, report
from .ffi import MAX_FRAME
from .inherited import FIRST_ACTIVATED_FD, match_activated, take_activated, take_socket
from .logsetup import LogFormat, set_up_logging
from .model import DaemonConfig, Netmask, NetworkSpec, NicSpec, PollingSpec, SocketAccess
from .places import CONTROL_SOCKET, daemon_socket_dir
from .registry import plan
from .stderr import use_lossy_stderr
from .switch import Switch

_F = TypeVar("_F", bound=Callable[..., Any])

CAPABILITIES = {"type": "net"}
"""A VHostUserBackendCapabilities of QEMU's ``vhost-user.json``."""

MIN_FRAME = 14
"""Bytes of an Ethernet header."""

SINGLE_NETWORK = "private"
"""The name of the network of a single NIC."""


def run() -> int:
    """The whole process: `main`, for whom standard error is always there."""
    use_lossy_stderr()
    return main()


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        args: without the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if "--print-capabilities" in arguments:
        # "Other options and arguments should be ignored", wrong ones included.
        click.echo(json.dumps(CAPABILITIES))
        return ExitCode.OK
    set_up_logging(logging.INFO, None)
    try:
        # What comes back is the exit code of --help and --version; commands return nothing.
        return command.main(arguments, prog_name=PROGRAM, standalone_mode=False) or ExitCode.OK
    except Exception as error:
        return report(error)


# Options of everything that runs.


def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """One decorator from several, which then stand in this order in the help."""

    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


# Without `readable`, click looks ahead, and calls a file that may not be read a wrong usage.
_PATH = click.Path(readable=False, path_type=Path)
_MAX_FD = 2**31 - 1


def _parse_account(_ctx: object, _parameter: object, text: str | None) -> Account | None:
    """A click callback: the value of --runas."""
    try:
        return None if text is None else Account.parse(text)
    except ValueError as error:
        raise click.UsageError(f"--runas: {error}") from error


def _parse_cpus(_ctx: object, _parameter: object, text: str | None) -> tuple[int, ...] | None:
    """A click callback: the value of --worker-cpus, a list as in ``Cpus_allowed_list``."""
    if text is None:
        return None
    cpus: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise click.UsageError(f"--worker-cpus: {text!r} is not a list like 2,4-6")
        cpus += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(cpus)


_run_options = _options(
    click.option(
        "--socket-mode",
        metavar="MODE",
        help="Permissions of the socket files, octal.  [default: 0660]",
    ),
    click.option(
        "--socket-owner",
        metavar="USER",
        help="Owner of the socket files. By default who the daemon runs as.",
    ),
    click.option(
        "--socket-group",
        metavar="GROUP",
        help="Group of the socket files. By default the daemon's own.",
    ),
    click.option(
        "--allow-uid",
        multiple=True,
        metavar="USER",
        help="Let only processes of this user, or of an --allow-gid, connect; repeatable.",
    ),
    click.option(
        "--allow-gid",
        multiple=True,
        metavar="GROUP",
        help="Let only processes in this group, or of an --allow-uid, connect; repeatable.",
    ),
    click.option(
        "--workers",
        type=int,
        metavar="N",
        help="Threads that poll busy TX rings; 0: all in the main thread.  [default: 1]",
    ),
    click.option(
        "--busy-poll",
        type=int,
        metavar="MICROSECONDS",
        help="How long they go on polling an empty ring; 0: never.  [default: 50]",
    ),
    click.option(
        "--worker-cpus",
        callback=_parse_cpus,
        metavar="LIST",
        help="Processors that they stay on, one each: 2,4-6. By default any.",
    ),
    click.option(
        "--runas",
        metavar="USER[:GROUP]",
        callback=_parse_account,
        help="Started by root, go on as this user when the sockets are there.",
    ),
    click.option(
        "--no-sandbox",
        is_flag=True,
        help="Do not give up (by Landlock) what is not needed of files and network.",
    ),
    click.option(
        "-p",
        "--pcap",
        type=_PATH,
        metavar="FILE",
        help="Write what all guests send and receive to this pcapng file; -: standard output.",
    ),
    click.option(
        "--pcap-snaplen",
        type=click.IntRange(min=1),
        metavar="BYTES",
        help="Of each frame at most this much.  [default: all of it]",
    ),
    click.option(
        "--pcap-limit",
        type=click.IntRange(min=1),
        metavar="BYTES",
        help="End the capture when its file would become larger.  [default: never]",
    ),
    click.option("-P", "--pid", "pid_path", type=_PATH, metavar="FILE", help="Keep the pid here."),
    click.option(
        "--ready-fd",
        type=click.IntRange(3, _MAX_FD),
        metavar="N",
        help="Write a line to this descriptor and close it when frontends can connect.",
    ),
    click.option(
        "--print-attach/--no-print-attach",
        default=None,
        help="Print the command lines that attach a VM, by default on a terminal.",
    ),
    click.option(
        "--log-format",
        type=click.Choice([choice.value for choice in LogFormat]),
        help="By default console on a terminal, else logfmt.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Log only warnings and errors."),
    click.option("-d", "--debug", is_flag=True, help="Log more."),
)

_socket_dir_option = click.option(
    "--socket-dir",
    type=_PATH,
    metavar="DIR",
    help="Folder for sockets without an absolute path, made if absent. By default"
    " $RUNTIME_DIRECTORY, /run/mvirt-net for root, $XDG_RUNTIME_DIR/mvirt-net for others.",
)


# The command without a subcommand: a single NIC.


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 stopped by a signal, 1 failure, 2 usage, 65 bad state, 69 socket or"
    " state in use, 77 no permission, 78 bad configuration.",
)
@click.option(
    "-s", "--socket-path", type=_PATH, metavar="PATH", help="Where the frontend connects."
)
@click.option(
    "-F",
    "--fd",
    type=click.IntRange(0, _MAX_FD),
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
@_run_options
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Layer-3 networking for virtual machines over vhost-user.

    Without COMMAND, serve a single NIC with a network of its own:

    \b
      mvirt-net --socket-path /run/vm1.sock --address 10.0.0.5
    """
    if ctx.invoked_subcommand is None:
        _serve_single(ctx, **options)
    elif flag := _first_given(ctx):
        raise click.UsageError(f"{flag} cannot stand before '{ctx.invoked_subcommand}'", ctx)


def _first_given(ctx: click.Context) -> str | None:
    """The first option that the user gave, in its long form."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if source is click.core.ParameterSource.COMMANDLINE:
            return max(parameter.opts, key=len)
    return None


def _serve_single(
    ctx: click.Context,
    *,
    socket_path: Path | None,
    fd: int | None,
    print_capabilities: bool,
    address: str | None,
    one_off: bool,
    **options: Any,
) -> None:
    del print_capabilities  # `main` has seen to it
    if (socket_path is None) == (fd is None):
        raise click.UsageError("exactly one of --socket-path and --fd is needed", ctx)
    if address is None:
        raise click.UsageError("--address is needed", ctx)
    if fd is not None and fd == options["ready_fd"]:
        raise click.UsageError("--fd and --ready-fd are the same descriptor", ctx)
    access = _socket_access(ctx, options)
    if socket_path is not None:
        access = access.with_defaults(_owned_by(options["runas"]))
    config = _single_config(
        ctx,
        socket_path=socket_path,
        address=address,
        access=access,
        **{key: options.pop(key) for key in ("mac_addr", "mtu", "dns", "ntp", "netmask")},
    )
    try:
        sock = None if fd is None else take_socket(fd)
    except ValueError as error:
        raise click.UsageError(f"--fd: {fd}: {error}", ctx) from error
    config = _with_polling(ctx, config, _polling_flags(options))
    _run(ctx, config, one_off=one_off, sock=sock, **options)


_FLAGS = {
    "socket_path": "--socket-path",
    "ipv4_address": "--address",
    "ipv4_subnet": "--address",
    "ipv4_netmask": "--netmask",
    "mac_address": "--mac-addr",
    "mtu": "--mtu",
    "dns_servers": "--dns",
    "ntp_servers": "--ntp",
    "socket_mode": "--socket-mode",
    "socket_owner": "--socket-owner",
    "socket_group": "--socket-group",
    "allow_uid": "--allow-uid",
    "allow_gid": "--allow-gid",
    "workers": "--workers",
    "busy_poll": "--busy-poll",
    "worker_cpus": "--worker-cpus",
    "grpc": "--grpc",
    "http": "--http",
}
"""The flag that gives a field of a specification."""


def _usage_error(ctx: click.Context, error: ConfigError) -> click.UsageError:
    """A wrong value, said of its flag."""
    field = error.key.rpartition(".")[2]
    return click.UsageError(f"{_FLAGS[field]}: {error.problem}", ctx)


def _socket_access(ctx: click.Context, options: dict[str, Any]) -> SocketAccess:
    """Take what the flags say of the sockets out of `options`. Raises click.UsageError."""
    given = {field.name: options.pop(field.name) for field in attrs.fields(SocketAccess)}
    try:
        # A repeatable flag that was not given is an empty list.
        return SocketAccess(
            **{name: None if value == () else value for name, value in given.items()}
        )
    except ConfigError as error:
        raise _usage_error(ctx, error) from error


def _polling_flags(options: dict[str, Any]) -> dict[str, Any]:
    """Take what the flags say of polling out of `options`."""
    given = {field.name: options.pop(field.name) for field in attrs.fields(PollingSpec)}
    return {name: value for name, value in given.items() if value is not None}


def _with_polling(
    ctx: click.Context, config: DaemonConfig, flags: Mapping[str, Any]
) -> DaemonConfig:
    """What the flags say of polling counts. Raises click.UsageError."""
    try:
        return attrs.evolve(config, polling=attrs.evolve(config.polling, **flags))
    except ConfigError as error:
        raise _usage_error(ctx, error) from error


def _with_api(ctx: click.Context, config: DaemonConfig, **given: Sequence[str]) -> DaemonConfig:
    """What the flags say of either interface counts for it. Raises click.UsageError."""
    said = {name: list(values) for name, values in given.items() if values}
    try:
        return attrs.evolve(config, api=attrs.evolve(config.api, **said))
    except ConfigError as error:
        raise _usage_error(ctx, error) from error


def _with_state(config: DaemonConfig, path: Path | None, *, no_state: bool) -> DaemonConfig:
    """What the flags say counts, then the file; a daemon that nobody controls needs no state."""
    state = config.state
    if no_state:
        state = False
    elif path is not None:
        state = path.absolute()
    elif state is None and config.api.is_wanted:
        state = _default_state()
    return attrs.evolve(config, state=state)


def _owned_by(account: Account | None) -> SocketAccess:
    """Sockets of the account that we will run as, as if we had made them when we did."""
    if account is None:
        return SocketAccess()
    return SocketAccess(socket_owner=account.uid, socket_group=account.gid)


def _single_config(
    ctx: click.Context,
    *,
    socket_path: Path | None,
    address: str,
    access: SocketAccess,
    mac_addr: str | None,
    mtu: int,
    dns: Sequence[str],
    ntp: Sequence[str],
    netmask: str,
) -> DaemonConfig:
    """The configuration that the flags stand for. Raises click.UsageError."""
    try:
        interface = _parse_address(address, netmask)
        network = NetworkSpec(
            name=SINGLE_NETWORK,
            ipv4_subnet=interface.network,
            ipv4_netmask=netmask,
            dns_servers=dns,
            ntp_servers=ntp,
            mtu=mtu,
        )
        nic = NicSpec(
            name=_nic_name(socket_path),
            network=SINGLE_NETWORK,
            mac_address=mac_addr,
            ipv4_address=interface.ip,
            socket_path=socket_path,
        ).with_defaults(access)
        planned = plan(DaemonConfig((network,), (nic,)))
        for problem in planned.problems:
            raise problem
    except ConfigError as error:
        raise _usage_error(ctx, error) from error
    return planned.config


def _parse_address(text: str, netmask: str) -> IPv4Interface:
    """``10.0.0.5`` or ``10.0.0.5/24``. Raises ConfigError."""
    if "/" not in text:
        text += "/24" if netmask == Netmask.SUBNET else "/32"
    try:
        return IPv4Interface(text)
    except ValueError as error:
        raise ConfigError("ipv4_address", str(error)) from error


def _nic_name(socket_path: Path | None) -> str:
    """A name for the log, and for a MAC address that differs between NICs."""
    stem = socket_path.stem if socket_path is not None else ""
    return re.sub(r"[^A-Za-z0-9_-]", "-", stem)[:64] or "nic"


# Subcommands.


@command.command()
@click.option(
    "-c", "--config", "path", type=_PATH, required=True, metavar="FILE", help="A TOML file."
)
@_socket_dir_option
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
    type=_PATH,
    metavar="FILE",
    help="Where to keep what is created by --grpc or --http. By default state.db in"
    " $STATE_DIRECTORY, /var/lib/mvirt-net for root, $XDG_STATE_HOME/mvirt-net for others.",
)
@click.option("--no-state", is_flag=True, help="Forget it at the end, whatever the file says.")
@_run_options
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    path: Path,
    socket_dir: Path | None,
    grpc: Sequence[str],
    http: Sequence[str],
    state: Path | None,
    no_state: bool,
    **options: Any,
) -> None:
    """Serve the networks and NICs of a configuration file."""
    if state is not None and no_state:
        raise click.UsageError("--state and --no-state exclude each other", ctx)
    socket_dir = socket_dir or daemon_socket_dir()
    access, account = _socket_access(ctx, options), options["runas"]

    alone = f"unix:{socket_dir.absolute() / CONTROL_SOCKET}"
    http = [alone if address == CONTROL_SOCKET else address for address in http]
    polling = _polling_flags(options)

    def read() -> DaemonConfig:
        """Called again for each reload."""
        config = _load(path, socket_dir, access, _owned_by(account))
        config = _with_api(ctx, config, grpc=grpc, http=http)
        return _with_state(_with_polling(ctx, config, polling), state, no_state=no_state)

    config = read()
    listeners = _activated(ctx, config, options["ready_fd"])
    if options["capture_dir"] and not config.api.http:
        raise click.UsageError("--capture-dir is for --http", ctx)
    groups = {
        nic.socket_group
        for nic in config.nics
        if nic.socket_path and nic.socket_path.parent == socket_dir and nic.name not in listeners
    }
    if config.api.is_wanted:
        groups.add(config.defaults.socket_group)
    if groups:
        _make_dir(socket_dir, account, groups)
    if config.state == _default_state():
        _make_state_dir(_default_state().parent, account)
    _run(ctx, config, reload=read, config_path=path, listeners=listeners, **options)


def _activated(
    ctx: click.Context, config: DaemonConfig, ready_fd: int | None
) -> dict[str, socket.socket]:
    """The sockets of a service manager, by the name of the NIC that each is for.

    Raises:
        ConfigError: they do not fit.
        click.UsageError: --ready-fd is one of them.
    """
    sockets = take_activated()
    if ready_fd is not None and 0 <= ready_fd - FIRST_ACTIVATED_FD < len(sockets):
        raise click.UsageError(f"--ready-fd: {ready_fd} is a socket (LISTEN_FDS)", ctx)
    return match_activated(sockets, config.nics)


@command.command()
@click.argument("path", type=_PATH, metavar="FILE")
@_socket_dir_option
def check_config(path: Path, socket_dir: Path | None) -> None:
    """Check a configuration file and say all that is wrong with it."""
    config = _load(path, socket_dir or daemon_socket_dir())
    networks, nics = len(config.networks), len(config.nics)
    click.echo(f"{path}: good ({_count(networks, 'network')}, {_count(nics, 'NIC')})")


@command.command("trace")
@click.option(
    "-c", "--config", "path", type=_PATH, required=True, metavar="FILE", help="A TOML file."
)
@_socket_dir_option
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
def trace_command(
    ctx: click.Context,
    /,
    path: Path,
    socket_dir: Path | None,
    nic: str,
    packet: str | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Say where a packet would go, and why, without a daemon or a guest."""
    config = plan(_load(path, socket_dir or daemon_socket_dir())).config
    if (packet is None) == (fields["dst"] is None):
        raise click.UsageError("exactly one of --packet and --dst is needed", ctx)
    try:
        frame = bytes.fromhex(packet) if packet else _frame_from(config, nic, **fields)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error
    if not MIN_FRAME <= len(frame) <= MAX_FRAME:
        raise click.UsageError(f"a frame has {MIN_FRAME} to {MAX_FRAME} bytes", ctx)
    result = trace.trace(config, nic, frame)
    if as_json:
        click.echo(json.dumps(trace.as_dict(result), indent=2))
    else:
        for line in trace.explain(result):
            click.echo(line)


def _frame_from(
    config: DaemonConfig,
    name: str,
    *,
    src: str | None,
    dst: str,
    proto: str,
    sport: int,
    dport: int,
    ttl: int,
    size: int,
) -> bytes:
    """The frame that the flags describe. Raises ValueError, NotFoundError."""
    nic = trace.nic_named(config, name)
    target = ip_address(dst)
    own = nic.ipv4_address if target.version == 4 else nic.ipv6_address
    source = own if src is None else ip_address(src)
    if source is None:
        raise ValueError(f"{name} has no IPv{target.version} address; --src is needed")
    assert nic.mac_address is not None
    return trace.build_frame(
        nic.mac_address.packed,
        source,
        target,
        protocol=proto,
        source_port=sport,
        target_port=dport,
        ttl=ttl,
        size=size,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _load(path: Path, socket_dir: Path, *access: SocketAccess) -> DaemonConfig:
    """`config.load`; a file that is not there is a wrong one, one that may not be read is not."""
    try:
        return load(path, socket_dir, *access)
    except PermissionError:
        raise
    except OSError as error:
        raise ConfigFileError(path, [ConfigError("", error.strerror or str(error))]) from error


def _default_state() -> Path:
    """Likewise (StateDirectory=), else the usual place."""
    if given := os.environ.get("STATE_DIRECTORY"):
        folder = Path(given.partition(":")[0])
    elif os.geteuid() == 0:
        folder = Path("/var/lib", PROGRAM)
    else:
        # As the XDG Base Directory Specification has it.
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(home, PROGRAM)
    return folder / "state.db"


def _make_state_dir(path: Path, account: Account | None) -> None:
    """Make the usual folder for the state, if there is none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_dir(path, account, (), mode=0o700)


def _make_dir(
    path: Path, account: Account | None, groups: Collection[int | None], mode: int = 0o750
) -> None:
    """Make the folder for the sockets, if there is none.

    Args:
        path: of the folder.
        account: whom we will run as, and who must be able to remove files then.
        groups: of the sockets in it. The folder gets it, too, if it is one, so that whoever may
            use a socket gets there.

    Raises:
        OSError: it cannot be made, or not be given to them.
    """
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    owner = -1 if account is None else account.uid
    [group] = groups if len(groups) == 1 else [None]
    # By its descriptor: a link that somebody has put in its place meanwhile is not followed.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, owner, -1 if group is None else group)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)


command.add_command(ctl)


# Running.


def _run(
    ctx: click.Context,
    config: DaemonConfig,
    *,
    log_format: str | None,
    quiet: bool,
    debug: bool,
    print_attach: bool | None,
    ready_fd: int | None,
    no_sandbox: bool,
    **options: Any,
) -> None:
    """Serve `config` until a signal; what `options` has left is for `runner.RunOptions`."""
    pcap = _capture_spec(ctx, options, print_attach)
    if quiet and debug:
        raise click.UsageError("--quiet and --debug exclude each other", ctx)
    _check_ready_fd(ctx, ready_fd)
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    set_up_logging(level, LogFormat(log_format) if log_format else None)
    if print_attach is None:
        print_attach = sys.stdout.isatty()
    on_ready = _print_attach_lines if print_attach else _nothing
    run_options = runner.RunOptions(
        on_ready=on_ready, ready_fd=ready_fd, pcap=pcap, sandboxed=not no_sandbox, **options
    )
    runner.run(config, run_options)


def _capture_spec(
    ctx: click.Context, options: dict[str, Any], print_attach: bool | None
) -> CaptureSpec | None:
    """Take what the flags say of a capture out of `options`. Raises click.UsageError."""
    path = options.pop("pcap")
    given = {field: options.pop(f"pcap_{field}") for field in ("snaplen", "limit")}
    said = {field: value for field, value in given.items() if value is not None}
    if path is None:
        if said:
            raise click.UsageError(f"--pcap-{next(iter(said))} is for --pcap", ctx)
        return None
    if path != Path("-"):
        return CaptureSpec(path, **said)
    if print_attach:
        raise click.UsageError("--pcap - and --print-attach both want standard output", ctx)
    if sys.stdout.isatty():
        raise click.UsageError("--pcap -: standard output is a terminal", ctx)
    return CaptureSpec(os.dup(sys.stdout.fileno()), name="standard output", **said)


def _check_ready_fd(ctx: click.Context, fd: int | None) -> None:
    """Raise click.UsageError when `fd` is not open."""
    try:
        if fd is not None:
            os.fstat(fd)
    except OSError as error:
        raise click.UsageError(f"--ready-fd: {fd} is not open", ctx) from error


def _nothing(_switch: Switch) -> None:
    pass


def _print_attach_lines(switch: Switch) -> None:
    nics = tuple(nic.spec for nic in switch.nics.values())
    config = DaemonConfig(tuple(switch.networks.values()), nics)
    # Nobody has to read them to the end.
    with contextlib.suppress(BrokenPipeError):
        for line in attach_lines(config):
            click.echo(line)
