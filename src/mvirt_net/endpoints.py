"""Where the control interfaces listen, as a user writes it: ``[::1]:50054``, ``unix:/run/x.sock``.

There is no password on them: who reaches them may do everything that they can do. So TCP is
confined to addresses of this host, where it lets in all its users; a unix socket lets in only those
that its mode, owner and group do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

import attrs

MAX_SOCKET_PATH: Final = 107
"""Bytes of a unix socket path: ``sun_path`` has 108, one for the closing zero (unix(7))."""
DEFAULT_GRPC = "[::1]:50054"
"""Where clients of upstream look for the service."""

_UNIX = "unix:"
_TCP = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", re.ASCII)


@attrs.frozen
class TcpEndpoint:
    """An address of this host and a port; port 0 is any that is free."""

    host: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return (
            f"[{self.host}]:{self.port}" if self.host.version == 6 else f"{self.host}:{self.port}"
        )


@attrs.frozen
class UnixEndpoint:
    """A unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"{_UNIX}{self.path}"


Endpoint = TcpEndpoint | UnixEndpoint


def parse_endpoint(text: Any) -> Endpoint:
    """``unix:/absolute/path``, ``127.0.0.1:8080`` or ``[::1]:50054``.

    Raises:
        ValueError: it is none of these, or not an address of this host.
    """
    if isinstance(text, TcpEndpoint | UnixEndpoint):
        return text
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a text")
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute():
            raise ValueError(f"{text!r}: the path must be absolute")
        if not path.name or len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ValueError(
                f"{text!r}: not the path of a file, of {MAX_SOCKET_PATH} bytes at most"
            )
        return UnixEndpoint(path)
    return _parse_tcp(text)


def parse_endpoints(values: Any) -> tuple[Endpoint, ...]:
    """One endpoint or several: a text, with commas between them, or a list of such texts.

    Raises:
        ValueError: one of them is wrong, or is there twice.
    """
    texts: Iterable[Any] = [values] if isinstance(values, str) else values
    if not isinstance(texts, list | tuple):
        raise ValueError(f"{values!r} is not a list")
    found: list[Endpoint] = []
    for text in texts:
        parts = text.split(",") if isinstance(text, str) else [text]
        found += [parse_endpoint(part.strip() if isinstance(part, str) else part) for part in parts]
    for endpoint in found:
        if found.count(endpoint) > 1 and getattr(endpoint, "port", None) != 0:
            raise ValueError(f"{endpoint} is there twice")
    return tuple(found)


def _parse_tcp(text: str) -> TcpEndpoint:
    match = _TCP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not like [::1]:50054, 127.0.0.1:8080 or unix:/path")
    name, port = match[1] or match[2], int(match[3])
    host = ip_address("127.0.0.1" if name == "localhost" else name)
    if not host.is_loopback:
        raise ValueError(f"{text}: not a loopback address, and nothing protects it from others")
    if port > 0xFFFF:
        raise ValueError(f"{text}: no such port")
    return TcpEndpoint(host, port)
