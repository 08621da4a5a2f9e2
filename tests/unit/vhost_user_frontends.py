"""The frontends that there are, as they speak.

QEMU 7.2 and DPDK 22.11 virtio-user as recorded, cloud-hypervisor as its source has it.
"""

from __future__ import annotations

from typing import ClassVar

from mvirt_net.model import MemoryRegion
from mvirt_net.vhost_user import OFFERED_FEATURES, OFFERED_PROTOCOL_FEATURES, Request

from .vhost_user_peer import (
    REGION,
    RINGS,
    RX,
    TX,
    Frontend,
    config,
    mem_table,
    single_region,
    state,
    u64,
    vring_addr,
)

PROTOCOL_FEATURES = 1 << 30
BOTH = (RX, TX)


class Qemu(Frontend):
    """QEMU: chardev client, one queue pair."""

    KNOWN_PROTOCOL_FEATURES = 0x1ECBF
    """What was recorded (0x10cbf), and bits 13 and 15, which nobody offered then."""
    KNOWN_FEATURES = 0x1_7020_E783

    def __init__(self, *, memory_slots: bool, host_mtu: int | None = None) -> None:
        super().__init__()
        self._slots = memory_slots
        self._host_mtu = host_mtu
        self._known: list[MemoryRegion] = []

    def start(self, enables: int = 3) -> None:
        """Before the guest runs; ENABLE comes `enables` times."""
        self.send(Request.GET_FEATURES)
        offered = self.get_u64(Request.GET_PROTOCOL_FEATURES)
        mask = self.KNOWN_PROTOCOL_FEATURES if self._slots else 0x10CBF
        self.send(Request.SET_PROTOCOL_FEATURES, u64(offered & mask))
        assert self.get_u64(Request.GET_QUEUE_NUM) >= 8
        if self._slots:
            assert self.get_u64(Request.GET_MAX_MEM_SLOTS) >= 8
        self.send(Request.SET_OWNER)
        self.send(Request.GET_FEATURES)
        for index in BOTH:
            self.send(Request.SET_VRING_CALL, u64(index), fds=1)
            self.send(Request.SET_VRING_ERR, u64(index), fds=1)
        for _ in range(enables):
            self.enable()

    def enable(self) -> None:
        for index in BOTH:
            self.acked(Request.SET_VRING_ENABLE, state(index, 1))

    def driver_ok(self, *bases: int, memory: tuple[MemoryRegion, ...] = (REGION,)) -> None:
        if self._host_mtu is not None:
            self.acked(Request.NET_SET_MTU, u64(self._host_mtu))
        features = OFFERED_FEATURES & self.KNOWN_FEATURES
        self.send(Request.SET_FEATURES, u64(features | PROTOCOL_FEATURES))
        self.set_memory(*memory)
        for index, base in zip(BOTH, bases, strict=True):
            self.send(Request.SET_VRING_NUM, state(index, 256))
            self.send(Request.SET_VRING_BASE, state(index, base))
            self.send(Request.SET_VRING_ADDR, vring_addr(index, RINGS[index], log=0x2000))
            self.send(Request.SET_VRING_KICK, u64(index), fds=1)
            self.send(Request.SET_VRING_CALL, u64(index), fds=1)
        assert self.device.started[-2:] == list(zip(BOTH, bases, strict=True))
        assert self.device.enabled == {RX: True, TX: True}

    def set_memory(self, *memory: MemoryRegion) -> None:
        """All of it in one table, or only what has changed."""
        if not self._slots:
            self.acked(Request.SET_MEM_TABLE, mem_table(*memory), fds=len(memory))
        else:
            for region in [known for known in self._known if known not in memory]:
                self.acked(Request.REM_MEM_REG, single_region(region))
            for region in [new for new in memory if new not in self._known]:
                self.acked(Request.ADD_MEM_REG, single_region(region), fds=1)
        self._known = list(memory)
        assert self.device.regions == list(memory)

    def driver_down(self) -> list[int]:
        bases = [self.get_base(index) for index in BOTH]
        assert self.device.running == {}
        self.enable()
        return bases


class VirtioUser(Frontend):
    """DPDK's virtio-user, one queue pair, split rings."""

    REGION: ClassVar[MemoryRegion] = MemoryRegion(
        guest_addr=REGION.user_addr, size=REGION.size, user_addr=REGION.user_addr, mmap_offset=0
    )

    def probe(self) -> None:
        self.send(Request.SET_OWNER)
        self.send(Request.GET_FEATURES)
        offered = self.get_u64(Request.GET_PROTOCOL_FEATURES)
        self.send(Request.SET_PROTOCOL_FEATURES, u64(offered & 0x10009))

    def start(self) -> None:
        for index in BOTH:
            self.send(Request.SET_VRING_CALL, u64(index), fds=1)
        self.send(Request.SET_FEATURES, u64(0x9_5000_8000))
        self.acked(Request.SET_MEM_TABLE, mem_table(self.REGION), fds=1)
        for index in BOTH:
            self.send(Request.SET_VRING_NUM, state(index, 256))
            self.send(Request.SET_VRING_BASE, state(index, 0))
            self.send(Request.SET_VRING_ADDR, vring_addr(index, RINGS[index]))
            self.send(Request.SET_VRING_KICK, u64(index), fds=1)
        assert self.device.enabled == {RX: False, TX: False}
        self.enable(True)
        assert set(self.device.running) == {RX, TX}

    def enable(self, enabled: bool) -> None:
        for index in BOTH:
            self.send(Request.SET_VRING_ENABLE, state(index, int(enabled)))
        assert self.device.enabled == {RX: enabled, TX: enabled}

    def stop(self) -> None:
        self.enable(False)
        for index in BOTH:
            # What it leaves in `num` is what was on its stack.
            reply = self.send(Request.GET_VRING_BASE, state(index, 0xDEADBEEF))
            assert reply == state(index, 99)
        assert self.device.running == {}


class CloudHypervisor(Frontend):
    """cloud-hypervisor: once REPLY_ACK is negotiated, everything carries NEED_REPLY."""

    # MQ, LOG_SHMFD, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS, DEVICE_STATE
    KNOWN_PROTOCOL_FEATURES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15 | 1 << 19
    KNOWN_FEATURES = 0x59_7463_FFAB
    """MTU, MAC, MRG_RXBUF, STATUS, CTRL_VQ, GUEST_ANNOUNCE, MQ, LOG_ALL, INDIRECT_DESC, EVENT_IDX,
    PROTOCOL_FEATURES, VERSION_1, IN_ORDER, ORDER_PLATFORM, NOTIFICATION_DATA, all offloads but USO.
    """

    def connect(self) -> None:
        self.send(Request.SET_OWNER)
        self.send(Request.GET_FEATURES)
        offered = self.get_u64(Request.GET_PROTOCOL_FEATURES)
        self.send(Request.SET_PROTOCOL_FEATURES, u64(offered & self.KNOWN_PROTOCOL_FEATURES))
        assert self.call(Request.GET_QUEUE_NUM) == u64(16)
        reply = self.call(Request.GET_CONFIG, config(0, 17, flags=1))
        # MAC, link up, 8 pairs, MTU 1450, no speed, no duplex
        assert reply == bytes.fromhex(
            "00000000 11000000 01000000 525400123456 0100 0800 aa05 00000000 00"
        )

    def reconnect(self) -> None:
        """The features are those of the first time; nobody asks for the offer."""
        self.send(Request.SET_OWNER)
        self.send(Request.GET_FEATURES)
        features = OFFERED_PROTOCOL_FEATURES & self.KNOWN_PROTOCOL_FEATURES
        self.send(Request.SET_PROTOCOL_FEATURES, u64(features))

    def activate(self, *bases: int) -> None:
        self.acked(Request.SET_FEATURES, u64(OFFERED_FEATURES & self.KNOWN_FEATURES))
        self.acked(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
        for index in BOTH:
            self.acked(Request.SET_VRING_NUM, state(index, 256))
        for index, base in zip(BOTH, bases, strict=True):
            self.acked(Request.SET_VRING_ADDR, vring_addr(index, RINGS[index]))
            self.acked(Request.SET_VRING_BASE, state(index, base))
            self.acked(Request.SET_VRING_CALL, u64(index), fds=1)
            self.acked(Request.SET_VRING_KICK, u64(index), fds=1)
        self.enable(True)
        assert self.device.started[-2:] == list(zip(BOTH, bases, strict=True))

    def enable(self, enabled: bool) -> None:
        for index in BOTH:
            self.acked(Request.SET_VRING_ENABLE, state(index, int(enabled)))
        assert self.device.enabled == {RX: enabled, TX: enabled}

    def reset(self) -> None:
        for index in BOTH:
            self.acked(Request.SET_VRING_ENABLE, state(index, 0))
            assert self.call(Request.GET_VRING_BASE, state(index, 0)) == state(index, 77)
        assert self.device.running == {}
