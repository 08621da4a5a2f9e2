"""``python -m mvirt_net``: the same as the command ``mvirt-net``."""

from __future__ import annotations

import sys

from .cli import run

if __name__ == "__main__":
    sys.exit(run())
