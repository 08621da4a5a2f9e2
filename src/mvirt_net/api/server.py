"""The control interfaces together: who listens where, and what is served there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import attrs
import trio

from ..endpoints import ApiSpec
from ..log import get_logger
from .grpc import GrpcHandler
from .http1 import Handler, Http1Connection
from .http2 import Http2Connection
from .transport import Budget, Connection, Listener, open_listeners

_log = get_logger(__name__)
