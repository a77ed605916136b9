"""The OpenAPI documents: valid, complete in both directions, and made of what the code decodes and refuses with."""

import json
import re
from typing import Any, NamedTuple

import msgspec
import pytest
from openapi_spec_validator import validate

from libs.common import edge
from libs.common.contracts.clients import Scope
from libs.common.contracts.faults import MEANING, Code, Fault
from libs.common.openapi import errors
from libs.common.openapi.document import operation_id, plain_path
from services.auth.all_routes import all_routes as auth_routes
from services.auth.oauth_routes import OAuthRoutes
from services.auth.openapi import openapi as auth_openapi
from services.gateway import endpoint, policies
from services.gateway.dialects import openai_error
from services.gateway.job_bodies import JobBody
from services.gateway.openapi import openapi as gateway_openapi
from services.gateway.policies import ModelChangeBody, NodePolicyBody, OrderBody
from services.gateway.routes import all_routes as gateway_routes

NOTHING: Any = None
ISSUER = "http://issuer.internal"
GATEWAY = gateway_routes(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
AUTH = auth_routes(ISSUER, OAuthRoutes(*7 * [NOTHING]), NOTHING, NOTHING, NOTHING, NOTHING)


class Case(NamedTuple):
    routes: Any
    document: dict[str, Any]


CASES = {
    "gateway": Case(GATEWAY, json.loads(json.dumps(gateway_openapi(GATEWAY, ISSUER)))),
    "auth": Case(AUTH, json.loads(json.dumps(auth_openapi(AUTH, ISSUER)))),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m.upper(), path): op for path, item in document["paths"].items() for m, op in item.items()}


def test_it_is_a_valid_document(case: Case) -> None:
    validate(case.document)


def test_every_route_is_in_it_and_nothing_else(case: Case) -> None:
    """OWASP API9: an inventory that cannot be out of date."""
    assert set(operations(case.document)) == {(spec.method, plain_path(spec.path)) for spec in case.routes}


def test_every_route_of_the_gateway_says_something_about_itself() -> None:
    assert [spec.path for spec in GATEWAY if spec.operation is None] == []


def test_each_operation_needs_what_its_route_needs() -> None:
    shown = operations(CASES["gateway"].document)
    for spec in GATEWAY:
        ways = shown[spec.method, plain_path(spec.path)]["security"]
        assert ways
        assert all(list(way.values()) == [[spec.scope] if spec.scope else []] for way in ways), spec.path
    shown = operations(CASES["auth"].document)
    for route in AUTH:
        ways = shown[route.method, route.path]["security"]
        assert bool(ways) is (route.path.startswith("/.well-known") is False)
        if isinstance(route.access, Scope):
            assert all(list(way.values()) == [[route.access]] for way in ways), route.path


def test_an_error_is_under_its_status_and_with_its_code(case: Case) -> None:
    for name, operation in operations(case.document).items():
        for status, answer in operation["responses"].items():
            named = re.findall(r"`(\w+)`: [A-Z]", answer["description"])
            if int(status) < 400:
                assert named == [], name
                continue
            assert {MEANING[Code(code)].status for code in named} == {int(status)}, (name, status)


def test_every_operation_can_answer_what_every_route_can(case: Case) -> None:
    codes = {str(code) for code in (*edge.CODES, *(endpoint.CODES if case is CASES["gateway"] else ()))}
    for name, operation in operations(case.document).items():
        said = " ".join(answer["description"] for answer in operation["responses"].values())
        assert {code for code in codes if f"`{code}`" not in said} == set(), name


def test_bodies_are_the_structs_that_decode_them() -> None:
    components = CASES["gateway"].document["components"]["schemas"]
    job = components["JobBody"]
    assert list(job["properties"]) == list(JobBody.__struct_fields__)
    assert (job["required"], job["additionalProperties"]) == (["model"], False)
    assert components["ChatBody"].get("additionalProperties") is not False, "OpenAI's clients send more than we know"


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (ModelChangeBody, lambda text: policies.read_model_change(text)),
        (NodePolicyBody, lambda text: policies.read_node_policy("n", text)),
        (OrderBody, lambda text: policies.read_order(text, "n", NOTHING, "x")),
    ],
)
def test_bodies_that_are_read_by_hand_know_the_fields_of_their_types(body: Any, read: Any) -> None:
    with pytest.raises(Exception, match="there are ") as refusal:
        read(b'{"no such": 1}')
    there = str(refusal.value).partition("there are ")[2]
    assert set(there.split(", ")) == set(body.__struct_fields__)


@pytest.mark.parametrize("code", list(Code))
def test_faults_look_as_their_schemas_say(code: Code) -> None:
    fault = Fault(code=code, message="what to do", path="$.x", details={"models": ["m"]})
    found = msgspec.convert(fault.problem(), errors.Problem)
    assert (found.code, found.status, found.path) == (code, MEANING[code].status, "$.x")
    assert set(Fault(code=code, message="x").problem()) == set(errors.Problem.__struct_fields__) - {"path"}
    assert msgspec.convert(openai_error(fault), errors.OpenAiError).error.code is code
    assert set(openai_error(Fault(code=code, message="x"))["error"]) == set(errors.OpenAiFault.__struct_fields__)


def test_links_lead_to_operations_that_exist(case: Case) -> None:
    ids = {operation["operationId"] for operation in operations(case.document).values()}
    links = [
        link
        for operation in operations(case.document).values()
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert links
    assert {link["operationId"] for link in links} <= ids
    assert len(ids) == len(operations(case.document))
    assert operation_id("GET", "/models/{name:path}/policy") == "get_models_name_policy"


def test_no_pattern_is_pythons_alone(case: Case) -> None:
    written = json.dumps(case.document)
    assert r"\\A" not in written
    assert r"\\Z" not in written
