"""Asking the daemon: JSON over HTTP, on a unix socket or TCP on this host.

Each request has a connection of its own, which costs little here, and there is none that the daemon
may have closed since. What it says is not trusted to be what it should be: sizes are bounded, and
its words are made `printable` before they are anybody's to read.
"""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import pwd
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import attrs

from ..endpoints import Endpoint, TcpEndpoint, UnixEndpoint, parse_endpoint
from ..errors import NoDaemonError, SocketAccessError, VerbRefused
from ..pcapng import whole_blocks
from ..places import control_sockets
from .text import printable

TIMEOUT = 10.0
"""Seconds for the daemon to answer."""
MAX_ANSWER = 64 << 20
MAX_LINE = 1 << 20
"""Bytes of one line of a stream, or of one block."""
_PIECE = 1 << 17

_START = "start one with 'mvirt-net serve --config FILE --http'"
_NAME = "name its socket by --socket or $MVIRT_NET_CONTROL"


@attrs.frozen
class Client:
    """A daemon, and where it is asked. Every method raises NoDaemonError when nobody answers,
    SocketAccessError when it is not for this user, and VerbRefused when the daemon refuses.
    """

    endpoint: Endpoint
    timeout: float = TIMEOUT

    def get(self, *path: str, **query: str) -> Any:
        return self._ask("GET", path, query)

    def post(self, *path: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", path, body=body)

    def patch(self, *path: str, body: dict[str, Any]) -> Any:
        return self._ask("PATCH", path, body=body)

    def delete(self, *path: str, **query: str) -> Any:
        return self._ask("DELETE", path, query)

    def stream(self, *path: str) -> Iterator[dict[str, Any]]:
        """The objects of an endless answer, as they come. It ends when the daemon does."""
        with self._connection() as connection:
            sock = connection.sock
            response = self._response(connection, "GET", path)
            sock.settimeout(None)
            while line := response.readline(MAX_LINE):
                yield self._object(line)

    def packets(self, **query: str) -> Iterator[bytes]:
        """A pcapng file as it grows, whole blocks at a time. It ends when the capture does."""
        with self._connection() as connection:
            sock = connection.sock
            response = self._response(connection, "GET", ("packets",), query)
            sock.settimeout(None)
            rest = b""
            while data := _more_of(response):
                rest += data
                end = whole_blocks(rest, len(rest))
                if end == 0 and len(rest) > MAX_LINE:
                    raise self._strange("answers, but not as mvirt-net does")
                yield rest[:end]
                rest = rest[end:]

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        with self._connection() as connection:
            response = self._response(connection, method, path, query, body)
            data = response.read(MAX_ANSWER)
        return self._object(data) if data else {}

    def _response(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: tuple[str, ...],
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> http.client.HTTPResponse:
        """A successful one. Raises VerbRefused for others."""
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode(query)
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"content-type": "application/json"}
        connection.request(method, target, data, headers)
        response = connection.getresponse()
        if not 200 <= response.status < 300:
            raise self._refusal(response.status, response.read(MAX_ANSWER))
        return response

    def _refusal(self, status: int, data: bytes) -> VerbRefused:
        problem = self._object(data)
        message = printable(problem.get("detail") or problem.get("title") or f"status {status}")
        return VerbRefused(message, status, printable(problem.get("field", "")))

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._strange("answers, but not as mvirt-net does")
        return value

    def _strange(self, what: str) -> NoDaemonError:
        return NoDaemonError(f"{_place(self.endpoint)}: whoever listens there {what}; {_NAME}")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """What goes wrong in the block is said in words that help."""
        connection = self._unconnected()
        try:
            self._connect(connection)
            yield connection
        except TimeoutError as error:
            raise NoDaemonError(
                f"{_place(self.endpoint)}: no answer in {self.timeout:g} s:"
                " the daemon is stopped or overloaded, see its log"
            ) from error
        except (http.client.RemoteDisconnected, ConnectionError) as error:
            raise NoDaemonError(
                f"{_place(self.endpoint)}: hung up: the daemon has ended, its allow_uid and"
                " allow_gid do not have you, or this is the socket of a NIC"
            ) from error
        except http.client.HTTPException as error:
            raise self._strange("does not speak HTTP") from error
        finally:
            connection.close()

    def _unconnected(self) -> http.client.HTTPConnection:
        if isinstance(self.endpoint, UnixEndpoint):
            return _UnixConnection(self.endpoint.path, self.timeout)
        return http.client.HTTPConnection(
            str(self.endpoint.host), self.endpoint.port, timeout=self.timeout
        )

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except TimeoutError:
            raise
        except PermissionError as error:
            raise SocketAccessError(_denied(self.endpoint)) from error
        except OSError as error:
            raise NoDaemonError(_absent(self.endpoint, error)) from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _more_of(response: http.client.HTTPResponse) -> bytes:
    """What has come of a body; nothing more at its end. Raises NoDaemonError if that is missing."""
    try:
        return response.read1(_PIECE)
    except (http.client.IncompleteRead, ConnectionError) as error:
        raise NoDaemonError(
            "the daemon has ended, or has cut off one who took packets too slowly"
        ) from error


def parse_socket(text: str) -> Endpoint:
    """Where a user says that the daemon is: a path, ``unix:PATH``, ``http://127.0.0.1:8080`` or
    ``127.0.0.1:8080``.

    Raises:
        ValueError: it is none of these, or not an address of this host.
    """
    if text.startswith("http://"):
        return parse_endpoint(text.removeprefix("http://").rstrip("/"))
    if "/" not in text and re.search(r":\d+$", text):
        return parse_endpoint(text)
    return UnixEndpoint(Path(text.removeprefix("unix:")).absolute())


def default_endpoint() -> Endpoint:
    """The first place where a daemon may be.

    Raises:
        NoDaemonError: there is no socket in any of them.
    """
    paths = control_sockets()
    for path in paths:
        if _may_be_there(path):
            return UnixEndpoint(path)
    places = " or ".join(map(str, paths))
    raise NoDaemonError(f"no daemon is running: no socket at {places}; {_START}, or {_NAME}")


def _may_be_there(path: Path) -> bool:
    """Whether there is a file, as far as this user may know."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _place(endpoint: Endpoint) -> str:
    if isinstance(endpoint, TcpEndpoint):
        return f"http://{endpoint}"
    return printable(endpoint.path)


def _absent(endpoint: Endpoint, error: OSError) -> str:
    """Why nobody could be connected to, and what to do."""
    place = _place(endpoint)
    if isinstance(error, FileNotFoundError):
        return f"{place}: no such socket; {_START}, or {_NAME}"
    if isinstance(error, ConnectionRefusedError):
        return f"{place}: nobody listens there, the daemon has ended; {_START}, or {_NAME}"
    return f"{place}: {error.strerror or error}; {_NAME}"


def _denied(endpoint: Endpoint) -> str:
    """Who may connect, as far as this user may know."""
    place = _place(endpoint)
    if not isinstance(endpoint, UnixEndpoint):
        return f"{place}: permission denied"
    status = _nearest(endpoint.path)
    if status is None:
        return f"{place}: permission denied; try as root"
    user, group = _user_name(status.st_uid), _group_name(status.st_gid)
    if not status.st_mode & 0o020 and not status.st_mode & 0o010:
        return f"{place}: permission denied: it is for user {user} only; try 'sudo -u {user}'"
    return (
        f"{place}: permission denied: it is for user {user} and group {group};"
        f" join it ('usermod -aG {group} USER', then log in again) or try 'sudo'"
    )


def _nearest(path: Path) -> os.stat_result | None:
    """Of the socket, or the folder in which it may not be looked for."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return place.stat()
    return None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
