"""What a session acts on, as a protocol: memory and rings, whoever implements them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..model import MemoryRegion, VringAddr


class Device(Protocol):
    """What a session drives: the memory and the vrings of one NIC.

    It begins without memory, with all vrings stopped and disabled. No method blocks. Methods may
    raise RequestRefused, and then nothing has changed and descriptors are still the caller's; but
    what takes something away (stop, disable, drop, no features, None for a descriptor) succeeds.
    """

    def set_features(self, features: int) -> None:
        """The virtio features agreed on; no vring runs."""

    def set_mtu(self, mtu: int) -> None:
        """The driver was told to send and expect packets of at most `mtu` bytes."""

    def set_memory_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """Replace all memory. A running vring must be within the new memory. Borrows `fds`."""

    def add_memory_region(self, region: MemoryRegion, fd: int) -> None:
        """Borrows `fd`."""

    def remove_memory_region(self, region: MemoryRegion) -> None:
        """Take away a region that is there. No running vring may be in it."""

    def check_vring(self, index: int, size: int, addr: VringAddr) -> None:
        """Refuse a vring that is not within the present memory."""

    def start_vring(self, index: int, size: int, addr: VringAddr, base: int | None) -> None:
        """Start a stopped vring and process what is there already.

        Args:
            base: what SET_VRING_BASE said, or where it stopped before; None: nothing was said.
        """

    def move_vring(self, index: int, addr: VringAddr) -> None:
        """Other addresses for a running vring."""

    def stop_vring(self, index: int) -> int:
        """Stop a running vring; nothing is written to it afterwards.

        Returns:
            Where it stands, as GET_VRING_BASE says it.
        """

    def enable_vring(self, index: int, enabled: bool) -> None:
        """Enable or disable a vring, running or not."""

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """Wait for kicks on `fd`, which the device owns from now on; None: poll.

        Comes before the vring starts, and again at any time while it runs.
        """

    def drop_vring_kick(self, index: int) -> None:
        """The vring has stopped: close its kick descriptor, do not poll."""

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Interrupt the driver by `fd`, which the device owns from now on; None: it polls."""

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Report a broken vring by `fd`, which the device owns from now on; None: do not."""
