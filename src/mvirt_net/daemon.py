"""The whole daemon as one coroutine, for the command line and for other programs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import attrs
import trio

from .activity import Activity
from .api import EXTRA
from .capture import CaptureSpec
from .capture_control import CaptureControl
from .control import Control
from .errors import ExtraMissingError
from .log import get_logger
from .model import ApiSpec, DaemonConfig
from .registry import api_problems
from .store import Keeper, NoStore, Store, open_store
from .switch import Switch, open_switch

_log = get_logger(__name__)


async def serve(
    config: DaemonConfig,
    *,
    capture: CaptureSpec | None = None,
    capture_dir: Path | None = None,
    open_state: Callable[[Path], Store] = open_store,
    on_control: Callable[[Control], object] = lambda _control: None,
    listeners: Mapping[str, socket.socket] = MappingProxyType({}),
    on_listening: Callable[[], object] = lambda: None,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[Switch] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the networks and NICs of a configuration, and those that are stored.

    Args:
        config: what to run; addresses that are absent are given by the rules of `NicSpec`.
        capture: what to write all frames to, from the first one on.
        capture_dir: where clients of the API may have captures written; None: nowhere.
        open_state: opens `DaemonConfig.state`, if there is one.
        on_control: called with the verbs, when all sockets listen, before `on_listening`.
        listeners: listening unix stream sockets in place of those that NICs would make at their
            paths, by the name of the NIC. Owned from here on, but not their files. Each serves
            whatever NIC is at that path, also after a reload, and is closed at the end.
        on_listening: called when all sockets listen and before the first frontend is served: the
            moment to give up rights that only the sockets needed. When it returns False, nobody is
            served; what it raises ends the daemon.
        shutdown_trigger: an async function whose return ends the daemon; without one it runs until
            it is cancelled. Either way everything is closed, which takes far less than a second,
            and all socket files are removed.
        task_status: `started` is called with the `Switch` when all sockets listen. Networks and
            NICs may be added to it, and those removed from it; the verbs know nothing of them.

    Raises:
        ExtraMissingError: `DaemonConfig.api` asks for what needs the extra ``api``.
        ConfigError: the first thing that is wrong with the configuration, its key a path such as
            ``nic[1].mac_address``; nothing has been opened then.
        SocketInUseError: another process listens on a socket path.
        SocketAccessError: there is no permission for a socket path.
        SocketPathError: a socket path cannot be listened on for another reason.
        StoreError, OSError: the state cannot be opened or read, or the file of the capture made.
    """
    admission = trio.Event()
    with contextlib.ExitStack() as owned:
        for listener in listeners.values():
            owned.enter_context(listener)
        for problem in api_problems(config.api):
            raise problem
        store: Keeper
        store = owned.enter_context(open_state(config.state)) if config.state else NoStore()
        async with open_switch(
            admission=admission, polling=config.polling, reserved=config.api.socket_paths
        ) as switch:
            captures = CaptureControl(switch, capture_dir)
            control = Control(switch, config.socket_dir, store, config.defaults)
            try:
                # First, so that a stored NIC with the socket path of an interface is what waits.
                async with _controlled(config.api, control, captures, switch) as serve_clients:
                    await control.start(config, listeners)
                    on_control(control)
                    if capture is not None:
                        await switch.start_capture(**attrs.asdict(capture))
                    if on_listening() is not False:
                        admission.set()
                        serve_clients()
                    _log.info("serving", networks=len(switch.networks), nics=len(switch.nics))
                    task_status.started(switch)
                    await (shutdown_trigger or trio.sleep_forever)()
                    _log.info("shutting down")
            finally:
                await control.aclose()


@contextlib.asynccontextmanager
async def _controlled(
    spec: ApiSpec, control: Control, captures: CaptureControl, switch: Switch
) -> AsyncIterator[Callable[[], object]]:
    """Have the control interfaces listen; what is yielded has them serve, to the block's end."""
    if not spec.is_wanted:
        yield lambda: None
        return
    # Here, because it needs packages that are not always there.
    try:
        from .api import server
        from .api.page import status_pages
    except ImportError as error:
        raise ExtraMissingError(
            f"the control interfaces need a package that is not there ({error.name}):"
            f" pip install '{EXTRA}'"
        ) from error
    activity = Activity(control, switch)
    pages = {"/metrics": server.metrics_page(switch), **status_pages(activity)}
    with contextlib.closing(server.open_server(spec, control, captures, pages)) as api:
        async with trio.open_nursery() as nursery:

            def serve_clients() -> None:
                nursery.start_soon(control.run)
                if spec.http:
                    nursery.start_soon(activity.run)
                nursery.start_soon(api.serve)

            yield serve_clients
            nursery.cancel_scope.cancel()
