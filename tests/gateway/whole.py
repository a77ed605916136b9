"""A gateway with a real router, a real worker and a simulated node behind it, in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from libs.common.contracts.clients import DEFAULT_SCOPES
from libs.common.runtime import Running
from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.models import parse_models
from libs.ollama_sim.server import running as running_node
from services.router.main import start as start_router
from services.router.settings import RouterSettings
from services.worker.main import start as start_worker
from services.worker.settings import WorkerSettings
from tests.gateway.running import Gateway, add_client, running_gateway
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

MODEL, NODE = "chat:latest", "node-a"


@contextlib.asynccontextmanager
async def working(running: Running) -> AsyncIterator[None]:
    """Its tasks; none may have failed when it ends."""
    tasks = [asyncio.create_task(task) for task in running.tasks.values()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)], ended


@contextlib.asynccontextmanager
async def whole(
    nats: NatsServer, *, decode_tps: float | None = None, slots: int = 1, system: str = "", **settings: Any
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """With a client that may use it; ready when the model is known. `decode_tps` None: the node never waits."""
    async with contextlib.AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(connected(nats)) for _ in range(3)]
        models = tuple(msgspec.structs.replace(model, system=system) for model in parse_models("chat=1GB:vision"))
        config = NodeConfig(models=models, slots=slots, disk_gbps=100)
        config = msgspec.structs.replace(config, is_instant=decode_tps is None, decode_tps=decode_tps or 60.0)
        node = await stack.enter_async_context(running_node(config))
        worker = WorkerSettings(node=NODE, node_url=node.url, slots=slots)
        for running in (
            await stack.enter_async_context(start_worker(worker, buses[0])),
            await stack.enter_async_context(start_router(RouterSettings(), buses[1])),
        ):
            await stack.enter_async_context(working(running))
        key = await add_client(buses[2], "alice", scopes=DEFAULT_SCOPES)
        gateway = await stack.enter_async_context(running_gateway(nats, **settings))
        client = await stack.enter_async_context(gateway.client(key))

        async def knows_the_model() -> bool:
            answer = await client.get("/v1/models")
            return answer.status_code == 200 and MODEL in [model["id"] for model in answer.json()["data"]]

        await eventually(knows_the_model)
        yield gateway, client
