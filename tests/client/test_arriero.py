"""Submit, result, cancel, list: what a program gets, and the error it gets when something is wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.client import (
    Arriero,
    ArrieroError,
    Forbidden,
    IdempotencyMismatch,
    InvalidRequest,
    JobExpired,
    JobFailed,
    JobNotFound,
    Limited,
    ModelNotFound,
    NoGateway,
    NotConnected,
    SubmitUnconfirmed,
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
    calls,
)
from libs.common.bus.connection import Bus
from libs.common.bus.link import Message, Subscription
from libs.common.contracts.clients import Client, Scope
from libs.common.contracts.codec import encode
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import MEANING, Code, Fault
from libs.common.states import JobState
from services.gateway import internal
from tests.client.reading import reading
from tests.gateway.conftest import adopt
from tests.gateway.running import MODEL, add_client
from tests.gateway.scripted import END, Script, events
from tests.support.nats_server import NatsServer, nats_server
from tests.support.waiting import eventually

CHAT = [{"role": "user", "content": "hi"}]


# -- with a gateway ------------------------------------------------------------------------------------------------------


async def test_a_job_is_submitted_streamed_and_taken(arriero: Arriero, bus: Bus) -> None:
    job = await arriero.submit(model=MODEL, messages=CHAT, metadata={"run": "4"}, options={"temperature": 0})
    assert (job.view["state"], job.view["kind"]) == ("queued", "chat")
    assert (await job.status())["metadata"] == {"run": "4"}
    script = await adopt(bus, job.id)
    async with script.answering(), reading(job) as reader:
        waiting = asyncio.create_task(job.result())
        await script.bind()
        await script.write(line(Event(thinking="hm")), events("Hello "))
        await script.end()
        await eventually(lambda: reader.ended)
        result = await waiting
    assert reader.texts == ["Hello "]
    assert (result.id, result.text, result.thinking, result.tool_calls) == (job.id, "Hello ", "hm", [])
    assert result.final["message"] == {"role": "assistant", "content": "Hello ", "thinking": "hm"}
    assert result.final["eval_count"] == 3


@pytest.mark.parametrize(
    ("asked", "log", "field", "expected"),
    [
        ({"prompt": "hi"}, events("Hel", "lo"), "text", "Hello"),
        ({"input": ["hi"]}, b'{"data":[[0.5,1.0]]}\n', "embeddings", [[0.5, 1.0]]),
        ({"messages": CHAT}, b'{"tool_call":{"function":{"name":"f"}}}\n', "tool_calls", [{"function": {"name": "f"}}]),
    ],
)
@pytest.mark.parametrize("is_large", [False, True])
async def test_every_kind_of_result(
    arriero: Arriero, bus: Bus, asked: dict[str, Any], log: bytes, field: str, expected: Any, is_large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also one that is too large for a message: it is put together from the log."""
    job = await arriero.submit(model=MODEL, **asked)
    script = await adopt(bus, job.id)
    await script.bind()
    await script.finish(log + END)
    if is_large:
        monkeypatch.setattr(internal, "MAX_ANSWER", 380)
        with pytest.raises(ArrieroError, match=Code.RESULT_TOO_LARGE):
            await job.status()
    result = await job.result()
    assert getattr(result, field) == expected
    assert result.final["eval_count"] == 3


async def test_a_result_of_several_megabytes_is_put_together(arriero: Arriero, bus: Bus) -> None:
    job = await arriero.submit(model=MODEL, prompt="hi")
    script = await adopt(bus, job.id)
    await script.bind()
    texts = ["é" * 700_000, "b" * 900_000]
    await script.finish(events(*texts) + END)
    assert (await job.result()).text == "".join(texts)


async def test_a_time_out_is_the_callers_own_and_the_job_goes_on(arriero: Arriero, bus: Bus) -> None:
    job = await arriero.submit(model=MODEL, prompt="hi")
    with pytest.raises(TimedOut) as caught:
        await job.result(timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    script = await adopt(bus, job.id)
    await script.finish(events("x") + END)
    assert (await job.result(timeout=30)).text == "x"


async def test_who_waits_for_a_result_hears_of_the_end_though_its_gateway_has_gone(
    arriero: Arriero, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that was killed leaves its questions unanswered; the hint of the end asks another one."""
    once, asked = calls.Calls.once, 0

    async def unanswered(self: Any, verb: Any, payload: Any, **more: Any) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(3600)
        return await once(self, verb, payload, **more)

    monkeypatch.setattr(calls.Calls, "once", unanswered)
    waiting = asyncio.create_task(arriero.job(script.key.job).result())
    await eventually(lambda: asked)
    await arriero._bus.last("JOBS", "jobs.>")  # once the server has answered this, it has the subscription to hints
    await script.bind()
    await script.finish(events("x") + END)
    assert (await asyncio.wait_for(waiting, 60)).text == "x"
    assert asked == 2


@pytest.mark.parametrize(("state", "kind"), [(JobState.FAILED, JobFailed), (JobState.EXPIRED, JobExpired)])
async def test_a_job_without_success_is_an_error_with_its_code(
    arriero: Arriero, script: Script, state: JobState, kind: type[JobFailed]
) -> None:
    fault = Fault(code=Code.NODE_FAILED, message="it broke")
    await script.finish(line(Event(end=End(state=state, fault=fault))), state=state, fault=fault)
    with pytest.raises(kind) as caught:
        await arriero.job(script.key.job).result()
    assert type(caught.value) is kind
    assert (caught.value.state, caught.value.code, caught.value.message) == (state, "node_failed", "it broke")
    assert caught.value.retryable


async def test_a_cancel_ends_a_job_and_leaves_a_finished_one_as_it_is(arriero: Arriero, bus: Bus) -> None:
    job = await arriero.submit(model=MODEL, prompt="hi")
    cancelling = asyncio.create_task(job.cancel())
    script = await adopt(bus, job.id)

    async def marked() -> bool:
        return await script.journal.cancel_mark(script.key) is not None

    await eventually(marked)
    fault = Fault(code=Code.CANCELLED, message="cancelled by its owner")
    await script.finish(
        line(Event(end=End(state=JobState.CANCELLED, fault=fault))), state=JobState.CANCELLED, fault=fault
    )
    assert (await cancelling)["state"] == "cancelled"
    assert (await job.cancel())["state"] == "cancelled"
    assert (await job.status())["state"] == "cancelled"
    await job.erase()
    with pytest.raises(JobNotFound):
        await job.status()


async def test_jobs_are_listed_over_all_pages(arriero: Arriero, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.client.arriero.PAGE", 2)
    for n in range(5):
        script = Script(bus)
        script.key = script.key._replace(job=f"job_{n}")
        await script.submit()
    await script.finish()
    assert [row["id"] async for row in arriero.list()] == [f"job_{n}" for n in range(5)]
    assert [row["id"] async for row in arriero.list(state="succeeded")] == ["job_4"]


@pytest.mark.parametrize(
    ("body", "kind", "code", "path"),
    [
        ({"model": MODEL}, InvalidRequest, "invalid_request", None),
        ({"model": MODEL, "prompt": "x", "temprature": 1}, InvalidRequest, "invalid_request", "temprature"),
        ({"model": "gpt-9", "prompt": "x"}, ModelNotFound, "model_not_found", "model"),
        ({"model": MODEL, "prompt": "x" * 1_060_000}, TooLarge, "too_large", None),
    ],
)
async def test_what_is_wrong_with_a_job_is_an_error_of_its_kind(
    arriero: Arriero, body: dict[str, Any], kind: type[ArrieroError], code: str, path: str | None
) -> None:
    with pytest.raises(kind) as caught:
        await arriero.submit(**body)
    assert (caught.value.code, caught.value.path, caught.value.retryable) == (code, path, False)
    assert caught.value.message


async def test_a_model_that_is_not_there_comes_with_those_that_are(arriero: Arriero) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await arriero.submit(model="gpt-9", prompt="x")
    assert MODEL in caught.value.details["models"]


async def test_an_idempotency_key_is_one_job_and_one_body(arriero: Arriero) -> None:
    made = await arriero.submit(model=MODEL, prompt="x", idempotency_key="k")
    assert (await arriero.submit(model=MODEL, prompt="x", idempotency_key="k")).id == made.id
    with pytest.raises(IdempotencyMismatch):
        await arriero.submit(model=MODEL, prompt="y", idempotency_key="k")


async def test_a_client_that_may_not_is_told_so(arriero: Arriero, bus: Bus) -> None:
    await add_client(bus, "alice", scopes=(Scope.JOBS_READ,))

    async def forbidden() -> bool:
        try:
            await arriero.submit(model=MODEL, prompt="x")
        except Forbidden:
            return True
        return False

    await eventually(forbidden)
    await bus.append("$KV.clients.client.alice", encode(Client(id="alice", name="alice", disabled=True)))

    async def disabled() -> bool:
        try:
            [row async for row in arriero.list()]
        except Unauthenticated:
            return True
        return False

    await eventually(disabled)


# -- with somebody who answers as a gateway might --------------------------------------------------------------------------


class Answers:
    """`api.alice.*`: one thing for each request, the last for ever; None is silence."""

    def __init__(self, *said: Any) -> None:
        self.said = list(said)
        self.asked: list[tuple[str, Any]] = []

    async def __call__(self, message: Message) -> bytes | None:
        self.asked.append((message.subject.rpartition(".")[2], json.loads(message.data)))
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        return said if said is None or isinstance(said, bytes) else json.dumps(said).encode()


def refusal(code: str, **more: Any) -> dict[str, Any]:
    return {"fault": {"code": code, "message": "no"} | more}


OK = {"ok": {"id": "job_1", "state": "queued"}}


@pytest.fixture
async def alone(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Arriero]:
    """No gateway is there."""
    monkeypatch.setattr(calls, "TRY_S", 2.0)  # so long silence takes, and an answer on a busy machine never does
    monkeypatch.setattr(calls, "PAUSE_S", 0.02)
    async with Arriero.connect(nats.url, client="alice", patience=1) as arriero:
        yield arriero


async def answered(bus: Bus, answers: Answers) -> Subscription:
    serving = await bus.serve("api.alice.*", answers)
    await bus.last("JOBS", "jobs.>")  # the server has the subscription once it has answered this
    return serving


async def test_without_any_gateway_the_error_says_so(alone: Arriero) -> None:
    for failing in (
        alone.submit(model=MODEL, prompt="x", timeout=0.1),
        alone.submit(model=MODEL, prompt="x", timeout=0.1, idempotency_key="k"),
        alone.job("job_1").status(),
        alone.job("job_1").cancel(),
        alone.job("job_1").result(),
    ):
        with pytest.raises(NoGateway, match="no gateway"):
            await failing


async def test_a_try_that_begins_late_still_waits_for_its_answer(
    alone: Arriero, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up after a few milliseconds, a submit that nobody took would count as one of which nothing is known."""
    given: list[float] = []

    async def once(self: Any, verb: Any, payload: Any, *, timeout: float) -> bytes:
        given.append(timeout)
        raise NoGateway("no gateway", retryable=True)

    monkeypatch.setattr(calls.Calls, "once", once)
    with pytest.raises(NoGateway):
        await alone.submit(model=MODEL, prompt="x", timeout=0.1)
    assert given
    assert min(given) >= calls.LEAST_S


async def test_a_submit_waits_for_a_gateway_that_comes_back(alone: Arriero, bus: Bus) -> None:
    """Nobody was there, so nothing was stored: that can be said again without a key."""
    submitting = asyncio.create_task(alone.submit(model=MODEL, prompt="x"))
    await asyncio.wait({submitting}, timeout=0.1)
    answers = Answers(refusal("draining"), OK)
    await answered(bus, answers)
    assert (await submitting).id == "job_1"
    assert len(answers.asked) == 2


async def test_an_unconfirmed_submit_is_sent_once_without_a_key_and_again_with_one(alone: Arriero, bus: Bus) -> None:
    for silence in (None, refusal("submit_unconfirmed", details={"id": "job_1"})):
        answers = Answers(silence, OK)
        serving = await answered(bus, answers)
        with pytest.raises(SubmitUnconfirmed) as caught:
            await alone.submit(model=MODEL, prompt="x", timeout=30)
        assert caught.value.code == "submit_unconfirmed"
        assert len(answers.asked) == 1
        await serving.stop()

        answers = Answers(silence, silence, OK)
        serving = await answered(bus, answers)
        assert (await alone.submit(model=MODEL, prompt="x", idempotency_key="k", timeout=30)).id == "job_1"
        assert [payload["idempotency_key"] for _, payload in answers.asked] == ["k", "k", "k"]
        await serving.stop()


@pytest.mark.parametrize(
    ("code", "kind"),
    [("overloaded", Unavailable), ("rate_limited", Limited), ("quota_exhausted", Limited), ("queue_full", Limited)],
)
async def test_a_refusal_for_want_of_room_is_the_callers_to_deal_with(
    alone: Arriero, bus: Bus, code: str, kind: type[ArrieroError]
) -> None:
    answers = Answers(refusal(code, retry_after_s=2.5))
    await answered(bus, answers)
    with pytest.raises(kind) as caught:
        await alone.submit(model=MODEL, prompt="x", idempotency_key="k")
    assert (caught.value.code, caught.value.retry_after_s) == (code, 2.5)
    assert caught.value.retryable == MEANING[Code(code)].retryable
    assert len(answers.asked) == 1


async def test_a_code_of_a_later_version_is_an_error_and_not_a_riddle(alone: Arriero, bus: Bus) -> None:
    await answered(bus, Answers(refusal("of_tomorrow", path="x", new_field=1)))
    with pytest.raises(ArrieroError) as caught:
        await alone.job("job_1").status()
    assert (caught.value.code, caught.value.path, caught.value.retryable) == ("of_tomorrow", "x", False)


@pytest.mark.parametrize("answer", [b"", b"{", b"\xff", b"{}", b'{"ok":7}', b'{"ok":{"a":"\xff"}}', b"[]"])
async def test_an_answer_that_cannot_be_read_is_an_error(alone: Arriero, bus: Bus, answer: bytes) -> None:
    await answered(bus, Answers(answer))
    with pytest.raises(ArrieroError, match="internal"):
        await alone.job("job_1").status()


async def test_a_look_is_repeated_while_gateways_change(alone: Arriero, bus: Bus) -> None:
    answers = Answers(None, refusal("draining"), refusal("unavailable"), {"ok": {"id": "job_1", "state": "queued"}})
    await answered(bus, answers)
    alone._patience = 30
    assert (await alone.job("job_1").status())["state"] == "queued"
    assert len(answers.asked) == 4


@pytest.mark.parametrize("job", ["", "job.1", "*", "a b", "x" * 65])
async def test_what_can_be_no_id_is_refused_at_once(alone: Arriero, job: str) -> None:
    with pytest.raises(ValueError, match="job id"):
        alone.job(job)


# -- the way to NATS -----------------------------------------------------------------------------------------------------


async def test_no_nats_is_said_in_time(tmp_path: Any) -> None:
    with pytest.raises(NotConnected, match=r"127\.0\.0\.1:9"):
        async with Arriero.connect("nats://127.0.0.1:9", client="alice", password="hush", timeout=0.3):
            pass


USERS = """
authorization { users: [
  { user: alice, password: right, permissions: {
    publish: { allow: ["api.alice.>"] }, subscribe: { allow: ["_INBOX.alice.>", "out.*.alice.>", "evt.alice.>"] } } }
] }
"""


async def test_a_wrong_password_and_a_foreign_name_are_said_in_time(tmp_path: Any) -> None:
    async with nats_server(tmp_path / "nats", provision=False, config=USERS) as server:
        async with Arriero.connect(server.url, client="alice", user="alice", password="right") as arriero:
            with pytest.raises(NoGateway):
                await arriero.submit(model=MODEL, prompt="x", timeout=0.1)
        with pytest.raises(NotConnected, match=r"(?i)authorization") as caught:
            async with Arriero.connect(server.url, client="alice", password="wrong", timeout=6):
                pass
        assert "wrong" not in str(caught.value)
        with pytest.raises(NotConnected, match=r"(?i)permissions violation"):
            async with Arriero.connect(server.url, client="bob", user="alice", password="right", timeout=60):
                pass
