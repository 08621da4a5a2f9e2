"""Peers in C, built when they are needed, by the compiler and the flags of the ring core."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from mvirt_net.ffi.build import FLAGS


def compile_program(sources: Sequence[Path], target: Path, options: Sequence[str] = ()) -> None:
    """Build a program, or with ``-shared`` a library.

    Args:
        options: come after the sources, as libraries must.
    """
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    command = [*compiler, *FLAGS, "-o", str(target), *map(str, sources), *options]
    subprocess.run(command, check=True)
