"""A single NIC, described by flags."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from ..inherited import is_listening, take_socket
from ..model import DaemonConfig, Netmask, NetworkSpec, NicSpec, SocketAccess
from ..registry import plan
from .flags import owned_by, polling_flags, socket_access, usage_error, with_polling
from .running import run

SINGLE_NETWORK = "private"
"""The name of the network of a single NIC."""


def serve_single(
    ctx: click.Context,
    *,
    socket_path: Path | None,
    fd: int | None,
    print_capabilities: bool,
    address: str | None,
    one_off: bool,
    **options: Any,
) -> None:
    """Serve it until a signal. Raises click.UsageError."""
    del print_capabilities  # `main` has seen to it
    if (socket_path is None) == (fd is None):
        raise click.UsageError("exactly one of --socket-path and --fd is needed", ctx)
    if address is None:
        raise click.UsageError("--address is needed", ctx)
    if fd is not None and fd == options["ready_fd"]:
        raise click.UsageError("--fd and --ready-fd are the same descriptor", ctx)
    access = socket_access(ctx, options)
    if socket_path is not None:
        access = access.with_defaults(owned_by(options["runas"]))
    config = _single_config(
        ctx,
        socket_path=socket_path,
        address=address,
        access=access,
        **{key: options.pop(key) for key in ("mac_addr", "mtu", "dns", "ntp", "netmask")},
    )
    try:
        inherited = {} if fd is None else _single_socket(config, take_socket(fd))
    except ValueError as error:
        raise click.UsageError(f"--fd: {fd}: {error}", ctx) from error
    config = with_polling(ctx, config, polling_flags(options))
    run(ctx, config, one_off=one_off, **inherited, **options)


def _single_socket(config: DaemonConfig, sock: socket.socket) -> dict[str, Any]:
    """How `runner.RunOptions` says where frontends come from."""
    if is_listening(sock):
        return {"listeners": {config.nics[0].name: sock}}
    return {"sock": sock}


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
        raise usage_error(ctx, error) from error
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
