"""Messages from a socket that may be cut anywhere, and the descriptors that come along."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import trio
import trio.testing

from mvirt_net.dataplane.channel import MAX_FDS, MessageChannel
from mvirt_net.dataplane.fds import close_fd, close_fds
from mvirt_net.errors import ConnectionBroken

Pair = tuple[trio.socket.SocketType, socket.socket]

PAYLOAD = bytes(range(8))
MESSAGE = struct.pack("=III", 2, 1, len(PAYLOAD)) + PAYLOAD
"""SET_FEATURES, version 1."""


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """The frontend's end and ours."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with ours, trio.socket.from_stdlib_socket(peer) as theirs:
        yield theirs, ours


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


async def send(sock: trio.socket.SocketType, data: bytes, fds: Sequence[int] = ()) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    assert await sock.sendmsg([data], [rights] if fds else []) == len(data)


async def receive(ours: socket.socket) -> tuple[int, bytes, int]:
    """The next message: its id, payload and number of descriptors, which are closed."""
    message = await MessageChannel(ours).receive()
    assert message is not None
    count = len(message.fds)
    close_fds(message.fds)
    return message.header.request, message.payload, count


class TestReceive:
    async def test_whole(self, pair: Pair, event: int) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE, [event])
        assert await receive(ours) == (2, PAYLOAD, 1)

    async def test_descriptors_are_closed_on_exec(self, pair: Pair, event: int) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE, [event])
        message = await MessageChannel(ours).receive()
        assert message is not None
        assert not os.get_inheritable(message.fds[0])
        close_fds(message.fds)

    async def test_one_byte_at_a_time(self, pair: Pair, event: int, nursery: trio.Nursery) -> None:
        theirs, ours = pair

        async def dribble() -> None:
            await send(theirs, MESSAGE[:1], [event])
            for byte in MESSAGE[1:]:
                await trio.testing.wait_all_tasks_blocked()
                await send(theirs, bytes([byte]))

        nursery.start_soon(dribble)
        assert await receive(ours) == (2, PAYLOAD, 1)

    async def test_several_at_once(self, pair: Pair, event: int) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE + MESSAGE)
        await send(theirs, MESSAGE, [event, event])
        assert [(await receive(ours))[2] for _ in range(3)] == [0, 0, 2]

    async def test_end_between_messages(self, pair: Pair) -> None:
        theirs, ours = pair
        theirs.close()
        assert await MessageChannel(ours).receive() is None

    async def test_end_without_reading_our_reply(self, pair: Pair) -> None:
        theirs, ours = pair
        await MessageChannel(ours).send(b"unread")
        theirs.close()
        assert await MessageChannel(ours).receive() is None

    @pytest.mark.parametrize("size", [*range(1, 12), 12, len(MESSAGE) - 1])
    async def test_m3_end_inside_a_message(self, pair: Pair, event: int, size: int) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE[:size], [event])
        theirs.close()
        with pytest.raises(ConnectionBroken, match="ended inside a message"):
            await MessageChannel(ours).receive()

    async def test_m3_reset_inside_a_message(self, pair: Pair) -> None:
        theirs, ours = pair
        await MessageChannel(ours).send(b"unread")
        await send(theirs, MESSAGE[:5])
        theirs.close()
        with pytest.raises(ConnectionBroken, match="cannot read a message"):
            await MessageChannel(ours).receive()

    @pytest.mark.parametrize("sent", [1, 12])
    async def test_m4_payload_that_comes_too_slowly(
        self, pair: Pair, event: int, nursery: trio.Nursery, autojump_clock: object, sent: int
    ) -> None:
        theirs, ours = pair

        async def dribble() -> None:
            await send(theirs, MESSAGE[:sent], [event])
            for byte in MESSAGE[sent:]:
                await trio.sleep(1)
                await send(theirs, bytes([byte]))

        nursery.start_soon(dribble)
        began = trio.current_time()
        with pytest.raises(ConnectionBroken, match="took too long"):
            await MessageChannel(ours).receive()
        assert trio.current_time() - began == pytest.approx(5)

    async def test_m4_silence_between_messages_is_not_limited(
        self, pair: Pair, nursery: trio.Nursery, autojump_clock: object
    ) -> None:
        theirs, ours = pair

        async def late() -> None:
            await trio.sleep(86400)
            await send(theirs, MESSAGE)

        nursery.start_soon(late)
        assert await receive(ours) == (2, PAYLOAD, 0)

    @pytest.mark.parametrize("header", [(2, 1, 0x1001), (2, 1, 0xFFFFFFFF), (2, 5, 0), (2, 0, 0)])
    async def test_m5_m7_m8_header_alone_is_enough(
        self, pair: Pair, event: int, header: tuple[int, int, int]
    ) -> None:
        theirs, ours = pair
        await send(theirs, struct.pack("=III", *header), [event])
        with pytest.raises(ConnectionBroken):
            await MessageChannel(ours).receive()

    @pytest.mark.parametrize("count", [1, 8, 9, MAX_FDS])
    async def test_m16_count_is_for_the_session_to_judge(
        self, pair: Pair, event: int, count: int
    ) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE, [event] * count)
        assert await receive(ours) == (2, PAYLOAD, count)

    @pytest.mark.parametrize("count", [MAX_FDS + 1, 253])
    async def test_m16_more_than_fit(self, pair: Pair, event: int, count: int) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE, [event] * count)
        with pytest.raises(ConnectionBroken, match="more file descriptors"):
            await MessageChannel(ours).receive()

    @pytest.mark.parametrize("split", [1, 4, 12, len(MESSAGE) - 1])
    @pytest.mark.parametrize("first_too", [False, True])
    async def test_m18_descriptors_with_later_bytes(
        self, pair: Pair, event: int, split: int, first_too: bool
    ) -> None:
        """The kernel joins both parts in one read, which must make no difference."""
        theirs, ours = pair
        await send(theirs, MESSAGE[:split], [event] if first_too else [])
        await send(theirs, MESSAGE[split:], [event])
        with pytest.raises(ConnectionBroken, match="after the first byte"):
            await MessageChannel(ours).receive()

    async def test_m19_other_control_messages_are_ignored(self, pair: Pair, event: int) -> None:
        theirs, ours = pair
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        await send(theirs, MESSAGE, [event, event])
        assert await receive(ours) == (2, PAYLOAD, 2)

    async def test_m19_out_of_band_byte_is_ignored(self, pair: Pair, nursery: trio.Nursery) -> None:
        theirs, ours = pair
        await theirs.send(b"!", socket.MSG_OOB)

        async def later() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await send(theirs, MESSAGE)

        nursery.start_soon(later)
        assert await receive(ours) == (2, PAYLOAD, 0)

    @pytest.mark.parametrize("sent", [1, 11, 12, len(MESSAGE) - 1])
    async def test_cancelled_inside_a_message(self, pair: Pair, event: int, sent: int) -> None:
        theirs, ours = pair
        await send(theirs, MESSAGE[:sent], [event])
        with trio.move_on_after(0):
            await MessageChannel(ours).receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(MessageChannel(ours).receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


class TestSend:
    async def test_whole(self, pair: Pair) -> None:
        theirs, ours = pair
        await MessageChannel(ours).send(MESSAGE)
        assert await theirs.recv(100) == MESSAGE

    async def test_m51_reader_that_stops(self, pair: Pair, autojump_clock: object) -> None:
        _, ours = pair
        before = trio.current_time()
        with pytest.raises(ConnectionBroken, match="does not read its replies"):
            await MessageChannel(ours).send(bytes(10_000_000))
        assert trio.current_time() - before == pytest.approx(5)

    async def test_reader_that_comes_back_in_time(
        self, pair: Pair, nursery: trio.Nursery, autojump_clock: object
    ) -> None:
        theirs, ours = pair
        reply = bytes(1_000_000)

        async def read_late() -> None:
            await trio.sleep(4)
            left = len(reply)
            while left:
                left -= len(await theirs.recv(left))

        nursery.start_soon(read_late)
        await MessageChannel(ours).send(reply)

    async def test_reader_that_is_gone(self, pair: Pair) -> None:
        theirs, ours = pair
        theirs.close()
        with pytest.raises(ConnectionBroken, match="cannot reply"):
            await MessageChannel(ours).send(MESSAGE)


class TestCloseFd:
    def test_twice_is_a_bug(self, event: int) -> None:
        fd = os.dup(event)
        close_fd(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            close_fd(fd)

    def test_what_a_foreign_file_says_makes_no_difference(
        self, monkeypatch: pytest.MonkeyPatch, event: int
    ) -> None:
        close = os.close

        def failing_close(fd: int) -> None:
            close(fd)
            raise OSError(5, "Input/output error")

        fds = [os.dup(event), os.dup(event)]
        with monkeypatch.context() as patched:
            patched.setattr(os, "close", failing_close)
            close_fds(fds)
        assert fds == []
