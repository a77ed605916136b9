"""Why a job went where it went, through the whole path and by the command; what a request needs, and what it may not force."""

import json

import httpx
import pytest

from tests.support.clients import ask, chat_models, http, token, wait_final
from tests.support.stack import Stack

pytestmark = pytest.mark.e2e


def finished(client: httpx.Client, **more: object) -> str:
    answer = client.post("/jobs", json={"model": chat_models(client)[0], "prompt": ask(5)} | more)
    assert answer.status_code == 202, answer.text
    job = str(answer.json()["id"])
    assert wait_final(client, job)["state"] == "succeeded"
    return job


def test_the_decision_about_a_job_stays_with_it(stack: Stack, client: httpx.Client) -> None:
    job = finished(client)
    plain, explained = (client.get(f"/jobs/{job}", params=params).json() for params in ({}, {"explain": "1"}))
    assert "decision" not in plain
    decision = explained["decision"]
    assert decision["node"] == explained["node"]
    assert decision["reason"]
    said = stack.arriero("job", "explain", job, "--json")
    assert (said.returncode, json.loads(said.stdout)["decision"]) == (0, decision), said.stderr
    text = stack.arriero("job", "explain", job).stdout
    assert text.startswith(f"{job}  succeeded on {decision['node']}")


def test_a_stranger_is_explained_nothing(stack: Stack, client: httpx.Client) -> None:
    job = finished(client)
    made = stack.arriero("client", "create", "curious", "--weight", "2", "--max-running", "1", "--json")
    assert made.returncode == 0, made.stderr
    curious = json.loads(made.stdout)
    with http(stack, token(stack.up, curious["client_id"], curious["client_secret"])) as other:
        assert other.get(f"/jobs/{job}", params={"explain": "1"}).status_code == 404


def test_a_client_says_what_context_it_needs_and_forces_no_other_option_of_the_runner(client: httpx.Client) -> None:
    job = finished(client, options={"num_ctx": 2048, "num_gpu": 0, "num_batch": 32, "seed": 1}, keep_alive="24h")
    assert client.get(f"/jobs/{job}").json()["result"]["done"] is True
    refused = client.post("/jobs", json={"model": "m", "prompt": "x", "options": {"num_ctx": 10_000_000}})
    assert (refused.status_code, refused.json()["path"]) == (400, "options.num_ctx")


def test_a_dry_run_stores_nothing(stack: Stack, client: httpx.Client) -> None:
    before = client.get("/jobs").json()["jobs"]
    model = chat_models(client)[0]
    answer = client.post("/jobs", params={"dry_run": "1"}, json={"model": model, "prompt": ask(5)})
    assert client.get("/jobs").json()["jobs"] == before
    assert answer.status_code == 200, answer.text
    assert answer.json()["decision"]["node"]
    said = stack.arriero("job", "submit", model, "hi", "--dry-run")
    assert said.stdout.startswith("It would go to "), said.stderr
