"""The kinds of subnet mask; apart from `model`, so that a help text need not load all of that."""

from __future__ import annotations

import enum


class Netmask(enum.StrEnum):
    """The subnet mask that DHCP gives to the guests of a network."""

    HOST = "host"
    """255.255.255.255: everything goes by the gateway (the default)."""
    SUBNET = "subnet"
    """The subnet's own, for guests that cannot use a /32; ARP then answers for the whole subnet."""
