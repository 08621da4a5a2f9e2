"""Where daemon and client meet when nobody has told them: folders and the control socket."""

from __future__ import annotations

import os
from pathlib import Path

CONTROL_SOCKET = "control.sock"
"""In the folder of the sockets."""

_FOLDER = "mvirt-net"


def daemon_socket_dir() -> Path:
    """What systemd gives us (systemd.exec(5), RuntimeDirectory=), else the usual place."""
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given.partition(":")[0])
    if os.geteuid() == 0:
        return _system_dir()
    return _user_dir()


def control_sockets() -> list[Path]:
    """Where a client looks for a daemon: this user's own first, then that of the system."""
    folders = [_system_dir()] if os.geteuid() == 0 else [_user_dir(), _system_dir()]
    return [folder / CONTROL_SOCKET for folder in folders]


def _system_dir() -> Path:
    return Path("/run", _FOLDER)


def _user_dir() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", _FOLDER)
