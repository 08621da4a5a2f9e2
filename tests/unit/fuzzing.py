"""Hypothesis strategies and settings for functions that must take any bytes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

fuzz = settings(derandomize=True, deadline=None, max_examples=300)
"""The same examples each time, for tests are deterministic here."""


@st.composite
def mutated(draw: st.DrawFn, frames: list[bytes]) -> bytes:
    """One of `frames` with some bytes overwritten, then perhaps cut short or continued."""
    frame = bytearray(draw(st.sampled_from(frames)))
    for position in draw(st.lists(st.integers(0, len(frame) - 1), max_size=4)):
        frame[position] = draw(st.sampled_from((0, 1, 2, 4, 6, 0x7F, 0x80, 0xFE, 0xFF)))
    if draw(st.booleans()):
        del frame[draw(st.integers(0, len(frame))) :]
    return bytes(frame) + draw(st.binary(max_size=8))
