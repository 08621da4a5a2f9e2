"""Running what was said: the part that is the same for a single NIC and for a file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import runner
from ..attach import attach_lines
from ..capture import CaptureSpec
from ..loglines import LogFormat
from ..logsetup import set_up_logging
from ..model import DaemonConfig
from ..switch import Switch


def run(
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
