"""What a revocation ends here: open requests, the unfinished jobs that were submitted with what was revoked, and of a client
that was deleted its webhooks.

Every gateway does this for itself; a job that several of them cancel is cancelled once.
"""

import asyncio

import structlog

from libs.common.bus.failures import BusError
from libs.common.contracts.faults import Failed
from libs.common.contracts.jobs import Binding, Submission
from libs.common.contracts.subjects import JobKey
from services.gateway import metrics
from services.gateway.credentials import Credentials
from services.gateway.job_service import JobService
from services.gateway.listing import unfinished
from services.gateway.sessions import Session, Sessions

log = structlog.get_logger()

FRESH_LOOK_S = 0.05
# A submit that was under way at another gateway, which hears of revocations a little later, is found by the second look.
SECOND_LOOK_S = 2.0
RETRY_S = 1.0
AT_ONCE = 4  # clients whose jobs are gone through at the same time


class Revoking:
    def __init__(self, credentials: Credentials, sessions: Sessions, service: JobService) -> None:
        self._credentials = credentials
        self._sessions = sessions
        self._service = service
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as sweeps:
            while True:
                await self._credentials.changes.wait()
                await self._fresh()
                clients = self._credentials.changes.take()
                if ended := self._sessions.end_lapsed(clients, self._lapsed):
                    metrics.revoked.inc(ended)
                    log.info("credentials.revoked", requests=ended)
                for client in self._credentials.with_lapses() if clients is None else clients:
                    sweeps.create_task(self._sweep_twice(client))

    async def _fresh(self) -> None:
        """After an absence half of the picture would end innocent streams."""
        while not self._credentials.fresh:  # noqa: ASYNC110  # freshness comes and goes with the clock, nobody tells
            await asyncio.sleep(FRESH_LOOK_S)

    def _lapsed(self, session: Session) -> str | None:
        who, scope = session.principal, session.scope
        lapsed = self._credentials.lapsed(who.client, who.credential, who.issued_at, kid=who.kid)
        if lapsed is None and scope is not None and not self._credentials.has(who, scope):
            return f"the scope {scope} was taken away"
        return lapsed

    async def _sweep_twice(self, client: str) -> None:
        await self._sweep(client)
        await asyncio.sleep(SECOND_LOOK_S)
        await self._sweep(client)

    async def _sweep(self, client: str) -> None:
        while True:
            try:
                async with self._gate:
                    await self._cancel_lapsed(client)
                    if self._credentials.deleted(client) and self._credentials.fresh:
                        await self._service.webhooks.registry.forget(client)
                return
            except (Failed, BusError) as error:  # NATS is away
                log.warning("revoking.retry", client=client, error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _cancel_lapsed(self, client: str) -> None:
        """Raises Failed (UNAVAILABLE)."""
        async for job, entry in unfinished(self._service.bus, client):
            facts = entry.facts
            submission = facts.job if isinstance(facts, Binding) else facts
            created_ms = facts.created_ms if isinstance(facts, Binding) else entry.at_ms
            if not isinstance(submission, Submission) or not submission.credential:
                continue
            # When its token was issued, by the clock that also stamped the revocation. Jobs of before that was kept: when
            # they were stored, by another clock.
            at = submission.issued_at or created_ms / 1000
            reason = self._credentials.lapsed(client, submission.credential, at, kid=submission.kid)
            if reason is not None and self._credentials.fresh:
                await self._service.mark_cancelled(JobKey(client, job), entry, reason)
