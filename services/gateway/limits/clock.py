"""The NATS server's clock, as a gateway can know it: no limit depends on how well gateways' own clocks agree."""

import time
from collections.abc import Callable

from libs.common.bus.connection import Bus
from libs.common.bus.stored import parse_time_ms
from libs.common.contracts.streams import LIMITS
from services.gateway.limits.rolling import Instant

FRESH_S = 5.0  # a server's clock that is set anew is noticed so soon


class ServerClock:
    """Asked when somebody needs it; between two answers the own monotonic clock goes on."""

    def __init__(self, bus: Bus, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._monotonic = monotonic
        self._told_ms = 0  # between `_asked` and `_heard`
        self._asked = self._heard = float("-inf")
        self._connection = -1

    async def now(self) -> Instant:
        """Raises BusError."""
        if self._monotonic() - self._asked > FRESH_S or self._connection != self._bus.connections:
            connection, asked = self._bus.connections, self._monotonic()
            told = parse_time_ms((await self._bus.api(f"STREAM.INFO.KV_{LIMITS}"))["ts"])
            self._told_ms, self._asked, self._heard, self._connection = told, asked, self._monotonic(), connection
        return self.estimate()

    def estimate(self) -> Instant:
        """From the last answer; zero before the first."""
        if not self._told_ms:
            return Instant(0, 0)
        now = self._monotonic()
        # Rounded outwards; the server's own time was cut to a millisecond.
        return Instant(
            self._told_ms + int((now - self._heard) * 1000), self._told_ms + int((now - self._asked) * 1000) + 2
        )
