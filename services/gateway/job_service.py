"""Jobs as their owners handle them, whichever door they came through: HTTP and NATS do the same here."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts import subjects
from libs.common.contracts.api import Piece
from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import Malformed, encode
from libs.common.contracts.control import Erase, decode_erase_answer
from libs.common.contracts.events import START, Position
from libs.common.contracts.faults import Code, Failed, Fault, failed
from libs.common.contracts.jobs import Binding, CancelMark, Completion, Submission
from libs.common.contracts.requests import Request, decode_request
from libs.common.contracts.subjects import BadToken, JobKey
from libs.common.folder import Entry, ttl_s
from libs.common.journal import Journal
from services.gateway.catalog import Catalog
from services.gateway.context import too_long
from services.gateway.dialects import NOT_FOUND_JOB
from services.gateway.fleet import FleetView
from services.gateway.job_bodies import parse_job
from services.gateway.limits import Limiter
from services.gateway.limits.prompt_bound import PromptBound
from services.gateway.options import MAX_NUM_CTX
from services.gateway.outlook import ADMISSION_S, QUOTE_S, Outlook
from services.gateway.predictions import quote_view, too_late
from services.gateway.readers import Readers
from services.gateway.reading import LogReader
from services.gateway.retries import ended_without_success, wish_again
from services.gateway.submission import Prepared, Submitted, Submitter
from services.gateway.view import job_view
from services.gateway.watch import Log, Watch
from services.gateway.webhooks import Webhooks
from services.gateway.webhooks.erasing import make_bare
from services.gateway.wish import Wish, check_model

log = structlog.get_logger()

MAX_WAIT_S = 300.0
ERASE_TIMEOUT_S = 5.0
CANCEL_WAIT_S = 2.0  # most cancels are done by then, and the caller gets the final state
MAX_KEY = 255  # characters of an Idempotency-Key


class Created(NamedTuple):
    view: dict[str, Any]
    new: bool


class JobService:
    def __init__(
        self,
        bus: Bus,
        fleet: FleetView,
        catalog: Catalog,
        submitter: Submitter,
        limiter: Limiter,
        webhooks: Webhooks,
        readers: Readers | None = None,
        *,
        max_num_ctx: int = MAX_NUM_CTX,
    ) -> None:
        self.bus = bus
        self._readers = readers or Readers()
        self.fleet = fleet
        self._catalog = catalog
        self.outlook = Outlook(bus)
        self._max_num_ctx = max_num_ctx
        self._journal = Journal(bus)
        self._log_reader = LogReader(bus)
        self._submitter = submitter
        self._limiter = limiter
        self.webhooks = webhooks

    # -- submit --------------------------------------------------------------------------------------------------------

    async def create(self, principal: Principal, body: bytes, idempotency_key: str | None) -> Created:
        """Raises Failed."""
        return await self._create(principal, self._parsed(principal, body), idempotency_key)

    async def dry_run(self, principal: Principal, body: bytes, idempotency_key: str | None) -> dict[str, Any]:
        """Where the job would go now, and when; nothing is stored. Raises Failed."""
        wish = self._parsed(principal, body)
        await self.new_key(principal, wish, idempotency_key)
        submission = self._submitter.prepare(principal, wish).submission
        if refusal := self._too_long(submission, wish):
            raise Failed(refusal)
        answer = await self.outlook.quote(principal.client, submission, within=QUOTE_S)
        if answer is None:
            message = "no router answers at the moment, so nobody knows where the job would go; try again"
            raise failed(Code.UNAVAILABLE, message, retry_after_s=2)
        return quote_view(submission, answer)

    def _parsed(self, principal: Principal, body: bytes) -> Wish:
        return parse_job(body, principal.policy, max_num_ctx=self._max_num_ctx)

    async def retry(self, principal: Principal, job: str, idempotency_key: str | None) -> Created:
        """A new job with the request of one that ended without success. Raises Failed."""
        key = self.key(principal, job)
        ended = ended_without_success((await self.newest(key)).facts)
        request = await self._request(key, ended)
        wish = wish_again(job, ended, request, webhook=await self._still_there(key.client, ended.job.webhook))
        return await self._create(principal, wish, idempotency_key)

    async def _still_there(self, client: str, webhook: str) -> str:
        """Of the job that is retried: nobody is to be asked for a webhook that has gone since."""
        if not webhook:
            return ""
        try:
            found = await self.webhooks.registry.find(client, webhook)
        except BusError as error:
            raise _away(error) from error
        return webhook if found is not None and found.disabled_at is None else ""

    async def _request(self, key: JobKey, completion: Completion) -> Request | None:
        """By the sequence of its `new`: a keyed id may live again, and the record may have been emptied."""
        try:
            found = await self._journal.record_at(completion.submitted)
            if found is None or found[0] != subjects.record(key, "new") or found[1].facts is None:
                return None
            body = await self._journal.body(key, found[1])
        except BusError as error:
            raise _away(error) from error
        return decode_request(body) if body else None

    async def _create(self, principal: Principal, wish: Wish, idempotency_key: str | None) -> Created:
        key = await self.new_key(principal, wish, idempotency_key)
        submitted = await self.submit(principal, wish, key, keyed=idempotency_key is not None)
        if submitted.existing is not None:
            return Created(await self._view(key, submitted.existing), new=False)
        view = {"id": key.job, "state": "queued", "kind": str(wish.kind), "model": wish.request.model}
        return Created(view | ({"retry_of": wish.retry_of} if wish.retry_of else {}), new=True)

    async def new_key(self, principal: Principal, wish: Wish, idempotency_key: str | None) -> JobKey:
        """Checks what costs nothing, and fixes the id. Raises Failed."""
        if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY:
            raise failed(
                Code.INVALID_REQUEST, f"an Idempotency-Key has 1 to {MAX_KEY} characters", path="Idempotency-Key"
            )
        key = self._submitter.new_key(principal, wish, idempotency_key)
        try:
            check_model(wish.request.model, self.fleet.models_for(principal), is_complete=self.fleet.is_complete)
            if wish.webhook:
                await self.webhooks.registry.require(principal.client, wish.webhook)
        except Failed:
            # Who asks again for a job that is there gets it, also when model or webhook have gone since.
            if idempotency_key is None or not await self._stands(key):
                raise
        return key

    async def _stands(self, key: JobKey) -> bool:
        entry = await self._read(key)
        return entry is not None and entry.facts is not None

    async def submit(self, principal: Principal, wish: Wish, key: JobKey, *, keyed: bool) -> Submitted:
        """Raises Failed: as Submitter.prepare, Limiter.reserved and Submitter.submit, and CONTEXT_LENGTH_EXCEEDED,
        DEADLINE_UNMEETABLE."""
        prepared = self._submitter.prepare(principal, wish)
        # Who asks again for a job that is there reserves nothing, and announces no end that has been told.
        if keyed and (principal.accounts or wish.webhook):
            standing = await self._read(key)
            if standing is not None and standing.facts is not None:
                return self._submitter.rejoin(key, wish, standing)
        if refusal := self._too_long(prepared.submission, wish):
            await self._refuse(key, prepared, refusal, keyed=keyed)
        if wish.deadline_asked:
            await self._check_deadline(key, prepared, keyed=keyed)
        job = prepared.submission
        async with self._limiter.reserved(principal, key, job, lambda: self._bound(job.model, wish)) as reservation:
            if reservation.answer is not None:
                prepared = prepared.limited_to(reservation.answer, wish.request)
            submitted = await self._submitter.submit(key, prepared, keyed=keyed)
            if submitted.existing is not None:
                reservation.unused()
        return submitted

    async def rejoin(self, wish: Wish, key: JobKey) -> Submitted:
        """The job that this wish made earlier under its Idempotency-Key. It writes nothing, so it can begin no other one.

        Raises Failed: JOB_NOT_FOUND, IDEMPOTENCY_MISMATCH, INVALID_REQUEST, UNAVAILABLE.
        """
        return self._submitter.rejoin(key, wish, await self.newest(key))

    async def _check_deadline(self, key: JobKey, prepared: Prepared, *, keyed: bool) -> None:
        """Who set a deadline wants to know now that it cannot be met. Without an answer in time the job is taken."""
        answer = await self.outlook.quote(key.client, prepared.submission, within=ADMISSION_S)
        if refusal := answer and too_late(prepared.submission, answer):
            await self._refuse(key, prepared, refusal, keyed=keyed)

    def _bound(self, model: str, wish: Wish) -> PromptBound:
        return PromptBound(wish.request, self.fleet.own_prompt(model), self._catalog.model(model).num_ctx)

    def _too_long(self, submission: Submission, wish: Wish) -> Fault | None:
        return too_long(submission, wish.request, self._catalog.model(submission.model))

    async def _refuse(self, key: JobKey, prepared: Prepared, refusal: Fault, *, keyed: bool) -> None:
        """But who asks again for a job that is there gets it, whatever speaks against it by now."""
        if not (keyed and await self._stands(key)):
            log.info("job.refused", client=key.client, model=prepared.submission.model, code=refusal.code)
            raise Failed(refusal)

    # -- read ----------------------------------------------------------------------------------------------------------

    def key(self, principal: Principal, job: str) -> JobKey:
        """Raises JOB_NOT_FOUND for what can be no id: it looks like any other unknown job."""
        try:
            return JobKey(principal.client, subjects.token(job, "job id"))
        except BadToken:
            raise Failed(NOT_FOUND_JOB) from None

    async def get(
        self, principal: Principal, job: str, *, wait_s: float = 0.0, explain: bool = False
    ) -> dict[str, Any]:
        """The job as it stands; with `wait_s`, as it ended, if it ends so soon; `explain`: and why. Raises Failed."""
        key = self.key(principal, job)
        entry = await self._find(key)
        if wait_s > 0 and not entry.final:
            await self._wait_for_end(key, min(wait_s, MAX_WAIT_S))
            entry = await self._find(key)
        return await self._view(key, entry, explain=explain)

    async def read(self, principal: Principal, job: str, position: Position, *, wait_s: float = 0.0) -> Piece:
        """What stands in the log from there on, as much as one look gives; with `wait_s`, when the job has ended, or then.
        Raises Failed.

        While it waits it is a reader of the job from that position on, whom the router hears when the worker dies.
        """
        key = self.key(principal, job)
        entry = await self.newest(key)
        if wait_s > 0 and not entry.final:
            await self._wait_for_end(key, min(wait_s, MAX_WAIT_S), position)
            entry = await self.newest(key)
        return await self._log_reader.piece(key, entry, position, running=self._is_running(key, entry))

    async def newest(self, key: JobKey) -> Entry:
        """From the leader. Raises Failed: JOB_NOT_FOUND, UNAVAILABLE."""
        entry = await self._read(key)
        if entry is None or entry.facts is None or (isinstance(entry.facts, Completion) and entry.facts.erased):
            raise Failed(NOT_FOUND_JOB)
        return entry

    async def _read(self, key: JobKey) -> Entry | None:
        connections = self.bus.connections
        try:
            return await self._journal.newest(key)
        except BusError as error:
            if self.bus.connections == connections:
                raise _away(error) from error
        try:  # the question went down with a connection that has been made anew since
            return await self._journal.newest(key)
        except BusError as error:
            raise _away(error) from error

    async def _find(self, key: JobKey) -> Entry:
        """A poll is one cheap get; only what it does not find is asked of the leader."""
        with contextlib.suppress(BusError):
            entry = await self._journal.poll(key)
            if entry is not None and not (isinstance(entry.facts, Completion) and entry.facts.erased):
                return entry
        return await self.newest(key)

    async def _view(self, key: JobKey, entry: Entry, *, explain: bool = False) -> dict[str, Any]:
        facts = entry.facts
        log_bytes, place = None, None
        try:
            if isinstance(facts, Completion):
                log_bytes = await self._journal.body(key, entry)
            elif not isinstance(facts, Binding) or facts.node is None:
                place = await self.outlook.place(key)
        except BusError as error:
            raise _away(error) from error
        return job_view(
            key.job, entry, log=log_bytes, running=self._is_running(key, entry), place=place, explain=explain
        )

    def _is_running(self, key: JobKey, entry: Entry) -> bool:
        facts = entry.facts
        if not isinstance(facts, Binding) or facts.node is None:
            return False
        return self.fleet.working(facts.node, key.client, key.job, facts.epoch)

    @contextlib.asynccontextmanager
    async def watch(
        self, key: JobKey, position: Position = START, *, takes_reset: bool = False
    ) -> AsyncIterator[Watch]:
        """The only way to a Watch: each is counted. Raises Failed: OVERLOADED."""
        with self._readers.one(key.client):
            async with Watch(self.bus, key, position, takes_reset=takes_reset) as watch:
                yield watch

    async def _wait_for_end(self, key: JobKey, seconds: float, position: Position = START) -> None:
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(seconds),
                self.watch(key, position, takes_reset=True) as watch,
                contextlib.aclosing(watch.items()) as items,
            ):
                async for item in items:
                    if isinstance(item, Log) and item.ended:
                        return

    # -- cancel and erase ----------------------------------------------------------------------------------------------

    async def cancel(
        self, principal: Principal, job: str, reason: str = "cancelled by its owner", *, keep: bool = False
    ) -> dict[str, Any]:
        """Cancel, or erase when finished, unless `keep`. Raises Failed.

        The answer says what came of it: `state` final if it ended at once, `"erased": true`, or `"cancelling": true`.
        """
        key = self.key(principal, job)
        entry = await self.newest(key)
        if isinstance(entry.facts, Completion) and keep:
            return await self._view(key, entry)
        if isinstance(entry.facts, Completion):
            await self._erase(key, entry, entry.facts)
            return {"id": job, "state": str(entry.facts.state), "erased": True}
        await self.mark_cancelled(key, entry, reason)
        await self._wait_for_end(key, CANCEL_WAIT_S)
        view = await self._view(key, await self.newest(key))
        return view if view["finished_at"] else view | {"cancelling": True}

    async def mark_cancelled(self, key: JobKey, entry: Entry, reason: str) -> None:
        """The durable wish; the router acts on it. Raises Failed (UNAVAILABLE)."""
        facts = entry.facts
        if isinstance(facts, Submission):
            submission, submitted, created_ms = facts, entry.sequence, entry.at_ms
        elif isinstance(facts, Binding):
            submission, submitted, created_ms = facts.job, facts.submitted, facts.created_ms
        else:
            return
        ttl = ttl_s(submission, created_ms=created_ms, now_ms=int(time.time() * 1000))
        try:
            await self._journal.mark_cancelled(key, CancelMark(submitted=submitted, reason=reason), ttl=ttl)
        except BusError as error:
            raise _away(error) from error
        log.info("job.cancel_requested", job_id=key.job, client=key.client, reason=reason)

    async def _erase(self, key: JobKey, entry: Entry, completion: Completion) -> None:
        """Its event goes first: what cannot be done is repeated as long as the job is there."""
        try:
            await make_bare(self.bus, key, completion)
        except BusError as error:
            raise _away(error) from error
        await self._ask_to_erase(key, entry)
        try:
            await make_bare(self.bus, key, completion)
        except BusError as error:  # one that was stored between the two; nobody else will see to it
            log.warning("job.event_not_erased", job_id=key.job, error=str(error))

    async def _ask_to_erase(self, key: JobKey, entry: Entry) -> None:
        wish = Erase(client=key.client, job=key.job, sequence=entry.sequence)
        try:
            reply = await self.bus.request(subjects.router("erase"), encode(wish), timeout=ERASE_TIMEOUT_S)
            answer = decode_erase_answer(reply)
        except (BusError, Malformed) as error:
            raise failed(Code.UNAVAILABLE, "no router is there to erase it at the moment; try again") from error
        if not answer.erased:
            raise failed(Code.UNAVAILABLE, f"it could not be erased: {answer.reason}; try again")


def facts_of_job(entry: Entry) -> Submission:
    """Of a folder's newest record that has facts."""
    assert entry.facts is not None
    return entry.facts if isinstance(entry.facts, Submission) else entry.facts.job


def _away(error: BusError) -> Failed:
    return failed(Code.UNAVAILABLE, f"the job store does not answer at the moment ({error}); try again")
