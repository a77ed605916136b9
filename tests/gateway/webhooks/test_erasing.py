"""A job that is erased leaves nothing in its event but its id and how it ended."""

import json

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from libs.common.bus.connection import Bus
from libs.common.contracts import subjects
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import FACTS, TTL
from libs.common.contracts.jobs import Completion
from libs.common.contracts.subjects import JobKey
from libs.common.contracts.webhooks import Webhook
from libs.common.journal import Journal
from services.gateway.webhooks.registry import WebhookRegistry
from services.gateway.webhooks.waiting import Waiting
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, SECRET, RouterStub, add_node, running_gateway
from tests.gateway.scripted import Script, events, submission
from tests.gateway.webhooks.receiver import receiving
from tests.gateway.webhooks.test_delivery import OWN, emptied, register, submit, succeed
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually


async def event(bus: Bus) -> bytes:
    """That HOOKS holds."""
    stored = await bus.last("HOOKS", "hooks.send.>")
    assert stored is not None
    return stored.data


async def erase(bus: Bus, key: JobKey) -> None:
    """As the router does it."""
    entry = await Journal(bus).newest(key)
    assert entry is not None
    assert isinstance(entry.facts, Completion)
    bare = msgspec.structs.replace(
        entry.facts, op_id="erased", erased=True, job=msgspec.structs.replace(entry.facts.job, metadata=None)
    )
    await bus.append(subjects.record(key, "done"), b"", headers={FACTS: encode(bare).decode(), TTL: "600"})


async def test_an_event_that_waits_for_its_next_attempt_is_told_bare(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub
) -> None:
    await add_node(bus, MODEL)
    async with (
        receiving() as receiver,
        running_gateway(nats, **OWN) as gateway,
        gateway.client(keys.alice) as alice,
    ):
        webhook = await register(alice, receiver.url, include_result=True)
        receiver.status = 500
        job = await submit(alice, webhook, metadata={"ticket": "metadata-canary"})
        await succeed(bus, job, "answer-canary")
        await eventually(lambda: receiver.got)
        whole = receiver.got[0]
        assert b"answer-canary" in whole.body
        assert b"metadata-canary" in whole.body
        receiver.got.clear()
        receiver.status = 200
        assert (await alice.delete(f"/jobs/{job}")).json()["erased"]
        await eventually(lambda: emptied(bus))
        told = receiver.got[-1]
        assert told.headers["webhook-id"] == whole.headers["webhook-id"]
        said = Verifier(webhook["secret"]).verify(told.body, told.headers)
        assert said == {
            "type": "job.succeeded",
            "timestamp": json.loads(whole.body)["timestamp"],
            "data": {"id": job, "state": "succeeded"},
        }


@pytest.fixture
def registry(bus: Bus) -> WebhookRegistry:
    return WebhookRegistry(bus, SECRET.encode())


async def ended(bus: Bus, registry: WebhookRegistry) -> JobKey:
    """A job, and no gateway is there to tell."""
    webhook, _ = await registry.create("alice", "https://example.org/", (), include_result=True)
    script = Script(bus)
    script.submission = submission(webhook=webhook.id, metadata={"ticket": "metadata-canary"})
    await script.submit()
    await script.bind()
    script.log += events("answer-canary")
    await script.finish(hint=False)
    return script.key


async def test_the_end_of_a_job_that_was_erased_before_anybody_looked_is_told_bare(
    bus: Bus, registry: WebhookRegistry
) -> None:
    key = await ended(bus, registry)
    await erase(bus, key)
    assert await Waiting(bus, registry)._settle(key)
    assert json.loads(await event(bus))["data"] == {"id": key.job, "state": "succeeded"}


async def test_a_job_that_is_erased_while_its_event_is_written_is_told_bare(
    bus: Bus, registry: WebhookRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who erased it saw no event, and who writes it saw a job that was not erased; or did so, and died before it looked again."""
    key = await ended(bus, registry)
    find = registry.find

    async def found_and_erased(client: str, webhook: str) -> Webhook | None:
        found = await find(client, webhook)
        await erase(bus, key)
        return found

    monkeypatch.setattr(registry, "find", found_and_erased)
    waiting = Waiting(bus, registry)
    assert await waiting._settle(key)
    assert json.loads(await event(bus))["data"] == {"id": key.job, "state": "succeeded"}

    stored = await bus.last("HOOKS", "hooks.send.>")
    assert stored is not None
    await bus.append(stored.subject, b'{"data":"answer-canary"}', headers={FACTS: stored.headers[FACTS], TTL: "600"})
    assert await waiting._settle(key)
    assert json.loads(await event(bus))["data"] == {"id": key.job, "state": "succeeded"}


async def test_an_event_that_was_delivered_is_not_told_again(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub
) -> None:
    await add_node(bus, MODEL)
    async with (
        receiving() as receiver,
        running_gateway(nats, **OWN) as gateway,
        gateway.client(keys.alice) as alice,
    ):
        job = await submit(alice, await register(alice, receiver.url))
        await succeed(bus, job, "x")
        await eventually(lambda: receiver.got)
        await eventually(lambda: emptied(bus))
        last = (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"]
        assert (await alice.delete(f"/jobs/{job}")).json()["erased"]
        assert (await bus.api("STREAM.INFO.HOOKS"))["state"]["last_seq"] == last
