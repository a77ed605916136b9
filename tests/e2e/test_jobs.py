"""`/jobs` through the whole path: submit, poll, stream, resume, cancel, erase, and nobody else's business."""

import json

import httpx
import pytest

from tests.support.clients import ask, chat_models, http, parse_sse, token, wait_final
from tests.support.stack import Stack

pytestmark = pytest.mark.e2e

FINAL = {"succeeded", "failed", "cancelled", "expired"}


def submit(client: httpx.Client, tokens: int, **more: object) -> str:
    answer = client.post("/jobs", json={"model": chat_models(client)[0], "prompt": ask(tokens)} | more)
    assert answer.status_code == 202, answer.text
    job = str(answer.json()["id"])
    assert answer.headers["location"] == f"/jobs/{job}"
    return job


def test_a_job_is_polled_to_its_end_and_its_result_is_ollamas_final_object(client: httpx.Client) -> None:
    job = submit(client, 30)
    view = wait_final(client, job)
    assert view["state"] == "succeeded"
    assert view["result"]["done"] is True
    assert view["result"]["response"]
    assert view["usage"]["completion_tokens"] > 0
    assert view["created_at"] <= view["started_at"] <= view["finished_at"]
    assert view["attempts"] == 1


@pytest.mark.parametrize("kind", ["chat", "generate", "embed"])
def test_each_kind_runs(client: httpx.Client, kind: str) -> None:
    models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    embedding = next((model for model in models if "embed" in model), None)
    if kind == "embed" and embedding is None:
        pytest.skip("no embedding model in the fleet")
    body = {
        "chat": {"model": chat_models(client)[0], "messages": [{"role": "user", "content": ask(5)}]},
        "generate": {"model": chat_models(client)[0], "prompt": ask(5)},
        "embed": {"model": embedding, "input": ["one", "two"]},
    }[kind]
    view = wait_final(client, client.post("/jobs", json={"kind": kind, **body}).json()["id"])
    assert view["state"] == "succeeded", view
    result = view["result"]
    assert {"chat": lambda: result["message"]["content"], "generate": lambda: result["response"],
            "embed": lambda: len(result["embeddings"]) == 2}[kind]()  # fmt: skip


def test_a_stream_cut_in_the_middle_is_resumed_with_the_same_bytes_live_and_after_the_end(client: httpx.Client) -> None:
    job = submit(client, 60)
    got = ""
    with client.stream("GET", f"/jobs/{job}/stream") as stream:
        for piece in stream.iter_text():
            got += piece
            if len([e for e in parse_sse(got) if e.event == "token"]) >= 10:
                break
    seen = [e for e in parse_sse(got[: got.rfind("\n\n") + 2]) if e.id]
    rest = client.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": seen[-1].id}).text
    whole = client.get(f"/jobs/{job}/stream").text
    assert "".join(e.raw for e in seen) + rest == whole
    events = parse_sse(whole)
    assert events[-1].event == "succeeded"
    for n in (0, 1, len(events) // 2, len(events) - 2):
        resumed = client.get(f"/jobs/{job}/stream", params={"after": events[n].id}).text
        assert resumed == "".join(e.raw for e in events[n + 1 :])
    text = "".join(json.loads(e.data).get("text", "") for e in events if e.event == "token")
    assert text == wait_final(client, job)["result"]["response"]


def test_a_running_job_is_cancelled_and_a_finished_one_erased(client: httpx.Client) -> None:
    job = submit(client, 300)
    with client.stream("GET", f"/jobs/{job}/stream") as stream:
        for line in stream.iter_lines():
            if line == "event: token":
                break
    assert client.delete(f"/jobs/{job}").status_code in (200, 202)
    view = wait_final(client, job)
    assert (view["state"], view["error"]["code"]) == ("cancelled", "cancelled")
    assert parse_sse(client.get(f"/jobs/{job}/stream").text)[-1].event == "cancelled"
    assert client.delete(f"/jobs/{job}").json()["erased"] is True
    assert client.get(f"/jobs/{job}").status_code == 404


def test_another_clients_token_finds_none_of_it(stack: Stack, client: httpx.Client) -> None:
    job = submit(client, 10)
    wait_final(client, job)
    made = stack.arriero("client", "create", "stranger", "--json")
    assert made.returncode == 0, made.stderr
    stranger = json.loads(made.stdout)
    with http(stack, token(stack.up, stranger["client_id"], stranger["client_secret"])) as other:
        for method, path in [("GET", ""), ("GET", "/stream"), ("DELETE", "")]:
            theirs = other.request(method, f"/jobs/{job}{path}")
            unknown = other.request(method, f"/jobs/job_{'a' * 26}{path}")
            assert theirs.status_code == unknown.status_code == 404
            assert theirs.content == unknown.content
        assert other.get("/jobs").json()["jobs"] == []
    assert client.get(f"/jobs/{job}").status_code == 200


def test_what_is_wrong_with_a_request_is_said_with_its_place(client: httpx.Client) -> None:
    model = chat_models(client)[0]
    for body, path in [
        ({"model": model, "prompt": 5}, "prompt"),
        ({"model": model, "prompt": "x", "tempreature": 1}, "tempreature"),
        ({"prompt": "x"}, "model"),
        ({"model": model, "messages": [{"role": "user", "contents": "x"}]}, "messages[0].contents"),
        ({"model": model, "prompt": "x", "options": {"num_predict": 0}}, "options.num_predict"),
    ]:
        answer = client.post("/jobs", json=body)
        assert (answer.status_code, answer.json()["path"]) == (400, path), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert client.post("/jobs", content=b'{"model": ').status_code == 400
    assert client.post("/jobs", content=b"x" * 21_000_000).status_code == 413
    unknown = client.post("/jobs", json={"model": "no-such", "prompt": "x"})
    assert (unknown.status_code, model in unknown.json()["models"]) == (404, True)


def test_the_same_idempotency_key_is_the_same_job(client: httpx.Client) -> None:
    body = {"model": chat_models(client)[0], "prompt": ask(5, "keys")}
    first = client.post("/jobs", json=body, headers={"Idempotency-Key": "k-1"})
    again = client.post("/jobs", json=body, headers={"Idempotency-Key": "k-1"})
    assert (first.status_code, again.status_code, again.json()["id"]) == (202, 200, first.json()["id"])
    wait_final(client, first.json()["id"])
    later = client.post("/jobs", json=body, headers={"Idempotency-Key": "k-1"})
    assert later.json()["id"] == first.json()["id"]
    assert client.post("/jobs", json=body | {"prompt": "other"}, headers={"Idempotency-Key": "k-1"}).status_code == 422


def test_a_deadline_ends_a_job(client: httpx.Client) -> None:
    # Longer than what this file asks for elsewhere takes: a router that has seen those answers takes the job.
    view = wait_final(client, submit(client, 2000, deadline_s=6))
    assert (view["state"], view["error"]["code"]) == ("expired", "deadline_exceeded")
