"""How often each model is asked for: arrivals that fade with time. Pure."""

import math
from collections.abc import Iterable

FADES_S = 300.0  # after so long an arrival counts a third
FAST_S = 50.0
DOUBT = 4.0  # variances by which the quick count must differ from the slow one to be believed half
MIN_WATCHED_S = 10.0


class Demand:
    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float, float]] = {}  # faded counts, as of (seconds)
        self._since: float | None = None  # the first of all

    def asked(self, model: str, now: float) -> None:
        if self._since is None:
            self._since = now
        self._counts[model] = (self._count(model, now, 0) + 1.0, self._count(model, now, 1) + 1.0, now)

    def per_second(self, model: str, now: float) -> float:
        """The quick count is believed as far as it differs from the slow one by more than chance does; else it only adds noise.
        Both are over the time that was really watched."""
        watched = max(MIN_WATCHED_S, now - (now if self._since is None else self._since))
        slow = self._count(model, now, 0) / (FADES_S * (1 - math.exp(-watched / FADES_S)))
        window = FAST_S * (1 - math.exp(-watched / FAST_S))
        fast = self._count(model, now, 1) / window
        off = (fast - slow) ** 2
        chance = max(fast, slow, 1e-9) / (2 * window)  # the variance of a rate that was counted so
        return slow + (fast - slow) * off / (off + DOUBT * chance)

    def models(self) -> Iterable[str]:
        return self._counts

    def chance(self, model: str, now: float, within_s: float) -> float:
        """That it is asked for within so many seconds, were arrivals independent of each other."""
        return 1.0 - math.exp(-self.per_second(model, now) * within_s)

    def _count(self, model: str, now: float, which: int) -> float:
        counts = self._counts.get(model, (0.0, 0.0, now))
        return counts[which] * math.exp(-max(0.0, now - counts[2]) / (FADES_S, FAST_S)[which])
