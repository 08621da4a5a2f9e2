"""The whole daemon as one coroutine, for the command line and for other programs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio

from .api import EXTRA
from .control import Control
from .errors import ExtraMissingError
from .log import get_logger
from .model import ApiSpec, DaemonConfig
from .store import NoStore, Store, open_store
from .switch import Switch, open_switch

_log = get_logger(__name__)


async def serve(
    config: DaemonConfig,
    *,
    open_state: Callable[[Path], Store] = open_store,
    on_control: Callable[[Control], object] = lambda _control: None,
    on_listening: Callable[[], object] = lambda: None,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[Switch] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the networks and NICs of a configuration, and those that are stored.

    Args:
        config: what to run; addresses that are absent are given by the rules of `NicSpec`.
        open_state: opens `DaemonConfig.state`, if there is one.
        on_control: called with the verbs, when all sockets listen, before `on_listening`.
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
        StoreError, OSError: the state cannot be opened or read.
    """
    admission = trio.Event()
    with open_state(config.state) if config.state else contextlib.nullcontext(NoStore()) as store:
        async with open_switch(admission=admission, polling=config.polling) as switch:
            control = Control(switch, config.socket_dir, store, config.defaults)
            try:
                await control.start(config)
                on_control(control)
                async with _controlled(config.api, control) as serve_clients:
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
async def _controlled(spec: ApiSpec, control: Control) -> AsyncIterator[Callable[[], object]]:
    """Have the control interfaces listen; what is yielded has them serve, to the block's end."""
    if not spec.is_wanted:
        yield lambda: None
        return
    # Here, because it needs packages that are not always there.
    try:
        from .api import server
    except ImportError as error:
        raise ExtraMissingError(
            f"the control interfaces need a package that is not there ({error.name}):"
            f" pip install '{EXTRA}'"
        ) from error
    with contextlib.closing(server.open_server(spec, control)) as api:
        async with trio.open_nursery() as nursery:

            def serve_clients() -> None:
                nursery.start_soon(control.run)
                nursery.start_soon(api.serve)

            yield serve_clients
            nursery.cancel_scope.cancel()
