"""The NATS server's time, as far as this process can know it: bindings are dated by it."""

import time


class ServerClock:
    """Until the server's time was seen once, this machine's own clock has to do."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None  # of this process's monotonic clock

    def learn(self, server_ms: int) -> None:
        """`server_ms` was the server's time at some moment before now: of several sights the latest is the best."""
        ahead = server_ms - time.monotonic() * 1000
        self._ahead_ms = ahead if self._ahead_ms is None else max(self._ahead_ms, ahead)

    def now_ms(self) -> int:
        if self._ahead_ms is None:
            return int(time.time() * 1000)
        return int(self._ahead_ms + time.monotonic() * 1000)
