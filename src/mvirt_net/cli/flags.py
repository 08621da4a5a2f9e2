"""What flags stand for, in the words of `model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from ..accounts import Account
from ..errors import ConfigError
from ..model import DaemonConfig, PollingSpec, SocketAccess

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


def usage_error(ctx: click.Context, error: ConfigError) -> click.UsageError:
    """A wrong value, said of its flag."""
    field = error.key.rpartition(".")[2]
    return click.UsageError(f"{_FLAGS[field]}: {error.problem}", ctx)


def socket_access(ctx: click.Context, options: dict[str, Any]) -> SocketAccess:
    """Take what the flags say of the sockets out of `options`. Raises click.UsageError."""
    given = {field.name: options.pop(field.name) for field in attrs.fields(SocketAccess)}
    try:
        # A repeatable flag that was not given is an empty list.
        return SocketAccess(
            **{name: None if value == () else value for name, value in given.items()}
        )
    except ConfigError as error:
        raise usage_error(ctx, error) from error


def polling_flags(options: dict[str, Any]) -> dict[str, Any]:
    """Take what the flags say of polling out of `options`."""
    given = {field.name: options.pop(field.name) for field in attrs.fields(PollingSpec)}
    return {name: value for name, value in given.items() if value is not None}


def with_polling(
    ctx: click.Context, config: DaemonConfig, flags: Mapping[str, Any]
) -> DaemonConfig:
    """What the flags say of polling counts. Raises click.UsageError."""
    try:
        return attrs.evolve(config, polling=attrs.evolve(config.polling, **flags))
    except ConfigError as error:
        raise usage_error(ctx, error) from error


def with_api(ctx: click.Context, config: DaemonConfig, **given: Sequence[str]) -> DaemonConfig:
    """What the flags say of either interface counts for it. Raises click.UsageError."""
    said = {name: list(values) for name, values in given.items() if values}
    try:
        return attrs.evolve(config, api=attrs.evolve(config.api, **said))
    except ConfigError as error:
        raise usage_error(ctx, error) from error


def with_state(
    config: DaemonConfig, path: Path | None, usual: Path, *, no_state: bool
) -> DaemonConfig:
    """What the flags say counts, then the file; a daemon that nobody controls needs no state."""
    state = config.state
    if no_state:
        state = False
    elif path is not None:
        state = path.absolute()
    elif state is None and config.api.is_wanted:
        state = usual
    return attrs.evolve(config, state=state)


def owned_by(account: Account | None) -> SocketAccess:
    """Sockets of the account that we will run as, as if we had made them when we did."""
    if account is None:
        return SocketAccess()
    return SocketAccess(socket_owner=account.uid, socket_group=account.gid)
