"""Limits while NATS is three servers, of which one is killed: never too much, and it goes on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Limits, Policy
from libs.common.contracts.faults import Failed
from services.gateway.listing import list_jobs
from tests.gateway.running import MODEL, Gateway, add_client, add_node, running_gateway
from tests.support.nats_cluster import NatsCluster, nats_cluster
from tests.support.nats_server import connected
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

REQUESTS, QUEUED = 240, 12
WITHIN_S = 90.0  # until a busy machine has elected new leaders


class Asking:
    """Clients of one account, at all gateways, without a pause."""

    def __init__(self, clients: list[httpx.AsyncClient]) -> None:
        self.clients = clients
        self.began = time.monotonic()
        self.answered: list[tuple[float, int]] = []  # when, with which status
        self.killed_at = float("inf")
        self.full: set[int] = set()  # gateways that have refused since the kill
        self.jobs: set[str] = set()

    def ok(self, *, after: float = 0.0) -> int:
        return sum(200 <= status < 300 for at, status in self.answered if at > after)

    async def ask(self, n: int, *, submit: bool) -> None:
        while n not in self.full:
            sent = time.monotonic()
            with contextlib.suppress(httpx.HTTPError):
                body = {"model": MODEL, "prompt": "hi"}
                http = self.clients[n]
                answer = await (http.post("/jobs", json=body) if submit else http.get("/v1/models"))
                assert answer.status_code in (200, 202, 429, 503), answer.text
                self.answered.append((time.monotonic(), answer.status_code))
                if answer.status_code == 202:
                    self.jobs.add(answer.json()["id"])
                if answer.status_code == 429 and sent > self.killed_at:
                    self.full.add(n)
            await asyncio.sleep(0.01)


async def killed_in_the_middle(asking: Asking, cluster: NatsCluster, bus: Bus, count: int, *, submit: bool) -> None:
    """The leader of the limits goes when so many requests have come through; ends when every gateway has refused one since."""
    tasks = [asyncio.create_task(asking.ask(n, submit=submit)) for n in range(len(asking.clients)) for _ in range(2)]
    try:
        await eventually(lambda: asking.ok() >= count or any(task.done() for task in tasks), within=WITHIN_S)
        asking.killed_at = time.monotonic()
        await cluster.kill_leader(bus, "KV_limits")
        await asyncio.wait_for(asyncio.gather(*tasks), WITHIN_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def account(tmp_path: Path, limits: Limits) -> AsyncIterator[tuple[NatsCluster, Bus, list[httpx.AsyncClient]]]:
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(nats_cluster(tmp_path))
        bus = await stack.enter_async_context(connected(cluster))
        await add_node(bus, MODEL)
        key = await add_client(bus, "acme", policy=Policy(limits=limits))
        gateways: list[Gateway] = [
            await stack.enter_async_context(running_gateway(cluster, drain_grace=0)) for _ in range(2)
        ]
        clients = [await stack.enter_async_context(gateway.client(key)) for gateway in gateways]
        yield cluster, bus, clients


async def test_requests_are_never_too_many_though_a_server_is_killed(tmp_path: Path) -> None:
    async with account(tmp_path, Limits(requests_per_minute=REQUESTS)) as (cluster, bus, clients):
        asking = Asking(clients)
        await killed_in_the_middle(asking, cluster, bus, REQUESTS // 4, submit=False)
        assert asking.ok(after=asking.killed_at) > 0
        # Whatever was let in was let in between these two moments, less than a minute apart.
        assert sum(status == 200 and at < asking.began + 59 for at, status in asking.answered) <= REQUESTS


async def test_waiting_jobs_are_never_too_many_though_a_server_is_killed(tmp_path: Path) -> None:
    """No router takes any, so all that were ever stored wait."""
    async with account(tmp_path, Limits(queued=QUEUED)) as (cluster, bus, clients):
        asking = Asking(clients)
        await killed_in_the_middle(asking, cluster, bus, QUEUED // 3, submit=True)

        async def listed() -> list[str]:
            with contextlib.suppress(Failed):
                return [row["id"] for row in (await list_jobs(bus, "acme", cursor=None, limit=1000, state=None)).rows]
            return []

        stored = await eventually(listed, within=WITHIN_S)
        assert len(stored) <= QUEUED
        assert asking.jobs <= set(stored)
        assert asking.ok(after=asking.killed_at) > 0
