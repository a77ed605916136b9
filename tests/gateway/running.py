"""Whole gateways in this process, each on a socket and a NATS connection of its own, with real credentials in the bucket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.link import Message, Subscription
from libs.common.contracts import subjects
from libs.common.contracts.clients import DEFAULT_SCOPES, ApiKey, Client
from libs.common.contracts.codec import encode
from libs.common.contracts.control import EraseAnswer, PlaceAnswer, Quote, QuoteAnswer, decode_erase, decode_quote
from libs.common.contracts.nodes import DiskModel, Heartbeat
from libs.common.contracts.streams import JOBS
from libs.common.credentials import api_keys
from libs.common.credentials.verifiers import Verifiers
from libs.common.runtime import Running
from services.gateway.main import start
from services.gateway.settings import GatewaySettings
from tests.gateway.scripted import BOOT, NODE
from tests.support.http import free_socket, served
from tests.support.nats_server import Reachable, connected
from tests.support.waiting import eventually

SECRET = "cluster-secret-of-the-tests-0123456789"
MODEL = "m:1"


class Gateway:
    def __init__(self, url: str, running: Running, bus: Bus) -> None:
        self.url = url
        self.running = running
        self.bus = bus

    def client(self, key: str, **more: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, **more)

    @property
    def subscriptions(self) -> int:
        return len(self.bus._client._subs)


@contextlib.asynccontextmanager
async def running_gateway(nats: Reachable, **settings: Any) -> AsyncIterator[Gateway]:
    """Ready when it yields; its tasks must not have failed when it ends."""
    effective = GatewaySettings(
        **({"cluster_secret": SECRET, "issuer": "http://127.0.0.1:9", "address_failures": 0} | settings)
    )
    bound = free_socket()
    async with connected(nats) as bus, start(effective, bus) as running:
        tasks = [asyncio.create_task(task) for task in running.tasks.values()]
        try:
            async with served(running.ports[0], bound) as url:
                checks = [running.checks[name] for name in ("clients", "revocations", "fleet")]
                await eventually(lambda: not any(check() for check in checks))
                yield Gateway(url, running, bus)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            failures = [error for error in ended if isinstance(error, Exception)]
            assert not failures, failures


async def add_client(bus: Bus, name: str, scopes: tuple[str, ...] = DEFAULT_SCOPES, **more: Any) -> str:
    """Its API key, as auth would write it."""
    key = api_keys.new()
    clients = Bucket(bus, "clients")
    await clients.put(f"client.{name}", encode(Client(id=name, name=name, scopes=scopes, **more)))
    record = ApiKey(id=key.id, client=name, verifier=Verifiers(SECRET.encode()).of(key.secret))
    await clients.put(f"key.{key.id}", encode(record))
    return str(key)


async def add_node(bus: Bus, *models: str, node: str = NODE) -> None:
    beat = Heartbeat(
        node=node, boot=BOOT, beat=1, changes=0, slots=1, models=tuple(DiskModel(name=model) for model in models)
    )
    await Bucket(bus, "nodes").put(node, encode(beat))


class RouterStub:
    """The router's answers about places, quotes and erasing; everything else of a router a test does itself, with a Script."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._serving: list[Subscription] = []
        self.erased: list[str] = []
        self.place = PlaceAnswer(position=4)
        self.quote: QuoteAnswer | None = None  # None: no answer, though somebody is there
        self.asked: list[Quote] = []

    async def __aenter__(self) -> "RouterStub":
        self._serving = [
            await self._bus.serve(subjects.router("place"), self._place),
            await self._bus.serve(subjects.router("quote"), self._quote),
            await self._bus.serve(subjects.router("erase"), self._erase),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for serving in self._serving:
            await serving.stop()

    async def _place(self, message: Message) -> bytes:
        return encode(self.place)

    async def _quote(self, message: Message) -> bytes | None:
        self.asked.append(decode_quote(message.data))
        return None if self.quote is None else encode(self.quote)

    async def _erase(self, message: Message) -> bytes:
        wish = decode_erase(message.data)
        self.erased.append(wish.job)
        await self._bus.api(f"STREAM.PURGE.{JOBS}", {"filter": f"jobs.{wish.client}.{wish.job}.*"})
        return encode(EraseAnswer(erased=True))
