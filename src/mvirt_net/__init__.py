"""mvirt-net: a vhost-user network backend for virtual machines, on trio.

This is the public API; everything else may change at any time. Its names are imported from their
modules when they are asked for: who needs none, the client for one, need not wait for trio and for
the C core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .capture import Capture as Capture
    from .capture import CaptureSpec as CaptureSpec
    from .control import Change as Change
    from .control import Control as Control
    from .control import ControlError as ControlError
    from .control import ErrorKind as ErrorKind
    from .control import NetworkRecord as NetworkRecord
    from .control import NicRecord as NicRecord
    from .control import NicState as NicState
    from .daemon import serve as serve
    from .errors import CaptureFileError as CaptureFileError
    from .errors import ConfigError as ConfigError
    from .errors import ConnectionBroken as ConnectionBroken
    from .errors import CoreError as CoreError
    from .errors import DuplicateError as DuplicateError
    from .errors import ExhaustedError as ExhaustedError
    from .errors import ExtraMissingError as ExtraMissingError
    from .errors import GuestMemoryLost as GuestMemoryLost
    from .errors import MvirtNetError as MvirtNetError
    from .errors import NotFoundError as NotFoundError
    from .errors import RequestRefused as RequestRefused
    from .errors import SocketAccessError as SocketAccessError
    from .errors import SocketInUseError as SocketInUseError
    from .errors import SocketPathError as SocketPathError
    from .errors import StoreError as StoreError
    from .errors import TooManyCapturesError as TooManyCapturesError
    from .model import ApiSpec as ApiSpec
    from .model import DaemonConfig as DaemonConfig
    from .model import DropReason as DropReason
    from .model import FileMode as FileMode
    from .model import MacAddress as MacAddress
    from .model import Netmask as Netmask
    from .model import NetworkSpec as NetworkSpec
    from .model import NicSpec as NicSpec
    from .model import NicStats as NicStats
    from .model import PollingSpec as PollingSpec
    from .model import SocketAccess as SocketAccess
    from .nic import Nic as Nic
    from .nic import NicEvent as NicEvent
    from .nic import NicEventKind as NicEventKind
    from .switch import Switch as Switch
    from .switch import open_switch as open_switch

_HOMES = {
    "Capture": "capture",
    "CaptureSpec": "capture",
    "Change": "control",
    "Control": "control",
    "ControlError": "control",
    "ErrorKind": "control",
    "NetworkRecord": "control",
    "NicRecord": "control",
    "NicState": "control",
    "serve": "daemon",
    "CaptureFileError": "errors",
    "ConfigError": "errors",
    "ConnectionBroken": "errors",
    "CoreError": "errors",
    "DuplicateError": "errors",
    "ExhaustedError": "errors",
    "ExtraMissingError": "errors",
    "GuestMemoryLost": "errors",
    "MvirtNetError": "errors",
    "NotFoundError": "errors",
    "RequestRefused": "errors",
    "SocketAccessError": "errors",
    "SocketInUseError": "errors",
    "SocketPathError": "errors",
    "TooManyCapturesError": "errors",
    "ApiSpec": "model",
    "DaemonConfig": "model",
    "DropReason": "model",
    "FileMode": "model",
    "MacAddress": "model",
    "Netmask": "model",
    "NetworkSpec": "model",
    "NicSpec": "model",
    "NicStats": "model",
    "PollingSpec": "model",
    "SocketAccess": "model",
    "Nic": "nic",
    "NicEvent": "nic",
    "NicEventKind": "nic",
    "StoreError": "errors",
    "Switch": "switch",
    "open_switch": "switch",
}
"""The module of each name. A test sees to it that type checkers are told the same, above."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Called for a name of the API when it is asked for the first time (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
