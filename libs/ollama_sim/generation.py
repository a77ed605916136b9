"""One answer as it comes out of the engine: waiting for a slot, prefill, one token after the other."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator

import msgspec

from libs.ollama_sim.answers import Piece
from libs.ollama_sim.counters import Counters
from libs.ollama_sim.faults import Fault, FaultKind
from libs.ollama_sim.pace import Pace
from libs.ollama_sim.runner import UNEXPECTED_EOF, EngineDied, Runner, Slot
from libs.ollama_sim.scheduling import decode_share
from libs.ollama_sim.stops import StopFilter

_PREFILL_STEP_S = 0.25  # how often a prefill looks whether its engine still lives
_CANCEL_POLL_S = 0.5  # how long, at most, an engine goes on with a prefill nobody waits for
_YIELD_EVERY = 16  # tokens between looks at other tasks when nothing waits
_LEAST_NS = 1000  # the engine's clock never shows zero


class Cut(Exception):
    """A fault ends the answer here; what the client sees of it is the exchange's part."""

    def __init__(self, kind: FaultKind) -> None:
        super().__init__(kind)
        self.kind = kind


class Rates(msgspec.Struct, frozen=True):
    decode_tps: float
    prefill_tps: float


class Order(msgspec.Struct, frozen=True):
    """What to generate."""

    pieces: Iterator[Piece]
    prompt_tokens: int
    limit: int | None
    stops: tuple[str, ...] = ()
    fault: Fault | None = None


class Generation:
    """Iterate over `pieces`; afterwards the counts and durations are those of the final line."""

    def __init__(self, runner: Runner, order: Order, rates: Rates, pace: Pace, counters: Counters) -> None:
        self._runner = runner
        self._order = order
        self._rates = rates
        self._pace = pace
        self._counters = counters
        self._free_at = 0.0  # loop time at which the engine would notice that nobody listens
        self._trickle_s: float | None = None
        self.done_reason = "stop"
        self.eval_count = 0
        self.prompt_eval_ns = 0
        self.eval_ns = 0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        slot = await self._runner.take_slot()
        slot.tokens = 0
        try:
            await self._wait_for_engine(slot)
            started_ns = time.perf_counter_ns()
            await self._prefill()
            first_ns = time.perf_counter_ns()
            self.prompt_eval_ns = _engine_ns(first_ns - started_ns)
            async with contextlib.aclosing(self._decode(slot)) as decoded:
                async for piece in decoded:
                    yield piece
            self.eval_ns = _engine_ns(time.perf_counter_ns() - first_ns)
            self._free_at = 0.0
        finally:
            slot.busy_until = self._free_at
            self._runner.give_back(slot)

    async def _decode(self, slot: Slot) -> AsyncGenerator[Piece, None]:
        stops = StopFilter(self._order.stops)
        loop = asyncio.get_running_loop()
        due = loop.time()
        for piece in self._order.pieces:
            await self._suffer()
            if self.eval_count > 0:
                due = await self._wait_for_token(due)
            if self._runner.is_dead:
                raise EngineDied(UNEXPECTED_EOF)
            self.eval_count += 1
            self._counters.tokens += 1
            slot.tokens = self.eval_count
            for released in stops.feed(piece):
                yield released
            if stops.has_stopped:
                return
            if self.eval_count == self._order.limit:
                self.done_reason = "length"
                break
        else:
            await self._suffer()
            self.eval_count += 1  # the token that ends the answer counts, though it has no text
        for released in stops.flush():
            yield released

    async def _wait_for_engine(self, slot: Slot) -> None:
        """The engine may still be busy with the request before, which nobody waits for any more."""
        remaining = slot.busy_until - asyncio.get_running_loop().time()
        if remaining > 0:
            self._free_at = slot.busy_until
            await asyncio.sleep(remaining)

    async def _prefill(self) -> None:
        left = self._order.prompt_tokens / self._rates.prefill_tps
        loop = asyncio.get_running_loop()
        while left > 0 and not self._pace.is_instant:
            self._free_at = loop.time() + self._pace.real(min(left, _CANCEL_POLL_S))
            await self._pace.sleep(min(left, _PREFILL_STEP_S))
            left -= _PREFILL_STEP_S
            if self._runner.is_dead:
                raise EngineDied(UNEXPECTED_EOF)

    async def _wait_for_token(self, due: float) -> float:
        """Keep the rate of the engine's clock, not of late wake-ups; returns when this token was due."""
        if self._trickle_s is not None:
            await self._pace.sleep(self._trickle_s)
            return asyncio.get_running_loop().time()
        if self._pace.is_instant:
            if self.eval_count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            return due
        share = decode_share(self._runner.busy_slots)
        due += self._pace.real(1.0 / (self._rates.decode_tps * share))
        self._free_at = due
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        return due

    async def _suffer(self) -> None:
        fault = self._order.fault
        if fault is None or self.eval_count != fault.after_tokens:
            return
        match fault.kind:
            case FaultKind.CRASH:
                self._runner.crash()
            case FaultKind.HANG:
                self._free_at = 0.0
                await asyncio.Event().wait()  # until the client leaves
            case FaultKind.TRICKLE:
                self._trickle_s = fault.seconds
            case kind:
                raise Cut(kind)


def _engine_ns(ns: int) -> int:
    return max(_LEAST_NS, ns // _LEAST_NS * _LEAST_NS)
