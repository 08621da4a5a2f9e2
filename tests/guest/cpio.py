"""Writing an initramfs: the "newc" cpio format (Linux, ``driver-api/early-userspace``)."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_ALIGNMENT = 4


class CpioWriter:
    """Adds entries, all owned by root, to a binary file that stays the caller's.

    Folders on the way to an entry are made by themselves.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._next_inode = 1
        self._names = {"."}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add_folder(self, name: str) -> None:
        """The folder `name` (``var/lib``); one that is there already is left alone."""
        if name not in self._names:
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_file(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(name, stat.S_IFREG | mode, content)

    def add_link(self, name: str, target: str) -> None:
        """A symbolic link; `target` is not looked at."""
        self._add(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def add_path(self, name: str, source: Path) -> None:
        """What is at `source` (file, link, or folder with all below it) under the name `name`."""
        if source.is_symlink():
            self.add_link(name, str(source.readlink()))
        elif source.is_dir():
            self.add_folder(name)
            for child in sorted(source.iterdir()):
                self.add_path(f"{name}/{child.name}", child)
        else:
            self.add_file(name, source.read_bytes(), mode=stat.S_IMODE(source.stat().st_mode))

    def close(self) -> None:
        """Write the end mark; nothing may be added afterwards."""
        self._write("TRAILER!!!", 0, b"", inode=0)

    def _add(self, name: str, mode: int, content: bytes) -> None:
        if name in self._names:
            raise ValueError(f"{name} is in the archive already")
        self.add_folder(str(PurePosixPath(name).parent))
        self._names.add(name)
        self._write(name, mode, content, inode=self._next_inode)
        self._next_inode += 1

    def _write(self, name: str, mode: int, content: bytes, *, inode: int) -> None:
        packed_name = os.fsencode(name) + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(packed_name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._write_padded(header + packed_name)
        self._write_padded(content)

    def _write_padded(self, data: bytes) -> None:
        self._out.write(data + bytes(-len(data) % _ALIGNMENT))
