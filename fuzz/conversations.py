"""Hostile frontends without end: ``python -m fuzz.conversations SECONDS [--seed N]``.

Random orders of valid and broken vhost-user messages to a live switch, over its socket, while rings
run (`tests.harness.hostility`). After each conversation no descriptor and no mapping may be left,
nothing may be logged that only a bug can cause, and now and then a bystander on another NIC asks
for the gateway.

A conversation is its number. Numbers are taken one after another, from a random one on or from
``--seed``; with 0 seconds there is one conversation, which is how to have one again.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from pathlib import Path

import attrs
import trio
import trio.testing

from mvirt_net.ffi import _core
from tests.harness import TestBackend
from tests.harness.exchanges import arp_gateway
from tests.harness.footprint import open_files
from tests.harness.hostility import IP, MAC, converse

BYSTANDER_MAC = "52:54:00:00:00:99"
BYSTANDER_IP = "10.0.0.9"
ASK_EVERY = 20
"""Conversations between two questions of the bystander."""


@attrs.define(eq=False)
class Failures(logging.Handler):
    """Keeps the tracebacks that the daemon has logged: each is a bug of ours."""

    messages: list[str] = attrs.field(factory=list)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.messages.append(self.format(record))


@attrs.define
class Tally:
    conversations: int = 0
    deeds: int = 0


async def fuzz(seconds: float, seed: int, failures: Failures) -> Tally:
    """Hold conversations for so long, and one at least.

    Raises:
        AssertionError: one of them did harm; the message says which.
    """
    tally, deadline = Tally(), time.monotonic() + seconds
    async with trio.open_nursery() as nursery:
        backend = await TestBackend.start(nursery, MAC, ipv4=IP)
        nic = await backend.add_nic("bystander", BYSTANDER_MAC, BYSTANDER_IP)
        bystander = await backend.connect(nic)
        while True:
            await hold(backend, seed + tally.conversations, failures, tally)
            if tally.conversations % ASK_EVERY == 0:
                await arp_gateway(bystander, BYSTANDER_MAC, BYSTANDER_IP)
            if time.monotonic() >= deadline:
                break
        await arp_gateway(bystander, BYSTANDER_MAC, BYSTANDER_IP)
        nursery.cancel_scope.cancel()
    return tally


async def hold(backend: TestBackend, number: int, failures: Failures, tally: Tally) -> None:
    """One conversation, and a look at what it has left behind."""
    before = open_files()
    mapped = guest_mappings()
    tally.deeds += await converse(backend, number)
    tally.conversations += 1
    await trio.testing.wait_all_tasks_blocked()
    left = open_files() - before
    again = f"python -m fuzz.conversations 0 --seed {number}"
    assert not left, f"descriptors left open: {dict(left)}; again: {again}"
    assert guest_mappings() == mapped, f"mappings left; again: {again}"
    assert not failures.messages, f"{failures.messages[0]}\nagain: {again}"


def guest_mappings() -> int:
    """How many pieces of guest memory this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:vhost-test-mem")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.conversations")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    failures = Failures()
    logging.getLogger().addHandler(failures)
    print(f"conversations from {seed} on, with {_core.__file__}", flush=True)
    begin = time.monotonic()
    try:
        tally = trio.run(fuzz, options.seconds, seed, failures)
    except* AssertionError as group:
        for error in group.exceptions:
            print(f"FINDING: {error}", file=sys.stderr)
        raise
    rate = tally.conversations / (time.monotonic() - begin)
    print(f"{tally.conversations} conversations, {tally.deeds} deeds, {rate:.1f} conversations/s")


if __name__ == "__main__":
    main()
