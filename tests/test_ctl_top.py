"""``mvirt-net ctl top`` on a terminal: what it shows, and that the terminal is as it was after it.

It is given an interval of an hour where nothing but what the user does is to make it draw.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvirt_net.ctl.rates import HELP
from mvirt_net.ctl.screen import ENTER, LEAVE
from mvirt_net.ctl.tables import GAP
from mvirt_net.exits import ExitCode
from tests.harness.ctl import COMMAND, answer, answering, environment
from tests.harness.terminal import CONTROL, Terminal, on_terminal

NAMES = ("vm1", "vm2", "db")
NICS = answer({"nics": [{"name": name, "network": "blue", "state": "active"} for name in NAMES]})
END_OF_PAGE = f"{GAP.join(HELP)}\x1b[K\x1b[J".encode()


def stats(frames: int) -> bytes:
    """Each NIC has sent and received that much."""
    counters = dict.fromkeys(("tx_frames", "rx_frames", "tx_bytes", "rx_bytes"), frames)
    return answer({"nics": {name: {**counters, "drops": {}} for name in NAMES}})


@contextlib.contextmanager
def top(
    tmp_path: Path, *later: bytes, interval: str = "3600", lines: int = 12
) -> Iterator[Terminal]:
    """Top on its first page, and as it should be at the end; the daemon's answers are these."""
    path = tmp_path / "s"
    with answering(path, NICS, stats(0), *later):
        command = [*COMMAND, "top", "--interval", interval]
        with on_terminal(command, environment(path), lines=lines) as terminal:
            before = terminal.modes()
            terminal.expect(ENTER.encode())
            terminal.expect(END_OF_PAGE)
            assert terminal.modes() != before
            yield terminal
            assert terminal.modes() == before


def page(terminal: Terminal) -> list[str]:
    """The lines of the next one."""
    text = CONTROL.sub(b"", terminal.expect(END_OF_PAGE)).decode()
    # A terminal puts a carriage return before each line feed, as most are set up.
    return text.replace("\r\r\n", "\n").split("\n")


def ended(terminal: Terminal) -> int:
    terminal.expect(LEAVE.encode())
    return terminal.process.wait()


@pytest.mark.parametrize(("key", "code"), [(b"q", ExitCode.OK), (b"\x03", ExitCode.OK)])
def test_the_user_leaves(tmp_path: Path, key: bytes, code: int) -> None:
    with top(tmp_path) as terminal:
        terminal.type(key)
        assert ended(terminal) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(tmp_path: Path, number: int) -> None:
    with top(tmp_path) as terminal:
        terminal.process.send_signal(number)
        assert ended(terminal) == -number


def test_the_window_is_closed(tmp_path: Path) -> None:
    with answering(tmp_path / "s", NICS, stats(0)):
        command = [*COMMAND, "top"]
        with on_terminal(command, environment(tmp_path / "s")) as terminal:
            terminal.expect(END_OF_PAGE)
            terminal.hang_up()
            assert terminal.process.wait() == -signal.SIGHUP


def test_stopped_and_continued(tmp_path: Path) -> None:
    with top(tmp_path) as terminal:
        taken = terminal.modes()
        terminal.type(b"\x1a")
        terminal.expect(LEAVE.encode())
        terminal.wait_stopped()
        assert terminal.modes() != taken
        terminal.process.send_signal(signal.SIGCONT)
        terminal.expect(ENTER.encode())
        terminal.expect(END_OF_PAGE)
        assert terminal.modes() == taken
        terminal.type(b"q")
        assert ended(terminal) == ExitCode.OK


def test_keys_sort(tmp_path: Path) -> None:
    with top(tmp_path) as terminal:
        for key, order in ((b"n", "name"), (b"d", "drops"), (b"f", "frames")):
            terminal.type(key)
            assert page(terminal)[0].endswith(f"every 3600 s, by {order}")
        terminal.type(b"q")
        ended(terminal)


def test_the_size_changes(tmp_path: Path) -> None:
    with top(tmp_path) as terminal:
        terminal.resize(76, 7)
        terminal.expect(b"(2 below; arrows scroll)")
        terminal.expect(b"\x1b[J")
        terminal.resize(100, 9)
        lines = page(terminal)
        assert len(lines) == 9
        assert [line.split()[0] for line in lines[3:7]] == ["NIC", "db", "vm1", "vm2"]
        terminal.type(b"q")
        ended(terminal)


def test_arrows_scroll(tmp_path: Path) -> None:
    with top(tmp_path, lines=7) as terminal:
        for keys, name, others in (
            (b"\x1b[B", "vm1", b"(1 above, 1 below; arrows scroll)"),
            (b"\x1b[B\x1b[B\x1b[B", "vm2", b"(2 above; arrows scroll)"),
            (b"\x1bOA", "vm1", b"(1 above, 1 below; arrows scroll)"),
            (b"\x1b[6~", "vm2", b"(2 above; arrows scroll)"),
            (b"\x1b[5~\x1b[5~", "db", b"(2 below; arrows scroll)"),
        ):
            terminal.type(keys)
            lines = page(terminal)
            assert (lines[4].split()[0], lines[5]) == (name, others.decode())
        terminal.type(b"q")
        ended(terminal)


@pytest.mark.parametrize("keys", [b"\x1b[15~", b"\x1bq", b"\x1b", b"\x1b[24;2q"])
def test_other_keys_do_nothing(tmp_path: Path, keys: bytes) -> None:
    with top(tmp_path) as terminal:
        terminal.type(keys)
        assert page(terminal)[4].split()[0] == "db"
        terminal.type(b"q")
        ended(terminal)


def test_rates_come_with_the_second_look(tmp_path: Path) -> None:
    with top(tmp_path, NICS, stats(1000)) as terminal:
        terminal.type(b" ")
        # First what the key itself makes it draw, then the answer.
        assert page(terminal)[4].split()[:4] == ["db", "blue", "active", "-"]
        row = page(terminal)[4].split()
        assert row[:3] == ["db", "blue", "active"]
        assert "-" not in row
        assert row[3] != "0"
        terminal.type(b"q")
        ended(terminal)


def test_looks_again_by_itself(tmp_path: Path) -> None:
    with top(tmp_path, NICS, stats(1), NICS, stats(2), interval="0.1") as terminal:
        while "-" in page(terminal)[4].split():
            pass
        terminal.type(b"q")
        ended(terminal)


def test_the_daemon_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with top(tmp_path, b"") as terminal:
        terminal.type(b" ")
        # The name of the socket is as long as it is.
        terminal.expect(b"hung")
        # Keys are heeded while nobody answers, and what is known stays.
        terminal.type(b"n")
        assert any(line.startswith("db ") for line in page(terminal))
        os.unlink(path)  # noqa: PTH108
        with answering(path, NICS, stats(5)):
            terminal.type(b" ")
            while any("hung" in line for line in page(terminal)):
                pass
            terminal.type(b"q")
            ended(terminal)


def test_without_a_daemon_the_terminal_is_left_alone(tmp_path: Path) -> None:
    with on_terminal([*COMMAND, "top"], environment(tmp_path / "s")) as terminal:
        assert ENTER.encode() not in terminal.expect(b"no such socket")
        assert terminal.process.wait() == ExitCode.NO_DAEMON


def test_a_terminal_that_can_do_nothing(tmp_path: Path) -> None:
    with answering(tmp_path / "s", NICS, stats(0), NICS, stats(0)):
        command = ["env", "TERM=dumb", *COMMAND, "top", "-i", "0.1"]
        with on_terminal(command, environment(tmp_path / "s")) as terminal:
            assert b"\x1b" not in terminal.expect(b"3 NICs, 3 active")
