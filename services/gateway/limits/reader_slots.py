"""Streams that are read over NATS. Their tokens come from NATS itself, so no gateway holds them: each `read`, at whichever
gateway, says how long its stream counts. Pure.
"""

from enum import Enum

from services.gateway.limits.rolling import Instant

# After a read's own wait. A reader asks again every 5 s while tokens come, every 10 to 20 s while its job waits.
HOLDS_MS = 30_000
WORTH_MS = 5_000  # a stream that goes on is not written for less: who asks more often writes no more often
MAX = 2_000  # of one account, whatever its limit: about 120 kB of a ledger that is written with every change


class Place(Enum):
    TAKEN = "taken"
    KEPT = "kept"
    FULL = "full"


Readers = dict[str, int]  # until when each one counts, in milliseconds of the server's clock


def name(job: str, reader: str) -> str:
    return f"{job}.{reader}" if reader else job


def forget(readers: Readers, now: Instant) -> None:
    """Drops those that did not go on."""
    for reader in [reader for reader, until_ms in readers.items() if until_ms <= now.earliest]:
        del readers[reader]


def take(readers: Readers, reader: str, wait_ms: int, room: int, now: Instant) -> tuple[Place, bool]:
    """This stream begins or goes on. And: did that change anything? `room`: what the limit leaves to readers. Who is in stays
    in, also when the limit was lowered. `forget` was called."""
    until_ms = now.latest + wait_ms + HOLDS_MS
    if reader in readers:
        is_worth_it = until_ms - readers[reader] >= WORTH_MS
        if is_worth_it:
            readers[reader] = until_ms
        return Place.KEPT, is_worth_it
    if len(readers) >= min(room, MAX):
        return Place.FULL, False
    readers[reader] = until_ms
    return Place.TAKEN, True


def leave(readers: Readers, reader: str) -> bool:
    """Did that change anything?"""
    return readers.pop(reader, None) is not None
