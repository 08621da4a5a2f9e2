"""A guest that boots with next to no work: its frontend's conversation, a lease, an ARP reply.

The tests' client takes longer for all that than the daemon does. Here every message is ready before
the first one is sent, and one loop serves all guests, which wait for answers wherever QEMU does.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from tests.harness.memory import RegionInfo, create_memfd, fence
from tests.harness.packets import (
    GATEWAY_IP,
    DhcpMessageType,
    arp_request,
    dhcp_discover,
    dhcp_request,
    ip_bytes,
    is_arp_reply,
    parse_dhcp_response,
)
from tests.harness.vhost_user import (
    HEADER,
    NEED_REPLY_FLAG,
    OWN_REPLY,
    VERSION,
    Feature,
    ProtocolFeature,
    Request,
    encode,
    encode_mem_table,
    encode_state,
    encode_u64,
    encode_vring_addr,
)
from tests.harness.virtio import VIRTIO_NET_HDR_SIZE, VRING_DESC_F_WRITE, VringDesc

from .processes import PATIENCE, BenchError, Place

_RING_SIZE = 256
_BUFFER_SIZE = 2048
_RX_BUFFERS = 16
"""They are given once: a guest that boots receives three frames."""
_RX, _TX = range(2)
_RING_PAGES = 3
_PAGE = 4096
_BUFFERS = 2 * _RING_PAGES * _PAGE
_MEMORY = _BUFFERS + (_RX_BUFFERS + 2) * _BUFFER_SIZE
"""In whole pages: one buffer more than is used."""
_USER_ADDR = 0x7F00_0000_0000
_NO_INTERRUPT = 1
_ONE = (1).to_bytes(8, "little")

_FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.MAC | Feature.MRG_RXBUF
_PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG

Step = tuple[bytes, tuple[int, ...], bool]
"""A message, its descriptors, and whether the frontend waits for a reply."""


class BootingGuest:
    """One guest and its frontend; to be closed.

    Args:
        place: the addresses that it is going to be given.
        path: where the daemon listens for it.
        number: of its DHCP messages.
    """

    def __init__(self, place: Place, path: Path, number: int) -> None:
        self._place = place
        self._path = path
        self._number = number
        self._frames = [
            dhcp_discover(place.mac, number),
            dhcp_request(place.mac, number, place.ipv4, GATEWAY_IP),
            arp_request(place.mac, place.ipv4, GATEWAY_IP),
        ]
        self._received: list[bytes] = []
        self._moments: list[float] = []
        self._resources = ExitStack()
        fd = create_memfd(_MEMORY)
        self._resources.callback(os.close, fd)
        self._memory = self._resources.enter_context(mmap.mmap(fd, _MEMORY))
        self._kicks, self._calls = ([self._event() for _ in range(2)] for _ in range(2))
        self.socket = self._resources.enter_context(socket.socket(socket.AF_UNIX))
        self._steps = self._conversation(fd)
        self._sent = 0
        for slot in range(_RX_BUFFERS):
            addr = _BUFFERS + (1 + slot) * _BUFFER_SIZE
            self._describe(_RX, slot, VringDesc(addr, _BUFFER_SIZE, VRING_DESC_F_WRITE))
        self._set_avail(_RX, 0, _RX_BUFFERS)

    def _event(self) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._resources.callback(os.close, fd)
        return fd

    @property
    def call(self) -> int:
        """The eventfd that tells of received frames."""
        return self._calls[_RX]

    @property
    def moments(self) -> tuple[float, float, float]:
        """When the handshake, the lease and the ARP reply were there, by `time.perf_counter`."""
        handshake, _offer, lease, arp_reply = self._moments
        return handshake, lease, arp_reply

    def connect(self) -> None:
        """Connect; the conversation begins."""
        self.socket.connect(os.fspath(self._path))
        self._go_on()

    def on_reply(self) -> bool:
        """The daemon has written to the socket; whether the guest has booted, which it has not."""
        reply = self.socket.recv(4096)
        if len(reply) < HEADER.size:
            raise BenchError("the daemon has hung up")
        if HEADER.unpack_from(reply)[0] not in OWN_REPLY and any(reply[HEADER.size :]):
            raise BenchError("the daemon has refused a request; see its log")
        if self._go_on():
            self._moments.append(time.perf_counter())
            self.send(self._frames[0])
        return False

    def on_call(self) -> bool:
        """A frame has come; ask for the next thing. Whether there is none, as it has booted."""
        self._received.append(self.receive())
        self._moments.append(time.perf_counter())
        if len(self._received) == len(self._frames):
            return True
        self.send(self._frames[len(self._received)])
        return False

    def ask(self) -> None:
        """Ask the gateway by ARP once more."""
        self.send(self._frames[-1])

    def check(self) -> None:
        """Raise BenchError unless everything was answered rightly."""
        offer, ack, arp = self._received
        for frame, kind in ((offer, DhcpMessageType.OFFER), (ack, DhcpMessageType.ACK)):
            answer = parse_dhcp_response(frame)
            right = (kind, self._number, ip_bytes(self._place.ipv4))
            if (answer.message_type, answer.xid, answer.your_ip) != right:
                raise BenchError(f"{self._place} was not answered with {right}: {answer}")
        if not is_arp_reply(arp):
            raise BenchError("the gateway does not answer ARP")

    def close(self) -> None:
        """Hang up and give everything back."""
        self._resources.close()

    # The frontend.

    def _conversation(self, memory: int) -> list[Step]:
        """As QEMU does it, from its start to that of the guest's driver."""
        table = encode_mem_table([RegionInfo(0, _MEMORY, _USER_ADDR, 0, memory)])
        steps = [
            _step(Request.GET_FEATURES),
            _step(Request.GET_PROTOCOL_FEATURES),
            _step(Request.SET_PROTOCOL_FEATURES, encode_u64(_PROTOCOL_FEATURES)),
            _step(Request.GET_QUEUE_NUM),
            _step(Request.SET_OWNER),
            _step(Request.GET_FEATURES),
            *(_step(Request.SET_VRING_CALL, encode_u64(i), self._calls[i]) for i in range(2)),
            _step(Request.SET_FEATURES, encode_u64(_FEATURES)),
            _step(Request.SET_MEM_TABLE, table, memory, ack=True),
        ]
        for index in range(2):
            desc, avail, used = (_USER_ADDR + part for part in _parts(index))
            steps += [
                _step(Request.SET_VRING_NUM, encode_state(index, _RING_SIZE)),
                _step(Request.SET_VRING_BASE, encode_state(index, 0)),
                _step(Request.SET_VRING_ADDR, encode_vring_addr(index, desc, used, avail)),
                _step(Request.SET_VRING_KICK, encode_u64(index), self._kicks[index]),
                _step(Request.SET_VRING_CALL, encode_u64(index), self._calls[index]),
            ]
        enables = [_step(Request.SET_VRING_ENABLE, encode_state(i, 1), ack=True) for i in range(2)]
        return steps + enables

    def _go_on(self) -> bool:
        """Send messages until one has to be answered; whether all have been sent."""
        for message, fds, waits in self._steps[self._sent :]:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            self.socket.sendmsg([message], rights)
            self._sent += 1
            if waits:
                return False
        return True

    # The driver.

    def _describe(self, queue: int, slot: int, desc: VringDesc) -> None:
        where = _parts(queue)[0] + slot * 16
        self._memory[where : where + 16] = desc.pack()
        struct.pack_into("<H", self._memory, _parts(queue)[1] + 4 + 2 * slot, slot)

    def _set_avail(self, queue: int, flags: int, index: int) -> None:
        fence()
        struct.pack_into("<HH", self._memory, _parts(queue)[1], flags, index & 0xFFFF)

    def send(self, frame: bytes) -> None:
        """Send a frame; the one before has been answered."""
        packet = bytes(VIRTIO_NET_HDR_SIZE) + frame
        self._memory[_BUFFERS : _BUFFERS + len(packet)] = packet
        self._describe(_TX, 0, VringDesc(_BUFFERS, len(packet), 0))
        (used,) = struct.unpack_from("<H", self._memory, _parts(_TX)[2] + 2)
        struct.pack_into("<H", self._memory, _parts(_TX)[1] + 4 + 2 * (used % _RING_SIZE), 0)
        self._set_avail(_TX, _NO_INTERRUPT, used + 1)
        os.write(self._kicks[_TX], _ONE)

    def receive(self) -> bytes:
        """The newest frame, of which the call has told; its buffer is given again."""
        os.eventfd_read(self.call)
        used = _parts(_RX)[2]
        (index,) = struct.unpack_from("<H", self._memory, used + 2)
        where = used + 4 + 8 * ((index - 1) % _RING_SIZE)
        slot, length = struct.unpack_from("<II", self._memory, where)
        addr = _BUFFERS + (1 + slot) * _BUFFER_SIZE
        frame = self._memory[addr + VIRTIO_NET_HDR_SIZE : addr + length]
        avail = (index - 1 + _RX_BUFFERS) % _RING_SIZE
        struct.pack_into("<H", self._memory, _parts(_RX)[1] + 4 + 2 * avail, slot)
        self._set_avail(_RX, 0, index + _RX_BUFFERS)
        return frame


def _parts(queue: int) -> tuple[int, int, int]:
    """Where the parts of a ring are: descriptors, avail, used."""
    first = queue * _RING_PAGES * _PAGE
    return first, first + _PAGE, first + 2 * _PAGE


def _step(request: Request, payload: bytes = b"", *fds: int, ack: bool = False) -> Step:
    flags = VERSION | (NEED_REPLY_FLAG if ack else 0)
    return encode(request, payload, flags), fds, ack or request in OWN_REPLY


@attrs.frozen
class Moments:
    """When the last guest had got so far, in seconds after the first one connected."""

    handshake: float
    lease: float
    arp_reply: float


def boot(guests: Sequence[BootingGuest]) -> Moments:
    """Boot all at once, each to its ARP reply."""
    begin = time.perf_counter()
    handlers: dict[int, Callable[[], bool]] = {}
    with select.epoll() as events:
        for guest in guests:
            guest.connect()
            handlers[guest.socket.fileno()] = guest.on_reply
            handlers[guest.call] = guest.on_call
        for fd in handlers:
            events.register(fd, select.EPOLLIN)
        booting = len(guests)
        for fd in _ready(events):
            if handlers[fd]():
                booting -= 1
            if not booting:
                break
    for guest in guests:
        guest.check()
    return Moments(
        *(max(times) - begin for times in zip(*(g.moments for g in guests), strict=True))
    )


def _ready(events: select.epoll) -> Iterator[int]:
    """Descriptors that are readable, for ever."""
    while True:
        ready = events.poll(PATIENCE)
        if not ready:
            raise BenchError(f"a guest waits for more than {PATIENCE} s")
        for fd, _ in ready:
            yield fd
