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
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from . import privileges, sandbox
from .accounts import Account, close_database
from .capture import CaptureSpec, open_capture_file
from .control import Control
from .daemon import serve
from .errors import ConfigError, ConfigFileError
from .ffi.rights import FsAccess
from .log import get_logger
from .model import DaemonConfig, NetworkSpec
from .nic import Nic, NicEvent, NicEventKind
from .store import Store, open_store
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

    on_ready: Callable[[Switch], None] = lambda _switch: None
    """Called when frontends can connect, before anybody else is told."""
    config_path: Path | None = None
    """The configuration file, which can be read again, and `reload` reads it."""
    reload: Callable[[], DaemonConfig] | None = None
    """Raises ConfigFileError or OSError; runs in a thread."""
    ready_fd: int | None = None
    """Gets a line and is closed when frontends can connect; ours to close."""
    pid_path: Path | None = None
    one_off: bool = False
    """End when the first frontend disconnects."""
    sock: socket.socket | None = None
    """A connected socket for the only NIC, which has no path; ours to close."""
    listeners: Mapping[str, socket.socket] = attrs.field(factory=dict)
    """Listening sockets for NICs, by the name of the NIC, as of `daemon.serve`."""
    runas: Account | None = None
    """Whose rights to go on with when the sockets are there; None: as whoever has started us."""
    pcap: CaptureSpec | None = None
    """Where to write all frames; a descriptor is ours to close."""
    capture_dir: Path | None = None
    """Where clients of the API may have captures written; it is there."""
    sandboxed: bool = True
    """Whether to call `sandbox.confine`."""


def run(config: DaemonConfig, options: RunOptions) -> None:
    """Serve until a signal asks to stop. Only from the main thread, once a process.

    Args:
        config: as `config.load` returns it.
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
    _control: Control | None = None
    _reload_wanted: trio.Event = attrs.field(init=False, factory=trio.Event)
    """Set by SIGHUP; replaced when that is being answered."""
    _dump_wanted: trio.Event = attrs.field(init=False, factory=trio.Event)
    """The same of SIGUSR1."""
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
                nursery.start_soon(self._dump_when_asked)
                self._switch = await nursery.start(self._serve, nursery.cancel_scope)
                if self._shutdown.is_set():
                    # A signal came before the sockets were there, and they may be gone again.
                    self._close_inherited()
                else:
                    self._follow_frontends(nursery, self._switch)
                    nursery.start_soon(self._reload_when_asked)
                    self.options.on_ready(self._switch)
                    announce_ready(self._manager, self.options.ready_fd)
        log.info("stopped")

    def _close_inherited(self) -> None:
        """Close what was handed down to us and not used."""
        if self.options.ready_fd is not None:
            os.close(self.options.ready_fd)
        if self.options.sock is not None:
            self.options.sock.close()

    async def _serve(
        self,
        everything: trio.CancelScope,
        task_status: trio.TaskStatus[Switch] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until shutdown; the other tasks have no purpose then."""
        await serve(
            self.config,
            capture=self._open_capture(),
            capture_dir=self.options.capture_dir,
            open_state=self._open_state,
            on_control=self._take_control,
            listeners=self.options.listeners,
            on_listening=self._settle,
            shutdown_trigger=self._shutdown.wait,
            task_status=task_status,
        )
        everything.cancel()

    def _open_capture(self) -> CaptureSpec | None:
        """Make the file of --pcap before the sandbox is there; it belongs to whoever writes."""
        pcap, account = self.options.pcap, self.options.runas
        if pcap is None or isinstance(pcap.target, int):
            return pcap
        fd = open_capture_file(Path(pcap.target))
        if account is not None and stat.S_ISREG(os.fstat(fd).st_mode):
            os.fchown(fd, account.uid, account.gid)
        return attrs.evolve(pcap, target=fd, name=str(pcap.target))

    def _open_state(self, path: Path) -> Store:
        """Open the state with the rights of whoever will write it."""
        with privileges.acting_as(self.options.runas):
            return open_store(path)

    def _take_control(self, control: Control) -> None:
        self._control = control

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
            self._warn_of_wide_reach()
            sandbox.confine(self._reach())
            close_database()
        privileges.become(self.options.runas)
        for path in self._socket_paths():
            if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
                log.warning("socket will be left behind: no right to remove it", path=str(path))
        return True

    def _reach(self) -> Iterator[tuple[Path, FsAccess]]:
        """What we need of the file system while we serve, and for the end."""
        for path in self._socket_paths():
            yield path.parent, FsAccess.REMOVE_FILE
        yield from self._reach_of_changes()
        if self.options.capture_dir is not None:
            # TRUNCATE: half a block is cut off the end of a file that cannot be written any more.
            write = FsAccess.MAKE_REG | FsAccess.WRITE_FILE | FsAccess.TRUNCATE
            yield self.options.capture_dir, write | FsAccess.REMOVE_FILE
        if self.config.state:
            # SQLite removes its second file at the end; both are open.
            yield self.config.state.parent, FsAccess.REMOVE_FILE
        pid_path = self.options.pid_path
        if pid_path is not None:
            yield pid_path, FsAccess.READ_FILE
            yield pid_path.parent, FsAccess.REMOVE_FILE

    def _reach_of_changes(self) -> Iterator[tuple[Path, FsAccess]]:
        """What a reload needs: the file, and sockets for the NICs that it brings.

        Who changes a file may put another one in its place, so it is the folder that counts.
        """
        config_folders = self._config_folders()
        if not config_folders:
            return
        for folder in config_folders:
            yield folder, FsAccess.READ_FILE
        folders = {path.parent for path in self._socket_paths()} | {self.config.socket_dir}
        for folder in folders:
            if folder.is_dir():
                yield folder, FsAccess.MAKE_SOCK | FsAccess.REMOVE_FILE

    def _config_folders(self) -> set[Path]:
        """Where the configuration file is that can be read again; of a link, both of its ends."""
        path = self.options.config_path
        return set() if path is None else {path.absolute().parent, path.resolve().parent}

    def _warn_of_wide_reach(self) -> None:
        """Whatever else is in the folder of the configuration can be read, too."""
        for folder in self._config_folders():
            if _has_folders(folder):
                log.warning(
                    "all of this folder stays readable: give the configuration one of its own",
                    path=str(folder),
                )

    def _socket_paths(self) -> list[Path]:
        """Of the control interfaces and of the NICs that are served now, but for activated ones."""
        assert self._control is not None
        nics = (
            nic.spec.socket_path
            for nic in self._control.list_nics()
            if not nic.error and nic.spec.name not in self.options.listeners
        )
        return [*self.config.api.socket_paths, *(path for path in nics if path is not None)]

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
                self._dump_wanted.set()
            elif self.options.reload is None:
                log.warning("there is no configuration file to reload", signal="SIGHUP")
            else:
                self._reload_wanted.set()

    async def _dump_when_asked(self) -> None:
        """Answer SIGUSR1, one or several at a time; ends with the nursery of `main`.

        A task of its own, or signals that ask for the end would wait until all is told.
        """
        while True:
            await self._dump_wanted.wait()
            self._dump_wanted = trio.Event()
            await self._dump_state()

    async def _reload_when_asked(self) -> None:
        """Answer SIGHUP, one or several at a time; ends with the nursery of `main`."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted = trio.Event()
            # systemd wants to know when that began, to tell it from an earlier READY=1.
            self._manager.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            with contextlib.suppress(trio.ClosedResourceError):
                await self._reload()
            self._manager.tell("READY=1")

    async def _reload(self) -> None:
        """Read the file again and go over to what it says, unless it is wrong."""
        assert self._control is not None
        assert self.options.reload is not None
        try:
            config = await trio.to_thread.run_sync(self.options.reload)
            await self._control.reload(config)
        except (ConfigFileError, ConfigError, OSError) as error:
            for line in _problems(error):
                log.error("configuration not reloaded", problem=line)
            return
        for key in ("polling", "socket_dir", "state", "api"):
            if getattr(config, key) != getattr(self.config, key):
                log.warning("change needs a restart", key=key)
        log.info("configuration reloaded", networks=len(config.networks), nics=len(config.nics))

    def _lost_terminal(self) -> bool:
        """Whether the terminal that the log went to has hung up, as when its window is closed."""
        return self._on_terminal and not os.isatty(_STDERR)

    async def _dump_state(self) -> None:
        """All that there is, into the log, until the end begins; others have turns meanwhile."""
        if self._switch is None or self._shutdown.is_set():
            log.info("state", serving=False)
            return
        switch = self._switch
        log.info(
            "state",
            serving=True,
            networks=len(switch.networks),
            nics=len(switch.nics),
            hot_rings=switch.hot_rings,
            captures=len(switch.captures),
            **{f"cpu_{name}": round(seconds, 3) for name, seconds in switch.thread_seconds.items()},
        )
        for _ in _tell_state(switch):
            await trio.lowlevel.checkpoint()
            if self._shutdown.is_set():
                return

    def _follow_frontends(self, nursery: trio.Nursery, switch: Switch) -> None:
        """Start what --fd and --one-off need."""
        if self.options.sock is not None:
            [nic] = switch.nics.values()
            nursery.start_soon(self._serve_socket, nic, self.options.sock)
        if self.options.one_off:
            nursery.start_soon(self._stop_after_disconnect, switch.events())

    async def _serve_socket(self, nic: Nic, inherited: socket.socket) -> None:
        """Serve the frontend that is connected; its end is the end of everything."""
        # When we are stopping anyway, the NIC is closed under this task.
        with contextlib.suppress(trio.ClosedResourceError):
            await nic.serve_connection(trio.socket.from_stdlib_socket(inherited))
        self._stop()

    async def _stop_after_disconnect(self, events: trio.MemoryReceiveChannel[NicEvent]) -> None:
        async with events:
            async for event in events:
                if event.kind is NicEventKind.DISCONNECTED:
                    self._stop()
                    return


def _has_folders(folder: Path) -> bool:
    """As /etc and home folders have, and one that is for a configuration has not."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(entry.is_dir(follow_symlinks=False) for entry in entries)
    return False


def _problems(error: Exception) -> list[str]:
    """One line for each."""
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror}"]
    return str(error).splitlines()


def _tell_state(switch: Switch) -> Iterator[None]:
    """Tell the log of one thing with each step: a network, a NIC with its rings, a capture."""
    for network in list(switch.networks.values()):
        log.info("network state", **_network_state(network, switch))
        yield
    for nic in list(switch.nics.values()):
        with contextlib.suppress(trio.ClosedResourceError):
            log.info("nic state", **_nic_state(nic))
            for ring in nic.rings():
                log.info("ring state", nic=nic.spec.name, **attrs.asdict(ring))
        yield
    for capture in switch.captures:
        captured = attrs.asdict(capture.captured)
        log.info("capture state", file=capture.name, bytes=capture.size, **captured)
        yield


def _network_state(network: NetworkSpec, switch: Switch) -> dict[str, Any]:
    return {
        "network": network.name,
        "nics": sum(nic.spec.network == network.name for nic in switch.nics.values()),
        "subnets": ", ".join(str(subnet) for subnet in network.subnets),
        "mtu": network.mtu,
    }


def _nic_state(nic: Nic) -> dict[str, Any]:
    """What the log shows of a NIC: plain values, of the drops those that happened."""
    stats = nic.stats()
    counters = attrs.asdict(stats, filter=lambda field, _value: field.name != "drops")
    drops = {f"drop_{reason.name.lower()}": count for reason, count in stats.drops.items()}
    return {
        "nic": nic.spec.name,
        "network": nic.spec.network,
        "connected": nic.connected,
        "hot": nic.hot,
        "backlog": nic.backlog,
        "captures": nic.captures,
        **counters,
        **drops,
    }


def _end_process() -> None:
    """Runs in a thread of its own when the end takes too long."""
    log.error("stopping takes too long, giving up on order", seconds=STOP_TIME_LIMIT)
    os._exit(1)
