"""`GET /openapi.json` of real services: who gets it, and that it is the document of what is served.

It is validated elsewhere: that takes seconds, in which a service in this process would hear nothing of NATS.
"""

import httpx

from tests.auth.running import running_auth
from tests.gateway.conftest import Keys, alice, gateway, keys, router
from tests.gateway.running import Gateway
from tests.openapi.test_documents import CASES
from tests.support.nats_server import NatsServer

__all__ = ["Keys", "alice", "gateway", "keys", "router"]  # fixtures
PATH = "/openapi.json"


async def test_a_gateway_gives_it_to_whoever_has_a_credential(gateway: Gateway, alice: httpx.AsyncClient) -> None:
    answer = await alice.get(PATH)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["paths"] == CASES["gateway"].document["paths"]
    async with gateway.client("") as nobody:
        assert (await nobody.get(PATH)).status_code == 401


async def test_auth_gives_it_to_whoever_has_a_token(nats: NatsServer) -> None:
    async with running_auth(nats) as auth:
        secret = await auth.create_client("alice", scopes=["models:read"])
        token = await auth.access_token("alice", secret)
        answer = await auth.http.get(PATH, headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json()["paths"] == CASES["auth"].document["paths"]
        flow = answer.json()["components"]["securitySchemes"]["oauth2"]["flows"]["clientCredentials"]
        assert flow["tokenUrl"] == auth.issuer + "/oauth/token"
        assert (await auth.http.get(PATH)).status_code == 401
