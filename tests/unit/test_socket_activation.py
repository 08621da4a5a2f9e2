"""Socket activation by systemd's own tool: frontends are there before the daemon is."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

import mvirt_net
from mvirt_net import Control, DaemonConfig, NetworkSpec, NicSpec
from mvirt_net.exits import ExitCode
from tests.harness import VhostTestClient
from tests.harness.config import one_network
from tests.harness.exchanges import arp_gateway
from tests.harness.process import MAC, Daemon, activator, serve, started

from .test_systemd_unit import needs

pytestmark = needs("systemd-socket-activate", "systemd")

CONFIG = one_network(
    vm1={"mac_address": MAC, "ipv4_address": "10.0.0.5"},
    vm2={"mac_address": "52:54:00:00:00:02", "ipv4_address": "10.0.0.6"},
    vm3={},
)


@contextmanager
def activated(folder: Path, *names: str, args: Sequence[str] = ()) -> Iterator[Daemon]:
    """The daemon to be, and sockets for NICs that a frontend can connect to at once.

    It gets no descriptor but the sockets, so its ready line cannot be waited for.
    """
    paths = [folder / f"{name}.sock" for name in names]
    arguments = (*serve(folder, CONFIG), "--log-format", "json", *args)
    process = subprocess.Popen(
        [*activator(*paths), sys.executable, "-m", "mvirt_net", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            for path in paths:
                wait_line(process, f"Listening on {path} as")
            yield Daemon(process, io.BytesIO())
        finally:
            process.kill()


def wait_line(process: subprocess.Popen[str], begin: str) -> None:
    """Until the activator has written a line that begins so."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(begin):
            return
    raise AssertionError(f"no {begin!r}")


class TestActivated:
    async def test_serves_the_frontend_that_started_it(
        self, nursery: trio.Nursery, tmp_path: Path
    ) -> None:
        with activated(tmp_path, "vm2", "vm1") as daemon:
            first = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
            await arp_gateway(first, MAC, "10.0.0.5")
            second = await VhostTestClient.connect(nursery, tmp_path / "vm2.sock")
            await arp_gateway(second, "52:54:00:00:00:02", "10.0.0.6")
            wait_line(daemon.process, "Execing ")
            daemon.wait_event("serving")
            # The one that has no socket of the manager's got one as ever.
            third = await VhostTestClient.connect(nursery, tmp_path / "vm3.sock")
            for client in (first, second, third):
                await client.aclose()
            assert daemon.stop() == ExitCode.OK
            _, log = daemon.process.communicate()
            assert "Traceback" not in log
            assert "left behind" not in log
        # The files are the manager's, which goes on listening.
        assert [(tmp_path / f"vm{number}.sock").exists() for number in (1, 2, 3)] == [
            True,
            True,
            False,
        ]

    async def test_goes_on_when_a_reload_makes_the_nic_anew(
        self, nursery: trio.Nursery, tmp_path: Path
    ) -> None:
        with activated(tmp_path, "vm1") as daemon:
            inode = (tmp_path / "vm1.sock").stat().st_ino
            client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
            await arp_gateway(client, MAC, "10.0.0.5")
            wait_line(daemon.process, "Execing ")
            (tmp_path / "x.toml").write_text(CONFIG.replace("10.0.0.5", "10.0.0.7"))
            daemon.send(signal.SIGHUP)
            await client.connection.wait_hung_up()
            await client.aclose()
            client = await VhostTestClient.connect(nursery, tmp_path / "vm1.sock")
            await arp_gateway(client, MAC, "10.0.0.7")
            await client.aclose()
            assert (tmp_path / "vm1.sock").stat().st_ino == inode
            assert daemon.stop() == ExitCode.OK

    def test_socket_of_nobody(self, tmp_path: Path) -> None:
        with activated(tmp_path, "vm1", "vm9") as daemon, socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(tmp_path / "vm1.sock"))
            assert daemon.wait() == ExitCode.BAD_CONFIG
            _, log = daemon.process.communicate()
        assert f"mvirt-net: LISTEN_FDS: no NIC has {tmp_path}/vm9.sock (vm9)" in log

    def test_descriptor_for_two_things(self, tmp_path: Path) -> None:
        args = ("--ready-fd", "3")
        with (
            activated(tmp_path, "vm1", args=args) as daemon,
            socket.socket(socket.AF_UNIX) as probe,
        ):
            probe.connect(str(tmp_path / "vm1.sock"))
            assert daemon.wait() == ExitCode.USAGE
            _, log = daemon.process.communicate()
        assert "--ready-fd: 3 is a socket (LISTEN_FDS)" in log


def test_environment_of_another_process(tmp_path: Path) -> None:
    """What a shell was given is not ours, and the daemon makes its sockets itself."""
    env = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with started(*serve(tmp_path, CONFIG), env=env) as daemon:
        daemon.wait_ready()
        assert (tmp_path / "vm1.sock").is_socket()
        assert daemon.stop() == ExitCode.OK


class TestEmbedded:
    async def test_listener_of_the_program(self, nursery: trio.Nursery, tmp_path: Path) -> None:
        path = tmp_path / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        config = DaemonConfig(
            networks=(NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24"),),
            nics=(
                NicSpec(
                    name="vm1",
                    network="blue",
                    mac_address=MAC,
                    ipv4_address="10.0.0.5",
                    socket_path=path,
                ),
            ),
        )
        async with trio.open_nursery() as serving:
            await serving.start(partial(mvirt_net.serve, config, listeners={"vm1": listener}))
            client = await VhostTestClient.connect(nursery, path)
            await arp_gateway(client, MAC, "10.0.0.5")
            await client.aclose()
            serving.cancel_scope.cancel()
        assert listener.fileno() == -1
        assert path.is_socket()

    async def test_a_nic_that_is_made_anew_has_it_again(
        self, nursery: trio.Nursery, tmp_path: Path
    ) -> None:
        """By a reload that changes it, one that brings it back, and for one that a verb makes."""
        path = tmp_path / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        networks = (NetworkSpec(name="blue", ipv4_subnet="10.0.0.0/24"),)
        spec: dict[str, Any] = {"network": "blue", "mac_address": MAC, "socket_path": path}
        empty = DaemonConfig(networks=networks, socket_dir=tmp_path)

        def config(**fields: str) -> DaemonConfig:
            return attrs.evolve(empty, nics=(NicSpec(**{**spec, **fields}),))

        controls: list[Control] = []
        async with trio.open_nursery() as serving:
            await serving.start(
                partial(
                    mvirt_net.serve,
                    config(name="vm1", ipv4_address="10.0.0.5"),
                    listeners={"vm1": listener},
                    on_control=controls.append,
                )
            )
            [control] = controls
            await control.reload(config(name="vm1", ipv4_address="10.0.0.6"))
            await self.serves(nursery, path, "10.0.0.6")
            await control.reload(config(name="vm2", ipv4_address="10.0.0.7"))
            await self.serves(nursery, path, "10.0.0.7")
            # Another way to write the same path.
            [again] = config(name="vm2", ipv4_address="10.0.0.7").nics
            again = attrs.evolve(again, socket_path=tmp_path / ".." / tmp_path.name / "s")
            await control.reload(attrs.evolve(empty, nics=(again,)))
            await self.serves(nursery, path, "10.0.0.7")
            await control.reload(empty)
            await control.create_nic({**spec, "name": "vm3", "ipv4_address": "10.0.0.8"})
            await self.serves(nursery, path, "10.0.0.8")
            await control.delete_nic("vm3")
            await control.reload(config(name="vm1", ipv4_address="10.0.0.9"))
            await self.serves(nursery, path, "10.0.0.9")
            serving.cancel_scope.cancel()
        assert listener.fileno() == -1
        assert path.is_socket()

    async def serves(self, nursery: trio.Nursery, path: Path, address: str) -> None:
        client = await VhostTestClient.connect(nursery, path)
        await arp_gateway(client, MAC, address)
        await client.aclose()
