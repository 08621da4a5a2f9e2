"""Sequences of blocks, whole and cut off."""

from __future__ import annotations

import struct

import pytest

from mvirt_net.pcapng import (
    frames_by_interface,
    interface_description,
    section_header,
    whole_blocks,
)


def packet(interface: int) -> bytes:
    """A block with nothing in it but that."""
    return struct.pack("<IIIIIIII", 6, 32, interface, 0, 0, 0, 0, 32)


BLOCKS = [section_header("x"), interface_description("vm1", "", snaplen=1), packet(0), packet(1)]
WHOLE = b"".join([*BLOCKS, packet(1)])


def test_whole_blocks_of_what_is_cut_anywhere() -> None:
    ends = [0]
    for block in [*BLOCKS, packet(1)]:
        ends.append(ends[-1] + len(block))
    for length in range(len(WHOLE) + 1):
        expected = max(end for end in ends if end <= length)
        assert whole_blocks(WHOLE, length) == expected
        assert whole_blocks(WHOLE[:length], length) == expected


def test_frames() -> None:
    assert frames_by_interface(WHOLE) == {0: 1, 1: 2}
    assert frames_by_interface(WHOLE[:-1]) == {0: 1, 1: 1}
    assert frames_by_interface(b"") == {}


@pytest.mark.parametrize("total", [0, 8, 11])
def test_blocks_that_are_too_small_are_none(total: int) -> None:
    data = WHOLE + struct.pack("<II", 6, total) + bytes(100)
    assert whole_blocks(data, len(data)) == len(WHOLE)
