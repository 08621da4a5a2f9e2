"""Whether a configuration file is good."""

from __future__ import annotations

from pathlib import Path

import click

from ..places import daemon_socket_dir
from .file import load_file


def check(path: Path, socket_dir: Path | None) -> None:
    """Say how good the file is. Raises ConfigFileError for all that is wrong with it."""
    config = load_file(path, socket_dir or daemon_socket_dir())
    networks, nics = len(config.networks), len(config.nics)
    click.echo(f"{path}: good ({_count(networks, 'network')}, {_count(nics, 'NIC')})")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
