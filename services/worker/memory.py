"""What a boot remembers of the runs it was asked for, so that it runs a (job, epoch) at most once. Pure.

It remembers for an hour, and refuses bindings that are older than its memory: those it may have run and forgotten.
"""

from collections import OrderedDict

from libs.common.contracts.control import RunAnswer
from libs.common.contracts.subjects import JobKey

RunKey = tuple[JobKey, int]

REMEMBER_MS = 3600 * 1000
MAX_REMEMBERED = 200_000  # about 60 runs a second for an hour; then the memory is shorter, and says so
CLOCK_ERROR_MS = 10_000  # our sight of the server's clock lags a little; a forgotten run must not look newer than it is


class Memory:
    """Times are the server's. A new memory reaches back for ever: no binding can name this boot and be older than it."""

    def __init__(self) -> None:
        self._reaches_back_to = 0
        self._ended: OrderedDict[RunKey, tuple[int, RunAnswer]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ended)

    def remember(self, key: RunKey, answer: RunAnswer, now_ms: int) -> None:
        """How a run ended; the first ending stays."""
        if key not in self._ended:
            self._ended[key] = (now_ms, answer)
        self._forget(now_ms)

    def recall(self, key: RunKey) -> RunAnswer | None:
        found = self._ended.get(key)
        return found[1] if found else None

    def too_old(self, bound_at_ms: int, now_ms: int) -> bool:
        """A binding with that server timestamp may have been run and forgotten."""
        self._forget(now_ms)
        return bound_at_ms < self._reaches_back_to

    def _forget(self, now_ms: int) -> None:
        while self._ended:
            key, (ended_ms, _) = next(iter(self._ended.items()))
            if now_ms - ended_ms <= REMEMBER_MS and len(self._ended) <= MAX_REMEMBERED:
                break
            del self._ended[key]
            self._reaches_back_to = max(self._reaches_back_to, ended_ms + CLOCK_ERROR_MS)
