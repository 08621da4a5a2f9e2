"""What is answered in Python: frames for the gateway, and ICMP errors about dropped packets.

One guest's share of it, without I/O. The core has decided what each frame is for, and that there is
time for it; here is who answers, and what becomes of a service that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from ..ffi import Punt
from ..model import DropReason, MacAddress, PuntKind
from .icmp_errors import IcmpErrorBuilder
from .packet import Service
from .services import UNSERVED


class SlowPath:
    """Answers the punts of one NIC's guest.

    Args:
        mac: the NIC's MAC address.
        services: who answers which kind; may be replaced at any time.
        send: takes a whole Ethernet frame for the guest.
        log: gets a traceback when a service fails, once for each kind.
    """

    __slots__ = ("_errors", "_failed", "_log", "_send", "services")

    def __init__(
        self,
        mac: MacAddress,
        services: Mapping[PuntKind, Service],
        send: Callable[[bytes], object],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.services = services
        self._errors = IcmpErrorBuilder(mac)
        self._send = send
        self._log = log
        self._failed: tuple[PuntKind, ...] = ()

    def answer(self, punt: Punt) -> DropReason | None:
        """Answer one frame.

        Args:
            punt: from the core.

        Returns:
            Why there is no answer, to be counted; None: it was sent. An ICMP error that is not sent
            counts for nothing, as the core has counted what it was about.
        """
        reason = UNSERVED[punt.kind]
        try:
            reason = self._answer(punt)
        except Exception:
            # A bug of ours; it costs the frame.
            self._log_failure(punt.kind)
        return None if punt.kind is PuntKind.ICMP_ERROR else reason

    def _answer(self, punt: Punt) -> DropReason | None:
        if punt.kind is PuntKind.ICMP_ERROR:
            self._send(self._errors.build(punt.frame, punt.error, punt.mtu))
            return None
        service = self.services.get(punt.kind)
        answer = UNSERVED[punt.kind] if service is None else service.handle(punt.frame)
        if isinstance(answer, bytes):
            self._send(answer)
            return None
        return answer

    def _log_failure(self, kind: PuntKind) -> None:
        if kind not in self._failed:
            self._failed += (kind,)
            self._log.exception("service failed", service=kind.name)
