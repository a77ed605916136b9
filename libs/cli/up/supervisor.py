"""Keeps processes alive: what dies is started again; what is stopped stays stopped, and leaves nothing behind.

Each child is a session of its own, so that a terminal's Ctrl-C reaches only `up`, which then ends them in order. On Linux
the kernel ends a child whose `up` was killed; elsewhere the next `up` does (see `leftovers`).
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from libs.cli.up import probe
from libs.cli.up.backoff import next_delay
from libs.cli.up.log_files import LogFiles
from libs.cli.up.processes import Process, child_environment

PROBE_EVERY_S = 0.05
HURRIED_S = 15.0  # for those who were told to hurry: a worker hands over what runs (at most runtime.DRAIN_SLACK_S)
SLOW_S = 20.0  # a process that is started but not ready for so long is worth a line
_PR_SET_PDEATHSIG = 1


class Started(msgspec.Struct, frozen=True):
    name: str
    pid: int


class Ready(msgspec.Struct, frozen=True):
    name: str
    after_s: float
    again: bool  # it had died


class Slow(msgspec.Struct, frozen=True):
    """Alive, but not ready; `why` is its own word."""

    name: str
    why: str


class Died(msgspec.Struct, frozen=True):
    """`code` is negative for a signal; it is started again after `delay_s`."""

    name: str
    code: int
    delay_s: float


Change = Started | Ready | Slow | Died
Pause = Callable[[float], Awaitable[None]]


class NeverReady(Exception):
    """A process ended, or could not be started, before it was ready for the first time."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name
        self.why = why


class _Child:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.running: asyncio.subprocess.Process | None = None
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_ready = False
        self.stopping = False
        self.deaths = 0
        self.pausing = False  # dead, and waiting to be started again
        self.keeper: asyncio.Task[None] | None = None


class Supervisor:
    """`changed` is called in the event loop for every change; it must not block."""

    def __init__(
        self,
        logs: LogFiles,
        changed: Callable[[Change], None],
        *,
        environment: dict[str, str] | None = None,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._logs = logs
        self._changed = changed
        self._environment = dict(os.environ) if environment is None else environment
        self._pause = pause
        self._children: dict[str, _Child] = {}

    def start(self, process: Process) -> None:
        child = _Child(process)
        self._children[process.name] = child
        child.keeper = asyncio.create_task(self._keep(child), name=f"keep {process.name}")

    async def until_ready(self, names: Iterable[str]) -> None:
        """Raises NeverReady as soon as one of them ended before it was ready."""
        waiting = [self._children[name].first_ready for name in names]
        await asyncio.gather(*(asyncio.shield(future) for future in waiting))

    @property
    def pids(self) -> dict[str, int]:
        """Of what runs at the moment."""
        return {
            name: child.running.pid
            for name, child in self._children.items()
            if child.running and child.running.returncode is None
        }

    @property
    def all_ready(self) -> bool:
        return all(child.is_ready or not child.process.needed for child in self._children.values())

    async def stop(
        self,
        names: Iterable[str],
        *,
        within: float,
        hurry: asyncio.Event | None = None,
        insist: asyncio.Event | None = None,
    ) -> list[str]:
        """SIGTERM; after `within` seconds, or when `insist` is set, SIGKILL. The names of those that had to be killed.

        When `hurry` is set, a second SIGTERM, which leaves them HURRIED_S at most.
        """
        children = [self._children[name] for name in names if name in self._children]
        keepers = {child.keeper for child in children if child.keeper}
        for child in children:
            child.stopping = True
            if child.pausing and child.keeper:
                child.keeper.cancel()
            elif child.running:
                _signal(child.running, signal.SIGTERM)
        hurrying = asyncio.create_task((hurry or asyncio.Event()).wait())
        insisting = asyncio.create_task((insist or asyncio.Event()).wait())
        left = keepers
        until = time.monotonic() + within
        hurried = False
        while left and not insisting.done() and (rest := until - time.monotonic()) > 0:
            signs = {insisting} if hurried else {hurrying, insisting}
            done, _ = await asyncio.wait({*left, *signs}, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            left = left - done
            if hurrying.done() and not hurried:
                hurried, until = True, min(until, time.monotonic() + HURRIED_S)
                for child in children:
                    if child.keeper in left and child.running:
                        _signal(child.running, signal.SIGTERM)
        hurrying.cancel()
        insisting.cancel()
        stubborn = [child for child in children if child.keeper in left]
        for child in stubborn:
            if child.running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.running.pid, signal.SIGKILL)
        await asyncio.gather(*keepers, hurrying, insisting, return_exceptions=True)
        for child in children:
            del self._children[child.process.name]
        return [child.process.name for child in stubborn]

    def signal(self, name: str, number: signal.Signals) -> None:
        child = self._children.get(name)
        if child and child.running:
            _signal(child.running, number)

    async def _keep(self, child: _Child) -> None:
        delay: float | None = None
        while True:
            began = time.monotonic()
            try:
                code = await self._run_once(child, began)
            except OSError as error:
                code = 127
                self._refuse(child, f"cannot be started: {error.strerror or error}")
            if child.stopping or (child.first_ready.done() and child.first_ready.exception()):
                return
            child.deaths += 1
            delay = next_delay(delay, ran_s=time.monotonic() - began)
            self._changed(Died(child.process.name, code, delay))
            child.pausing = True
            await self._pause(delay)
            child.pausing = False

    async def _run_once(self, child: _Child, began: float) -> int:
        with self._logs.open(child.process.name) as log:
            child.running = await asyncio.create_subprocess_exec(
                *child.process.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(child.process, self._environment),
                start_new_session=True,
                preexec_fn=_end_with_parent(child.process.name),
            )
        if child.stopping:  # asked to stop while it was being started
            _signal(child.running, signal.SIGTERM)
        self._changed(Started(child.process.name, child.running.pid))
        readiness = asyncio.create_task(self._watch_readiness(child, began))
        try:
            code = await child.running.wait()
        finally:
            readiness.cancel()
            await asyncio.gather(readiness, return_exceptions=True)
            child.is_ready = False
        self._refuse(child, f"ended before it was ready ({how_it_ended(code)})")
        return code

    async def _watch_readiness(self, child: _Child, began: float) -> None:
        said = False
        while True:
            answer = await probe.get(child.process.ready)
            waited = time.monotonic() - began
            if answer and answer[0] == 200:
                break
            if waited > SLOW_S and not said:
                said = True
                self._changed(Slow(child.process.name, why_not_ready(answer)))
            await asyncio.sleep(PROBE_EVERY_S if waited < SLOW_S else 10 * PROBE_EVERY_S)
        child.is_ready = True
        if not child.first_ready.done():
            child.first_ready.set_result(None)
        self._changed(Ready(child.process.name, waited, again=child.deaths > 0))

    @staticmethod
    def _refuse(child: _Child, why: str) -> None:
        """What nobody waits for is not refused, but tried again."""
        if child.process.needed and not child.first_ready.done():
            child.first_ready.set_exception(NeverReady(child.process.name, why))
            child.first_ready.exception()  # looked at here, in case nobody waits for it


def why_not_ready(answer: tuple[int, bytes] | None) -> str:
    """The failing checks of a /readyz answer, as one line."""
    if answer is None:
        return "it does not answer"
    try:
        problems = msgspec.json.decode(answer[1]).get("problems", {})
        return "; ".join(f"{name}: {problem}" for name, problem in problems.items()) or f"status {answer[0]}"
    except (msgspec.MsgspecError, AttributeError):
        return f"status {answer[0]}"


def how_it_ended(code: int) -> str:
    """For a human: `exit code 1`, `SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _signal(running: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        running.send_signal(number)


def _end_with_parent(name: str) -> Callable[[], None] | None:
    """Runs in the child before its program: asks Linux for a signal when `up` is gone, however that happened.

    SIGKILL, since nobody would be there to insist; nats-server gets SIGTERM, which it always follows and which spares it
    the recovery of its store.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    number, parent = signal.SIGTERM if name == "nats" else signal.SIGKILL, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask
