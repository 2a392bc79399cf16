#!/usr/bin/env python3
"""`cargo test` with the options given, its programs beside each other.

Most tests wait for real servers, so cargo's way, one program after another, leaves half of a small
machine idle. Each program is as cargo runs it: in its package's folder, its tests on threads of one
process, which share servers. The longest of the last run begin first (`test-times.json` in the
cache). LANES is how many run at once; what a program prints comes whole, when it ends.

Tests of real servers share a machine with whatever else runs there: one or two that fail are run
again, alone. Passing then is said as UNSTEADY, and is a defect to mend. More than two failures, a
program that ended in the middle, and a test that fails again are failures.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CARGO = os.environ.get("CARGO", "cargo")
LANES = int(os.environ.get("LANES") or min(max(os.cpu_count() or 1, 2), 4))
CACHE = Path(os.environ.get("PETAFLOP_CACHE") or Path.home() / ".cache/petaflop")
TIMES = CACHE / "test-times.json"
# So few may fail and be tried again.
UNSTEADY = 2


@dataclass(frozen=True)
class Program:
    """What cargo built of one target's tests, or the tests in its documentation."""

    name: str
    command: tuple[str, ...]
    folder: str


@dataclass
class Ended:
    """How a program ended: its status, its seconds, of those of processors, and what failed in it."""

    program: Program
    status: int
    seconds: float
    processor: float
    failed: list[str]


def build(options: list[str]) -> list[Program]:
    """Builds all; its errors go to the terminal as cargo prints them."""
    command = [CARGO, "test", *options, "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(built.returncode)
    programs = []
    for line in built.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("profile", {}).get("test") and message.get("executable"):
            folder = os.path.dirname(message["manifest_path"])
            kind, target = message["target"]["kind"][0], message["target"]["name"]
            name = f"{os.path.relpath(folder)} {kind} {target}"
            programs.append(Program(name, (message["executable"],), folder))
    programs.append(Program("documentation", (CARGO, "test", *options, "--doc", "--"), os.getcwd()))
    return programs


def run(program: Program, printing: threading.Lock) -> Ended:
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        began = time.monotonic()
        child = subprocess.Popen(
            program.command, cwd=program.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        output.seek(0)
        text = output.read()
    failed = re.findall(r"^test (.*) \.\.\. FAILED$", text, re.MULTILINE)
    with printing:
        print(f"== {program.name}: {seconds:.0f} s", text, sep="\n", end="\n", flush=True)
    return Ended(program, child.returncode, seconds, usage.ru_utime + usage.ru_stime, failed)


def known_times() -> dict[str, float]:
    try:
        return json.loads(TIMES.read_text())
    except (OSError, ValueError):
        return {}


def main() -> int:
    programs = build(sys.argv[1:])
    times = known_times()
    programs.sort(key=lambda program: -times.get(program.name, 0))
    began = time.monotonic()
    printing = threading.Lock()
    with ThreadPoolExecutor(LANES) as lanes:
        ended = list(lanes.map(lambda program: run(program, printing), programs))

    print(f"== {len(ended)} programs in {time.monotonic() - began:.0f} s, {LANES} beside each other; the longest:")
    for one in sorted(ended, key=lambda one: -one.seconds)[:12]:
        print(f"  {one.seconds:5.0f} s, {one.processor:5.0f} s of processor  {one.program.name}")
    CACHE.mkdir(parents=True, exist_ok=True)
    TIMES.write_text(json.dumps({one.program.name: round(one.seconds, 1) for one in ended}, indent=1))

    wrong = [one for one in ended if one.status != 0]
    failed = [(one.program, test) for one in wrong for test in one.failed]
    for one in wrong:
        print(f"FAILED: {one.program.name} (exit {one.status}): {', '.join(one.failed) or 'ended in the middle'}")
    if len(failed) > UNSTEADY or any(not one.failed for one in wrong):
        print(f"{len(failed)} tests failed in {len(wrong)} programs: not run again.")
        return 1
    for program, test in failed:
        print(f"== once more, alone: {test}", flush=True)
        command = [*program.command, "--exact", test, "--test-threads", "1", "--nocapture"]
        if subprocess.run(command, cwd=program.folder).returncode != 0:
            return 1
    for _, test in failed:
        print(f"UNSTEADY: {test} failed, then passed alone. Mend it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
