"""Turning a wish into a durable job: one compare-and-set on an empty folder, acked before anybody is told (DESIGN §3)."""

import contextlib
from typing import Any, NamedTuple

import msgspec
import structlog

from libs.common import ids
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, BusError, Full
from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.jobs import INLINE_LIMIT, MIN_RESULT_TTL_S, Completion, Submission
from libs.common.contracts.requests import Request
from libs.common.contracts.subjects import JobKey
from libs.common.folder import Entry, digest, ttl_s
from libs.common.ids import new_op_id
from libs.common.journal import Journal, Lost
from services.gateway import metrics
from services.gateway.affinity import read_prompt
from services.gateway.pressure import Pressure
from services.gateway.webhooks.waiting import announce
from services.gateway.wish import Wish, capped, output_tokens

log = structlog.get_logger()

TRIES = 5  # a keyed folder that others keep changing under us


class Submitted(NamedTuple):
    key: JobKey
    sequence: int  # of `new`; 0 for a job that was there already
    existing: Entry | None = None


class Prepared(NamedTuple):
    """A job that is not stored yet."""

    submission: Submission
    body: bytes

    def limited_to(self, tokens: int, request: Request) -> "Prepared":
        """The same, its answer no longer than that. It stays the job of its request: an Idempotency-Key finds it."""
        options = {**(request.options or {}), "num_predict": tokens}
        body = encode(msgspec.structs.replace(request, options=options))
        return Prepared(msgspec.structs.replace(self.submission, size=len(body)), body)


class Submitter:
    def __init__(self, bus: Bus, cluster_secret: bytes, pressure: Pressure) -> None:
        self._bus = bus
        self._journal = Journal(bus)
        self._secret = cluster_secret
        self._affinity_key = ids.derive(cluster_secret, "affinity")
        self._pressure = pressure

    def new_key(self, principal: Principal, wish: Wish, idempotency_key: str | None) -> JobKey:
        if idempotency_key is None:
            return JobKey(principal.client, ids.new_job_id())
        # A key of a retry is another than the same key of the job that is retried.
        route = f"/jobs/{wish.retry_of}/retry" if wish.retry_of else wish.route
        return self.keyed(principal.client, route, idempotency_key)

    def keyed(self, client: str, route: str, idempotency_key: str) -> JobKey:
        return JobKey(client, ids.keyed_job_id(self._secret, client, route, idempotency_key))

    def prepare(self, principal: Principal, wish: Wish) -> Prepared:
        """Raises Failed: OVERLOADED when no new jobs are taken, INVALID_REQUEST."""
        self._pressure.admit()
        try:
            body = encode(wish.request)
            return Prepared(submission_of(self._affinity_key, principal, wish, body), body)
        except RecursionError as error:  # a body that could just be read stands a few levels deeper here
            raise failed(Code.INVALID_REQUEST, "the body is nested too deeply") from error

    async def submit(self, key: JobKey, prepared: Prepared, *, keyed: bool) -> Submitted:
        """Raises Failed: OVERLOADED, IDEMPOTENCY_MISMATCH, SUBMIT_UNCONFIRMED (names the id), UNAVAILABLE."""
        submission, body = prepared
        ttl = ttl_s(submission, created_ms=0, now_ms=0)
        if submission.webhook:
            await self._announce(key, submission)
        expected = 0
        for _ in range(TRIES):
            try:
                sequence = await self._journal.write(key, "new", submission, body, expected=expected, ttl=ttl)
            except Lost as lost:
                await self._drop_parts(key, submission, body)
                standing = lost.newest
                if standing is None:
                    expected = 0
                elif standing.facts is None:
                    expected = standing.sequence  # emptied, and no `done`: the id may live again
                else:
                    return _same_job(key, submission.digest, standing)
                if not keyed:
                    raise failed(Code.INTERNAL, "two jobs got the same id; send the request again") from lost
                continue
            except Full as error:
                await self._drop_parts(key, submission, body)
                raise failed(Code.OVERLOADED, "the job store is full; try again later", retry_after_s=30) from error
            except Away as error:
                message = f"it is not known whether job {key.job} was stored; ask for it before sending again"
                raise failed(Code.SUBMIT_UNCONFIRMED, message, details={"id": key.job}) from error
            except BusError as error:
                await self._drop_parts(key, submission, body)
                raise failed(Code.UNAVAILABLE, f"the job could not be stored: {error}") from error
            metrics.submitted.labels(submission.route, str(submission.kind)).inc()
            log.info(
                "job.submitted", job_id=key.job, client=key.client, model=submission.model, kind=submission.kind,
                route=submission.route, priority=submission.priority, bytes=len(body),
            )  # fmt: skip
            return Submitted(key, sequence)
        raise failed(Code.UNAVAILABLE, "the job's folder keeps changing; try again")

    async def _announce(self, key: JobKey, submission: Submission) -> None:
        try:
            await announce(self._bus, key, submission)
        except Full as error:
            message = "as many webhooks wait as can be kept; submit it without one, or try again later"
            raise failed(Code.OVERLOADED, message, retry_after_s=30) from error
        except BusError as error:
            raise failed(Code.UNAVAILABLE, f"the job could not be stored: {error}") from error

    def rejoin(self, key: JobKey, wish: Wish, standing: Entry) -> Submitted:
        """The job under this key, if it is this wish's; stores nothing. Raises Failed: IDEMPOTENCY_MISMATCH, INVALID_REQUEST."""
        try:
            return _same_job(key, _digest_of(wish), standing)
        except RecursionError as error:
            raise failed(Code.INVALID_REQUEST, "the body is nested too deeply") from error

    async def _drop_parts(self, key: JobKey, submission: Submission, body: bytes) -> None:
        """A body in parts whose `new` surely was not stored: without this it would stay for its whole TTL."""
        if len(body) > INLINE_LIMIT:
            with contextlib.suppress(BusError):  # the store is full, or NATS away again: then they stay
                await self._journal.empty_parts(key, submission.op_id, len(body))


def _same_job(key: JobKey, wanted: str, standing: Entry) -> Submitted:
    facts: Any = standing.facts
    other = facts if isinstance(facts, Submission) else facts.job
    if other.digest != wanted:
        message = "this Idempotency-Key was used with another request; use a new key for a new request"
        raise failed(Code.IDEMPOTENCY_MISMATCH, message)
    if isinstance(facts, Completion) and facts.erased:  # nothing is there to give, and its owner did not want it twice
        raise failed(Code.REQUEST_GONE, "the job of this Idempotency-Key was erased; use a new key for a new job")
    return Submitted(key, 0, standing)


def _digest_of(wish: Wish) -> str:
    need: list[int | str] = [wish.num_ctx] if wish.num_ctx else []
    if wish.webhook:
        need.append(wish.webhook)
    return digest(msgspec.json.encode([wish.kind, wish.request, wish.metadata, *need], order="sorted"))


def submission_of(affinity_key: bytes, principal: Principal, wish: Wish, body: bytes) -> Submission:
    prompt = read_prompt(affinity_key, principal.client, wish.kind, wish.request)
    return Submission(
        op_id=new_op_id(),
        kind=wish.kind,
        model=wish.request.model,
        route=wish.route,
        priority=capped(wish.priority, principal.policy.priority),
        deadline_s=wish.deadline_s,
        result_ttl_s=max(MIN_RESULT_TTL_S, wish.result_ttl_s),
        size=len(body),
        digest=_digest_of(wish),
        prompt_tokens=prompt.tokens,
        output_tokens=output_tokens(wish.request),
        affinity=prompt.chain,
        num_ctx=wish.num_ctx,
        weight=principal.policy.weight,
        max_running=principal.policy.max_running,
        credential=principal.credential,
        issued_at=principal.issued_at,
        kid=principal.kid,
        detached=wish.detached,
        metadata=wish.metadata,
        include_usage=wish.include_usage,
        webhook=wish.webhook,
        retry_of=wish.retry_of,
    )
