"""Processes killed in the middle of work, in a stack of this file's own."""

import contextlib
import json
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.support.clients import ask, chat_models, http, parse_sse, wait_final
from tests.support.stack import Stack, running_stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    grace = ("--drain-grace", "30")  # an answer of half a second ends within it, with every core busy
    with running_stack(tmp_path_factory.mktemp("faults"), "--no-demo", "--gateways", "2", *grace) as running:
        yield running


@pytest.fixture
def client(own_stack: Stack) -> Iterator[httpx.Client]:
    with http(own_stack) as made:
        yield made


def submit_many(client: httpx.Client, count: int, tokens: int) -> list[str]:
    models = chat_models(client)
    return [
        client.post("/jobs", json={"model": models[n % len(models)], "prompt": ask(tokens, f"pass {n}")}).json()["id"]
        for n in range(count)
    ]


def tokens_in(text: str) -> int:
    return text.count("event: token\n")


def text_in(text: str) -> str:
    return "".join(json.loads(e.data).get("text", "") for e in parse_sse(text) if e.event == "token")


def test_twenty_jobs_finish_although_the_router_and_a_gateway_are_killed(
    own_stack: Stack, client: httpx.Client
) -> None:
    """DESIGN §7.1: an acknowledged job is never lost."""
    jobs = submit_many(client, 20, 40)
    router, gateway = own_stack.kill("router"), own_stack.kill("gateway")
    own_stack.wait_for_new_pid("router", router)
    own_stack.wait_for_new_pid("gateway", gateway)
    views = [wait_final(client, job) for job in jobs]
    assert {view["state"] for view in views} == {"succeeded"}
    assert all(view["attempts"] == 1 for view in views), "a router's death costs no attempt"


def test_a_stream_cut_by_a_gateways_death_goes_on_at_another_with_the_same_bytes(own_stack: Stack) -> None:
    up = own_stack.up
    second = up["gateway"].replace(str(own_stack.base), str(own_stack.base + 50))
    with http(own_stack) as client, http(own_stack, gateway=second) as other:
        (job,) = submit_many(client, 1, 300)
        got, killed = "", 0
        with contextlib.suppress(httpx.HTTPError), client.stream("GET", f"/jobs/{job}/stream") as stream:
            for piece in stream.iter_text():
                got += piece
                if not killed and tokens_in(got) >= 10:
                    killed = own_stack.kill("gateway")
        assert "event: succeeded" not in got, "the cut came too late to prove anything"
        seen = [e for e in parse_sse(got[: got.rfind("\n\n") + 2]) if e.id]
        rest = other.get(f"/jobs/{job}/stream", headers={"Last-Event-ID": seen[-1].id}).text
        whole = other.get(f"/jobs/{job}/stream").text
        assert "".join(e.raw for e in seen) + rest == whole
        assert parse_sse(whole)[-1].event == "succeeded"
    own_stack.wait_for_new_pid("gateway", killed)


def test_a_worker_killed_before_the_first_token_costs_the_client_nothing(
    own_stack: Stack, client: httpx.Client
) -> None:
    """Nothing was shown, so another attempt starts unseen; the dead one counts as a failed attempt of that node."""
    model = chat_models(client)[0]
    first = client.post("/jobs", json={"model": model, "prompt": ask(3)}).json()["id"]
    node = wait_final(client, first)["node"]
    job = client.post(
        "/jobs", json={"model": model, "prompt": "word " * 20_000 + ask(10), "options": {"num_ctx": 32768}}
    ).json()["id"]
    with client.stream("GET", f"/jobs/{job}/stream") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: bound"):
                break
    own_stack.wait_for_new_pid(f"worker-{node}", own_stack.kill(f"worker-{node}"))
    view = wait_final(client, job)
    assert view["state"] == "succeeded"
    assert [a["node"] for a in view["failed_attempts"]] == [node]


def test_an_answer_whose_only_node_lost_its_worker_goes_on_when_it_is_back(
    own_stack: Stack, client: httpx.Client
) -> None:
    """Nobody else holds the model: the job waits with what was shown, and the same node's next boot goes on from there."""
    (job,) = submit_many(client, 1, 300)
    got, killed = "", 0
    with client.stream("GET", f"/jobs/{job}/stream") as stream:
        for piece in stream.iter_text():
            got += piece
            if not killed and tokens_in(got) >= 10:
                node = client.get(f"/jobs/{job}").json()["node"]
                killed = own_stack.kill(f"worker-{node}")
    own_stack.wait_for_new_pid(f"worker-{node}", killed)
    view = wait_final(client, job)
    assert (view["state"], view["node"], len(view["failed_attempts"])) == ("succeeded", node, 1)
    assert text_in(got) == view["result"]["response"]


def test_jobs_survive_a_restart_of_nats(own_stack: Stack, client: httpx.Client) -> None:
    """kill -9 of the only server: what was acked is there again, and a stream that runs heals without the reader's help."""
    jobs = submit_many(client, 6, 60)
    got, killed = "", 0
    with client.stream("GET", f"/jobs/{jobs[0]}/stream") as stream:
        for piece in stream.iter_text():
            got += piece
            if not killed and tokens_in(got) >= 5:
                killed = own_stack.kill("nats")
    own_stack.wait_for_new_pid("nats", killed)
    with http(own_stack) as fresh:
        until(lambda: fresh.get("/jobs").status_code == 200)  # its gateway has found NATS again
        assert {wait_final(fresh, job)["state"] for job in jobs} == {"succeeded"}
        uncut = fresh.get(f"/jobs/{jobs[0]}/stream").text
    assert [e.raw for e in parse_sse(got) if e.id] == [e.raw for e in parse_sse(uncut) if e.id]


def test_a_gateway_that_is_told_to_stop_lets_its_streams_finish(own_stack: Stack) -> None:
    with http(own_stack) as client:
        (job,) = submit_many(client, 1, 30)
        with client.stream("GET", f"/jobs/{job}/stream") as stream:
            got, killed = "", 0
            for piece in stream.iter_text():
                got += piece
                if not killed and "event: token" in got:
                    killed = own_stack.kill("gateway", signal.SIGTERM)
    assert parse_sse(got)[-1].event == "succeeded"
    own_stack.wait_for_new_pid("gateway", killed)
