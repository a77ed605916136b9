"""Failed authentications: the rate against a model, addresses behind proxies, and real replicas that count together."""

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.credentials import failure_log
from libs.common.credentials.failure_log import FailureLog
from libs.common.credentials.failures import (
    NAME_RATE,
    Failures,
    Rate,
    address_group,
    after_failures,
    decode_arrival,
    wait_s,
)
from services.auth import main
from tests.auth.running import OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

START = 1_800_000_000.0


@given(st.integers(1, 30), st.lists(st.integers(0, 400), max_size=80))
def test_the_rate_is_that_of_a_bucket_of_tokens(per_minute: int, tenths: list[int]) -> None:
    """The other description of the same: so many tokens, refilled evenly, one for each failure."""
    rate, tat, now, tokens = Rate(per_minute), 0.0, START, float(per_minute)
    for step in tenths:
        now += step / 10
        tokens = min(per_minute, tokens + step / 10 * per_minute / 60)
        waits = wait_s(tat, rate, now)
        assert waits == pytest.approx(max(0.0, (1 - tokens) * rate.interval_s), abs=1e-3)
        if waits < 1e-3:
            tat = after_failures(tat, rate, now)
            tokens = max(0.0, tokens - 1)


@given(st.floats(0, 2 * START), st.integers(1, 30), st.integers(1, 100))
def test_nobody_waits_longer_than_one_interval_for_what_he_did(tat: float, per_minute: int, count: int) -> None:
    rate = Rate(per_minute)
    for _ in range(count):
        tat = after_failures(tat, rate, START)
    assert wait_s(tat, rate, START) <= rate.interval_s + 1e-3
    assert wait_s(after_failures(tat, Rate(0), START), Rate(0), START) == 0


@given(st.integers(1, 30), st.floats(-100, 200), st.lists(st.floats(0, 40), min_size=1, max_size=40))
def test_what_is_written_late_weighs_as_in_time(per_minute: int, known: float, pauses: list[float]) -> None:
    """Whatever the record says when its turn comes."""
    rate, now, late, in_time = Rate(per_minute), START, Failures(), START + known
    for pause in pauses:
        now += pause
        late, in_time = late.and_one(rate, now), after_failures(in_time, rate, now)
    assert late.moved(START + known) == pytest.approx(in_time, abs=1e-3)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("testclient", "testclient", True),
        ("", "testclient", False),
    ],
)
def test_whose_failures_count_together(one: str, other: str, together: bool) -> None:
    assert (address_group(one) == address_group(other)) is together


# -- the service -----------------------------------------------------------------------------------------------------


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(main, "FailureLog", functools.partial(FailureLog, clock=made))
    return made


LIMITS = {"address_failures": 10, "client_failures": 5, "trusted_proxies": "127.0.0.1", "issuer": "http://auth.test"}


@pytest.fixture
async def auth(nats: NatsServer, clock: Clock) -> AsyncIterator[Auth]:
    async with running_auth(nats, **LIMITS) as running:
        yield running


async def ask(auth: Auth, client: str, secret: str, address: str = "203.0.113.1") -> httpx.Response:
    return await auth.http.post(
        "/oauth/token",
        data={"grant_type": "client_credentials"},
        auth=(client, secret),
        headers={"X-Forwarded-For": address},
    )


async def statuses(auth: Auth, tries: int, client: str = "somebody", address: str = "203.0.113.1") -> list[int]:
    return [(await ask(auth, f"{client}-{n}", "wrong", address)).status_code for n in range(tries)]


async def test_an_address_that_fails_too_often_is_told_to_wait(auth: Auth, clock: Clock) -> None:
    assert await statuses(auth, 12) == [401] * 10 + [429] * 2
    refused = await ask(auth, "somebody", "wrong")
    assert refused.json()["error"] == "slow_down"
    assert refused.headers["retry-after"] == "6"
    assert refused.headers["cache-control"] == "no-store"
    assert (await ask(auth, OPERATOR, OPERATOR_SECRET)).status_code == 429, "also the right one, from there"
    assert (await ask(auth, OPERATOR, OPERATOR_SECRET, "203.0.113.2")).status_code == 200
    for path in ("/oauth/revoke", "/oauth/introspect"):
        answer = await auth.http.post(
            path, data={"token": "x"}, auth=("a", "b"), headers={"X-Forwarded-For": "203.0.113.1"}
        )
        assert answer.status_code == 429
    clock.now += 6  # whether what failed before is written by now or not
    assert await statuses(auth, 2) == [401, 429]
    clock.now += 60
    assert await statuses(auth, 11) == [401] * 10 + [429]


async def read(auth: Auth, token: str, address: str = "203.0.113.1") -> httpx.Response:
    headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {token}"} if token else {})
    return await auth.http.get("/clients", headers=headers)


async def test_wrong_tokens_of_the_administration_count_like_wrong_secrets(auth: Auth) -> None:
    admin = await auth.admin()
    created = await auth.http.post(
        "/clients",
        json={"name": "other", "scopes": ["admin:clients"]},
        headers={**admin, "X-Forwarded-For": "203.0.113.3"},
    )
    token = await auth.access_token(OPERATOR, OPERATOR_SECRET, "admin:clients")
    foreign = await auth.access_token("other", created.json()["client_secret"], "admin:clients")
    assert (await read(auth, token)).status_code == 200
    assert [(await read(auth, "")).status_code for _ in range(12)] == [401] * 12, "nothing was guessed"
    assert [(await read(auth, f"wrong-{n}")).status_code for n in range(12)] == [401] * 10 + [429] * 2
    refused = await read(auth, "wrong")
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("rate_limited", "6")
    assert (await ask(auth, "somebody", "wrong")).status_code == 429, "they count together"
    assert (await read(auth, foreign)).status_code == 429, "from here it was never seen: it might be a guess"
    assert (await read(auth, foreign, "203.0.113.2")).status_code == 200
    fresh = await auth.access_token(OPERATOR, OPERATOR_SECRET, "admin:clients")
    for seen in (token, fresh):
        assert (await read(auth, seen)).status_code == 200, "its client was, whichever token it has now"


async def test_many_tokens_at_once_get_no_more_guesses_than_as_many_in_a_row(auth: Auth) -> None:
    answers = await asyncio.gather(*(read(auth, f"wrong-{n}") for n in range(60)))
    assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 50


async def test_many_at_once_get_no_more_guesses_than_as_many_in_a_row(auth: Auth) -> None:
    answers = await asyncio.gather(*(ask(auth, f"somebody-{n}", "wrong") for n in range(60)))
    assert sorted(answer.status_code for answer in answers) == [401] * 10 + [429] * 50


async def test_replicas_count_together(nats: NatsServer, clock: Clock) -> None:
    async with running_auth(nats, **LIMITS) as one, running_auth(nats, **LIMITS) as two:
        assert await statuses(one, 11) == [401] * 10 + [429]
        await eventually(lambda: _blocked(two, "203.0.113.1"))
        assert (await ask(two, OPERATOR, OPERATOR_SECRET, "203.0.113.2")).status_code == 200
        for auth in (one, two):
            assert await statuses(auth, 5, address="203.0.113.9") == [401] * 5
        for auth in (one, two):
            await eventually(lambda auth=auth: _blocked(auth, "203.0.113.9"))
    async with running_auth(nats, **LIMITS) as three:
        await eventually(lambda: _blocked(three, "203.0.113.1"))


async def _blocked(auth: Auth, address: str) -> bool:
    """A look that is no failure itself: a request that makes no sense is not counted."""
    answer = await auth.http.post("/oauth/token", content=b"", headers={"X-Forwarded-For": address})
    assert answer.status_code in (400, 429)
    return answer.status_code == 429


async def test_who_hammers_a_client_does_not_lock_it_out(auth: Auth) -> None:
    """From many addresses; and a client that does not exist looks just the same."""
    seen = {}
    for client in (OPERATOR, "nobody"):
        answers = [await ask(auth, client, "wrong", f"198.51.100.{n}") for n in range(9)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 4
        seen[client] = [(a.status_code, a.content, a.headers.get("retry-after"), a.headers.keys()) for a in answers]
    assert seen[OPERATOR] == seen["nobody"]
    assert (await ask(auth, OPERATOR, OPERATOR_SECRET, "203.0.113.77")).status_code == 200


async def test_a_neighbour_does_not_lock_out_who_proved_itself_from_there(auth: Auth) -> None:
    """Behind one address there may be many, and one of them misconfigured."""
    assert (await ask(auth, OPERATOR, OPERATOR_SECRET)).status_code == 200
    assert await statuses(auth, 11) == [401] * 10 + [429]
    assert (await ask(auth, OPERATOR, OPERATOR_SECRET)).status_code == 200
    assert (await ask(auth, OPERATOR, "wrong")).status_code == 429


async def test_without_trusted_proxies_their_header_evades_nothing(nats: NatsServer, clock: Clock) -> None:
    async with running_auth(nats, **{**LIMITS, "trusted_proxies": ""}) as auth:
        found = [(await ask(auth, f"x-{n}", "wrong", f"198.51.100.{n}")).status_code for n in range(12)]
        assert found == [401] * 10 + [429] * 2


async def test_success_and_bad_requests_write_and_count_nothing(auth: Auth, bus: Bus) -> None:
    for _ in range(15):
        assert (await ask(auth, OPERATOR, OPERATOR_SECRET)).status_code == 200
        bad = await auth.http.post("/oauth/token", data={"grant_type": "password"}, auth=(OPERATOR, OPERATOR_SECRET))
        assert bad.status_code == 400
    assert await statuses(auth, 1) == [401]

    async def written() -> int:
        count: int = (await bus.api("STREAM.INFO.KV_attempts"))["state"]["last_seq"]
        return count if count >= 2 else 0

    assert await eventually(written) == 2, "of the failure its address and its name, and nothing before"


async def test_records_end_by_themselves_and_name_nobody(nats: NatsServer, bus: Bus, clock: Clock) -> None:
    async with running_auth(nats, **{**LIMITS, "address_failures": 1, "client_failures": 2}) as auth:
        await ask(auth, "a-secret-in-the-wrong-field", "wrong")

        async def stored() -> Any:
            found = await bus.from_sequence("KV_attempts", "$KV.attempts.failed.*")
            return found if len(found) == 2 else None

        records = await eventually(stored)
    lives = sorted((int(r.headers["Nats-TTL"]), decode_arrival(r.data).tat - clock.now) for r in records)
    assert lives == [(31, 30.0), (61, 60.0)]
    for record in records:
        assert "secret" not in record.subject


async def test_no_credentials_at_all_are_nobodys_failures(auth: Auth) -> None:
    for n in range(8):
        answer = await auth.http.post(
            "/oauth/token", data={"grant_type": "client_credentials"}, headers={"X-Forwarded-For": f"198.51.100.{n}"}
        )
        assert answer.status_code == 401


async def test_failures_are_counted_here_when_nats_does_not_take_them(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_log, "RETRY_S", 0.01)
    original, troubles = Bucket.put, [Conflict("another was first"), Unconfirmed("no ack"), Unconfirmed("no ack")]
    tried = 0

    async def put(self: Bucket, key: str, value: bytes, **more: Any) -> int:
        nonlocal tried
        tried += 1
        if troubles:
            raise troubles.pop(0)
        return await original(self, key, value, **more)

    monkeypatch.setattr(Bucket, "put", put)
    counting = FailureLog(bus, b"s" * 32, address_rate=Rate(1), clock=lambda: START)
    task = asyncio.create_task(counting.run())
    attempt = counting.ask("203.0.113.1", "alice")
    assert attempt.blocked_s == 0
    assert attempt.failed() == 0
    assert attempt.blocked_s == 60
    await eventually(lambda: tried >= 3)
    assert counting.ask("203.0.113.1", "bob").blocked_s == 60
    assert counting.ask("203.0.113.2", "bob").blocked_s == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_memory_is_bounded_whatever_strangers_make_up(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_KNOWN", "MAX_PENDING", "MAX_PROVEN"):
        monkeypatch.setattr(failure_log, name, 50)
    counting = FailureLog(bus, b"s" * 32, clock=lambda: START)  # nobody writes: it does not run
    for n in range(500):
        attempt = counting.ask(f"192.0.2.{n % 256}", f"name-{n}")
        attempt.failed()
        attempt.succeeded()
    assert (len(counting._tats), len(counting._pending), len(counting._proven)) == (50, 50, 50)


async def test_a_record_that_cannot_be_read_counts_for_nothing(auth: Auth, bus: Bus) -> None:
    counting = FailureLog(bus, b"s" * 32, clock=lambda: START)
    task = asyncio.create_task(counting.run())
    name = counting._names.address("203.0.113.1")
    await Bucket(bus, "attempts").put(f"failed.{name}", b"{")
    attempt = counting.ask("203.0.113.1", "alice")
    assert attempt.failed() == 0

    async def written() -> bool:
        value, _ = await Bucket(bus, "attempts").get(f"failed.{name}")
        return value is not None and value != b"{" and decode_arrival(value).tat == START + 6

    await eventually(written)
    assert NAME_RATE.per_minute == 5
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
