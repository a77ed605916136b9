"""How often each model is asked for: arrivals that fade with time, and all at once when what is asked for has changed. Pure.

Fading alone is too slow where popularity shifts, and a quick count is off by half by chance. So the last seconds are compared
with what came before: if the models' shares differ by more than chance explains (likelihood ratio, G-test), what came before is
forgotten. That more or less of everything is asked for (a burst) is no change: copies are placed by shares.
"""

import math
from collections.abc import Iterable, Mapping

FADES_S = 300.0  # after so long an arrival counts a third
MIN_WATCHED_S = 10.0
STEP_S = 5.0  # arrivals are remembered in steps of so long,
STEPS = (2, 4, 8, 16)  # and so many of the newest are compared with what came before
UNSEEN = 0.5  # arrivals that a model has had since a change, of which none was seen
SURE = 6.0  # chance alone would have to be so lucky: once in exp(this), at most


class Demand:
    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}  # faded, as of (seconds)
        self._since = -math.inf  # all that counts came since
        self._steps: list[tuple[float, dict[str, int]]] = []  # of the newest arrivals: when each began

    def asked(self, model: str, now: float) -> None:
        if not self._steps:
            self._since = now
            self._steps.append((now, {}))
        elif now - self._steps[-1][0] >= STEP_S:
            self._forget(now)
            self._steps = [*self._steps[1 - STEPS[-1] :], (now, {})]
        newest = self._steps[-1][1]
        newest[model] = newest.get(model, 0) + 1
        self._counts[model] = (self._count(model, now) + 1.0, now)

    def per_second(self, model: str, now: float) -> float:
        """Over the time that was really watched."""
        known = self._counts.get(model)
        if known is None:
            return 0.0
        watched = max(MIN_WATCHED_S, now - self._since)
        return self._count(model, now) / (FADES_S * (1 - math.exp(-watched / FADES_S)))

    def models(self) -> Iterable[str]:
        return self._counts

    def chance(self, model: str, now: float, within_s: float) -> float:
        """That it is asked for within so many seconds, were arrivals independent of each other."""
        return 1.0 - math.exp(-self.per_second(model, now) * within_s)

    def _count(self, model: str, now: float) -> float:
        count, at = self._counts.get(model, (0.0, now))
        return count * math.exp(-max(0.0, now - at) / FADES_S)

    def _forget(self, now: float) -> None:
        """What came before a change."""
        whole = {model: self._count(model, now) for model in self._counts}
        for steps in STEPS:
            kept = self._steps[-steps:]
            if len(self._steps) <= steps and self._since >= kept[0][0]:
                return
            recent: dict[str, float] = {}
            for began, arrivals in kept:
                for model, count in arrivals.items():
                    recent[model] = recent.get(model, 0.0) + count * math.exp(-max(0.0, now - began) / FADES_S)
            if _differ(recent, whole):
                self._counts = {model: (recent.get(model, min(UNSEEN, count)), now) for model, count in whole.items()}
                self._since = kept[0][0]
                return


def _differ(recent: Mapping[str, float], whole: Mapping[str, float]) -> bool:
    """Are the shares of these arrivals others than those of all the rest?"""
    before = {model: max(0.0, count - recent.get(model, 0.0)) for model, count in whole.items()}
    new, old = sum(recent.values()), sum(before.values())
    if new <= 0 or old <= 0:
        return False
    ratio, models = 0.0, 0
    for model, earlier in before.items():
        later = recent.get(model, 0.0)
        both = later + earlier
        if both < 0.5:
            continue  # long ago
        models += 1
        for count, share in ((later, new), (earlier, old)):
            if count > 0:
                ratio += 2 * count * math.log(count * (new + old) / (both * share))
    free = max(1, models - 1)
    return ratio > free + 2 * math.sqrt(SURE * free) + 2 * SURE  # Laurent and Massart's bound of chi-square's tail
