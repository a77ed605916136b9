"""Chat completions through the whole path: gateway → JetStream → router → worker → node → NATS → gateway → SSE."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.clients import ask, chat_models, http, openai_client, token, wait_final
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e


def test_the_official_package_streams_with_a_token_from_the_token_endpoint(stack: Stack, client: httpx.Client) -> None:
    model = chat_models(client)[0]
    official = openai_client(stack, token(stack.up))
    chunks = list(
        official.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": ask(30)}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert said[0].role == "assistant"
    assert sum(bool(delta.content or getattr(delta, "reasoning", None)) for delta in said) > 5, "tokens came one by one"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_whole_answer_is_the_streamed_one_put_together(stack: Stack, client: httpx.Client) -> None:
    model = chat_models(client)[0]
    official = openai_client(stack)
    question = {
        "model": model,
        "messages": [{"role": "user", "content": ask(25)}],
        "seed": 7,
        "temperature": 0,
        "max_tokens": 30,
    }
    whole = official.chat.completions.create(**question)  # type: ignore[call-overload]
    streamed = official.chat.completions.create(**question, stream=True)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_an_unknown_model_is_404_and_the_answer_names_those_that_exist(stack: Stack, client: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        openai_client(stack).chat.completions.create(model="no-such", messages=[{"role": "user", "content": "?"}])
    assert error.value.code == "model_not_found"
    assert chat_models(client)[0] in error.value.message


def test_without_a_credential_there_is_no_way_in(stack: Stack) -> None:
    for method, path in [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/jobs"), ("GET", "/nodes")]:
        assert httpx.request(method, stack.up["gateway"] + path).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        openai_client(stack, "arr_nonsense").models.list()


def test_ten_parallel_streams_over_two_models_run_on_the_nodes_that_hold_them(
    stack: Stack, client: httpx.Client
) -> None:
    models = chat_models(client)[:2]
    nodes = {m["name"]: n["name"] for n in _nodes(stack) for m in n["models"]}

    def stream(n: int) -> tuple[str, str]:
        body = {"model": models[n % len(models)], "stream": True, "max_tokens": 20}
        with (
            http(stack) as own,
            own.stream(
                "POST", "/v1/chat/completions", json=body | {"messages": [{"role": "user", "content": ask(20)}]}
            ) as s,
        ):
            assert s.status_code == 200
            lines = [line for line in s.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return body["model"], s.headers["arriero-job-id"]  # type: ignore[return-value]

    with ThreadPoolExecutor(10) as pool:
        streamed = list(pool.map(stream, range(10)))
    for model, job in streamed:
        view = client.get(f"/jobs/{job}").json()
        assert (view["state"], view["node"]) == ("succeeded", nodes[model])


def test_a_client_that_leaves_cancels_its_job_unless_it_said_detach(stack: Stack, client: httpx.Client) -> None:
    model = chat_models(client)[0]

    def leave_early(headers: dict[str, str], tokens: int) -> str:
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": ask(tokens)}]}
        with http(stack) as own, own.stream("POST", "/v1/chat/completions", json=body, headers=headers) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    break
        return str(stream.headers["arriero-job-id"])

    assert wait_final(client, leave_early({}, 1500))["state"] == "cancelled"
    assert wait_final(client, leave_early({"Arriero-Detach": "true"}, 150))["state"] == "succeeded"


async def test_a_client_that_leaves_before_its_answer_begins_cancels_its_job_too(
    stack: Stack, client: httpx.Client
) -> None:
    """Not streamed: there is nothing to send before the end."""
    body = {"model": chat_models(client)[0], "messages": [{"role": "user", "content": ask(1500)}]}
    before = {job["id"] for job in _all_jobs(client)}
    headers = {"Authorization": f"Bearer {stack.up['api_key']}"}
    async with httpx.AsyncClient(base_url=stack.up["gateway"], headers=headers, timeout=60) as own:
        asking = asyncio.create_task(own.post("/v1/chat/completions", json=body))
        (mine,) = await eventually(lambda: {job["id"] for job in _all_jobs(client)} - before)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    view = await asyncio.to_thread(wait_final, client, mine)
    assert view["state"] == "cancelled"


def _nodes(stack: Stack) -> list[dict]:  # type: ignore[type-arg]
    said = stack.arriero("nodes", "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    return list(found["nodes"] if isinstance(found, dict) else found)


def _all_jobs(client: httpx.Client) -> list[dict]:  # type: ignore[type-arg]
    rows, cursor = [], None
    while True:
        page = client.get("/jobs", params={"limit": 200} | ({"cursor": cursor} if cursor else {})).json()
        rows += page["jobs"]
        cursor = page["cursor"]
        if cursor is None:
            return rows
