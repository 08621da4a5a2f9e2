"""An eventfd for which so many wait that signalling it takes some milliseconds."""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def watched(fd: int, times: int) -> Iterator[None]:
    """The square of so many wait for the eventfd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * times + 1000), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        copies = [os.dup(fd) for _ in range(times)]
        for copy in copies:
            stack.callback(os.close, copy)
        for _ in range(times):
            epoll = stack.enter_context(select.epoll())
            for copy in copies:
                epoll.register(copy, select.EPOLLIN | select.EPOLLET)
        yield
