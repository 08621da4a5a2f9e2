"""The conversations of real frontends, message by message; none of it may be refused.

The tests are the episodes of a guest's life.
"""

from __future__ import annotations

import pytest

from mvirt_net.errors import ConnectionBroken
from mvirt_net.model import MemoryRegion
from mvirt_net.vhost_user import Request

from .vhost_user_frontends import BOTH, CloudHypervisor, Qemu, VirtioUser
from .vhost_user_peer import (
    MIB,
    NULL,
    REGION,
    RINGS,
    RX,
    TX,
    UPPER,
    Frontend,
    mem_table,
    single_region,
    state,
    u64,
    vring_addr,
)


@pytest.fixture(params=[False, True], ids=["mem-table", "mem-slots"])
def qemu(request: pytest.FixtureRequest) -> Qemu:
    """QEMU with the features of the recording, and with all that we offer."""
    return Qemu(memory_slots=request.param)


class TestQemu:
    @pytest.mark.parametrize("enables", [3, 4, 5])
    def test_boot(self, qemu: Qemu, enables: int) -> None:
        qemu.start(enables)
        assert qemu.device.enabled == {RX: True, TX: True}
        assert qemu.device.running == {}
        qemu.driver_ok(0, 0)
        assert set(qemu.device.running) == {RX, TX}
        assert len(qemu.fds.open) == 6  # kick, call and err of each; no throw-away is left

    def test_reboot_starts_from_0(self, qemu: Qemu) -> None:
        qemu.start()
        qemu.driver_ok(0, 0)
        qemu.device.index_at_stop = 500
        assert qemu.driver_down() == [500, 500]
        qemu.enable()
        qemu.driver_ok(0, 0)

    def test_link_off_and_on_goes_on(self, qemu: Qemu) -> None:
        qemu.start()
        qemu.driver_ok(0, 0)
        qemu.device.index_at_stop = 65535
        qemu.driver_ok(*qemu.driver_down())
        assert qemu.device.started[-1] == (TX, 65535)

    def test_device_del_and_add_keeps_the_connection(self, qemu: Qemu) -> None:
        qemu.start()
        for _ in range(3):
            qemu.driver_ok(0, 0)
            qemu.driver_down()
            qemu.enable()

    def test_call_replaced_at_any_time(self, qemu: Qemu) -> None:
        qemu.start()
        qemu.driver_ok(0, 0)
        for _ in range(5):
            qemu.send(Request.SET_VRING_CALL, u64(RX), fds=1)
        assert len(qemu.fds.open) == 6

    def test_memory_hotplug(self, qemu: Qemu) -> None:
        qemu.start()
        qemu.driver_ok(0, 0)
        qemu.set_memory(REGION, UPPER)
        qemu.set_memory(REGION)
        assert len(qemu.device.running) == 2

    def test_memory_layout_changes_between_two_starts(self, qemu: Qemu) -> None:
        qemu.start()
        qemu.driver_ok(0, 0)
        qemu.driver_down()
        shrunk = MemoryRegion(0, MIB, REGION.user_addr, 0)
        qemu.driver_ok(0, 0, memory=(shrunk, UPPER))

    @pytest.mark.parametrize("host_mtu", [1500, 9000])
    def test_host_mtu_is_set_before_the_features(self, host_mtu: int) -> None:
        qemu = Qemu(memory_slots=False, host_mtu=host_mtu)
        qemu.start()
        qemu.driver_ok(0, 0)

    def test_reconnect_goes_on_at_the_used_index(self) -> None:
        again = Qemu(memory_slots=True)
        again.start()
        again.driver_ok(17, 4711)

    def test_a_ninth_pair_ends_the_conversation(self, qemu: Qemu) -> None:
        qemu.start()
        for index in range(2, 16):
            qemu.send(Request.SET_VRING_CALL, u64(index), fds=1)
        with pytest.raises(ConnectionBroken, match="vring 16"):
            qemu.exchange(Request.SET_VRING_CALL, u64(16), 1)

    def test_each_pair_adds_and_removes_the_memory(self) -> None:
        """As before QEMU 8.0. The region is there from the first to the last, and mapped once."""
        qemu = Qemu(memory_slots=True)
        qemu.start()
        qemu.driver_ok(0, 0)
        for _ in range(3):
            qemu.acked(Request.ADD_MEM_REG, single_region(UPPER), fds=1)
            assert qemu.device.regions.count(UPPER) == 1
        for _ in range(2):
            qemu.acked(Request.REM_MEM_REG, single_region(UPPER))
            assert UPPER in qemu.device.regions
        qemu.acked(Request.REM_MEM_REG, single_region(UPPER))
        assert UPPER not in qemu.device.regions
        assert qemu.exchange(Request.REM_MEM_REG, single_region(UPPER), flags=9).refused

    def test_reset_device(self) -> None:
        qemu = Qemu(memory_slots=True)
        qemu.start()
        qemu.driver_ok(0, 0)
        qemu.driver_down()
        qemu.send(Request.RESET_DEVICE)
        qemu.enable()
        qemu.driver_ok(0, 0)


class TestVirtioUser:
    def test_life(self) -> None:
        frontend = VirtioUser()
        frontend.device.index_at_stop = 99
        frontend.probe()
        for _ in range(3):
            frontend.start()
            frontend.stop()

    def test_memory_hotplug_with_the_vrings_disabled(self) -> None:
        frontend = VirtioUser()
        frontend.probe()
        frontend.start()
        frontend.enable(False)
        frontend.acked(Request.SET_MEM_TABLE, mem_table(frontend.REGION, UPPER), fds=2)
        frontend.enable(True)
        assert set(frontend.device.running) == {RX, TX}

    def test_null_addresses(self) -> None:
        frontend = VirtioUser()
        frontend.probe()
        frontend.send(Request.SET_MEM_TABLE, mem_table(frontend.REGION), fds=1)
        frontend.send(Request.SET_VRING_NUM, state(TX, 256))
        frontend.send(Request.SET_VRING_BASE, state(TX, 0))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(TX, NULL))
        frontend.send(Request.SET_VRING_KICK, u64(TX), fds=1)
        assert frontend.device.running == {}
        assert frontend.get_base(TX) == 0


class TestCloudHypervisor:
    def test_life(self) -> None:
        frontend = CloudHypervisor()
        frontend.device.index_at_stop = 77
        frontend.connect()
        for _ in range(3):
            frontend.activate(0, 0)
            frontend.reset()

    def test_pause_and_resume(self) -> None:
        frontend = CloudHypervisor()
        frontend.connect()
        frontend.activate(0, 0)
        frontend.enable(False)
        frontend.enable(True)
        assert set(frontend.device.running) == {RX, TX}

    def test_memory_hotplug(self) -> None:
        frontend = CloudHypervisor()
        frontend.connect()
        frontend.activate(0, 0)
        frontend.acked(Request.ADD_MEM_REG, single_region(UPPER), fds=1)
        assert frontend.device.regions == [REGION, UPPER]

    def test_reconnect_goes_on_at_the_used_index(self) -> None:
        frontend = CloudHypervisor()
        frontend.reconnect()
        frontend.activate(9, 10)


def test_no_more_than_the_minimum() -> None:
    """VERSION_1 and nothing else: no protocol features, so no acknowledgement and no ENABLE."""
    frontend = Frontend()
    frontend.send(Request.SET_OWNER)
    frontend.send(Request.GET_FEATURES)
    frontend.send(Request.SET_FEATURES, u64(1 << 32))
    frontend.send(Request.SET_MEM_TABLE, mem_table(REGION), fds=1)
    for index in BOTH:
        frontend.send(Request.SET_VRING_NUM, state(index, 256))
        frontend.send(Request.SET_VRING_ADDR, vring_addr(index, RINGS[index]))
        frontend.send(Request.SET_VRING_KICK, u64(index), fds=1)
    assert set(frontend.device.running) == {RX, TX}
    assert frontend.device.enabled == dict.fromkeys(range(16), True)
