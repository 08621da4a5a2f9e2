"""The verbs about captures."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from ..errors import NoDaemonError
from ..pcapng import frames_by_interface
from .session import CAPTURES, NICS, Session, completing, ctl, flags, given
from .tables import Column, render, terminal_width
from .text import printable

_FLAGS = {"file": "FILE", "nics": "--nic", "snaplen": "--snaplen", "limit": "--limit"}
"""The flag that gives a field."""

_COLUMNS = (
    Column("FILE"),
    Column("NICS"),
    Column("FRAMES", right=True),
    Column("LOST", right=True),
    Column("BYTES", right=True),
    Column("ENDED"),
)

_STDOUT = "-"


@ctl.group("capture")
def group() -> None:
    """Captures of packets: start, list, stop."""


@group.command("list")
def list_() -> None:
    """List captures into files of the daemon's folder."""
    session = Session.current()
    answer = session.client.get(CAPTURES)
    rows = [
        (
            record["file"],
            "all" if record["nics"] is None else record["nics"],
            record["frames"],
            record["lost"],
            record["bytes"],
            record["ended"],
        )
        for record in answer[CAPTURES]
    ]
    session.answer(answer, render(_COLUMNS, rows, terminal_width()))


@group.command()
@click.argument("file", required=False)
@click.option(
    "-w",
    "--write",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="PATH",
    help="Take the packets here, into this file or with - to standard output, until interrupted.",
)
@click.option(
    "--nic",
    "nics",
    multiple=True,
    metavar="NIC",
    shell_complete=completing(NICS),
    help="Of this one only, repeatable.  [default: all, those to come too]",
)
@click.option(
    "--snaplen",
    type=int,
    metavar="BYTES",
    help="Of each frame at most this much.  [default: all of it]",
)
@click.option(
    "--limit",
    type=int,
    metavar="BYTES",
    help="Write no frame that would make the file larger, and end.  [default: 1 GiB; with --write"
    " never]",
)
def start(file: str | None, write: str | None, nics: tuple[str, ...], **options: Any) -> None:
    """Capture what guests send and receive, as pcapng.

    FILE is the name of a file that the daemon makes in the folder of its --capture-dir, until
    'capture stop'. With --write, the packets come here: 'capture start -w - | wireshark -k -i -'.
    """
    if (file is None) == (write is None):
        raise click.UsageError("give either FILE or --write")
    session = Session.current()
    names = [_name_of(session, nic) for nic in nics]
    if write is not None:
        _take(session, write, given(nics=",".join(names) or None, **options))
        return
    body = given(file=file, nics=tuple(names), **options)
    with flags(_FLAGS):
        record = session.client.post(CAPTURES, body=body)
    session.answer(record, [f"capture {printable(record['file'])} started"])


@group.command()
@click.argument("file", shell_complete=completing(CAPTURES))
def stop(file: str) -> None:
    """End a capture; its file stays."""
    session = Session.current()
    with session.naming(CAPTURES, file):
        record = session.client.delete(CAPTURES, file)
    session.answer(record, [_outcome(record)])


def _name_of(session: Session, nic: str) -> str:
    """The daemon wants names; an id will do here."""
    with session.naming(NICS, nic):
        return str(session.client.get(NICS, nic)["name"])


def _outcome(record: dict[str, Any]) -> str:
    return (
        f"capture {printable(record['file'])} ended ({printable(record['ended'])}):"
        f" {record['frames']} frames, {record['lost']} of them lost, {record['bytes']} bytes"
    )


# Packets that come here.


def _take(session: Session, path: str, query: dict[str, Any]) -> None:
    """Until interrupted, which is its ordinary end."""
    if session.as_json:
        raise click.UsageError("--json and --write exclude each other")
    if path == _STDOUT and sys.stdout.isatty():
        raise click.UsageError("--write -: standard output is a terminal")
    wanted = {key: str(value) for key, value in query.items()}
    frames = 0
    trouble: NoDaemonError | None = None
    with contextlib.suppress(KeyboardInterrupt), flags(_FLAGS), contextlib.ExitStack() as stack:
        fd = None
        try:
            for blocks in session.client.packets(**wanted):
                # Not before the daemon has agreed.
                if fd is None:
                    fd = stack.enter_context(_opened(path))
                _write(fd, path, blocks)
                frames += frames_by_interface(blocks).total()
            if "limit" not in query:
                trouble = NoDaemonError("the daemon has ended")
        except NoDaemonError as error:
            if fd is None:
                raise
            trouble = error
    click.echo(f"{frames} frames captured", err=True)
    if trouble is not None:
        raise trouble


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """What guests say to each other is for the owner of the file only."""
    if path == _STDOUT:
        yield sys.stdout.fileno()
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, path: str, blocks: bytes) -> None:
    """All of it, at once: who ends us later finds whole blocks there."""
    try:
        while blocks:
            blocks = blocks[os.write(fd, blocks) :]
    except OSError as error:
        error.filename = path
        raise
