"""Runs the fuzz targets one after another: ``python -m fuzz SECONDS [TARGET...]``; see `make fuzz`.

What a run learns stays in build/fuzz/corpus/TARGET, and the next run goes on from there. A finding
ends its target; its input is kept in build/fuzz/findings, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
SEEDS = ROOT / "fuzz" / "corpus"
BUILD = ROOT / "build" / "fuzz"
FINDINGS = BUILD / "findings"

MAX_LENGTHS: Mapping[str, int] = {
    "rings": 16384,
    "forward": 4096,
    "routes": 1024,
    "offload": 1024,
    "parsers": 2048,
}
"""Bytes of an input, for each target of libFuzzer."""
CONVERSATIONS = "conversations"
TARGETS = (*MAX_LENGTHS, CONVERSATIONS)

TIME_LIMIT = 20
"""Seconds that one input may take; only something without end takes as long."""
MEMORY_LIMIT = 2048
"""MiB that a target may use."""
TAIL = 60
"""Lines of a failed target's output that are shown."""


@attrs.frozen
class Result:
    target: str
    passed: bool
    output: str

    def last(self, pattern: str) -> str:
        """What the group of the pattern was the last time that it was seen."""
        found = re.findall(pattern, self.output)
        return found[-1] if found else "-"

    def row(self) -> str:
        """The figures of libFuzzer, or those of the conversations."""
        runs = self.last(r"number_of_executed_units: (\d+)")
        rate = self.last(r"average_exec_per_sec: +(\d+)")
        if self.target == CONVERSATIONS:
            runs = self.last(r"(\d+) conversations,")
            rate = self.last(r"([\d.]+) conversations/s")
        cov, ft = self.last(r"cov: (\d+)"), self.last(r"ft: (\d+)")
        status = "passed" if self.passed else "FAILED"
        return f"{self.target:14}{runs:>12}{rate:>10}{cov:>8}{ft:>8}  {status}"


def command(target: str, seconds: int) -> Sequence[str]:
    """The command line of a target; each can also be run by hand."""
    if target == CONVERSATIONS:
        return [sys.executable, "-m", "fuzz.conversations", str(seconds)]
    python = [sys.executable, "-m", "fuzz.parsers"]
    corpus = BUILD / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    return [
        *(python if target == "parsers" else [str(BUILD / target)]),
        f"-max_total_time={seconds}",
        f"-max_len={MAX_LENGTHS[target]}",
        f"-timeout={TIME_LIMIT}",
        f"-rss_limit_mb={MEMORY_LIMIT}",
        f"-artifact_prefix={FINDINGS}/{target}-",
        "-print_final_stats=1",
        str(corpus),
        str(SEEDS / target),
    ]


def environment(target: str) -> dict[str, str]:
    """FUZZ_PRELOAD and FUZZ_PYTHONPATH put the instrumented extension under the conversations."""
    result = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    if target == CONVERSATIONS:
        result["LD_PRELOAD"] = os.environ.get("FUZZ_PRELOAD", "")
        result["PYTHONPATH"] = os.environ.get("FUZZ_PYTHONPATH", "")
        result["ASAN_OPTIONS"] = "detect_leaks=0"
    return result


def run(target: str, seconds: int) -> Result:
    """Run one target to its end, and show what it says if that is a finding."""
    process = subprocess.run(
        command(target, seconds),
        cwd=ROOT,
        env=environment(target),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = process.stdout.decode(errors="replace")
    result = Result(target, process.returncode == 0, output)
    if not result.passed:
        print(*output.splitlines()[-TAIL:], sep="\n")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("seconds", type=int, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    FINDINGS.mkdir(parents=True, exist_ok=True)
    print(f"{'target':14}{'executions':>12}{'exec/s':>10}{'cov':>8}{'ft':>8}", flush=True)
    failed = False
    for target in options.targets or TARGETS:
        result = run(target, options.seconds)
        print(result.row(), flush=True)
        failed |= not result.passed
    if failed:
        print(f"inputs of findings: {FINDINGS}; see docs/development.md, Fuzzing")
    return failed


if __name__ == "__main__":
    sys.exit(main())
