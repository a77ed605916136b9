"""`POST /jobs/{id}/retry`: the same request once more, for jobs that ended without success."""

from typing import Any

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.events import End, Event, line
from libs.common.contracts.faults import Code, Fault
from libs.common.contracts.headers import FACTS
from libs.common.contracts.jobs import decode_submission
from libs.common.journal import Journal
from libs.common.states import JobState
from tests.gateway.conftest import adopt
from tests.gateway.running import MODEL
from tests.gateway.scripted import Script, events

BODY: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "hi"}], "options": {"seed": 4, "num_predict": 9},
    "format": {"type": "object"}, "priority": "batch", "deadline_s": 77.5, "result_ttl_s": 99, "metadata": {"run": "4"},
}  # fmt: skip
KEPT = [JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED]


async def ended(client: httpx.AsyncClient, bus: Bus, state: JobState, **more: Any) -> Script:
    script = await adopt(bus, (await client.post("/jobs", json=BODY | more)).json()["id"])
    await script.bind()
    fault = Fault(code=Code.NODE_FAILED, message="three nodes broke") if state is not JobState.SUCCEEDED else None
    end = End(state=state, fault=fault, final=None if fault else {"done": True})
    await script.finish(events("half ") + line(Event(end=end)), state=state, fault=fault)
    return script


async def stored(bus: Bus, job: str) -> tuple[Any, bytes]:
    found = await bus.last("JOBS", f"jobs.alice.{job}.new")
    assert found is not None
    return decode_submission(found.headers[FACTS]), found.data


@pytest.mark.parametrize("state", KEPT)
async def test_a_job_that_ended_without_success_is_tried_again_as_a_new_one(
    alice: httpx.AsyncClient, bus: Bus, state: JobState
) -> None:
    first = (await ended(alice, bus, state)).key.job
    answer = await alice.post(f"/jobs/{first}/retry")
    made = answer.json()
    assert (answer.status_code, made["state"], made["retry_of"]) == (202, "queued", first)
    assert made["id"] != first
    assert answer.headers["location"] == f"/jobs/{made['id']}"
    was, request = await stored(bus, first)
    now, again = await stored(bus, made["id"])
    assert again == request
    for name in ("kind", "model", "route", "priority", "deadline_s", "result_ttl_s", "digest", "metadata", "detached"):
        assert getattr(now, name) == getattr(was, name), name
    view = (await alice.get(f"/jobs/{made['id']}")).json()
    assert (view["retry_of"], view["metadata"], view["attempts"]) == (first, {"run": "4"}, 0)
    assert (await alice.get(f"/jobs/{first}")).json()["state"] == state, "the first one stays as it ended"


async def test_a_request_in_parts_is_retried_with_parts_of_its_own(alice: httpx.AsyncClient, bus: Bus) -> None:
    """As they lie in the store when the limit is higher; the limit here bounds bodies, not what is there."""
    script = Script(bus)
    body = b'{"model":"m:1","prompt":"' + b"x" * 700_000 + b'"}'
    await script.journal.write(script.key, "new", script.submission, body, expected=0, ttl=600)
    await script.adopt()
    await script.finish(line(Event(end=End(state=JobState.FAILED))), state=JobState.FAILED)
    made = (await alice.post(f"/jobs/{script.key.job}/retry")).json()
    again = await adopt(bus, made["id"])
    entry = await Journal(bus).record_at(again.submitted)
    assert entry is not None
    assert await Journal(bus).body(again.key, entry[1]) == body
    assert again.submission.parts is not None
    assert again.submission.parts != script.submission.parts


async def test_nothing_is_retried_that_runs_or_succeeded_and_the_answer_says_what_to_do(
    alice: httpx.AsyncClient, bus: Bus
) -> None:
    script = await adopt(bus, (await alice.post("/jobs", json=BODY)).json()["id"])
    for act, advice in ((None, "DELETE /jobs"), (script.bind, "DELETE /jobs"), (script.finish, "GET /jobs")):
        if act is not None:
            await act()
        answer = await alice.post(f"/jobs/{script.key.job}/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
        assert advice in answer.json()["detail"]


async def test_a_request_that_is_not_there_any_more_cannot_be_retried(alice: httpx.AsyncClient, bus: Bus) -> None:
    script = await ended(alice, bus, JobState.CANCELLED)
    await script.journal.empty(script.key, "new", script.submitted)  # as the router does
    answer = await alice.post(f"/jobs/{script.key.job}/retry")
    assert (answer.status_code, answer.json()["code"]) == (410, "request_gone")
    assert "submit it again" in answer.json()["detail"]


async def test_an_idempotency_key_makes_one_retry_of_a_job_however_often_it_is_sent(
    alice: httpx.AsyncClient, bus: Bus
) -> None:
    """The key of the job that failed may be used again for its retry: it is another key there."""
    alice.headers["Idempotency-Key"] = "k"
    first = (await ended(alice, bus, JobState.FAILED)).key.job
    answers = [await alice.post(f"/jobs/{first}/retry") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 200]
    (retried,) = {answer.json()["id"] for answer in answers}
    assert retried != first


async def test_one_key_on_the_retries_of_two_jobs_makes_two(alice: httpx.AsyncClient, bus: Bus) -> None:
    """Even of the same request: the job that is retried belongs to the key."""
    failed = [(await ended(alice, bus, JobState.FAILED)).key.job for _ in range(2)]
    alice.headers["Idempotency-Key"] = "k"
    answers = [await alice.post(f"/jobs/{job}/retry") for job in failed]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert [answer.json()["retry_of"] for answer in answers] == failed
    assert len({answer.json()["id"] for answer in answers}) == 2


async def test_a_retry_takes_no_body_and_the_model_must_be_there(alice: httpx.AsyncClient, bus: Bus) -> None:
    script = await ended(alice, bus, JobState.FAILED)
    path = f"/jobs/{script.key.job}/retry"
    assert (await alice.post(path, json={"model": "other"})).status_code == 400
    assert (await alice.post(path, json={})).status_code == 202
    await bus.append("$KV.nodes.node-a", b"", headers={"KV-Operation": "DEL"})
    answer = await alice.post(path)
    while answer.status_code == 202:  # until the gateway has heard of it
        answer = await alice.post(path)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
