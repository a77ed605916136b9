"""A started node, and short ways to talk to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest

from libs.ollama_sim.config import NodeConfig
from libs.ollama_sim.durations import FOREVER
from libs.ollama_sim.models import parse_models
from libs.ollama_sim.server import SimServer, running
from tests.ollama_sim.recordings import Reply
from tests.ollama_sim.sockets import Wire, connected, exchange, request

MODELS = parse_models(
    "chat=2GB:tools,second=2GB:tools,third=2GB,thinker=2GB:thinking:tools,open=1GB:template-open,"
    "closed=1GB:template-closed,parser=1GB:parser:thinking:tools,embed=100MB:embed:dim=32:ctx=64"
)


class Talker:
    """One node and its client."""

    def __init__(self, sim: SimServer) -> None:
        self.sim = sim

    async def send(self, method: str, path: str, body: Any = None) -> Reply:
        return await exchange(self.sim.host, self.sim.port, request(method, path, body))

    async def chat(self, text: str = "Hi", *, model: str = "chat", **fields: Any) -> Reply:
        messages = fields.pop("messages", [{"role": "user", "content": text}])
        return await self.send("POST", "/api/chat", {"model": model, "messages": messages, **fields})

    async def generate(self, prompt: str, *, model: str = "chat", **fields: Any) -> Reply:
        return await self.send("POST", "/api/generate", {"model": model, "prompt": prompt, **fields})

    async def loaded(self) -> list[str]:
        return [each["name"] for each in (await self.send("GET", "/api/ps")).json["models"]]

    def open(self) -> AbstractAsyncContextManager[Wire]:
        return connected(self.sim.host, self.sim.port)


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts nodes that end with the test; without options they are instant. What is loaded stays."""
    async with AsyncExitStack() as stack:

        async def start_one(**fields: Any) -> Talker:
            usual = {"models": MODELS, "is_instant": "time_scale" not in fields, "default_keep_alive_s": FOREVER}
            config = NodeConfig(**{**usual, **fields})
            return Talker(await stack.enter_async_context(running(config)))

        yield start_one


@pytest.fixture
async def node(start: Start) -> Talker:
    started: Talker = await start()
    return started


def text_of(reply: Reply) -> str:
    """The content of a chat or the response of a generate, streamed or whole."""
    return "".join(line["message"]["content"] if "message" in line else line["response"] for line in reply.lines)


def thinking_of(reply: Reply) -> str:
    return "".join(line.get("message", line).get("thinking", "") for line in reply.lines)
