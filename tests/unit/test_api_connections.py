"""What clients of the control interfaces may cost, and that hypercorn holds them to it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
from hypercorn.trio.worker_context import WorkerContext
from trio.testing import wait_all_tasks_blocked

from mvirt_net.api import connections
from mvirt_net.api.connections import App, Client, Listener, open_listener
from mvirt_net.api.exchange import Budget, Exchange
from mvirt_net.api.http import MAX_BODY, HttpApp, Request, Response
from mvirt_net.endpoints import TcpEndpoint, UnixEndpoint
from mvirt_net.model import SocketAccess
from tests.harness.clock import virtual_time

pytestmark = virtual_time

IDLE = 50.0
"""Seconds."""
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MEBIBYTE = bytes(1 << 20)


async def hello(_request: Request) -> Response:
    return Response(200, b"hello")


def http(handler: Callable[[Request], Awaitable[Response]], budget: Budget | None = None) -> App:
    return HttpApp(handler, False, budget or Budget())


@asynccontextmanager
async def serving(
    path: Path, app: App, access: SocketAccess | None = None
) -> AsyncIterator[Listener]:
    """A listener at `path` that serves `app`; its end must not need time."""
    listener = open_listener(UnixEndpoint(path), access or SocketAccess())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, app, IDLE)
        yield listener
        stopped_at = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == stopped_at
    assert not path.exists()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_unix_socket(path)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def read_answer(stream: trio.SocketStream) -> bytes:
    """To the end of the body of `hello`."""
    answer = b""
    while not answer.endswith(b"hello"):
        chunk = await stream.receive_some()
        assert chunk, answer
        answer += chunk
    return answer


class H2Client:
    """HTTP/2 with all of its possibilities for mischief."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.stream = stream
        self.h2.initiate_connection()

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def request(self, stream_id: int, *, path: str = "/", end: bool = True) -> None:
        headers = [
            (":method", "POST"),
            (":path", path),
            (":scheme", "http"),
            (":authority", "localhost"),
        ]
        self.h2.send_headers(stream_id, [*headers, ("te", "trailers")], end_stream=end)
        await self.flush()

    async def wait_for(self, kind: type[Any]) -> Any:
        """The next event of that kind."""
        while data := await self.stream.receive_some():
            for event in self.h2.receive_data(data):
                if isinstance(event, kind):
                    return event
            await self.flush()
        raise AssertionError("the server hung up")


async def test_the_last_slot_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    path = tmp_path / "x.sock"
    async with serving(path, http(hello)), connected(path) as first, connected(path) as second:
        for stream in (first, second):
            await stream.send_all(GET)
            await read_answer(stream)
        async with connected(path) as third:
            await third.send_all(GET)
            with trio.move_on_after(IDLE / 2) as waiting:
                await third.receive_some()
            assert waiting.cancelled_caught
            await first.aclose()
            with trio.fail_after(2 * connections.HANG_UP_TIMEOUT):
                assert b"200" in await read_answer(third)
    assert "all connections are taken, others wait" in caplog.messages


async def test_who_has_nothing_to_say_is_sent_away(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(hello)), connected(path) as silent, connected(path) as half:
        await half.send_all(b"GET / HTTP/1.1\r\nHost:")
        began = trio.current_time()
        assert await read_all(silent) == b""
        assert await read_all(half) == b""
        assert trio.current_time() - began == pytest.approx(IDLE)


async def test_who_does_not_complete_a_request_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(hello)), connected(path) as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n1")
        assert b" 408 " in (await read_all(stream)).splitlines()[0]


async def test_a_body_that_is_too_large_is_read_to_its_end_but_not_held(tmp_path: Path) -> None:
    path, budget = tmp_path / "x.sock", Budget()
    async with serving(path, http(hello, budget)), connected(path) as stream:
        size = MAX_BODY + 1
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
        )
        await stream.send_all(bytes(size - 1))
        await stream.send_all(b"x")
        with trio.fail_after(1):
            assert b" 413 " in await stream.receive_some()
    assert budget.left == Budget().left


async def test_too_much_for_all_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(hello, Budget(left=3))), connected(path) as stream:
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n1234"
        )
        assert b" 503 " in await stream.receive_some()


async def test_who_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    ended = trio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        async def answer(exchange: Exchange) -> None:
            await exchange.begin(200, [])
            try:
                while True:
                    await exchange.send(MEBIBYTE)
            finally:
                ended.set()

        await Exchange(scope, send, Budget(), 0).run(receive, answer)

    async with serving(path, endless), connected(path) as stream:
        await stream.send_all(GET)
        began = trio.current_time()
        await ended.wait()
        assert trio.current_time() - began == pytest.approx(connections.WRITE_TIMEOUT)


async def test_who_reads_nothing_does_not_delay_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    sent = trio.Event()

    async def large(_request: Request) -> Response:
        sent.set()
        return Response(200, MEBIBYTE)

    async with AsyncExitStack() as afterwards, serving(path, http(large)):
        stream = await afterwards.enter_async_context(connected(path))
        await stream.send_all(GET)
        await sent.wait()
        await wait_all_tasks_blocked()


async def test_a_closed_window_stops_the_answer(tmp_path: Path) -> None:
    """Rather than to have all of it in memory; after a while the answer is given up."""
    path = tmp_path / "x.sock"
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def answer(exchange: Exchange) -> None:
            nonlocal sent
            await exchange.begin(200, [])
            for _ in range(1000):
                await exchange.send(bytes(1000))
                sent += 1000
            await exchange.send(b"", more=False)

        await Exchange(scope, send, Budget(), 0).run(receive, answer)

    async with serving(path, app), connected(path) as stream:
        client = H2Client(stream)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await client.request(1)
        await client.wait_for(h2.events.ResponseReceived)
        with trio.move_on_after(10):
            await client.wait_for(h2.events.DataReceived)
        assert 0 < sent < 50_000
        # The others of the connection are served, and so is this one when its window opens.
        client.h2.increment_flow_control_window(1_000_000, 1)
        client.h2.increment_flow_control_window(1_000_000)
        await client.flush()
        await client.wait_for(h2.events.StreamEnded)
        assert sent == 1_000_000


async def test_a_small_answer_that_is_not_taken_ends_its_stream(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """All of it has gone into a buffer, which would stay as long as the connection."""
    path = tmp_path / "x.sock"
    async with serving(path, http(hello)), connected(path) as stream:
        client = H2Client(stream)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await client.request(1)
        reset = await client.wait_for(h2.events.StreamReset)
        assert reset.stream_id == 1


async def test_data_after_the_answer_ends_only_that_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is what ends hypercorn's own `serve`."""
    path = tmp_path / "x.sock"

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with serving(path, app), connected(path) as bad, connected(path) as good:
        client = H2Client(bad)
        await client.request(1, end=False)
        await client.wait_for(h2.events.StreamEnded)
        await wait_all_tasks_blocked()
        client.h2.send_data(1, b"more")
        await client.flush()
        await read_all(bad)
        await good.send_all(GET)
        assert b"200" in await good.receive_some()
    assert "client cut off" in caplog.messages


async def test_a_connection_takes_any_number_of_requests(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(hello)), connected(path) as stream:
        client = H2Client(stream)
        for n in range(1100):
            await client.request(2 * n + 1)
            await client.wait_for(h2.events.StreamEnded)


class Forever:
    """An answer without an end, which tells how it fares."""

    def __init__(self) -> None:
        self.begun, self.cancelled = trio.Event(), trio.Event()

    async def __call__(self, _request: Request) -> Response:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


async def test_a_client_that_goes_away_cancels_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    forever = Forever()
    async with serving(path, http(forever)):
        async with connected(path) as stream:
            client = H2Client(stream)
            await client.request(1)
            await forever.begun.wait()
            client.h2.reset_stream(1)
            await client.flush()
            await forever.cancelled.wait()
        forever.begun, forever.cancelled = trio.Event(), trio.Event()
        async with connected(path) as stream:
            await stream.send_all(GET)
            await forever.begun.wait()
        await forever.cancelled.wait()


async def test_a_client_that_may_not_connect_is_sent_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.sock"
    nobody = SocketAccess(allow_uid=[os.geteuid() + 1])
    async with serving(path, http(hello), nobody), connected(path) as stream:
        assert await stream.receive_some() == b""
    assert "client sent away: it may not connect" in caplog.messages


async def test_reads_are_small() -> None:
    """A piece holds no more requests than can be parsed between two turns of the data plane."""
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        await theirs.send(bytes(8 * connections.READ_SIZE))
        client = Client(trio.SocketStream(ours), trio.Lock())
        assert len(await client.receive_some(1 << 16)) == connections.READ_SIZE


async def test_clients_are_read_in_turn() -> None:
    turns = trio.Lock()
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        await theirs.send(b"x")
        client = Client(trio.SocketStream(ours), turns)
        async with trio.open_nursery() as nursery, turns:
            nursery.start_soon(client.receive_some, 1)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks


async def test_a_websocket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(hello)), connected(path) as stream:
        await stream.send_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 403 " in await stream.receive_some()


async def test_a_tcp_port_that_was_free_is_told() -> None:
    listener = open_listener(TcpEndpoint(IPv4Address("127.0.0.1"), 0), SocketAccess())
    try:
        assert isinstance(listener.endpoint, TcpEndpoint)
        address = (str(listener.endpoint.host), listener.endpoint.port)
        with socket.create_connection(address):
            pass
    finally:
        listener.close()
        listener.close()


@asynccontextmanager
async def half_an_answer() -> AsyncIterator[AsyncIterator[bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    yield chunks()


async def failing_midway(request: Request) -> Response:
    return Response(200, half_an_answer() if request.path == "/half" else b"hello")


async def test_an_answer_that_fails_midway_lacks_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(failing_midway)), connected(path) as stream:
        await stream.send_all(GET.replace(b"/", b"/half", 1))
        answer = await read_all(stream)
    assert answer.endswith(b"4\r\nhalf\r\n")  # and no chunk of length 0
    assert caplog.messages == ["request failed"]


async def test_an_answer_that_fails_midway_costs_its_stream_only(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, http(failing_midway)), connected(path) as stream:
        client = H2Client(stream)
        for stream_id in range(1, 4 * connections.MAX_STREAMS, 4):
            await client.request(stream_id, path="/half")
            reset = await client.wait_for(h2.events.StreamReset)
            assert (reset.stream_id, reset.error_code) == (stream_id, 2)
            await client.request(stream_id + 2)
            ended = await client.wait_for(h2.events.StreamEnded)
            assert ended.stream_id == stream_id + 2


async def test_failures_fill_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.sock"

    async def fail(_request: Request) -> Response:
        raise ZeroDivisionError

    async with serving(path, http(fail)):
        for _ in range(5):
            async with connected(path) as stream:
                await stream.send_all(GET)
                assert b" 500 " in await stream.receive_some()
        assert caplog.messages.count("request failed") == 1


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ('"1"', b"304"),
        ('"0", W/"1"', b"304"),
        ("*", b"304"),
        ('"2"', b"200"),
        ("1", b"200"),
    ],
)
async def test_what_the_client_has_is_not_sent(tmp_path: Path, known: str, status: bytes) -> None:
    path = tmp_path / "x.sock"

    async def tagged(_request: Request) -> Response:
        return Response(200, b"hello", "text/plain", etag='"1"')

    async with serving(path, http(tagged)), connected(path) as stream:
        await stream.send_all(GET[:-2] + f"If-None-Match: {known}\r\n\r\n".encode())
        head, body = (await stream.receive_some()).split(b"\r\n\r\n")
        while status == b"200" and not body:
            body = await stream.receive_some()
    assert head.split()[1] == status
    assert b'etag: "1"' in head
    assert body == (b"hello" if status == b"200" else b"")


@pytest.mark.parametrize(("size", "served"), [(-2000, True), (2000, False)])
async def test_headers_of_both_versions_have_a_limit(
    tmp_path: Path, size: int, served: bool
) -> None:
    path = tmp_path / "x.sock"
    target = "/" + "x" * (connections.MAX_HEADERS + size)
    async with serving(path, http(hello)):
        async with connected(path) as stream:
            await stream.send_all(GET.replace(b"/", target.encode(), 1))
            status = (await stream.receive_some()).split()[1]
            assert status == (b"200" if served else b"431")
        async with connected(path) as stream:
            client = H2Client(stream)
            await client.request(1, path=target)
            kind = h2.events.StreamEnded if served else h2.events.ConnectionTerminated
            await client.wait_for(kind)


async def test_one_who_hangs_up_is_noticed_though_more_was_asked_for(tmp_path: Path) -> None:
    """Nothing is read of a connection whose next request waits, here for ever."""
    path = tmp_path / "x.sock"
    forever = Forever()
    async with serving(path, http(forever)):
        async with connected(path) as stream:
            await stream.send_all(2 * GET)
            await forever.begun.wait()
            await wait_all_tasks_blocked()
        with trio.fail_after(connections.HANG_UP_INTERVAL + 2 * connections.HANG_UP_TIMEOUT):
            await forever.cancelled.wait()


async def test_nothing_is_lost_when_an_answer_is_cancelled() -> None:
    """What h2 has to send may be of other streams, too."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(event)

    protocol = connections._StrictProtocol(
        None,
        connections._config(IDLE),
        WorkerContext(None),
        None,
        None,
        False,
        None,
        None,
        send,
    )
    protocol.connection.initiate_connection()
    with trio.CancelScope() as cancelled:
        cancelled.cancel()
        await protocol._flush()
    assert [event.data for event in sent] != []
    assert protocol.connection.data_to_send() == b""
