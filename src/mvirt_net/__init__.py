"""mvirt-net: a vhost-user network backend for virtual machines, on trio.

This is the public API; everything else may change at any time.
"""

from __future__ import annotations

from ._version import __version__
from .capture import Capture
from .daemon import serve
from .errors import (
    CaptureFileError,
    ConfigError,
    ConnectionBroken,
    CoreError,
    DuplicateError,
    GuestMemoryLost,
    MvirtNetError,
    NotFoundError,
    RequestRefused,
    SocketAccessError,
    SocketInUseError,
    SocketPathError,
    TooManyCapturesError,
)
from .model import (
    DaemonConfig,
    DropReason,
    FileMode,
    MacAddress,
    Netmask,
    NetworkSpec,
    NicSpec,
    NicStats,
    PollingSpec,
)
from .nic import Nic, NicEvent, NicEventKind
from .switch import Switch, open_switch

__all__ = [
    "Capture",
    "CaptureFileError",
    "ConfigError",
    "ConnectionBroken",
    "CoreError",
    "DaemonConfig",
    "DropReason",
    "DuplicateError",
    "FileMode",
    "GuestMemoryLost",
    "MacAddress",
    "MvirtNetError",
    "Netmask",
    "NetworkSpec",
    "Nic",
    "NicEvent",
    "NicEventKind",
    "NicSpec",
    "NicStats",
    "NotFoundError",
    "PollingSpec",
    "RequestRefused",
    "SocketAccessError",
    "SocketInUseError",
    "SocketPathError",
    "Switch",
    "TooManyCapturesError",
    "__version__",
    "open_switch",
    "serve",
]
