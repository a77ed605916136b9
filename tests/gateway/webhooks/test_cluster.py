"""Webhooks while NATS is three servers, of which one is killed: every end is told."""

import contextlib
import json
from pathlib import Path

import httpx
import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from services.gateway.webhooks import schedule
from tests.gateway.conftest import adopt
from tests.gateway.running import MODEL, add_client, add_node, running_gateway
from tests.gateway.scripted import Script, events
from tests.gateway.webhooks.receiver import receiving
from tests.gateway.webhooks.test_delivery import OWN, emptied, register, submit, succeed
from tests.support.nats_cluster import nats_cluster
from tests.support.nats_server import connected
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

WITHIN_S = 90.0  # until a busy machine has elected new leaders


async def test_every_end_is_told_though_a_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leader of HOOKS goes while events wait for a receiver that is busy, and jobs for their end."""
    monkeypatch.setattr(schedule, "SOONEST_S", 1.0)
    monkeypatch.setattr(schedule, "ATTEMPTS_AT", (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 60.0, schedule.GIVE_UP_S))
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(nats_cluster(tmp_path))
        bus = await stack.enter_async_context(connected(cluster))
        receiver = await stack.enter_async_context(receiving())
        await add_node(bus, MODEL)
        key = await add_client(bus, "alice")
        gateway = await stack.enter_async_context(running_gateway(cluster, **OWN))
        alice = await stack.enter_async_context(gateway.client(key))
        webhook = await register(alice, receiver.url, include_result=True)
        jobs = [await submit(alice, webhook) for _ in range(8)]
        receiver.status = 503
        for job in jobs[:4]:
            await succeed(bus, job, "before")
        await eventually(lambda: len({got.headers["webhook-id"] for got in receiver.got}) == 4, within=WITHIN_S)

        await cluster.kill_leader(bus, "HOOKS")
        jobs.append(await eventually(lambda: submitted(alice, webhook["id"]), within=WITHIN_S))
        for job in jobs[4:]:
            script: Script = await eventually(lambda job=job: taken(bus, job), within=WITHIN_S)
            await script.bind()
            script.log += events("after")
            await script.finish()
        receiver.got.clear()
        receiver.status = 200

        async def all_are_told() -> bool:
            with contextlib.suppress(BusError):
                return await emptied(bus)
            return False

        await eventually(all_are_told, within=WITHIN_S)
        told = {}
        for got in receiver.got:
            event = Verifier(webhook["secret"]).verify(got.body, got.headers)
            assert event == json.loads(got.body)
            assert told.setdefault(got.headers["webhook-id"], got.body) == got.body
        assert sorted(json.loads(body)["data"]["id"] for body in told.values()) == sorted(jobs)


async def submitted(http: httpx.AsyncClient, webhook: str) -> str | None:
    """Its id. By its key the job is one, however often it has to be asked for."""
    body = {"model": MODEL, "prompt": "hi", "webhook": webhook}
    answer = await http.post("/jobs", json=body, headers={"idempotency-key": "after the kill"})
    assert answer.status_code in (200, 202, 503), answer.text
    return None if answer.status_code == 503 else str(answer.json()["id"])


async def taken(bus: Bus, job: str) -> Script | None:
    with contextlib.suppress(BusError):
        return await adopt(bus, job)
    return None
