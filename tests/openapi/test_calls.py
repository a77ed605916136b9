"""A short run of schemathesis against each service: always the same cases. The long one is `make schemathesis`."""

from pathlib import Path

import pytest

from tests.openapi.running import SERVICES, Plan, schemathesis
from tests.support.nats_server import NatsServer

# A run in which nothing succeeds finds nothing: these do, whatever the order in which things happen.
SUCCEED = {
    "gateway": {
        "POST /jobs",
        "GET /jobs",
        "POST /v1/chat/completions",
        "GET /nodes",
        "PUT /models/{name}/policy",
    },
    "auth": {
        "POST /oauth/token",
        "POST /oauth/introspect",
        "POST /clients",
        "GET /clients/{client}",
        "POST /clients/{client}/keys",
        "GET /audit",
    },
}


@pytest.mark.parametrize("service", list(SERVICES))
async def test_every_operation_keeps_to_its_document(nats: NatsServer, tmp_path: Path, service: str) -> None:
    async with SERVICES[service](nats) as target:
        outcome = await schemathesis(target, tmp_path, Plan(seed=1, examples=6))
    assert outcome.passed, outcome.text
    assert outcome.cases > 500
    succeeded = {operation for operation, statuses in outcome.seen.items() if any(s < 300 for s in statuses)}
    assert succeeded >= SUCCEED[service]
    called = {(method, path) for method, path in (operation.split(" ") for operation in outcome.seen)}
    assert called >= {(m.upper(), path) for path, item in target.document["paths"].items() for m in item}
