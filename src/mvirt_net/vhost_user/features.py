"""Feature bits: what this backend offers, and the two sets that a frontend picks from.

**Virtio features** (GET_FEATURES, SET_FEATURES) are agreed with the driver in the guest; bit 30
is the exception, it belongs to vhost-user. **Protocol features** (GET_PROTOCOL_FEATURES,
SET_PROTOCOL_FEATURES) are agreed with the frontend and unlock messages.
"""

from __future__ import annotations

import enum
import functools
import operator


class VirtioFeature(enum.IntFlag):
    """The virtio feature bits that are offered (virtio 1.2, 5.1.3 and 6)."""

    NET_F_CSUM = 1 << 0
    """The driver may leave TCP and UDP checksums to the device (``HOST``: segmentation)."""
    NET_F_GUEST_CSUM = 1 << 1
    """The driver takes packets without TCP or UDP checksum (``GUEST``: without segmentation)."""
    NET_F_MTU = 1 << 3
    NET_F_MAC = 1 << 5
    NET_F_GUEST_TSO4 = 1 << 7
    NET_F_GUEST_TSO6 = 1 << 8
    NET_F_GUEST_ECN = 1 << 9
    NET_F_HOST_TSO4 = 1 << 11
    NET_F_HOST_TSO6 = 1 << 12
    NET_F_HOST_ECN = 1 << 13
    NET_F_MRG_RXBUF = 1 << 15
    NET_F_STATUS = 1 << 16
    NET_F_CTRL_VQ = 1 << 17
    """A control queue. Frontends have that themselves, so it is no vring; but cloud-hypervisor lets
    its guest see one only if it is offered here.
    """
    NET_F_MQ = 1 << 22
    """Several queue pairs. How many of them it uses, the driver says by the control queue, and the
    frontend by SET_VRING_ENABLE. Linux takes no device with this alone (virtio 1.2, 5.1.3.1).
    """
    RING_F_INDIRECT_DESC = 1 << 28
    RING_F_EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    """VHOST_USER_F_PROTOCOL_FEATURES: not the driver's; protocol features can be negotiated."""
    F_VERSION_1 = 1 << 32
    F_RING_PACKED = 1 << 34
    """Packed vrings in place of split ones (virtio 1.2, 2.8)."""
    F_IN_ORDER = 1 << 35
    """Buffers come back in the order they were given; lets a frontend replay a ring."""
    NET_F_GUEST_USO4 = 1 << 54
    NET_F_GUEST_USO6 = 1 << 55
    NET_F_HOST_USO = 1 << 56
    """UDP segmentation, of both families (virtio 1.3, 5.1.3)."""


class ProtocolFeature(enum.IntFlag):
    """The protocol feature bits that are offered (vhost-user, "Protocol features")."""

    MQ = 1 << 0
    """There are several queue pairs, and GET_QUEUE_NUM can be asked how many vrings."""
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15


OFFERED_FEATURES = functools.reduce(operator.or_, VirtioFeature)
OFFERED_PROTOCOL_FEATURES = functools.reduce(operator.or_, ProtocolFeature)
