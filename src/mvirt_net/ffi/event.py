"""Eventfds of others, which never hold us up."""

from __future__ import annotations

import os

from ._core import lib


def event_result(result: int) -> bool:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result == 1


def is_eventfd(fd: int) -> bool:
    """Whether `fd` is an eventfd. Raises OSError when it is no open file descriptor."""
    return event_result(lib.mv_event_check(fd))


def read_event(fd: int) -> bool:
    """Take the count of an eventfd without ever blocking; False: it was 0. Raises OSError."""
    return event_result(lib.mv_event_read(fd))


def write_event(fd: int) -> bool:
    """Add 1 to an eventfd without ever blocking. Raises OSError.

    Returns:
        Unless `events_never_block`, False for one whose counter is full.
    """
    return event_result(lib.mv_event_write(fd))


def events_never_block() -> bool:
    """Whether this kernel lets `write_event` keep its word whatever a frontend does meanwhile."""
    return bool(lib.mv_event_never_blocks())
