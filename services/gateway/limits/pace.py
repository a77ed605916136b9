"""How fast one stream may be read here: its reads are no requests of the client's limit, so something else has to bound them.
A table without I/O; each gateway has its own.
"""

READS_PER_S = 10.0  # a reader asks every few seconds, or after each 256 kB when it comes late
BURST = 100
MAX_KNOWN = 10_000


class Pace:
    """The generic cell rate algorithm: of each stream the time at which its reads would be through at READS_PER_S."""

    def __init__(self) -> None:
        self._through_at: dict[str, float] = {}

    def late_s(self, stream: str, now: float) -> float:
        """0: this read may come now, and counts; else after so many seconds. `now`: monotonic."""
        through_at = max(now, self._through_at.get(stream, now)) + 1 / READS_PER_S
        if (late_s := through_at - now - BURST / READS_PER_S) > 0:
            return late_s
        if len(self._through_at) >= MAX_KNOWN and stream not in self._through_at:
            self._through_at = {name: at for name, at in self._through_at.items() if at > now}
        self._through_at[stream] = through_at
        return 0.0
