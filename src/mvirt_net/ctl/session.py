"""What all verbs have in common: where the daemon is, how to answer, names, how to end."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import click

from ..errors import MvirtNetError, VerbRefused
from ..exits import end_by
from .text import printable, to_json

if TYPE_CHECKING:
    from .client import Client

COMPLETION_TIMEOUT = 0.5
"""Seconds that a press of Tab may wait for the daemon."""

NETWORKS, NICS, CAPTURES = "networks", "nics", "captures"
"""Kinds of resources, as the interface spells them."""
_SINGULAR = {NETWORKS: "network", NICS: "NIC", CAPTURES: "capture"}
_LIST = {
    NETWORKS: "mvirt-net ctl network list",
    NICS: "mvirt-net ctl nic list",
    CAPTURES: "mvirt-net ctl capture list",
}
_NAME = {CAPTURES: "file"}
"""What a resource calls its name, where it is not so."""
_MANY = 8
"""More names than these are not listed in an error."""

_BAD_REQUEST, _NOT_FOUND = 400, 404

_ENDPOINT = f"{__name__}.endpoint"
_AS_JSON = f"{__name__}.as_json"


@attrs.frozen
class Session:
    """What a verb needs to know."""

    client: Client
    as_json: bool

    @classmethod
    def current(cls) -> Session:
        """That of the command line. Raises NoDaemonError when there is no daemon by default."""
        from .client import Client, default_endpoint

        meta = click.get_current_context().meta
        return cls(Client(meta.get(_ENDPOINT) or default_endpoint()), meta.get(_AS_JSON, False))

    def answer(self, value: Any, lines: Iterable[str]) -> None:
        """Say `value` to a program, `lines` to people."""
        if self.as_json:
            click.echo(to_json(value, indent=2))
        else:
            for line in lines:
                click.echo(line)

    @contextlib.contextmanager
    def naming(self, kind: str, ref: str) -> Iterator[None]:
        """When the daemon knows no `ref` in the block, say what there is."""
        try:
            yield
        except VerbRefused as error:
            if error.status != _NOT_FOUND:
                raise
            known = names(self.client, kind)
            raise VerbRefused(_unknown(kind, ref, known), error.status) from error


def names(client: Client, kind: str) -> list[str]:
    """Of all resources of a kind."""
    return [printable(record[_NAME.get(kind, "name")]) for record in client.get(kind)[kind]]


def _unknown(kind: str, ref: str, known: list[str]) -> str:
    message = f"there is no {_SINGULAR[kind]} {printable(ref)!r}"
    if near := difflib.get_close_matches(ref, known):
        return f"{message}; did you mean {' or '.join(near)}?"
    if not known:
        return f"{message}, and no other"
    if len(known) <= _MANY:
        return f"{message}, only {', '.join(known)}"
    return f"{message}; '{_LIST[kind]}' says what there is"


@contextlib.contextmanager
def flags(by_field: Mapping[str, str]) -> Iterator[None]:
    """Say what the daemon finds wrong with a field of the flag that gave it.

    Raises:
        click.UsageError: the value makes no sense.
    """
    try:
        yield
    except VerbRefused as error:
        if error.status != _BAD_REQUEST:
            raise
        flag = by_field.get(error.field.partition("[")[0])
        message = f"{flag}: {error}" if flag else str(error)
        raise click.UsageError(message, click.get_current_context()) from error


def given(**values: Any) -> dict[str, Any]:
    """Those that the user gave; a repeatable option that was not is an empty tuple."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None and value != ()
    }


def failures(what: str, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines about those that the daemon knows and cannot serve."""
    return [
        f"{what} {printable(record['name'])} is not served: {printable(record['error'])}"
        for record in records
        if record.get("error")
    ]


# Completion.


def completing(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A click ``shell_complete``: names of that kind; none when there is no daemon."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        from .client import Client, default_endpoint

        try:
            endpoint = ctx.meta.get(_ENDPOINT) or default_endpoint()
            known = names(Client(endpoint, COMPLETION_TIMEOUT), kind)
        except (MvirtNetError, LookupError, TypeError):
            return []
        return [name for name in known if name.startswith(incomplete)]

    return complete


# The commands.


def _keep_endpoint(ctx: click.Context, _parameter: object, text: str | None) -> None:
    if text is None:
        return
    from .client import parse_socket

    try:
        ctx.meta[_ENDPOINT] = parse_socket(text)
    except ValueError as error:
        raise click.UsageError(f"--socket: {error}", ctx) from error


def _keep_as_json(ctx: click.Context, _parameter: object, is_given: bool) -> None:
    if is_given:
        ctx.meta[_AS_JSON] = True


_SOCKET_HELP = """The daemon's: a path or http://127.0.0.1:PORT. By default $MVIRT_NET_CONTROL, or
control.sock in $XDG_RUNTIME_DIR/mvirt-net or /run/mvirt-net."""


def _common_options(*, envvar: str | None = None) -> list[click.Option]:
    """Taken before a verb and after it, where it counts more."""
    return [
        click.Option(
            ["-S", "--socket"],
            metavar="ADDRESS",
            envvar=envvar,
            expose_value=False,
            callback=_keep_endpoint,
            help=_SOCKET_HELP if envvar else "Where the daemon is: see 'mvirt-net ctl --help'.",
        ),
        click.Option(
            ["--json", "-j"],
            is_flag=True,
            expose_value=False,
            callback=_keep_as_json,
            help="Answer in JSON.",
        ),
    ]


MODULES = {
    "capture": ".captures",
    "network": ".networks",
    "nic": ".nics",
    "stats": ".stats",
    "top": ".top",
    "watch": ".watch",
}
"""Where each verb, or group of them, is defined: imported when it is called, or helped with."""


class Verb(click.Command):
    """A command with the options of all of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()


class VerbGroup(click.Group):
    """Verbs, and groups of them."""

    command_class = Verb


VerbGroup.group_class = VerbGroup


class _Ctl(VerbGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in MODULES:
            importlib.import_module(MODULES[cmd_name], __package__)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """A client ends as its user expects: by SIGINT or SIGPIPE, with nothing on stderr."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What the user's encoding cannot say is no reason to say nothing.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            end_by(signal.SIGINT)
        except BrokenPipeError:
            # Or Python would complain that what is left cannot be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            end_by(signal.SIGPIPE)


ctl = _Ctl(
    "ctl",
    params=_common_options(envvar="MVIRT_NET_CONTROL"),
    help="""Look at a running daemon and change what it serves.

    The daemon must have a control socket: 'mvirt-net serve --config FILE --http'.
    """,
    epilog="Exit codes: 0 done, 1 refused, 2 usage, 69 no daemon answers, 77 no permission.",
)
