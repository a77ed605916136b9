"""The node's clock: simulated seconds, which a time scale makes shorter in real time, or which do not pass at all.

Everything the node reports is in simulated seconds; only moments (`created_at`, `expires_at`) are real.
"""

import asyncio
import time

import msgspec

_WORTH_A_TIMER_S = 0.002  # real; timers are no finer than a millisecond, and work that is due earlier is done at once


class Pace(msgspec.Struct, frozen=True):
    scale: float = 1.0
    is_instant: bool = False  # work takes no time; the clock itself then runs as a real one

    @property
    def speed(self) -> float:
        """Simulated seconds in a real one."""
        return 1.0 if self.is_instant else self.scale

    def now(self) -> float:
        """Simulated seconds since some moment; only differences mean anything."""
        return time.monotonic() * self.speed

    def now_ns(self) -> int:
        return int(time.monotonic_ns() * self.speed)

    async def sleep(self, seconds: float) -> None:
        """Let simulated seconds of work pass; other tasks run even when they are none."""
        await asyncio.sleep(self.real(seconds))

    async def sleep_until(self, due: float) -> None:
        """Wait for a moment of the simulated clock: targets that are sums do not add up the timers' errors."""
        await asyncio.sleep(max(0.0, due - self.now()) / self.speed)

    def is_worth_waiting(self, due: float) -> bool:
        """Whether a moment is so far away that a timer can hit it."""
        return due - self.now() > _WORTH_A_TIMER_S * self.speed

    def real(self, seconds: float) -> float:
        """How long simulated work takes here."""
        return 0.0 if self.is_instant else max(0.0, seconds) / self.scale

    def real_lifetime(self, seconds: float) -> float:
        """How long something idle stays; an instant node keeps its models as long as a real one."""
        return seconds / self.speed
