"""When a process that died is started again: after half a second, doubling to ten."""

FIRST_S = 0.5
LONGEST_S = 10.0
STEADY_S = 30.0  # who ran so long has earned the first delay again


def next_delay(previous: float | None, *, ran_s: float) -> float:
    """`previous`: the delay before the run that just ended, None for a first run."""
    if previous is None or ran_s >= STEADY_S:
        return FIRST_S
    return min(LONGEST_S, previous * 2)
