"""The trusting device of ``ceiling.c``, compiled when it is needed, on a ring of `bench.guest`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cffi import FFI

from tests.harness.virtio import VirtioQueue

from .build import compile_program
from .guest import BUFFER_SIZE

_DECLARATIONS = """
struct ceiling {
    const uint8_t *desc;
    const uint8_t *avail;
    uint8_t *used;
    uint8_t *memory;
    uint32_t size;
    uint16_t index;
};
void ceiling_take(struct ceiling *ring, uint32_t count, uint8_t *into, uint32_t length);
void ceiling_give(struct ceiling *ring, uint32_t count, const uint8_t *from, uint32_t length);
void ceiling_route(struct ceiling *from, struct ceiling *to, uint32_t count);
"""


class Ceiling:
    """A device on `queue`, whose chains are one descriptor each.

    It looks at no avail index, so the driver has nothing to do; it may share the ring with the
    ring core when the two take turns.

    Args:
        lib: what `compiled` gives.
    """

    def __init__(self, ffi: FFI, lib: Any, queue: VirtioQueue) -> None:
        host = queue.memory.get_host_address
        self._lib = lib
        self._private = ffi.new("uint8_t[]", BUFFER_SIZE)
        self._ring = ffi.new(
            "struct ceiling *",
            {
                "desc": ffi.cast("uint8_t *", host(queue.desc_table)),
                "avail": ffi.cast("uint8_t *", host(queue.avail_ring)),
                "used": ffi.cast("uint8_t *", host(queue.used_ring)),
                "memory": ffi.cast("uint8_t *", host(0)),
                "size": queue.size,
            },
        )

    def take(self, count: int, length: int) -> None:
        """Copy the first `length` bytes of `count` chains out of guest memory."""
        self._lib.ceiling_take(self._ring, count, self._private, length)

    def give(self, count: int, length: int) -> None:
        """Copy `length` bytes to each of `count` chains."""
        self._lib.ceiling_give(self._ring, count, self._private, length)

    def route_to(self, other: Ceiling, count: int) -> None:
        """Copy `count` chains to those of another queue, rewritten as a router would."""
        self._lib.ceiling_route(self._ring, other._ring, count)


@contextmanager
def compiled() -> Iterator[tuple[FFI, Any]]:
    """``ceiling.c`` as a library, by the compiler and the flags of the ring core."""
    ffi = FFI()
    ffi.cdef(_DECLARATIONS)
    with TemporaryDirectory(prefix="mvirt-net-") as folder:
        library = Path(folder, "ceiling.so")
        compile_program([Path(__file__).with_name("ceiling.c")], library, ["-shared", "-fPIC"])
        lib = ffi.dlopen(str(library))
        try:
            yield ffi, lib
        finally:
            ffi.dlclose(lib)
