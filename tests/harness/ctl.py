"""``mvirt-net ctl`` as users run it, and a stand-in for the daemon that says what a test wants."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "mvirt_net", "ctl")


def environment(address: Path | str) -> dict[str, str]:
    """In which a client finds the daemon there."""
    return {**os.environ, "MVIRT_NET_CONTROL": str(address)}


def run_ctl(address: Path | str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*COMMAND, *args],
        env=environment(address),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def answer(value: object, status: str = "200 OK") -> bytes:
    """An HTTP response with JSON."""
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n"
    return f"{head}content-type: application/json\r\n\r\n".encode() + body


def stream(*values: object) -> bytes:
    """An HTTP response with a JSON object a line, that ends with the connection."""
    lines = "".join(f"{json.dumps(value)}\n" for value in values)
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n" + lines.encode()


@contextlib.contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Whoever listens at `path` gives one answer to each connection and hangs up.

    Yields:
        What was asked for, the first lines of the requests.
    """
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_answer, args=(listener, answers, asked))
        thread.start()
        try:
            yield asked
        finally:
            # Wakes the thread when not all of its answers were asked for.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(listener: socket.socket, answers: tuple[bytes, ...], asked: list[bytes]) -> None:
    for data in answers:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(ConnectionError):
            asked.append(connection.recv(65536).partition(b"\r\n")[0])
            connection.sendall(data)
