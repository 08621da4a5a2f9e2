"""mvirt-net: a vhost-user network backend for virtual machines, on trio.

This is the public API; everything else may change at any time.
"""

from __future__ import annotations

from ._version import __version__
from .capture import Capture
from .control import (
    Change,
    Control,
    ControlError,
    ErrorKind,
    NetworkRecord,
    NicRecord,
    NicState,
)
from .daemon import serve
from .errors import (
    CaptureFileError,
    ConfigError,
    ConnectionBroken,
    CoreError,
    DuplicateError,
    ExhaustedError,
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
from .store import StoreError
from .switch import Switch, open_switch

__all__ = [
    "Capture",
    "CaptureFileError",
    "Change",
    "ConfigError",
    "ConnectionBroken",
    "Control",
    "ControlError",
    "CoreError",
    "DaemonConfig",
    "DropReason",
    "DuplicateError",
    "ErrorKind",
    "ExhaustedError",
    "FileMode",
    "GuestMemoryLost",
    "MacAddress",
    "MvirtNetError",
    "Netmask",
    "NetworkRecord",
    "NetworkSpec",
    "Nic",
    "NicEvent",
    "NicEventKind",
    "NicRecord",
    "NicSpec",
    "NicState",
    "NicStats",
    "NotFoundError",
    "PollingSpec",
    "RequestRefused",
    "SocketAccessError",
    "SocketInUseError",
    "SocketPathError",
    "StoreError",
    "Switch",
    "TooManyCapturesError",
    "__version__",
    "open_switch",
    "serve",
]
