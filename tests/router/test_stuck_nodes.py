"""Router and real workers before simulated nodes: what becomes of a job whose node falls silent, and of the node."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.events import decode_event
from libs.common.contracts.jobs import Completion, Submission
from libs.common.contracts.requests import Kind
from libs.common.contracts.subjects import JobKey
from libs.common.folder import ttl_s
from libs.common.journal import Journal
from libs.common.states import JobState
from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.faults import Fault as NodeFault
from libs.ollama_sim.faults import FaultKind
from libs.ollama_sim.models import parse_models
from libs.ollama_sim.server import SimServer, running
from services.worker import canary, health
from services.worker import main as worker_main
from services.worker.settings import WorkerSettings
from tests.router.building import Routers, a_key, a_submission, ended, heard
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

CONFIG = NodeConfig(models=parse_models("chat=1GB"), disk_gbps=1000, load_overhead_s=0, decode_tps=200, seed=7)


@contextlib.asynccontextmanager
async def worker(nats: NatsServer, node: str, url: str, *, patience: float) -> AsyncIterator[None]:
    """When the block ends it is gone without a word, as a killed one."""
    settings = WorkerSettings(node=node, node_url=url, slots=2, patience=patience, nats_url=nats.url)
    bus = Bus("")
    await bus.open([nats.url])
    try:
        async with worker_main.start(settings, bus) as started:
            tasks = [asyncio.create_task(task) for task in started.tasks.values()]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await bus.close()


async def chat(bus: Bus, text: str) -> JobKey:
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": text}]}).encode()
    key, submission = a_key(), a_submission(kind=Kind.CHAT, model="chat:latest", size=len(body))
    ttl = ttl_s(submission, created_ms=0, now_ms=0)
    await Journal(bus).write(key, "new", submission, body, expected=0, ttl=ttl)
    return key


async def bound(bus: Bus, key: JobKey) -> bool:
    newest = await Journal(bus).newest(key)
    return newest is not None and not isinstance(newest.facts, Submission)


async def text_of(bus: Bus, key: JobKey) -> str:
    journal = Journal(bus)
    newest = await journal.newest(key)
    assert newest
    whole = await journal.body(key, newest)
    assert whole
    return "".join(decode_event(raw).text or "" for raw in whole.splitlines())


async def test_a_job_whose_node_falls_silent_goes_on_elsewhere_and_the_node_comes_back(
    bus: Bus, nats: NatsServer, routers: Routers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "LOOK_S", 0.05)
    monkeypatch.setattr(health, "AGAIN_S", 0.3)
    async with (
        running(CONFIG) as a, running(CONFIG) as b,
        worker(nats, "a", a.url, patience=0.01), routers.one(bus) as router,
        contextlib.AsyncExitStack() as later,
    ):  # fmt: skip
        sims: dict[str, SimServer] = {"a": a, "b": b}
        first, second = "a", "b"
        await heard(router, 1)
        await eventually(lambda: all(view.disk for view in router.fleet.nodes.values()))
        uncut = await chat(bus, "[[tokens=40]]")
        assert (await ended(bus, uncut)).node == first
        sims[first].set_faults(NodeFault(FaultKind.HANG, after_tokens=15, count=1), NodeFault(FaultKind.HANG, count=0))
        key = await chat(bus, "[[tokens=40]]")
        await eventually(lambda: bound(bus, key))  # before there is another node that it could go to
        await later.enter_async_context(worker(nats, second, b.url, patience=0.01))
        done: Completion = await ended(bus, key)
        assert (done.state, done.node) == (JobState.SUCCEEDED, second)
        assert [
            (each.node, "fell silent in the middle of the answer" in each.fault.message) for each in done.attempts
        ] == [(first, True)]
        assert await text_of(bus, key) == await text_of(bus, uncut)

        assert not router.fleet.nodes[first].beat.reachable
        assert router.fleet.nodes[first].suspect == {"chat:latest"}
        other = await ended(bus, await chat(bus, "[[tokens=3]]"))
        assert other.node == second
        assert other.decision
        assert (first, "its Ollama fell silent and is being watched") in [
            (each.node, each.verdict) for each in other.decision.candidates
        ]

        sims[first].set_faults()
        await eventually(lambda: router.fleet.nodes[first].beat.reachable)
        sims[second].set_faults(NodeFault(FaultKind.HANG, count=0))
        back = await ended(bus, await chat(bus, "[[tokens=3]]"))
        assert back.node in (first, second)
        assert back.state is JobState.SUCCEEDED
