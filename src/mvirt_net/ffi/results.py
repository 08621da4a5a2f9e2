"""What calls of the core return: its numbers, its errors, what it has made."""

from __future__ import annotations

import enum
import errno
from typing import Any

from ..errors import CoreError
from ..model import DropReason, IcmpError, PuntKind
from ._core import ffi


class NextStep(enum.IntEnum):
    """What a ring needs next (``enum mv_next``)."""

    KICK = 0
    """Nothing to do before the driver's next kick, which was asked for."""
    CALL_AGAIN = 1
    """A bound was reached with work left: let others run, then call again."""
    NOTHING = 2
    """The ring is not running or broken; of a flush also: the backlog is empty."""
    MORE_BUFFERS = 3
    """Of a flush: as KICK, but the frame in front needs more buffers than there are."""


def _same_numbers(python: type[enum.IntEnum], c_enum: str, prefix: str) -> None:
    """Make sure at import that an enumeration here and its twin in mvirt.h agree."""
    ours = {f"{prefix}{member.name}": member.value for member in python}
    theirs = {name: value for value, name in ffi.typeof(f"enum {c_enum}").elements.items()}
    if ours != theirs:
        raise ImportError(f"{python.__name__} and enum {c_enum} of the C core differ: rebuild it")


_same_numbers(NextStep, "mv_next", "MV_NEXT_")
_same_numbers(DropReason, "mv_drop", "MV_DROP_")
_same_numbers(PuntKind, "mv_punt_kind", "MV_PUNT_")
_same_numbers(IcmpError, "mv_icmp_error", "MV_ICMP_")


def check(what: str, result: int) -> int:
    if result < 0:
        raise CoreError(what, -result)
    return result


def allocated(what: str, handle: Any) -> Any:
    """What the core has made, unless it had no memory for it."""
    if handle == ffi.NULL:
        raise CoreError(what, errno.ENOMEM)
    return handle
