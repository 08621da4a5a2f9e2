"""A test harness that stands in for virtual machines: see docs/development.md.

`TestBackend` runs the real backend; `VhostTestClient` is a frontend with a guest behind it, in
plain Python from the specifications. The two share no code.
"""

from __future__ import annotations

from .backend import RoutingNicConfig, RoutingTestBackend, TestBackend
from .client import VhostTestClient
from .packets import GATEWAY_IP, GATEWAY_IPV6, GATEWAY_MAC

__all__ = [
    "GATEWAY_IP",
    "GATEWAY_IPV6",
    "GATEWAY_MAC",
    "RoutingNicConfig",
    "RoutingTestBackend",
    "TestBackend",
    "VhostTestClient",
]
