"""Closing file descriptors that came from somebody else."""

from __future__ import annotations

import errno
import os


def close_fd(fd: int) -> None:
    """Close `fd`, whatever its file says about that.

    On Linux the descriptor is gone even when ``close`` reports an error (close(2), "Dealing with
    error returns"), and which error a foreign file reports is its owner's choice. EBADF alone is
    ours: somebody closed it before, so it may be another one's by now.
    """
    try:
        os.close(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def close_fds(fds: list[int]) -> None:
    """Close all of `fds` and leave the list empty."""
    while fds:
        close_fd(fds.pop())
