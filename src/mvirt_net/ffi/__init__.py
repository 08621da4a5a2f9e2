"""Typed owners of what the C core allocates. `mvirt.h` says what each call does and promises.

Nothing outside this package sees a C pointer. A negative result of the core becomes a CoreError;
arguments are checked here where C could not tell (lengths, ranges). Each kind of owner is in a
module of its own; what they read of each other (`_handle`, above all) is private to the package.
"""

from __future__ import annotations

from ..errors import UnsupportedProcessorError

try:
    from . import _core as _core
except ImportError as error:
    # What glibc's loader says of an extension that asks for more (build.py: LINK_FLAGS).
    if "ISA level" not in str(error):
        raise
    raise UnsupportedProcessorError(
        "this build needs a processor with SSE 4.2 and POPCNT (x86-64-v2, 2009 or later), and this"
        " is an older one; a virtual machine may only pretend to have one: give it another CPU"
        " model, such as QEMU's '-cpu max'"
    ) from error

from .capture import MAX_TAPS, CaptureRing
from .drain import Drained, Punt, work_of
from .event import events_never_block, is_eventfd, read_event, write_event
from .memory import MAX_REGIONS, GuestMemory, Mapping, unmap_aside
from .network import Network
from .poller import HotRing, Poller
from .port import MAX_FRAME, Port, RingState
from .results import NextStep
from .watcher import Watch, Watched, Watcher

__all__ = [
    "MAX_FRAME",
    "MAX_REGIONS",
    "MAX_TAPS",
    "CaptureRing",
    "Drained",
    "GuestMemory",
    "HotRing",
    "Mapping",
    "Network",
    "NextStep",
    "Poller",
    "Port",
    "Punt",
    "RingState",
    "Watch",
    "Watched",
    "Watcher",
    "events_never_block",
    "is_eventfd",
    "read_event",
    "unmap_aside",
    "work_of",
    "write_event",
]
