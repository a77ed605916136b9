"""Jain's index over clients: service received ÷ max-min fair share, while backlogged.

Between two events nothing changes, so all is exact. In each such interval

* a client is backlogged when it has jobs that have arrived and not ended;
* what it receives are the slots that its jobs hold (slot-seconds: what they keep from others, loads included);
* what it demands are those and one for each of its waiting jobs;
* the capacity is what all receive, and the fair share is the max-min share of it under these demands: who demands little
  gets that, the others share the rest equally.

Received and fair share are summed over the intervals in which the client is backlogged. Demands are bounded by the jobs
there are, and jobs in service count: otherwise a client with one job at a time, which waits a moment for a slot (slots are
not taken away from running jobs), would seem to receive nothing of an endless demand.

A slot cannot be divided: where more clients are backlogged than there are slots, who is served gets more than its share of
that moment, and only long backlogs even that out.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Stay(NamedTuple):
    """One job: when it came, got a slot, ended. Seconds."""

    client: str
    arrived_at: float
    started_at: float
    finished_at: float


def jain(ratios: Iterable[float]) -> float:
    """1 when all are equal, 1/n when one has everything; 1 for nobody."""
    values = list(ratios)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def ratios(stays: Iterable[Stay]) -> dict[str, float]:
    """Received ÷ fair share of each client that was ever backlogged."""
    events: list[tuple[float, str, int, int]] = []  # time, client, change of running, change of waiting
    for stay in stays:
        events.append((stay.arrived_at, stay.client, 0, 1))
        events.append((stay.started_at, stay.client, 1, -1))
        events.append((stay.finished_at, stay.client, -1, 0))
    events.sort(key=lambda event: event[0])
    received: dict[str, float] = {}
    fair: dict[str, float] = {}
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}  # both with the backlogged clients alone
    before = events[0][0] if events else 0.0
    for time, client, more_running, more_waiting in events:
        if time > before:
            for name, share in _shares(running, waiting).items():
                received[name] = received.get(name, 0.0) + running[name] * (time - before)
                fair[name] = fair.get(name, 0.0) + share * (time - before)
            before = time
        running[client] = running.get(client, 0) + more_running
        waiting[client] = waiting.get(client, 0) + more_waiting
        if not running[client] and not waiting[client]:
            del running[client], waiting[client]
    return {name: received[name] / share for name, share in fair.items() if share > 0}


def max_min(demands: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Who demands less than an equal share gets it all, the others share the rest equally."""
    shares = {}
    left = len(demands)
    for name, demand in sorted(demands.items(), key=lambda item: item[1]):
        shares[name] = min(demand, capacity / left)
        capacity -= shares[name]
        left -= 1
    return shares


def _shares(running: Mapping[str, int], waiting: Mapping[str, int]) -> Mapping[str, float]:
    if not any(waiting.values()):
        return running  # all have what they demand
    return max_min({name: running[name] + waiting[name] for name in running}, sum(running.values()))
