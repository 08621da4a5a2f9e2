"""The networks and NICs of a configuration file, and what is created while they are served."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..inherited import FIRST_ACTIVATED_FD, match_activated, take_activated
from ..model import DaemonConfig
from ..places import CONTROL_SOCKET, daemon_socket_dir
from .file import load_file
from .flags import owned_by, polling_flags, socket_access, with_api, with_polling, with_state
from .folders import default_state, make_socket_dir, make_state_dir
from .running import run


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
    """Serve it until a signal. Raises click.UsageError, ConfigError."""
    if state is not None and no_state:
        raise click.UsageError("--state and --no-state exclude each other", ctx)
    socket_dir = socket_dir or daemon_socket_dir()
    access, account = socket_access(ctx, options), options["runas"]

    alone = f"unix:{socket_dir.absolute() / CONTROL_SOCKET}"
    http = [alone if address == CONTROL_SOCKET else address for address in http]
    polling = polling_flags(options)

    usual_state = default_state()  # now: later we may be another user, and see less

    def read() -> DaemonConfig:
        """Called again for each reload."""
        config = load_file(path, socket_dir, access, owned_by(account))
        config = with_api(ctx, config, grpc=grpc, http=http)
        config = with_polling(ctx, config, polling)
        return with_state(config, state, usual_state, no_state=no_state)

    config = read()
    listeners = _activated(ctx, config, options["ready_fd"])
    if options["capture_dir"] and not config.api.http:
        raise click.UsageError("--capture-dir is for --http", ctx)
    make_socket_dir(socket_dir, config, listeners, account)
    if config.state == usual_state:
        make_state_dir(account)
    run(ctx, config, reload=read, config_path=path, listeners=listeners, **options)


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
