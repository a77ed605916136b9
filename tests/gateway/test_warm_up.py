"""A port that takes connections before its process knows anything is no outage: who comes first waits a moment."""

import asyncio
from typing import Any

import httpx
import pytest

from libs.common.bus.connection import Bus
from services.gateway import warm_up
from services.gateway.main import start
from services.gateway.settings import GatewaySettings
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, SECRET, add_node
from tests.gateway.whole import working
from tests.support.http import free_socket, served

SETTINGS: dict[str, Any] = {"cluster_secret": SECRET, "issuer": "http://127.0.0.1:9", "drain_grace": 0}


async def test_the_first_request_waits_until_clients_and_fleet_are_known(bus: Bus, keys: Keys) -> None:
    await add_node(bus, MODEL)
    async with (
        start(GatewaySettings(**SETTINGS), bus) as running,
        served(running.ports[0], free_socket()) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {keys.alice}"}) as alice,
    ):
        asking = asyncio.create_task(alice.post("/jobs", json={"model": MODEL, "prompt": "x"}))
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        async with working(running):
            assert (await asyncio.wait_for(asking, 20)).status_code == 202


async def test_it_does_not_wait_for_ever(bus: Bus, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "PATIENCE_S", 0.05)
    async with (
        start(GatewaySettings(**SETTINGS), bus) as running,
        served(running.ports[0], free_socket()) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {keys.alice}"}) as alice,
    ):
        answer = await alice.get("/jobs")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        async with working(running):
            pass
