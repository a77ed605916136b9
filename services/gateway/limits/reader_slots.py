"""Streams that are read over NATS. Their tokens come from NATS itself, so no gateway holds them: each `read`, at whichever
gateway, says how long its stream counts. Pure.
"""

from services.gateway.limits.rolling import Instant

# After a read's own wait. A reader asks again every 5 s while tokens come, every 10 to 20 s while its job waits.
HOLDS_MS = 30_000
WORTH_MS = 5_000  # a stream that goes on is not written for less: who asks more often writes no more often
MAX = 2_000  # of one account, whatever its limit: about 120 kB of a ledger that is written with every change

Readers = dict[str, int]  # until when each one counts, in milliseconds of the server's clock


def name(job: str, reader: str) -> str:
    return f"{job}.{reader}" if reader else job


def forget(readers: Readers, now: Instant) -> None:
    """Drops those that did not go on."""
    for reader in [reader for reader, until_ms in readers.items() if until_ms <= now.earliest]:
        del readers[reader]


def keep(readers: Readers, reader: str, wait_ms: int, now: Instant) -> tuple[bool, bool]:
    """Is this stream open, so that it goes on? And: did that change anything? `forget` was called."""
    if reader not in readers:
        return False, False
    until_ms = now.latest + wait_ms + HOLDS_MS
    if until_ms - readers[reader] < WORTH_MS:
        return True, False
    readers[reader] = until_ms
    return True, True


def take(readers: Readers, reader: str, wait_ms: int, room: int, now: Instant) -> tuple[bool, bool]:
    """Is it open now? And: did that change anything? `room`: what the limit leaves to readers. Who is in stays in, also when
    the limit was lowered. `forget` was called."""
    if reader in readers:
        return keep(readers, reader, wait_ms, now)
    if len(readers) >= min(room, MAX):
        return False, False
    readers[reader] = now.latest + wait_ms + HOLDS_MS
    return True, True


def leave(readers: Readers, reader: str) -> bool:
    """Did that change anything?"""
    return readers.pop(reader, None) is not None
