"""OpenAI's dialect over a real socket: statuses, frames, and whose job is cancelled when."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.link import Message
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.jobs import CancelMark, PastEpoch
from libs.common.contracts.requests import decode_request
from libs.common.contracts.subjects import NEW, JobKey, parse_record
from libs.common.journal import Journal
from libs.common.states import JobState
from services.gateway import streaming
from services.gateway.openai_routes import OpenAiRoutes
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, Gateway
from tests.gateway.scripted import Script, events
from tests.support.clients import parse_sse
from tests.support.waiting import eventually

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
CALL = msgspec.Raw(b'{"function":{"name":"weather","arguments":{"city":"La Paz"}}}')
PATIENT_S = 20.0  # for what comes at once, with every core busy


class Jobs:
    """The jobs that arrive, in order, each with a script that goes on with it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._arrived: asyncio.Queue[JobKey] = asyncio.Queue()

    async def __aenter__(self) -> "Jobs":
        self._hearing = await self._bus.subscribe(NEW, self._hear)
        await self._bus.last("JOBS", NEW)  # the server has the subscription once it has answered this
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hearing.stop()

    def _hear(self, message: Message) -> None:
        self._arrived.put_nowait(parse_record(message.subject)[0])

    async def next(self) -> Script:
        key = await asyncio.wait_for(self._arrived.get(), PATIENT_S)
        await eventually(lambda: self._bus.last("JOBS", f"jobs.{key.client}.{key.job}.new"))
        return await adopt(self._bus, key.job, key.client)


@pytest.fixture
async def jobs(bus: Bus, gateway: Gateway) -> AsyncIterator[Jobs]:
    async with Jobs(bus) as arriving:
        yield arriving


@contextlib.asynccontextmanager
async def asking(client: httpx.AsyncClient, **more: Any) -> AsyncIterator["asyncio.Task[httpx.Response]"]:
    task = asyncio.create_task(client.post(CHAT, json=BODY | more))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _streamed(client: httpx.AsyncClient, jobs: Jobs) -> AsyncIterator[tuple[Script, AsyncIterator[str]]]:
    """A chat whose answer has begun."""
    sending = asyncio.create_task(
        client.send(client.build_request("POST", CHAT, json=BODY | {"stream": True}), stream=True)
    )
    script = await jobs.next()
    await script.bind()
    await script.write(events("one ", "two "))
    response = await asyncio.wait_for(sending, PATIENT_S)
    try:
        yield script, response.aiter_text()
    finally:
        await response.aclose()


async def failing(script: Script, fault: Fault, *, state: JobState = JobState.FAILED, log: bytes = b"") -> None:
    await script.finish(log + line(Event(end=End(state=state, fault=fault))), state=state, fault=fault)


# -- answers -------------------------------------------------------------------------------------------------------------


async def test_a_chat_that_is_not_streamed_answers_once_with_everything(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    async with asking(alice) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(*events("Hello ", "world").splitlines(keepends=True))
        await script.end()
        answer = await answering
    assert answer.status_code == 200
    assert answer.headers["arriero-job-id"] == script.key.job
    made = answer.json()
    assert made["choices"][0]["message"] == {"role": "assistant", "content": "Hello world"}
    assert made["model"] == MODEL
    assert made["usage"]["completion_tokens"] == 3


async def test_the_request_is_stored_in_ollamas_terms(alice: httpx.AsyncClient, jobs: Jobs, bus: Bus) -> None:
    async with asking(alice, max_completion_tokens=5, stream=True):
        script = await jobs.next()
        stored = await bus.last("JOBS", f"jobs.alice.{script.key.job}.new")
    assert stored is not None
    request = decode_request(stored.data)
    assert (request.model, request.messages, request.options) == (MODEL, BODY["messages"], {"num_predict": 5})
    assert script.submission.detached is False
    assert script.submission.route == CHAT


async def test_a_streamed_chat_is_chunks_usage_and_done(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    async with asking(alice, stream=True, stream_options={"include_usage": True}) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(events("Hello "), events("world"))
        await script.end()
        answer = await answering
    *frames, usage, done = [event.data for event in parse_sse(answer.text)]
    assert done == "[DONE]"
    assert json.loads(usage)["usage"]["completion_tokens"] == 3
    texts = [json.loads(frame)["choices"][0]["delta"].get("content") for frame in frames]
    assert texts == ["Hello ", "world", None]
    assert all(event.id == "" for event in parse_sse(answer.text)), "a client that leaves cancels: nothing to resume"


async def test_the_first_token_is_sent_when_it_comes_not_when_more_has_come(
    alice: httpx.AsyncClient, jobs: Jobs
) -> None:
    request = alice.build_request("POST", CHAT, json=BODY | {"stream": True})
    sending = asyncio.create_task(alice.send(request, stream=True))
    script = await jobs.next()
    await script.bind()
    await script.write(events("Hello "))
    response = await asyncio.wait_for(sending, PATIENT_S)
    text = response.aiter_text()
    assert "Hello " in await asyncio.wait_for(anext(text), PATIENT_S)
    await response.aclose()


async def test_models_are_the_union_of_the_fleet_by_any_of_their_names(alice: httpx.AsyncClient) -> None:
    models = (await alice.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == [MODEL, "phi:latest"]
    assert (await alice.get("/v1/models/phi")).json()["id"] == "phi:latest"
    missing = await alice.get("/v1/models/hf.co/some/model")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


# -- errors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "code", [Code.NODE_REJECTED, Code.NODE_FAILED, Code.NODE_BUSY, Code.DEADLINE_EXCEEDED, Code.CANCELLED]
)
async def test_a_failure_before_the_first_token_has_its_own_status(
    alice: httpx.AsyncClient, jobs: Jobs, code: Code, streamed: bool
) -> None:
    fault = Fault(code=code, message="what went wrong")
    async with asking(alice, stream=streamed) as answering:
        script = await jobs.next()
        await script.bind()
        await failing(script, fault)
        answer = await answering
    assert answer.status_code == fault.meaning.status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == code
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)


async def test_a_failure_after_it_is_an_error_object_in_the_stream_and_no_done(
    alice: httpx.AsyncClient, jobs: Jobs
) -> None:
    async with asking(alice, stream=True) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(events("half "))
        await failing(script, Fault(code=Code.INTERRUPTED, message="cut off"), log=script.log)
        answer = await answering
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    assert json.loads(parse_sse(answer.text)[-1].data)["error"]["code"] == "interrupted"


async def test_a_failure_that_comes_late_is_told_in_the_stream_that_has_begun_for_the_proxies_sake(
    alice: httpx.AsyncClient, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold model takes minutes: the response begins without a token, and pings say that somebody is there."""
    monkeypatch.setattr(streaming, "BEGIN_S", 0.05)
    monkeypatch.setattr(streaming, "PING_S", 0.05)
    async with alice.stream("POST", CHAT, json=BODY | {"stream": True}) as response:
        assert response.status_code == 200
        pieces = response.aiter_text()
        assert (await anext(pieces)).startswith(": ping")
        script = await jobs.next()
        await failing(script, Fault(code=Code.NODE_FAILED, message="no"))
        text = "".join([piece async for piece in pieces])
    assert "[DONE]" not in text
    assert json.loads(parse_sse(text)[-1].data)["error"]["code"] == "node_failed"


async def test_a_position_lost_in_mid_answer_is_an_error_never_a_mixture(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    """More was shown than the next attempt's base holds: its text does not fit to it."""
    async with _streamed(alice, jobs) as (script, pieces):
        text = await anext(pieces)
        assert script.binding
        first, base = script.binding.epoch, events("one ")
        await script.bind(carried=base, past=(PastEpoch(epoch=first, base=len(base)),))
        await script.write(events("zwei "))
        await script.end()
        text += "".join([piece async for piece in pieces])
    assert "two " in text
    assert "zwei" not in text
    assert "[DONE]" not in text
    assert json.loads(parse_sse(text)[-1].data)["error"]["code"] == "position_lost"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_request"), (b'{"model":"m:1","messages":[]}', 400, "invalid_request"),
        (json.dumps(BODY | {"n": 2}).encode(), 400, "unsupported_parameter"),
        (json.dumps(BODY | {"model": "gpt-9"}).encode(), 404, "model_not_found"), (b" " * 21_000_000, 413, "too_large"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_refused_in_openais_shape(
    alice: httpx.AsyncClient, body: bytes, status: int, code: str
) -> None:
    answer = await alice.post(CHAT, content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


# -- clients that leave ----------------------------------------------------------------------------------------------------


async def _mark(bus: Bus, script: Script) -> CancelMark | None:
    return await Journal(bus).cancel_mark(script.key)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_chat_client_that_leaves_cancels_its_job(
    gateway: Gateway, alice: httpx.AsyncClient, jobs: Jobs, bus: Bus, streamed: bool, begun: bool
) -> None:
    before = gateway.subscriptions
    async with asking(alice, stream=streamed):
        script = await jobs.next()
        await script.bind()
        if begun:
            await script.write(events("Hello "))
    await eventually(lambda: _mark(bus, script))
    mark = await _mark(bus, script)
    assert mark is not None
    assert mark.submitted == script.submitted
    await eventually(lambda: gateway.subscriptions == before)


@pytest.mark.parametrize("said", ["yes", "1", "{}", "true, true"])
async def test_a_detach_that_is_neither_true_nor_false_is_refused(alice: httpx.AsyncClient, said: str) -> None:
    """Found by schemathesis: it counted as false, and who meant yes lost the job with the connection."""
    answer = await alice.post(CHAT, json=BODY, headers={"Arriero-Detach": said})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Arriero-Detach")


@pytest.mark.parametrize("headers", [{"Arriero-Detach": "true"}, {"Idempotency-Key": "k1"}])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_said_somebody_will_come_back_cancels_nothing(
    gateway: Gateway, alice: httpx.AsyncClient, jobs: Jobs, bus: Bus, headers: dict[str, str], streamed: bool
) -> None:
    before = gateway.subscriptions
    alice.headers.update(headers)
    async with asking(alice, stream=streamed):
        script = await jobs.next()
        await script.bind()
        await script.write(events("Hello "))
    await eventually(lambda: gateway.subscriptions == before)
    assert script.submission.detached
    assert await _mark(bus, script) is None
    await script.end()
    assert (await alice.get(f"/jobs/{script.key.job}")).json()["result"]["message"]["content"] == "Hello "


async def test_a_detached_chat_carries_positions_that_the_jobs_stream_takes(
    alice: httpx.AsyncClient, jobs: Jobs
) -> None:
    alice.headers["Arriero-Detach"] = "true"
    async with asking(alice, stream=True) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(events("Hello "), events("world"))
        await script.end()
        answer = await answering
    first = parse_sse(answer.text)[0]
    rest = await alice.get(f"/jobs/{script.key.job}/stream", headers={"Last-Event-ID": first.id})
    assert [event.event for event in parse_sse(rest.text)] == ["token", "succeeded"]
    assert json.loads(parse_sse(rest.text)[0].data) == {"text": "world"}


async def test_the_same_key_gives_the_same_answer_again_streamed_or_not(alice: httpx.AsyncClient, jobs: Jobs) -> None:
    alice.headers["Idempotency-Key"] = "k1"
    async with asking(alice) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(events("Hello "))
        await script.end()
        first = await answering
    again = await alice.post(CHAT, json=BODY)
    assert again.json()["choices"] == first.json()["choices"]
    assert again.headers["arriero-job-id"] == script.key.job
    streamed = await alice.post(CHAT, json=BODY | {"stream": True})
    assert "Hello " in streamed.text
    assert "[DONE]" in streamed.text


async def test_a_client_that_leaves_right_after_the_end_is_no_disconnect(
    alice: httpx.AsyncClient, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[JobKey] = []
    monkeypatch.setattr(OpenAiRoutes, "_cancel_later", lambda _, key: cancelled.append(key))
    async with asking(alice, stream=True) as answering:
        script = await jobs.next()
        await script.bind()
        await script.end()
        await answering
    await alice.aclose()
    assert cancelled == []


# -- draining --------------------------------------------------------------------------------------------------------------


async def test_a_draining_gateway_ends_a_chat_in_its_dialect_and_cancels_nothing(
    gateway: Gateway, alice: httpx.AsyncClient, jobs: Jobs, bus: Bus
) -> None:
    assert gateway.running.drain
    async with asking(alice, stream=True) as streamed, asking(alice) as whole:
        scripts = [await jobs.next(), await jobs.next()]
        for script in scripts:
            await script.bind()
            await eventually(lambda script=script: script.freeze(0))
        await gateway.running.drain()
        answers = [await streamed, await whole]
    assert [answer.status_code for answer in answers] == [503, 503]
    for answer in answers:
        assert answer.json()["error"]["code"] == "draining"
        assert any(script.key.job in answer.json()["error"]["message"] for script in scripts), "where to read on"
    assert [await _mark(bus, script) for script in scripts] == [None, None]
    refused = await alice.post(CHAT, json=BODY)
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert (await alice.get(f"/jobs/{scripts[0].key.job}")).headers["connection"] == "close", (
        "answered, for the last time"
    )


async def test_a_chat_that_is_being_read_ends_with_an_error_object_when_the_gateway_drains(
    gateway: Gateway, alice: httpx.AsyncClient, jobs: Jobs, bus: Bus
) -> None:
    assert gateway.running.drain
    async with _streamed(alice, jobs) as (script, pieces):
        text = await anext(pieces)
        await gateway.running.drain()
        text += "".join([piece async for piece in pieces])
    assert "[DONE]" not in text
    error = json.loads(parse_sse(text)[-1].data)["error"]
    assert error["code"] == "draining"
    assert f"/jobs/{script.key.job}" in error["message"]
    assert await _mark(bus, script) is None


# -- the official package --------------------------------------------------------------------------------------------------


@pytest.fixture
async def sdk(gateway: Gateway, keys: Keys) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=keys.alice, max_retries=0, timeout=20
    ) as client:
        yield client


MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


async def test_the_official_client_reads_a_whole_answer(sdk: openai.AsyncOpenAI, jobs: Jobs) -> None:
    asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES))
    script = await jobs.next()
    await script.bind()
    await script.write(events("Hello "))
    await script.end()
    made = await asked
    assert made.choices[0].message.content == "Hello "
    assert made.choices[0].finish_reason == "stop"


async def test_the_official_client_reads_a_stream(sdk: openai.AsyncOpenAI, jobs: Jobs) -> None:
    asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    script = await jobs.next()
    await script.bind()
    await script.write(events("Hello "), events("world"))
    await script.end()
    chunks = [chunk async for chunk in await asked]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_official_client_reads_tool_calls(sdk: openai.AsyncOpenAI, jobs: Jobs, streamed: bool) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    create: Any = sdk.chat.completions.create
    asked = asyncio.create_task(create(model=MODEL, messages=MESSAGES, tools=tools, stream=streamed))
    script = await jobs.next()
    await script.bind()
    await script.write(line(Event(tool_call=CALL)))
    await script.end()
    answer = await asked
    if streamed:
        choices = [chunk.choices[0] async for chunk in answer]
        call, reason = choices[0].delta.tool_calls[0], choices[-1].finish_reason
    else:
        call, reason = answer.choices[0].message.tool_calls[0], answer.choices[0].finish_reason
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "La Paz"})
    assert reason == "tool_calls"


RAISES: list[tuple[Code, type[openai.APIStatusError]]] = [
    (Code.NODE_REJECTED, openai.BadRequestError),
    (Code.NODE_FAILED, openai.InternalServerError),
    (Code.NODE_BUSY, openai.InternalServerError),
    (Code.CANCELLED, openai.APIStatusError),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("code", "raised"), RAISES)
async def test_the_official_client_raises_its_own_error_for_a_failed_job(
    sdk: openai.AsyncOpenAI, jobs: Jobs, code: Code, raised: type[openai.APIStatusError], streamed: bool
) -> None:
    create: Any = sdk.chat.completions.create
    asked = asyncio.create_task(create(model=MODEL, messages=MESSAGES, stream=streamed))
    script = await jobs.next()
    await failing(script, Fault(code=code, message="what went wrong"))
    with pytest.raises(raised, match="what went wrong") as caught:
        await asked
    assert caught.value.code == code


async def test_the_official_client_raises_in_mid_stream(sdk: openai.AsyncOpenAI, jobs: Jobs) -> None:
    asked = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    script = await jobs.next()
    await script.bind()
    await script.write(events("half "))
    stream = await asked
    assert (await anext(stream.__aiter__())).choices[0].delta.content == "half "
    await failing(script, Fault(code=Code.INTERRUPTED, message="cut off"), log=script.log)
    with pytest.raises(openai.APIError, match="cut off"):
        async for _ in stream:
            pass


@pytest.mark.parametrize(
    ("key", "model", "raised"),
    [
        ("arr_wrong", MODEL, openai.AuthenticationError), ("", "gpt-9", openai.NotFoundError),
    ],
)  # fmt: skip
async def test_the_official_client_raises_its_own_errors_for_refusals(
    sdk: openai.AsyncOpenAI, key: str, model: str, raised: type[openai.APIStatusError]
) -> None:
    client = sdk.with_options(api_key=key) if key else sdk
    with pytest.raises(raised):
        await client.chat.completions.create(model=model, messages=MESSAGES)


async def test_the_official_client_lists_the_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == [MODEL, "phi:latest"]


# -- silence ---------------------------------------------------------------------------------------------------------------


async def test_no_prompt_and_no_answer_of_a_chat_stands_in_any_log_line(
    alice: httpx.AsyncClient, jobs: Jobs, log_lines: io.StringIO
) -> None:
    canary: dict[str, Any] = {"messages": [{"role": "user", "content": "canary-7341"}]}
    async with asking(alice, stream=True, **canary) as answering:
        script = await jobs.next()
        await script.bind()
        await script.write(events("canary-7341"))
        await script.end()
        assert "canary-7341" in (await answering).text
    async with asking(alice, stream=True, **canary):
        script = await jobs.next()
        await script.bind()
        await script.write(events("canary-7341"))
    await eventually(lambda: "job.cancel_requested" in log_lines.getvalue())
    for more in ({"n": 2}, {"model": "gpt-9"}, {"temperature": "canary-7341"}):
        assert (await alice.post(CHAT, json=BODY | canary | more)).status_code in (400, 404)
    assert "job.submitted" in log_lines.getvalue()
    assert "canary-7341" not in log_lines.getvalue()
