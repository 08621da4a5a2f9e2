"""The device configuration space of a virtio NIC (virtio 1.2, 5.1.4)."""

from __future__ import annotations

import struct

from ..model import MacAddress

CONFIG_SPACE_SIZE = 256
"""VHOST_USER_MAX_CONFIG_SIZE: all that a frontend can ask for."""

S_LINK_UP = 1
"""VIRTIO_NET_S_LINK_UP in `status`."""

# mac, status, max_virtqueue_pairs, mtu. Always little-endian with VERSION_1 (virtio 1.2, 2.5.3).
_NET_CONFIG = struct.Struct("<6sHHH")


MAX_QUEUE_PAIRS = 8
"""`max_virtqueue_pairs`."""


def net_config(mac: MacAddress, *, mtu: int) -> bytes:
    """The whole configuration space, 256 bytes; the link is up.

    Everything after `mtu` is zero. Frontends ask for more than that, each for the size of the
    structure it knows (cloud-hypervisor for 17 bytes), and insist on getting exactly as much.

    Args:
        mtu: in bytes, for VIRTIO_NET_F_MTU.
    """
    fields = _NET_CONFIG.pack(mac.packed, S_LINK_UP, MAX_QUEUE_PAIRS, mtu)
    return fields.ljust(CONFIG_SPACE_SIZE, b"\0")
