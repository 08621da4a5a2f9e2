"""The library that makes libc calls fail (`shim.c`), and the page by which a test controls it."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

_CONTROL = struct.Struct("=24sIIiiIIII")
"""``struct control``: function, first, last, error, fd, core_only; calls, failed, armed."""
_FAILED, _ARMED = _CONTROL.size - 8, _CONTROL.size - 4
_NO_END = 0xFFFF_FFFF


@attrs.frozen
class Fault:
    """A function of libc that fails.

    Args:
        function: as `shim.c` knows it.
        errors: of the first call, the second and so on, then from the start again.
        lasting: every call fails from the first one that does, not just that one.
        core_only: calls that do not come from the extension module are left alone.
        fd: likewise those about another descriptor, if there is one here.
    """

    function: str
    errors: tuple[int, ...] = (0,)
    lasting: bool = False
    core_only: bool = False
    fd: int = -1

    def __str__(self) -> str:
        names = "/".join(errno.errorcode[error] for error in self.errors if error)
        return " ".join(filter(None, [self.function, names, "from then on" * self.lasting]))

    def error(self, nth: int) -> int:
        """The errno of the `nth` call."""
        return self.errors[(nth - 1) % len(self.errors)]


class FaultShim:
    """The library, built in a folder, and its control page.

    Args:
        folder: where both are; the page is `close`d, the files are the caller's to remove.
    """

    def __init__(self, folder: Path) -> None:
        self._library = folder / "shim.so"
        self._page_path = folder / "control"
        _build(self._library)
        self._page_path.write_bytes(bytes(_CONTROL.size))
        with self._page_path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _CONTROL.size)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a process that is to be under the shim."""
        preload = [str(self._library), *os.environ.get("LD_PRELOAD", "").split()]
        # The sanitizers' libraries want to be first, but need it only for what we do not replace.
        sanitizer = f"{os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0"
        return {
            **os.environ,
            "LD_PRELOAD": " ".join(preload),
            "ASAN_OPTIONS": sanitizer.lstrip(":"),
            "FAULT_CONTROL": str(self._page_path),
        }

    @contextmanager
    def failing(self, fault: Fault, nth: int, *, armed: bool = True) -> Iterator[None]:
        """Let the `nth` call from now on fail, counted from 1, until the end of the block.

        Args:
            armed: False leaves it to the process to begin, see `arm`.
        """
        last = _NO_END if fault.lasting else nth
        fields = (fault.function.encode(), nth, last, fault.error(nth), fault.fd, fault.core_only)
        self._page[:] = _CONTROL.pack(*fields, 0, 0, 0)
        self._page[_ARMED] = armed
        try:
            yield
        finally:
            self._page[_ARMED] = 0

    @property
    def failed(self) -> int:
        """How many calls have failed since `failing` began."""
        return int.from_bytes(self._page[_FAILED:_ARMED], "little")

    def close(self) -> None:
        """Give up the page."""
        self._page.close()


def arm() -> None:
    """For a process under the shim that is to begin to fail now."""
    with Path(os.environ["FAULT_CONTROL"]).open("r+b") as page:
        page.seek(_ARMED)
        page.write(b"\1")


def _build(library: Path) -> None:
    """Compile the shim. Raises CalledProcessError."""
    source = Path(__file__).with_name("shim.c")
    command = ["gcc", "-std=gnu11", "-O2", "-fPIC", "-shared", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
