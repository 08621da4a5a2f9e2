"""gRPC as its official client never speaks it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h2.events
import pytest
import trio

from mvirt_net.api.client_log import LINE_INTERVAL
from mvirt_net.api.descriptors import Schema, load_files
from mvirt_net.api.exchange import STALL_TIMEOUT, Budget
from mvirt_net.api.grpc import (
    MAX_MESSAGE,
    REQUEST_TIMEOUT,
    CallError,
    GrpcApp,
    Method,
    Receive,
    Send,
    Status,
)
from tests.harness.clock import virtual_time
from tests.unit.test_api_connections import GET, H2Client, connected, serving

pytestmark = virtual_time

REQUEST: Any = Schema(load_files()).message("mvirt.net.GetNicRequest")
GOOD = {
    ":method": "POST",
    ":path": "/x/unary",
    ":scheme": "http",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


async def echo(request: Any) -> Any:
    return request


async def echo_once(request: Any, send: Send) -> None:
    await send(request)


async def endless(_receive: Receive, send: Send) -> None:
    while True:
        await send(REQUEST(id="x" * 1000))


def app() -> GrpcApp:
    methods = {
        "/x/unary": Method(REQUEST, unary=echo),
        "/x/server_stream": Method(REQUEST, server_stream=echo_once),
        "/x/endless": Method(REQUEST, stream=endless),
    }
    return GrpcApp(methods, Budget())


def message(data: bytes, size: int | None = None) -> bytes:
    return struct.pack(">BI", 0, len(data) if size is None else size) + data


async def answer(
    client: H2Client, headers: dict[str, str], body: bytes, *, end: bool = True
) -> Any:
    """The headers that end the answer: the trailers if there are any."""
    client.h2.send_headers(1, list(headers.items()))
    client.h2.send_data(1, body, end_stream=end)
    await client.flush()
    found: dict[str, str] = {}
    while data := await client.stream.receive_some():
        for event in client.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                found.update((n.decode(), v.decode()) for n, v in event.headers)
            if isinstance(event, h2.events.StreamEnded):
                return found
        await client.flush()
    raise AssertionError("the server hung up")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "application/json"}, "415"),
        ({"content-type": "application/grpcfoo"}, "415"),
        ({"content-type": "application/grpc-web+proto"}, "415"),
        ({"content-type": "application/grpc+json"}, "415"),
        ({"content-type": None}, "415"),
        ({"te": None}, "400"),
    ],
)
async def test_what_is_no_grpc_is_answered_by_http(
    tmp_path: Path, changes: dict[str, str | None], status: str
) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, app()), connected(path) as stream:
        headers = {n: v for n, v in {**GOOD, **changes}.items() if v is not None}
        found = await answer(H2Client(stream), headers, b"")
    assert found[":status"] == status
    assert "grpc-status" not in found


@pytest.mark.parametrize(
    "content_type",
    ["application/grpc+proto", "application/grpc; charset=utf-8", "Application/GRPC+Proto ;x"],
)
async def test_content_types_of_grpc(tmp_path: Path, content_type: str) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, app()), connected(path) as stream:
        headers = {**GOOD, "content-type": content_type}
        found = await answer(H2Client(stream), headers, message(b""))
    assert (found[":status"], found["grpc-status"]) == ("200", "0")


async def test_it_needs_http_2(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, app()), connected(path) as stream:
        await stream.send_all(GET)
        assert b" 505 " in await stream.receive_some()


@pytest.mark.parametrize(
    ("body", "end", "status", "words"),
    [
        (message(b""), True, "0", ""),
        (b"", True, "13", "no request"),
        (message(b"")[:3], True, "13", "ends inside a message"),
        (message(b"", 100), True, "13", "ends inside a message"),
        (message(b"") * 2, True, "13", "more than one request"),
        (message(b"\xff"), True, "13", "cannot be decoded"),
        (message(b"", 1 << 31), True, "8", f"more than {MAX_MESSAGE} bytes"),
        (message(b"", MAX_MESSAGE + 1), False, "8", f"more than {MAX_MESSAGE} bytes"),
        (b"\x01" + message(b"")[1:], True, "13", "nobody says how"),
        (message(b"", 100), False, "4", "no complete request in 30 s"),
        (message(b""), False, "4", "no complete request in 30 s"),
        (b"", False, "4", "no complete request in 30 s"),
    ],
)
@pytest.mark.parametrize("method", ["unary", "server_stream"])
async def test_a_body_that_is_no_message_ends_the_call(
    tmp_path: Path, method: str, body: bytes, end: bool, status: str, words: str
) -> None:
    path = tmp_path / "x.sock"
    async with serving(path, app()), connected(path) as stream:
        with trio.fail_after(2 * REQUEST_TIMEOUT):
            headers = {**GOOD, ":path": f"/x/{method}"}
            found = await answer(H2Client(stream), headers, body, end=end)
    assert found["grpc-status"] == status
    assert words in found.get("grpc-message", "")


async def test_what_an_end_says_is_short(tmp_path: Path) -> None:
    """HPACK takes seconds for a long header, and all guests' services wait."""
    path = tmp_path / "x.sock"

    async def refuse(_request: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise CallError(Status.INVALID_ARGUMENT, "ä" * 1_000_000)

    methods = {"/x/unary": Method(REQUEST, unary=refuse)}
    async with serving(path, GrpcApp(methods, Budget())), connected(path) as stream:
        found = await answer(H2Client(stream), GOOD, message(b""))
    assert (found["grpc-status"], found["grpc-message"]) == ("3", "%C3%A4" * 1000)


@pytest.mark.parametrize("timeout", ["1S", "1000m", "1000000u", "soon"])
async def test_a_deadline_ends_the_call(tmp_path: Path, timeout: str) -> None:
    """What makes no sense counts as a client that does not wait at all."""
    path = tmp_path / "x.sock"

    async def forever(_request: Any) -> Any:
        await trio.sleep_forever()

    methods = {"/x/unary": Method(REQUEST, unary=forever)}
    async with serving(path, GrpcApp(methods, Budget())), connected(path) as stream:
        began = trio.current_time()
        headers = {**GOOD, "grpc-timeout": timeout}
        found = await answer(H2Client(stream), headers, message(b""))
        assert trio.current_time() - began == pytest.approx(0 if timeout == "soon" else 1)
    assert found["grpc-status"] == "4"


async def test_a_call_whose_answer_is_not_taken_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    budget = Budget()
    ended = trio.Event()

    async def stream_method(receive: Receive, send: Send) -> None:
        try:
            await endless(receive, send)
        finally:
            ended.set()

    methods = {"/x/endless": Method(REQUEST, stream=stream_method)}
    async with serving(path, GrpcApp(methods, budget)), connected(path) as stream:
        client = H2Client(stream)
        client.h2.send_headers(1, list({**GOOD, ":path": "/x/endless"}.items()))
        client.h2.send_data(1, message(b""), end_stream=True)
        await client.flush()
        began = trio.current_time()
        await ended.wait()
        assert trio.current_time() - began == pytest.approx(STALL_TIMEOUT)
    assert budget.left == Budget().left


async def test_a_stream_may_be_silent(tmp_path: Path) -> None:
    """One whose client asks again and again, like reflection's, waits for as long as it likes."""
    path = tmp_path / "x.sock"

    async def echo_all(receive: Receive, send: Send) -> None:
        while (request := await receive()) is not None:
            await send(request)

    methods = {"/x/stream": Method(REQUEST, stream=echo_all)}
    async with serving(path, GrpcApp(methods, Budget())), connected(path) as stream:
        client = H2Client(stream)
        client.h2.send_headers(1, list({**GOOD, ":path": "/x/stream"}.items()))
        await client.flush()
        await trio.sleep(10 * REQUEST_TIMEOUT)
        client.h2.send_data(1, message(b""), end_stream=True)
        await client.flush()
        trailers = await client.wait_for(h2.events.TrailersReceived)
    assert (b"grpc-status", b"0") in trailers.headers


async def test_failures_fill_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.sock"

    async def fail(_request: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    methods = {"/x/unary": Method(REQUEST, unary=fail)}
    async with serving(path, GrpcApp(methods, Budget())):
        for _ in range(5):
            async with connected(path) as stream:
                found = await answer(H2Client(stream), GOOD, message(b""))
                assert found["grpc-status"] == "13"
        assert caplog.messages.count("call failed") == 1
        await trio.sleep(LINE_INTERVAL)
        async with connected(path) as stream:
            await answer(H2Client(stream), GOOD, message(b""))
        assert caplog.messages.count("call failed") == 2
    [last] = [r for r in caplog.records if r.message == "call failed"][1:]
    assert last.__dict__["left_out"] == 4
