"""The whole daemon as one coroutine, for the command line and for other programs."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import trio

from .log import get_logger
from .model import DaemonConfig
from .registry import plan
from .switch import Switch, open_switch

_log = get_logger(__name__)


async def serve(
    config: DaemonConfig,
    *,
    listeners: Mapping[str, socket.socket] = MappingProxyType({}),
    on_listening: Callable[[], object] = lambda: None,
    shutdown_trigger: Callable[[], Awaitable[object]] | None = None,
    task_status: trio.TaskStatus[Switch] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the networks and NICs of a configuration.

    Args:
        config: what to run; addresses that are absent are given by the rules of `NicSpec`.
        listeners: listening sockets in place of those that NICs would make at their paths, by the
            name of the NIC; as of `Switch.add_nic`.
        on_listening: called when all sockets listen and before the first frontend is served: the
            moment to give up rights that only the sockets needed. When it returns False, nobody is
            served; what it raises ends the daemon.
        shutdown_trigger: an async function whose return ends the daemon; without one it runs until
            it is cancelled. Either way everything is closed, which takes far less than a second,
            and all socket files are removed.
        task_status: `started` is called with the `Switch` when all sockets listen. NICs may be
            added to it and removed from it.

    Raises:
        ConfigError: the first thing that is wrong with the configuration, its key a path such as
            ``nic[1].mac_address``; nothing has been opened then.
        SocketInUseError: another process listens on a socket path.
        SocketAccessError: there is no permission for a socket path.
        SocketPathError: a socket path cannot be listened on for another reason.
    """
    planned = plan(config)
    if planned.problems:
        raise planned.problems[0]
    admission = trio.Event()
    async with open_switch(admission=admission, polling=config.polling) as switch:
        for network in planned.config.networks:
            await switch.add_network(network)
        for nic in planned.config.nics:
            await switch.add_nic(nic, listener=listeners.get(nic.name))
        if on_listening() is not False:
            admission.set()
        _log.info("serving", networks=len(config.networks), nics=len(config.nics))
        task_status.started(switch)
        await (shutdown_trigger or trio.sleep_forever)()
        _log.info("shutting down")
