"""The NATS server's time: deadlines count from its timestamps, and it ends records by its own clock (DESIGN §3)."""

import asyncio
import time

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.stored import parse_time_ms
from libs.common.contracts.streams import JOBS

log = structlog.get_logger()

LOOK_S = 30.0


class ServerClock:
    """Until the server's time was seen once, this machine's own clock has to do."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None  # of this process's monotonic clock

    def learn(self, server_ms: int, at: float) -> None:
        """The server's time was `server_ms` when the monotonic clock stood at `at` seconds."""
        self._ahead_ms = server_ms - at * 1000

    def now_ms(self) -> int:
        if self._ahead_ms is None:
            return int(time.time() * 1000)
        return int(self._ahead_ms + time.monotonic() * 1000)

    async def look(self, bus: Bus) -> int:
        """Ask the server; the last sequence of JOBS comes with it. Raises BusError."""
        asked_at = time.monotonic()
        info = await bus.api(f"STREAM.INFO.{JOBS}")
        self.learn(parse_time_ms(info["ts"]), (asked_at + time.monotonic()) / 2)
        last: int = info["state"]["last_seq"]
        return last

    async def keep(self, bus: Bus) -> None:
        """Endless."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look(bus)
            except BusError as error:
                log.debug("clock.unknown", error=str(error))
