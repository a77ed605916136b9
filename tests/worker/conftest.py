"""Nodes and a world around a worker."""

import json
import os
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.models import parse_models
from libs.ollama_sim.server import SimServer, running
from tests.support.nats_server import NatsServer
from tests.worker.running import World, world

MODELS = parse_models("chat=2GB:tools,thinker=2GB:thinking:tools,embed=100MB:embed:dim=32:ctx=64")


class ChatNode(NamedTuple):
    """An Ollama with a chat model: the simulator, or the one that ARRIERO_TEST_OLLAMA names."""

    url: str
    model: str
    sim: SimServer | None


@pytest.fixture
async def start_sim() -> AsyncIterator[Callable[..., Any]]:
    """Starts simulated nodes that end with the test; without options they never wait."""
    async with AsyncExitStack() as stack:

        async def start(**fields: Any) -> SimServer:
            config = NodeConfig(**{"models": MODELS, "is_instant": not fields, **fields})
            return await stack.enter_async_context(running(config))

        yield start


@pytest.fixture
async def sim(start_sim: Callable[..., Any]) -> SimServer:
    started: SimServer = await start_sim()
    return started


@pytest.fixture
async def chat_node(start_sim: Callable[..., Any]) -> ChatNode:
    """For tests that need only a chat model that takes a little time for each token."""
    url = os.environ.get("ARRIERO_TEST_OLLAMA", "").rstrip("/")
    if not url:
        sim = await start_sim(decode_tps=200, load_overhead_s=0.05, disk_gbps=1000)
        return ChatNode(sim.url, "chat", sim)
    with urllib.request.urlopen(f"{url}/api/tags", timeout=10) as answer:  # noqa: ASYNC210  # the developer's own
        models = json.load(answer)["models"]
    able = [each for each in models if "completion" in (each.get("capabilities") or ["completion"])]
    able = [each for each in able if "thinking" not in (each.get("capabilities") or [])] or able
    if not able:
        pytest.skip(f"{url} has no chat model")
    return ChatNode(url, min(able, key=lambda each: each["size"])["name"], None)


@pytest.fixture
async def around(nats: NatsServer) -> AsyncIterator[World]:
    async with world(nats) as made:
        yield made
