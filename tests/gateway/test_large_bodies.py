"""Requests larger than one message: in parts, without anybody noticing, and gone with their job."""

import base64
import json
import os
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from libs.common.bus.connection import Bus
from libs.common.bus.failures import Refused
from libs.common.bus.stored import Ack
from libs.common.contracts.headers import TTL
from libs.common.contracts.subjects import JobKey, parts_of_job
from libs.common.journal import Journal
from services.gateway.settings import MAX_BODY, GatewaySettings
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, SECRET, Gateway, RouterStub, add_node, running_gateway
from tests.gateway.whole import MODEL as SEEING
from tests.gateway.whole import whole
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

MIB = 1024 * 1024
IMAGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + os.urandom(3 * MIB)).decode()
LARGE: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 900_000}]}


async def parts(bus: Bus, key: JobKey) -> dict[str, int]:
    """Subjects that hold a part of the job, and how many bytes of it."""
    info = await bus.api("STREAM.INFO.JOBS", {"subjects_filter": parts_of_job(key)})
    stored = [await bus.last("JOBS", subject) for subject in info["state"].get("subjects") or {}]
    return {part.subject: len(part.data) for part in stored if part is not None and part.data}


@pytest.mark.parametrize("dialect", ["jobs", "openai"])
async def test_a_chat_with_a_large_image_runs_and_its_parts_go_with_it(
    nats: NatsServer, bus: Bus, dialect: str
) -> None:
    """Real router, worker and node."""
    async with whole(nats, max_body=8 * MIB) as (_, client):
        if dialect == "jobs":
            body: dict[str, Any] = {"messages": [{"role": "user", "content": "What is it?", "images": [IMAGE]}]}
            made = await client.post("/jobs", json={"model": SEEING} | body)
            assert made.status_code == 202, made.text
            job = made.json()["id"]
            view = (await client.get(f"/jobs/{job}", params={"wait": 20})).json()
            assert view["state"] == "succeeded", view
            assert view["result"]["message"]["content"]
        else:
            url = {"url": f"data:image/png;base64,{IMAGE}"}
            content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": url}]
            body = {"model": SEEING, "messages": [{"role": "user", "content": content}]}
            made = await client.post("/v1/chat/completions", json=body)
            assert made.status_code == 200, made.text
            job = made.headers["arriero-job-id"]
        stored = await Journal(bus).newest(JobKey("alice", job))
        assert stored is not None
        assert stored.facts is not None
        of_request = stored.facts.job.parts  # type: ignore[union-attr]  # it has ended, so it is a Completion
        assert of_request is not None, "it was in parts"
        assert of_request.count >= 16
        await eventually(lambda: _is_gone(bus, JobKey("alice", job)))


async def _is_gone(bus: Bus, key: JobKey) -> bool:
    return not await parts(bus, key)


@pytest.fixture
async def roomy(nats: NatsServer, bus: Bus, keys: Keys) -> Any:
    """A gateway that takes more than one message holds, and alice at it."""
    await add_node(bus, MODEL)
    async with (
        running_gateway(nats, drain_grace=0, max_body=8 * MIB) as gateway,
        RouterStub(bus),
        gateway.client(keys.alice) as alice,
    ):
        yield gateway, alice


Roomy = tuple[Gateway, httpx.AsyncClient]


async def test_every_part_says_when_it_goes(roomy: Roomy, bus: Bus) -> None:
    """At the latest with its job: whatever becomes of the record that names it."""
    made = await roomy[1].post("/jobs", json=LARGE | {"deadline_s": 70, "result_ttl_s": 80})
    key = JobKey("alice", made.json()["id"])
    found = await parts(bus, key)
    assert len(found) == 4
    for subject in found:
        stored = await bus.last("JOBS", subject)
        assert stored is not None
        assert stored.headers[TTL] == "150"


async def test_a_key_that_is_used_again_leaves_no_second_copy(roomy: Roomy, bus: Bus) -> None:
    """Each try writes its parts before it learns that the job is there, or that another request has the key."""
    _, alice = roomy
    keyed = {"headers": {"Idempotency-Key": "k"}}
    first = await alice.post("/jobs", json=LARGE, **keyed)  # type: ignore[arg-type]  # httpx's own types are narrower
    key = JobKey("alice", first.json()["id"])
    found = await parts(bus, key)
    again = await alice.post("/jobs", json=LARGE, **keyed)  # type: ignore[arg-type]
    other = await alice.post("/jobs", json=LARGE | {"metadata": {"a": "b"}}, **keyed)  # type: ignore[arg-type]
    assert [answer.status_code for answer in (first, again, other)] == [202, 200, 422]
    assert await parts(bus, key) == found
    entry = await Journal(bus).record_at((await adopt(bus, key.job)).submitted)
    assert entry is not None
    body = await Journal(bus).body(key, entry[1])
    assert body is not None
    assert json.loads(body)["messages"] == LARGE["messages"]


async def test_of_a_job_that_could_not_be_stored_no_part_stays(
    roomy: Roomy, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, alice = roomy
    written: list[str] = []
    append = gateway.bus.append

    async def refuse_new(subject: str, *args: Any, **more: Any) -> Ack:
        if subject.endswith(".new"):
            raise Refused(0, "no")
        if subject.startswith("parts."):  # not what the audit trail writes meanwhile
            written.append(subject)
        return await append(subject, *args, **more)

    monkeypatch.setattr(gateway.bus, "append", refuse_new)
    answer = await alice.post("/jobs", json=LARGE)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert len(set(written)) == 4
    _, client, job, *_ = written[0].split(".")
    assert await parts(bus, JobKey(client, job)) == {}


async def test_a_body_over_the_limit_is_refused_with_the_limit(roomy: Roomy) -> None:
    answer = await roomy[1].post("/jobs", json={"model": MODEL, "prompt": "x" * 8 * MIB})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert str(8 * MIB) in answer.json()["detail"]


async def test_the_door_for_services_says_what_its_own_limit_is(roomy: Roomy, nats: NatsServer) -> None:
    """One NATS message, however much HTTP takes."""
    job = {"model": MODEL, "prompt": "x" * (MIB - 4000)}
    async with connected(nats, "alice") as service:
        reply = await service.request("api.alice.submit", json.dumps({"job": job}).encode(), timeout=20)
    fault = json.loads(reply)["fault"]
    assert fault["code"] == "too_large"
    assert str(MIB - 4096) in fault["message"]
    assert str(8 * MIB) in fault["message"]


def test_the_limit_has_a_limit() -> None:
    secret: Any = SECRET
    assert GatewaySettings(cluster_secret=secret, max_body=MAX_BODY).max_body == 64 * MIB
    with pytest.raises(ValidationError):
        GatewaySettings(cluster_secret=secret, max_body=MAX_BODY + 1)


async def test_an_erased_job_leaves_no_part(nats: NatsServer, bus: Bus) -> None:
    """Also one that failed, whose request is kept for a retry until then."""
    async with whole(nats, max_body=8 * MIB) as (_, client):
        body = {"model": SEEING, "prompt": "x" * 900_000, "options": {"num_ctx": 64}, "truncate": False}
        job = (await client.post("/jobs", json=body)).json()["id"]
        view = (await client.get(f"/jobs/{job}", params={"wait": 20})).json()
        key = JobKey("alice", job)
        if view["state"] == "failed":
            assert await parts(bus, key)
        assert (await client.delete(f"/jobs/{job}")).json()["erased"] is True
        await eventually(lambda: _is_gone(bus, key))
