"""What a verb tells of a network or NIC: values, as they are at a moment."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import ClassVar

import attrs

from .model import NetworkSpec, NicSpec


class NicState(enum.Enum):
    """What a NIC does."""

    CREATED = "created"
    """It waits for a frontend."""
    ACTIVE = "active"
    """It has one that has made a request."""
    ERROR = "error"
    """It is not served; `NicRecord.error` says why."""


@attrs.frozen(kw_only=True)
class NetworkRecord:
    """A network as it is at a moment."""

    resource: ClassVar = "network"

    id: str
    spec: NetworkSpec
    nic_count: int
    created_at: datetime
    updated_at: datetime
    in_file: bool = False
    """Whether the configuration file has it; no verb changes it then."""
    error: str = ""
    """Why it is not served; empty: it is."""


@attrs.frozen(kw_only=True)
class NicRecord:
    """A NIC as it is at a moment."""

    resource: ClassVar = "nic"

    id: str
    network_id: str
    spec: NicSpec
    state: NicState
    created_at: datetime
    updated_at: datetime
    in_file: bool = False
    error: str = ""


@attrs.frozen
class Change:
    """Something was created or updated, or is gone (`record` is None)."""

    resource: str
    """As of the records."""
    id: str
    at: datetime
    record: NetworkRecord | NicRecord | None
