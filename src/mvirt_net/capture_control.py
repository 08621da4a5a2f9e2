"""Captures that are asked for while the daemon runs, by whoever controls it.

Either whoever asks takes the packets as they come, or they go into files. Those are of one folder,
by their names, for two reasons: the sandbox lets nothing else be made (`mvirt_net.sandbox`), and
who may control the daemon should not be able to write files anywhere with its rights. A file that
is there is never written over.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import cast

import attrs
import trio

from .capture import MAX_CAPTURES, Capture, check_bounds, open_capture_file
from .errors import CaptureFileError, ConfigError, DuplicateError, NotFoundError
from .ffi import MAX_FRAME
from .switch import Switch

DEFAULT_LIMIT = 1 << 30
"""Bytes of a file, unless somebody says otherwise: a capture that was forgotten fills no disk."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@attrs.frozen(kw_only=True)
class CaptureRecord:
    """A capture as it is at a moment."""

    file: str
    """Its name in the folder."""
    nics: tuple[str, ...] | None
    """Those that were asked for; None: all, those that are added later too."""
    frames: int
    """Frames that guests have sent and received meanwhile."""
    lost: int
    """Those of them that are not in the file: see `Captured`."""
    bytes: int
    """Size of the file."""
    ended: str
    """Why it has ended, in one line; empty: it has not."""


@attrs.frozen
class _Entry:
    capture: Capture
    nics: tuple[str, ...] | None


class CaptureControl:
    """The verbs for captures. Those that have ended stay listed until they are stopped or
    `MAX_CAPTURES` others were started.

    Args:
        switch: whose NICs.
        folder: where the files are; None: there is none, and no capture either.
    """

    def __init__(self, switch: Switch, folder: Path | None) -> None:
        self._switch = switch
        self._folder = folder
        self._entries: dict[str, _Entry] = {}
        """By the names of the files, the oldest first."""

    def list(self) -> list[CaptureRecord]:
        """All of them, the oldest first."""
        return [_record(file, entry) for file, entry in self._entries.items()]

    def get(self, file: str) -> CaptureRecord:
        """Raises NotFoundError."""
        return _record(file, self._entry(file))

    async def start(
        self,
        file: str,
        *,
        nics: Iterable[str] | None = None,
        snaplen: int = MAX_FRAME,
        limit: int | None = DEFAULT_LIMIT,
    ) -> CaptureRecord:
        """Begin a capture. A checkpoint.

        Args:
            file: the name of the file that is to be made.
            nics, snaplen, limit: as of `Switch.start_capture`.

        Raises:
            ConfigError: a value cannot be used; the key names the argument.
            DuplicateError: there is a file of that name.
            NotFoundError: there is no NIC of one of these names.
            TooManyCapturesError: see `Switch.start_capture`.
            CaptureFileError: there is no folder for captures, or no file can be made there.
        """
        wanted = None if nics is None else tuple(dict.fromkeys(nics))
        _check_file(file)
        _check_nics(wanted)
        check_bounds(snaplen, limit)
        # The switch takes a moment to say no, and until then the file is there.
        fd = self._make(file)
        try:
            capture = await self._switch.start_capture(
                fd, nics=wanted, snaplen=snaplen, limit=limit, name=file
            )
        except BaseException:
            self._unmake(file, fd)
            raise
        self._forget_oldest()
        self._entries[file] = entry = _Entry(capture, wanted)
        return _record(file, entry)

    async def stop(self, file: str) -> CaptureRecord:
        """End a capture, if it has not ended, and list it no more; the file stays.

        Raises:
            NotFoundError: there is none of that name.
        """
        entry = self._entry(file)
        await entry.capture.aclose()
        self._entries.pop(file, None)
        return _record(file, entry)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        *,
        nics: Iterable[str] | None = None,
        snaplen: int = MAX_FRAME,
        limit: int | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A capture for somebody who takes it while it runs; it ends with the block.

        Who takes it too slowly misses frames, and holds up nobody.

        Args:
            nics, snaplen, limit: as of `Switch.start_capture`.

        Yields:
            The bytes of the file, as they come. They end with the capture: at the limit, or when
            the switch closes.

        Raises:
            ConfigError, NotFoundError, TooManyCapturesError: as `start`.
            OSError: no descriptor is left.
        """
        wanted = None if nics is None else tuple(dict.fromkeys(nics))
        _check_nics(wanted)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(reading) as pipe:
            try:
                capture = await self._switch.start_capture(
                    writing, nics=wanted, snaplen=snaplen, limit=limit, name="a client"
                )
            except BaseException:
                os.close(writing)
                raise
            try:
                # Trio says "or bytearray", as other streams may.
                yield cast(AsyncIterator[bytes], pipe)
            finally:
                # In this order, or what waits for a reader would wait for it in vain.
                capture.stop()
                pipe.close()
                await capture.aclose()

    def _entry(self, file: str) -> _Entry:
        if file not in self._entries:
            raise NotFoundError(f"there is no capture {file!r}")
        return self._entries[file]

    def _make(self, file: str) -> int:
        if file in self._entries and not self._entries[file].capture.ended:
            raise DuplicateError("file", f"there is a capture {file!r} already")
        if self._folder is None:
            raise CaptureFileError("there is no folder for captures: start with --capture-dir")
        try:
            return open_capture_file(self._folder / file, anew=False)
        except FileExistsError as error:
            raise DuplicateError("file", f"{self._folder / file} is there already") from error
        except OSError as error:
            raise CaptureFileError(f"{self._folder / file}: {error.strerror}") from error

    def _unmake(self, file: str, fd: int) -> None:
        assert self._folder is not None
        os.close(fd)
        with contextlib.suppress(OSError):
            (self._folder / file).unlink()

    def _forget_oldest(self) -> None:
        """One that has ended, if there are many: not all of them run, or one more were too many."""
        if len(self._entries) == MAX_CAPTURES:
            self._entries.pop(next(f for f, e in self._entries.items() if e.capture.ended))


def _check_file(name: str) -> None:
    """Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError("file", f"{name!r} is no plain file name: letters, digits, . _ and -")


def _check_nics(names: tuple[str, ...] | None) -> None:
    """Raises ConfigError."""
    if names == ():
        raise ConfigError("nics", "names none")


def _record(file: str, entry: _Entry) -> CaptureRecord:
    captured = entry.capture.captured
    return CaptureRecord(
        file=file,
        nics=entry.nics,
        frames=captured.frames,
        lost=captured.lost,
        bytes=entry.capture.size,
        ended=entry.capture.reason if entry.capture.ended else "",
    )
