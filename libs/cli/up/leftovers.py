"""Processes of an earlier `arriero up` that still live. Only a pid together with its start time proves that it is ours."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from libs.cli.failures import CommandFailed
from libs.cli.home import Home

END_S = 5.0


class Trace(msgspec.Struct, frozen=True):
    """`started` is the operating system's own word for when that pid began."""

    pid: int
    started: str


class Run(msgspec.Struct):
    """`run.json`."""

    children: dict[str, Trace] = {}


def trace(pid: int) -> Trace | None:
    """None when there is no such process (any more)."""
    try:
        if sys.platform == "linux":
            # Field 22, counted behind the command's closing bracket; a zombie has ended.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else Trace(pid, fields[19])
        said = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return Trace(pid, said.stdout.strip()) if said.stdout.strip() else None
    except (OSError, IndexError):
        return None


def survivors(home: Home) -> dict[str, Trace]:
    run = home.read(
        home.run_json,
        Run,
        remedy="it lists the processes of an earlier run; make sure that none is left (ps), then delete the file",
    )
    return {name: left for name, left in (run.children if run else {}).items() if trace(left.pid) == left}


def end(left: dict[str, Trace]) -> None:
    """SIGTERM, then SIGKILL. Raises CommandFailed when one outlives that."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left.values():
            if trace(process.pid) == process:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, number)
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            left = {name: process for name, process in left.items() if trace(process.pid) == process}
            if not left:
                return
            time.sleep(0.05)
    pids = ", ".join(f"{name} (pid {process.pid})" for name, process in left.items())
    raise CommandFailed(
        f"processes of an earlier run still live and cannot be ended: {pids}; end them (kill -9 PID), then start again",
        code="leftovers",
    )
