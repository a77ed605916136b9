"""How many may read along at once, here: a table of open watches with a bound for each client and one for all.

A watch costs three subscriptions and up to some megabytes while its reader is slow; who opens them is outside our walls.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

from libs.common.contracts.faults import Code, failed

MAX_READERS = 20_000  # at 20 kB each (DESIGN §6) 400 MB
MAX_READERS_PER_CLIENT = 10_000  # half: one client alone shuts nobody out
RETRY_AFTER_S = 5.0


class Readers:
    def __init__(self, *, limit: int = MAX_READERS, per_client: int = MAX_READERS_PER_CLIENT) -> None:
        self._limit = limit
        self._per_client = per_client
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, client: str) -> Iterator[None]:
        """Raises Failed: OVERLOADED."""
        if self._open[client] >= self._per_client:
            message = f"{self._per_client} streams and waits of this client are open at this gateway; close some"
            raise failed(Code.OVERLOADED, message, retry_after_s=RETRY_AFTER_S)
        if self._open.total() >= self._limit:
            message = "this gateway has as many open streams as it can bear; try again, or another gateway"
            raise failed(Code.OVERLOADED, message, retry_after_s=RETRY_AFTER_S)
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]
