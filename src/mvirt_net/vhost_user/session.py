"""The vhost-user session: one request in, at most one reply out, no I/O.

Theory of operation
===================

A `Session` is one connection seen from the protocol. The shell around it reads a header, parses
it (`Header.parse` decides whether the payload may be read at all), reads the payload and hands
both to `Session.handle` together with the descriptors that came along. What the request means for
memory and rings goes to a `Device`; what the frontend gets to hear comes back as an `Outcome`.

**One table.** `TABLE` has a row for each message of the specification: its payload (and so its
size), the number of descriptors, the protocol feature and the state that make it legal, the kind of
answer, the handler. `handle` checks them in this order and stops at the first that does not hold.
Messages that are never legal here have a row, too, with a handler that refuses.

**Refusals.** Two exceptions, one for each way out. `RequestRefused` means that *this request*
cannot be had, and that nothing has changed. Where the frontend waits for an answer that can
express an error, it gets it: a non-zero acknowledgement (REPLY_ACK negotiated, NEED_REPLY set) or
the empty GET_CONFIG. Where it would have to guess, or would read an error as a value, the
conversation ends instead: `ConnectionBroken`. A frontend that is told nothing believes that all
went well, and a ring that exists on one side only is worse than none.

**Descriptors.** They are in the list given to `handle`, which the caller closes afterwards,
whatever happened. A descriptor that the device has taken over is removed from that list: for
kick, call and err that is the whole transfer of ownership. Memory descriptors are only borrowed
(a mapping needs no open file). What was not expected stays in the list, so no path can leak.

**Order.** Frontends differ widely in what they send when: QEMU asks for features and sets protocol
features before SET_OWNER, enables rings long before there is memory, and again after they have
stopped; virtio-user gives call descriptors before everything else. So hardly anything is refused
for coming early. Things are remembered until they mean something:

- A vring is **enabled** or not at any time. It is disabled at first, SET_VRING_ENABLE decides, and
  SET_FEATURES without bit 30 enables all of them; with bit 30 it never disables one.
- A vring **starts** when there are memory, a size, addresses and a kick (a descriptor, or the
  statement that there is none and that we shall poll). Normally SET_VRING_KICK is the last of
  these, and the vring starts there, without waiting for the first kick. Until then it is held, and
  that is no error. Addresses that are all zero mean "none yet" (virtio-user).
- It **stops** at GET_VRING_BASE and RESET_DEVICE. The kick is forgotten, so that nothing but a new
  SET_VRING_KICK starts it again. The index where it stopped is where it goes on, unless
  SET_VRING_BASE says otherwise; the device, which sees the used ring, may know better.

Whether vrings are **split or packed** is a virtio feature, and frontends may say everything else
about a vring before they say that. So what only one of the two layouts allows is refused at once
if the features are known, and in any case where the vring starts.

What must not change under a running vring is refused while it runs: its size, its base, and the
virtio features. Its addresses, descriptors and the memory table may change; the device looks
whether the vring is still within memory, and refuses if not.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs

from ..errors import ConnectionBroken, RequestRefused
from ..model import MAX_MTU, MIN_MTU, MacAddress, MemoryRegion, VringAddr
from .checks import (
    MAX_VRING_SIZE,
    check_regions,
    check_vring_base,
    check_vring_layout,
    check_vring_size,
)
from .config_space import CONFIG_SPACE_SIZE, MAX_QUEUE_PAIRS, net_config
from .device import Device
from .features import (
    OFFERED_FEATURES,
    OFFERED_PROTOCOL_FEATURES,
    ProtocolFeature,
    VirtioFeature,
)
from .messages import (
    MAX_TABLE_REGIONS,
    U64,
    ConfigAccess,
    Empty,
    Header,
    MemoryTable,
    Opaque,
    Payload,
    Request,
    SingleRegion,
    VringAddress,
    VringFile,
    VringState,
    reply,
    request_name,
)

VRINGS = 2 * MAX_QUEUE_PAIRS
"""Of queue pair i, vring 2i is RX and 2i + 1 is TX. GET_QUEUE_NUM says so many: cloud-hypervisor
counts vrings there, QEMU pairs, and DPDK's virtio-user does not ask. With the number of vrings
all get the pairs that there are; a ninth pair of QEMU's is refused at its first vring."""

MAX_MEM_SLOTS = 32
"""Memory regions of one frontend, however they came (GET_MAX_MEM_SLOTS)."""

PACKED_BEGINNING = 0x8000_8000
"""Where a packed vring begins: both positions in slot 0, both wrap counters 1."""


@attrs.frozen
class Outcome:
    """What a request came to."""

    reply: bytes | None
    """A whole message for the frontend."""
    refused: str | None
    """One line for the log if the reply is an error."""


class LegalIn(enum.Enum):
    """The state in which a message is legal, beyond the protocol feature that it needs."""

    ANY = enum.auto()
    UNOWNED = enum.auto()
    """Before SET_OWNER, or after RESET_OWNER."""
    VRING_STOPPED = enum.auto()
    """The vring that the message names is not running."""


class Answer(enum.Enum):
    """What the frontend waits for."""

    ACK = enum.auto()
    """Nothing, or with NEED_REPLY an acknowledgement: 0, or non-zero for "refused"."""
    OWN = enum.auto()
    """A reply that cannot express an error."""
    OWN_OR_EMPTY = enum.auto()
    """A reply that is empty for "refused"."""


_P = TypeVar("_P", bound=Payload)

_NOTHING = ProtocolFeature(0)
_PACKED = VirtioFeature.F_RING_PACKED
_NO_FD = range(1)
_ONE_FD = range(1, 2)
_FD_OR_NONE = range(2)
_TABLE_FDS = range(1, MAX_TABLE_REGIONS + 1)
_ANY_FDS = range(254)
"""SCM_MAX_FD is 253: more do not fit in a message."""


@attrs.frozen
class Rule(Generic[_P]):
    """One row of `TABLE`: what makes a message legal, and what it does."""

    payload: type[_P]
    handler: Callable[[Session, _P, list[int]], bytes | None]
    """Returns the payload of the reply if the message has its own."""
    fds: range = _NO_FD
    """The numbers of descriptors that it may carry."""
    needs: ProtocolFeature = _NOTHING
    legal_in: LegalIn = LegalIn.ANY
    answer: Answer = Answer.ACK
    regions: Callable[[Session, _P, Sequence[int]], tuple[MemoryRegion, ...]] | None = None
    """The memory that it asks for, one region for each descriptor, or none that is not there
    already; raises RequestRefused."""


@attrs.define(eq=False)
class _Vring:
    """What the frontend has said of a vring."""

    size: int = 0
    """In entries; 0: not said yet."""
    addr: VringAddr | None = None
    base: int | None = None
    kicked: bool = False
    """SET_VRING_KICK has come since the vring stopped last."""
    running: bool = False


class Session:
    """The protocol state of one connection.

    Args:
        device: in its initial state, see `Device`.
        mac: for the configuration space.
        mtu: likewise, in bytes, until the frontend sets another one.
    """

    __slots__ = (
        "_device",
        "_features",
        "_mac",
        "_mtu",
        "_owned",
        "_protocol_features",
        "_regions",
        "_repeats",
        "_vrings",
    )

    def __init__(self, device: Device, *, mac: MacAddress, mtu: int) -> None:
        self._device = device
        self._mac = mac
        self._mtu = mtu
        self._owned = False
        self._features: VirtioFeature | None = None
        self._protocol_features = _NOTHING
        self._regions: tuple[MemoryRegion, ...] = ()
        self._repeats: dict[MemoryRegion, int] = {}
        """How often more than once a region was added, and not removed again."""
        self._vrings: dict[int, _Vring] = {}

    @property
    def features(self) -> VirtioFeature:
        """The virtio features agreed on; none before SET_FEATURES."""
        return VirtioFeature(0) if self._features is None else self._features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The protocol features agreed on; none before SET_PROTOCOL_FEATURES."""
        return self._protocol_features

    @property
    def lacks_memory(self) -> bool:
        """Whether a vring was given its kick, and there is no memory at all for it."""
        return not self._regions and any(vring.kicked for vring in self._vrings.values())

    def memory_wanted(
        self, header: Header, payload: bytes, fds: Sequence[int]
    ) -> Sequence[tuple[MemoryRegion, int]]:
        """The regions that `handle` would ask the device to map from these descriptors.

        Whoever has to wait for mappings makes them before `handle`, and gives them to the device.
        Nothing is changed here, and a request that will be refused wants nothing.
        """
        rule = TABLE.get(header.request, _UNKNOWN)
        if rule.regions is None:
            return ()
        try:
            regions = rule.regions(self, self._legal_message(rule, payload, fds), fds)
        except RequestRefused:
            return ()
        return tuple(zip(regions, fds, strict=True)) if regions else ()

    def handle(self, header: Header, payload: bytes, fds: list[int]) -> Outcome:
        """Carry out one request.

        Args:
            payload: `header.size` bytes.
            fds: the descriptors that came with the first byte of the header. Those that the
                device has taken over are removed; the caller closes what is left, also after an
                exception.

        Raises:
            ConnectionBroken: refused, and no reply can say so. Close the connection.
        """
        rule = TABLE.get(header.request, _UNKNOWN)
        acks_before = self._acks
        try:
            result = self._carry_out(rule, payload, fds)
        except RequestRefused as error:
            return self._refuse(header, rule, str(error))
        if result is not None:
            return Outcome(reply(header.request, result), None)
        # SET_PROTOCOL_FEATURES may negotiate REPLY_ACK or drop it: either side of it counts.
        if header.need_reply and (acks_before or self._acks):
            return Outcome(reply(header.request, U64(0).pack()), None)
        return Outcome(None, None)

    @property
    def _acks(self) -> bool:
        return ProtocolFeature.REPLY_ACK in self._protocol_features

    def _carry_out(self, rule: Rule[Any], payload: bytes, fds: list[int]) -> bytes | None:
        """Check everything that the row says, then do it; raises RequestRefused."""
        return rule.handler(self, self._legal_message(rule, payload, fds), fds)

    def _legal_message(self, rule: Rule[_P], payload: bytes, fds: Sequence[int]) -> _P:
        message = rule.payload.parse(payload)
        if len(fds) not in rule.fds:
            raise RequestRefused(f"{len(fds)} descriptors")
        if rule.needs not in self._protocol_features:
            raise RequestRefused(f"{rule.needs.name} has not been negotiated")
        self._check_state(rule.legal_in, message)
        return message

    def _check_state(self, legal_in: LegalIn, message: Any) -> None:
        if legal_in is LegalIn.UNOWNED and self._owned:
            raise RequestRefused("owned already")
        if legal_in is LegalIn.VRING_STOPPED and self._vring(message.index).running:
            raise RequestRefused(f"vring {message.index} is running")

    def _refuse(self, header: Header, rule: Rule[Any], reason: str) -> Outcome:
        refused = f"{request_name(header.request)} refused: {reason}"
        if rule.answer is Answer.ACK and header.need_reply and self._acks:
            return Outcome(reply(header.request, U64(1).pack()), refused)
        if rule.answer is Answer.OWN_OR_EMPTY and rule.needs in self._protocol_features:
            return Outcome(reply(header.request, b""), refused)
        raise ConnectionBroken(refused)

    # -- features ------------------------------------------------------------------------------

    def _get_features(self, _message: Empty, _fds: list[int]) -> bytes:
        return U64(OFFERED_FEATURES).pack()

    def _set_features(self, message: U64, _fds: list[int]) -> None:
        _refuse_unoffered(message.value, OFFERED_FEATURES)
        features = VirtioFeature(message.value)
        if not any(vring.running for vring in self._vrings.values()):
            self._device.set_features(features)
        elif features != self.features:
            raise RequestRefused("a vring is running")
        if self._features is not None and (features ^ self._features) & _PACKED:
            for vring in self._vrings.values():
                vring.base = None  # says nothing about the other layout
        self._features = features
        if VirtioFeature.PROTOCOL_FEATURES not in features:
            for index in range(VRINGS):
                self._device.enable_vring(index, True)

    def _get_protocol_features(self, _message: Empty, _fds: list[int]) -> bytes:
        return U64(OFFERED_PROTOCOL_FEATURES).pack()

    def _set_protocol_features(self, message: U64, _fds: list[int]) -> None:
        _refuse_unoffered(message.value, OFFERED_PROTOCOL_FEATURES)
        self._protocol_features = ProtocolFeature(message.value)

    def _get_queue_num(self, _message: Empty, _fds: list[int]) -> bytes:
        return U64(VRINGS).pack()

    # -- the device as a whole -----------------------------------------------------------------

    def _set_owner(self, _message: Empty, _fds: list[int]) -> None:
        self._owned = True

    def _reset_owner(self, _message: Empty, _fds: list[int]) -> None:
        # Deprecated, with several meanings; recommended is to ignore it. Vrings keep running.
        self._owned = False

    def _reset_device(self, _message: Empty, _fds: list[int]) -> None:
        # The owner, the protocol features and the memory belong to the connection and stay.
        for index, vring in self._vrings.items():
            if vring.running:
                self._device.stop_vring(index)
            self._device.drop_vring_kick(index)
            self._device.set_vring_call(index, None)
            self._device.set_vring_err(index, None)
        for index in range(VRINGS):
            self._device.enable_vring(index, False)
        self._vrings.clear()
        self._device.set_features(0)
        self._features = None

    def _net_set_mtu(self, message: U64, _fds: list[int]) -> None:
        if not MIN_MTU <= message.value <= MAX_MTU:
            raise RequestRefused(f"MTU {message.value}")
        self._device.set_mtu(message.value)
        self._mtu = message.value

    def _get_config(self, message: ConfigAccess, _fds: list[int]) -> bytes:
        end = message.offset + len(message.data)
        if end > CONFIG_SPACE_SIZE:
            raise RequestRefused(f"config space up to {end}")
        space = net_config(self._mac, mtu=self._mtu)
        return attrs.evolve(message, data=space[message.offset : end]).pack()

    def _set_config(self, _message: ConfigAccess, _fds: list[int]) -> None:
        raise RequestRefused("the configuration space is read-only")

    # -- memory --------------------------------------------------------------------------------

    def _regions_of_table(
        self, message: MemoryTable, fds: Sequence[int]
    ) -> tuple[MemoryRegion, ...]:
        """All to be mapped; raises RequestRefused unless they can be one memory."""
        if len(fds) != len(message.regions):
            raise RequestRefused(f"{len(message.regions)} regions, {len(fds)} descriptors")
        check_regions(message.regions)
        return message.regions

    def _set_mem_table(self, message: MemoryTable, fds: list[int]) -> None:
        self._regions_of_table(message, fds)
        self._device.set_memory_table(message.regions, fds)
        self._regions = message.regions
        self._repeats.clear()
        self._start_held_vrings()

    def _get_max_mem_slots(self, _message: Empty, _fds: list[int]) -> bytes:
        return U64(MAX_MEM_SLOTS).pack()

    def _region_to_add(
        self, message: SingleRegion, _fds: Sequence[int]
    ) -> tuple[MemoryRegion, ...]:
        """The one; raises RequestRefused unless it can be with those that there are.

        QEMU before 8.0 adds and removes each region once for each queue pair: none is to be added
        then. What the descriptor is of does not matter; the first one counts.
        """
        if message.region in self._regions:
            if self._repeats.get(message.region, 0) + 1 >= MAX_QUEUE_PAIRS:
                raise RequestRefused("memory region added again and again")
            return ()
        regions = (*self._regions, message.region)
        if len(regions) > MAX_MEM_SLOTS:
            raise RequestRefused(f"more than {MAX_MEM_SLOTS} memory regions")
        check_regions(regions)
        return (message.region,)

    def _add_mem_reg(self, message: SingleRegion, fds: list[int]) -> None:
        if not self._region_to_add(message, fds):
            self._repeats[message.region] = self._repeats.get(message.region, 0) + 1
            return
        self._device.add_memory_region(message.region, fds[0])
        self._regions = (*self._regions, message.region)
        self._start_held_vrings()

    def _rem_mem_reg(self, message: SingleRegion, _fds: list[int]) -> None:
        region = self._region_like(message.region)
        if repeats := self._repeats.pop(region, 0):
            if repeats > 1:
                self._repeats[region] = repeats - 1
            return
        self._device.remove_memory_region(region)
        self._regions = tuple(other for other in self._regions if other != region)

    def _region_like(self, wanted: MemoryRegion) -> MemoryRegion:
        """The region that REM_MEM_REG means; the mmap offset is not compared."""
        for region in self._regions:
            if attrs.evolve(wanted, mmap_offset=region.mmap_offset) == region:
                return region
        raise RequestRefused(f"no memory region at {wanted.guest_addr:#x}")

    # -- vrings --------------------------------------------------------------------------------

    def _vring(self, index: int) -> _Vring:
        """Most frontends speak of two, so there is one only once it was spoken of."""
        if index >= VRINGS:
            raise RequestRefused(f"vring {index}")
        return self._vrings.setdefault(index, _Vring())

    @property
    def _packed(self) -> bool:
        """Whether vrings are packed; not before SET_FEATURES."""
        return _PACKED in self.features

    def _check_layout(self, check: Callable[..., None], *what: Any) -> None:
        """Refuse what the layout does not allow; while that is not known, what neither does."""
        if self._features is None:
            with contextlib.suppress(RequestRefused):
                return check(*what, packed=True)
        return check(*what, packed=self._packed)

    def _set_vring_num(self, message: VringState, _fds: list[int]) -> None:
        self._check_layout(check_vring_size, message.num)
        self._vring(message.index).size = message.num

    def _set_vring_base(self, message: VringState, _fds: list[int]) -> None:
        vring = self._vring(message.index)
        self._check_layout(check_vring_base, message.num, vring.size or MAX_VRING_SIZE)
        vring.base = message.num

    def _set_vring_addr(self, message: VringAddress, _fds: list[int]) -> None:
        vring, addr = self._vring(message.index), message.addr
        if message.flags:
            # The only flag asks for dirty logging, which needs VHOST_F_LOG_ALL.
            raise RequestRefused(f"vring flags {message.flags:#x}")
        if vring.running:
            self._move(message.index, addr)
        elif not (addr.desc or addr.used or addr.avail):
            vring.addr = None
        else:
            self._place(message.index, addr)

    def _move(self, index: int, addr: VringAddr) -> None:
        vring = self._vrings[index]
        self._check_layout(check_vring_layout, vring.size, addr)
        self._device.move_vring(index, addr)
        vring.addr = addr

    def _place(self, index: int, addr: VringAddr) -> None:
        vring = self._vrings[index]
        if not vring.size:
            raise RequestRefused(f"vring {index} has no size yet")
        self._check_layout(check_vring_layout, vring.size, addr)
        if self._regions and self._features is not None:
            self._device.check_vring(index, vring.size, addr)
        previous, vring.addr = vring.addr, addr
        try:
            self._start_if_complete(index)
        except RequestRefused:
            vring.addr = previous
            raise

    def _set_vring_kick(self, message: VringFile, fds: list[int]) -> None:
        vring = self._vring(message.index)
        self._hand_over(message, fds, self._device.set_vring_kick)
        vring.kicked = True
        try:
            self._start_if_complete(message.index)
        except RequestRefused:
            vring.kicked = False
            self._device.drop_vring_kick(message.index)
            raise

    def _set_vring_call(self, message: VringFile, fds: list[int]) -> None:
        self._hand_over(message, fds, self._device.set_vring_call)

    def _set_vring_err(self, message: VringFile, fds: list[int]) -> None:
        self._hand_over(message, fds, self._device.set_vring_err)

    def _hand_over(
        self, message: VringFile, fds: list[int], take: Callable[[int, int | None], None]
    ) -> None:
        """Give the descriptor, or the news that there is none, to the device."""
        self._vring(message.index)
        if message.no_fd is bool(fds):
            raise RequestRefused(f"{len(fds)} descriptors")
        take(message.index, fds[0] if fds else None)
        fds.clear()

    def _set_vring_enable(self, message: VringState, _fds: list[int]) -> None:
        self._vring(message.index)
        # Before SET_FEATURES it cannot be known whether bit 30 will be in it (QEMU).
        if self._features is not None and VirtioFeature.PROTOCOL_FEATURES not in self._features:
            raise RequestRefused("PROTOCOL_FEATURES has not been negotiated")
        if message.num > 1:
            raise RequestRefused(f"enable {message.num}")
        self._device.enable_vring(message.index, bool(message.num))

    def _get_vring_base(self, message: VringState, _fds: list[int]) -> bytes:
        # `num` of the request is reserved, yet virtio-user leaves there what was on its stack.
        vring = self._vring(message.index)
        if vring.running:
            vring.base = self._device.stop_vring(message.index)
            vring.running = False
        vring.kicked = False
        self._device.drop_vring_kick(message.index)
        beginning = PACKED_BEGINNING if self._packed else 0
        base = beginning if vring.base is None else vring.base
        return VringState(message.index, base).pack()

    def _start_held_vrings(self) -> None:
        """Start what was waiting for memory or addresses; what does not fit goes on waiting.

        With ADD_MEM_REG memory comes piece by piece, so a vring outside of it is no error yet.
        """
        for index in self._vrings:
            try:
                self._start_if_complete(index)
            except RequestRefused:
                continue

    def _start_if_complete(self, index: int) -> None:
        vring = self._vrings[index]
        if vring.running or not vring.kicked or not self._regions:
            return
        if not vring.size or vring.addr is None:
            return
        # The size or the features may have changed since.
        packed = self._packed
        check_vring_size(vring.size, packed=packed)
        check_vring_layout(vring.size, vring.addr, packed=packed)
        if vring.base is not None:
            check_vring_base(vring.base, vring.size, packed=packed)
        self._device.start_vring(index, vring.size, vring.addr, vring.base)
        vring.running = True

    # -- the rest ------------------------------------------------------------------------------

    def _ignore(self, _message: Payload, _fds: list[int]) -> None:
        """Legal, and nothing has to be done."""

    def _not_supported(self, _message: Opaque, _fds: list[int]) -> None:
        raise RequestRefused("not supported")


def _refuse_unoffered(features: int, offered: int) -> None:
    # ``~`` of an IntFlag forgets the bits that it has no name for, and those are the point.
    unoffered = features & ~int(offered)
    if unoffered:
        raise RequestRefused(f"features {unoffered:#x} were not offered")


_Needs = ProtocolFeature
_STOPPED = LegalIn.VRING_STOPPED
_OWN = Answer.OWN

_UNKNOWN = Rule(Opaque, Session._not_supported, fds=_ANY_FDS)
"""Whatever has no row of its own, and every row that is never legal."""
_UNKNOWN_OWN = attrs.evolve(_UNKNOWN, answer=_OWN)
"""The same for messages whose reply would be taken for something else than an error."""

TABLE: Mapping[int, Rule[Any]] = {
    Request.GET_FEATURES: Rule(Empty, Session._get_features, answer=_OWN),
    Request.SET_FEATURES: Rule(U64, Session._set_features),
    Request.SET_OWNER: Rule(Empty, Session._set_owner, legal_in=LegalIn.UNOWNED),
    Request.RESET_OWNER: Rule(Empty, Session._reset_owner),
    Request.SET_MEM_TABLE: Rule(
        MemoryTable,
        Session._set_mem_table,
        fds=_TABLE_FDS,
        regions=Session._regions_of_table,
    ),
    Request.SET_LOG_BASE: _UNKNOWN,
    # The event that tells of new dirty pages; without a log there will never be one.
    Request.SET_LOG_FD: Rule(Empty, Session._ignore, fds=_ONE_FD),
    Request.SET_VRING_NUM: Rule(VringState, Session._set_vring_num, legal_in=_STOPPED),
    Request.SET_VRING_ADDR: Rule(VringAddress, Session._set_vring_addr),
    Request.SET_VRING_BASE: Rule(VringState, Session._set_vring_base, legal_in=_STOPPED),
    Request.GET_VRING_BASE: Rule(VringState, Session._get_vring_base, answer=_OWN),
    Request.SET_VRING_KICK: Rule(VringFile, Session._set_vring_kick, fds=_FD_OR_NONE),
    Request.SET_VRING_CALL: Rule(VringFile, Session._set_vring_call, fds=_FD_OR_NONE),
    Request.SET_VRING_ERR: Rule(VringFile, Session._set_vring_err, fds=_FD_OR_NONE),
    Request.GET_PROTOCOL_FEATURES: Rule(Empty, Session._get_protocol_features, answer=_OWN),
    Request.SET_PROTOCOL_FEATURES: Rule(U64, Session._set_protocol_features),
    Request.GET_QUEUE_NUM: Rule(Empty, Session._get_queue_num, needs=_Needs.MQ, answer=_OWN),
    Request.SET_VRING_ENABLE: Rule(VringState, Session._set_vring_enable),
    # The RARP feature is not offered; this layer-3 network needs no announcement either.
    Request.SEND_RARP: Rule(U64, Session._ignore),
    Request.NET_SET_MTU: Rule(U64, Session._net_set_mtu, needs=_Needs.NET_MTU),
    Request.SET_BACKEND_REQ_FD: _UNKNOWN,
    Request.IOTLB_MSG: _UNKNOWN_OWN,
    Request.SET_VRING_ENDIAN: _UNKNOWN,
    Request.GET_CONFIG: Rule(
        ConfigAccess, Session._get_config, needs=_Needs.CONFIG, answer=Answer.OWN_OR_EMPTY
    ),
    Request.SET_CONFIG: Rule(ConfigAccess, Session._set_config, needs=_Needs.CONFIG),
    Request.CREATE_CRYPTO_SESSION: _UNKNOWN_OWN,
    Request.CLOSE_CRYPTO_SESSION: _UNKNOWN,
    Request.POSTCOPY_ADVISE: _UNKNOWN_OWN,
    Request.POSTCOPY_LISTEN: _UNKNOWN,
    Request.POSTCOPY_END: _UNKNOWN_OWN,
    Request.GET_INFLIGHT_FD: _UNKNOWN_OWN,
    Request.SET_INFLIGHT_FD: _UNKNOWN,
    Request.GPU_SET_SOCKET: _UNKNOWN,
    Request.RESET_DEVICE: Rule(Empty, Session._reset_device, needs=_Needs.RESET_DEVICE),
    Request.VRING_KICK: _UNKNOWN,
    Request.GET_MAX_MEM_SLOTS: Rule(
        Empty, Session._get_max_mem_slots, needs=_Needs.CONFIGURE_MEM_SLOTS, answer=_OWN
    ),
    Request.ADD_MEM_REG: Rule(
        SingleRegion,
        Session._add_mem_reg,
        fds=_ONE_FD,
        needs=_Needs.CONFIGURE_MEM_SLOTS,
        regions=Session._region_to_add,
    ),
    # QEMU before 7.1 sends a descriptor, which backends have to close.
    Request.REM_MEM_REG: Rule(
        SingleRegion, Session._rem_mem_reg, fds=_FD_OR_NONE, needs=_Needs.CONFIGURE_MEM_SLOTS
    ),
    Request.SET_STATUS: _UNKNOWN,
    Request.GET_STATUS: _UNKNOWN_OWN,
    Request.GET_SHARED_OBJECT: _UNKNOWN_OWN,
    Request.SET_DEVICE_STATE_FD: _UNKNOWN_OWN,
    Request.CHECK_DEVICE_STATE: _UNKNOWN_OWN,
    Request.GET_SHMEM_CONFIG: _UNKNOWN_OWN,
}
