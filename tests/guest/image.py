"""The test guest's kernel and initramfs, made of Debian packages' files.

``python -m tests.guest.image`` builds them and says how QEMU is told of them. With ``shell`` on the
kernel's command line the guest gives a shell on its console.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs

from . import debs
from .cpio import CpioWriter

KERNEL_PACKAGE = "linux-image-cloud-amd64"
"""A package without content that depends on the present kernel's."""

PACKAGES = (
    "busybox-static",
    "coreutils",
    "dash",
    "debianutils",
    "dhcpcd-base",
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "traceroute",
    "udhcpc",
    # Libraries of the above.
    "libbpf1",
    "libbsd0",
    "libc6",
    "libcap2",
    "libelf1",
    "libgmp10",
    "libidn2-0",
    "libiperf0",
    "libmd0",
    "libmnl0",
    "libpcre2-8-0",
    "libsctp1",
    "libselinux1",
    "libssl3",
    "libudev1",
    "libunistring2",
    "zlib1g",
)

FILES = (
    "bin/busybox",
    # busybox's have no --reference, which dhclient-script uses.
    "bin/chmod",
    "bin/chown",
    "bin/dash",  # busybox's sh would run its own applets in place of ip and ping
    "bin/ip",
    "bin/ping",
    "bin/run-parts",
    "etc/dhcp",
    "etc/dhcpcd.conf",
    "etc/udhcpc",
    "lib64",
    "sbin/dhclient",
    "sbin/dhclient-script",
    "sbin/ethtool",
    "sbin/udhcpc",
    "usr/bin/iperf3",
    "usr/bin/nstat",
    "usr/bin/traceroute.db",
    "usr/lib/dhcpcd",
    "usr/sbin/dhcpcd",
)
"""What the image takes of the packages, besides all shared libraries."""

MODULES = ("virtio_pci", "virtio_console", "virtio_net")
"""The drivers that Debian's cloud kernel does not have built in; dependencies are added."""

_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
ROOTFS = Path(__file__).with_name("rootfs")
_MOUNT_POINTS = ("dev", "proc", "sys", "run", "tmp", "root", "var/lib/dhcp", "var/run")
_MODULE_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@attrs.frozen
class Image:
    """The two files that QEMU boots by ``-kernel`` and ``-initrd``."""

    kernel: Path
    initramfs: Path


@attrs.frozen(kw_only=True)
class Contents:
    """What an image is made of."""

    name: str
    packages: Sequence[str] = PACKAGES
    files: Sequence[str] = FILES
    ours: Sequence[Path] = (ROOTFS,)
    """Folders whose content is the image's, too."""
    prepare: Callable[[Path], None] = lambda _root: None
    """Called with the folder in which the packages are unpacked."""


PLAIN = Contents(name="image")


def build_image(contents: Contents = PLAIN) -> Image:
    """The image, built when it is not there yet (some seconds and 40 MB of downloads).

    Raises:
        DebsError: the packages cannot be had.
    """
    sources = [Path(__file__), Path(debs.__file__), Path(__file__).with_name("cpio.py")]
    for folder in contents.ours:
        sources += sorted(path for path in folder.rglob("*") if path.is_file())
    recipe = [repr(contents.packages).encode(), repr(contents.files).encode()]
    recipe += [path.read_bytes() for path in sources]
    return _image_in(debs.kept(contents.name, recipe, partial(_make, contents)))


def _image_in(folder: Path) -> Image:
    return Image(kernel=folder / "vmlinuz", initramfs=folder / "initramfs.cpio")


def _make(contents: Contents, folder: Path) -> None:
    image = _image_in(folder)
    root = folder / "root"
    root.mkdir()
    debs.unpack([*contents.packages, *debs.dependencies(KERNEL_PACKAGE)], root)
    contents.prepare(root)
    (kernel,) = root.glob("boot/vmlinuz-*")
    kernel.rename(image.kernel)
    # Not compressed: TCG copies faster than it inflates.
    with image.initramfs.open("wb") as out:
        _fill(CpioWriter(out), root, contents)
    shutil.rmtree(root)


def _fill(archive: CpioWriter, root: Path, contents: Contents) -> None:
    for name in _MOUNT_POINTS:
        archive.add_folder(name)
    for name in contents.files:
        archive.add_path(name, root / name)
    for libraries in _LIBRARY_FOLDERS:
        for library in sorted((root / libraries).glob("*.so*")):
            archive.add_path(f"{libraries}/{library.name}", library)
    for number, module in enumerate(_with_dependencies(MODULES, root / "lib/modules")):
        archive.add_file(f"modules/{number:02}-{module.name}", module.read_bytes())
    for folder in contents.ours:
        for ours in sorted(folder.iterdir()):
            archive.add_path(ours.name, ours)
    archive.add_link("bin/sh", "dash")
    _add_applets(archive, root / "bin/busybox")
    archive.close()


def _add_applets(archive: CpioWriter, busybox: Path) -> None:
    """A link for each of busybox's commands that no package has brought."""
    listing = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True, timeout=10
    )
    for applet in sorted(set(listing.stdout.split())):
        if not any(f"{folder}/{applet}" in archive for folder in ("bin", "sbin", "usr/bin")):
            archive.add_link(f"bin/{applet}", "busybox")


def _with_dependencies(names: tuple[str, ...], modules: Path) -> list[Path]:
    """The module files of `names` and of what they need, each after those it needs."""
    files = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    ordered: dict[str, Path] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        for needed in _needs_of(files[name]):
            visit(needed)
        ordered[name] = files[name]

    for name in names:
        visit(name)
    return list(ordered.values())


def _needs_of(module: Path) -> Iterator[str]:
    """The modules that `module` says it needs, in its ``.modinfo`` section."""
    found = _MODULE_DEPENDS.search(module.read_bytes())
    if found and found[1]:
        for name in found[1].decode().split(","):
            yield name.replace("-", "_")


if __name__ == "__main__":
    built = build_image()
    print(f"-kernel {built.kernel} -initrd {built.initramfs}")  # noqa: T201
