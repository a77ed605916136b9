"""The limits of clients and keys, right over all gateways together: every answer is one compare-and-set on the account's
ledger in NATS (docs/limits.md). Who has no limits costs nothing here.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable

import structlog

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.clients import Account, Principal
from libs.common.contracts.faults import Failed
from libs.common.contracts.streams import LIMITS
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal
from services.gateway.limits import answers, ledger, metrics
from services.gateway.limits.clock import ServerClock
from services.gateway.limits.keeper import Keeper

log = structlog.get_logger()

LOOK_S = 1.0
FORGET_S = 120.0  # an account that nobody used for so long; its ledger stays in NATS


class Limiter:
    """`run` must be running."""

    def __init__(self, bus: Bus, keyed: Callable[[str, str, str], JobKey]) -> None:
        """`keyed`: the job of a client, a route and an Idempotency-Key."""
        self._keyed = keyed
        self._journal = Journal(bus)
        self._bucket = Bucket(bus, LIMITS)
        self._clock = ServerClock(bus)
        self._holder = secrets.token_hex(6)
        self._keepers: dict[str, Keeper] = {}

    async def run(self) -> None:
        """Tells the ledgers what is open here, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for keeper in list(self._keepers.values()):
                with contextlib.suppress(BusError):  # the next look says it
                    await keeper.say_streams()
                if keeper.is_idle and time.monotonic() - keeper.used_at > FORGET_S:
                    del self._keepers[keeper.account]

    async def admit(self, principal: Principal, *, repeats: tuple[str, str] | None = None) -> None:
        """Counts one request. `repeats`: the route and Idempotency-Key that it comes with: if that job stands already, it is
        given whatever the limits say. Raises Failed: RATE_LIMITED. Raises BusError."""
        try:
            await self._count(principal)
        except Failed as refused:
            if repeats is None or not await self._stands(principal.client, *repeats):
                metrics.refusals.labels("requests").inc()
                raise refused from None

    async def _stands(self, client: str, route: str, key: str) -> bool:
        entry = await self._journal.newest(self._keyed(client, route, key))
        return entry is not None and entry.facts is not None

    async def _count(self, principal: Principal) -> None:
        for account in _narrow_first(principal):
            if account.limits.requests_per_minute:
                waiting = await self._keeper(principal, account).take(account.limits)
                if waiting is not None:
                    fault = answers.too_many_requests(account.name, account.limits, waiting, self._clock.estimate())
                    raise Failed(fault)

    def headers(self, principal: Principal) -> answers.Headers:
        """How much is left, as this gateway last heard."""
        if not principal.accounts:
            return []
        now, states = self._clock.estimate(), []
        for account in principal.accounts:
            keeper = self._keepers.get(account.name)
            if keeper is not None and keeper.ledger is not None:
                states.append((account.limits, ledger.draft(keeper.ledger, now), keeper.left))
        return answers.headers(states, now)

    def _keeper(self, principal: Principal, account: Account) -> Keeper:
        found = self._keepers.get(account.name)
        if found is None:
            found = Keeper(self._bucket, self._clock, account.name, principal.client, self._holder)
            self._keepers[account.name] = found
        return found


def _narrow_first(principal: Principal) -> list[Account]:
    """A key before its client: what one key is refused for must not cost the others anything."""
    return sorted(principal.accounts, key=lambda account: not account.name.startswith("key."))
