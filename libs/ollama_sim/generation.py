"""One answer as it comes out of the engine: waiting for a slot, prefill, one token after the other.

An answer keeps a timetable of the simulated clock: every phase begins where the one before was due to end, and the
durations it reports are those of the timetable. So a late wake-up neither slows the node nor shows in its figures.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator

import msgspec

from libs.ollama_sim.answers import Piece
from libs.ollama_sim.counters import Counters
from libs.ollama_sim.faults import Fault, FaultKind
from libs.ollama_sim.pace import Pace
from libs.ollama_sim.prefixes import reused_tokens
from libs.ollama_sim.rates import decode_share
from libs.ollama_sim.runner import UNEXPECTED_EOF, EngineDied, Runner, Slot
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


class Order(msgspec.Struct, frozen=True):
    """What to generate."""

    pieces: Iterator[Piece]
    prompt_tokens: int
    limit: int | None
    stops: tuple[str, ...] = ()
    fault: Fault | None = None
    prompt: bytes = b""


class Generation:
    """Iterate over `pieces`; afterwards the counts and durations are those of the final line."""

    def __init__(self, runner: Runner, order: Order, pace: Pace, counters: Counters) -> None:
        self._runner = runner
        self._order = order
        self._pace = pace
        self._counters = counters
        self._due = 0.0  # the timetable: when, by the simulated clock, the present step ends
        self._free_at = 0.0  # when the engine would notice that nobody listens
        self._trickle_s: float | None = None
        self._written: list[str] | None = []  # None = the context was shifted, so the slot's text is no prefix
        self.done_reason = "stop"
        self.eval_count = 0
        self.prompt_eval_ns = 0
        self.eval_ns = 0
        self.ended_ns = 0  # simulated clock

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        prompt = b"" if self._pace.is_instant else self._order.prompt
        slot = await self._runner.take_slot(prompt)
        slot.tokens = 0
        try:
            await self._wait_for_engine(slot)
            started = self._due
            await self._prefill(slot, prompt)
            first = self._due
            self.prompt_eval_ns = _engine_ns(first - started)
            async with contextlib.aclosing(self._decode(slot)) as decoded:
                async for piece in decoded:
                    yield piece
            if self._pace.is_instant:
                self._due = self._pace.now()
            await self._pace.sleep_until(self._due)
            self.eval_ns = _engine_ns(self._due - first)
            self.ended_ns = int(self._due * 1e9)
            self._free_at = 0.0
        finally:
            slot.is_in_prefill = False
            slot.busy_until = self._free_at
            if self._written is None:
                slot.held = b""
            elif self._written:
                slot.held += "".join(self._written).encode("utf-8", "surrogatepass")
            self._runner.give_back(slot)

    async def _decode(self, slot: Slot) -> AsyncGenerator[Piece, None]:
        stops = StopFilter(self._order.stops)
        for piece in self._order.pieces:
            await self._suffer()
            if self.eval_count > 0:
                await self._wait_for_token()
            if self._runner.is_dead:
                raise EngineDied(UNEXPECTED_EOF)
            self.eval_count += 1
            self._counters.tokens += 1
            slot.tokens = self.eval_count
            self._keep(piece)
            for released in stops.feed(piece):
                yield released
            if stops.has_stopped:
                return
            if self.eval_count == self._order.limit:
                self.done_reason = "length"
                break
        else:
            await self._suffer()
            if self.eval_count > 0:
                await self._wait_for_token()
            self.eval_count += 1  # the token that ends the answer counts, though it has no text
        for released in stops.flush():
            yield released

    async def _wait_for_engine(self, slot: Slot) -> None:
        """The engine may still be busy with the request before, which nobody waits for any more."""
        self._due = max(self._pace.now(), slot.busy_until)
        self._free_at = slot.busy_until
        if self._pace.now() < self._due:
            await self._pace.sleep_until(self._due)

    async def _prefill(self, slot: Slot, prompt: bytes) -> None:
        """Read what the slot does not know yet; a slot that is left in the middle knows the part that was read."""
        if self._pace.is_instant:
            self._counters.prompt_tokens_read += self._order.prompt_tokens
            self._due = self._pace.now()
            return
        shared = self._runner.reuse(slot, prompt)
        reused = reused_tokens(self._order.prompt_tokens, len(prompt), shared)
        new = self._order.prompt_tokens - reused
        self._counters.prompt_tokens_reused += reused
        self._counters.prompt_tokens_read += new
        slot.is_in_prefill = True
        left = float(new)
        while left > 1e-9:
            rate = self._prefill_tps()
            self._free_at = self._due + min(left / rate, _CANCEL_POLL_S)
            step_s = min(left / rate, _PREFILL_STEP_S)
            self._due += step_s
            if self._pace.is_worth_waiting(self._due) or left / rate <= step_s:
                await self._pace.sleep_until(self._due)
            left -= step_s * rate
            slot.held = prompt[: len(prompt) - int((len(prompt) - shared) * max(0.0, left) / new)]
            if self._runner.is_dead:
                raise EngineDied(UNEXPECTED_EOF)
        slot.is_in_prefill = False

    def _prefill_tps(self) -> float:
        rates = self._runner.rates
        return rates.prefill_tps / (self._runner.prefilling if rates.does_share_prefill else 1)

    async def _wait_for_token(self) -> None:
        """Keep the timetable; tokens that are due earlier than a timer can ring go out together."""
        if self._trickle_s is not None:
            await self._pace.sleep(self._trickle_s)
            self._due = self._pace.now()
            return
        if not self._pace.is_instant:
            self._due += 1.0 / (self._runner.rates.decode_tps * decode_share(self._runner.busy_slots))
            self._free_at = self._due
            if self._pace.is_worth_waiting(self._due):
                await self._pace.sleep_until(self._due)
                return
        if self.eval_count % _YIELD_EVERY == 0:
            await asyncio.sleep(0)

    def _keep(self, piece: Piece) -> None:
        """The slot holds what it has written, as long as the context need not be shifted."""
        if self._written is None or self._pace.is_instant:
            return
        self._written.append(piece.text)
        if self._order.prompt_tokens + self.eval_count > self._runner.num_ctx:
            self._written = None

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


def _engine_ns(seconds: float) -> int:
    return max(_LEAST_NS, round(seconds * 1e6) * _LEAST_NS)
