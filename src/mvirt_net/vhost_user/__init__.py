"""The vhost-user protocol without I/O: codec, feature bits, and the state machine of a session."""

from __future__ import annotations

from .device import Device
from .features import (
    OFFERED_FEATURES,
    OFFERED_PROTOCOL_FEATURES,
    ProtocolFeature,
    VirtioFeature,
)
from .messages import HEADER_SIZE, MAX_PAYLOAD, Header, Request, request_name
from .session import MAX_MEM_SLOTS, VRINGS, Outcome, Session

__all__ = [
    "HEADER_SIZE",
    "MAX_MEM_SLOTS",
    "MAX_PAYLOAD",
    "OFFERED_FEATURES",
    "OFFERED_PROTOCOL_FEATURES",
    "VRINGS",
    "Device",
    "Header",
    "Outcome",
    "ProtocolFeature",
    "Request",
    "Session",
    "VirtioFeature",
    "request_name",
]
