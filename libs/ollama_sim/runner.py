"""One loaded model: its engine's slots, who waits for them, and how long it stays."""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from libs.ollama_sim.durations import FOREVER
from libs.ollama_sim.memory import Placement
from libs.ollama_sim.models import Model
from libs.ollama_sim.options import RunnerOptions
from libs.ollama_sim.prefixes import IdleSlot, Memory, choose_slot, common_prefix, recall
from libs.ollama_sim.rates import Rates
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
        self.busy_until = 0.0  # simulated clock
        self.rested_since = 0.0
        self.is_taken = False
        self.is_in_prefill = False
        self.held = b""  # text whose keys and values it still has
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
        placement: Placement,
        rates: Rates,
        keep_alive_s: float,
        prefix_limit: int,
        now: Callable[[], float],
    ) -> None:
        self.model = model
        self.options = options
        self.num_ctx = num_ctx
        self.placement = placement
        self.rates = rates
        self.keep_alive_s = keep_alive_s
        self.slots = tuple(Slot(index) for index in range(slots))
        self.state = RunnerState.READY
        self.users = 0
        self.is_dead = False
        self.is_doomed = False  # marked for eviction beyond recall
        self.expires_ns: int | None = None  # None until the first user has left
        self.expiry: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()
        self._prefix_limit = prefix_limit
        self._saved: tuple[bytes, ...] = ()
        self._now = now
        self._waiters: deque[asyncio.Future[Slot]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def busy_slots(self) -> int:
        return sum(slot.is_taken for slot in self.slots)

    @property
    def prefilling(self) -> int:
        return sum(slot.is_in_prefill for slot in self.slots)

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

    async def take_slot(self, prompt: bytes = b"") -> Slot:
        """Wait for a slot in the order of asking; leaving the queue costs the others nothing.

        Who need not wait gets the slot that knows most of the prompt.
        """
        if self.is_dead:
            raise EngineDied(NO_LONGER_RUNNING)
        free = [slot for slot in self.slots if not slot.is_taken]
        if free and not self._waiters:
            slot = self._best(free, prompt)
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

    def reuse(self, slot: Slot, prompt: bytes) -> int:
        """Length of the beginning of the prompt that the slot has, after a look at what was saved."""
        memory = recall(Memory(slot.held, self._saved), prompt, self._prefix_limit)
        shared = common_prefix(memory.held, prompt)
        slot.held, self._saved = prompt[:shared], memory.saved
        return shared

    def _best(self, free: list[Slot], prompt: bytes) -> Slot:
        """A slot that is still busy with a request nobody waits for any more is the last choice."""
        now = self._now()
        idle = [IdleSlot(slot.index, slot.held, slot.rested_since) for slot in free if slot.busy_until <= now]
        return self.slots[choose_slot(idle, prompt)] if idle else min(free, key=lambda each: each.busy_until)

    def give_back(self, slot: Slot) -> None:
        slot.is_taken = False
        slot.rested_since = self._now()
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
