"""A Debian guest under QEMU (TCG), driven from trio.

Theory of operation. `boot_guest` starts QEMU with two inherited sockets: one for QMP, one that is
the guest's virtio-serial port. The guest's process 1 (``rootfs/init``, ``rootfs/agent``) reads
commands from that port and sends back status and output, framed as one line each way, so nothing
ever has to be guessed from a console's text. When our end of the port closes, the guest switches
itself off: QEMU does not outlive the program that started it, however that ends.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from .image import Image
from .lines import ConversationEnded, LineStream

QEMU = "qemu-system-x86_64"

BOOT_SECONDS = 90
"""Deadline of a boot. It takes three seconds on an idle machine."""

_MEMORY_SLOTS = 1

_ANSWER_SECONDS = 30
"""What an answer may take on top of the command's own time, on a busy machine."""

# The kernel's address stays random: booting it again to where it ran before makes TCG drop its
# translations page by page, which takes five seconds.
# On a busy machine the emulated timer may not tick while the kernel looks whether it works, upon
# which it would panic.
KERNEL_ARGUMENTS = (
    "console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off no_timer_check rdinit=/init"
)


class GuestError(Exception):
    """The guest or QEMU does not do what it was told; the text says what was seen of it."""


@attrs.frozen(kw_only=True)
class GuestNic:
    """A virtio-net-pci device whose backend listens, now or later, on `socket_path`."""

    mac: str
    socket_path: Path
    queue_size: int | None = None
    """Entries of each ring; None leaves QEMU's 256."""
    host_mtu: int | None = None
    """What the device tells the driver by VIRTIO_NET_F_MTU."""
    queue_pairs: int = 1
    packed: bool = False
    """Packed rings, which QEMU has its devices offer only when told to."""
    without: Sequence[str] = ()
    """Features of the device to switch off, as QEMU spells them: ``mrg_rxbuf``, ``event_idx``."""

    def arguments(self, number: int) -> list[str]:
        """QEMU's arguments for the guest's NIC `number`, in the form of the how-to."""
        path = str(self.socket_path).replace(",", ",,")
        properties = {
            "netdev": f"net{number}",
            "mac": self.mac,
            # QEMU 7.2 under TCG crashes with MSI-X, a control queue and vhost-user.
            "vectors": "0",
            # No boot ROM: a quicker start.
            "romfile": "",
            **dict.fromkeys(self.without, "off"),
        }
        queues = ""
        if self.queue_pairs > 1:
            queues = f",queues={self.queue_pairs}"
            properties["mq"] = "on"
        if self.packed:
            properties["packed"] = "on"
        if self.queue_size is not None:
            properties |= dict.fromkeys(("rx_queue_size", "tx_queue_size"), str(self.queue_size))
        if self.host_mtu is not None:
            properties["host_mtu"] = str(self.host_mtu)
        device = ",".join(f"{name}={value}" for name, value in properties.items())
        return [
            *("-chardev", f"socket,id=char{number},path={path},reconnect=1"),
            *("-netdev", f"vhost-user,id=net{number},chardev=char{number}{queues}"),
            *("-device", f"virtio-net-pci,{device}"),
        ]


@attrs.frozen
class Output:
    """How a command ended and all that it wrote; status 137 is a timeout."""

    status: int
    text: str


@attrs.define(eq=False)
class Agent:
    """What obeys us in a guest, whoever has started it."""

    _agent: LineStream
    _last_command: int = attrs.field(default=0, init=False)
    _one_command: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _boot_id: str = attrs.field(default="", init=False)

    async def run(self, command: str, *, timeout: float = 60) -> str:
        """Run a shell command in the guest.

        Args:
            command: for dash, any number of lines.
            timeout: seconds after which the guest kills it.

        Returns:
            What it wrote to stdout and stderr.

        Raises:
            GuestError: it did not end with status 0, or the guest does not answer.
        """
        output = await self.try_run(command, timeout=timeout)
        if output.status != 0:
            raise GuestError(f"status {output.status} of: {command}\n{output.text}")
        return output.text

    async def try_run(self, command: str, *, timeout: float = 60) -> Output:
        """Like `run`, but any status will do."""
        async with self._one_command:
            self._last_command += 1
            number = str(self._last_command)
            packed = base64.b64encode(command.encode()).decode()
            with self._answer_within(timeout + _ANSWER_SECONDS, f"to: {command}"):
                await self._agent.send(f"{number} {timeout:.0f} {packed}")
                # An answer to an earlier, cancelled command may come first.
                while (words := (await self._agent.receive()).split())[:2] != ["done", number]:
                    pass
        text = base64.b64decode(words[3]).decode(errors="replace") if len(words) > 3 else ""
        return Output(int(words[2]), text)

    async def wait_until(self, command: str, *, timeout: float = 60) -> None:
        """Wait in the guest until `command` ends with status 0.

        Raises:
            GuestError: it did not within `timeout` seconds.
        """
        await self.run(f"until {command}; do sleep 0.1; done", timeout=timeout)

    async def wait_booted(self) -> None:
        """Wait for the guest's agent to say that it has started, once for each boot."""
        with self._answer_within(BOOT_SECONDS, "after its boot"):
            while True:
                words = (await self._agent.receive()).split()
                if words[:1] == ["ready"] and words[1] != self._boot_id:
                    self._boot_id = words[1]
                    return

    @contextmanager
    def _answer_within(self, seconds: float, what: str) -> Iterator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError:
            raise GuestError(f"no answer from the guest within {seconds:g} s {what}") from None
        except ConversationEnded:
            raise GuestError(f"QEMU has ended before the guest's answer {what}") from None


@attrs.define(eq=False)
class Guest(Agent):
    """A running guest; made by `boot_guest`."""

    pid: int
    """Of the QEMU process."""
    _qmp: Qmp

    async def reset(self) -> None:
        """Press the reset button and wait until the guest has booted again."""
        async with self._one_command:
            await self._qmp.execute("system_reset")
            await self.wait_booted()

    async def pause(self) -> None:
        """Stop the guest's processors and devices; commands wait until `resume`."""
        await self._qmp.execute("stop")

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._qmp.execute("cont")

    async def set_link(self, number: int, *, up: bool) -> None:
        """Plug the cable of NIC `number` in or out."""
        await self._qmp.execute("set_link", name=f"net{number}", up=up)

    async def plug_memory(self, size: int) -> None:
        """Plug another `size` MiB in, a file of its own."""
        memory = {"qom-type": "memory-backend-memfd", "size": size << 20, "share": True}
        await self._qmp.execute("object-add", id="more", **memory)
        await self._qmp.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")

    async def unplug_memory(self) -> None:
        """Ask the guest to give back what was plugged in; it does so a little later."""
        await self._qmp.execute("device_del", id="dimm")


@attrs.define(eq=False)
class Qmp:
    """QEMU's control socket (docs/interop/qmp-spec)."""

    _lines: LineStream

    async def execute(self, command: str, **arguments: object) -> Any:
        """Raises GuestError when QEMU answers with an error or not at all."""
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                await self._lines.send(request)
                while True:
                    answer = json.loads(await self._lines.receive())
                    if "error" in answer:
                        raise GuestError(f"QMP {command}: {answer['error']['desc']}")
                    if "return" in answer:
                        return answer["return"]
        except (trio.TooSlowError, ConversationEnded) as error:
            raise GuestError(f"QMP {command}: no answer") from error


@asynccontextmanager
async def boot_guest(
    image: Image,
    folder: Path,
    nics: Sequence[GuestNic] = (),
    *,
    memory: Sequence[int] = (256,),
    cpus: int = 1,
    cpu: str = "qemu64",
) -> AsyncIterator[Guest]:
    """A guest that has booted and waits for commands; QEMU is gone at the end.

    Args:
        folder: where ``console.log`` and ``qemu.log`` are written. An exception that leaves
            the block gets the end of both as a note.
        nics: the guest's eth0, eth1, …
        memory: the sizes in MiB of the pieces that the guest's memory consists of, each a file
            and a NUMA node of its own.
        cpus: how many the guest has; Linux uses no more queue pairs.
        cpu: QEMU's name for what they are.
    """
    agent, agent_of_qemu = LineStream.pair()
    qmp, qmp_of_qemu = LineStream.pair()
    command = [
        *_machine(image, folder / "console.log", agent_of_qemu.fileno(), qmp_of_qemu.fileno()),
        *("-cpu", cpu, "-smp", str(cpus)),
        *_memory(memory),
        *(argument for number, nic in enumerate(nics) for argument in nic.arguments(number)),
    ]
    try:
        with agent_of_qemu, qmp_of_qemu, (folder / "qemu.log").open("ab") as log:
            inherited = (agent_of_qemu.fileno(), qmp_of_qemu.fileno())
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherited
            )
        with _logs_as_note(folder):
            async with _ended(process):
                guest = Guest(agent, process.pid, Qmp(qmp))
                await guest._qmp.execute("qmp_capabilities")
                await guest.wait_booted()
                yield guest
    finally:
        agent.close()
        qmp.close()


def _machine(image: Image, console: Path, agent_fd: int, qmp_fd: int) -> Iterator[str]:
    """QEMU's arguments for all but memory and NICs."""
    options: Mapping[str, str] = {
        "-accel": "tcg",
        "-kernel": str(image.kernel),
        "-initrd": str(image.initramfs),
        "-append": KERNEL_ARGUMENTS,
        "-display": "none",
        "-serial": f"file:{console}",
        "-mon": "chardev=qmp,mode=control",
    }
    yield from (QEMU, "-nodefaults", "-no-user-config")
    for name, value in options.items():
        yield from (name, value)
    yield from ("-chardev", f"socket,id=qmp,fd={qmp_fd}")
    yield from ("-chardev", f"socket,id=agent,fd={agent_fd}")
    yield from ("-device", "virtio-serial-pci")
    yield from ("-device", "virtserialport,chardev=agent,name=agent")


def _memory(sizes: Sequence[int]) -> Iterator[str]:
    """QEMU's arguments for memory that a backend can map, with room for more to be plugged in."""
    yield from ("-m", f"{sum(sizes)}M,slots={_MEMORY_SLOTS},maxmem=1G")
    for node, size in enumerate(sizes):
        yield from ("-object", f"memory-backend-memfd,id=memory{node},size={size}M,share=on")
        yield from ("-numa", f"node,memdev=memory{node}")


@asynccontextmanager
async def _ended(process: trio.Process) -> AsyncIterator[None]:
    """Kill `process` at the end of the block and wait for it."""
    try:
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@contextmanager
def _logs_as_note(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for name in ("console.log", "qemu.log"):
            path = folder / name
            end = path.read_text(errors="replace")[-3000:] if path.exists() else ""
            error.add_note(f"--- end of {name} ---\n{end}")
        raise
