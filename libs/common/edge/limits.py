"""What one connection may cost, and the decision that it costs too much. Pure. Times are seconds, sizes bytes.

The defaults are those of security-and-clients.md §A2.4. uvicorn has none of these limits: half a request header stays open
for ever.
"""

from enum import StrEnum
from typing import NamedTuple


class HttpLimits(NamedTuple):
    header_timeout: float = 10.0  # from the connection, or the first byte of a later request, to the end of its headers
    max_header: int = 32 * 1024  # request line, headers and trailers together
    max_fields: int = 100
    max_target: int = 8 * 1024  # path and query
    body_idle_timeout: float = 30.0  # between two pieces of a body
    body_timeout: float = 600.0  # for all of it: 64 MiB at 1 Mbit/s
    stalled_timeout: float = 30.0  # for a client that takes nothing, or next to nothing, of what waits for it
    min_rate: float = 1000.0  # bytes/s, both ways; 0: none
    linger: float = 2.0  # for who was refused to take the answer; a close at once would destroy it on its way
    keep_alive: float = 75.0  # between requests; longer than common proxies keep an idle connection
    max_connections: int = 20_000
    max_connections_per_address: int = 10_000  # 0: no limit. Half of all: one address alone shuts nobody out
    max_pipelined: int = 16  # requests that wait behind the one that is being answered
    max_waiting: int = 256 * 1024 * 1024  # bytes of answers for all slow readers together

    @property
    def look_every(self) -> float:
        shortest = min(self.header_timeout, self.body_idle_timeout, self.stalled_timeout)
        return min(1.0, max(0.01, shortest / 5))


class Late(StrEnum):
    HEAD = "header_timeout"
    BODY_IDLE = "body_idle"
    BODY_SLOW = "body_slow"
    BODY_LONG = "body_timeout"


class Crowded(StrEnum):
    TOLD = "told"  # its request is answered, with a refusal
    CLOSED = "closed"  # not even that


RATE_GRACE_S = 10.0  # before the rate of a body counts


def head_is_late(limits: HttpLimits, began: float, now: float) -> bool:
    return now - began >= limits.header_timeout


def body_is_late(limits: HttpLimits, began: float, last: float, size: int, now: float) -> Late | None:
    """`size` bytes of a body came since `began`, the last of them at `last`."""
    took = now - began
    if now - last >= limits.body_idle_timeout:
        return Late.BODY_IDLE
    if took >= limits.body_timeout:
        return Late.BODY_LONG
    grace = min(RATE_GRACE_S, limits.body_idle_timeout)
    return Late.BODY_SLOW if took >= grace and size < limits.min_rate * took else None


def is_stalled(limits: HttpLimits, waited_then: int, waits_now: int, since: float, now: float) -> bool | None:
    """Of `waited_then` bytes, `waits_now` still wait to be taken. None: too early to say."""
    took = now - since
    if took < limits.stalled_timeout:
        return None
    return waited_then - waits_now < min(waited_then, max(1.0, limits.min_rate * took))


def is_crowded(count: int, limit: int) -> Crowded | None:
    """`count`: with the newcomer. Some beyond the limit are told why; if they do not listen, the rest is closed."""
    if not limit or count <= limit:
        return None
    return Crowded.TOLD if count <= limit + max(16, limit // 20) else Crowded.CLOSED
