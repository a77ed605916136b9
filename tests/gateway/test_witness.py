"""What of a gateway's work stands in the audit trail, and what does not."""

from typing import Any

import httpx
import pytest

from libs.common.audit import Audit
from libs.common.bus.connection import Bus
from libs.common.contracts.audit import AuditRecord, decode_audit
from libs.common.contracts.clients import Principal, Scope
from libs.common.contracts.codec import encode
from libs.common.contracts.streams import AUDIT
from services.gateway.http import Exchange
from services.gateway.route import Reach, RouteSpec
from services.gateway.witness import ACTIONS, Witness
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, Gateway, add_client, add_node, running_gateway
from tests.gateway.scripted import NODE
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

NOBODY: Any = None


async def trail(bus: Bus, count: int) -> list[AuditRecord]:
    """The records after the gateway's first, when there are so many."""

    async def there() -> list[AuditRecord] | None:
        found = [decode_audit(message.data) for message in await bus.from_sequence(AUDIT, "audit.gateway.*")][1:]
        return found if len(found) >= count else None

    found: list[AuditRecord] = await eventually(there)
    return found


def told(record: AuditRecord) -> tuple[str, str, str, str]:
    return record.action, str(record.result), record.target, record.reason


async def test_every_route_says_what_it_does(gateway: Gateway) -> None:
    """A route that is not in the table would not be recorded, and nobody would notice."""
    routes = gateway.running.ports[0].app.routes
    assert {(next(iter(route.methods - {"HEAD"})), route.path) for route in routes} == set(ACTIONS)


async def test_jobs_are_counted(bus: Bus, gateway: Gateway, alice: httpx.AsyncClient, bob: httpx.AsyncClient) -> None:
    for _ in range(5):
        assert (await alice.post("/jobs", json={"model": MODEL, "prompt": "hello"})).status_code == 202
    job = (await bob.post("/jobs", json={"model": MODEL, "prompt": "hello"})).json()["id"]
    await bob.delete(f"/jobs/{job}")
    await bob.get(f"/jobs/{job}")
    await bob.post("/jobs?dry_run=1", json={"model": MODEL, "prompt": "hello"})
    await bob.post("/jobs", json={"model": "unknown", "prompt": "hello"})
    found = await trail(bus, 4)

    assert [(r.actor, *told(r)) for r in found] == [
        ("alice", "job.submit", "allowed", "", ""),
        ("bob", "job.submit", "allowed", "", ""),
        ("bob", "job.delete", "allowed", "", ""),
        ("bob", "job.submit", "failed", "", "model_not_found"),
    ]
    assert found[0].credential.startswith("key:")
    assert found[0].address == "127.0.0.1"
    assert gateway.running.drain
    await gateway.running.drain()
    rest = (await trail(bus, 6))[4:]
    assert [(r.actor, r.action, r.count) for r in rest] == [("alice", "job.submit", 4), ("", "service.stop", 1)]


async def test_refused_credentials_name_the_key_and_never_the_secret(nats: NatsServer, bus: Bus, keys: Keys) -> None:
    other = await add_client(bus, "carol", disabled=True)
    async with running_gateway(nats) as gateway:
        for credential in (other, keys.bob[:-1] + "x", "no-credential-at-all", ""):
            async with gateway.client(credential) as client:
                for _ in range(3):
                    assert (await client.get("/jobs")).status_code == 401
        async with gateway.client(keys.bob) as bob:
            assert (await bob.get("/nodes")).status_code == 403
        found = await trail(bus, 5)

    assert [told(record)[:2] for record in found] == [("credential.refuse", "denied")] * 4 + [
        ("scope.refuse", "denied")
    ]
    assert found[0].credential == f"key:{other.split('_')[1]}"
    assert [record.credential for record in found[1:4]] == ["", "", ""]
    assert [record.actor for record in found] == ["", "", "", "", "bob"]
    assert (found[4].target, found[4].reason) == ("GET /nodes", "needs admin:cluster")
    text = b"".join(encode(record) for record in found).decode()
    for secret in (other.split("_")[2], keys.bob.split("_")[2], "no-credential-at-all"):
        assert secret not in text


async def test_work_on_nodes_and_models_is_recorded(bus: Bus, gateway: Gateway, alice: httpx.AsyncClient) -> None:
    async def put(path: str, body: Any) -> int:
        return (await alice.put(path, json=body)).status_code

    assert await put(f"/nodes/{NODE}/policy", {"draining": True}) == 200
    assert await put(f"/nodes/{NODE}/policy", {"draining": False}) == 200
    assert await put("/nodes/nobody/policy", {"draining": True}) == 404
    assert await put(f"/models/{MODEL}/policy", {"keep_alive": "5m"}) in (200, 400)
    assert (await alice.delete("/models/unknown/policy")).status_code == 404
    assert (await alice.get("/nodes")).status_code == 200
    assert (await alice.get("/models")).status_code == 200
    found = await trail(bus, 6)

    assert [told(record) for record in found][:3] == [
        ("node.drain", "allowed", NODE, ""),
        ("node.resume", "allowed", NODE, ""),
        ("node.policy", "failed", "", "not_found"),
    ]
    assert [record.action for record in found][3:] == ["model.policy", "model.forget_policy", "fleet.read"]
    assert [record.target for record in found][3:5] == [MODEL, "unknown:latest"]
    assert {record.actor for record in found} == {"alice"}


async def test_a_pull_is_told_when_it_begins_and_when_it_failed(
    bus: Bus, gateway: Gateway, alice: httpx.AsyncClient
) -> None:
    """No worker answers here: the order is recorded, and that nothing came of it."""
    answer = await alice.post(f"/nodes/{NODE}/models?stream=false", json={"op": "pull", "model": "new:1"})
    assert answer.status_code >= 400
    found = await trail(bus, 2)

    assert [told(record)[:3] for record in found] == [
        ("model.pull", "allowed", f"new:1@{NODE}"),
        ("model.pull", "failed", f"new:1@{NODE}"),
    ]


async def test_work_that_lasts_is_told_once_unless_it_fails(bus: Bus) -> None:
    audit = Audit(bus, "gateway", "w1")
    scope = {"method": "POST", "path": "/nodes/n1/models", "headers": [], "client": ("192.0.2.7", 1)}
    spec = RouteSpec("POST", "/nodes/{node}/models", Scope.ADMIN_CLUSTER, Reach.FLEET, NOBODY)
    for failure in ("", "node_failed"):
        exchange = Exchange(scope, NOBODY, NOBODY)
        exchange.principal = Principal(client="alice", scopes=frozenset(), credential="key:1")
        exchange.deed, exchange.target = "model.pull", "m:1@n1"
        Witness(audit).saw(exchange, spec)
        exchange.failure = failure
        Witness(audit).saw(exchange, spec)
    found = list(audit._queue)[1:]

    assert [(record.action, str(record.result), record.reason, record.address) for record in found] == [
        ("model.pull", "allowed", "", "192.0.2.7"),
        ("model.pull", "allowed", "", "192.0.2.7"),
        ("model.pull", "failed", "node_failed", "192.0.2.7"),
    ]


async def test_calls_over_nats_are_recorded_the_same_way(nats: NatsServer, bus: Bus) -> None:
    await add_client(bus, "svc")
    await add_client(bus, "reader", scopes=(Scope.JOBS_READ,))
    await add_node(bus, MODEL)
    async with running_gateway(nats):
        for client in ("svc", "reader", "nobody"):
            async with connected(nats, user=client) as own:
                for verb in ("submit", "list"):
                    asked = encode({"job": {"model": MODEL, "prompt": "hello"}})
                    await own.request(f"api.{client}.{verb}", asked, timeout=20)
        found = await trail(bus, 4)

    assert [(r.actor, r.credential, *told(r)) for r in found] == [
        ("svc", "nats", "job.submit", "allowed", "", ""),
        ("reader", "nats", "scope.refuse", "denied", "api.*.submit", "forbidden"),
        ("nobody", "nats", "credential.refuse", "denied", "api.*.submit", "unauthenticated"),
        ("nobody", "nats", "credential.refuse", "denied", "api.*.list", "unauthenticated"),
    ]


async def test_a_gateway_whose_trail_cannot_be_written_is_not_ready(
    bus: Bus, gateway: Gateway, alice: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libs.common.audit.writer.LATE_S", 0.0)
    assert gateway.running.checks["audit"]() is None
    await bus.api(f"STREAM.DELETE.{AUDIT}")
    await alice.get("/nodes")
    await eventually(lambda: gateway.running.checks["audit"]())
