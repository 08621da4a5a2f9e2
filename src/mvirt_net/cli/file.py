"""Reading a configuration file for a command."""

from __future__ import annotations

from pathlib import Path

from ..config import load
from ..errors import ConfigError, ConfigFileError
from ..model import DaemonConfig, SocketAccess


def load_file(path: Path, socket_dir: Path, *access: SocketAccess) -> DaemonConfig:
    """`config.load`; a file that is not there is a wrong one, one that may not be read is not."""
    try:
        return load(path, socket_dir, *access)
    except PermissionError:
        raise
    except OSError as error:
        raise ConfigFileError(path, [ConfigError("", error.strerror or str(error))]) from error
