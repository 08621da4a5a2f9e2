"""What the daemon is compared with: ``python -m bench.loops NAME ARGUMENT…``.

Each is the least that the other end of the same loop can be, and runs until it is killed.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from functools import partial
from ipaddress import IPv4Address

import trio

from mvirt_net.dataplane import ArpResponder
from mvirt_net.model import DropReason, MacAddress

from .guest import IPV4, MAC


def epoll(kick: int, call: int) -> None:
    """Answer each kick with a call, without trio."""
    ready = select.epoll()
    ready.register(kick, select.EPOLLIN)
    while True:
        ready.poll()
        os.eventfd_read(kick)
        os.eventfd_write(call, 1)


async def trio_task(kick: int, call: int) -> None:
    """Answer each kick with a call from a trio task, with nothing in between."""
    while True:
        await trio.lowlevel.wait_readable(kick)
        os.eventfd_read(kick)
        os.eventfd_write(call, 1)


async def trio_socket(fd: int) -> None:
    """Answer ARP, frame by frame through a socket, as QEMU's ``-netdev dgram`` would have it."""
    responder = ArpResponder(MacAddress.parse(MAC), IPv4Address(IPV4))
    with trio.socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        while frame := await sock.recv(2048):
            reply = responder.handle(frame)
            if not isinstance(reply, DropReason):
                await sock.send(reply)


if __name__ == "__main__":
    fds = [int(fd) for fd in sys.argv[2:]]
    match sys.argv[1]:
        case "epoll":
            epoll(*fds)
        case "trio":
            trio.run(partial(trio_task, *fds))
        case "socket":
            trio.run(partial(trio_socket, *fds))
