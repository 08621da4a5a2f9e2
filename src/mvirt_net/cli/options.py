"""Options of everything that runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..accounts import Account
from ..loglines import LogFormat

_F = TypeVar("_F", bound=Callable[..., Any])

# Without `readable`, click looks ahead, and calls a file that may not be read a wrong usage.
PATH = click.Path(readable=False, path_type=Path)
MAX_FD = 2**31 - 1


def all_of(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """One decorator from several, which then stand in this order in the help."""

    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def _parse_account(_ctx: object, _parameter: object, text: str | None) -> Account | None:
    """A click callback: the value of --runas."""
    try:
        return None if text is None else Account.parse(text)
    except ValueError as error:
        raise click.UsageError(f"--runas: {error}") from error


def _checked_snaplen(ctx: click.Context, parameter: click.Parameter, given: int | None) -> Any:
    """A click callback: the value of --pcap-snaplen. The core is there for who gives one."""
    if given is None:
        return None
    from ..ffi import MAX_FRAME

    return click.IntRange(1, MAX_FRAME).convert(given, parameter, ctx)


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


run_options = all_of(
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
        type=PATH,
        metavar="FILE",
        help="Write what all guests send and receive to this pcapng file; -: standard output.",
    ),
    click.option(
        "--pcap-snaplen",
        type=click.IntRange(min=1),
        callback=_checked_snaplen,
        metavar="BYTES",
        help="Of each frame at most this much.  [default: all of it]",
    ),
    click.option(
        "--pcap-limit",
        type=click.IntRange(min=1),
        metavar="BYTES",
        help="End the capture before its file would become larger.  [default: never]",
    ),
    click.option("-P", "--pid", "pid_path", type=PATH, metavar="FILE", help="Keep the pid here."),
    click.option(
        "--ready-fd",
        type=click.IntRange(3, MAX_FD),
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

socket_dir_option = click.option(
    "--socket-dir",
    type=PATH,
    metavar="DIR",
    help="Folder for sockets without an absolute path, made if absent. By default"
    " $RUNTIME_DIRECTORY, /run/mvirt-net for root, $XDG_RUNTIME_DIR/mvirt-net for others.",
)
