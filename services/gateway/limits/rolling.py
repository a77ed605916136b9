"""Requests of a rolling minute, leased to gateways. Pure: what a gateway may hand out, and when there is more.

A permit of a lease is spent within LEASE_MS of the lease's time, or never. So all that was spent within any 60 seconds was
leased within the LEASE_MS more, and there never was more than the limit: nobody is let through twice in a minute.
What of a lease was not spent comes back with its holder's next word; a dead holder's whole lease counts until it is old.
"""

from typing import NamedTuple

import msgspec

MINUTE_MS = 60_000
LEASE_MS = 1_000
# By how much the clocks of two NATS servers may differ, when another one becomes leader of the bucket.
SKEW_MS = 250
COUNTS_MS = MINUTE_MS + LEASE_MS + SKEW_MS
LEASES_A_MINUTE = 240  # of a gateway that hands out permits all the time: its lease lasts for a quarter of a second


class Instant(NamedTuple):
    """The NATS server's clock now, as well as a gateway knows it: milliseconds since the epoch."""

    earliest: int
    latest: int


class Wait(NamedTuple):
    """Nothing is free before that time of the server; 0: nobody knows when."""

    until_ms: int


class Spent(NamedTuple):
    """What was spent of leases of one second; `at_ms` is the latest of them."""

    at_ms: int
    permits: int


class Lease(NamedTuple):
    id: str
    permits: int
    at_ms: int


class Rolling(msgspec.Struct, omit_defaults=True):
    """`leases`: each holder's last one. Changed in place by the functions below."""

    spent: list[Spent] = []
    leases: dict[str, Lease] = {}


def forget(rolling: Rolling, now: Instant) -> None:
    old = now.earliest - COUNTS_MS
    rolling.spent = [spent for spent in rolling.spent if spent.at_ms > old]
    rolling.leases = {holder: lease for holder, lease in rolling.leases.items() if lease.at_ms > old}


def counted(rolling: Rolling) -> int:
    return sum(spent.permits for spent in rolling.spent) + sum(lease.permits for lease in rolling.leases.values())


def close(rolling: Rolling, holder: str, lease_id: str, spent: int) -> None:
    """The holder's word that it spent so many of that lease, and will spend no more. Twice is once. A lease that its holder
    does not know, because no ack came for it, was not spent at all."""
    lease = rolling.leases.pop(holder, None)
    if lease is None or lease.id != lease_id or not spent:
        return
    second = lease.at_ms // 1000
    for index, other in enumerate(rolling.spent):
        if other.at_ms // 1000 == second:
            rolling.spent[index] = Spent(max(other.at_ms, lease.at_ms), other.permits + spent)
            return
    rolling.spent.append(Spent(lease.at_ms, spent))


def wanted(limit: int, waiting: int) -> int:
    """How many permits to lease when so many requests wait for one."""
    return max(waiting, limit // LEASES_A_MINUTE)


def lease(rolling: Rolling, holder: str, lease_id: str, *, limit: int, count: int, now: Instant) -> int:
    """How many of `count` the holder gets. It has closed its last lease, and `forget` was called."""
    granted = max(0, min(count, limit - counted(rolling)))
    if granted:
        rolling.leases[holder] = Lease(lease_id, granted, now.latest)
    return granted


def free_at(rolling: Rolling, limit: int) -> int | None:
    """When the next permit can be leased, if nothing that is leased comes back before; None: now, or (limit 0) never."""
    over = counted(rolling) - limit + 1
    for at_ms, permits in sorted(
        [*rolling.spent, *(Spent(lease.at_ms, lease.permits) for lease in rolling.leases.values())]
    ):
        if over <= 0:
            return None
        over -= permits
        if over <= 0:
            return at_ms + COUNTS_MS
    return None


def full_at(rolling: Rolling) -> int | None:
    """When the whole limit is there again; None: it is."""
    times = [spent.at_ms for spent in rolling.spent] + [lease.at_ms for lease in rolling.leases.values()]
    return max(times) + COUNTS_MS if times else None
