"""A revocation is felt at every gateway: what is asked anew is refused, what is open ends, what was submitted is cancelled."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from joserfc.jws import extract_compact

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import DEFAULT_SCOPES, ApiKey, Principal, Scope, decode_api_key, decode_client
from libs.common.contracts.codec import encode
from libs.common.contracts.revocations import Revocation, signing_key_record, token_record
from libs.common.contracts.subjects import JobKey
from libs.common.credentials import api_keys
from libs.common.credentials.verifiers import Verifiers
from libs.common.folder import Entry
from services.gateway import revoking
from services.gateway.credentials.changes import Changes
from services.gateway.job_bodies import parse_job
from services.gateway.listing import list_jobs
from services.gateway.pressure import Pressure
from services.gateway.revoking import Revoking
from services.gateway.sessions import Sessions
from services.gateway.submission import Submitter
from tests.auth.running import CLUSTER_SECRET, Auth, running_auth
from tests.gateway.running import SECRET, Gateway, add_client, running_gateway
from tests.gateway.scripted import Script, submission
from tests.gateway.whole import MODEL, whole
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually

assert SECRET == CLUSTER_SECRET  # keys written by these tests count at gateways that ask a real auth
LONG = {"model": MODEL, "messages": [{"role": "user", "content": "[[tokens=3000]] tell"}]}
JOB = {"model": MODEL, "prompt": "[[tokens=3000]] tell"}


class World:
    """Three gateways before a slow node, and auth."""

    def __init__(self, bus: Bus, auth: Auth, gateways: list[Gateway]) -> None:
        self.bus = bus
        self.auth = auth
        self.gateways = gateways
        self.clients = Bucket(bus, "clients")

    async def client(self, name: str = "mallory", **more: Any) -> str:
        return await add_client(self.bus, name, DEFAULT_SCOPES, **more)

    async def key(self, client: str, **more: Any) -> str:
        key = api_keys.new()
        record = ApiKey(id=key.id, client=client, verifier=Verifiers(SECRET.encode()).of(key.secret), **more)
        await self.clients.put(f"key.{key.id}", encode(record))
        return str(key)

    async def change_key(self, key: str, **change: Any) -> None:
        parsed = api_keys.parse(key)
        assert parsed
        found, _ = await self.clients.get(f"key.{parsed.id}")
        assert found
        record = msgspec.structs.replace(decode_api_key(found), **change)
        await self.clients.put(f"key.{parsed.id}", encode(record))

    async def change_client(self, name: str, **change: Any) -> None:
        found, _ = await self.clients.get(f"client.{name}")
        assert found
        await self.clients.put(f"client.{name}", encode(msgspec.structs.replace(decode_client(found), **change)))

    async def token(self, client: str) -> tuple[str, dict[str, Any]]:
        """An access token, and its claims."""
        secret = await self.auth.create_client(client)
        token = await self.auth.access_token(client, secret)
        parts = extract_compact(token.encode())
        return token, {**json.loads(parts.payload), **parts.headers()}

    async def states(self, client: str) -> dict[str, str]:
        page = await list_jobs(self.bus, client, cursor=None, limit=100, state=None)
        return {row["id"]: row["state"] for row in page.rows}

    async def until_all_cancelled(self, client: str, count: int) -> None:
        async def cancelled() -> bool:
            return list((await self.states(client)).values()) == ["cancelled"] * count

        await eventually(cancelled, within=20)


@pytest.fixture
async def world(nats: NatsServer) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        auth = await stack.enter_async_context(running_auth(nats))
        settings = {"issuer": auth.issuer}
        first, _ = await stack.enter_async_context(whole(nats, decode_tps=20, slots=8, **settings))
        others = [await stack.enter_async_context(running_gateway(nats, **settings)) for _ in range(2)]
        bus = await stack.enter_async_context(connected(nats))
        yield World(bus, auth, [first, *others])


async def refused_everywhere(world: World, credential: str) -> None:
    for gateway in world.gateways:

        async def refused(gateway: Gateway = gateway) -> bool:
            async with gateway.client(credential) as http:
                answer = await http.get("/v1/models")
            return answer.status_code == 401 and answer.json()["error"]["code"] == "unauthenticated"

        await eventually(refused)


class Stream:
    """One open stream, read in the background until it ends."""

    def __init__(self) -> None:
        self.text = b""
        self.ended_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, http: httpx.AsyncClient, method: str, path: str, **more: Any) -> "Stream":
        stream = cls()
        begun = asyncio.Event()

        async def read() -> None:
            try:
                async with http.stream(method, path, **more) as response:
                    assert response.status_code == 200, await response.aread()
                    async for part in response.aiter_bytes():
                        stream.text += part
                        begun.set()
            except httpx.RemoteProtocolError:
                pass  # cut: that is an end, too
            finally:
                stream.ended_at = time.monotonic()
                begun.set()

        stream._task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), 20)
        return stream

    async def ended(self) -> bytes:
        assert self._task
        await asyncio.wait_for(asyncio.shield(self._task), 20)
        return self.text

    @property
    def is_open(self) -> bool:
        assert self._task
        return not self._task.done()


async def test_streams_of_a_revoked_key_end_at_every_gateway_and_their_jobs_are_cancelled(world: World) -> None:
    stolen = await world.client()
    mine = await world.key("mallory")
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(gateway.client(stolen)) for gateway in world.gateways]
        keeper = await stack.enter_async_context(world.gateways[1].client(mine))
        for http in [*clients, keeper]:
            await eventually(lambda http=http: _answers(http))
        streams = [
            await Stream.open(http, "POST", "/v1/chat/completions", json=LONG | {"stream": True}) for http in clients
        ]
        # Detached or not: a revoked credential leaves nothing running.
        detached = await clients[0].post("/jobs", json=JOB)
        assert detached.status_code == 202
        kept = await Stream.open(keeper, "POST", "/v1/chat/completions", json=LONG | {"stream": True})
        before = set(await world.states("mallory"))

        await world.change_key(stolen, disabled=True)
        for stream in streams:
            text = await stream.ended()
            assert b"the API key was revoked" in text.rsplit(b"\n\n", 2)[-2], text[-500:]
            assert b"[DONE]" not in text

        async def only_mine_is_left() -> bool:
            states = await world.states("mallory")
            assert set(states) == before
            return sorted(states.values()) == ["cancelled"] * 4 + ["running"] or sorted(states.values()) == [
                "bound",
                *["cancelled"] * 4,
            ]

        await eventually(only_mine_is_left, within=20)
        await refused_everywhere(world, stolen)
        assert kept.is_open
        await world.change_key(mine, disabled=True)
        await kept.ended()
        await world.until_all_cancelled("mallory", 5)


async def _answers(http: httpx.AsyncClient) -> bool:
    return (await http.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("how", ["token", "signing key", "not before", "client disabled", "client deleted"])
async def test_a_token_ends_however_it_is_revoked(world: World, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoking, "SECOND_LOOK_S", 60.0)  # that of the client's creation would come just in time
    token, claims = await world.token("mallory")
    async with world.gateways[2].client(token) as http:
        await eventually(lambda: _answers(http))
        chat = await Stream.open(http, "POST", "/v1/chat/completions", json=LONG | {"stream": True})
        job = (await http.post("/jobs", json=JOB)).json()["id"]
        watched = await Stream.open(http, "GET", f"/jobs/{job}/stream")
        waiting = asyncio.create_task(http.get(f"/jobs/{job}?wait=60"))

        revoked = Bucket(world.bus, "revoked")
        match how:
            case "token":
                await revoked.put(
                    token_record(claims["jti"]), encode(Revocation(client="mallory", at=int(time.time())))
                )
            case "signing key":
                await revoked.put(signing_key_record(claims["kid"]), encode(Revocation(at=int(time.time()))))
            case "not before":
                await world.change_client("mallory", not_before=int(time.time()) + 2)
            case "client disabled":
                await world.change_client("mallory", disabled=True)
            case "client deleted":
                await world.clients.delete("client.mallory")
        for stream in (chat, watched):
            assert b"unauthenticated" in (await stream.ended())[-600:]
        assert (await waiting).status_code == 401
        await refused_everywhere(world, token)
        await world.until_all_cancelled("mallory", 2)


async def test_what_was_revoked_while_nats_was_away_is_refused_from_the_first_answer_on(
    world: World, nats: NatsServer
) -> None:
    key = await world.client()
    gateway = world.gateways[1]
    async with gateway.client(key) as http:
        await eventually(lambda: _answers(http))
        stream = await Stream.open(http, "POST", "/v1/chat/completions", json=LONG | {"stream": True})
        await nats.stop()
        checks = gateway.running.checks
        await eventually(lambda: checks["clients"]() and checks["revocations"]())
        assert (await http.get("/v1/models")).status_code == 503
        elsewhere = NatsServer(nats.folder)
        await elsewhere.start()
        async with connected(elsewhere) as other:
            clients = Bucket(other, "clients")
            found, _ = await clients.get("client.mallory")
            assert found
            await clients.put("client.mallory", encode(msgspec.structs.replace(decode_client(found), disabled=True)))
        await elsewhere.stop()
        await nats.start()
        statuses = [503]
        async with asyncio.timeout(30):
            while statuses[-1] == 503:
                statuses.append((await http.get("/v1/models")).status_code)
        assert statuses[-1] == 401
        assert b"the client is disabled" in (await stream.ended())[-600:]


async def test_a_call_over_nats_ends_as_well(world: World, nats: NatsServer) -> None:
    await world.client("billing")
    async with connected(nats, "billing") as bus:

        async def ask(verb: str, payload: Any) -> dict[str, Any]:
            return dict(json.loads(await bus.request(f"api.billing.{verb}", encode(payload), timeout=30)))

        async def submitted() -> str | None:
            return (await ask("submit", {"job": JOB})).get("ok", {}).get("id")

        job = await eventually(submitted)
        waiting = asyncio.create_task(ask("get", {"id": job, "wait_s": 25}))
        for _ in range(5):  # it has begun to wait
            await ask("list", {})
        await world.change_client("billing", disabled=True)
        answer = await waiting
        assert answer["fault"]["code"] == "unauthenticated"
        assert "disabled" in answer["fault"]["message"]
        await world.until_all_cancelled("billing", await _count(world, "billing"))


@pytest.mark.parametrize("who", ["client", "key"])
async def test_what_needs_a_scope_that_is_taken_away_ends_and_its_jobs_go_on(world: World, who: str) -> None:
    await world.client()
    key = await world.key("mallory")
    async with world.gateways[-1].client(key) as http:
        await eventually(lambda: _answers(http))
        job = (await http.post("/jobs", json=JOB)).json()["id"]
        ends = await Stream.open(http, "GET", f"/jobs/{job}/stream")
        chat = await Stream.open(http, "POST", "/v1/chat/completions", json=LONG | {"stream": True})
        scopes = tuple(str(scope) for scope in DEFAULT_SCOPES if scope is not Scope.JOBS_READ)
        if who == "client":
            await world.change_client("mallory", scopes=scopes)
        else:
            await world.change_key(key, scopes=scopes)
        assert b"the scope jobs:read was taken away" in (await ends.ended())[-600:]
        assert (await http.get(f"/jobs/{job}")).status_code == 403
        assert chat.is_open, "it needs another one"
        assert set((await world.states("mallory")).values()) <= {"queued", "bound", "running"}


async def _count(world: World, client: str) -> int:
    return len(await world.states(client))


async def test_what_has_merely_expired_may_finish(world: World) -> None:
    await world.client()
    key = await world.key("mallory", expires_at=int(time.time()) + 3600)
    async with world.gateways[0].client(key) as http:
        await eventually(lambda: _answers(http))
        stream = await Stream.open(http, "POST", "/v1/chat/completions", json=LONG | {"stream": True})
        await world.change_key(key, expires_at=int(time.time()) - 1)
        await refused_everywhere(world, key)
        assert stream.is_open


async def test_what_another_gateway_took_in_the_same_moment_is_cancelled_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hear of the revocation a little later: after a while everybody looks once more."""
    monkeypatch.setattr(revoking, "SECOND_LOOK_S", 6.0)  # what comes before it has to fall in between
    key = await world.client()
    parsed = api_keys.parse(key)
    assert parsed
    await refused_everywhere(world, "arr_x")
    await world.change_key(key, disabled=True)
    await refused_everywhere(world, key)
    principal = Principal(client="mallory", scopes=frozenset(DEFAULT_SCOPES), credential=f"key:{parsed.id}")
    wish = parse_job(json.dumps(JOB).encode(), principal.policy)
    submitter = Submitter(world.bus, SECRET.encode(), Pressure(world.bus))
    late = submitter.new_key(principal, wish, None)
    await submitter.submit(late, submitter.prepare(principal, wish), keyed=False)
    await world.until_all_cancelled("mallory", 1)


async def test_a_job_of_a_fresh_token_is_kept_though_it_was_stored_before_the_moment_that_ends_the_others(
    world: World,
) -> None:
    """Clocks of auth's replicas may differ, so a rotation ends tokens that are issued a few seconds ahead, too; those of the
    new secret are stamped later than that, and are used at once."""
    await world.token("mallory")
    admin = await world.auth.admin()
    rotated = await world.auth.http.post("/clients/mallory/rotate", json={"now": True}, headers=admin)
    fresh = await world.auth.access_token("mallory", rotated.json()["client_secret"])
    key = await world.key("mallory")
    gateway = world.gateways[0]
    async with gateway.client(fresh) as mine, gateway.client(key) as stolen:
        await eventually(lambda: _answers(mine))
        await eventually(lambda: _answers(stolen))
        kept, ended = [(await http.post("/jobs", json=JOB)).json()["id"] for http in (mine, stolen)]
    await world.change_key(key, disabled=True)

    async def looked_through() -> bool:
        return (await world.states("mallory"))[ended] == "cancelled"

    await eventually(looked_through, within=20)  # the older one has been judged before it
    assert (await world.states("mallory"))[kept] in ("queued", "bound", "running")


class Marking:
    """A job service that only notes what is to be cancelled."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.marked: dict[str, str] = {}

    async def mark_cancelled(self, key: JobKey, entry: Entry, reason: str) -> None:
        self.marked[key.job] = reason


class EndedAt:
    """Credentials of a client whose tokens from before a moment do not count."""

    fresh = True

    def __init__(self, not_before: float) -> None:
        self.not_before = not_before

    def lapsed(self, client: str, credential: str, at: float, *, kid: str = "") -> str | None:
        return "the access token was revoked" if at < self.not_before else None


@pytest.mark.parametrize("bound", [False, True])
async def test_a_job_is_as_old_as_its_token_or_if_that_is_not_known_as_its_record(bus: Bus, bound: bool) -> None:
    now = time.time()
    fresh, late, old = scripts = [Script(bus) for _ in range(3)]
    fresh.submission = submission(credential="token:a", issued_at=int(now) + 1000)
    late.submission = submission(credential="token:b", issued_at=int(now) - 1000)
    old.submission = submission(credential="token:c")
    for script in scripts:
        await script.submit()
        if bound:
            await script.bind()
    for not_before, cancelled in ((now - 2000, []), (now - 500, [late]), (now + 500, [late, old])):
        service = Marking(bus)
        revoking = Revoking(EndedAt(not_before), Sessions(), service)  # type: ignore[arg-type]
        await revoking._cancel_lapsed("alice")
        assert set(service.marked) == {script.key.job for script in cancelled}


class HalfKnown:
    """Credentials of a gateway that was away: for a moment it knows nobody."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.known = False
        self.asked_if_fresh = 0
        self.asked = 0

    @property
    def fresh(self) -> bool:
        self.asked_if_fresh += 1
        return self.known

    def lapsed(self, client: str, credential: str, at: float, *, kid: str = "") -> str | None:
        self.asked += 1
        return None if self.known else "the client no longer exists"

    def with_lapses(self) -> set[str]:
        return set()


async def test_who_is_not_known_yet_is_not_ended() -> None:
    credentials, sessions = HalfKnown(), Sessions()
    running = asyncio.create_task(Revoking(credentials, sessions, None).run())  # type: ignore[arg-type]
    with sessions.one(Principal(client="alice", scopes=frozenset()), None) as session:
        await eventually(lambda: credentials.asked_if_fresh >= 3)
        credentials.known = True
        await eventually(lambda: credentials.asked)
        assert session.lapsed is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
