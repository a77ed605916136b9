"""A request that does not fit the context that its model has in the whole fleet is refused before it is stored."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.catalog import ModelPolicy, model_record
from libs.common.contracts.clients import Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code
from libs.common.contracts.requests import Kind, Priority, Request
from libs.common.contracts.streams import MODELS
from services.gateway.context import too_long
from services.gateway.prompt import at_least, pieces, tokens
from services.gateway.submission import submission_of
from services.gateway.wish import Wish
from tests.gateway.running import MODEL, RouterStub
from tests.support.waiting import eventually

LIMIT = 4096
FIXED = ModelPolicy(name=MODEL, num_ctx=LIMIT)
LONG = "word " * 8_000  # 40,000 bytes: 6,666 tokens at least, about 10,000


def refused(policy: ModelPolicy = FIXED, kind: Kind = Kind.GENERATE, num_ctx: int = 0, **fields: Any) -> Any:
    request = Request(model=MODEL, **fields)
    wish = Wish(kind, request, "/jobs", Priority.NORMAL, 60, 60, detached=True, num_ctx=num_ctx)
    principal = Principal(client="alice", scopes=frozenset())
    return too_long(submission_of(b"k", principal, wish, b"{}"), request, policy)


def test_more_than_the_models_context_is_refused_and_the_limit_is_named() -> None:
    asked = refused(num_ctx=LIMIT + 1, prompt="hi")
    assert (asked.code, asked.path, asked.details) == (
        Code.CONTEXT_LENGTH_EXCEEDED,
        "options.num_ctx",
        {"num_ctx": LIMIT},
    )
    assert "4096" in asked.message
    assert "4097" in asked.message
    prompt = refused(prompt=LONG)
    assert (prompt.code, prompt.path, prompt.details) == (Code.CONTEXT_LENGTH_EXCEEDED, "prompt", {"num_ctx": LIMIT})
    assert "about 10000 tokens" in prompt.message
    assert refused(kind=Kind.CHAT, messages=[{"role": "user", "content": LONG}]).path == "messages"
    answer = refused(prompt="word " * 1_000, options={"num_predict": LIMIT - 800})
    assert "up to 3296 of answer" in answer.message


def test_what_fits_or_may_not_fit_is_taken() -> None:
    assert refused(num_ctx=LIMIT, prompt="hi", options={"num_predict": LIMIT - 100}) is None
    assert refused(prompt="w" * 6 * LIMIT) is None  # 6,144 by the estimate; there are models with fewer tokens for it
    assert refused(prompt=LONG, options={"num_predict": -1}, truncate=True) is None  # its client said so
    assert refused(kind=Kind.EMBED, input=["word " * 900] * 20) is None  # one after the other
    assert refused(policy=ModelPolicy(name=MODEL), prompt=LONG, num_ctx=10**6) is None


def test_num_ctx_is_not_a_matter_of_cutting() -> None:
    assert refused(num_ctx=LIMIT + 1, prompt="hi", truncate=True)


@given(st.lists(st.tuples(st.text(max_size=200), st.integers(0, 2)), min_size=1, max_size=4))
def test_what_a_prompt_has_at_least_is_never_more_than_the_estimate(messages: list[tuple[str, int]]) -> None:
    chat = [{"role": "user", "content": text, "images": ["aGk="] * n} for text, n in messages]
    parts = pieces(Kind.CHAT, Request(model=MODEL, messages=chat))
    assert 0 <= at_least(parts) <= tokens(parts)


@pytest.fixture
async def fixed(bus: Bus, alice: httpx.AsyncClient, router: RouterStub) -> None:
    """The gateway knows the model's context."""
    await Bucket(bus, MODELS).put(model_record(MODEL), encode(FIXED))

    body = {"model": MODEL, "prompt": LONG}

    async def known() -> bool:
        return (await alice.post("/jobs", json=body, params={"dry_run": "1"})).status_code == 400

    await eventually(known)


@pytest.mark.usefixtures("fixed")
async def test_each_door_refuses_in_its_own_dialect_and_stores_nothing(alice: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "hi", "options": {"num_ctx": 8192}}
    for params in ({}, {"dry_run": "1"}):
        told = await alice.post("/jobs", json=body, params=params)
        assert (told.status_code, told.json()["code"], told.json()["path"]) == (
            400, "context_length_exceeded", "options.num_ctx",
        )  # fmt: skip
        assert told.json()["num_ctx"] == LIMIT
    chat = {"model": MODEL, "messages": [{"role": "user", "content": LONG}], "stream": True}
    told = await alice.post("/v1/chat/completions", json=chat)
    error = told.json()["error"]
    assert (told.status_code, error["type"], error["code"], error["param"]) == (
        400, "invalid_request_error", "context_length_exceeded", "messages",
    )  # fmt: skip
    assert "4096" in error["message"]
    assert "word" not in told.text
    assert (await alice.get("/jobs")).json()["jobs"] == []
    assert (await alice.post("/jobs", json=body | {"options": {"num_ctx": LIMIT}})).status_code == 202


async def test_a_job_that_is_there_is_given_to_who_asks_for_it_again(
    bus: Bus, alice: httpx.AsyncClient, router: RouterStub
) -> None:
    body = {"model": MODEL, "prompt": LONG}
    headers = {"Idempotency-Key": "order 66"}
    first = await alice.post("/jobs", json=body, headers=headers)
    await Bucket(bus, MODELS).put(model_record(MODEL), encode(FIXED))

    async def refuses_others() -> bool:
        return (await alice.post("/jobs", json=body)).status_code == 400

    await eventually(refuses_others)
    again = await alice.post("/jobs", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
