"""The edge as a gateway has it: on every route, with its settings. What the edge does by itself is in tests/edge."""

import asyncio
import io
import json
from typing import Any

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Scope
from tests.gateway.conftest import Keys
from tests.gateway.running import Gateway, add_client, add_node, running_gateway
from tests.gateway.test_authorization import SPECS, named, path_of
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

TAKES_BODY = [spec for spec in SPECS if spec.method in ("POST", "PUT")]
DEEP = {
    "arrays": b"[" * 200_000,
    "objects": b'{"a":' * 100_000,
    "in a field": b'{"model":"m:1","metadata":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "closed": b"[" * 100_000 + b"]" * 100_000,
}


@pytest.fixture
async def everything(gateway: Gateway, bus: Bus) -> str:
    """The key of a client that may do all."""
    key = await add_client(bus, "root", tuple(Scope))
    async with gateway.client(key) as client:
        await eventually(lambda: _is_known(client))
    return key


async def _is_known(client: httpx.AsyncClient) -> bool:
    return (await client.get("/v1/models")).status_code == 200


async def test_every_route_answers_with_the_headers(gateway: Gateway, everything: str) -> None:
    ids = set()
    async with gateway.client(everything) as root, gateway.client("") as nobody:
        for client in (root, nobody):
            for spec in SPECS:
                answer = await client.request(spec.method, path_of(spec), content=b"{}")
                headers = answer.headers
                assert headers["cache-control"] == "no-store", named(spec)
                assert headers["x-content-type-options"] == "nosniff", named(spec)
                assert headers.get_list("x-content-type-options") == ["nosniff"], named(spec)
                assert "frame-ancestors 'none'" in headers["content-security-policy"], named(spec)
                assert "server" not in headers, named(spec)
                ids.add(headers["x-request-id"])
    assert len(ids) == 2 * len(SPECS)


@pytest.mark.parametrize("shape", DEEP)
async def test_no_depth_of_json_is_our_mistake(gateway: Gateway, everything: str, shape: str) -> None:
    async with gateway.client(everything) as root:
        for spec in TAKES_BODY:
            answer = await root.request(spec.method, path_of(spec), content=DEEP[shape])
            assert 400 <= answer.status_code < 500, named(spec)
            assert "[[[" not in answer.text


async def test_every_route_that_reads_a_body_has_a_limit(gateway: Gateway, everything: str) -> None:
    """It is told by its length alone, and one that comes in chunks by what has come."""
    for spec in TAKES_BODY:
        said = await _ask(gateway, spec.method, path_of(spec), everything, "Content-Length: 1000000000")
        assert said in (413, 404), named(spec)
        chunk = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
        said = await _ask(gateway, spec.method, path_of(spec), everything, "Transfer-Encoding: chunked", chunk, 70)
        assert said in (413, 404), named(spec)


async def _ask(
    gateway: Gateway, method: str, path: str, key: str, header: str, piece: bytes = b"", pieces: int = 0
) -> int:
    """The status of an answer that comes while the body is still on its way."""
    address = httpx.URL(gateway.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header}\r\n\r\n"
        writer.write(head.encode())
        answered = asyncio.create_task(reader.readline())
        for _ in range(pieces):
            if answered.done():
                break
            writer.write(piece)
            await writer.drain()
        return int((await asyncio.wait_for(answered, 20)).split(b" ")[1])
    finally:
        writer.transport.abort()


async def test_a_credential_in_an_address_is_refused_and_never_logged(
    gateway: Gateway, keys: Keys, log_lines: io.StringIO
) -> None:
    async with gateway.client("") as nobody:
        for name in ("access_token", "api_key"):
            answer = await nobody.get("/v1/models", params={name: keys.alice})
            assert answer.status_code == 400
            assert keys.alice not in answer.text
        answer = await nobody.get("/v1/models", params={"unknown": keys.alice}, headers={"X-Request-Id": keys.alice})
        assert answer.status_code == 401
        assert keys.alice not in str(answer.headers)
    assert "request." in log_lines.getvalue()
    assert keys.alice not in log_lines.getvalue()


async def test_log_lines_of_a_request_have_its_id_and_no_others(
    gateway: Gateway, alice: httpx.AsyncClient, log_lines: io.StringIO
) -> None:
    """All on one connection: what one request has bound must not stay for the next one."""
    for n in range(3):
        assert (await alice.get("/v1/models", headers={"X-Request-Id": f"mine-{n}"})).status_code == 200

    def answered() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log_lines.getvalue().splitlines() if "request.answered" in line]

    await eventually(lambda: len(answered()) == 3)  # a line is written when its answer has gone
    lines = answered()
    assert [line["request_id"] for line in lines] == ["mine-0", "mine-1", "mine-2"]
    assert [line["route"] for line in lines] == ["/v1/models"] * 3


async def test_settings_reach_the_port(nats: NatsServer, bus: Bus, keys: Keys) -> None:
    await add_node(bus)
    given = {"allowed_hosts": "llm.example.org, *.apps.example.org", "cors_origins": "https://chat.example.org"}
    async with running_gateway(nats, drain_grace=0, **given) as gateway, gateway.client(keys.alice) as alice:
        asked = {"llm.example.org": 200, "a.apps.example.org": 200, "gpu-box": 200, "evil.example": 421}
        for host, status in asked.items():
            assert (await alice.get("/v1/models", headers={"Host": host})).status_code == status
        answer = await alice.get("/v1/models", headers={"Origin": "https://chat.example.org"})
        assert answer.headers["access-control-allow-origin"] == "https://chat.example.org"
        answer = await alice.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403
        assert "ARRIERO_GATEWAY_CORS_ORIGINS" in answer.json()["detail"]
