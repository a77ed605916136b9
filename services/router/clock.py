"""The NATS server's time: deadlines count from its timestamps, and it ends records by its own clock (DESIGN §3)."""

import time


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
