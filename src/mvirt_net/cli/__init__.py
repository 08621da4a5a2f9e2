"""The command ``mvirt-net``.

Two ways to run it, and one to check a file. ``mvirt-net --socket-path …`` serves a single NIC and
keeps to QEMU's conventions for such programs (docs/interop/vhost-user.rst, "Backend program
conventions"); ``mvirt-net serve`` serves what a configuration file lists. Logs go to stderr; stdout
has only what was asked for. Every failure that a user can do something about is one line and has
one of the codes in `ExitCode`.

`commands` and `options` are what there is to be said on the line, `flags` is what that stands for.
What a command does is in a module of its own, which is imported when it is called.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence

import click

from ..ctl import ctl
from ..exits import PROGRAM, ExitCode, end_by, report
from ..stderr import use_lossy_stderr
from .commands import command

__all__ = ["command", "main", "run"]

CAPABILITIES = {"type": "net"}
"""A VHostUserBackendCapabilities of QEMU's ``vhost-user.json``."""

command.add_command(ctl)


def run() -> int:
    """The whole process: `main`, for whom standard error is always there."""
    use_lossy_stderr()
    try:
        return main()
    except KeyboardInterrupt:
        # While a daemon serves, SIGINT is its order to stop.
        end_by(signal.SIGINT)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        args: without the program's name; those of the process when None.

    Returns:
        The exit code.

    Raises:
        KeyboardInterrupt: by ^C before or after a daemon serves.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if "--print-capabilities" in arguments:
        # "Other options and arguments should be ignored", wrong ones included.
        click.echo(json.dumps(CAPABILITIES))
        return ExitCode.OK
    try:
        # What comes back is the exit code of --help and --version; commands return nothing.
        return command.main(arguments, prog_name=PROGRAM, standalone_mode=False) or ExitCode.OK
    except click.Abort as error:
        # What click makes of KeyboardInterrupt.
        raise KeyboardInterrupt from error
    except Exception as error:
        return report(error)
