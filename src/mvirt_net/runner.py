"""The daemon as a process: signals, readiness, an orderly end.

**Theory of operation.** `run` is one trio program around `daemon.serve`, which does the serving and
knows nothing of processes. Signals are caught before the first socket exists, or one that comes in
between would leave a socket file behind. Whatever ends the program (a signal, the last frontend of
a one-off, a terminal that hangs up) sets the same event, upon which `serve` closes everything in
order. When all sockets listen, and before the first frontend is served, the process gives up what
rights it needs no more (`privileges`) and shuts itself in (`sandbox`). Closing is shielded from
cancellation, so what limits its time is a thread that ends the process, even if it is the event
loop that hangs. After the first SIGTERM or SIGINT both have their default action, so that a second
one ends the process at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from . import privileges, sandbox
from .accounts import Account
from .daemon import serve
from .ffi.rights import FsAccess
from .inherited import is_listening
from .log import get_logger
from .model import DaemonConfig
from .nic import Nic, NicEvent, NicEventKind
from .supervision import ServiceManager, announce_ready, pid_file, raise_fd_limit
from .switch import Switch

log = get_logger(__name__)

STOP_TIME_LIMIT = 4.0
"""Seconds for an orderly end, then the process ends. Supervisors lose patience after five."""

_STDERR = 2
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@attrs.frozen(kw_only=True)
class RunOptions:
    """How to run, apart from what to serve."""

    on_ready: Callable[[], None] = lambda: None
    """Called when frontends can connect, before anybody else is told."""
    ready_fd: int | None = None
    """Gets a line and is closed when frontends can connect; ours to close."""
    pid_path: Path | None = None
    one_off: bool = False
    """End when the first frontend disconnects."""
    sock: socket.socket | None = None
    """A listening or connected socket for the only NIC, which has no path; ours to close."""
    listeners: Mapping[str, socket.socket] = attrs.field(factory=dict)
    """Listening sockets for NICs, by the name of the NIC; ours to close, but not to remove."""
    runas: Account | None = None
    """Whose rights to go on with when the sockets are there; None: as whoever has started us."""
    sandboxed: bool = True
    """Whether to call `sandbox.confine`."""


def run(config: DaemonConfig, options: RunOptions) -> None:
    """Serve until a signal asks to stop. Only from the main thread, once a process.

    Args:
        config: as `registry.plan` returns it.
        options: see there.

    Raises:
        MvirtNetError, OSError: why it could not start or go on; maybe in an ExceptionGroup.
    """
    privileges.check_may_become(options.runas)
    raise_fd_limit()
    # Python does this too, unless it was embedded by somebody who thinks otherwise.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # What was imported stays. Without it a full collection, in which nobody is served, takes 30 ms
    # less.
    gc.freeze()
    trio.run(_Process(config, options).main)


@attrs.define(eq=False)
class _Process:
    """The tasks of `run`; all of them end with the nursery of `main`."""

    config: DaemonConfig
    options: RunOptions
    _on_terminal: bool = attrs.field(init=False, factory=lambda: os.isatty(_STDERR))
    """Whether the log went to a terminal at the start."""
    _shutdown: trio.Event = attrs.field(factory=trio.Event)
    _limit: threading.Timer = attrs.field(init=False)
    """Of the end; started with it."""
    _switch: Switch | None = None
    _at_end: contextlib.ExitStack = attrs.field(init=False, factory=contextlib.ExitStack)
    """What is done when everything else has ended, the last first."""
    _manager: ServiceManager = attrs.field(init=False, factory=ServiceManager)

    @_limit.default
    def _make_limit(self) -> threading.Timer:
        limit = threading.Timer(STOP_TIME_LIMIT, _end_process)
        limit.daemon = True
        return limit

    async def main(self) -> None:
        """Everything from the first signal handler to the last closed socket."""
        signals = trio.open_signal_receiver(*_STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1)
        with self._manager, signals as received, self._at_end:
            self._at_end.callback(self._limit.cancel)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._handle_signals, received)
                self._switch = await nursery.start(self._serve, nursery.cancel_scope)
                if self._shutdown.is_set():
                    # A signal came before the sockets were there, and they may be gone again.
                    self._close_inherited()
                else:
                    self._follow_frontends(nursery, self._switch)
                    self.options.on_ready()
                    announce_ready(self._manager, self.options.ready_fd)
        log.info("stopped")

    def _close_inherited(self) -> None:
        """Close what was handed down to us and not used."""
        if self.options.ready_fd is not None:
            os.close(self.options.ready_fd)
        if self.options.sock is not None:
            self.options.sock.close()
        for listener in self.options.listeners.values():
            listener.close()

    async def _serve(
        self,
        everything: trio.CancelScope,
        task_status: trio.TaskStatus[Switch] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until shutdown; the other tasks have no purpose then."""
        await serve(
            self.config,
            listeners=self.options.listeners,
            on_listening=self._settle,
            shutdown_trigger=self._shutdown.wait,
            task_status=task_status,
        )
        everything.cancel()

    def _settle(self) -> bool:
        """All sockets listen: done with what needs more rights than serving does.

        Returns:
            Whether anybody is to be served. If not, nothing is given up: to remove the sockets we
            may need what we have.
        """
        if self._shutdown.is_set():
            return False
        self._at_end.enter_context(pid_file(self.options.pid_path))
        privileges.freeze()
        if self.options.sandboxed:
            sandbox.confine(self._reach())
        privileges.become(self.options.runas)
        for path in self._socket_paths():
            if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
                log.warning("socket will be left behind: no right to remove it", path=str(path))
        return True

    def _reach(self) -> Iterator[tuple[Path, FsAccess]]:
        """What we need of the file system while we serve, and for the end."""
        for path in self._socket_paths():
            yield path.parent, FsAccess.REMOVE_FILE
        pid_path = self.options.pid_path
        if pid_path is not None:
            yield pid_path, FsAccess.READ_FILE
            yield pid_path.parent, FsAccess.REMOVE_FILE

    def _socket_paths(self) -> list[Path]:
        """Of the socket files that are ours."""
        return [
            nic.socket_path
            for nic in self.config.nics
            if nic.socket_path is not None and nic.name not in self.options.listeners
        ]

    def _stop(self) -> None:
        """Begin the end, once."""
        if not self._shutdown.is_set():
            self._shutdown.set()
            self._limit.start()
            self._manager.tell("STOPPING=1")

    async def _handle_signals(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number in _STOP_SIGNALS or (number == signal.SIGHUP and self._lost_terminal()):
                for stop_signal in _STOP_SIGNALS:
                    signal.signal(stop_signal, signal.SIG_DFL)
                log.info("stopping", signal=signal.Signals(number).name)
                self._stop()
            elif number == signal.SIGUSR1:
                self._dump_state()
            else:
                log.warning("configuration is not reloaded, that needs a restart", signal="SIGHUP")

    def _lost_terminal(self) -> bool:
        """Whether the terminal that the log went to has hung up, as when its window is closed."""
        return self._on_terminal and not os.isatty(_STDERR)

    def _dump_state(self) -> None:
        """A line for each NIC into the log."""
        if self._switch is None or self._shutdown.is_set():
            log.info("state", serving=False)
            return
        log.info(
            "state",
            serving=True,
            networks=len(self._switch.networks),
            hot_rings=self._switch.hot_rings,
        )
        for nic in self._switch.nics.values():
            log.info("nic state", **_state(nic))

    def _follow_frontends(self, nursery: trio.Nursery, switch: Switch) -> None:
        """Start what --fd and --one-off need."""
        if self.options.sock is not None:
            [nic] = switch.nics.values()
            nursery.start_soon(self._serve_socket, nic, self.options.sock)
        if self.options.one_off:
            nursery.start_soon(self._stop_after_disconnect, switch.events())

    async def _serve_socket(self, nic: Nic, inherited: socket.socket) -> None:
        """Serve those that come to an inherited listening socket, or the one that is connected.

        The end of that one is the end of everything.
        """
        sock = trio.socket.from_stdlib_socket(inherited)
        # When we are stopping anyway, the NIC is closed under this task.
        with contextlib.suppress(trio.ClosedResourceError):
            if is_listening(inherited):
                await nic.serve_listener(sock)
            else:
                await nic.serve_connection(sock)
        self._stop()

    async def _stop_after_disconnect(self, events: trio.MemoryReceiveChannel[NicEvent]) -> None:
        async with events:
            async for event in events:
                if event.kind is NicEventKind.DISCONNECTED:
                    self._stop()
                    return


def _state(nic: Nic) -> dict[str, Any]:
    """What the log shows of a NIC: plain numbers, of the drops those that happened."""
    stats = nic.stats()
    counters = attrs.asdict(stats, filter=lambda field, _value: field.name != "drops")
    drops = {f"drop_{reason.name.lower()}": count for reason, count in stats.drops.items()}
    return {"nic": nic.spec.name, "connected": nic.connected, "hot": nic.hot, **counters, **drops}


def _end_process() -> None:
    """Runs in a thread of its own when the end takes too long."""
    log.error("stopping takes too long, giving up on order", seconds=STOP_TIME_LIMIT)
    os._exit(1)
