"""The gateway's knowledge of its callers, with a real auth service and a real nats-server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import DEFAULT_SCOPES, ApiKey, Client, Policy, Principal, Scope
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed
from libs.common.contracts.requests import Priority
from libs.common.credentials import api_keys
from libs.common.credentials.tokens import Claims
from libs.common.credentials.verifiers import Verifiers
from services.gateway.credentials import Credentials, require
from services.gateway.credentials.verified import VerifiedTokens
from tests.auth.running import CLUSTER_SECRET, running_auth
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

SECRET = CLUSTER_SECRET.encode()
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


@contextlib.asynccontextmanager
async def running(
    bus: Bus, issuer: str = NOWHERE, *, clock: Callable[[], float] = time.time, **more: Any
) -> AsyncIterator[Credentials]:
    credentials = Credentials(bus, issuer=issuer, cluster_secret=SECRET, clock=clock, **more)
    task = asyncio.create_task(credentials.run())
    try:
        await eventually(lambda: credentials.fresh)
        yield credentials
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def bearer(credential: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"gateway"), (b"authorization", b"Bearer " + credential.encode())]


async def refusal(credentials: Credentials, credential: str) -> Code | None:
    try:
        await credentials.principal(bearer(credential))
    except Failed as error:
        fault = error.fault
    else:
        return None
    assert credential not in fault.message
    return fault.code


class Store:
    """Writes records as auth does, and as its later administration will."""

    def __init__(self, bus: Bus) -> None:
        self.bucket = Bucket(bus, "clients")
        self.key = api_keys.new()

    async def client(self, name: str = "alice", **more: Any) -> None:
        await self.bucket.put(f"client.{name}", encode(Client(id=name, name=name, **more)))

    async def api_key(self, client: str = "alice", **more: Any) -> str:
        record = ApiKey(id=self.key.id, client=client, verifier=Verifiers(SECRET).of(self.key.secret), **more)
        await self.bucket.put(f"key.{self.key.id}", encode(record))
        return str(self.key)


async def becomes(credentials: Credentials, credential: str, code: Code | None) -> None:
    async def reached() -> bool:
        return await refusal(credentials, credential) is code

    await eventually(reached)


async def test_an_api_key_and_a_token_both_name_their_client(nats: NatsServer, bus: Bus) -> None:
    async with running_auth(nats) as auth, running(bus, auth.issuer) as credentials:
        secret = await auth.create_client("alice", scopes=["inference", "jobs:read"], policy={"priority": "batch"})
        key = await auth.create_key("alice")
        token = await auth.access_token("alice", secret, "jobs:read")
        await becomes(credentials, key, None)
        policy = Policy(priority=Priority.BATCH)
        parsed = api_keys.parse(key)
        assert parsed
        by_key = await credentials.principal([(b"x-api-key", key.encode())])
        assert by_key == Principal(
            client="alice", scopes=frozenset({"inference", "jobs:read"}), policy=policy, credential=f"key:{parsed.id}"
        )
        by_token = await credentials.principal(bearer(token))
        assert by_token.credential.startswith("token:")
        assert time.time() - 60 < by_token.issued_at <= time.time() + 1
        assert by_token.kid
        assert msgspec.structs.replace(by_token, credential="", issued_at=0, kid="") == Principal(
            client="alice", scopes=frozenset({"jobs:read"}), policy=policy
        )
        assert await credentials.principal(bearer(token)) == by_token
        assert all(check() is None for check in credentials.checks().values())


async def test_what_is_wrong_with_a_key_is_refused(bus: Bus) -> None:
    store = Store(bus)
    await store.client()
    key = await store.api_key()
    async with running(bus) as credentials:
        assert await refusal(credentials, key) is None
        wrong = str(store.key._replace(secret=api_keys.new_secret()))
        unknown = str(api_keys.new())
        messages = set()
        for credential in (wrong, unknown):
            with pytest.raises(Failed) as caught:
                await credentials.principal(bearer(credential))
            assert caught.value.fault.code is Code.UNAUTHENTICATED
            messages.add(caught.value.fault.message)
        assert len(messages) == 1, "whether an id exists is nobody's business"

        await store.api_key(disabled=True)
        await becomes(credentials, key, Code.UNAUTHENTICATED)
        await store.api_key(expires_at=int(time.time()) + 60)
        await becomes(credentials, key, None)
        await store.api_key(expires_at=int(time.time()) - 1)
        await becomes(credentials, key, Code.UNAUTHENTICATED)
        await store.api_key(client="nobody")
        await becomes(credentials, key, Code.UNAUTHENTICATED)
        await store.api_key()
        await becomes(credentials, key, None)
        await store.client(disabled=True)
        await becomes(credentials, key, Code.UNAUTHENTICATED)
        await store.client()
        await becomes(credentials, key, None)
        await store.bucket.delete(f"key.{store.key.id}")
        await becomes(credentials, key, Code.UNAUTHENTICATED)


async def test_a_keys_scopes_are_its_own_within_its_clients(bus: Bus) -> None:
    store = Store(bus)
    await store.client(scopes=("inference", "jobs:read"))
    key = await store.api_key()
    async with running(bus) as credentials:

        async def scopes() -> frozenset[str]:
            return (await credentials.principal(bearer(key))).scopes

        assert await scopes() == {"inference", "jobs:read"}
        await store.api_key(scopes=("jobs:read", "admin:cluster"))
        await eventually(lambda: _gives(scopes, {"jobs:read"}))
        await store.api_key(scopes=())
        await eventually(lambda: _gives(scopes, set()))
        principal = await credentials.principal(bearer(key))
        with pytest.raises(Failed) as caught:
            require(principal, Scope.INFERENCE)
        assert caught.value.fault.code is Code.FORBIDDEN


async def _gives(get: Any, wanted: Any) -> bool:
    return bool(await get() == wanted)


def test_a_scope_that_is_there_is_enough() -> None:
    require(Principal(client="a", scopes=frozenset(DEFAULT_SCOPES)), Scope.JOBS_READ)


async def test_a_tokens_client_is_looked_at_in_every_call_though_its_signature_is_remembered(
    nats: NatsServer, bus: Bus
) -> None:
    store = Store(bus)
    async with running_auth(nats) as auth, running(bus, auth.issuer) as credentials:
        secret = await auth.create_client("alice")
        token = await auth.access_token("alice", secret)
        await becomes(credentials, token, None)
        for change, code in (
            ({"disabled": True}, Code.UNAUTHENTICATED),
            ({}, None),
            ({"not_before": int(time.time()) + 30}, Code.UNAUTHENTICATED),
            ({"not_before": int(time.time()) - 600}, None),
        ):
            await store.client("alice", **change)
            await becomes(credentials, token, code)
        await store.client("alice", scopes=("jobs:read",))

        async def scopes() -> frozenset[str]:
            return (await credentials.principal(bearer(token))).scopes

        await eventually(lambda: _gives(scopes, {"jobs:read"}))
        await store.bucket.delete("client.alice")
        await becomes(credentials, token, Code.UNAUTHENTICATED)


async def test_a_remembered_token_still_expires(nats: NatsServer, bus: Bus) -> None:
    ahead = [0.0]
    async with (
        running_auth(nats) as auth,
        running(bus, auth.issuer, clock=lambda: time.time() + ahead[0]) as credentials,
    ):
        token = await auth.access_token("alice", await auth.create_client("alice"))
        await becomes(credentials, token, None)
        ahead[0] = 299 + 20  # within the leeway
        assert await refusal(credentials, token) is None
        ahead[0] = 331
        assert await refusal(credentials, token) is Code.UNAUTHENTICATED


async def test_verified_tokens_outlive_auth_and_api_keys_do_not_need_it(nats: NatsServer, bus: Bus) -> None:
    async with running(bus, NOWHERE) as credentials:
        store = Store(bus)
        await store.client()
        key = await store.api_key()
        await becomes(credentials, key, None)
        assert "no signing keys yet" in str(credentials.checks()["jwks"]())
        token = jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": "x"}, {"a": 1}, ECKey.generate_key("P-256"))
        assert await refusal(credentials, token) is Code.UNAVAILABLE, "nobody can say whether it is good"
    stack = contextlib.AsyncExitStack()
    auth = await stack.enter_async_context(running_auth(nats))
    async with running(bus, auth.issuer) as credentials:
        secret = await auth.create_client("bob")
        token, fresh = await auth.access_token("bob", secret), await auth.access_token("bob", secret)
        await becomes(credentials, token, None)
        await stack.aclose()
        assert await refusal(credentials, token) is None
        assert await refusal(credentials, fresh) is None, "its key is known"


async def test_a_key_that_is_published_later_is_fetched_when_a_token_names_it(
    nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here by a bucket that is made anew: auth makes another key, and tokens of the old one no longer count."""
    monkeypatch.setattr("services.gateway.credentials.jwks.BETWEEN_FETCHES_S", 0.0)
    async with running_auth(nats) as auth, running(bus, auth.issuer) as credentials:
        secret = await auth.create_client("alice")
        old = await auth.access_token("alice", secret)
        await becomes(credentials, old, None)
        (before,) = (await auth.http.get("/.well-known/jwks.json")).json()["keys"]
        await Bucket(bus, "signing").delete("keyring")

        async def replaced() -> bool:
            answer = await auth.http.get("/.well-known/jwks.json")
            return answer.status_code == 200 and answer.json()["keys"] != [before]

        await eventually(replaced)
        new = await auth.access_token("alice", secret)
        assert await refusal(credentials, new) is None
        assert await refusal(credentials, old) is Code.UNAUTHENTICATED, "also out of the memory of verified tokens"


async def test_foreign_and_confused_tokens_are_refused(nats: NatsServer, bus: Bus) -> None:
    async with running_auth(nats) as auth, running(bus, auth.issuer) as credentials:
        secret = await auth.create_client("alice")
        good = await auth.access_token("alice", secret)
        await becomes(credentials, good, None)
        head, body, signature = good.split(".")
        for bad in (f"{head}.{body}.{signature[::-1]}", f"{head}.{body[:-4]}AAAA.{signature}", f"{head}.{body}."):
            assert await refusal(credentials, bad) is Code.UNAUTHENTICATED
    async with running_auth(nats) as other, running(bus, other.issuer) as credentials:
        # The same key, another issuer: what the first one said does not count here.
        await becomes(credentials, await other.access_token("alice", secret), None)
        assert await refusal(credentials, good) is Code.UNAUTHENTICATED


async def test_after_an_absence_nobody_is_let_in_on_old_knowledge(nats: NatsServer, bus: Bus) -> None:
    """§A1.6: away, a client is disabled meanwhile, back: from the first answer on it is refused. The server comes up
    on another port in between, so that others can write while this gateway cannot reach it."""
    store = Store(bus)
    for n in range(500):  # a backlog that takes a moment to arrive
        await store.client(f"client-{n}")
    await store.client()
    key = await store.api_key()
    async with running(bus) as credentials:
        await becomes(credentials, key, None)
        await nats.stop()
        await becomes(credentials, key, Code.UNAVAILABLE)
        await eventually(lambda: "not up to date" in str(credentials.checks()["clients"]()))

        elsewhere = NatsServer(nats.folder)
        await elsewhere.start()
        async with connected(elsewhere) as other:
            for n in range(500):
                await Store(other).client(f"client-{n}")
            await Store(other).client(disabled=True)
        await elsewhere.stop()
        await nats.start()

        answers: list[Code | None] = [Code.UNAVAILABLE]
        async with asyncio.timeout(60):
            while answers[-1] is Code.UNAVAILABLE:
                answers.append(await refusal(credentials, key))
                await asyncio.sleep(0)
        assert answers[-1] is Code.UNAUTHENTICATED


async def test_a_client_that_nats_has_authenticated_is_known_by_its_name(bus: Bus) -> None:
    await Store(bus).client(scopes=("jobs:read",))
    await Store(bus).client("off", disabled=True)
    async with running(bus) as credentials:
        principal = credentials.named("alice")
        assert (principal.client, principal.scopes) == ("alice", {"jobs:read"})
        for name in ("off", "nobody"):
            with pytest.raises(Failed) as caught:
                credentials.named(name)
            assert caught.value.fault.code is Code.UNAUTHENTICATED


async def test_before_the_clients_are_known_nobody_is_judged(bus: Bus) -> None:
    credentials = Credentials(bus, issuer=NOWHERE, cluster_secret=SECRET)
    assert await refusal(credentials, str(api_keys.new())) is Code.UNAVAILABLE
    with pytest.raises(Failed) as caught:
        credentials.named("alice")
    assert caught.value.fault.code is Code.UNAVAILABLE
    assert await refusal(credentials, "not-a-credential") is Code.UNAUTHENTICATED


def test_the_memory_of_verified_tokens_is_bounded_and_drops_the_least_recently_used() -> None:
    keys: Any = {"k": object()}
    memory = VerifiedTokens(limit=3)
    for n in range(3):
        memory.put(f"token-{n}", _claims(n))
    assert memory.get("token-0", keys=keys, now=0) == _claims(0)
    memory.put("token-3", _claims(3))
    assert [n for n in range(4) if memory.get(f"token-{n}", keys=keys, now=0)] == [0, 2, 3]
    assert memory.get("token-0", keys=keys, now=100) is None, "expired"
    assert memory.get("token-2", keys={}, now=0) is None, "its key was withdrawn"
    assert len(memory) == 1


def _claims(n: int) -> Claims:
    return Claims(client=f"c{n}", scopes=frozenset(), jti=str(n), iat=0, exp=100, kid="k")


async def test_a_check_waits_for_nobody(nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made at each request: once a token's signature has been checked, nothing is asked, awaited, or checked so again."""
    async with running_auth(nats) as auth, running(bus, auth.issuer) as credentials:
        secret = await auth.create_client("alice")
        token, key = await auth.access_token("alice", secret), await auth.create_key("alice")
        for credential in (token, key):
            await becomes(credentials, credential, None)
        monkeypatch.setattr("services.gateway.credentials.principals.verify", None)
        for credential in (token, key):
            with pytest.raises(StopIteration) as ended:
                credentials.principal(bearer(credential)).send(None)
            assert ended.value.value.client == "alice"
