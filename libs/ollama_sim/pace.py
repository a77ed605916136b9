"""How simulated seconds pass: divided by the time scale, or not at all."""

import asyncio

import msgspec


class Pace(msgspec.Struct, frozen=True):
    scale: float = 1.0
    is_instant: bool = False

    async def sleep(self, seconds: float) -> None:
        """Let simulated seconds pass; other tasks run even when they are none."""
        await asyncio.sleep(self.real(seconds))

    def real(self, seconds: float) -> float:
        return 0.0 if self.is_instant else max(0.0, seconds) / self.scale
