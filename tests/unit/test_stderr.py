"""Standard error that is full, gone or asleep: nobody waits, and nothing is lost in silence."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from mvirt_net import stderr
from mvirt_net.log import get_logger
from mvirt_net.loglines import LogFormat
from mvirt_net.logsetup import set_up_logging
from mvirt_net.stderr import LossyStderr

SIZE = 4 * 4096
"""Bytes that the pipe of a test takes."""
log = get_logger("mvirt_net.test")


@pytest.fixture
def logging_left_alone() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@attrs.define
class Pipe:
    """A pipe, whose reader reads when it is told to."""

    reader: int
    writer: int
    stream: LossyStderr

    def fill(self) -> None:
        """Leave no room for a byte."""
        os.write(self.writer, b"x" * SIZE)

    def read(self) -> str:
        return os.read(self.reader, SIZE).decode()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(stderr, "PATIENCE", 0)
    reader, writer = os.pipe()
    assert fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE) == SIZE
    stream = LossyStderr(writer)
    yield Pipe(reader, writer, stream)
    stream.close()
    os.close(writer)
    os.close(reader)


def test_a_line_is_there_at_once(pipe: Pipe) -> None:
    pipe.stream.write("one\n")
    assert pipe.read() == "one\n"


def test_the_open_file_of_others_stays_as_it_is(pipe: Pipe) -> None:
    assert os.get_blocking(pipe.writer)


def test_lost_lines_are_counted_in_the_log(pipe: Pipe, logging_left_alone: None) -> None:
    set_up_logging(logging.INFO, LogFormat.JSON, pipe.stream)
    pipe.fill()
    for number in range(3):
        log.info("unread", number=number)
    pipe.read()
    log.info("read")
    lost, read = map(json.loads, pipe.read().splitlines())
    assert (lost["event"], lost["level"]) == ("log could not be written", "warning")
    assert lost["lost_lines"] == 3
    assert read["event"] == "read"


def test_a_line_that_was_begun_is_finished_first(pipe: Pipe) -> None:
    long = "a" * 2 * SIZE + "\n"
    pipe.stream.write(long)
    written = pipe.read()
    pipe.stream.write("lost\n")
    assert pipe.stream.lost == 1
    written += pipe.read()
    pipe.stream.write("b\n")
    written += pipe.read()
    assert written == long + "b\n"


def test_reader_is_gone() -> None:
    reader, writer = os.pipe()
    stream = LossyStderr(writer)
    os.close(reader)
    stream.write("one\n")
    assert stream.lost == 1
    stream.close()
    os.close(writer)


def test_disk_is_full(logging_left_alone: None) -> None:
    with open("/dev/full", "wb") as full, LossyStderr(full.fileno()) as stream:  # noqa: PTH123
        set_up_logging(logging.INFO, LogFormat.JSON, stream)
        log.info("one")
        log.info("two")
        assert stream.lost == 2


def test_file_is_written_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        file.write(b"before\n")
        with LossyStderr(file.fileno()) as stream:
            stream.write("after\n")
    assert (tmp_path / "log").read_text() == "before\nafter\n"
