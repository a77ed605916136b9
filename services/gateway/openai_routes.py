"""`/v1/chat/completions` and `/v1/models`: OpenAI's dialect on durable jobs."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import structlog

from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.events import decode_event
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.headers import DETACH, IDEMPOTENCY_KEY, JOB_ID
from libs.common.contracts.nodes import canonical_model
from libs.common.contracts.subjects import JobKey
from services.gateway import metrics
from services.gateway.endpoint import RouteSpec
from services.gateway.folding import Answer
from services.gateway.http import Disconnected, Exchange
from services.gateway.job_service import JobService
from services.gateway.openai_answer import ChunkWriter, completion, encode_error, fault_of
from services.gateway.openai_request import ChatWish, parse_chat
from services.gateway.sse import data_frame, positions
from services.gateway.streaming import Draining, Streams
from services.gateway.watch import Log, Watch

log = structlog.get_logger()


class OpenAiRoutes:
    def __init__(self, service: JobService, streams: Streams, *, max_body: int) -> None:
        self._service = service
        self._streams = streams
        self._max_body = max_body
        self._cancelling: set[asyncio.Task[None]] = set()

    def routes(self) -> list[RouteSpec]:
        return [
            RouteSpec("POST", "/v1/chat/completions", Scope.INFERENCE, self.chat),
            RouteSpec("GET", "/v1/models", Scope.MODELS_READ, self.models),
            RouteSpec("GET", "/v1/models/{model:path}", Scope.MODELS_READ, self.model),
        ]

    async def models(self, exchange: Exchange, principal: Principal) -> None:
        found = self._service.fleet.models()
        await exchange.respond_json(200, {"object": "list", "data": [_model(m.name) for m in found.values()]})

    async def model(self, exchange: Exchange, principal: Principal) -> None:
        found = self._service.fleet.models().get(canonical_model(exchange.params["model"]))
        if found is None:
            raise failed(
                Code.MODEL_NOT_FOUND, f"no node has the model {exchange.params['model'][:200]!r}", path="model"
            )
        await exchange.respond_json(200, _model(found.name))

    async def chat(self, exchange: Exchange, principal: Principal) -> None:
        """A client that leaves cancels its job, unless it said that somebody will come back for it."""
        body = await exchange.body(self._max_body)
        keyed = exchange.header(IDEMPOTENCY_KEY)
        detached = (exchange.header(DETACH) or "").lower() == "true" or keyed is not None
        wanted = parse_chat(body, principal.policy, detached=detached)
        key = await self._service.new_key(principal, wanted.wish, keyed)
        async with self._streams.opened(), Watch(self._service.bus, key) as watch:
            submitted = await self._service.submit(principal, wanted.wish, key, keyed=keyed is not None)
            if submitted.existing is None:
                watch.submitted(submitted.sequence)
            try:
                if wanted.stream:
                    await self._stream(exchange, wanted, key, watch, detached=detached)
                else:
                    await self._whole(exchange, wanted, key, watch)
            except Disconnected:
                metrics.disconnects.inc()
                if not detached:
                    self._cancel_later(key)
            except asyncio.CancelledError:
                raise  # the process ends: the job goes on, or the router cancels what nobody reads (DESIGN §4)

    async def _stream(self, exchange: Exchange, wanted: ChatWish, key: JobKey, watch: Watch, *, detached: bool) -> None:
        frames = self._frames(wanted, key, watch, with_positions=detached)
        try:
            await self._streams.relay(exchange, frames, _headers(key))
        except Draining:
            await _fail(exchange, _draining(key))
        except Failed as error:
            await _fail(exchange, error)
        await exchange.finish()

    async def _frames(
        self, wanted: ChatWish, key: JobKey, watch: Watch, *, with_positions: bool
    ) -> AsyncGenerator[bytes, None]:
        """Raises Failed if the job ended without an answer before the first token."""
        writer = ChunkWriter(key.job, wanted.wish.request.model, int(time.time()), include_usage=wanted.include_usage)
        began, shown = time.monotonic(), False
        async with aclosing(watch.items()) as items:
            async for item in items:
                if not isinstance(item, Log):
                    continue
                frames = []
                for position, raw in positions(item.position, item.events):
                    event = decode_event(raw)
                    if not shown:
                        if event.end is not None and (fault := fault_of(event.end)) is not None:
                            raise Failed(fault)
                        metrics.first_token.observe(time.monotonic() - began)
                        shown = True
                    for data in writer.chunks(event):
                        frames.append(data_frame(data, position if with_positions else None))
                yield b"".join(frames)

    async def _whole(self, exchange: Exchange, wanted: ChatWish, key: JobKey, watch: Watch) -> None:
        try:
            answer = await self._streams.during(exchange, _collect(watch))
        except Draining:
            raise _draining(key) from None
        assert answer.end is not None
        if (fault := fault_of(answer.end)) is not None:
            raise Failed(fault)
        made = completion(key.job, wanted.wish.request.model, int(time.time()), answer)
        await exchange.respond_json(200, made, _headers(key))

    def _cancel_later(self, key: JobKey) -> None:
        """The client is gone, so nobody waits for this; it must outlive the request."""

        async def cancel() -> None:
            with suppress(Failed):
                await self._service.mark_cancelled(key, await self._service.newest(key), "the client disconnected")

        task = asyncio.create_task(cancel())
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)


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
    return failed(Code.DRAINING, f"this gateway shuts down; the job goes on: read it at /jobs/{key.job}")


def _headers(key: JobKey) -> list[tuple[bytes, bytes]]:
    return [(JOB_ID.lower().encode(), key.job.encode())]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "library"}
