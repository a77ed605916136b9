"""Limits as an operator sets them and clients meet them: two gateways of a whole stack, NATS users with their permissions."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.clients import ask, chat_models, http, wait_final
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("limits"), "--no-demo", "--gateways", "2") as running:
        yield running


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as found:
        yield found


def gateways(stack: Stack) -> list[str]:
    first = httpx.URL(stack.up["gateway"])
    assert first.port
    return [str(first).rstrip("/"), str(first.copy_with(port=first.port + 50)).rstrip("/")]


def credential(stack: Stack, name: str, *limits: str) -> str:
    """The key of a new client with these limits, once all gateways know it."""
    said = [word for limit in limits for word in ("--limit", limit)]
    stack.arriero("client", "create", name, *said, "--json")
    key = str(json.loads(stack.arriero("key", "create", name, "--json").stdout)["api_key"])
    for gateway in gateways(stack):
        with http(stack, key, gateway) as client:  # a cancel is never counted
            until(lambda client=client: client.delete("/jobs/job_of_nobody").status_code == 404)
    return key


def test_requests_are_counted_over_both_gateways(stack: Stack, closing: contextlib.ExitStack) -> None:
    key = credential(stack, "hasty", "requests_per_minute=30")
    clients = [closing.enter_context(http(stack, key, gateway)) for gateway in gateways(stack)]
    statuses: list[int] = []
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda n: clients[n % 2].get("/jobs"), range(60)):
            statuses.append(answer.status_code)
    if time.monotonic() - began < 60:
        assert statuses.count(200) == 30
    assert set(statuses) == {200, 429}


def test_a_chat_is_paid_by_what_it_used_and_the_official_package_gives_up_when_nothing_is_left(
    stack: Stack, closing: contextlib.ExitStack
) -> None:
    key = credential(stack, "thrifty", "tokens_per_month=3000")
    one, other = (closing.enter_context(http(stack, key, gateway)) for gateway in gateways(stack))
    model = chat_models(one)[0]
    job = one.post("/jobs", json={"model": model, "prompt": ask(20), "options": {"num_predict": 2000}})
    assert job.status_code == 202
    assert 650 < int(job.headers["x-ratelimit-remaining-tokens"]) < 1000
    usage = wait_final(one, job.json()["id"])["usage"]
    spent = usage["prompt_tokens"] + usage["completion_tokens"]

    def is_settled() -> bool:
        body = {"model": model, "prompt": ask(5), "options": {"num_predict": 2999}}
        assert other.post("/jobs", json=body).status_code == 429  # this gateway hears of the ledger when it asks
        return int(other.get("/jobs").headers["x-ratelimit-remaining-tokens"]) == 3000 - spent

    until(is_settled)
    sent: list[httpx.Request] = []
    with (
        httpx.Client(event_hooks={"request": [sent.append]}, timeout=60) as counting,
        openai.OpenAI(base_url=f"{gateways(stack)[0]}/v1", api_key=key, http_client=counting) as sdk,
    ):
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=2990)
        assert len(sent) == 1
        assert caught.value.code == "quota_exhausted"
        answer = sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": ask(5)}], max_tokens=50)
    assert answer.choices[0].message.content
    assert stack.overstepped() == []
