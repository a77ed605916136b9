"""Real processes with a restart policy of our own: what ends is started again, after the delay that the fault asks for."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import aiohttp

from tests.faults.records import Book

ROOT = Path(__file__).parents[2]  # children run the code beside this file, wherever it was copied to
RESTART_S = 0.5
PROBE_S = 0.05
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Spec(NamedTuple):
    name: str
    argv: tuple[str, ...]
    ready_url: str
    environment: Mapping[str, str] = MappingProxyType({})


def _die_with_the_run() -> None:
    # In the child, before it becomes the program: a run that is killed leaves nothing behind, also nothing that is stopped.
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """`run` keeps it alive until `end`. It never ends a process by name, only by its own pid."""

    def __init__(self, spec: Spec, folder: Path, book: Book, http: aiohttp.ClientSession) -> None:
        self.spec = spec
        self.output = folder / f"{spec.name}.out"
        self.ready = asyncio.Event()
        self.stopped = False  # by SIGSTOP
        self._book, self._http = book, http
        self._child: asyncio.subprocess.Process | None = None
        self._down_for: float | None = None  # set when it is we who end it
        self._ending = False
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.returncode is None else None

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep(), name=self.spec.name)

    async def strike(self, number: signal.Signals, *, down_for: float) -> None:
        """End it by a signal; it is started again after `down_for`. Returns when it is ready again."""
        if self.pid is None:
            return
        self._down_for = down_for
        self.ready.clear()
        self._signal(number)
        await self.ready.wait()

    async def freeze(self, seconds: float) -> None:
        if self.pid is None:
            return
        self.stopped = True
        self._signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._signal(signal.SIGCONT)
            self.stopped = False

    async def end(self) -> None:
        """For good; after some seconds by force."""
        self._ending = True
        if self.pid is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._child is not None and self._child.returncode is None:
            await self._child.wait()

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def _keep(self) -> None:
        name = self.spec.name
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ARRIERO_", "OLLAMA_"))}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            **self.spec.environment,
        }
        while not self._ending:
            with self.output.open("ab") as out:
                self._child = await asyncio.create_subprocess_exec(
                    *self.spec.argv, env=environment, cwd=self.output.parent, stdin=asyncio.subprocess.DEVNULL,
                    stdout=out, stderr=out, start_new_session=True, preexec_fn=_die_with_the_run,
                )  # fmt: skip
            self._book.note("process", name=name, phase="started", pid=self._child.pid)
            probing = asyncio.create_task(self._probe())
            code = await self._child.wait()
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            self.ready.clear()
            wanted = self._down_for is not None or self._ending
            self._book.note("process", name=name, phase="exited", code=code, wanted=wanted)
            delay, self._down_for = RESTART_S if self._down_for is None else self._down_for, None
            if not self._ending:
                await asyncio.sleep(delay)

    async def _probe(self) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._http.get(self.spec.ready_url, timeout=aiohttp.ClientTimeout(total=1)) as answer:
                    if answer.status == 200:
                        break
            await asyncio.sleep(PROBE_S)
        self.ready.set()
        self._book.note("process", name=self.spec.name, phase="ready")
