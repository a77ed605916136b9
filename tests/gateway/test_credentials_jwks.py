"""Fetching the issuer's keys: how often, what is kept, what is not believed."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey

from services.gateway.credentials import jwks as module
from services.gateway.credentials.jwks import Jwks, Unusable, read
from tests.support.http import free_socket, served, url_of
from tests.support.waiting import eventually


def public(kid: str, **more: Any) -> dict[str, Any]:
    return {**ECKey.generate_key("P-256").as_dict(private=False), "kid": kid, **more}


class Issuer:
    """Answers every request with `body` and `status`, after `gate` is open; counts."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def publish(self, *kids: str) -> None:
        self.body = json.dumps({"keys": [public(kid) for kid in kids]}).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.gate.wait()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> Issuer:
    return Issuer()


@contextlib.asynccontextmanager
async def running(url: str, clock: Clock) -> AsyncIterator[Jwks]:
    keys = Jwks(url, clock=clock)
    task = asyncio.create_task(keys.run())
    try:
        yield keys
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_unknown_kid_is_looked_for_once_a_minute_and_no_more(issuer: Issuer) -> None:
    clock = Clock()
    issuer.publish("one")
    async with served(issuer, free_socket()) as url, running(url, clock) as keys:
        await eventually(lambda: keys.loaded)
        assert issuer.asked == 1
        assert await keys.look_for("one")
        assert issuer.asked == 1, "a known kid needs no request"

        clock.now += 2
        assert not await keys.look_for("two")
        assert issuer.asked == 2
        for _ in range(5):
            clock.now += 10
            assert not await keys.look_for("two")
        assert issuer.asked == 2

        issuer.publish("one", "two")
        clock.now += 11
        assert await keys.look_for("two")
        assert issuer.asked == 3


async def test_strangers_with_many_kids_cause_one_request_a_second_at_most(issuer: Issuer) -> None:
    clock = Clock()
    issuer.publish("one")
    async with served(issuer, free_socket()) as url, running(url, clock) as keys:
        await eventually(lambda: keys.loaded)
        for second in range(3):
            clock.now += 1.01
            found = [await keys.look_for(f"kid-{second}-{n}") for n in range(100)]
            assert not any(found)
        assert issuer.asked == 4


async def test_the_memory_of_unknown_kids_is_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNKNOWN", 3)
    clock = Clock()
    issuer.publish("one")
    async with served(issuer, free_socket()) as url, running(url, clock) as keys:
        await eventually(lambda: keys.loaded)
        for n in range(5):
            clock.now += 2
            await keys.look_for(f"kid-{n}")
        assert list(keys._unknown) == ["kid-2", "kid-3", "kid-4"]


async def test_many_who_look_for_a_new_kid_share_one_request(issuer: Issuer) -> None:
    clock = Clock()
    issuer.publish("one")
    async with served(issuer, free_socket()) as url, running(url, clock) as keys:
        await eventually(lambda: keys.loaded)
        clock.now += 2
        issuer.gate.clear()
        issuer.publish("one", "two")
        looking = [asyncio.create_task(keys.look_for("two")) for _ in range(50)]
        await eventually(lambda: issuer.asked == 2)
        issuer.gate.set()
        assert all(await asyncio.gather(*looking))
        assert issuer.asked == 2


async def test_the_last_good_keys_stay_while_the_issuer_fails(issuer: Issuer) -> None:
    clock = Clock()
    issuer.publish("one")
    async with served(issuer, free_socket()) as url, running(url, clock) as keys:
        await eventually(lambda: keys.loaded)
        for status, body in ((500, b"{}"), (200, b"<html>"), (200, b'{"keys": []}'), (200, b"x" * 300_000), (302, b"")):
            issuer.status, issuer.body = status, body
            clock.now += 2
            assert not await keys.look_for("two")
            assert set(keys.keys) == {"one"}
            assert keys.check() is None
        issuer.status = 200
        issuer.publish("two")
        clock.now += 2
        assert await keys.look_for("two"), "a failed attempt is no answer: the kid may be looked for again"
        assert set(keys.keys) == {"two"}, "a key that is withdrawn is gone"


async def test_it_tries_until_the_first_success(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    monkeypatch.setattr(module, "FIRST_RETRIES_S", (0.01, 0.02))
    clock = Clock()
    bound = free_socket()
    async with running(url_of(bound), clock) as keys:
        await eventually(lambda: keys._fetched_at > 0)
        assert not keys.loaded
        assert "no signing keys yet" in str(keys.check())
        assert not await keys.look_for("one")
        issuer.publish("one")
        async with served(issuer, bound):
            await eventually(lambda: keys.loaded)
            assert keys.check() is None


def test_keys_of_other_kinds_are_skipped() -> None:
    """RFC 7517 §5."""
    listed = [
        public("good"),
        public("named", use="sig", alg="ES256"),
        public("encryption", use="enc"),
        public("other-alg", alg="ES384"),
        {"kty": "new-kind", "kid": "x"},
        RSAKey.generate_key(2048).as_dict(private=False),
        ECKey.generate_key("P-384").as_dict(private=False),
        {name: value for name, value in public("nameless").items() if name != "kid"},
    ]
    assert set(read(json.dumps({"keys": listed}).encode())) == {"good", "named"}


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": [{"kty": "EC"}]}'])
def test_what_is_no_key_set_is_refused(body: bytes) -> None:
    with pytest.raises(Unusable):
        read(body)


def test_a_damaged_key_makes_the_set_unusable() -> None:
    with pytest.raises(Unusable):
        read(json.dumps({"keys": [public("one", x="AAAA")]}).encode())
