"""A pcapng file as a list of packets, read by the draft; shares nothing with its writer."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

INBOUND, OUTBOUND = 1, 2


@attrs.frozen
class Packet:
    """An Enhanced Packet Block; `lost` is its epb_dropcount."""

    interface: int
    time_ns: int
    data: bytes
    length: int
    direction: int
    comment: str = ""
    lost: int = 0


@attrs.define
class PcapngFile:
    """All that a file says."""

    application: str = ""
    interfaces: list[dict[int, bytes]] = attrs.field(factory=list)
    """Options by code."""
    snaplens: list[int] = attrs.field(factory=list)
    packets: list[Packet] = attrs.field(factory=list)
    statistics: dict[int, dict[int, bytes]] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> PcapngFile:
        """Raises ValueError for a file that is not whole."""
        file = cls()
        for kind, body in _blocks(data):
            file._add(kind, body)
        return file

    def counts(self, interface: int) -> tuple[int, int]:
        """isb_ifrecv and isb_ifdrop."""
        options = self.statistics[interface]
        return int.from_bytes(options[4], "little"), int.from_bytes(options[5], "little")

    def names(self) -> list[str]:
        return [options[2].decode() for options in self.interfaces]

    def _add(self, kind: int, body: bytes) -> None:
        if kind == 0x0A0D0D0A:
            self.application = dict(_options(body[16:]))[4].decode()
        elif kind == 1:
            linktype, _, snaplen = struct.unpack_from("<HHI", body)
            if linktype != 1:
                raise ValueError(f"linktype {linktype}")
            self.interfaces.append(dict(_options(body[8:])))
            self.snaplens.append(snaplen)
        elif kind == 5:
            [interface] = struct.unpack_from("<I", body)
            self.statistics[interface] = dict(_options(body[12:]))
        elif kind == 6:
            self.packets.append(self._packet(body))
        else:
            raise ValueError(f"block {kind}")

    def _packet(self, body: bytes) -> Packet:
        interface, high, low, captured, length = struct.unpack_from("<IIIII", body)
        if interface >= len(self.interfaces):
            raise ValueError(f"interface {interface} is not described yet")
        options = dict(_options(body[20 + (captured + 3) // 4 * 4 :]))
        return Packet(
            interface,
            high << 32 | low,
            body[20 : 20 + captured],
            length,
            int.from_bytes(options[2], "little") & 3,
            options.get(1, b"").decode(),
            int.from_bytes(options.get(4, b""), "little"),
        )


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, total = struct.unpack_from("<II", data, at)
        block = data[at : at + total]
        if total % 4 or total < 12 or len(block) != total:
            raise ValueError(f"block of {total} bytes at {at}")
        if struct.unpack("<I", block[-4:]) != (total,):
            raise ValueError(f"lengths differ at {at}")
        yield kind, block[8:-4]
        at += total


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while True:
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            return
        yield code, data[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4
