"""A model that a client may not use looks like one that does not exist: the same bytes, wherever it is named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import ApiKey, ModelRule, Policy, Principal
from libs.common.contracts.codec import encode
from libs.common.credentials import api_keys
from libs.common.credentials.verifiers import Verifiers
from tests.gateway.running import SECRET, Gateway, add_client, add_node, running_gateway
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

CASES = [
    (ModelRule(), "anything:1b", True),
    (ModelRule(allow=("llama3.2",)), "llama3.2:3b", True),  # no tag: every tag
    (ModelRule(allow=("llama3.2:3b",)), "llama3.2:1b", False),
    (ModelRule(allow=("llama3.2:3b",)), "registry.ollama.ai/library/Llama3.2:3B", True),
    (ModelRule(allow=("llama*",)), "llama3.2:3b", True),
    (ModelRule(allow=("llama*",)), "qwen3:8b", False),
    (ModelRule(allow=("*:3b",)), "llama3.2:3b", True),
    (ModelRule(allow=("*",), deny=("hf.co/*",)), "hf.co/org/model:q4", False),
    (ModelRule(allow=("llama3.2",), deny=("llama3.2:90b",)), "llama3.2:90b", False),
    (ModelRule(allow=("llama3.2",)), "llama3.22:3b", False),
    (ModelRule(allow=("mistral",)), "mistral", True),  # :latest
    (ModelRule(allow=()), "mistral", False),
]


@pytest.mark.parametrize(("rule", "model", "allowed"), CASES)
def test_a_rule(rule: ModelRule, model: str, allowed: bool) -> None:
    assert rule.allows(model) is allowed


@given(st.text("abc:/*?[]", max_size=6), st.text("abc:/", min_size=1, max_size=6))
def test_deny_goes_before_allow(pattern: str, model: str) -> None:
    assert not ModelRule(allow=("*",), deny=(pattern,)).allows(model) or not ModelRule(allow=(pattern,)).allows(model)


def test_a_model_must_pass_the_rules_of_key_and_client() -> None:
    rules = (ModelRule(allow=("llama3.2",)), ModelRule(deny=("*:90b",)))
    who = Principal(client="a", scopes=frozenset(), models=rules)
    assert [who.allows(model) for model in ("llama3.2:3b", "llama3.2:90b", "qwen3")] == [True, False, False]


async def answers(gateway: Gateway, key: str, model: str) -> list[tuple[int, Any]]:
    """What naming the model comes to, everywhere it can be named, with the name itself blotted out."""
    found = []
    message = [{"role": "user", "content": "hi"}]
    async with gateway.client(key) as http:
        for method, path, body in (
            ("POST", "/jobs", {"model": model, "prompt": "hi"}),
            ("POST", "/jobs?dry_run=1", {"model": model, "prompt": "hi"}),
            ("POST", "/v1/chat/completions", {"model": model, "messages": message}),
            ("POST", "/v1/chat/completions", {"model": model, "messages": message, "stream": True}),
            ("GET", f"/v1/models/{model}", None),
        ):
            answer = await http.request(method, path, json=body)
            found.append((answer.status_code, answer.text.replace(model, "MODEL")))
        listed = await http.get("/v1/models")
        found.append((listed.status_code, sorted(model["id"] for model in listed.json()["data"])))
    return found


async def test_a_forbidden_model_is_a_missing_one(nats: NatsServer, bus: Bus) -> None:
    policy = Policy(models=ModelRule(allow=("open:1b", "narrow:1b")))
    whole = await add_client(bus, "alice", policy=policy)
    narrow = api_keys.new()
    record = ApiKey(
        id=narrow.id,
        client="alice",
        verifier=Verifiers(SECRET.encode()).of(narrow.secret),
        models=ModelRule(deny=("narrow",)),
    )
    await Bucket(bus, "clients").put(f"key.{narrow.id}", encode(record))
    anybody = await add_client(bus, "bob")
    await add_node(bus, "open:1b", "narrow:1b", "secret:1b")
    async with running_gateway(nats) as gateway:

        async def everybody_is_known() -> bool:
            async with gateway.client("") as http:
                asked = [
                    await http.get("/v1/models", headers={"x-api-key": key}) for key in (whole, str(narrow), anybody)
                ]
            return [len(answer.json().get("data", ())) for answer in asked] == [2, 1, 3]

        await eventually(everybody_is_known)
        missing = await answers(gateway, whole, "absent:1b")
        assert await answers(gateway, whole, "secret:1b") == missing
        assert {status for status, _ in missing[:-1]} == {404}
        assert missing[-1] == (200, ["narrow:1b", "open:1b"])
        assert "secret" not in json.dumps(missing)
        assert await answers(gateway, str(narrow), "narrow:1b") == await answers(gateway, str(narrow), "absent:1b")
        async with gateway.client(whole) as http:
            assert (await http.post("/jobs", json={"model": "narrow:1b", "prompt": "hi"})).status_code == 202
        async with gateway.client(anybody) as http:
            assert (await http.post("/jobs", json={"model": "secret:1b", "prompt": "hi"})).status_code == 202
