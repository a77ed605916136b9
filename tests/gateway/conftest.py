"""A gateway with two clients and one node, and what speaks for router and worker."""

import io
import logging
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import httpx
import pytest
import structlog

from libs.common import logs
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import DEFAULT_SCOPES, Scope
from libs.common.contracts.subjects import JobKey
from tests.gateway.running import MODEL, Gateway, RouterStub, add_client, add_node, running_gateway
from tests.gateway.scripted import Script
from tests.support.nats_server import NatsServer


class Keys(NamedTuple):
    alice: str
    bob: str


@pytest.fixture
async def keys(bus: Bus) -> Keys:
    """alice may also see the cluster."""
    return Keys(
        alice=await add_client(bus, "alice", scopes=(*DEFAULT_SCOPES, Scope.ADMIN_CLUSTER)),
        bob=await add_client(bus, "bob"),
    )


@pytest.fixture
async def router(bus: Bus) -> AsyncIterator[RouterStub]:
    async with RouterStub(bus) as stub:
        yield stub


@pytest.fixture
async def gateway(nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub) -> AsyncIterator[Gateway]:
    await add_node(bus, MODEL, "phi:latest")
    async with running_gateway(nats, drain_grace=0) as gateway:
        yield gateway


@pytest.fixture
async def alice(gateway: Gateway, keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client(keys.alice) as client:
        yield client


@pytest.fixture
async def bob(gateway: Gateway, keys: Keys) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client(keys.bob) as client:
        yield client


@pytest.fixture
def log_lines() -> Iterator[io.StringIO]:
    """Everything that a service would log at its most talkative, in the form it has in production."""
    root = logging.getLogger()
    handlers, level, said = root.handlers[:], root.level, io.StringIO()
    logs.configure("gateway", "debug")
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=said), cache_logger_on_first_use=False)
    try:
        yield said
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
        root.handlers[:], root.level = handlers, level


async def adopt(bus: Bus, job: str, client: str = "alice") -> Script:
    """A script that goes on with a job that a gateway stored."""
    script = Script(bus, JobKey(client, job))
    await script.adopt()
    return script
