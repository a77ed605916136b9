"""Fixtures that every test may use. The environment is scrubbed, so that a developer's own settings change nothing."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from libs.common.bus.connection import Bus
from tests.support.nats_server import NatsServer, connected, nats_server

# No time is asserted: hypothesis has 200 ms for each example, and a limit for making them, which a busy machine breaks.
settings.register_profile("arriero", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("arriero")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("ARRIERO_", "OLLAMA_")) and name != "ARRIERO_TEST_OLLAMA":
            monkeypatch.delenv(name)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A provisioned nats-server of this test's own."""
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with connected(nats) as connection:
        yield connection
