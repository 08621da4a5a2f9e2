"""The image of a guest whose process 1 is Debian's systemd, with this project's wheel installed.

The wheel and what it needs are put there by pip, as for the guest's Python, which is Debian's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .cpio import CpioWriter
from .image import FILES, PACKAGES, ROOTFS, Contents, Image, build_image

GUEST_PYTHON = "3.11"
"""Of Debian 12. Ours must be the same, for it compiles what the guest imports, which would take the
guest a minute and more."""

_OURS = Path(__file__).with_name("systemd_rootfs")
_DIST_PACKAGES = f"usr/local/lib/python{GUEST_PYTHON}/dist-packages"

_UNITS = (
    *("basic", "sysinit", "sockets", "timers", "paths", "slices", "local-fs", "local-fs-pre"),
    *("swap", "shutdown", "umount", "final", "poweroff", "network-pre", "network"),
    *("nss-user-lookup", "sysinit", "multi-user"),
)
_JOURNAL = (
    "lib/systemd/system/systemd-journald.service",
    "lib/systemd/system/systemd-journald.socket",
    "lib/systemd/system/systemd-journald-dev-log.socket",
    "lib/systemd/systemd-journald",
    "bin/journalctl",
)


def _compile(folder: Path) -> None:
    """Python's bytecode beside all modules. An archive has no times that it could be checked by."""
    how = ("-q", "-j", "0", "--invalidation-mode", "unchecked-hash")
    subprocess.run([sys.executable, "-m", "compileall", *how, str(folder)], check=True)


WITH_SYSTEMD = Contents(
    name="systemd",
    packages=(
        *PACKAGES,
        *("systemd", "libsystemd-shared", "libnss-systemd"),
        *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
        # Libraries of these.
        *("libacl1", "libapparmor1", "libaudit1", "libblkid1", "libcap-ng0", "libcrypt1"),
        *("libexpat1", "libffi8", "libgcrypt20", "libgpg-error0", "libip4tc2", "libkmod2"),
        *("liblz4-1", "liblzma5", "libmount1", "libpam0g", "libseccomp2", "libsqlite3-0"),
        *("libuuid1", "libzstd1"),
    ),
    files=(
        *FILES,
        *("lib/systemd/systemd", "bin/systemctl", "usr/bin/systemd-analyze"),
        "usr/lib/x86_64-linux-gnu/systemd",
        *(f"lib/systemd/system/{name}.target" for name in dict.fromkeys(_UNITS)),
        *_JOURNAL,
        *(f"usr/bin/python{GUEST_PYTHON}", f"usr/lib/python{GUEST_PYTHON}"),
    ),
    ours=(_OURS,),
    prepare=lambda root: _compile(root / "usr" / "lib" / f"python{GUEST_PYTHON}"),
)


def build_systemd_image(wheel: Path, more: dict[str, Path], folder: Path) -> Image:
    """The image, with a wheel and its extra ``api`` installed, and files besides.

    Args:
        wheel: of this project.
        more: by their names in the guest, files and folders to add.
        folder: where it is made; what is the same for each wheel is kept elsewhere.
    """
    base = build_image(WITH_SYSTEMD)
    packages = folder / "packages"
    install = ("-m", "pip", "install", "-q", "--target", str(packages), "--no-compile")
    only = ("--only-binary", ":all:", "--python-version", GUEST_PYTHON)
    subprocess.run([sys.executable, *install, *only, f"{wheel}[api]"], check=True)
    _compile(packages)
    initramfs = folder / "initramfs.cpio"
    with initramfs.open("wb") as out:
        out.write(base.initramfs.read_bytes())
        # One archive after another: the kernel unpacks them all.
        archive = CpioWriter(out)
        archive.add_path("agent", ROOTFS / "agent")
        archive.add_path(_DIST_PACKAGES, packages)
        archive.add_file("usr/local/bin/mvirt-net", _program(), mode=0o755)
        for name, source in more.items():
            archive.add_path(name, source)
        archive.close()
    return Image(kernel=base.kernel, initramfs=initramfs)


def _program() -> bytes:
    """What pip makes of ``[project.scripts]``, for the guest's Python."""
    lines = (f"#!/usr/bin/python{GUEST_PYTHON}", "import sys", "from mvirt_net.cli import run")
    return "\n".join((*lines, "sys.exit(run())", "")).encode()
