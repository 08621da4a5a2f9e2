"""Configuration files for daemons under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def one_network(**nics: Mapping[str, str | Path]) -> str:
    """A file with the network ``blue``, 10.0.0.0/24, and NICs in it: by name, their other keys."""
    tables = ['[[network]]\nname = "blue"\nipv4_subnet = "10.0.0.0/24"\n']
    for name, keys in nics.items():
        # A string of JSON is one of TOML, too.
        lines = [f"{key} = {json.dumps(str(value))}" for key, value in keys.items()]
        tables.append("\n".join((f'[[nic]]\nname = "{name}"\nnetwork = "blue"', *lines, "")))
    return "".join(tables)
