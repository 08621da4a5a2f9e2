"""Tests that run with split rings and again with packed ones, and those that mean one of the two.

A module whose tests do so has `BOTH_LAYOUTS` among its marks; the fixture that this asks for is in
``tests/conftest.py``.
"""

from __future__ import annotations

import pytest

from tests.harness.vhost_user import Feature

SPLIT = 0
PACKED = int(Feature.RING_PACKED)
"""What is added to the features of every guest."""

BOTH_LAYOUTS = pytest.mark.usefixtures("layout")
SPLIT_ONLY = pytest.mark.parametrize("layout", [SPLIT], indirect=True, ids=["split"])
"""The test writes to parts of a ring that only this layout has."""
PACKED_ONLY = pytest.mark.parametrize("layout", [PACKED], indirect=True, ids=["packed"])
"""As `SPLIT_ONLY`, the other way round."""
