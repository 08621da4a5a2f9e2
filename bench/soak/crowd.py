"""Many guests at once, each with its lease, the gateway's MAC address, and an answer to a ping."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import trio

from tests.harness.client import VhostTestClient
from tests.harness.exchanges import arp_gateway, ping_gateway
from tests.harness.packets import (
    DhcpMessageType,
    DhcpResponse,
    dhcp_discover,
    dhcp_request,
    ip_bytes,
    parse_dhcp_response,
)

from .daemon import Place, run_soaked, until
from .report import MIB, Check, Report, equal

ANSWER_SECONDS = 60
"""For a guest among hundreds, all of which this process is."""


@attrs.frozen
class Answered:
    """When a guest was served, in seconds since all began."""

    lease: float
    ping: float


async def crowd(nics: int) -> Report:
    """The report on so many guests that all begin at once."""
    with TemporaryDirectory(prefix="mvirt-soak-") as name:
        async with run_soaked(Path(name), nics) as daemon:
            process = daemon.process
            files = await daemon.files_without_frontends()
            private = process.private_bytes()
            answered: list[Answered] = []
            async with trio.open_nursery() as guests:
                clients: list[VhostTestClient] = []
                begin = trio.current_time()
                async with trio.open_nursery() as starting:
                    for place in daemon.places:
                        starting.start_soon(_attend, guests, place, begin, clients, answered)
                private_with, files_with = process.private_bytes(), process.open_files()
                for client in clients:
                    await client.aclose()
            await until(lambda: process.open_files() <= files, "the daemon closes what it had open")
            figures = [
                ("last lease, s", max(each.lease for each in answered)),
                ("last ping, s", max(each.ping for each in answered)),
                ("private memory before, MiB", private / MIB),
                ("  with all connected, MiB", private_with / MIB),
                ("  afterwards, MiB", process.private_bytes() / MIB),
                ("open files before", files),
                ("  with all connected", files_with),
            ]
            checks = [
                equal("guests answered", len(answered), nics),
                equal("open files afterwards", process.open_files(), files),
                equal("mappings of guest memory afterwards", process.guests_mapped(), 0),
                # Python's own heap keeps what it had; a NIC has its rings' punt buffers besides.
                Check(
                    "memory of a connected NIC, KiB", (private_with - private) / nics / 1024, 128
                ),
                equal("problems in the log", len(daemon.problems), 0),
            ]
    return Report(f"{nics} guests at once", figures, checks)


async def _attend(
    guests: trio.Nursery,
    place: Place,
    begin: float,
    clients: list[VhostTestClient],
    answered: list[Answered],
) -> None:
    """One guest, from its connection to its ping; it stays connected."""
    client = await VhostTestClient.connect(guests, place.path)
    clients.append(client)
    await client.send_packet(dhcp_discover(place.mac, place.number), timeout=ANSWER_SECONDS)
    offer = await _dhcp_answer(client, place, DhcpMessageType.OFFER)
    request = dhcp_request(place.mac, place.number, offer.your_ip, offer.server_ip)
    await client.send_packet(request, timeout=ANSWER_SECONDS)
    await _dhcp_answer(client, place, DhcpMessageType.ACK)
    lease = trio.current_time() - begin
    await arp_gateway(client, place.mac, place.ipv4)
    await ping_gateway(client, place.mac, place.ipv4)
    answered.append(Answered(lease, trio.current_time() - begin))


async def _dhcp_answer(
    client: VhostTestClient, place: Place, kind: DhcpMessageType
) -> DhcpResponse:
    answer = parse_dhcp_response(await client.recv_packet(timeout=ANSWER_SECONDS))
    assert (answer.message_type, answer.xid) == (kind, place.number)
    assert answer.your_ip == ip_bytes(place.ipv4)
    return answer
