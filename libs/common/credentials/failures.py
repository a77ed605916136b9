"""How many failed authentications are too many: pure functions of a record and the time (GCRA).

Of an address and of a name (a client's, a key's) each failure moves a point in time, the *theoretical arrival time*, one
interval ahead; while it is further ahead of now than a burst, there were too many. One number says it all, and it is nothing
once that time has passed, so the record may expire then.

Counted are failures only: who succeeds costs no write. What is told to whoever fails is the same for names that exist and
names that do not, so names that do not are counted, too, under a keyed hash: they may be secrets in the wrong field.
"""

import ipaddress
import math
from typing import NamedTuple

from libs.common.contracts.codec import Contract, Decoder


class Rate(NamedTuple):
    """So many a minute, and as many at once. 0: any number."""

    per_minute: int

    @property
    def interval_s(self) -> float:
        return 60.0 / self.per_minute if self.per_minute else 0.0


ADDRESS_RATE, NAME_RATE = Rate(10), Rate(5)


class Arrival(Contract, frozen=True, kw_only=True):
    """`tat`: the theoretical arrival time, seconds since the epoch."""

    tat: float


decode_arrival = Decoder(Arrival)


def wait_s(tat: float, rate: Rate, now: float) -> float:
    """How long until one more failure would be within the rate; 0 when it is now."""
    if not rate.per_minute:
        return 0.0
    return max(0.0, tat - now - (rate.per_minute - 1) * rate.interval_s)


def after_failures(tat: float, rate: Rate, now: float) -> float:
    """After one more. Never further ahead than one interval beyond a burst: who keeps failing waits no longer for that."""
    return min(max(tat, now) + rate.interval_s, now + rate.per_minute * rate.interval_s)


class Failures(NamedTuple):
    """What failures do to a `tat` that is learned of later, when others have moved it, too: it moves by `added_s`, but to no
    less than `least` and no more than `most`. One does that, and so do several in a row: their times need not be kept."""

    added_s: float = 0.0
    least: float = 0.0
    most: float = math.inf

    def and_one(self, rate: Rate, now: float) -> "Failures":
        least, most = (after_failures(bound, rate, now) for bound in (self.least, self.most))
        return Failures(self.added_s + rate.interval_s, least, most)

    def moved(self, tat: float) -> float:
        return min(max(tat + self.added_s, self.least), self.most)


def address_group(address: str) -> str:
    """Whose failures count together: an IPv4 address, or the /64 that one host of IPv6 has at least."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
