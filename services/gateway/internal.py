"""`api.<client>.submit|get|read|leave|cancel|list`: the same jobs for internal services over NATS (docs/nats.md).

The owner is the subject's; NATS lets a user publish only under its own name. Answers go only to that client's inboxes: a
reply subject somebody else chose could aim an answer at a stream that others read.
"""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import msgspec
import structlog

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.bus.link import Message, Subscription
from libs.common.contracts import subjects
from libs.common.contracts.api import (
    Answer,
    Piece,
    Read,
    decode_cancel,
    decode_get,
    decode_leave,
    decode_list,
    decode_read,
    decode_submit,
)
from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.codec import Decoder, Malformed, encode
from libs.common.contracts.events import Position
from libs.common.contracts.faults import Code, Failed, Fault, failed
from services.gateway.credentials import Credentials, require
from services.gateway.intake import Intake
from services.gateway.job_bodies import ROUTE
from services.gateway.job_service import MAX_WAIT_S, JobService
from services.gateway.limits import Limiter
from services.gateway.listing import list_jobs
from services.gateway.sessions import Sessions
from services.gateway.witness import Witness

log = structlog.get_logger()

T = TypeVar("T")

QUEUE = "gateways"
MAX_ANSWER = 1024 * 1024 - 4096  # nats-server's default max_payload, less what goes around it
MAX_JOB = MAX_ANSWER  # the envelope goes around it, too
READER = re.compile(r"[A-Za-z0-9_-]{0,32}")
MAX_CALLS_PER_CLIENT = 500  # of the bus's MAX_HANDLERS
SCOPES = {
    "submit": Scope.JOBS_WRITE, "get": Scope.JOBS_READ, "read": Scope.JOBS_READ, "leave": Scope.JOBS_READ,
    "list": Scope.JOBS_READ, "cancel": Scope.JOBS_CANCEL,
}  # fmt: skip


class InternalApi:
    def __init__(
        self,
        bus: Bus,
        credentials: Credentials,
        sessions: Sessions,
        service: JobService,
        intake: Intake,
        limiter: Limiter,
        witness: Witness,
    ) -> None:
        self._bus = bus
        self._credentials = credentials
        self._sessions = sessions
        self._service = service
        self._intake = intake
        self._limiter = limiter
        self._witness = witness
        self._calls: Counter[str] = Counter()  # being answered, by client

    async def serve(self) -> Subscription:
        return await self._bus.serve("api.*.*", self.answer, queue=QUEUE)

    async def answer(self, message: Message) -> bytes | None:
        try:
            client, verb = subjects.parse_api(message.subject)
            if not message.reply.startswith(f"_INBOX.{client}."):
                log.warning("api.foreign_reply", client=client)
                return None
            with self._one_of(client), self._witness.call(client, verb), self._intake.one() as share:
                share.count(len(message.data))
                answer = encode(Answer(ok=msgspec.Raw(await self._do(client, verb, message.data))))
            if len(answer) > MAX_ANSWER:
                text = "the answer is too large for one NATS message; GET /jobs/{id} gives it over HTTP"
                raise failed(Code.RESULT_TOO_LARGE, text)
            return answer
        except Failed as error:
            return encode(Answer(fault=error.fault))
        except Malformed as error:
            log.error("api.record_unreadable", client=client, verb=verb, error=str(error))
            return encode(Answer(fault=Fault(code=Code.INTERNAL, message="a stored record cannot be read")))
        except BusError as error:
            return encode(Answer(fault=Fault(code=Code.UNAVAILABLE, message=f"the queue does not answer: {error}")))
        except Exception:
            log.exception("api.failed", subject_verb=message.subject.rpartition(".")[2])
            return encode(Answer(fault=Fault(code=Code.INTERNAL, message="that is our mistake; please report it")))

    @contextlib.contextmanager
    def _one_of(self, client: str) -> Iterator[None]:
        """A `get` may wait for minutes: those of one client must not use up what the bus serves at once for all."""
        if self._calls[client] >= MAX_CALLS_PER_CLIENT:
            message = f"{MAX_CALLS_PER_CLIENT} requests of this client wait for their answers already"
            raise failed(Code.OVERLOADED, message, retry_after_s=1)
        self._calls[client] += 1
        try:
            yield
        finally:
            self._calls[client] -= 1
            if not self._calls[client]:
                del self._calls[client]

    async def _do(self, client: str, verb: str, payload: bytes) -> bytes:
        if verb not in SCOPES:
            raise failed(Code.NOT_FOUND, f"there are {', '.join(SCOPES)}, but no {verb[:64]}")
        principal = self._credentials.named(client)
        require(principal, SCOPES[verb])
        with self._sessions.one(principal, SCOPES[verb]) as session:
            try:
                return encode(await self._call(principal, verb, payload or b"{}"))
            except asyncio.CancelledError:
                if session.caught():
                    raise failed(Code.UNAUTHENTICATED, f"the request was ended: {session.lapsed}") from None
                raise

    async def _call(self, principal: Principal, verb: str, payload: bytes) -> object:
        # A submit may be a repetition; cancel and leave take work away; of the reads of a stream the first counts.
        if verb in ("get", "list"):
            await self._limiter.admit(principal)
        match verb:
            case "submit":
                wish = _asked(decode_submit, payload)
                keyed = wish.idempotency_key
                await self._limiter.admit(principal, repeats=(ROUTE, keyed) if keyed else None)
                limit = min(self._intake.largest, MAX_JOB)
                if len(wish.job) > limit:
                    message = f"the job is larger than the {limit} bytes taken here"
                    if limit < self._intake.largest:
                        message += f" in one NATS message; POST /jobs takes up to {self._intake.largest}"
                    raise failed(Code.TOO_LARGE, message)
                return (await self._service.create(principal, bytes(wish.job), wish.idempotency_key)).view
            case "get":
                get = _asked(decode_get, payload)
                return await self._service.get(principal, get.id, wait_s=get.wait_s)
            case "read":
                return await self._read(principal, _asked(decode_read, payload))
            case "leave":
                leave = _asked(decode_leave, payload)
                await self._limiter.leave(principal, self._service.key(principal, leave.id).job, _named(leave.reader))
                return {}
            case "cancel":
                cancel = _asked(decode_cancel, payload)
                return await self._service.cancel(principal, cancel.id, keep=cancel.keep)
        page = _asked(decode_list, payload)
        found = await list_jobs(self._bus, principal.client, cursor=page.cursor, limit=page.limit, state=page.state)
        return {"jobs": found.rows, "cursor": found.cursor}

    async def _read(self, principal: Principal, read: Read) -> Piece:
        """A stream that could not begin, or was told that nothing more comes, gives its place back.

        Not with the last bytes: who gets those asks once more, and would begin another stream. Nor with what a read waited for:
        it watches along beside another one, which may be behind.
        """
        if read.epoch < 0 or read.offset < 0:
            raise failed(Code.INVALID_REQUEST, "epoch and offset are not negative")
        job = self._service.key(principal, read.id).job
        reader = _named(read.reader)
        wait_s = min(max(0.0, read.wait_s), MAX_WAIT_S)
        began = await self._limiter.read(principal, job, reader, wait_s=wait_s)
        try:
            piece = await self._service.read(principal, job, Position(read.epoch, read.offset), wait_s=wait_s)
        except Failed as failure:
            if began or failure.fault.code is Code.JOB_NOT_FOUND:
                await self._limiter.leave(principal, job, reader)
            raise
        if piece.state.final and piece.offset is not None and not piece.log and not wait_s:
            await self._limiter.leave(principal, job, reader)
        return piece


def _named(reader: str) -> str:
    """Raises Failed."""
    if not READER.fullmatch(reader):
        raise failed(Code.INVALID_REQUEST, "a reader's name has at most 32 letters, digits, - and _", path="reader")
    return reader


def _asked(decode: Decoder[T], payload: bytes) -> T:
    """Raises Failed: what a caller sent is its own fault, what we stored is ours."""
    try:
        return decode(payload)
    except Malformed as error:
        raise failed(Code.INVALID_REQUEST, str(error)) from error
