"""What clients have had of late, and who had more than their share. Pure.

Shares are counted in tokens over the client's weight, as virtual token counters do (Sheng et al., OSDI 2024), but the past fades,
and a client within `TOLERANCE` of its share counts as level: always serving the smallest counter is fair to the token, and makes
everybody who asks at random wait far longer than first come, first served (ADR 8).
"""

import math

TOLERANCE = 0.5  # of a share: chance alone brings that much within the memory of `FADES_S`
FADES_S = 120.0  # after so long what a client had counts a third
LEAST = 1.0  # tokens: who has had next to nothing is no measure

Clients = frozenset[str]
NOBODY: Clients = frozenset()


class Shares:
    def __init__(self) -> None:
        self.over: dict[str, int] = {}  # clients that had more than their share, by how many tolerances
        self._had: dict[str, float] = {}  # tokens over weight, by client, in units that grow as the past fades
        self._fades_from = 0.0  # seconds: when such a unit was one token
        self._active: dict[str, float] = {}  # `_had` of those who wait or run

    def clear(self) -> None:
        """Nobody waits or runs; what clients have had so far stays."""
        self._active.clear()

    def waits(self, client: str) -> Clients:
        """Its first job does. Gives those whose place among the others has changed."""
        self._active[client] = self._had.get(client, 0.0)
        return self._see_who_is_over()

    def runs(self, client: str) -> None:
        """One of its jobs will be charged for."""
        self._active.setdefault(client, 0.0)  # the charge says how much

    def leaves(self, client: str) -> None:
        """It neither waits nor runs any more."""
        del self._active[client]

    def charge(self, client: str, units: float) -> Clients:
        """Less than nothing: it is given back. Gives those whose place among the others has changed."""
        had = self._had[client] = max(0.0, self._had.get(client, 0.0) + units)
        if client in self._active:
            self._active[client] = had
        return self._see_who_is_over()

    def unit(self, now: float) -> float:
        """What a token counts that was used at that moment, beside those of before and after."""
        if now - self._fades_from > 50 * FADES_S:  # before the units grow out of all numbers
            shrunk = math.exp((self._fades_from - now) / FADES_S)
            self._had = {c: had * shrunk for c, had in self._had.items() if had * shrunk > 1e-3}
            self._fades_from = now
            self._active = {c: self._had.get(c, 0.0) for c in self._active}
        return math.exp((now - self._fades_from) / FADES_S)

    def _see_who_is_over(self) -> Clients:
        had, others = self._active, len(self._active) - 1
        over = {}
        if others > 0:
            # Against the mean of the others: of two clients one would need three times the other's to be half over their mean.
            total = sum(had.values())
            nearly = 0.99 * total * (1 + TOLERANCE) / (1 + TOLERANCE + others)  # who has less has no tolerance to lose
            if max(had.values()) > nearly:
                for client in [c for c, units in had.items() if units > nearly]:
                    mean = max(total - had[client], LEAST) / others
                    if (n := int((had[client] / mean - 1) / TOLERANCE)) > 0:
                        over[client] = n
        if over == self.over:
            return NOBODY
        before, self.over = self.over, over
        return frozenset(client for client in before.keys() | over.keys() if before.get(client) != over.get(client))
