"""The bits that are offered, as numbers that frontends know."""

from __future__ import annotations

from mvirt_net.vhost_user import OFFERED_FEATURES, OFFERED_PROTOCOL_FEATURES


def bits(mask: int) -> set[int]:
    return {bit for bit in range(64) if mask >> bit & 1}


def test_virtio_features() -> None:
    # MTU, MAC, MRG_RXBUF, STATUS, CTRL_VQ, MQ, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES,
    # VERSION_1, RING_PACKED, IN_ORDER
    base = {3, 5, 15, 16, 17, 22, 28, 29, 30, 32, 34, 35}
    # CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_USO, and what the guest takes of the same.
    offloads = {0, 11, 12, 13, 56} | {1, 7, 8, 9, 54, 55}
    assert bits(OFFERED_FEATURES) == base | offloads


def test_each_feature_comes_with_what_it_requires() -> None:
    """Else a device must not offer it (virtio 1.2, 2.2.1), and Linux would not drive the NIC."""
    csum, guest_csum, ctrl_vq = {0}, {1}, {17}
    required = {
        **dict.fromkeys((7, 8, 54, 55), guest_csum),
        **dict.fromkeys((11, 12, 56), csum),
        9: {7, 8},
        13: {11, 12},
        22: ctrl_vq,
    }
    offered = bits(OFFERED_FEATURES)
    assert {bit for bit, others in required.items() if not others <= offered} == set()


def test_protocol_features() -> None:
    # MQ, REPLY_ACK, NET_MTU, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS
    assert bits(OFFERED_PROTOCOL_FEATURES) == {0, 3, 4, 9, 13, 15}
