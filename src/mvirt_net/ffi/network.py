"""Networks: which packets go to which port."""

from __future__ import annotations

import errno
import itertools
import weakref
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CoreError
from ._core import ffi, lib
from .results import allocated, check

if TYPE_CHECKING:
    from .port import Port

Prefix = IPv4Network | IPv6Network


def prefix_array(prefixes: Iterable[Prefix]) -> tuple[Any, int]:
    """An array of ``struct mv_prefix`` and its length."""
    rows = [
        {
            "family": 0 if prefix.version == 4 else 1,
            "length": prefix.prefixlen,
            "address": list(prefix.network_address.packed),
        }
        for prefix in prefixes
    ]
    return ffi.new("struct mv_prefix[]", rows), len(rows)


class Network:
    """The routes of one isolated network; each `Port` is in one.

    Args:
        mtu: of its links, in bytes.
        subnets: the addresses that belong to it. One of them that no port has is a host that
            cannot be reached; any other address is no route.

    Raises:
        CoreError: the same subnet twice, or out of memory.
    """

    def __init__(self, mtu: int = 1500, subnets: Iterable[Prefix] = ()) -> None:
        self._handle = allocated("network", lib.mv_network_new(mtu))
        self._tags = itertools.count()
        self._ports: weakref.WeakValueDictionary[int, Port] = weakref.WeakValueDictionary()
        try:
            check("subnets", lib.mv_network_set_subnets(self._handle, *prefix_array(subnets)))
        except CoreError:
            self.close()
            raise

    def _add(self, port: Port) -> int:
        """The tag by which drains speak of this port."""
        tag = next(self._tags)
        self._ports[tag] = port
        return tag

    def lookup(self, address: IPv4Address | IPv6Address) -> Port | Literal["on-link"] | None:
        """Where a packet to `address` would go: a port, nobody on the link, or nowhere."""
        prefix, _ = prefix_array([ip_network(address)])
        return self._hop(lib.mv_network_lookup(self._handle, prefix, ffi.NULL))

    def match(
        self, address: IPv4Address | IPv6Address
    ) -> tuple[Port | Literal["on-link"] | None, int]:
        """The same, and the length of the prefix that decides it."""
        prefix, _ = prefix_array([ip_network(address)])
        length = ffi.new("unsigned int *")
        return self._hop(lib.mv_network_lookup(self._handle, prefix, length)), length[0]

    def _hop(self, tag: int) -> Port | Literal["on-link"] | None:
        if tag < 0:
            return "on-link" if tag == -errno.EHOSTUNREACH else None
        return self._ports[tag]

    def close(self) -> None:
        """Give up the network, which goes with the last of its ports. May be called again."""
        handle, self._handle = self._handle, ffi.NULL
        lib.mv_network_free(handle)
