"""What happens to a guest's frames: the connection that carries them and the services."""

from __future__ import annotations

from .arp import ArpResponder
from .backend import VhostNetBackend
from .dhcpv4 import Dhcpv4Server
from .icmp import IcmpResponder
from .latency import RequestTimes
from .lookout import Lookout
from .mapping import settle_debt
from .packet import Service
from .services import services_for
from .workers import Workers

__all__ = [
    "ArpResponder",
    "Dhcpv4Server",
    "IcmpResponder",
    "Lookout",
    "RequestTimes",
    "Service",
    "VhostNetBackend",
    "Workers",
    "services_for",
    "settle_debt",
]
