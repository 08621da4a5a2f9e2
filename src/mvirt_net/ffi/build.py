"""Builds the extension `mvirt_net.ffi._core` from the C core; setuptools runs this file.

The declarations that CFFI needs are the part of ``mvirt.h`` between its "cdef" lines. Set
``MVIRT_SANITIZE=address,undefined`` in the environment for an instrumented build.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

SOURCES = (
    *("memory.c", "sigbus.c", "event.c", "debt.c", "vring.c", "packed.c"),
    *("chain.c", "checksum.c", "nethdr.c", "packet.c", "offload.c", "route.c", "classify.c"),
    *("worker.c", "thread.c", "poller.c", "watcher.c"),
    *("port.c", "lock.c", "limit.c", "tx.c", "express.c", "rx.c", "forward.c"),
    *("capture.c", "rights.c"),
)
HEADERS = ("mvirt.h", "core.h", "vring.h")

WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wpointer-arith", "-Wvla")
FLAGS = (
    *("-std=gnu11", "-O3", "-fno-strict-aliasing", "-fvisibility=hidden"),
    # Every x86-64 processor since 2009 (SSE 4.2, POPCNT): one wheel for all, nothing "native".
    # PREFETCHW does nothing on those that do not know it.
    *(("-march=x86-64-v2", "-mprfchw") if platform.machine() == "x86_64" else ()),
)

# The extension says so itself, and glibc (2.33 and later) does not load it on older ones, which is
# an ImportError. Else they would end at the first instruction that they do not know.
LINK_FLAGS = ("-Wl,-z,x86-64-v2",) if platform.machine() == "x86_64" else ()

_HERE = Path("src/mvirt_net/ffi")  # setuptools wants paths relative to setup.py


def cdef() -> str:
    """The declarations of mvirt.h."""
    text = Path(__file__).with_name("mvirt.h").read_text()
    return text.split("/* cdef: begin */")[1].split("/* cdef: end */")[0]


def _is_gcc() -> bool:
    """Whether the compiler sees all files together by itself; clang needs a linker that helps."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    version = subprocess.run([compiler[0], "--version"], capture_output=True, check=False)
    return b"Free Software Foundation" in version.stdout


def _flags() -> tuple[list[str], list[str]]:
    compile_args = [*FLAGS, *WARNINGS]
    sanitizers = os.environ.get("MVIRT_SANITIZE")
    if not sanitizers and _is_gcc():
        # A packet passes through a dozen functions of six files: a fifth fewer instructions when
        # the compiler sees them together.
        return [*compile_args, "-flto=auto"], [*FLAGS, *LINK_FLAGS, "-flto=auto"]
    if not sanitizers:
        return compile_args, [*LINK_FLAGS]
    instrument = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    return [*compile_args, "-O1", "-g", "-fno-omit-frame-pointer", *instrument], [
        *LINK_FLAGS,
        *instrument,
    ]


ffibuilder = FFI()
ffibuilder.cdef(cdef())
_compile_args, _link_args = _flags()
ffibuilder.set_source(
    "mvirt_net.ffi._core",
    '#include "mvirt.h"',
    sources=[str(_HERE / name) for name in SOURCES],
    depends=[str(_HERE / name) for name in HEADERS],
    include_dirs=[str(_HERE)],
    extra_compile_args=_compile_args,
    extra_link_args=_link_args,
    py_limited_api=True,
)
