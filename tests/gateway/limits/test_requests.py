"""Requests a minute, against a real nats-server: several gateways, both doors, and what a caller is told."""

import asyncio
import contextlib
import time

import httpx
import msgspec
import openai
import pytest

from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.api import Get, List, Submit, decode_answer
from libs.common.contracts.clients import Account, Limits, Policy, Principal
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed
from libs.common.contracts.subjects import JobKey
from services.gateway.limits import Limiter
from tests.gateway.conftest import Keys
from tests.gateway.running import MODEL, RouterStub, add_client, add_node, running_gateway
from tests.support.nats_server import NatsServer, connected


def limited(**limits: int) -> Policy:
    return Policy(limits=Limits(**limits))


def principal(*accounts: Account, client: str = "acme") -> Principal:
    return Principal(client=client, scopes=frozenset(), accounts=accounts)


def limiter_of(bus: Bus) -> Limiter:
    return Limiter(bus, lambda client, route, key: JobKey(client, f"job_{key}"))


async def let_through(limiter: Limiter, who: Principal) -> bool:
    try:
        await limiter.admit(who)
    except Failed:
        return False
    return True


async def test_three_gateways_hammer_one_account_and_exactly_the_limit_comes_through(nats: NatsServer) -> None:
    limit, who = 2400, principal(Account(name="client.acme", limits=Limits(requests_per_minute=2400)))
    async with contextlib.AsyncExitStack() as stack:
        limiters = [limiter_of(await stack.enter_async_context(connected(nats))) for _ in range(3)]

        async def hammer(limiter: Limiter) -> int:
            through = 0
            for _ in range(30):
                through += sum(await asyncio.gather(*(let_through(limiter, who) for _ in range(50))))
            return through

        began = time.monotonic()
        through = await asyncio.gather(*(hammer(limiter) for limiter in limiters))
        assert limit - 3 * (limit // 240) <= sum(through), through
        if time.monotonic() - began < 60:  # it takes two seconds
            assert sum(through) <= limit, through


async def test_who_has_no_limits_costs_no_read_and_no_write(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked(*_: object, **__: object) -> None:
        raise AssertionError("NATS was asked")

    limiter = limiter_of(bus)
    for name in ("append", "api", "last", "request"):
        monkeypatch.setattr(bus, name, asked)
    await limiter.admit(principal())
    await limiter.admit(principal(Account(name="client.acme", limits=Limits(tokens_per_day=5))))
    assert limiter.headers(principal()) == []


async def test_a_key_s_own_limit_stops_the_key_and_costs_its_client_nothing(bus: Bus) -> None:
    client = Account(name="client.acme", limits=Limits(requests_per_minute=6))
    keyed = principal(client, Account(name="key.k1", limits=Limits(requests_per_minute=2)))
    limiter = limiter_of(bus)
    assert [await let_through(limiter, keyed) for _ in range(4)] == [True, True, False, False]
    assert [await let_through(limiter, principal(client)) for _ in range(5)] == [True] * 4 + [False]
    with pytest.raises(Failed, match="the API key k1"):
        await limiter.admit(keyed)


async def test_when_nats_cannot_be_asked_nobody_with_a_limit_gets_in(nats: NatsServer) -> None:
    who = principal(Account(name="client.acme", limits=Limits(requests_per_minute=60)))
    async with connected(nats) as bus:
        limiter = limiter_of(bus)
        await limiter.admit(who)
        await nats.kill()
        with pytest.raises(BusError):
            await limiter.admit(who)
        await nats.start()


async def test_a_refusal_says_when_to_come_back_in_the_caller_s_dialect(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    key = await add_client(bus, "acme", policy=limited(requests_per_minute=2))
    await add_node(bus, MODEL)
    async with running_gateway(nats, drain_grace=0) as gateway, gateway.client(key) as client:
        first = await client.get("/jobs")
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in first.headers
        assert (await client.get("/v1/models")).headers["x-ratelimit-remaining-requests"] == "0"
        problem = await client.get("/jobs")
        assert (problem.status_code, problem.json()["code"]) == (429, "rate_limited")
        assert problem.headers["content-type"] == "application/problem+json"
        assert 1 <= int(problem.headers["retry-after"]) <= 62
        assert 0 <= int(problem.headers["retry-after"]) * 1000 - int(problem.headers["retry-after-ms"]) < 1000
        assert "x-should-retry" not in problem.headers, "in a minute it helps"
        assert problem.headers["x-ratelimit-remaining-requests"] == "0"
        assert "2 requests a minute" in problem.json()["detail"]
        error = await client.get("/v1/models")
        assert error.status_code == 429
        assert error.json()["error"]["type"] == "rate_limit_error"
        assert error.json()["error"]["code"] == "rate_limited"
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as sdk:
            with pytest.raises(openai.RateLimitError):
                await sdk.models.list()
        gone = await client.delete("/jobs/job_00000000000000000000000000")
        assert gone.status_code == 404, "who takes work away is not kept from it"


async def test_who_has_no_limits_gets_no_such_headers(alice: httpx.AsyncClient) -> None:
    answer = await alice.get("/jobs")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if "ratelimit" in name]


async def test_over_the_limit_a_repeated_submit_still_gets_its_job(
    nats: NatsServer, bus: Bus, router: RouterStub
) -> None:
    key = await add_client(bus, "acme", policy=limited(requests_per_minute=2))
    await add_node(bus, MODEL)
    body = {"model": MODEL, "prompt": "x"}
    async with running_gateway(nats, drain_grace=0) as gateway, gateway.client(key) as client:
        first = await client.post("/jobs", json=body, headers={"Idempotency-Key": "k1"})
        assert first.status_code == 202
        await client.get("/jobs")
        again = await client.post("/jobs", json=body, headers={"Idempotency-Key": "k1"})
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        for headers in ({"Idempotency-Key": "k2"}, {}):
            assert (await client.post("/jobs", json=body, headers=headers)).status_code == 429
        # The other door, the same account.
        async with connected(nats) as own:
            inbox = f"_INBOX.acme.{own.new_inbox().rpartition('.')[2]}"
            answers: asyncio.Queue[bytes] = asyncio.Queue()
            await own.subscribe(inbox, lambda message: answers.put_nowait(message.data))

            async def ask(verb: str, payload: bytes) -> object:
                await own.publish(f"api.acme.{verb}", payload, reply=inbox)
                return decode_answer(await asyncio.wait_for(answers.get(), 20))

            for verb, asked in (
                ("submit", Submit(job=msgspec.Raw(encode(body)))),
                ("get", Get(id="x")),
                ("list", List()),
            ):
                assert (await ask(verb, encode(asked))).fault.code is Code.RATE_LIMITED
            repeated = Submit(job=msgspec.Raw(encode(body)), idempotency_key="k1")
            assert first.json()["id"].encode() in bytes((await ask("submit", encode(repeated))).ok)
            cancelled = await ask("cancel", encode(Get(id="job_00000000000000000000000000")))
            assert cancelled.fault.code is Code.JOB_NOT_FOUND


async def test_an_operator_who_raises_the_limit_is_heard_at_once(
    nats: NatsServer, bus: Bus, keys: Keys, router: RouterStub
) -> None:
    async with connected(nats) as own:
        limiter = limiter_of(own)
        for limit in (1, 2, 4):
            who = principal(Account(name="client.acme", limits=Limits(requests_per_minute=limit)))
            while await let_through(limiter, who):
                pass
        assert dict(limiter.headers(who))[b"x-ratelimit-remaining-requests"] == b"0"
