"""Where a packet would go; `mvirt_net.trace` finds out."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from .. import trace
from ..ffi import MAX_FRAME
from ..logsetup import set_up_logging
from ..model import DaemonConfig
from ..places import daemon_socket_dir
from ..registry import plan
from .file import load_file

MIN_FRAME = 14
"""Bytes of an Ethernet header."""


def trace_packet(
    ctx: click.Context,
    /,
    path: Path,
    socket_dir: Path | None,
    nic: str,
    packet: str | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Print where a packet goes that the flags describe, and why. Raises click.UsageError."""
    set_up_logging()
    config = plan(load_file(path, socket_dir or daemon_socket_dir())).config
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
