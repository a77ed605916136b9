"""`/jobs`: submit, look, read along, cancel, list (DESIGN §5)."""

import re
from collections.abc import Callable
from typing import TypeVar

from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.codec import Malformed
from libs.common.contracts.events import START, parse_position
from libs.common.contracts.faults import Code, failed
from libs.common.contracts.headers import IDEMPOTENCY_KEY, JOB_ID
from services.gateway import operations
from services.gateway.http import Disconnected, Exchange
from services.gateway.intake import Intake
from services.gateway.job_events import JobEvents
from services.gateway.job_service import Created, JobService
from services.gateway.listing import list_jobs
from services.gateway.route import Reach, RouteSpec
from services.gateway.streaming import Draining, Streams

MAX_EMPTY = 1024  # of a body that is none
T = TypeVar("T")
_NUMBER = re.compile(r"[0-9]{1,9}")


class JobsRoutes:
    def __init__(self, service: JobService, streams: Streams, intake: Intake) -> None:
        self._service = service
        self._streams = streams
        self._intake = intake

    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("POST", "/jobs", Scope.JOBS_WRITE, Reach.OWN_JOBS, self.submit, operations.SUBMIT_JOB),
            RouteSpec("GET", "/jobs", Scope.JOBS_READ, Reach.OWN_JOBS, self.list, operations.LIST_JOBS),
            RouteSpec("GET", "/jobs/{id}", Scope.JOBS_READ, Reach.OWN_JOBS, self.get, operations.GET_JOB),
            RouteSpec("GET", "/jobs/{id}/stream", Scope.JOBS_READ, Reach.OWN_JOBS, self.stream, operations.STREAM_JOB),
            RouteSpec("POST", "/jobs/{id}/retry", Scope.JOBS_WRITE, Reach.OWN_JOBS, self.retry, operations.RETRY_JOB),
            RouteSpec("DELETE", "/jobs/{id}", Scope.JOBS_CANCEL, Reach.OWN_JOBS, self.cancel, operations.CANCEL_JOB),
        ]

    async def submit(self, exchange: Exchange, principal: Principal) -> None:
        with self._intake.one() as share:
            body = await exchange.body(self._intake.largest, share.count)
            keyed = exchange.header(IDEMPOTENCY_KEY)
            if _is_true(exchange, "dry_run"):
                exchange.deed = ""
                await exchange.respond_json(200, await self._service.dry_run(principal, body, keyed))
                return
            created = await self._service.create(principal, body, keyed)
        await self._answer(exchange, created)

    async def retry(self, exchange: Exchange, principal: Principal) -> None:
        if (await exchange.body(MAX_EMPTY)).strip() not in (b"", b"{}"):
            raise failed(Code.INVALID_REQUEST, "a retry takes no body: it is the same request with the same settings")
        job, keyed = exchange.params["id"], exchange.header(IDEMPOTENCY_KEY)
        await self._answer(exchange, await self._service.retry(principal, job, keyed))

    @staticmethod
    async def _answer(exchange: Exchange, created: Created) -> None:
        location = f"/jobs/{created.view['id']}".encode()
        headers = [(b"location", location), (JOB_ID.lower().encode(), created.view["id"].encode())]
        await exchange.respond_json(202 if created.new else 200, created.view, headers)

    async def get(self, exchange: Exchange, principal: Principal) -> None:
        job, wait_s, explain = exchange.params["id"], _seconds(exchange, "wait"), _is_true(exchange, "explain")
        if not wait_s:
            await exchange.respond_json(200, await self._service.get(principal, job, explain=explain))
            return
        try:
            looking = self._service.get(principal, job, wait_s=wait_s, explain=explain)
            view = await self._streams.during(exchange, looking)
        except Draining:
            view = await self._service.get(principal, job, explain=explain)
        await exchange.respond_json(200, view)

    async def list(self, exchange: Exchange, principal: Principal) -> None:
        query = exchange.query
        limit = query.get("limit", "50")
        if not _NUMBER.fullmatch(limit):
            raise failed(Code.INVALID_REQUEST, "limit must be a number", path="limit")
        page = await list_jobs(
            self._service.bus,
            principal.client,
            cursor=query.get("cursor"),
            limit=int(limit),
            state=query.get("state"),
        )
        await exchange.respond_json(200, {"jobs": page.rows, "cursor": page.cursor})

    async def cancel(self, exchange: Exchange, principal: Principal) -> None:
        view = await self._service.cancel(principal, exchange.params["id"])
        await exchange.respond_json(202 if view.get("cancelling") else 200, view)

    async def stream(self, exchange: Exchange, principal: Principal) -> None:
        """Never cancels its job. With a position only what comes after it, byte for byte what an uncut stream would hold."""
        key = self._service.key(principal, exchange.params["id"])
        position = position_of(exchange, parse_position) or START
        takes_reset = exchange.query.get("reset", "") in ("1", "true")
        await self._service.newest(key)  # 404 before the response begins
        if exchange.method == "HEAD":
            await exchange.respond(200, b"", "text/event-stream; charset=utf-8")
            return
        async with (
            self._streams.opened(principal),
            self._service.watch(key, position, takes_reset=takes_reset) as watch,
        ):
            events = JobEvents(key, watch, self._service.outlook, self._service.fleet, resumed=position != START)
            try:
                await self._streams.relay(exchange, events.frames(), [(JOB_ID.lower().encode(), key.job.encode())])
            except Draining:
                if not exchange.started:
                    raise failed(
                        Code.DRAINING, "this gateway is shutting down; another one takes the request"
                    ) from None
                await exchange.write(b": this gateway shuts down; resume with Last-Event-ID\n\n")
            except Disconnected:
                return
            await exchange.finish()


def position_of(exchange: Exchange, parse: Callable[[str], T]) -> T | None:
    """Where a reader says it was, if it says so. Raises Failed: INVALID_REQUEST."""
    text = exchange.header("last-event-id") or exchange.query.get("after")
    if not text:
        return None
    try:
        return parse(text)
    except Malformed as error:
        raise failed(Code.INVALID_REQUEST, str(error), path="Last-Event-ID") from error


def _is_true(exchange: Exchange, name: str) -> bool:
    text = exchange.query.get(name, "0")
    if text not in ("1", "true", "0", "false"):
        raise failed(Code.INVALID_REQUEST, f"{name} must be 1 or 0", path=name)
    return text in ("1", "true")


def _seconds(exchange: Exchange, name: str) -> float:
    text = exchange.query.get(name, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise failed(Code.INVALID_REQUEST, f"{name} must be a number of seconds", path=name)
    return seconds
