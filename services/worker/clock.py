"""The NATS server's time, as far as this process can know it: bindings are dated by it."""

import time
from collections.abc import Callable

WINDOW_S = 600.0  # two clocks of machines drift apart by seconds a week, so that old sights must not count for ever


class ServerClock:
    """Until the server's time was seen once, this machine's own clock has to do."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._window_began = 0.0
        self._ahead_ms: float | None = None  # of this process's monotonic clock: the best sight of this window
        self._ahead_before_ms: float | None = None  # and of the window before

    def learn(self, server_ms: int) -> None:
        """`server_ms` was the server's time at some moment before now: of several sights the latest is the best."""
        now = self._monotonic()
        ahead = server_ms - now * 1000
        if self._ahead_ms is None or now - self._window_began >= WINDOW_S:
            self._ahead_before_ms, self._ahead_ms, self._window_began = self._ahead_ms, ahead, now
        else:
            self._ahead_ms = max(self._ahead_ms, ahead)

    def now_ms(self) -> int:
        if self._ahead_ms is None:
            return int(self._wall() * 1000)
        before = self._ahead_before_ms
        ahead = self._ahead_ms if before is None else max(self._ahead_ms, before)
        return int(ahead + self._monotonic() * 1000)
