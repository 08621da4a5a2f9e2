"""Who passes the client's frames on: the daemon and what it is compared with.

Each runs on the second of two processors, all its threads. All of them are there at once and stand
still (SIGSTOP) but for the one that is being measured, so that those that poll disturb nobody.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from tests.harness.packets import GATEWAY_MAC

from ..processes import (
    START_SECONDS,
    BenchError,
    Place,
    Process,
    run_daemon,
    run_program,
    socket_path,
)

GATEWAY = GATEWAY_MAC.hex(":")
EAL = ("--in-memory", "--single-file-segments", "--no-pci", "--no-telemetry")
"""How DPDK's programs start: huge pages, but no files that stay; nothing of the host."""

OURS = "mvirt-net"
TESTPMD = "testpmd io"
OVS = "OVS L3"
TAPS = "kernel taps"
EPOLL = "bare epoll"
RING = "bare ring"

_OVS_VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_OVS_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PROGRAMS: Mapping[str, str] = {
    "dpdk-testpmd": "dpdk-dev",
    "pkg-config": "pkg-config",
    _OVS_VSWITCHD: "openvswitch-switch-dpdk",
    "ip": "iproute2",
}
"""What has to be there, and the Debian package that it comes from."""


def place(number: int) -> Place:
    """Where port `number` of the client is, as ``frames.c`` has it."""
    return Place(f"52:54:00:00:00:{number + 1:02x}", f"10.0.0.{number + 1}")


@attrs.frozen
class Wiring:
    """What the client's driver asks of its devices.

    Args:
        calls: after each batch; otherwise it polls and wants none.
    """

    packed: bool = False
    mergeable: bool = True
    offloads: bool = False
    calls: bool = False

    def __str__(self) -> str:
        ring = "packed" if self.packed else "split"
        return f"{ring}, {'MRG' if self.mergeable else 'no MRG'}"


@attrs.frozen
class Backend:
    """A backend that runs.

    Args:
        processes: all that it consists of.
        sockets: of its ports; none: they are taps.
        connects: to those sockets; otherwise it listens.
        routed: it makes the hop of a router; otherwise it passes frames on as they are.
        taps: names of its ports.
        namespace: of the network in which its taps are.
    """

    name: str
    processes: Sequence[int] = ()
    sockets: Sequence[Path] = ()
    connects: bool = False
    routed: bool = True
    taps: Sequence[str] = ()
    namespace: str | None = None

    def stop(self) -> None:
        """Have it stand still."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.processes:
            os.kill(pid, number)

    def cpu_seconds(self) -> float | None:
        """Processor time that it has used; None: it is part of the kernel."""
        if not self.processes:
            return None
        return sum(Process(pid).cpu_seconds() for pid in self.processes)


@contextmanager
def open_daemon(
    folder: Path,
    processors: set[int],
    nics: int = 2,
    ports: int = 2,
    options: Sequence[str] = (),
) -> Iterator[Backend]:
    """``mvirt-net serve OPTIONS`` with so many NICs, the first of which are the client's."""
    first = [place(number) for number in range(ports)]
    with run_daemon(folder, nics, *options, first=first, processors=processors) as process:
        sockets = [socket_path(folder, number) for number in range(ports)]
        yield Backend(OURS, [process.pid], sockets)


@contextmanager
def open_testpmd(folder: Path, processors: set[int], ports: int = 2) -> Iterator[Backend]:
    """DPDK's testpmd, which passes on what comes and looks at nothing."""
    sockets = [folder / f"testpmd{number}.sock" for number in range(ports)]
    (cpu,) = processors
    command = ["dpdk-testpmd", f"--lcores=0@{cpu},1@{cpu}", "-m", "256", *EAL]
    for number, path in enumerate(sockets):
        command.append(f"--vdev=net_vhost{number},iface={path},queues=1,tso=1,legacy-ol-flags=1")
    command += ["--", "--forward-mode=io", "--auto-start", "--total-num-mbufs=16384"]
    with _run_logged(folder / "testpmd.log", command, processors) as process:
        _wait_for(sockets, process)
        yield Backend(TESTPMD, [process.pid], sockets, routed=False)


@contextmanager
def open_epoll(folder: Path, processors: set[int], program: Path) -> Iterator[Backend]:
    """The least that can wait for kicks and pass frames on (``epoll.c``)."""
    sockets = [folder / f"epoll{number}.sock" for number in range(2)]
    (cpu,) = processors
    command = [str(program), f"--lcores=0@{cpu}", "-m", "64", *EAL, "--", *map(str, sockets)]
    with _run_logged(folder / "epoll.log", command, processors) as process:
        _wait_for(sockets, process)
        yield Backend(EPOLL, [process.pid], sockets, routed=False)


@contextmanager
def open_ovs(
    folder: Path, processors: set[int], ports: int = 2, *, offloads: bool
) -> Iterator[Backend]:
    """Open vSwitch on DPDK, with a flow in each direction that makes the hop of a router."""
    database, control = folder / "db.sock", folder / "ovs.ctl"
    environment = {f"OVS_{name}DIR": str(folder) for name in ("RUN", "LOG", "DB", "SYSCONF")}
    sockets = [folder / f"ovs{number}" for number in range(ports)]
    _call("ovsdb-tool", "create", str(folder / "conf.db"), _OVS_SCHEMA)
    with ExitStack() as stack:
        server = ["ovsdb-server", str(folder / "conf.db"), f"--remote=punix:{database}"]
        stack.enter_context(
            _run_logged(folder / "ovsdb.log", [*server, "--unixctl=none"], processors)
        )
        _wait_for([database])
        vsctl = ("ovs-vsctl", f"--db=unix:{database}", "--timeout=30")
        _call(*vsctl, "--no-wait", "init")
        _call(*vsctl, "--no-wait", "set", "Open_vSwitch", ".", *_ovs_settings(processors, offloads))
        switch = [_OVS_VSWITCHD, f"unix:{database}", f"--unixctl={control}"]
        process = stack.enter_context(
            _run_logged(folder / "ovs.log", switch, processors, environment)
        )
        _call(*vsctl, *_ovs_ports(sockets), environment=environment)
        for source in range(ports):
            target = source ^ 1
            flow = (
                f"in_port={source + 1},ip,actions=dec_ttl,mod_dl_src:{GATEWAY},"
                f"mod_dl_dst:{place(target).mac},output:{target + 1}"
            )
            _call("ovs-ofctl", "add-flow", f"unix:{folder / 'br0.mgmt'}", flow)
        # The other type of port, which listens, never offers segmentation.
        yield Backend(OVS, [process.pid], sockets, connects=True)


def _ovs_settings(processors: set[int], offloads: bool) -> list[str]:
    (cpu,) = processors
    options = {
        "dpdk-init": "true",
        "dpdk-extra": " ".join(EAL),
        "dpdk-socket-mem": "512",
        "dpdk-lcore-mask": hex(1 << cpu),
        "pmd-cpu-mask": hex(1 << cpu),
        "userspace-tso-enable": "true" if offloads else "false",
    }
    return [f'other_config:{name}="{value}"' for name, value in options.items()]


def _ovs_ports(sockets: Sequence[Path]) -> list[str]:
    words = [
        "add-br",
        "br0",
        "--",
        "set",
        "bridge",
        "br0",
        "datapath_type=netdev",
        "fail-mode=secure",
    ]
    for number, path in enumerate(sockets, start=1):
        words += ["--", "add-port", "br0", path.name]
        words += ["--", "set", "Interface", path.name, "type=dpdkvhostuserclient"]
        words += [f"options:vhost-server-path={path}", f"ofport_request={number}"]
    return words


@contextmanager
def open_taps(processors: set[int]) -> Iterator[Backend]:
    """Two taps in a network namespace of their own, between which the kernel routes.

    What the client writes is handed to the other processor (receive packet steering), where it is
    routed and put into the other tap's queue.
    """
    name = f"mvirt-bench-{os.getpid()}"
    (cpu,) = processors
    taps = ["bench0", "bench1"]
    _call("ip", "netns", "add", name)
    try:
        inside = ("ip", "netns", "exec", name)
        _call(*inside, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        _call(*inside, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6 || true")
        for number, tap in enumerate(taps):
            its = place(number)
            steer = f"echo {1 << cpu:x} >/sys/class/net/{tap}/queues/rx-0/rps_cpus"
            _call(*inside, "ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
            _call(*inside, "ip", "link", "set", tap, "address", GATEWAY, "up")
            _call(*inside, "ip", "route", "add", f"{its.ipv4}/32", "dev", tap)
            _call(*inside, "ip", "neigh", "add", its.ipv4, "lladdr", its.mac, "dev", tap)
            _call(*inside, "sh", "-c", steer)
        yield Backend(TAPS, taps=taps, namespace=name)
    finally:
        _call("ip", "netns", "del", name)


@contextmanager
def open_ring(folder: Path, processors: set[int], program: Path) -> Iterator[Backend]:
    """As fast as a router can be that checks nothing (``ring.c``)."""
    sockets = [folder / f"ring{number}.sock" for number in range(2)]
    (cpu,) = processors
    command = [str(program), f"--lcores=0@{cpu}", "-m", "64", *EAL, "--", GATEWAY]
    for number, path in enumerate(sockets):
        command += [str(path), place(number).mac]
    with _run_logged(folder / "ring.log", command, processors) as process:
        _wait_for(sockets, process)
        yield Backend(RING, [process.pid], sockets)


@contextmanager
def huge_pages(megabytes: int) -> Iterator[None]:
    """See to it that so much memory is free in huge pages of 2 MiB, and undo that."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    before, wanted = int(setting.read_text()), megabytes // 2
    missing = max(0, wanted - int(free.read_text()))
    setting.write_text(str(before + missing))
    try:
        if int(free.read_text()) < wanted:
            raise BenchError(f"the system has no {megabytes} MiB for huge pages")
        yield
    finally:
        setting.write_text(str(before))


@contextmanager
def _run_logged(
    log: Path,
    command: Sequence[str],
    processors: set[int],
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program whose standard input stays open and whose output goes to a file."""
    with (
        log.open("w") as output,
        run_program(
            *command,
            processors=processors,
            stdin=subprocess.PIPE,
            stdout=output.fileno(),
            stderr=output.fileno(),
            environment=environment,
        ) as process,
    ):
        try:
            yield process
        except BenchError as error:
            if process.poll() is None:
                raise
            raise BenchError(f"{error}\n{log.name}: …{log.read_text()[-1000:]}") from error


def _call(*command: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=2 * START_SECONDS,
    )
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait_for(sockets: Sequence[Path], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until these exist."""
    end = time.monotonic() + START_SECONDS
    while not all(path.is_socket() for path in sockets):
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            raise BenchError(f"no socket at {sockets[0]}")
        select.select([], [], [], 0.05)
