"""schemathesis against a whole real stack: its services in this process, itself in another one."""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from libs.common.bus.buckets import Bucket
from libs.common.bus.failures import BusError
from libs.common.contracts.clients import DEFAULT_SCOPES, Scope
from tests.auth.running import OPERATOR, OPERATOR_SECRET, running_auth
from tests.gateway.running import add_client
from tests.gateway.whole import NODE, whole
from tests.support.nats_server import NatsServer, connected

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("schemathesis")
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
    "negative_data_rejection",
    "is_no_mistake",
    "is_clean",
)


# How a wrong request is refused.
_CONFIG = """
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "410", "413", "415", "422", "429", "503"]
"""


class Target(NamedTuple):
    """`environment`: what the hooks need."""

    url: str
    document: dict[str, Any]
    headers: dict[str, str]
    environment: dict[str, str]


class Plan(NamedTuple):
    seed: int
    examples: int  # for each operation, in each phase that generates
    phases: str = "examples,coverage,fuzzing,stateful"
    operations: str = ""  # a regular expression on paths
    checks: str = ""  # beside CHECKS
    deterministic: bool = True  # always the same cases; else the seed's


class Outcome(NamedTuple):
    """`seen`: how often an operation answered with a status."""

    passed: bool
    cases: int
    text: str
    seen: dict[str, Counter[int]]


@contextlib.asynccontextmanager
async def gateway(nats: NatsServer) -> AsyncIterator[Target]:
    """With router, worker and a simulated node; whoever drains the node finds it working again soon."""
    async with whole(nats, address_failures=0) as (running, _), connected(nats) as bus:
        key = await add_client(bus, "fuzzer", scopes=(*DEFAULT_SCOPES, Scope.ADMIN_CLUSTER))
        async with running.client(key) as http:
            healing = asyncio.create_task(_heal_node(http))
            try:
                document = await _document(http)
                yield Target(running.url, document, {"Authorization": f"Bearer {key}"}, {})
            finally:
                healing.cancel()


@contextlib.asynccontextmanager
async def auth(nats: NatsServer) -> AsyncIterator[Target]:
    """Whoever disables its operator, or takes his scopes, finds him as he was soon."""
    async with running_auth(nats) as running, connected(nats) as bus:
        token = await running.access_token(OPERATOR, OPERATOR_SECRET, "admin:clients audit:read")
        async with httpx.AsyncClient(base_url=running.url, headers={"Authorization": f"Bearer {token}"}) as http:
            document = await _document(http)
        environment = {
            "OPENAPI_TOKEN_URL": f"{running.url}/oauth/token",
            "OPENAPI_CLIENT": OPERATOR,
            "OPENAPI_SECRET": OPERATOR_SECRET,
        }
        healing = asyncio.create_task(_heal_operator(Bucket(bus, "clients")))
        try:
            yield Target(running.url, document, {}, environment)
        finally:
            healing.cancel()


SERVICES = {"gateway": gateway, "auth": auth}


async def schemathesis(target: Target, folder: Path, plan: Plan) -> Outcome:
    written = folder / "openapi.json"
    written.write_text(json.dumps(target.document))
    (folder / "schemathesis.toml").write_text(_CONFIG)
    checks = [*CHECKS, *filter(None, plan.checks.split(","))]
    arguments = [
        "run", str(written), "--url", target.url, "--phases", plan.phases, "--checks", ",".join(checks),
        "--max-examples", str(plan.examples), "--seed", str(plan.seed),
        "--continue-on-failure", "--request-timeout", "60", "--no-color",
        "--suppress-health-check", "all", "--warnings", "off",
    ]  # fmt: skip
    if plan.deterministic:
        arguments.append("--generation-deterministic")
    for name, value in target.headers.items():
        arguments += ["-H", f"{name}:{value}"]
    if plan.operations:
        arguments += ["--include-path-regex", plan.operations]
    environment = {
        **os.environ,
        **target.environment,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.openapi.hooks",
        "OPENAPI_SEEN": str(folder / "seen"),
    }
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM), *arguments, cwd=folder, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    text = said.decode(errors="replace")
    found = re.search(r"Test cases:\s*([0-9,]+)|([0-9,]+) generated", text)
    cases = int((found[1] or found[2]).replace(",", "")) if found else 0
    return Outcome(process.returncode == 0, cases, text, _seen(folder / "seen"))


def _seen(file: Path) -> dict[str, Counter[int]]:
    seen: dict[str, Counter[int]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        method, path, status = line.split(" ")
        seen.setdefault(f"{method} {path}", Counter())[int(status)] += 1
    return seen


async def _document(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = await http.get("/openapi.json")
    document: dict[str, Any] = answer.raise_for_status().json()
    return document


async def _heal_operator(clients: Bucket) -> None:
    key = f"client.{OPERATOR}"
    good, _ = await clients.get(key)
    assert good is not None
    while True:
        with contextlib.suppress(BusError):
            if (await clients.get(key))[0] != good:
                await clients.put(key, good)
        await asyncio.sleep(0.2)


async def _heal_node(http: httpx.AsyncClient) -> None:
    while True:
        with contextlib.suppress(httpx.HTTPError):
            await http.put(f"/nodes/{NODE}/policy", json={"draining": False})
        await asyncio.sleep(0.3)
