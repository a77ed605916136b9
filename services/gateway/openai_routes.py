"""`/v1/chat/completions` and `/v1/models`: OpenAI's dialect on durable jobs (docs/resuming.md for how streams go on)."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, NamedTuple

import structlog

from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.events import START, Position, decode_event
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.headers import DETACH, IDEMPOTENCY_KEY, JOB_ID
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.subjects import JobKey
from libs.common.folding import Answer
from services.gateway import metrics, operations
from services.gateway.dialects import NOT_FOUND_JOB
from services.gateway.http import Disconnected, Exchange
from services.gateway.intake import Intake, Share
from services.gateway.job_service import JobService, facts_of_job
from services.gateway.jobs_routes import position_of
from services.gateway.openai_answer import (
    ChunkWriter,
    Place,
    completion,
    encode_error,
    fault_of,
    job_id,
    parse_place,
    places,
)
from services.gateway.openai_request import ROUTE, parse_chat
from services.gateway.route import Reach, RouteSpec
from services.gateway.sse import data_frame, positions
from services.gateway.streaming import Draining, Streams
from services.gateway.watch import Log, Watch

log = structlog.get_logger()


LOOK_BACK_S = 30.0  # for the part of a log that a resumed reader has seen

BEGINNING = Place(START)


class Reader(NamedTuple):
    """What makes the frames of one stream, beside the job's records and log."""

    key: JobKey
    place: Place
    include_usage: bool
    with_positions: bool


class OpenAiRoutes:
    def __init__(self, service: JobService, streams: Streams, intake: Intake) -> None:
        self._service = service
        self._streams = streams
        self._intake = intake
        self._cancelling: set[asyncio.Task[None]] = set()

    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("POST", "/v1/chat/completions", Scope.INFERENCE, Reach.OWN_JOBS, self.chat, operations.CHAT),
            RouteSpec(
                "GET",
                "/v1/chat/completions/{id}",
                Scope.INFERENCE,
                Reach.OWN_JOBS,
                self.completion,
                operations.COMPLETION,
            ),
            RouteSpec(
                "GET", "/v1/models", Scope.MODELS_READ, Reach.ALLOWED_MODELS, self.models, operations.OPENAI_MODELS
            ),
            RouteSpec(
                "GET",
                "/v1/models/{model:path}",
                Scope.MODELS_READ,
                Reach.ALLOWED_MODELS,
                self.model,
                operations.OPENAI_MODEL,
            ),
        ]

    async def models(self, exchange: Exchange, principal: Principal) -> None:
        found = self._service.fleet.models_for(principal)
        await exchange.respond_json(200, {"object": "list", "data": [_model(m.name) for m in found.values()]})

    async def model(self, exchange: Exchange, principal: Principal) -> None:
        found = self._service.fleet.models_for(principal).get(canonical_model(exchange.params["model"]))
        if found is None:
            raise failed(
                Code.MODEL_NOT_FOUND, f"no node has the model {exchange.params['model'][:200]!r}", path="model"
            )
        await exchange.respond_json(200, _model(found.name))

    async def chat(self, exchange: Exchange, principal: Principal) -> None:
        """A client that leaves cancels its job, unless it said that somebody will come back for it.

        When this process ends it cancels nothing: the job goes on, or the router cancels what nobody reads (DESIGN §4).
        """
        with self._intake.one() as share:
            await self._chat(exchange, principal, share)

    async def _chat(self, exchange: Exchange, principal: Principal, share: Share) -> None:
        body = await exchange.body(self._intake.largest, share.count)
        keyed = exchange.header(IDEMPOTENCY_KEY)
        detached = _is_detached(exchange) or keyed is not None
        wanted = parse_chat(body, principal.policy, detached=detached)
        key = await self._service.new_key(principal, wanted.wish, keyed)
        place = position_of(exchange, parse_place)
        if place is not None and not (keyed is not None and wanted.stream):
            message = "Last-Event-ID goes with stream=true and the Idempotency-Key of the request that is resumed"
            raise failed(Code.INVALID_REQUEST, message, path="Last-Event-ID")
        reader = Reader(key, place or BEGINNING, wanted.wish.include_usage, detached)
        async with (
            _no_job_is_no_place(place),
            self._streams.opened(principal),
            self._service.watch(key, reader.place.position) as watch,
        ):
            if place is not None:  # who goes on must not begin another answer instead, whatever happens meanwhile
                submitted = await self._service.rejoin(wanted.wish, key)
            else:
                submitted = await self._service.submit(principal, wanted.wish, key, keyed=keyed is not None)
            if submitted.existing is None:
                watch.submitted(submitted.sequence)
            streamed = wanted.stream
            del body, wanted  # for as long as the answer takes, nobody needs the question here
            share.free()
            try:
                if streamed:
                    await self._stream(exchange, reader, watch)
                else:
                    await self._whole(exchange, key, watch)
            except Disconnected:
                metrics.disconnects.inc()
                if not detached:
                    self._cancel_later(key, "the client disconnected")
            except asyncio.CancelledError:
                if exchange.is_revoked:
                    self._cancel_later(key, "its credential was revoked")
                raise

    async def completion(self, exchange: Exchange, principal: Principal) -> None:
        """The completion of a job of this dialect, from wherever its reader stands. Never cancels it."""
        key = self._service.key(principal, job_id(exchange.params["id"]))
        job = facts_of_job(await self._service.newest(key))
        if job.route != ROUTE:
            raise Failed(NOT_FOUND_JOB)
        place, streamed = position_of(exchange, parse_place), _is_true(exchange, "stream")
        if place is not None and not streamed:
            raise failed(Code.INVALID_REQUEST, "a position is for a stream; add ?stream=true", path="stream")
        if exchange.method == "HEAD":  # not one that waits for the end
            kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
            await exchange.respond(200, b"", kind, _headers(key))
            return
        reader = Reader(key, place or BEGINNING, job.include_usage, job.detached)
        async with self._streams.opened(principal), self._service.watch(key, reader.place.position) as watch:
            with suppress(Disconnected):
                if streamed:
                    await self._stream(exchange, reader, watch)
                else:
                    await self._whole(exchange, key, watch)

    async def _stream(self, exchange: Exchange, reader: Reader, watch: Watch) -> None:
        try:
            await self._streams.relay(exchange, self._frames(reader, watch), _headers(reader.key))
        except Draining:
            await _fail(exchange, _draining(reader.key))
        except Failed as error:
            await _fail(exchange, error)
        await exchange.finish()

    async def _frames(self, reader: Reader, watch: Watch) -> AsyncGenerator[bytes, None]:
        """Raises Failed if the job ended without an answer before the first token."""
        place, resumed = reader.place, reader.place.position.offset > 0
        writer: ChunkWriter | None = None
        skip, shown, counted = place.frames, resumed, not resumed
        began = time.monotonic()
        async with aclosing(watch.items()) as items:
            async for item in items:
                if not isinstance(item, Log):
                    continue
                if writer is None:
                    writer = _writer(reader, watch, begun=resumed)
                frames = []
                for begin, end, raw in _spans(item):
                    event = decode_event(raw)
                    if not shown:
                        if event.end is not None and (fault := fault_of(event.end)) is not None:
                            raise Failed(fault)
                        if reader.place == BEGINNING:
                            metrics.first_token.observe(time.monotonic() - began)
                        shown = True
                    if not counted and (event.tool_call or event.end is not None):
                        writer.calls = await self._calls_before(reader.key, place.position.offset)
                        counted = True
                    chunks = writer.chunks(event)
                    if skip >= len(chunks):
                        raise failed(Code.POSITION_LOST, "no frame ended at that position; read from the beginning")
                    for data, after in list(zip(chunks, places(begin, end, len(chunks)), strict=True))[skip:]:
                        frames.append(data_frame(data, str(after).encode() if reader.with_positions else None))
                    skip = 0
                yield b"".join(frames)

    async def _calls_before(self, key: JobKey, offset: int) -> int:
        """Tool calls before a place that is known to be the end of an event: they are numbered from the beginning."""
        calls = 0
        try:
            async with (
                asyncio.timeout(LOOK_BACK_S),
                self._service.watch(key) as watch,
                aclosing(watch.items()) as items,
            ):
                async for item in items:
                    if not isinstance(item, Log):
                        continue
                    for _, end, raw in _spans(item):
                        if end.offset > offset:
                            return calls
                        calls += bool(decode_event(raw).tool_call)
                    if item.position.offset + len(item.events) >= offset:
                        return calls
        except TimeoutError:
            raise failed(
                Code.UNAVAILABLE, "the beginning of the answer cannot be read at the moment; try again"
            ) from None
        return calls

    async def _whole(self, exchange: Exchange, key: JobKey, watch: Watch) -> None:
        try:
            answer = await self._streams.during(exchange, _collect(watch))
        except Draining:
            raise _draining(key) from None
        assert answer.end is not None
        assert watch.job is not None
        if (fault := fault_of(answer.end)) is not None:
            raise Failed(fault)
        made = completion(key.job, watch.job.model, watch.created_ms // 1000, answer)
        await exchange.respond_json(200, made, _headers(key))

    def _cancel_later(self, key: JobKey, reason: str) -> None:
        """The client is gone, so nobody waits for this; it must outlive the request."""

        async def cancel() -> None:
            with suppress(Failed):
                await self._service.mark_cancelled(key, await self._service.newest(key), reason)

        task = asyncio.create_task(cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


@asynccontextmanager
async def _no_job_is_no_place(place: Place | None) -> AsyncIterator[None]:
    """Who gave a place in an answer hears that it is lost, where others hear that there is no such job."""
    try:
        yield
    except Failed as error:
        if place is None or error.fault.code is not Code.JOB_NOT_FOUND:
            raise
        message = "the answer of this Idempotency-Key is not there any more; leave Last-Event-ID out for a new one"
        raise failed(Code.POSITION_LOST, message) from error


def _writer(reader: Reader, watch: Watch, *, begun: bool) -> ChunkWriter:
    assert watch.job is not None
    created = watch.created_ms // 1000
    return ChunkWriter(reader.key.job, watch.job.model, created, include_usage=reader.include_usage, begun=begun)


def _spans(item: Log) -> Iterator[tuple[Position, Position, bytes]]:
    """Each event with the positions before and after it."""
    epoch, begin = item.position
    for _, raw in positions(item.position, item.events):
        end = begin + len(raw) + 1
        yield Position(epoch, begin), Position(epoch, end), raw
        begin = end


def _is_true(exchange: Exchange, name: str) -> bool:
    text = exchange.query.get(name, "false").lower()
    if text not in ("true", "1", "false", "0"):
        raise failed(Code.INVALID_REQUEST, f"{name} must be true or false", path=name)
    return text in ("true", "1")


def _is_detached(exchange: Exchange) -> bool:
    text = (exchange.header(DETACH) or "false").lower()
    if text not in ("true", "false"):  # who meant yes must not find its job cancelled
        raise failed(Code.INVALID_REQUEST, f"{DETACH} must be true or false", path=DETACH)
    return text == "true"


async def _collect(watch: Watch) -> Answer:
    answer = Answer()
    async with aclosing(watch.items()) as items:
        async for item in items:
            if isinstance(item, Log):
                for raw in item.events.split(b"\n")[:-1]:
                    answer.add(decode_event(raw))
    return answer


async def _fail(exchange: Exchange, error: Failed) -> None:
    """Before the response has begun it has the failure's own status; in the stream it is an error object, and no [DONE]."""
    if not exchange.started:
        raise error
    await exchange.write(data_frame(encode_error(error.fault)))


def _draining(key: JobKey) -> Failed:
    return failed(
        Code.DRAINING,
        f"this gateway shuts down; the job goes on: read on at {ROUTE}/{key.job}?stream=true, or take /jobs/{key.job}",
    )


def _headers(key: JobKey) -> list[tuple[bytes, bytes]]:
    return [(JOB_ID.lower().encode(), key.job.encode())]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "library"}
