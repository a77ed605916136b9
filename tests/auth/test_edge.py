"""The edge as auth has it: on every route, with its settings. What the edge does by itself is in tests/edge."""

import asyncio

import httpx
import pytest
from pydantic import ValidationError

from services.auth.settings import AuthSettings
from tests.auth.running import CLUSTER_SECRET, running_auth
from tests.support.nats_server import NatsServer

GETS = ("/clients", "/clients/x", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/nothing")
POSTS = ("/oauth/token", "/oauth/revoke", "/oauth/introspect", "/clients", "/clients/x/keys")


async def test_every_route_answers_with_the_headers(nats: NatsServer) -> None:
    async with running_auth(nats) as auth:
        admin = await auth.admin()
        for headers in ({}, admin):
            for method, path in [*(("GET", path) for path in GETS), *(("POST", path) for path in POSTS)]:
                answer = await auth.http.request(method, path, headers=headers)
                public = path.startswith("/.well-known")
                assert answer.headers["cache-control"] == ("public, max-age=300" if public else "no-store"), path
                assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path
                assert "server" not in answer.headers
                assert len(answer.headers["x-request-id"]) == 32


async def test_every_route_that_reads_a_body_has_a_limit_and_no_depth_is_our_mistake(nats: NatsServer) -> None:
    async with running_auth(nats) as auth:
        admin = await auth.admin()
        for path in POSTS:
            large = await auth.http.post(path, headers=admin, content=b" " * 100_000)
            assert large.status_code in (413, 400, 401, 404), path
            deep = await auth.http.post(path, headers=admin, content=b"[" * 60_000)
            assert 400 <= deep.status_code < 500, path


async def test_a_body_that_stops_is_not_waited_for(nats: NatsServer) -> None:
    async with running_auth(nats, body_idle_timeout=0.3) as auth:
        address = httpx.URL(auth.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ngrant")
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 20)
        writer.transport.abort()


async def test_foreign_hosts_and_pages_are_not_let_in(nats: NatsServer) -> None:
    async with running_auth(nats, issuer="https://llm.example.org") as auth:
        for host, status in {"llm.example.org": 200, "evil.example": 421}.items():
            answer = await auth.http.get("/.well-known/jwks.json", headers={"Host": host})
            assert answer.status_code == status
        answer = await auth.http.post("/oauth/token", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert "ARRIERO_AUTH_CORS_ORIGINS" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("allowed_hosts", "http://x"), ("allowed_hosts", "x:80"), ("cors_origins", "*"), ("cors_origins", "x"),
     ("trusted_proxies", "proxy"), ("trusted_proxies", "10.0.0.1/8"), ("forwarded_header", "x-real-ip")],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_named(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        AuthSettings(cluster_secret=CLUSTER_SECRET, **{name: value})  # type: ignore[arg-type]
