"""How long a reader bears silence before it looks again."""

import asyncio
import math
import time
from collections.abc import Callable

AFTER_FAILURE_S = 0.5


class Patience:
    """`on_end` is called when silence has lasted, or a failure is to be tried again, also while nobody is in `wait`.

    One timer goes on while tokens come: a time-out of its own for each wait would cost more than the token.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._ends_at = 0.0  # monotonic
        self._again_at = math.inf  # when what failed is tried again, whatever comes in between
        self._news = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None

    def last(self, seconds: float) -> None:
        """From now on."""
        self._ends_at = time.monotonic() + seconds

    def try_again(self) -> None:
        """Something failed: soon once more."""
        self._again_at = min(self._again_at, time.monotonic() + AFTER_FAILURE_S)
        if self.timer is not None:
            self.timer.cancel()
            self._arm()

    def news(self) -> None:
        """Ends a `wait`."""
        self._news.set()

    async def wait(self) -> None:
        """Until there is news, or patience ends."""
        self._news.clear()
        if self.timer is None:
            self._arm()
        await self._news.wait()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _arm(self) -> None:
        delay = max(0.0, min(self._ends_at, self._again_at) - time.monotonic())
        self.timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self.timer = None
        if time.monotonic() < min(self._ends_at, self._again_at):
            self._arm()
            return
        self._again_at = math.inf
        self._on_end()
        self._news.set()
