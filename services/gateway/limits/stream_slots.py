"""How many streams each gateway holds for an account. Pure. A gateway's word counts for HOLDS_MS; it says it anew in time."""

from typing import NamedTuple

from services.gateway.limits.rolling import Instant

HOLDS_MS = 30_000
RENEW_S = 10.0


class Held(NamedTuple):
    streams: int
    at_ms: int


Slots = dict[str, Held]


def forget(slots: Slots, now: Instant) -> None:
    """Drops what silent gateways held."""
    for holder in [holder for holder, held in slots.items() if held.at_ms <= now.earliest - HOLDS_MS]:
        del slots[holder]


def total(slots: Slots) -> int:
    return sum(held.streams for held in slots.values())


def take(slots: Slots, holder: str, limit: int, now: Instant) -> bool:
    """One more for this gateway, if there is one. `forget` was called."""
    if total(slots) >= limit:
        return False
    hold(slots, holder, slots.get(holder, Held(0, 0)).streams + 1, now)
    return True


def hold(slots: Slots, holder: str, count: int, now: Instant) -> None:
    """What this gateway has open, whatever it said before."""
    if count:
        slots[holder] = Held(count, now.latest)
    else:
        slots.pop(holder, None)
