"""From a job's end to its receiver, over a real nats-server: nothing is lost, each attempt says the same, signed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.codec import encode
from libs.common.contracts.subjects import JobKey
from libs.common.contracts.webhooks import decode_client_webhooks
from libs.common.states import JobState
from services.gateway.webhooks import schedule, waiting
from services.gateway.webhooks.registry import MAX_WEBHOOKS, WebhookRegistry
from tests.gateway.conftest import Keys, adopt
from tests.gateway.running import MODEL, SECRET, Gateway, RouterStub, add_node, running_gateway
from tests.gateway.scripted import Script, events
from tests.gateway.webhooks.receiver import Receiver, receiving
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

OWN = {"webhook_networks": "127.0.0.0/8", "drain_grace": 0}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def gateway(nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub) -> AsyncIterator[Gateway]:
    await add_node(bus, MODEL)
    async with running_gateway(nats, **OWN) as gateway:
        yield gateway


async def register(http: httpx.AsyncClient, url: str, **more: Any) -> dict[str, Any]:
    answer = await http.post("/webhooks", json={"url": url, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def submit(http: httpx.AsyncClient, webhook: dict[str, Any], **more: Any) -> str:
    answer = await http.post("/jobs", json={"model": MODEL, "prompt": "hi", "webhook": webhook["id"], **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def succeed(bus: Bus, job: str, *texts: str, hint: bool = True, client: str = "alice") -> None:
    script = await adopt(bus, job, client)
    await script.bind()
    script.log += events(*texts)
    await script.finish(hint=hint)


async def alice_is_told(alice: httpx.AsyncClient) -> bool:
    """That her gateway shuts down."""
    return (await alice.get("/jobs")).headers.get("connection") == "close"


async def emptied(bus: Bus) -> bool:
    """Does HOOKS hold nothing any more?"""
    return bool((await bus.api("STREAM.INFO.HOOKS"))["state"]["messages"] == 0)


async def test_the_end_of_a_job_is_told_once_and_signed(alice: httpx.AsyncClient, bus: Bus, receiver: Receiver) -> None:
    webhook = await register(alice, f"{receiver.url}/hook?x=1")
    job = await submit(alice, webhook, metadata={"ticket": "A-17"})
    await succeed(bus, job, "a secret answer")
    await eventually(lambda: receiver.got)
    got = receiver.got[0]
    event = Verifier(webhook["secret"]).verify(got.body, got.headers)
    assert json.loads(got.body) == event
    assert (got.path, got.headers["content-type"]) == ("/hook", "application/json")
    assert got.headers["host"] == receiver.url.removeprefix("http://")
    shown = (await alice.get(f"/jobs/{job}")).json()
    assert event["type"] == "job.succeeded"
    assert event["timestamp"] == shown["finished_at"]
    assert event["data"] == {name: value for name, value in shown.items() if name != "result"}
    assert b"secret answer" not in got.body
    await eventually(lambda: emptied(bus))
    assert len(receiver.got) == 1


async def test_a_job_without_a_webhook_writes_nothing(alice: httpx.AsyncClient, bus: Bus, receiver: Receiver) -> None:
    await register(alice, receiver.url)
    job = (await alice.post("/jobs", json={"model": MODEL, "prompt": "hi"})).json()["id"]
    await succeed(bus, job, "x")
    assert (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"] == 0


async def test_with_the_result_if_asked_and_if_it_is_small(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver
) -> None:
    webhook = await register(alice, receiver.url, include_result=True)
    for text, omitted in (("short", False), ("x" * 70_000, True)):
        receiver.got.clear()
        job = await submit(alice, webhook)
        await succeed(bus, job, text)
        await eventually(lambda: receiver.got)
        data = json.loads(receiver.got[0].body)["data"]
        assert len(receiver.got[0].body) <= 65536
        assert data.get("result_omitted", False) is omitted
        if omitted:
            assert "result" not in data
        else:
            assert data["result"] == (await alice.get(f"/jobs/{job}")).json()["result"]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
async def test_only_the_events_that_were_asked_for(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver, state: JobState
) -> None:
    only = await register(alice, f"{receiver.url}/only", events=[f"job.{state}"])
    other = await register(alice, f"{receiver.url}/other", events=["job.succeeded"])
    for webhook in (other, only):
        script = await adopt(bus, await submit(alice, webhook))
        await script.finish(b"", state=state)
    await eventually(lambda: emptied(bus))
    assert [got.path for got in receiver.got] == ["/only"]
    assert json.loads(receiver.got[0].body)["type"] == f"job.{state}"


async def test_a_retry_says_the_same_under_the_same_id(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = tuple(n / 5 for n in range(1000))  # whenever this machine comes to it, there is a next attempt
    monkeypatch.setattr(schedule, "ATTEMPTS_AT", (*often, schedule.GIVE_UP_S))
    webhook = await register(alice, receiver.url, include_result=True)

    async def failing() -> bool:
        shown = (await alice.get(f"/webhooks/{webhook['id']}")).json()
        return (shown["reason"], shown["disabled_at"], bool(shown["failing_since"])) == ("it answered 500", None, True)

    receiver.status = 500
    await succeed(bus, await submit(alice, webhook), "an answer")
    await eventually(lambda: len(receiver.got) >= 2)
    await eventually(failing)
    receiver.status = 204
    await eventually(lambda: emptied(bus))
    assert len({(got.headers["webhook-id"], got.body) for got in receiver.got}) == 1
    for got in receiver.got:
        Verifier(webhook["secret"]).verify(got.body, got.headers)

    async def well() -> bool:
        return (await alice.get(f"/webhooks/{webhook['id']}")).json()["failing_since"] is None

    await eventually(well)


async def test_a_receiver_that_is_gone_disables_its_webhook_and_a_test_enables_it(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver
) -> None:
    webhook = await register(alice, receiver.url)
    receiver.status = 410
    await succeed(bus, await submit(alice, webhook), "x")

    async def shown() -> dict[str, Any]:
        answer: dict[str, Any] = (await alice.get(f"/webhooks/{webhook['id']}")).json()
        return answer

    async def disabled() -> bool:
        return (await shown())["disabled_at"] is not None

    await eventually(disabled)
    await eventually(lambda: emptied(bus))
    refused = await alice.post("/jobs", json={"model": MODEL, "prompt": "hi", "webhook": webhook["id"]})
    assert (refused.status_code, refused.json()["code"], refused.json()["path"]) == (409, "wrong_state", "webhook")
    assert "410" in refused.json()["detail"]
    tested = (await alice.post(f"/webhooks/{webhook['id']}/test")).json()
    assert (tested["delivered"], tested["status"]) == (False, 410)
    receiver.status = 200
    tested = (await alice.post(f"/webhooks/{webhook['id']}/test")).json()
    assert (tested["delivered"], tested["status"], tested["reason"]) == (True, 200, None)
    event = Verifier(webhook["secret"]).verify(receiver.got[-1].body, receiver.got[-1].headers)
    assert (event["type"], event["data"]) == ("webhook.test", {"webhook": webhook["id"]})
    assert not await disabled()


async def test_without_a_hint_somebody_looks_in_time(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SOONEST_S", 0.3)
    webhook = await register(alice, receiver.url)
    job = await submit(alice, webhook)
    await succeed(bus, job, "x", hint=False)
    await eventually(lambda: receiver.got)
    await eventually(lambda: emptied(bus))


async def test_a_hint_is_not_waited_past(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look of its own would come in a thousand seconds."""
    monkeypatch.setattr(schedule, "SOONEST_S", 1000.0)
    monkeypatch.setattr(schedule, "LATEST_S", 1000.0)
    webhook = await register(alice, receiver.url)
    job = await submit(alice, webhook)

    async def looked_at() -> bool:
        return bool((await bus.api("CONSUMER.INFO.HOOKS.waiting"))["num_ack_pending"])

    await eventually(looked_at)
    await succeed(bus, job, "x")
    await eventually(lambda: receiver.got)
    await eventually(lambda: emptied(bus))


async def test_a_job_that_never_came_to_be_leaves_nothing(
    alice: httpx.AsyncClient, bus: Bus, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announced, and then its gateway died."""
    monkeypatch.setattr(schedule, "SOONEST_S", 0.1)
    monkeypatch.setattr(schedule, "NEVER_CAME_S", 1.0)
    script = Script(bus)
    await waiting.announce(bus, script.key, script.submission)
    assert (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"] == 1
    await eventually(lambda: emptied(bus))


async def test_the_end_is_announced_before_the_job_is_written(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not announced is not written: HOOKS does not answer, and there is no job."""
    webhook = await register(alice, receiver.url)

    async def refuse(*_: object) -> None:
        from libs.common.bus.failures import NoResponders

        raise NoResponders("no stream answers")

    monkeypatch.setattr("services.gateway.submission.announce", refuse)
    answer = await alice.post("/jobs", json={"model": MODEL, "prompt": "hi", "webhook": webhook["id"]})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert (await bus.api("STREAM.INFO.JOBS"))["state"]["last_seq"] == 0
    assert (await alice.post("/jobs", json={"model": MODEL, "prompt": "hi"})).status_code == 202


async def test_a_repeated_submit_tells_the_end_once(alice: httpx.AsyncClient, bus: Bus, receiver: Receiver) -> None:
    webhook = await register(alice, receiver.url)
    body = {"model": MODEL, "prompt": "hi", "webhook": webhook["id"]}
    keyed = {"idempotency-key": "once"}
    job = (await alice.post("/jobs", json=body, headers=keyed)).json()["id"]
    await succeed(bus, job, "x")
    await eventually(lambda: receiver.got)
    await eventually(lambda: emptied(bus))
    last = (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"]
    await alice.delete(f"/webhooks/{webhook['id']}")
    again = await alice.post("/jobs", json=body, headers=keyed)
    assert (again.status_code, again.json()["id"]) == (200, job)
    other = await alice.post("/jobs", json=body | {"webhook": "wh_" + "0" * 26}, headers=keyed)
    assert other.status_code in (400, 422)
    assert (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"] == last


async def test_another_gateway_goes_on(
    nats: NatsServer, bus: Bus, alice: httpx.AsyncClient, gateway: Gateway, receiver: Receiver
) -> None:
    """Both hear the hint of the same job: one event."""
    async with running_gateway(nats, **OWN):
        webhook = await register(alice, receiver.url)
        jobs = [await submit(alice, webhook) for _ in range(20)]
        for job in jobs:
            await succeed(bus, job, "x")
        await eventually(lambda: len(receiver.got) >= len(jobs))
        await eventually(lambda: emptied(bus))
        assert len(receiver.got) == len(jobs)


async def test_no_secret_and_no_url_in_logs_and_records(
    log_lines: Any, alice: httpx.AsyncClient, bus: Bus, receiver: Receiver
) -> None:
    webhook = await register(alice, f"{receiver.url}/path-canary?token=query-canary", include_result=True)
    await alice.post(f"/webhooks/{webhook['id']}/test")
    await succeed(bus, await submit(alice, webhook), "answer-canary")
    await eventually(lambda: len(receiver.got) == 2)
    await eventually(lambda: emptied(bus))
    listed = (await alice.get("/webhooks")).text
    assert webhook["secret"] not in listed
    said = log_lines.getvalue()
    assert "webhook.attempt" in said
    for canary in ("path-canary", "query-canary", "answer-canary", webhook["secret"], webhook["secret"][6:]):
        assert canary not in said
    value, _ = await Bucket(bus, "webhooks").get("alice")
    assert value is not None
    assert webhook["secret"].encode()[6:] not in value
    assert len(decode_client_webhooks(value).webhooks) == 1


async def test_a_gateway_that_shuts_down_ends_what_it_delivers(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub, receiver: Receiver
) -> None:
    await add_node(bus, MODEL)
    async with running_gateway(nats, **OWN) as gateway, gateway.client(keys.alice) as alice:
        receiver.go.clear()
        webhook = await register(alice, receiver.url)
        job = await submit(alice, webhook)
        await succeed(bus, job, "x")
        await eventually(lambda: receiver.got)
        assert gateway.running.drain is not None
        draining = asyncio.create_task(gateway.running.drain())
        await eventually(lambda: alice_is_told(alice))
        receiver.go.set()
        await draining
        await eventually(lambda: emptied(bus))
    assert len(receiver.got) == 1


async def test_ten_at_once_for_a_client(alice: httpx.AsyncClient, bus: Bus, receiver: Receiver) -> None:
    receiver.go.clear()
    webhook = await register(alice, receiver.url)
    jobs = [await submit(alice, webhook) for _ in range(14)]
    await asyncio.gather(*(succeed(bus, job, "x") for job in jobs))  # the first delivery waits no longer than it may

    async def put_off() -> bool:
        """Those beyond ten have been given back."""
        info = await bus.api("CONSUMER.INFO.HOOKS.sending")
        return bool(info["num_ack_pending"] == 14 and info["num_redelivered"] >= 1)

    await eventually(put_off)
    assert len(receiver.got) == 10
    receiver.go.set()
    await eventually(lambda: emptied(bus))
    assert len({got.headers["webhook-id"] for got in receiver.got}) == len(receiver.got) == 14


async def test_a_client_has_so_many_and_no_more(alice: httpx.AsyncClient, receiver: Receiver) -> None:
    """Exactly, also when several ask at once."""
    asked = [alice.post("/webhooks", json={"url": receiver.url}) for _ in range(MAX_WEBHOOKS + 2)]
    statuses = [answer.status_code for answer in await asyncio.gather(*asked[: MAX_WEBHOOKS // 2])]
    statuses += [answer.status_code for answer in await asyncio.gather(*asked[MAX_WEBHOOKS // 2 :])]
    made = (await alice.get("/webhooks")).json()["webhooks"]
    assert len(made) == statuses.count(201) <= MAX_WEBHOOKS
    assert set(statuses) <= {201, 409, 503}
    while len(made) < MAX_WEBHOOKS:  # those that met too many others at once
        await register(alice, receiver.url)
        made = (await alice.get("/webhooks")).json()["webhooks"]
    refused = await alice.post("/webhooks", json={"url": receiver.url})
    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_state")
    assert (await alice.delete(f"/webhooks/{made[0]['id']}")).json() == {"id": made[0]["id"], "deleted": True}
    await register(alice, receiver.url)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "url"), ({"url": ""}, "url"), ({"url": 7}, "url"), ({"url": "http://example.org/"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"), ({"url": "https://example.org", "events": []}, "events"),
        ({"url": "https://example.org", "events": ["job.queued"]}, "events[0]"),
        ({"url": "https://example.org", "secret": "whsec_x"}, "secret"),
        ({"url": "https://example.org", "include_result": "yes"}, "include_result"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(nats: NatsServer, alice: httpx.AsyncClient, body: Any, path: str) -> None:
    answer = await alice.post("/webhooks", json=body)
    if "http://example" in str(body):  # a named network makes http:// possible; where it leads is looked up later
        assert answer.status_code == 201
        return
    assert (answer.status_code, answer.json()["code"], answer.json()["path"]) == (400, "invalid_request", path)


async def test_who_comes_late_to_a_jobs_end_stores_no_second_event(
    alice: httpx.AsyncClient, bus: Bus, receiver: Receiver
) -> None:
    """Another gateway heard the same hint, and looks when the event has been delivered and is gone."""
    webhook = await register(alice, receiver.url)
    job = await submit(alice, webhook)
    await succeed(bus, job, "x")
    await eventually(lambda: receiver.got)
    await eventually(lambda: emptied(bus))
    last = (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"]
    other = waiting.Waiting(bus, WebhookRegistry(bus, SECRET.encode()))
    assert await other._settle(JobKey("alice", job))
    assert (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"] == last


async def test_an_internal_service_names_a_webhook_too(
    nats: NatsServer, alice: httpx.AsyncClient, bus: Bus, receiver: Receiver
) -> None:
    webhook = await register(alice, receiver.url)
    async with connected(nats, user="alice") as service:

        async def asked(identity: str) -> dict[str, Any]:
            job = {"model": MODEL, "prompt": "hi", "webhook": identity}
            answer: dict[str, Any] = json.loads(
                await service.request("api.alice.submit", encode({"job": job}), timeout=20)
            )
            return answer

        refused = await asked("wh_" + "0" * 26)
        assert (refused["fault"]["code"], refused["fault"]["path"]) == ("invalid_request", "webhook")
        made = await asked(webhook["id"])
    await succeed(bus, made["ok"]["id"], "x")
    await eventually(lambda: receiver.got)
    assert json.loads(receiver.got[0].body)["data"]["id"] == made["ok"]["id"]
