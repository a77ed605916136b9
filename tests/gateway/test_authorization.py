"""Every route with every scope, and every route that takes a job's id with somebody else's (OWASP API1 and API5)."""

import json
import re
from typing import Any

import httpx
import pytest

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Scope
from services.gateway.route import Reach, RouteSpec
from services.gateway.routes import all_routes
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, Gateway, add_client
from tests.support.waiting import eventually

NOTHING: Any = None  # handlers are not called for what these tests ask of it
SPECS = all_routes(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
WITH_JOB = [spec for spec in SPECS if "{id}" in spec.path]
PLACEHOLDERS = {
    "{name:path}": "x",
    "{model:path}": "x",
    "{node}": "x",
    "{webhook}": "wh_" + "a" * 26,
    "{id}": "job_" + "a" * 26,
}
UNKNOWN = "job_" + "z" * 26


def path_of(spec: RouteSpec, **given: str) -> str:
    path = spec.path
    for name, value in {**PLACEHOLDERS, **{f"{{{name}}}": value for name, value in given.items()}}.items():
        path = path.replace(name, value)
    assert "{" not in path, f"say in PLACEHOLDERS what to put into {spec.path}"
    return path


def named(spec: RouteSpec) -> str:
    return f"{spec.method} {spec.path}"


def test_what_takes_a_jobs_id_reaches_its_owners_jobs_only() -> None:
    assert {spec.reach for spec in WITH_JOB} == {Reach.OWN_JOBS}
    assert all(spec.scope in (Scope.ADMIN_CLUSTER,) for spec in SPECS if spec.reach is Reach.FLEET)


def test_only_what_holds_nobodys_data_needs_no_scope() -> None:
    assert {named(spec) for spec in SPECS if spec.scope is None} == {"GET /openapi.json"}


async def test_a_route_lets_in_its_scope_and_no_other(gateway: Gateway, bus: Bus) -> None:
    keys = {scope: await add_client(bus, f"only-{number}", (scope,)) for number, scope in enumerate(Scope)}
    async with gateway.client("") as http:
        last = {"x-api-key": keys[list(Scope)[-1]]}

        async def all_are_known() -> bool:
            return (await http.get("/v1/models", headers=last)).status_code != 401

        await eventually(all_are_known)
        for spec in SPECS:
            statuses = {}
            for scope, key in keys.items():
                answer = await http.request(spec.method, path_of(spec), headers={"x-api-key": key}, content=b"{}")
                statuses[scope] = answer.status_code
                if answer.status_code == 403:
                    assert spec.scope is not None
                    assert spec.scope in answer.text, f"{named(spec)} does not say which scope it needs"
            let_in = {scope for scope, status in statuses.items() if status != 403}
            assert let_in == (set(Scope) if spec.scope is None else {spec.scope}), named(spec)
            assert all(statuses[scope] < 500 for scope in let_in)
            for headers in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic eDp5"}):
                answer = await http.request(spec.method, path_of(spec), headers=headers, content=b"{}")
                assert answer.status_code == 401, named(spec)
            key = keys[next(iter(let_in))]
            in_query = f"{path_of(spec)}?access_token={key}&api_key={key}"
            assert (await http.request(spec.method, in_query, content=b"{}")).status_code == 400, named(spec)


# Ways to ask that might take another path than the plain one.
VARIANTS: list[tuple[str, dict[str, str]]] = [
    ("", {}),
    ("?wait=1", {}),
    ("?explain=1", {}),
    ("?after=5.10", {}),
    ("?stream=true", {}),
    ("?stream=true", {"last-event-id": "5.10"}),
    ("", {"last-event-id": "5.10.1"}),
    ("", {"idempotency-key": "k"}),
]
HEADERS_THAT_DIFFER = {"date", "x-request-id"}


@pytest.mark.parametrize("spec", WITH_JOB, ids=named)
async def test_somebody_elses_job_is_an_unknown_one(
    gateway: Gateway, alice: httpx.AsyncClient, bob: httpx.AsyncClient, keys: Keys, spec: RouteSpec
) -> None:
    made = (await alice.post("/jobs", json={"model": MODEL, "prompt": "mine"})).json()["id"]
    ended = (await alice.post("/jobs", json={"model": MODEL, "prompt": "mine"})).json()["id"]
    await alice.delete(f"/jobs/{ended}")
    before = [(await alice.get(f"/jobs/{job}")).json()["state"] for job in (made, ended)]
    for query, headers in VARIANTS:
        seen = {}
        for job in (UNKNOWN, made, ended):
            answer = await bob.request(spec.method, path_of(spec, id=job) + query, headers=headers)
            shown = {name: value for name, value in answer.headers.items() if name not in HEADERS_THAT_DIFFER}
            seen[job] = (answer.status_code, answer.text.replace(job, "JOB"), shown)
        assert seen[made] == seen[UNKNOWN] == seen[ended], (query, headers)
        assert seen[UNKNOWN][0] in (404, 400, 409)
        if not query and not headers:
            assert seen[UNKNOWN][0] == 404
        assert "mine" not in json.dumps(seen)
    assert [(await alice.get(f"/jobs/{job}")).json()["state"] for job in (made, ended)] == before


async def test_somebody_elses_webhook_is_an_unknown_one(alice: httpx.AsyncClient, bob: httpx.AsyncClient) -> None:
    made = (await alice.post("/webhooks", json={"url": "https://hooks.example.org/alice-only"})).json()["id"]
    unknown = "wh_" + "0" * 26
    before = (await alice.get("/webhooks")).text
    for spec in (spec for spec in SPECS if "{webhook}" in spec.path):
        assert spec.reach is Reach.OWN_WEBHOOKS
        seen = {}
        for webhook in (unknown, made):
            answer = await bob.request(spec.method, path_of(spec, webhook=webhook), content=b"")
            shown = {name: value for name, value in answer.headers.items() if name not in HEADERS_THAT_DIFFER}
            seen[webhook] = (answer.status_code, answer.text, shown)
        assert seen[made] == seen[unknown], named(spec)
        assert seen[made][0] == 404
    body = {"model": MODEL, "prompt": "hi"}
    said = [await bob.post("/jobs", json=body | {"webhook": webhook}) for webhook in (unknown, made)]
    assert {answer.status_code for answer in said} == {400}
    assert said[0].text == said[1].text
    assert (await bob.get("/webhooks")).json() == {"webhooks": []}
    assert (await alice.get("/webhooks")).text == before


async def test_an_owner_cannot_be_named(alice: httpx.AsyncClient, bob: httpx.AsyncClient) -> None:
    """What is not the caller's to set is refused, or without effect (OWASP API3)."""
    body = {"model": MODEL, "prompt": "hi"}
    for field in ("client", "owner", "user_id", "node", "worker", "credential", "weight", "max_running"):
        answer = await bob.post("/jobs", json=body | {field: "alice"})
        assert (answer.status_code, answer.json().get("code")) == (400, "invalid_request"), (field, answer.text)
        assert field in answer.text
    made = await bob.post("/jobs", json=body, headers={"x-client": "alice", "arriero-client": "alice"})
    assert (await alice.get(f"/jobs/{made.json()['id']}")).status_code == 404


def test_no_placeholder_is_forgotten() -> None:
    for spec in SPECS:
        assert re.fullmatch(r"[\w/:.-]+", path_of(spec)), spec.path
