"""A whole Arriero as its users start it: `arriero up`, with ports and a home of its own."""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_S = 60.0  # with every core busy; measured start times are in bench/, not here
STOP_S = 30.0
SPAN = 60  # ports that `--port-base` may use


_claims: dict[int, socket.socket] = {}


def port_base() -> int:
    """A base whose whole span is free, and stays so: each worker looks in a range of its own, and passes over what another run on
    this machine has claimed."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    start = 20000 + worker * 4000 + (os.getpid() * SPAN) % 2400
    for base in range(start, start + 1500, SPAN):
        used = (0, 1, 2, 3, *range(10, 24), *range(30, 34), 50, 51)
        if _claim(base) and all(_free(base + offset) for offset in used):
            return base
    raise AssertionError("no free span of ports")


def _claim(base: int) -> bool:
    """Holds the last port of the span, which no stack uses, until this process ends."""
    if base in _claims:
        return True
    held = socket.socket()
    try:
        held.bind(("127.0.0.1", base + SPAN - 1))  # without SO_REUSEADDR: nobody else can
    except OSError:
        held.close()
        return False
    atexit.register(held.close)
    _claims[base] = held
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Stack:
    """`start` returns when up.json is there. Its output is in `home/../up.out`."""

    def __init__(self, home: Path, *args: str, base: int | None = None) -> None:
        self.home = home
        self.args = args
        self.base = base or port_base()
        self.output = home.parent / f"{home.name}.out"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def up(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "up.json").read_text())
        return found

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ARRIERO_", "OLLAMA_"))}
        return kept | {"ARRIERO_HOME": str(self.home)}

    def start(self) -> None:
        nodes = ["--nodes", url] if (url := os.environ.get("ARRIERO_TEST_OLLAMA")) else ["--sim", "2"]
        if "--nodes" in self.args:
            nodes = []
        command = [sys.executable, "-m", "libs.cli", "up", "--port-base", str(self.base), *nodes, *self.args]
        with self.output.open("wb") as out:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        give_up = time.monotonic() + START_S
        while not (self.home / "up.json").exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"arriero up did not start:\n{self.output.read_text()}")
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Ctrl-C."""
        assert self._process
        self._process.send_signal(signal.SIGINT)

    def stop(self, within: float = STOP_S) -> int:
        """Ctrl-C; the exit code."""
        assert self._process
        self.interrupt()
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def wait_for_output(self, text: str, within: float = START_S) -> str:
        give_up = time.monotonic() + within
        while text not in (said := self.output.read_text()):
            assert time.monotonic() < give_up, f"{text!r} not within {within} s in:\n{said}"
            time.sleep(0.05)
        return said

    def arriero(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Another `arriero` command against this stack."""
        return subprocess.run(
            [sys.executable, "-m", "libs.cli", *args], env=self.environment, capture_output=True, text=True, timeout=60
        )

    def overstepped(self) -> list[str]:
        """What NATS refused to its users, by their logs."""
        lines = [line for path in (self.home / "logs").glob("*.log") for line in path.read_text().splitlines()]
        return [line for line in lines if "permissions violation" in line.lower()]

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal one of its processes, by the name it has in up.json; the pid."""
        pid = int(self.up["pids"][name])
        os.kill(pid, number)
        return pid

    def wait_for_new_pid(self, name: str, old: int, within: float = START_S) -> None:
        """Until the supervisor has the process back and ready."""
        give_up = time.monotonic() + within
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if self.up["pids"][name] != old:
                    return
            assert time.monotonic() < give_up, f"{name} did not come back"
            time.sleep(0.05)


@contextlib.contextmanager
def running_stack(folder: Path, *args: str) -> Iterator[Stack]:
    stack = Stack(folder / "home", *args)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
    assert stack.overstepped() == [], "somebody asked NATS for what its user may not"
