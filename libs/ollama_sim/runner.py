"""One loaded model: its engine's slots, who waits for them, and how long it stays."""

import asyncio
from collections import deque
from enum import StrEnum

from libs.ollama_sim.durations import FOREVER
from libs.ollama_sim.models import Model
from libs.ollama_sim.options import RunnerOptions
from libs.ollama_sim.scheduling import Resident

UNEXPECTED_EOF = "an error was encountered while running the model: unexpected EOF"
NO_LONGER_RUNNING = "llama-server process no longer running: unknown "


class EngineDied(Exception):
    """The engine of a running or waiting request is gone; the text is what Ollama says about it."""


class RunnerState(StrEnum):
    READY = "ready"
    UNLOADING = "unloading"


class Slot:
    """One sequence of the engine; it can be busy a little longer than the request that left it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.busy_until = 0.0  # loop time
        self.is_taken = False
        self.tokens = 0  # of the present or last answer


class Runner:
    """Counts its users, hands its slots out first come, first served."""

    def __init__(
        self,
        model: Model,
        options: RunnerOptions,
        *,
        num_ctx: int,
        slots: int,
        memory: tuple[int, int],
        keep_alive_s: float,
    ) -> None:
        self.model = model
        self.options = options
        self.num_ctx = num_ctx
        self.size_bytes, self.vram_bytes = memory
        self.keep_alive_s = keep_alive_s
        self.slots = tuple(Slot(index) for index in range(slots))
        self.state = RunnerState.READY
        self.users = 0
        self.is_dead = False
        self.is_doomed = False  # marked for eviction beyond recall
        self.expires_ns: int | None = None  # None until the first user has left
        self.expiry: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()
        self._waiters: deque[asyncio.Future[Slot]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def busy_slots(self) -> int:
        return sum(slot.is_taken for slot in self.slots)

    def as_resident(self) -> Resident:
        return Resident(self.model.blob_id, self.keep_alive_s, self.users == 0)

    def begin_use(self, keep_alive_s: float | None) -> None:
        """An explicit keep_alive sticks; leaving it out changes nothing."""
        self.users += 1
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None

    @property
    def never_expires(self) -> bool:
        return self.keep_alive_s == FOREVER

    async def take_slot(self) -> Slot:
        """Wait for a slot in the order of asking; leaving the queue costs the others nothing."""
        if self.is_dead:
            raise EngineDied(NO_LONGER_RUNNING)
        free = [slot for slot in self.slots if not slot.is_taken]
        if free and not self._waiters:
            slot = min(free, key=lambda each: each.busy_until)
            slot.is_taken = True
            return slot
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back(turn.result())
            elif turn in self._waiters:
                self._waiters.remove(turn)
            raise

    def give_back(self, slot: Slot) -> None:
        slot.is_taken = False
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                slot.is_taken = True
                turn.set_result(slot)
                return

    def crash(self) -> None:
        """The engine dies: those who wait are told at once, those who run notice it at their next token."""
        self.is_dead = True
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_exception(EngineDied(NO_LONGER_RUNNING))
