"""Tokens, waiting jobs and streams, against a real nats-server and through both doors."""

import asyncio
import contextlib
import functools
import os
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Full
from libs.common.contracts.api import Answer, Submit, decode_answer
from libs.common.contracts.clients import Account, Limits, Policy, Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.contracts.jobs import Usage
from libs.common.contracts.requests import Kind, Request
from libs.common.contracts.subjects import JobKey
from libs.common.journal import Journal
from libs.common.states import JobState
from services.gateway.limits import Limiter, metrics, settling, stream_slots
from services.gateway.limits.ledger import Ledger, read
from services.gateway.limits.prompt_bound import AROUND_MESSAGE, AROUND_REQUEST, PromptBound
from tests.gateway.conftest import adopt
from tests.gateway.limits.folders import submission
from tests.gateway.running import MODEL, SECRET, Gateway, RouterStub, add_client, add_node, running_gateway
from tests.gateway.scripted import Script, events
from tests.gateway.whole import MODEL as WHOLE_MODEL
from tests.gateway.whole import whole
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}


P = 300  # tokens that a prompt of these tests is reserved for with


def job_of(tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "x" * (P - AROUND_REQUEST), "options": {"num_predict": tokens}} | more


async def ledger_of(bus: Bus, account: str = "client.acme") -> Ledger:
    value, _ = await Bucket(bus, "limits").get(account)
    return read(value)


@contextlib.asynccontextmanager
async def limited(
    nats: NatsServer, bus: Bus, gateways: int = 1, **limits: int
) -> AsyncIterator[tuple[list[httpx.AsyncClient], str, list[Gateway]]]:
    key = await add_client(bus, "acme", policy=Policy(limits=Limits(**limits)))
    await add_node(bus, MODEL)
    async with contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(running_gateway(nats, drain_grace=0)) for _ in range(gateways)]
        clients = [await stack.enter_async_context(gateway.client(key)) for gateway in running]
        yield clients, key, running


# -- tokens ----------------------------------------------------------------------------------------------------------------


async def test_a_job_holds_what_it_may_cost_and_gives_back_what_it_did_not(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    async with limited(nats, bus, 2, tokens_per_month=2 * P + 230) as ((one, other), _, _):
        first = await one.post("/jobs", json=job_of(90))
        assert first.status_code == 202
        assert first.headers["x-ratelimit-limit-tokens"] == str(2 * P + 230)
        assert first.headers["x-ratelimit-remaining-tokens"] == str(P + 140)
        assert first.headers["x-ratelimit-reset-tokens"].endswith("s")
        assert "x-ratelimit-limit-requests" not in first.headers
        second = await other.post("/jobs", json=job_of(90))
        assert second.headers["x-ratelimit-remaining-tokens"] == "50", "the other gateway counts the same"
        refused = await one.post("/jobs", json=job_of(90))
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert f"its open jobs hold {2 * P + 180}" in refused.json()["detail"], "they give back what they do not use"
        assert "x-should-retry" not in refused.headers
        assert int(refused.headers["retry-after"]) <= 5
        assert refused.headers["x-ratelimit-remaining-tokens"] == "50"
        assert (await other.post("/jobs?dry_run=1", json=job_of(90))).status_code != 429, "a look costs nothing"
        script = await adopt(bus, first.json()["id"], "acme")
        await script.bind()
        await script.finish(usage=Usage(prompt_tokens=12, completion_tokens=8))

        async def settled() -> bool:
            return (await ledger_of(bus)).tokens.month == P + 110

        await eventually(settled)
        assert (await other.post("/jobs", json=job_of(2))).status_code == 202
        refused = await one.post("/jobs", json=job_of(2))
        assert refused.headers["x-ratelimit-remaining-tokens"] == "118"


async def test_a_budget_that_is_used_up_is_not_worth_another_try(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    async with limited(nats, bus, tokens_per_month=P + 150) as ((client,), _, _):
        script = await adopt(bus, (await client.post("/jobs", json=job_of(90))).json()["id"], "acme")
        await script.bind()
        await script.finish(usage=Usage(prompt_tokens=95, completion_tokens=85))

        async def settled() -> bool:
            return (await ledger_of(bus)).tokens.month == 180

        await eventually(settled)
        refused = await client.post("/jobs", json=job_of(90))
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exhausted")
        assert refused.headers["x-should-retry"] == "false"
        assert 0 < int(refused.headers["retry-after"]) <= 31 * 86_400


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED, JobState.EXPIRED])
async def test_what_ended_without_an_answer_gives_back_all_of_it_without_a_hint_too(
    nats: NatsServer, bus: Bus, router: RouterStub, state: JobState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who needs the room looks itself."""
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 0.0)
    async with limited(nats, bus, tokens_per_month=P + 150) as ((client,), _, _):
        job = (await client.post("/jobs", json=job_of(90))).json()["id"]
        assert (await client.post("/jobs", json=job_of(90))).status_code == 429
        script = await adopt(bus, job, "acme")
        await script.finish(state=state, hint=False)
        assert (await client.post("/jobs", json=job_of(90))).status_code == 202


async def test_a_minute_s_tokens_come_back_with_the_next_minute(nats: NatsServer, bus: Bus, router: RouterStub) -> None:
    async with limited(nats, bus, tokens_per_minute=P + 100) as ((client,), _, _):
        answers = [await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 10_000})]
        assert answers[0].status_code == 429
        error = answers[0].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exhausted")
        assert answers[0].headers["x-should-retry"] == "false", "it never fits"
        for _ in range(2):  # at the most one of them meets the end of a minute
            answers.append(await client.post("/jobs", json=job_of(80)))
        answers.append(await client.post("/jobs", json=job_of(80)))
        refused = [answer for answer in answers[1:] if answer.status_code == 429]
        assert refused
        for answer in refused:
            assert answer.json()["code"] == "rate_limited"
            assert int(answer.headers["retry-after"]) <= 60
            assert "x-should-retry" not in answer.headers


async def test_the_official_package_does_not_try_again_where_that_is_useless(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    async with limited(nats, bus, tokens_per_month=50) as ((_,), key, (gateway,)):
        sent = []

        async def note(request: httpx.Request) -> None:
            sent.append(request)

        async with (
            httpx.AsyncClient(event_hooks={"request": [note]}) as http,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, http_client=http) as sdk,
        ):
            with pytest.raises(openai.RateLimitError) as caught:
                await sdk.chat.completions.create(**CHAT, max_tokens=100)
        assert len(sent) == 1
        assert caught.value.code == "quota_exhausted"
        assert "tokens" in caught.value.message


async def test_a_repeated_submit_gets_its_job_and_reserves_nothing(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    async with limited(nats, bus, tokens_per_month=P + 150) as ((client,), _, _):
        keyed = {"Idempotency-Key": "k"}
        first = await client.post("/jobs", json=job_of(90), headers=keyed)
        before = await ledger_of(bus)
        again = await client.post("/jobs", json=job_of(90), headers=keyed)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert (await client.post("/jobs", json=job_of(91), headers=keyed)).status_code == 422
        assert (await ledger_of(bus)).tokens == before.tokens
        assert (await client.post("/jobs", json=job_of(90), headers={"Idempotency-Key": "k2"})).status_code == 429


async def test_two_gateways_that_get_the_same_keyed_job_at_once_reserve_for_one(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    async with limited(nats, bus, 2, tokens_per_month=10_000) as (clients, _, _):
        for number in range(10):
            keyed = {"Idempotency-Key": f"k{number}"}
            answers = await asyncio.gather(
                *(client.post("/jobs", json=job_of(90), headers=keyed) for client in clients * 3)
            )
            assert len({answer.json()["id"] for answer in answers}) == 1
        ledger = await ledger_of(bus)
        assert (ledger.tokens.month, len(ledger.tokens.open)) == (10 * (P + 90), 10)


async def test_a_job_that_could_not_be_stored_costs_nothing(
    nats: NatsServer, bus: Bus, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limited(nats, bus, tokens_per_month=1000) as ((client,), _, _):

        async def full(*_: object, **__: object) -> int:
            raise Full("full")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "write", full)
            assert (await client.post("/jobs", json=job_of(90))).status_code == 503
        ledger = await ledger_of(bus)
        assert (ledger.tokens.month, ledger.tokens.open) == (0, {})


async def test_the_door_of_nats_has_the_same_limits(nats: NatsServer, bus: Bus, router: RouterStub) -> None:
    async with limited(nats, bus, tokens_per_month=P + 150), connected(nats) as own:
        inbox = f"_INBOX.acme.{own.new_inbox().rpartition('.')[2]}"
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        await own.subscribe(inbox, lambda message: answers.put_nowait(message.data))

        async def submit() -> Answer:
            await own.publish("api.acme.submit", encode(Submit(job=msgspec.Raw(encode(job_of(90))))), reply=inbox)
            return decode_answer(await asyncio.wait_for(answers.get(), 20))

        assert (await submit()).fault is None
        refused = (await submit()).fault
        assert refused
        assert refused.code is Code.RATE_LIMITED
        assert refused.retry_after_s


async def test_when_nats_is_away_nobody_with_a_budget_gets_in(nats: NatsServer, bus: Bus, router: RouterStub) -> None:
    async with connected(nats) as own:
        limiter = limiter_of(own)
        await nats.kill()
        with pytest.raises(Exception, match="NATS"):
            async with limiter.reserved(
                acme(tokens_per_month=2 * P), JobKey("acme", "job_1"), submission("a"), lambda: prompt_of(P)
            ):
                raise AssertionError("let in")
        await nats.start()


# -- the queue and streams -------------------------------------------------------------------------------------------------


async def test_so_many_jobs_wait_as_may_and_no_more_over_all_gateways(
    nats: NatsServer, bus: Bus, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 0.0)
    async with limited(nats, bus, 2, queued=3) as ((one, other), _, _):
        answers = await asyncio.gather(*(client.post("/jobs", json=job_of(9)) for client in (one, other) * 4))
        taken = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (len(taken), len(refused)) == (3, 5)
        assert {answer.json()["code"] for answer in refused} == {"queue_full"}
        assert refused[0].headers["retry-after"] == "1"
        bound, ended, hinted = [await adopt(bus, job, "acme") for job in taken]
        await bound.bind(hint=False)
        assert (await other.post("/jobs", json=job_of(9))).status_code == 202
        assert (await other.post("/jobs", json=job_of(9))).status_code == 429
        await ended.finish(state=JobState.CANCELLED, hint=False)
        assert (await other.post("/jobs", json=job_of(9))).status_code == 202
        await hinted.bind()

        async def noticed() -> bool:
            return sum(each.waits for each in (await ledger_of(bus)).tokens.open.values()) == 2

        await eventually(noticed)


async def test_open_streams_are_counted_over_all_gateways(nats: NatsServer, bus: Bus, router: RouterStub) -> None:
    async with limited(nats, bus, 2, open_streams=2) as ((one, other), _, _):
        job = (await one.post("/jobs", json=job_of(9))).json()["id"]
        async with one.stream("GET", f"/jobs/{job}/stream") as first:
            assert first.status_code == 200
            async with other.stream("GET", f"/jobs/{job}/stream") as second:
                assert second.status_code == 200
                for client in (one, other):
                    refused = await client.get(f"/jobs/{job}/stream")
                    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
                    chat = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
                    assert chat.status_code == 429
                assert (await one.get(f"/jobs/{job}")).status_code == 200, "a look is no stream"

        async def free_again() -> bool:
            async with (
                one.stream("GET", f"/jobs/{job}/stream") as third,
                other.stream("GET", f"/jobs/{job}/stream") as more,
            ):
                return third.status_code == more.status_code == 200

        await eventually(free_again)

        async def given_back() -> bool:
            return not (await ledger_of(bus)).streams

        await eventually(given_back)


async def test_jobs_at_nodes_are_bounded_by_the_router_whichever_gateway_they_came_through(nats: NatsServer) -> None:
    async with whole(nats) as (gateway, _), running_gateway(nats) as second, connected(nats) as bus:
        key = await add_client(bus, "acme", policy=Policy(max_running=1))
        at_nodes: set[str] = set()
        most: list[int] = []

        def hear(message: Any) -> None:
            state = JobState(msgspec.json.decode(message.data)["state"])
            job = message.subject.rpartition(".")[2]
            if state is JobState.BOUND:
                at_nodes.add(job)
            elif state.final:
                at_nodes.discard(job)
            most.append(len(at_nodes))

        await bus.subscribe("evt.acme.*", hear)
        async with gateway.client(key) as one, second.client(key) as other:

            async def run(client: httpx.AsyncClient) -> None:
                made = await client.post("/jobs", json={"model": WHOLE_MODEL, "prompt": "x"})
                view = (await client.get(f"/jobs/{made.json()['id']}", params={"wait": 30})).json()
                assert view["state"] == "succeeded"

            async def know_client_and_model() -> bool:
                return all([bool((await http.get("/v1/models")).json().get("data")) for http in (one, other)])

            await eventually(know_client_and_model)
            await asyncio.gather(*(run(client) for client in (one, other) * 6))
        await eventually(lambda: len(most) >= 24)
        assert max(most) == 1


# -- a gateway dies --------------------------------------------------------------------------------------------------------


def limiter_of(bus: Bus) -> Limiter:
    return Limiter(bus, lambda client, route, key: JobKey(client, f"job_{key}"))


def prompt_of(tokens: int, context: int | None = None) -> PromptBound:
    """One that is reserved for with so many."""
    return PromptBound(Request(model=MODEL, prompt="x" * (tokens - AROUND_REQUEST)), context=context)


def acme(**limits: int) -> Principal:
    return Principal(
        client="acme", scopes=frozenset(), accounts=(Account(name="client.acme", limits=Limits(**limits)),)
    )


@contextlib.asynccontextmanager
async def gateway_process(nats: NatsServer) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ) | {
        "ARRIERO_GATEWAY_NATS_URL": nats.url, "ARRIERO_GATEWAY_PORT": str(port), "ARRIERO_GATEWAY_CLUSTER_SECRET": SECRET,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway", env=environment,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_gateway_that_is_killed_leaves_no_stream_and_no_reservation_behind(
    nats: NatsServer, bus: Bus, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 0.0)
    limits = {"tokens_per_month": 2 * P + 230, "open_streams": 2, "requests_per_minute": 1000}
    async with limited(nats, bus, **limits) as ((survivor,), key, _), gateway_process(nats) as (process, url):
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as dying:

            async def serves() -> bool:
                try:
                    return (await dying.get("/jobs")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(serves, within=60, every=0.1)
            jobs = [(await dying.post("/jobs", json=job_of(90))).json()["id"] for _ in range(2)]
            async with contextlib.AsyncExitStack() as stack:
                for job in jobs:
                    stream = await stack.enter_async_context(dying.stream("GET", f"/jobs/{job}/stream"))
                    assert stream.status_code == 200
                assert (await survivor.get(f"/jobs/{jobs[0]}/stream")).status_code == 429
                assert (await survivor.post("/jobs", json=job_of(90))).status_code == 429
                process.kill()
                await process.wait()
                with contextlib.suppress(httpx.TransportError):
                    await stack.aclose()
        # Its jobs go on or are cancelled: the router's business. What they did not use is there again.
        scripts = [await adopt(bus, job, "acme") for job in jobs]
        await scripts[0].bind()
        await scripts[0].finish(usage=Usage(prompt_tokens=10, completion_tokens=10))
        await scripts[1].finish(state=JobState.CANCELLED)
        assert (await survivor.post("/jobs", json=job_of(290))).status_code == 202
        assert (await ledger_of(bus)).tokens.month == P + 310
        monkeypatch.setattr(stream_slots, "HOLDS_MS", 1000)

        async def free_again() -> bool:
            async with survivor.stream("GET", f"/jobs/{jobs[1]}/stream") as stream:
                return stream.status_code == 200

        await eventually(free_again)


async def test_a_reservation_whose_job_was_never_stored_is_given_back(
    nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gateway died in between; a submit that is on its way has two minutes."""
    monkeypatch.setattr(settling, "AT_MOST_EVERY_S", 0.0)
    who, key = acme(tokens_per_month=2 * P), JobKey("acme", "job_1")
    dead, alive = limiter_of(bus), limiter_of(bus)
    with contextlib.suppress(asyncio.CancelledError):
        async with dead.reserved(who, key, submission("a", output_tokens=80), lambda: prompt_of(P)):
            raise asyncio.CancelledError
    later = submission("b", output_tokens=80)
    with pytest.raises(Failed):
        async with alive.reserved(who, key, later, lambda: prompt_of(P)):
            pass
    assert "a" in (await ledger_of(bus)).tokens.open
    monkeypatch.setattr(settling, "NEVER_STORED_MINUTES", 0)
    before = metrics.settlements.labels("absent")._value.get()
    async with alive.reserved(who, key, later, lambda: prompt_of(P)):
        assert set((await ledger_of(bus)).tokens.open) == {"b"}
    assert metrics.settlements.labels("absent")._value.get() == before + 1


async def test_a_submit_that_was_not_acked_is_left_to_what_its_folder_says(bus: Bus) -> None:
    who, key = acme(tokens_per_month=2 * P), JobKey("acme", "job_1")
    limiter = limiter_of(bus)
    with pytest.raises(Failed):
        async with limiter.reserved(who, key, submission("a"), lambda: prompt_of(P)):
            raise failed(Code.SUBMIT_UNCONFIRMED, "?")
    assert set((await ledger_of(bus)).tokens.open) == {"a"}
    with pytest.raises(Failed):
        async with limiter.reserved(who, key, submission("b", output_tokens=1), lambda: prompt_of(P)):
            pass


async def test_what_the_client_may_not_the_key_gets_back(bus: Bus) -> None:
    narrow = Account(name="key.k", limits=Limits(tokens_per_month=1000))
    who = Principal(client="acme", scopes=frozenset(), accounts=(*acme(tokens_per_month=50).accounts, narrow))
    with pytest.raises(Failed, match="the client acme"):
        async with limiter_of(bus).reserved(who, JobKey("acme", "job_1"), submission("a"), lambda: prompt_of(P)):
            pass
    assert (await ledger_of(bus, "key.k")).tokens.open == {}


async def test_without_a_limit_of_its_own_the_model_s_context_or_the_setting_is_reserved(bus: Bus) -> None:
    who, limiter = acme(tokens_per_month=100_000), limiter_of(bus)
    for number, (more, context, tokens) in enumerate(
        [
            ({}, None, P + 4096), ({}, 1000, P + 990), ({"num_ctx": 512}, 1000, P + 502), ({"output_tokens": 5}, 1000, P + 5),
            ({"kind": Kind.EMBED}, None, AROUND_MESSAGE),
        ]
    ):  # fmt: skip
        job = submission(f"op{number}", **({"prompt_tokens": 10} | more))
        async with limiter.reserved(
            who, JobKey("acme", f"job_{number}"), job, functools.partial(prompt_of, P, context)
        ):
            assert (await ledger_of(bus)).tokens.open[job.op_id].tokens == tokens


async def test_who_only_counts_waiting_jobs_counts_no_tokens(bus: Bus) -> None:
    queue = Account(name="key.k", limits=Limits(queued=3))
    who = Principal(client="acme", scopes=frozenset(), accounts=(*acme(tokens_per_month=1000).accounts, queue))
    job = submission("a", output_tokens=5)
    async with limiter_of(bus).reserved(who, JobKey("acme", "job_1"), job, lambda: prompt_of(P)):
        assert (await ledger_of(bus, "key.k")).tokens.month == 0
        assert (await ledger_of(bus)).tokens.month == P + 5


async def test_who_reads_prompts_as_several_bytes_a_token_reserves_less(bus: Bus) -> None:
    limiter = Limiter(bus, lambda client, route, key: JobKey(client, key), bytes_per_token=4)
    job = submission("a", output_tokens=5)
    async with limiter.reserved(acme(tokens_per_month=1000), JobKey("acme", "job_1"), job, lambda: prompt_of(P)):
        assert (await ledger_of(bus)).tokens.month == AROUND_REQUEST + (P - AROUND_REQUEST) / 4 + 5


async def test_a_job_that_was_cut_off_pays_for_what_it_had_written(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    async with limited(nats, bus, tokens_per_month=5000) as ((client,), _, _):
        script: Script = await adopt(bus, (await client.post("/jobs", json=job_of(90))).json()["id"], "acme")
        await script.bind()
        await script.write(events(*["word"] * 40))
        await script.finish(state=JobState.CANCELLED, started_ms=1)

        async def settled() -> bool:
            found = (await ledger_of(bus)).tokens
            return not found.open and found.month in range(P + 40, P + 90)

        await eventually(settled)


async def test_what_a_node_counts_of_short_chats_is_never_more_than_their_budget(nats: NatsServer, bus: Bus) -> None:
    """Short ones, of which most is the template's, and a model with a system prompt of its own."""
    limit = 3000
    key = await add_client(bus, "acme", policy=Policy(limits=Limits(tokens_per_month=limit)))
    async with (
        whole(nats, slots=4, system="You know the rules of the house. " * 20) as (gateway, _),
        gateway.client(key) as http,
    ):
        spent, refused = 0, 0

        async def ask() -> None:
            nonlocal spent, refused
            chat = {"model": WHOLE_MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
            answer = await http.post("/v1/chat/completions", json=chat)
            if answer.status_code == 429:
                refused += 1
            else:
                spent += answer.json()["usage"]["total_tokens"]

        for _ in range(12):
            await asyncio.gather(*(ask() for _ in range(6)))
        assert refused
        assert limit - 2 * 1000 < spent <= limit, "what is left is less than a request may cost"


async def test_an_answer_without_a_limit_of_its_own_ends_where_what_was_reserved_for_it_ends(
    nats: NatsServer, bus: Bus
) -> None:
    """Else one answer could cost many times the budget."""
    key = await add_client(bus, "acme", policy=Policy(limits=Limits(tokens_per_month=400)))
    chat = {"model": WHOLE_MODEL, "messages": [{"role": "user", "content": "[[tokens=2000]] tell"}]}
    async with whole(nats, output_tokens=60) as (gateway, _), gateway.client(key) as http:
        answered = await http.post("/v1/chat/completions", json=chat, headers={"idempotency-key": "k"})
        body = answered.json()
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 60)
        again = await http.post("/v1/chat/completions", json=chat, headers={"idempotency-key": "k"})
        assert again.json()["id"] == body["id"], "the same request is the same job"

        async def settled() -> bool:
            held = (await ledger_of(bus)).tokens
            return not held.open and 60 < held.month <= 100

        await eventually(settled, within=60)
        left = 400 - (await ledger_of(bus)).tokens.month
        short = (await http.post("/v1/chat/completions", json=chat)).json()
        assert 0 < short["usage"]["completion_tokens"] < left, "what is left is all that there is"
