"""The configuration space, byte by byte."""

from __future__ import annotations

from mvirt_net.model import MacAddress
from mvirt_net.vhost_user.config_space import net_config

MAC = MacAddress.parse("52:54:00:12:34:56")


def test_literal() -> None:
    space = net_config(MAC, mtu=1500)
    assert space == bytes.fromhex("525400123456 0100 0800 dc05") + bytes(244)
    assert len(space) == 256


def test_largest_mtu() -> None:
    assert net_config(MAC, mtu=65535)[10:12] == b"\xff\xff"
