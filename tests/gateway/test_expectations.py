"""What a router expects, as clients see it: places, quotes, decisions, deadlines. The router's answers are a stub's."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Policy
from libs.common.contracts.codec import encode
from libs.common.contracts.control import PlaceAnswer, QuoteAnswer
from libs.common.contracts.jobs import Candidate, Decision
from libs.common.contracts.nodes import Heartbeat, LoadedModel
from libs.common.contracts.requests import Priority
from libs.common.states import JobState
from services.gateway import job_events
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, Gateway, RouterStub, add_client, add_node, running_gateway
from tests.gateway.scripted import BOOT, NODE, events
from tests.gateway.test_jobs_routes import Streaming, stream, submitted
from tests.support.clients import parse_sse
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

BODY = {"model": MODEL, "prompt": "hi"}
DECISION = Decision(
    node=NODE, reason="soonest", cold=True, ttft_s=4.5, load_s=3.0,
    candidates=(Candidate(node=NODE, verdict="chosen", wait_s=0.0, load_s=3.0, prefill_s=1.5, score_s=4.5),),
)  # fmt: skip
TOO_LATE = QuoteAnswer(decision=DECISION, start_s=40.0, finish_s=90.0)


def named(reading: Streaming, name: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.data) for event in parse_sse(reading.text) if event.event == name]


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_events, "PLACES_S", (0.01, 0.01))
    monkeypatch.setattr(job_events, "LOADING_S", 0.01)


# -- a job that is there -------------------------------------------------------------------------------------------------


async def test_who_waits_sees_the_place_and_the_expected_start(alice: httpx.AsyncClient, router: RouterStub) -> None:
    router.place = PlaceAnswer(position=2, start_s=3.25, reason="all slots are taken")
    job = await submitted(alice)
    seen = (await alice.get(f"/jobs/{job}")).json()
    assert (seen["position"], seen["eta_s"]) == (2, 3.25)
    assert not {"decision", "waiting"} & set(seen)
    explained = (await alice.get(f"/jobs/{job}", params={"explain": "1"})).json()
    assert (explained["decision"], explained["waiting"]) == (None, "all slots are taken")


async def test_the_decision_about_a_job_is_told_to_its_owner_alone(
    alice: httpx.AsyncClient, bob: httpx.AsyncClient, bus: Bus
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind(decision=DECISION)
    for params in ({"explain": "1"}, {"explain": "true", "wait": "0.05"}):
        seen = (await alice.get(f"/jobs/{job}", params=params)).json()
        assert seen["decision"]["candidates"][0]["prefill_s"] == 1.5
    await script.finish(decision=DECISION)
    assert (await alice.get(f"/jobs/{job}", params={"explain": "1"})).json()["decision"]["node"] == NODE
    assert (await bob.get(f"/jobs/{job}", params={"explain": "1"})).status_code == 404


@pytest.mark.parametrize("path", ["/jobs/job_x?explain=yes", "/jobs?dry_run=please"])
async def test_a_switch_is_on_or_off(alice: httpx.AsyncClient, path: str) -> None:
    method = "POST" if "dry_run" in path else "GET"
    answer = await alice.request(method, path, json=BODY if method == "POST" else None)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.usefixtures("_no_pause")
async def test_a_stream_tells_the_place_again_when_it_has_changed(
    alice: httpx.AsyncClient, bus: Bus, router: RouterStub
) -> None:
    router.place = PlaceAnswer(position=3, start_s=30.0)
    job = await submitted(alice)
    async with stream(alice, job) as reading:
        await eventually(lambda: named(reading, "queued") == [{"id": job, "position": 3, "eta_s": 30.0}])
        router.place = PlaceAnswer(position=1, start_s=12.0)
        await eventually(lambda: len(named(reading, "queued")) == 2)
        router.place = PlaceAnswer(position=1, start_s=60.0)
        await eventually(lambda: len(named(reading, "queued")) == 3)
        router.place = PlaceAnswer()  # bound meanwhile: that is another event's news
        script = await adopt(bus, job)
        await script.bind()
        await eventually(lambda: "bound" in reading.text)
        await script.write(events("a "))
        await script.end()
        text = await reading.whole()
    assert named(reading, "queued")[1:] == [
        {"id": job, "position": 1, "eta_s": 12.0},
        {"id": job, "position": 1, "eta_s": 60.0},
    ]
    assert [event.event for event in parse_sse(text)][3:] == ["bound", "token", "succeeded"]


@pytest.mark.usefixtures("_no_pause")
async def test_a_stream_tells_how_far_a_load_is_until_the_node_has_the_model(
    alice: httpx.AsyncClient, bus: Bus, gateway: Gateway
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind(decision=DECISION)
    async with stream(alice, job) as reading:
        await eventually(lambda: len(named(reading, "loading")) >= 3)
        first = named(reading, "loading")[0]
        assert (first["model"], first["node"], first["expected_s"]) == (MODEL, NODE, 3.0)
        assert 0 <= first["elapsed_s"] <= named(reading, "loading")[-1]["elapsed_s"]
        beat = Heartbeat(node=NODE, boot=BOOT, beat=2, changes=1, slots=1, loaded=(LoadedModel(name=MODEL),))
        await bus.append(f"$KV.nodes.{NODE}", encode(beat))

        async def says_no_more() -> bool:
            said = len(named(reading, "loading"))
            for _ in range(30):  # time for many more words, if there were any
                await alice.get(f"/jobs/{job}")
            return said == len(named(reading, "loading"))

        await eventually(says_no_more)
        await script.write(events("a "))
        await script.end()
        text = await reading.whole()
    kinds = [event.event for event in parse_sse(text)]
    assert [kind for n, kind in enumerate(kinds) if kind != kinds[n - 1]] == ["bound", "loading", "token", "succeeded"]


@pytest.mark.usefixtures("_no_pause")
async def test_of_a_model_that_is_there_no_load_is_told(alice: httpx.AsyncClient, bus: Bus) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind(decision=msgspec.structs.replace(DECISION, cold=False))
    async with stream(alice, job) as reading:
        await eventually(lambda: "bound" in reading.text)
        await script.end()
        await reading.whole()
    assert named(reading, "loading") == []


@pytest.mark.usefixtures("_no_pause")
async def test_a_resumed_stream_says_nothing_of_queue_and_load(
    alice: httpx.AsyncClient, bus: Bus, router: RouterStub
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    async with script.answering():
        epoch = await script.bind(decision=DECISION)
        a, b = events("a "), events("b ")
        await script.write(a)
        async with stream(alice, job, headers={"Last-Event-ID": f"{epoch}.{len(a)}"}) as reading:
            await script.write(b)
            await eventually(lambda: "b " in reading.text)
            await script.end()
            text = await reading.whole()
    assert [event.event for event in parse_sse(text)] == ["token", "succeeded"]


# -- a dry run -----------------------------------------------------------------------------------------------------------


async def test_a_dry_run_tells_where_a_job_would_go_and_stores_nothing(
    alice: httpx.AsyncClient, router: RouterStub
) -> None:
    router.quote = QuoteAnswer(decision=DECISION, start_s=4.5, finish_s=13.5)
    more = {"options": {"num_ctx": 8192, "num_predict": 90}, "priority": "batch", "metadata": {"a": "b"}}
    answer = await alice.post("/jobs", params={"dry_run": "1"}, json=BODY | more)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["decision"]["node"], told["eta_s"], told["finish_s"]) == (NODE, 4.5, 13.5)
    assert (told["num_ctx"], told["output_tokens"], told["priority"]) == (8192, 90, "batch")
    assert "id" not in told
    assert "location" not in answer.headers
    assert (await alice.get("/jobs")).json()["jobs"] == []
    [asked] = router.asked
    assert (asked.client, asked.submission.num_ctx, asked.submission.priority) == ("alice", 8192, Priority.BATCH)


async def test_a_dry_run_says_why_no_node_can_take_the_job(alice: httpx.AsyncClient, router: RouterStub) -> None:
    router.quote = QuoteAnswer(reason="no node has 90 GB")
    told = (await alice.post("/jobs", params={"dry_run": "true"}, json=BODY)).json()
    assert (told["decision"], told["reason"], told["eta_s"]) == (None, "no node has 90 GB", None)


async def test_a_dry_run_checks_what_a_submit_checks(alice: httpx.AsyncClient, router: RouterStub) -> None:
    for body, status in ((BODY | {"x": 1}, 400), (BODY | {"model": "nobody-has-it"}, 404)):
        assert (await alice.post("/jobs", params={"dry_run": "1"}, json=body)).status_code == status
    assert router.asked == []


@contextlib.asynccontextmanager
async def without_router(nats: NatsServer, keys: Keys, bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    await add_node(bus, MODEL)
    async with running_gateway(nats, drain_grace=0) as gateway, gateway.client(keys.alice) as client:
        yield client


async def test_without_a_router_there_are_jobs_but_no_dry_runs(nats: NatsServer, keys: Keys, bus: Bus) -> None:
    async with without_router(nats, keys, bus) as alice:
        answer = await alice.post("/jobs", params={"dry_run": "1"}, json=BODY)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "2"
        assert (await alice.post("/jobs", json=BODY | {"deadline_s": 1})).status_code == 202


# -- deadlines -----------------------------------------------------------------------------------------------------------


async def test_a_job_that_would_end_after_its_deadline_is_refused_at_once(
    alice: httpx.AsyncClient, router: RouterStub
) -> None:
    router.quote = TOO_LATE
    answer = await alice.post("/jobs", json=BODY | {"deadline_s": 30})
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["code"], told["path"], told["retryable"]) == ("deadline_unmeetable", "deadline_s", True)
    assert (told["deadline_s"], told["eta_s"], told["finish_s"]) == (30, 40.0, 90.0)
    assert answer.headers["retry-after"] == "60"
    assert (await alice.get("/jobs")).json()["jobs"] == [], "nothing was stored"


@pytest.mark.parametrize(
    "quote", [None, QuoteAnswer(), QuoteAnswer(reason="nowhere"), QuoteAnswer(decision=DECISION, finish_s=30.0)]
)
async def test_a_job_is_taken_when_it_may_be_in_time(
    alice: httpx.AsyncClient, router: RouterStub, quote: QuoteAnswer | None
) -> None:
    router.quote = quote
    assert (await alice.post("/jobs", json=BODY | {"deadline_s": 30})).status_code == 202
    assert [asked.submission.deadline_s for asked in router.asked] == [30]


async def test_only_a_deadline_that_the_client_set_itself_is_a_reason_to_refuse(
    gateway: Gateway, bus: Bus, router: RouterStub
) -> None:
    router.quote = TOO_LATE
    key = await add_client(bus, "carol", policy=Policy(deadline_s=10, weight=3.0, max_running=2))

    async with gateway.client(key) as carol:

        async def accepted() -> bool:
            return (await carol.post("/jobs", json=BODY)).status_code == 202

        await eventually(accepted)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with carol.stream("POST", "/v1/chat/completions", json=chat) as response:
            assert response.status_code == 200
        job = (await carol.get("/jobs")).json()["jobs"][0]["id"]
    assert router.asked == []
    made = (await adopt(bus, job, "carol")).submission
    assert (made.deadline_s, made.weight, made.max_running) == (10, 3.0, 2)


async def test_who_asks_again_for_a_job_that_is_there_gets_it_however_late_it_is(
    alice: httpx.AsyncClient, router: RouterStub
) -> None:
    headers = {"Idempotency-Key": "order 66"}
    first = await alice.post("/jobs", json=BODY | {"deadline_s": 30}, headers=headers)
    router.quote = TOO_LATE
    again = await alice.post("/jobs", json=BODY | {"deadline_s": 30}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = await alice.post("/jobs", json=BODY | {"deadline_s": 30}, headers={"Idempotency-Key": "order 67"})
    assert other.status_code == 429


async def test_a_retry_needs_the_same_context(alice: httpx.AsyncClient, bus: Bus) -> None:
    job = await submitted(alice, options={"num_ctx": 8192})
    script = await adopt(bus, job)
    assert script.submission.num_ctx == 8192
    await script.bind()
    await script.finish(b"", state=JobState.EXPIRED)
    again = await alice.post(f"/jobs/{job}/retry")
    assert again.status_code == 202
    assert (await adopt(bus, again.json()["id"])).submission.num_ctx == 8192


async def test_the_largest_context_is_a_setting(nats: NatsServer, keys: Keys, bus: Bus, gateway: Gateway) -> None:
    async with running_gateway(nats, max_num_ctx=4096) as small, small.client(keys.alice) as alice:
        answer = await alice.post("/jobs", json=BODY | {"options": {"num_ctx": 4097}})
        assert (answer.status_code, answer.json()["path"]) == (400, "options.num_ctx")
        assert (await alice.post("/jobs", json=BODY | {"options": {"num_ctx": 4096}})).status_code == 202
