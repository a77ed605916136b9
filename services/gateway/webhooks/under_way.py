"""How many deliveries of one client are under way at this gateway: a receiver that is slow must not hold up those of others."""

import contextlib
from collections import Counter
from collections.abc import Iterator

MAX_PER_CLIENT = 10
LATEST_S = 300.0


class Busy(Exception):
    """As many as may be are under way; `after`: seconds until there may be room, more when many wait."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after = after


class UnderWay:
    def __init__(self, limit: int = MAX_PER_CLIENT) -> None:
        self._limit = limit
        self._running: Counter[str] = Counter()
        self._put_off: Counter[str] = Counter()  # since there was room last

    @contextlib.contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Raises Busy."""
        if self._running[client] >= self._limit:
            self._put_off[client] += 1
            raise Busy(min(LATEST_S, 1.0 + self._put_off[client] / self._limit))
        self._running[client] += 1
        try:
            yield
        finally:
            self._running[client] -= 1
            if self._put_off[client] > 0:
                self._put_off[client] -= 1
            for counter in (self._running, self._put_off):
                if not counter[client]:
                    del counter[client]
