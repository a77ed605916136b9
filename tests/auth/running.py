"""A whole auth service in this process: its tasks, and its port on a real socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import httpx

from libs.common.ops import Check
from services.auth import keyring, registry, revoker
from services.auth.main import start
from services.auth.settings import AuthSettings
from tests.support.http import free_socket, served, url_of
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

CLUSTER_SECRET = "cluster-secret-of-the-tests-0123456789"
# An answer waits so long until its replica has heard of its own write. A busy machine may need more than the product allows,
# and most tests look at what they wrote right after.
HEARD_WITHIN_S = 30.0
OPERATOR, OPERATOR_SECRET = "operator", "operator-secret-of-the-tests-0123456789"


class Auth:
    def __init__(self, issuer: str, url: str, http: httpx.AsyncClient, checks: dict[str, Check], app: Any) -> None:
        self.issuer = issuer
        self.url = url
        self.http = http
        self.checks = checks
        self.app = app

    def problems(self) -> dict[str, str]:
        return {name: problem for name, check in self.checks.items() if (problem := check()) is not None}

    async def ready(self) -> None:
        await eventually(lambda: not self.problems())

    async def token(self, client: str, secret: str, scope: str = "") -> httpx.Response:
        form = {"grant_type": "client_credentials", "scope": scope}
        return await self.http.post("/oauth/token", data=form, auth=(client, secret))

    async def access_token(self, client: str, secret: str, scope: str = "") -> str:
        answer = await self.token(client, secret, scope)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

    async def admin(self) -> dict[str, str]:
        token = await self.access_token(OPERATOR, OPERATOR_SECRET, "admin:clients")
        return {"Authorization": f"Bearer {token}"}

    async def create_client(self, name: str, **more: Any) -> str:
        """Its secret."""
        answer = await self.http.post("/clients", json={"name": name, **more}, headers=await self.admin())
        assert answer.status_code == 201, answer.text
        secret: str = answer.json()["client_secret"]
        return secret

    async def create_key(self, client: str) -> str:
        answer = await self.http.post(f"/clients/{client}/keys", headers=await self.admin())
        assert answer.status_code == 201, answer.text
        key: str = answer.json()["api_key"]
        return key


@contextlib.asynccontextmanager
async def running_auth(nats: NatsServer, *, ready: bool = True, **settings: Any) -> AsyncIterator[Auth]:
    bound = free_socket()
    given = {
        "issuer": url_of(bound),
        "cluster_secret": CLUSTER_SECRET,
        "bootstrap_client_id": OPERATOR,
        "bootstrap_client_secret": OPERATOR_SECRET,
        "address_failures": 0,  # tests fail on purpose, all from one address
        "client_failures": 0,
        **settings,
    }
    effective = AuthSettings(**given)
    async with contextlib.AsyncExitStack() as stack:
        for module in (keyring, registry, revoker):
            stack.enter_context(patch.object(module, "SEEN_WITHIN_S", HEARD_WITHIN_S))
        bus = await stack.enter_async_context(connected(nats))
        running = await stack.enter_async_context(start(effective, bus))
        tasks = [asyncio.create_task(task) for task in running.tasks.values()]
        try:
            async with served(running.ports[0], bound) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
                auth = Auth(effective.issuer, url, http, running.checks, running.ports[0].app)
                if ready:
                    await auth.ready()
                yield auth
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            failures = [e for e in ended if isinstance(e, Exception)]
            assert not failures, failures
