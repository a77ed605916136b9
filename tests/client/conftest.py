"""A gateway, a script that speaks for router and worker, and a client library that knows neither."""

from collections.abc import AsyncIterator

import pytest

from libs.client import Arriero
from libs.common.bus.connection import Bus
from libs.common.contracts.subjects import JobKey
from tests.gateway.conftest import Keys, gateway, keys, router  # noqa: F401 # the same gateway as in its own tests
from tests.gateway.running import Gateway
from tests.gateway.scripted import Script
from tests.support.nats_server import NatsServer


@pytest.fixture
async def arriero(nats: NatsServer, gateway: Gateway) -> AsyncIterator[Arriero]:  # noqa: F811
    async with Arriero.connect(nats.url, client="alice") as connected:
        yield connected


@pytest.fixture
async def script(bus: Bus) -> AsyncIterator[Script]:
    """A job of alice, whose worker answers reads."""
    async with Script(bus, JobKey("alice", "job_of_alice")).answering() as made:
        await made.submit()
        yield made
