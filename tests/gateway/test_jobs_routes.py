"""`/jobs` over a real socket: what clients see, from the first byte to the last."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away
from libs.common.contracts import subjects
from libs.common.contracts.clients import Policy, Scope
from libs.common.contracts.codec import encode
from libs.common.contracts.events import Position
from libs.common.contracts.nodes import Heartbeat, Phase
from libs.common.contracts.nodes import Running as RunningJob
from libs.common.contracts.requests import Priority
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal
from libs.common.states import JobState
from services.gateway import job_service, listing, streaming
from services.gateway.http import Exchange
from services.gateway.sse import log_frames
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, Gateway, RouterStub, add_client, add_node, running_gateway
from tests.gateway.scripted import BOOT, END, NODE, Script, events
from tests.gateway.whole import whole
from tests.support.clients import parse_sse
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

BODY = {"model": MODEL, "prompt": "hi", "metadata": {"run": "4"}}
A, B, C = events("a "), events("b "), events("c ")
PATIENT_S = 20.0  # for what comes at once, with every core busy


async def submitted(client: httpx.AsyncClient, **more: Any) -> str:
    answer = await client.post("/jobs", json=BODY | more)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


class Streaming:
    """A stream that is being read; `text` is all that came."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.text = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for piece in self.response.aiter_text():
            self.text += piece

    async def whole(self) -> str:
        await asyncio.wait_for(self._reading, PATIENT_S)
        return self.text

    async def leave(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self.response.aclose()


@contextlib.asynccontextmanager
async def stream(client: httpx.AsyncClient, job: str, **more: Any) -> AsyncIterator[Streaming]:
    async with client.stream("GET", f"/jobs/{job}/stream", **more) as response:
        reading = Streaming(response)
        try:
            yield reading
        finally:
            await reading.leave()


# -- submit --------------------------------------------------------------------------------------------------------------


async def test_a_job_is_accepted_with_its_id_and_where_to_find_it(alice: httpx.AsyncClient, bus: Bus) -> None:
    answer = await alice.post("/jobs", json=BODY)

    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.json() == {"id": job, "state": "queued", "kind": "generate", "model": MODEL}
    assert answer.headers["location"] == f"/jobs/{job}"
    assert answer.headers["arriero-job-id"] == job
    stored = await bus.last("JOBS", subjects.record(JobKey("alice", job), "new"))
    assert stored is not None, "acked before anybody was told"


@pytest.mark.parametrize("best", Priority)
async def test_the_clients_policy_caps_its_priority(gateway: Gateway, bus: Bus, best: Priority) -> None:
    key = await add_client(bus, "carol", policy=Policy(priority=best))
    async with gateway.client(key) as carol:
        await eventually(lambda: _accepted(carol))
        job = await submitted(carol, priority="interactive")
        assert (await carol.get(f"/jobs/{job}")).json()["priority"] == best


async def _accepted(client: httpx.AsyncClient) -> bool:
    return (await client.get("/jobs")).status_code == 200


async def test_an_unknown_model_is_not_found_and_the_models_that_exist_are_named(alice: httpx.AsyncClient) -> None:
    answer = await alice.post("/jobs", json=BODY | {"model": "gpt-9"})
    assert answer.status_code == 404
    assert answer.json()["code"] == "model_not_found"
    assert answer.json()["models"] == [MODEL, "phi:latest"]
    assert MODEL in answer.json()["detail"]


async def test_with_an_empty_fleet_nothing_is_taken_but_trying_again_helps(
    nats: NatsServer, bus: Bus, keys: Keys
) -> None:
    async with running_gateway(nats, drain_grace=0) as gateway, gateway.client(keys.alice) as alice:
        answer = await alice.post("/jobs", json=BODY)
        assert answer.status_code == 503
        assert answer.json()["retryable"] is True
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "body", [b"{", b'{"model": "m:1", "prompt": "x", "temprature": 1}', b'{"model":"m:1","prompt":7}']
)
async def test_a_bad_body_is_the_callers_fault(alice: httpx.AsyncClient, body: bytes) -> None:
    answer = await alice.post("/jobs", content=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "invalid_request"


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(gateway: Gateway, keys: Keys) -> None:
    reader, writer = await _connect(gateway)
    writer.write(_head("POST /jobs", keys.alice, "Content-Length: 99999999"))
    assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_body_in_chunks_is_refused_once_it_has_grown_too_large(alice: httpx.AsyncClient) -> None:
    """Nobody said how long it would be, so it is counted."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):  # 25 MB in all: the limit is 20 MiB
            yield b" " * 250_000

    answer = await alice.post("/jobs", content=endless())
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"


async def test_while_nats_is_away_everything_says_so_and_when_it_is_back_everything_works(
    nats: NatsServer, gateway: Gateway, alice: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submitted(alice)
    await nats.kill()
    await eventually(lambda: not gateway.bus.connected)
    for answer in (
        await alice.post("/jobs", json=BODY),
        await alice.get(f"/jobs/{job}"),
        await alice.get("/jobs"),
        await alice.delete(f"/jobs/{job}"),
        await alice.get(f"/jobs/{job}/stream"),
        await alice.post("/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": "x"}]}),
    ):
        assert answer.status_code == 503, answer.text
        assert "retry-after" in answer.headers
    await nats.start()
    await eventually(lambda: gateway.bus.connected)
    await eventually(lambda: _accepted(alice))
    assert (await alice.get(f"/jobs/{job}")).status_code == 200


async def test_a_question_that_went_down_with_its_connection_is_asked_again(
    alice: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await submitted(alice)
    newest, lost = Journal.newest, []

    async def first_lost(journal: Journal, key: JobKey) -> Any:
        if not lost:
            lost.append(key)
            journal._bus.connections += 1
            raise Away("no answer")
        return await newest(journal, key)

    monkeypatch.setattr(Journal, "newest", first_lost)
    async with stream(alice, job) as reading:
        assert reading.response.status_code == 200
    assert lost


# -- Idempotency-Key -------------------------------------------------------------------------------------------------------


async def test_the_same_key_and_body_give_the_same_job_also_at_two_gateways_at_once(
    nats: NatsServer, gateway: Gateway, keys: Keys, alice: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "order 66"}
    async with running_gateway(nats, drain_grace=0) as other, other.client(keys.alice) as elsewhere:
        answers = await asyncio.gather(
            *(client.post("/jobs", json=BODY, headers=headers) for client in (alice, elsewhere) * 5)
        )
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [202]
    assert len((await alice.get("/jobs")).json()["jobs"]) == 1


async def test_the_same_key_still_finds_the_job_after_it_has_finished(alice: httpx.AsyncClient, bus: Bus) -> None:
    headers = {"Idempotency-Key": "order 66"}
    job = (await alice.post("/jobs", json=BODY, headers=headers)).json()["id"]
    script = await adopt(bus, job)
    await script.bind()
    await script.finish(A + END)

    again = await alice.post("/jobs", json=BODY, headers=headers)
    assert again.status_code == 200
    assert again.headers["location"] == f"/jobs/{job}"
    assert (again.json()["id"], again.json()["state"]) == (job, "succeeded")


async def test_the_same_key_still_finds_the_job_after_its_model_has_gone(alice: httpx.AsyncClient, bus: Bus) -> None:
    headers = {"Idempotency-Key": "order 66"}
    job = (await alice.post("/jobs", json=BODY, headers=headers)).json()["id"]
    await add_node(bus, "phi:latest")
    await eventually(lambda: _status_is(alice, "POST", "/jobs", 404, json=BODY))

    again = await alice.post("/jobs", json=BODY, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, job)
    assert (await alice.post("/jobs", json=BODY, headers={"Idempotency-Key": "67"})).status_code == 404


async def test_the_same_key_with_another_body_is_refused(alice: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order 66"}
    await alice.post("/jobs", json=BODY, headers=headers)
    other = await alice.post("/jobs", json=BODY | {"prompt": "something else"}, headers=headers)
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency_mismatch"


async def test_another_client_with_the_same_key_has_a_job_of_its_own(
    alice: httpx.AsyncClient, bob: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "order 66"}
    ids = {(await client.post("/jobs", json=BODY, headers=headers)).json()["id"] for client in (alice, bob)}
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_has_1_to_255_characters(alice: httpx.AsyncClient, key: str) -> None:
    assert (await alice.post("/jobs", json=BODY, headers={"Idempotency-Key": key})).status_code == 400


# -- poll ----------------------------------------------------------------------------------------------------------------


async def test_a_job_is_seen_from_the_queue_to_its_result(alice: httpx.AsyncClient, bus: Bus) -> None:
    job = await submitted(alice)
    seen = (await alice.get(f"/jobs/{job}")).json()
    assert (seen["state"], seen["position"], seen["metadata"]) == ("queued", 4, {"run": "4"})

    script = await adopt(bus, job)
    epoch = await script.bind()
    seen = (await alice.get(f"/jobs/{job}")).json()
    assert (seen["state"], seen["node"], seen["epoch"], seen["attempts"]) == ("bound", NODE, epoch, 1)

    run = RunningJob(client="alice", job=job, epoch=epoch, phase=Phase.DECODING)
    beat = Heartbeat(node=NODE, boot=BOOT, beat=2, changes=1, slots=1, running=(run,))
    await bus.append(f"$KV.nodes.{NODE}", encode(beat))
    await eventually(lambda: _state(alice, job, "running"))

    await script.finish(A + B + END)
    seen = (await alice.get(f"/jobs/{job}")).json()
    assert (seen["state"], seen["result"]["response"]) == ("succeeded", "a b ")


async def _state(client: httpx.AsyncClient, job: str, state: str) -> bool:
    return bool((await client.get(f"/jobs/{job}")).json()["state"] == state)


async def test_a_long_poll_answers_as_soon_as_the_job_ends(
    alice: httpx.AsyncClient, gateway: Gateway, bus: Bus
) -> None:
    job = await submitted(alice)
    before = gateway.subscriptions
    polling = asyncio.create_task(alice.get(f"/jobs/{job}", params={"wait": "20"}))
    await eventually(lambda: gateway.subscriptions == before + 3)
    script = await adopt(bus, job)
    await script.bind()
    await script.end()
    answer = await asyncio.wait_for(polling, PATIENT_S)
    assert answer.json()["state"] == "succeeded"
    assert gateway.subscriptions == before


async def test_a_long_poll_that_runs_out_answers_as_things_are(alice: httpx.AsyncClient) -> None:
    job = await submitted(alice)
    answer = await alice.get(f"/jobs/{job}", params={"wait": "0.05"})
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


async def test_a_long_poll_whose_client_has_left_holds_nothing(
    gateway: Gateway, keys: Keys, alice: httpx.AsyncClient
) -> None:
    """It would otherwise sit there for minutes, with its subscriptions."""
    job = await submitted(alice)
    before = gateway.subscriptions
    _, writer = await _connect(gateway)
    writer.write(_head(f"GET /jobs/{job}?wait=300", keys.alice))
    await eventually(lambda: gateway.subscriptions == before + 3)
    writer.close()
    await eventually(lambda: gateway.subscriptions == before)


async def test_a_long_poll_ends_when_the_gateway_drains(gateway: Gateway, alice: httpx.AsyncClient) -> None:
    job = await submitted(alice)
    before = gateway.subscriptions
    polling = asyncio.create_task(alice.get(f"/jobs/{job}", params={"wait": "300"}))
    await eventually(lambda: gateway.subscriptions > before)
    assert gateway.running.drain
    await gateway.running.drain()
    answer = await asyncio.wait_for(polling, PATIENT_S)
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf", "1e999", ""])
async def test_a_wait_that_is_no_time_is_refused(alice: httpx.AsyncClient, wait: str) -> None:
    job = await submitted(alice)
    answer = await alice.get(f"/jobs/{job}", params={"wait": wait})
    assert (answer.status_code, answer.json()["path"]) == (400, "wait")


# -- stream --------------------------------------------------------------------------------------------------------------


async def test_a_stream_tells_each_state_then_each_token_then_the_end(
    alice: httpx.AsyncClient, bus: Bus, keys: Keys
) -> None:
    job = await submitted(alice)
    async with stream(alice, job) as reading:
        assert reading.response.status_code == 200
        assert reading.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reading.response.headers["x-accel-buffering"] == "no"
        await eventually(lambda: "queued" in reading.text)
        script = await adopt(bus, job)
        epoch = await script.bind()
        await eventually(lambda: "bound" in reading.text)
        await script.write(A, B)
        await eventually(lambda: "b " in reading.text)
        whole = await script.end()
        text = await reading.whole()

    assert [event.event for event in parse_sse(text)] == ["queued", "bound", "token", "token", "succeeded"]
    assert text.endswith(log_frames(Position(epoch, 0), whole).decode())


async def test_a_stream_can_be_resumed_from_every_id_it_gave_with_the_same_bytes(
    alice: httpx.AsyncClient, bus: Bus
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind()
    await script.finish(A + B + C + END)
    text = (await alice.get(f"/jobs/{job}/stream")).text

    seen = ""
    for event in parse_sse(text):
        seen += event.raw
        for asked in ({"headers": {"Last-Event-ID": event.id}}, {"params": {"after": event.id}}):
            answer = await alice.get(f"/jobs/{job}/stream", **asked)  # type: ignore[arg-type]  # httpx takes either
            assert answer.status_code == 200
            assert seen + answer.text == text


async def test_a_running_stream_is_resumed_at_another_gateway(
    nats: NatsServer, gateway: Gateway, keys: Keys, alice: httpx.AsyncClient, bus: Bus
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    async with script.answering(), running_gateway(nats, drain_grace=0) as other, other.client(keys.alice) as elsewhere:
        await script.bind()
        async with stream(alice, job) as first:
            await eventually(lambda: "bound" in first.text)
            await script.write(A, B)
            await eventually(lambda: "b " in first.text)
        events_seen = parse_sse(first.text)
        async with stream(elsewhere, job, headers={"Last-Event-ID": events_seen[-2].id}) as second:
            await eventually(lambda: "b " in second.text)
            await script.end()
            rest = await second.whole()
    assert [json.loads(event.data).get("text") for event in parse_sse(rest)] == ["b ", None]


@pytest.mark.parametrize("position", ["abc", "1", "1.x", "-1.5", "1.5.2", "1.99999999999999999999"])
async def test_a_position_of_another_form_is_refused(alice: httpx.AsyncClient, position: str) -> None:
    job = await submitted(alice)
    answer = await alice.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": position})
    assert (answer.status_code, answer.json()["path"]) == (400, "Last-Event-ID")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("offset", [3, 10_000])
async def test_a_made_up_position_is_an_answer_of_its_own_and_not_a_broken_stream(
    alice: httpx.AsyncClient, bus: Bus, finished: bool, offset: int
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    async with script.answering():
        epoch = await script.bind()
        await script.write(A, B)
        if finished:
            await script.end()
        answer = await alice.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": f"{epoch}.{offset}"})
        assert (answer.status_code, answer.json()["code"]) == (409, "position_lost")
        asked = {"headers": {"Last-Event-ID": f"{epoch}.{offset}"}, "params": {"reset": "1"}}
        async with stream(alice, job, **asked) as reading:
            await eventually(lambda: "b " in reading.text)
            kinds = [event.event for event in parse_sse(reading.text)]
            assert kinds[:3] == ["reset", "token", "token"]


async def test_who_asks_only_for_the_head_of_a_stream_does_not_hold_one_open(alice: httpx.AsyncClient) -> None:
    job = await submitted(alice)
    answer = await alice.head(f"/jobs/{job}/stream")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_stream_that_says_nothing_is_kept_alive(
    alice: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PING_S", 0.05)
    monkeypatch.setattr(streaming, "BEGIN_S", 0.05)
    job = await submitted(alice)
    async with stream(alice, job) as reading:
        await eventually(lambda: reading.text.count(": ping\n\n") >= 2)
    assert [event.event for event in parse_sse(reading.text)] == ["queued"]


async def test_a_client_that_leaves_a_stream_of_jobs_cancels_nothing_and_leaves_nothing_behind(
    gateway: Gateway, alice: httpx.AsyncClient, bus: Bus
) -> None:
    job = await submitted(alice)
    before = gateway.subscriptions
    async with stream(alice, job) as reading:
        await eventually(lambda: "queued" in reading.text)
    await eventually(lambda: gateway.subscriptions == before)
    assert await Journal(bus).cancel_mark(JobKey("alice", job)) is None


async def test_a_draining_gateway_ends_its_streams_so_that_they_can_be_resumed(
    gateway: Gateway, alice: httpx.AsyncClient
) -> None:
    job = await submitted(alice)
    async with stream(alice, job) as reading:
        await eventually(lambda: "queued" in reading.text)
        assert gateway.running.drain
        await gateway.running.drain()
        text = await reading.whole()
    assert "resume with Last-Event-ID" in text
    assert "event: error" not in text
    refused = await alice.post("/jobs", json=BODY)
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert refused.headers["retry-after"] == "1"


async def test_who_asks_a_gateway_twice_to_end_gets_its_streams_ended_so_that_they_can_be_resumed(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub
) -> None:
    await add_node(bus, MODEL)
    async with running_gateway(nats, drain_grace=600) as gateway, gateway.client(keys.alice) as alice:
        job = await submitted(alice)
        async with stream(alice, job) as reading:
            await eventually(lambda: "queued" in reading.text)
            assert gateway.running.drain
            draining = asyncio.create_task(gateway.running.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            assert gateway.running.hurry
            gateway.running.hurry()
            async with asyncio.timeout(30):
                await draining
            assert "resume with Last-Event-ID" in await reading.whole()


async def test_a_client_that_takes_nothing_is_closed_and_nothing_of_it_stays(
    nats: NatsServer, router: RouterStub, keys: Keys, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket would stay open for ever: what lies in the buffer cannot be sent, so a polite close never ends."""
    begin, aborts = Exchange.start_events, []

    async def noted(exchange: Any, *rest: Any) -> None:
        aborts.append(exchange._abort)
        await begin(exchange, *rest)

    monkeypatch.setattr(Exchange, "start_events", noted)
    await add_node(bus, MODEL)
    async with (
        running_gateway(nats, drain_grace=0, stalled_timeout=0.3) as gateway,
        gateway.client(keys.alice) as alice,
    ):
        job = await submitted(alice)
        script = await adopt(bus, job)
        await _stall(gateway, script, keys.alice, aborts)


async def _stall(gateway: Gateway, script: Script, key: str, aborts: list[Any]) -> None:
    before, job = gateway.subscriptions, script.key.job
    async with script.answering():
        await script.bind()
        reader, writer = await _connect(gateway, limit=1024)
        writer.write(_head(f"GET /jobs/{job}/stream", key))
        assert b" 200 " in await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's socket transports have it
        piece = events("y" * 100_000)
        for _ in range(120):  # more than kernel and buffers hold
            await script.write(piece)
            await asyncio.sleep(0)
        await eventually(lambda: gateway.subscriptions == before)
        transport = aborts[0].__self__
        await eventually(lambda: transport.is_closing() and not transport.get_write_buffer_size())
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 20):
                pass
        writer.transport.abort()


# -- cancel, erase, list ---------------------------------------------------------------------------------------------------


async def test_cancelling_a_waiting_job_leaves_a_mark_that_names_its_submission(
    alice: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_service, "CANCEL_WAIT_S", 0.05)
    job = await submitted(alice)
    answer = await alice.delete(f"/jobs/{job}")
    assert (answer.status_code, answer.json()["cancelling"], answer.json()["state"]) == (202, True, "queued")
    mark = await Journal(bus).cancel_mark(JobKey("alice", job))
    stored = await bus.last("JOBS", subjects.record(JobKey("alice", job), "new"))
    assert mark is not None
    assert stored is not None
    assert mark.submitted == stored.sequence


async def test_cancelling_a_running_job_answers_with_its_end_when_it_comes_at_once(
    alice: httpx.AsyncClient, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_service, "CANCEL_WAIT_S", 20.0)
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind()
    cancelling = asyncio.create_task(alice.delete(f"/jobs/{job}"))
    await eventually(lambda: Journal(bus).cancel_mark(JobKey("alice", job)))
    await script.finish(A, state=JobState.CANCELLED)
    answer = await cancelling
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")


async def test_deleting_a_finished_job_erases_it_and_then_it_is_unknown(alice: httpx.AsyncClient, bus: Bus) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind()
    await script.finish(A + END)
    answer = await alice.delete(f"/jobs/{job}")
    assert answer.json() == {"id": job, "state": "succeeded", "erased": True}
    assert (await alice.get(f"/jobs/{job}")).status_code == 404
    assert (await alice.delete(f"/jobs/{job}")).status_code == 404


async def test_the_key_of_an_erased_job_neither_finds_it_nor_runs_it_again(nats: NatsServer) -> None:
    """With a real router: its record stays as long as the result would have, so that a late duplicate begins nothing."""
    async with whole(nats) as (_, client):
        body = {"model": "chat:latest", "prompt": "hi"}
        client.headers["Idempotency-Key"] = "once"
        job = (await client.post("/jobs", json=body)).json()["id"]
        assert (await client.get(f"/jobs/{job}", params={"wait": 20})).json()["state"] == "succeeded"
        assert (await client.delete(f"/jobs/{job}")).json()["erased"] is True
        again = await client.post("/jobs", json=body)
        assert (again.status_code, again.json()["code"]) == (410, "request_gone"), again.text
        assert "new key" in again.json()["detail"]
        assert (await client.get(f"/jobs/{job}")).status_code == 404
        assert (await client.post("/jobs", json=body | {"prompt": "ho"})).status_code == 422


async def test_without_a_router_nothing_is_erased_and_the_answer_says_so(
    nats: NatsServer, bus: Bus, keys: Keys
) -> None:
    await add_node(bus, MODEL)
    async with running_gateway(nats, drain_grace=0) as gateway, gateway.client(keys.alice) as alice:
        job = await submitted(alice)
        assert (await alice.get(f"/jobs/{job}")).json()["position"] is None
        script = await adopt(bus, job)
        await script.finish(END, state=JobState.EXPIRED)
        answer = await alice.delete(f"/jobs/{job}")
        assert answer.status_code == 503
        assert (await alice.get(f"/jobs/{job}")).status_code == 200


async def test_a_listing_goes_through_all_jobs_of_the_client_page_by_page(
    alice: httpx.AsyncClient, bob: httpx.AsyncClient, bus: Bus
) -> None:
    scripts = [Script(bus, JobKey("alice", f"job_{n:03}")) for n in range(250)]
    for script in scripts:
        await script.submit()
        if script.key.job.endswith("7"):
            await script.bind()
            await script.finish(END)
    await submitted(bob)

    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await alice.get("/jobs", params={"limit": "40", **cursor})).json()
        assert len(page["jobs"]) <= 40
        found += page["jobs"]
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}

    assert sorted(job["id"] for job in found) == sorted(script.key.job for script in scripts), (
        "each once, nobody else's"
    )
    assert {job["state"] for job in found if job["id"].endswith("7")} == {"succeeded"}
    only = (await alice.get("/jobs", params={"state": "succeeded", "limit": "1000"})).json()
    assert len(only["jobs"]) == 25


async def test_a_listing_never_reads_a_prompt(alice: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await submitted(alice, prompt="canary")
    read: list[bytes] = []
    record = listing._record

    def spied(message: Any, *rest: Any) -> Any:
        read.append(message.data)
        return record(message, *rest)

    monkeypatch.setattr(listing, "_record", spied)
    assert len((await alice.get("/jobs")).json()["jobs"]) == 1
    assert read == [b""]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"limit": "²"}, {"limit": "-1"}, {"limit": "9" * 5000},
        {"cursor": "x"}, {"cursor": "²"}, {"cursor": "-1"}, {"cursor": "9" * 19}, {"cursor": "9" * 5000},
        {"state": "happy"},
    ],
)  # fmt: skip
async def test_a_listing_refuses_what_no_listing_gave(alice: httpx.AsyncClient, query: dict[str, str]) -> None:
    answer = await alice.get("/jobs", params=query)
    assert (answer.status_code, answer.json()["path"]) == (400, next(iter(query)))


async def test_an_empty_listing_is_a_page_without_rows(alice: httpx.AsyncClient) -> None:
    assert (await alice.get("/jobs")).json() == {"jobs": [], "cursor": None}
    assert (await alice.get("/jobs", params={"cursor": "999999999"})).json() == {"jobs": [], "cursor": None}


# -- whose job it is -------------------------------------------------------------------------------------------------------

BY_ID = [
    ("GET", "/jobs/{}"), ("GET", "/jobs/{}?wait=0.05"), ("DELETE", "/jobs/{}"), ("GET", "/jobs/{}/stream"),
    ("POST", "/jobs/{}/retry"), ("GET", "/v1/chat/completions/{}"), ("GET", "/v1/chat/completions/{}?stream=true"),
]  # fmt: skip


def _bytes(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    return (
        answer.status_code,
        [header for header in answer.headers.multi_items() if header[0] not in ("date", "x-request-id")],
        answer.content,
    )


@pytest.mark.parametrize(("method", "path"), BY_ID)
@pytest.mark.parametrize("state", ["queued", "bound", "finished"])
async def test_somebody_elses_job_looks_exactly_like_none_at_all(
    alice: httpx.AsyncClient, bob: httpx.AsyncClient, bus: Bus, method: str, path: str, state: str
) -> None:
    """Byte for byte, on every route that takes an id: nobody learns that a job exists."""
    job = await submitted(alice)
    script = await adopt(bus, job)
    if state != "queued":
        await script.bind()
    if state == "finished":
        await script.finish(A + END)

    foreign = await bob.request(method, path.format(job))
    assert foreign.status_code == 404
    for unknown in ("job_" + "a" * 26, "x", "%2A", "%3E", "a.b", "job_" + "a" * 200, "job%00"):
        assert _bytes(await bob.request(method, path.format(unknown))) == _bytes(foreign)
    assert (await alice.get(f"/jobs/{job}")).status_code == 200, "and nothing has happened to it"
    assert await Journal(bus).cancel_mark(script.key) is None


# -- who may what ----------------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/jobs", Scope.JOBS_WRITE), ("GET", "/jobs", Scope.JOBS_READ), ("GET", "/jobs/x", Scope.JOBS_READ),
    ("GET", "/jobs/x/stream", Scope.JOBS_READ), ("DELETE", "/jobs/x", Scope.JOBS_CANCEL),
    ("POST", "/jobs/x/retry", Scope.JOBS_WRITE), ("POST", "/v1/chat/completions", Scope.INFERENCE),
    ("GET", "/v1/chat/completions/x", Scope.INFERENCE), ("GET", "/v1/models", Scope.MODELS_READ),
    ("GET", "/v1/models/m", Scope.MODELS_READ), ("GET", "/nodes", Scope.ADMIN_CLUSTER),
    ("PUT", "/nodes/n/policy", Scope.ADMIN_CLUSTER), ("POST", "/nodes/n/models", Scope.ADMIN_CLUSTER),
    ("GET", "/models", Scope.ADMIN_CLUSTER), ("PUT", "/models/a/b/policy", Scope.ADMIN_CLUSTER),
    ("DELETE", "/models/a/b/policy", Scope.ADMIN_CLUSTER),
    ("POST", "/webhooks", Scope.JOBS_WRITE), ("GET", "/webhooks", Scope.JOBS_READ), ("GET", "/webhooks/w", Scope.JOBS_READ),
    ("DELETE", "/webhooks/w", Scope.JOBS_WRITE), ("POST", "/webhooks/w/test", Scope.JOBS_WRITE),
]  # fmt: skip
FOR_ANY_CREDENTIAL = {("GET", "/openapi.json")}
PATTERNS = {
    "/x": "/{id}",
    "/v1/models/m": "/v1/models/{model:path}",
    "/models/a/b": "/models/{name:path}",
    "/n/": "/{node}/",
    "/webhooks/w": "/webhooks/{webhook}",
}


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_no_route_lets_anybody_in_without_a_credential_and_the_scope_it_needs(
    gateway: Gateway, bus: Bus, method: str, path: str, scope: Scope
) -> None:
    key = await add_client(bus, "dave", scopes=tuple(other for other in Scope if other is not scope))
    async with gateway.client("") as nobody, gateway.client("arr_not_a_key") as wrong, gateway.client(key) as dave:
        for client in (nobody, wrong):
            answer = await client.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
        await eventually(lambda: _status_is(dave, method, path, 403))
        refused = (await dave.request(method, path)).json()
    said = refused["error"]["message"] if path.startswith("/v1/") else refused["detail"]
    assert scope in said


async def _status_is(client: httpx.AsyncClient, method: str, path: str, status: int, **more: Any) -> bool:
    return (await client.request(method, path, **more)).status_code == status


def test_every_route_of_the_gateway_is_in_the_table_above(gateway: Gateway) -> None:
    routes = {(method, route.path) for route in gateway.running.ports[0].app.routes for method in route.methods}
    patterns = set()
    for method, path, _ in ROUTES:
        for example, pattern in PATTERNS.items():
            path = path.replace(example, pattern)
        patterns.add((method, path))
    assert {route for route in routes if route[0] != "HEAD"} == patterns | FOR_ANY_CREDENTIAL


@pytest.mark.parametrize(
    "path", ["/", "/job", "/jobs/", "/jobs/x/y", "/jobs/x/stream/", "/v1", "/v1/engines", "/%00", "//jobs"]
)
async def test_an_unknown_path_is_not_found_in_its_dialect(alice: httpx.AsyncClient, path: str) -> None:
    answer = await alice.get(path)
    assert answer.status_code == 404
    if path.startswith("/v1/"):
        assert answer.json()["error"]["code"] == "not_found"
    else:
        assert answer.json()["code"] == "not_found"
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/jobs", "GET, HEAD, POST"), ("POST", "/jobs/x", "DELETE, GET, HEAD"),
        ("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models", "GET, HEAD"),
    ],
)  # fmt: skip
async def test_another_method_is_refused_with_those_that_are_taken(
    alice: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await alice.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    code = answer.json()["error"]["code"] if path.startswith("/v1/") else answer.json()["code"]
    assert code == "method_not_allowed"


async def test_nodes_are_shown_to_who_may_see_the_cluster(alice: httpx.AsyncClient) -> None:
    (node,) = (await alice.get("/nodes")).json()["nodes"]
    assert (node["name"], node["state"], node["slots"]) == (NODE, "ready", 1)
    assert [model["name"] for model in node["models"]] == [MODEL, "phi:latest"]


# -- silence ---------------------------------------------------------------------------------------------------------------


async def test_no_prompt_and_no_answer_stands_in_any_log_line(
    alice: httpx.AsyncClient, bus: Bus, log_lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it works, not when it is refused, not when it goes wrong inside (DESIGN §7.7)."""
    job = await submitted(alice, prompt="canary-7341")
    script = await adopt(bus, job)
    async with script.answering():
        await script.bind()
        async with stream(alice, job) as reading:
            await script.write(events("canary-7341"))
            await script.end()
            assert "canary-7341" in await reading.whole()
    await alice.get(f"/jobs/{job}")
    for body in (
        {"model": MODEL, "prompt": "canary-7341", "canary": 1},
        {"model": "m", "prompt": "canary-7341"},
        {"model": MODEL, "prompt": ["canary-7341"]},
        {"model": MODEL, "prompt": "x", "options": {"seed": "canary-7341"}},
    ):
        assert (await alice.post("/jobs", json=body)).status_code in (400, 404)
    await alice.post("/jobs", content=b'{"prompt":"canary-7341')

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(job_service, "parse_job", broken)
    answer = await alice.post("/jobs", json={"model": MODEL, "prompt": "canary-7341"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    said = log_lines.getvalue()
    assert "request.failed" in said
    assert "job.submitted" in said
    assert "canary-7341" not in said


async def test_a_stored_record_that_cannot_be_read_is_our_mistake_and_is_said_in_the_stream_too(
    alice: httpx.AsyncClient, bus: Bus
) -> None:
    job = await submitted(alice)
    script = await adopt(bus, job)
    await script.bind()
    await script.finish(b'{"text":1}\n' + END)
    assert (await alice.get(f"/jobs/{job}")).status_code == 500


# -- helpers ---------------------------------------------------------------------------------------------------------------


async def _connect(gateway: Gateway, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port), **more)


def _head(line: str, key: str, *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {key}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()
