"""The audit trail of the auth service: what is recorded, how it is read over HTTP, and the checkpoints of several replicas."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from joserfc.jwk import ECKey

from libs.common.audit import Audit
from libs.common.audit.chain import CHECKPOINTS, CUT, STOP
from libs.common.audit.lines import End, Entry, Trail, read_line
from libs.common.audit.statements import open_statement, sign
from libs.common.audit.verify import Report, Verifier, checkpoint_record, public_keys
from libs.common.bus.connection import Bus
from libs.common.bus.provision import create_missing
from libs.common.contracts.audit import AuditRecord, Statement, decode_audit
from libs.common.contracts.codec import encode
from libs.common.contracts.headers import EXPECTED_SEQUENCE
from libs.common.contracts.streams import AUDIT
from services.auth import checkpoints as checkpoints_module
from services.auth import trail as trail_module
from services.auth.checkpoints import SUBJECT, Checkpoints
from services.auth.keyring import Keyring
from services.auth.recording import ACTIONS
from tests.auth.running import CLUSTER_SECRET, OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer, connected
from tests.support.waiting import eventually


@pytest.fixture
async def auth(nats: NatsServer) -> AsyncIterator[Auth]:
    async with running_auth(nats) as running:
        yield running


async def reader(auth: Auth) -> dict[str, str]:
    return {"Authorization": f"Bearer {await auth.access_token(OPERATOR, OPERATOR_SECRET, 'audit:read')}"}


async def page(auth: Auth, headers: dict[str, str] | None = None, **query: Any) -> tuple[Trail, list[Entry], End]:
    answer = await auth.http.get("/audit", params=query, headers=headers or await reader(auth))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, *entries, end = [read_line(line) for line in answer.content.split(b"\n")[:-1]]
    assert isinstance(first, Trail)
    assert isinstance(end, End)
    assert all(isinstance(entry, Entry) for entry in entries)
    return first, entries, end  # type: ignore[return-value]


def check(trail: Trail, entries: list[Entry], end: End) -> Report:
    verifier = Verifier(public_keys(trail.keys), trail.after)
    for entry in entries:
        verifier.add(entry)
    return verifier.finish(end.upto)


async def records(bus: Bus, subject: str = "audit.auth.*") -> list[AuditRecord]:
    found = await bus.from_sequence(AUDIT, subject)
    return [decode_audit(message.data) for message in found if message.subject != SUBJECT]


async def until(bus: Bus, *actions: str) -> list[AuditRecord]:
    """The newest records when they are these actions."""

    async def there() -> list[AuditRecord] | None:
        found = await records(bus)
        return found if [record.action for record in found[-len(actions) :]] == list(actions) else None

    found: list[AuditRecord] = await eventually(there)
    return found[-len(actions) :]


async def test_every_route_says_what_it_does(auth: Auth) -> None:
    """`recorded` would not start with a route that is not in the table; here, that the table has no others."""
    paths = {action[1] for action in ACTIONS}
    for path in paths:
        assert (await auth.http.request("TRACE", path)).status_code == 405, path


async def test_tokens_clients_and_keys_are_recorded_without_secrets(bus: Bus, auth: Auth) -> None:
    secret = await auth.create_client("ci")
    key = await auth.create_key("ci")
    admin = await auth.admin()
    await auth.http.patch("/clients/ci", json={"scopes": ["jobs:read"]}, headers=admin)
    token = await auth.access_token("ci", secret)
    await auth.http.post("/oauth/revoke", data={"token": token}, auth=("ci", secret))
    await auth.http.post("/clients/ci/rotate", headers=admin)
    await auth.http.delete(f"/keys/{key.split('_')[1]}", headers=admin)
    await auth.http.post("/clients/ci/disable", headers=admin)
    await auth.http.delete("/clients/ci", headers=admin)
    found = await until(
        bus, "client.create", "token.issue", "key.create", "token.issue", "client.change", "token.issue", "token.revoke",
        "client.rotate", "key.revoke", "client.disable", "client.delete",
    )  # fmt: skip

    assert {record.result for record in found} == {"allowed"}
    by = {record.action: record for record in found}
    assert [by[f"client.{verb}"].target for verb in ("create", "change", "rotate", "disable", "delete")] == ["ci"] * 5
    assert by["client.create"].actor == OPERATOR
    assert by["client.create"].address == "127.0.0.1"
    issued = [record for record in found if record.action == "token.issue"]
    assert [record.actor for record in issued] == [OPERATOR, OPERATOR, "ci"]
    assert by["client.change"].credential == issued[1].target  # what was done with a token leads to who got it
    assert by["token.revoke"].target == issued[2].target
    assert by["key.create"].target == f"ci/{key.split('_')[1]}"
    assert by["key.revoke"].target == key.split("_")[1]
    text = b"".join(encode(record) for record in await records(bus)).decode()
    for hidden in (secret, key.split("_")[2], token, OPERATOR_SECRET):
        assert hidden not in text


async def test_refusals_are_recorded_and_counted(bus: Bus, auth: Auth) -> None:
    """Never what a stranger typed where a client's id belongs, or into a path."""
    await auth.create_client("ci")
    for client in ("ci", "my-secret-typed-in-the-wrong-field"):
        for _ in range(50):
            assert (await auth.token(client, "wrong-wrong-wrong")).status_code in (401, 429)
    await auth.http.get("/clients/my-secret-typed-in-the-wrong-field")
    weak = await auth.access_token(OPERATOR, OPERATOR_SECRET)
    answer = await auth.http.post("/clients", json={"name": "x"}, headers={"Authorization": f"Bearer {weak}"})
    assert answer.status_code == 403
    await eventually(lambda: _has(bus, "client.create", "denied"))
    found = [record for record in await records(bus) if record.result == "denied"]

    assert len(found) < 10
    assert ("token.issue", "ci") in {(record.action, record.actor) for record in found}
    assert ("token.issue", "") in {(record.action, record.actor) for record in found}
    (refused,) = [record for record in found if record.action == "client.create"]
    assert (refused.actor, refused.reason) == (OPERATOR, "forbidden")
    assert "my-secret" not in str(found)


async def test_a_key_that_an_administrator_pastes_into_a_path_is_recorded_by_its_id_alone(bus: Bus, auth: Auth) -> None:
    await auth.create_client("ci")
    key = await auth.create_key("ci")
    _, key_id, secret, _ = key.split("_")
    admin = await auth.admin()
    for pasted in (key, key[:-1]):
        assert (await auth.http.delete(f"/keys/{pasted}", headers=admin)).status_code == 404
    found = await until(bus, "key.revoke", "key.revoke")

    assert [(record.actor, record.target) for record in found] == [(OPERATOR, key_id)] * 2
    assert secret not in str(await records(bus))


async def _has(bus: Bus, action: str, result: str) -> bool:
    return any((record.action, record.result) == (action, result) for record in await records(bus))


async def test_the_trail_needs_its_own_scope_and_reading_it_is_recorded(bus: Bus, auth: Auth) -> None:
    assert (await auth.http.get("/audit")).status_code == 401
    assert (await auth.http.get("/audit", headers=await auth.admin())).status_code == 403
    await page(auth)
    await eventually(lambda: _has(bus, "audit.read", "allowed"))
    (found,) = [record for record in await records(bus) if record.action == "audit.read" and record.result == "allowed"]
    assert found.actor == OPERATOR


@contextlib.asynccontextmanager
async def writing(bus: Bus, writer: str, count: int) -> AsyncIterator[Audit]:
    audit = Audit(bus, "gateway", writer)
    task = asyncio.create_task(audit.run())
    for n in range(count):
        audit.record("model.pull", "allowed", actor="ada" if n % 2 else "bob", target=str(n))
    await eventually(lambda: audit._idle.is_set() and audit.sequence)
    try:
        yield audit
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_pages_hold_exactly_what_is_stored(bus: Bus, auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_module, "BATCH", 7)
    headers = await reader(auth)
    async with writing(bus, "w1", 60):
        found: list[Entry] = []
        after, more, first = 0, True, None
        while more:
            trail, entries, end = await page(auth, headers, after=after, limit=25)
            first = first or trail
            assert trail.after == after
            found += entries
            after, more = end.upto, end.more
        everything = await bus.from_sequence(AUDIT, "audit.>")

    assert [(e.sequence, e.subject, e.data, e.stored_ms) for e in found] == [
        (m.sequence, m.subject, m.data, m.at_ms) for m in everything[: len(found)]
    ]
    assert len(found) > 60
    assert first is not None
    assert check(first, found, end).problems == []


async def test_filters(bus: Bus, auth: Auth) -> None:
    headers = await reader(auth)
    async with writing(bus, "w1", 40):
        newest = await bus.last(AUDIT, "audit.gateway.w1")
        assert newest
        middle = await bus.at(AUDIT, newest.sequence - 20)
        assert middle
        _, entries, _ = await page(auth, headers, action="model.*", actor="ada")
        assert [decode_audit(e.data).target for e in entries] == [str(n) for n in range(1, 40, 2)]
        _, entries, end = await page(auth, headers, tail=3, action="model.pull")
        assert [decode_audit(e.data).target for e in entries] == ["37", "38", "39"]
        assert end.upto >= newest.sequence
        assert (await page(auth, headers, tail=0))[1] == []
        since = _time(middle.at_ms)
        trail, entries, _ = await page(auth, headers, since=since)
        assert entries[0].stored_ms >= middle.at_ms
        earlier = await bus.at(AUDIT, entries[0].sequence - 1)
        assert earlier
        assert earlier.at_ms < middle.at_ms
        assert trail.after == entries[0].sequence - 1
        _, entries, end = await page(auth, headers, until=since)
        assert [e.sequence for e in entries] == list(range(1, trail.after + 1))
        assert not end.more
        assert (await page(auth, headers, since="2999-01-01T00:00:00Z"))[1] == []


def _time(at_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=-1", "limit=99999999", "since=yesterday", "since=2026-01-01T00:00:00", "until=", "tail=1&after=2",
     "tail=100000", "unknown=1", "after=99999999999999999999999", "actor=" + "a" * 201, "action=" + "a" * 201],
)  # fmt: skip
async def test_a_question_that_makes_no_sense_is_refused(auth: Auth, query: str) -> None:
    answer = await auth.http.get(f"/audit?{query}", headers=await reader(auth))
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == "invalid_request"


# -- checkpoints -----------------------------------------------------------------------------------------------------------


_lives = itertools.count()


@contextlib.asynccontextmanager
async def checkpointing(nats: NatsServer) -> AsyncIterator[tuple[Checkpoints, Keyring, Bus]]:
    async with connected(nats) as bus:
        keyring = Keyring(bus, CLUSTER_SECRET.encode())
        audit = Audit(bus, "auth", f"t{next(_lives)}")
        checkpoints = Checkpoints(bus, keyring, audit)
        tasks = [
            asyncio.create_task(audit.run()),
            asyncio.create_task(keyring.run()),
            asyncio.create_task(checkpoints.run()),
        ]
        try:
            # Its own first record is there, too: else it comes as news at any later moment.
            await eventually(lambda: keyring.check() is None and checkpoints.check() is None and audit.sequence)
            yield checkpoints, keyring, bus
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [e for e in ended if isinstance(e, Exception)], ended


async def whole(bus: Bus, keyring: Keyring) -> Report:
    verifier = Verifier(public_keys(list(keyring.jwks()["keys"])))
    for message in await bus.from_sequence(AUDIT, "audit.>"):
        verifier.add(Entry(message.sequence, message.subject, message.at_ms, message.data))
    return verifier.finish()


async def test_checkpoints_of_two_replicas_are_one_chain_also_after_a_restart(nats: NatsServer, bus: Bus) -> None:
    async with checkpointing(nats) as (one, keyring, _), checkpointing(nats) as (two, _, _):
        for n in range(6):
            async with writing(bus, f"w{n}", 5) as audit:
                await eventually(lambda: min(one._heads.upto, two._heads.upto) >= audit.sequence)
                made = await asyncio.gather(one.make(), two.make())
                assert sum(made) == 1
                await eventually(lambda: not one._heads.has_news and not two._heads.has_news)
    async with checkpointing(nats) as (three, keyring, _):
        told = {head.writer for head in three._heads.statement_part()[2]}
        assert told <= {f"auth.t{n}" for n in range(100)}  # nothing is signed twice but what came since
        async with writing(bus, "w9", 5) as audit:
            await three.last(audit.sequence, within=20)
            report = await whole(bus, keyring)

    assert report.problems == []
    assert (report.checkpoints, report.checked) == (7, 7)
    assert report.checkpoint_upto == report.last - 1


async def test_a_trail_that_lost_its_end_is_found_and_the_trail_says_so_for_ever(nats: NatsServer, bus: Bus) -> None:
    """With the checkpoints there: what is left fits together, and yet was longer."""
    async with checkpointing(nats) as (one, _, _), writing(bus, "w1", 5) as audit:
        await one.last(audit.sequence, within=20)
        audit.record("client.create", "allowed", target="to be forgotten")
        await eventually(lambda: audit.sequence > 8)
        await one.last(audit.sequence, within=20)
        found = await bus.from_sequence(AUDIT, "audit.>")
    await bus.api(f"STREAM.DELETE.{AUDIT}")
    await create_missing(bus)
    for message in found[:-2]:
        await bus.append(message.subject, message.data)
    async with running_auth(nats) as auth:
        trail, entries, end = await page(auth)
        verifier = Verifier(public_keys(trail.keys), trail.after)
        for entry in entries:
            verifier.add(entry)
        problems = verifier.finish(end.upto, trail.kept).problems
        assert ("cut off", CHECKPOINTS, 2) in [(p.kind, p.writer, p.n) for p in problems]
    async with checkpointing(nats) as (two, keyring, _):
        await eventually(lambda: two._heads.has_news)
        assert await two.make()
        await eventually(lambda: _has(bus, CUT, "failed"))
        assert await eventually(lambda: two._heads.has_news)
        assert await two.make()
        report = await whole(bus, keyring)

    assert [problem.kind for problem in report.problems] == ["cut off"]


async def test_a_foreign_checkpoint_is_not_believed(nats: NatsServer, bus: Bus) -> None:
    async with checkpointing(nats) as (one, keyring, own), writing(bus, "w1", 3) as audit:
        await one.last(audit.sequence, within=20)
        newest = await bus.last(AUDIT, SUBJECT)
        assert newest
        forged = decode_audit(newest.data)
        await bus.append(
            SUBJECT, encode(forged).replace(b'"n":1', b'"n":2'), headers={EXPECTED_SEQUENCE: str(newest.sequence)}
        )
        audit.record("model.pull", "allowed", target="more")
        await eventually(lambda: audit._idle.is_set())
        await one.last(audit.sequence, within=20)
        await eventually(lambda: not one._heads.has_news)
        report = await whole(bus, keyring)

    assert {(problem.kind, problem.writer, problem.sequence) for problem in report.problems} == {
        ("altered", CHECKPOINTS, newest.sequence + 1)
    }
    assert report.checkpoints == 3


async def test_a_statement_that_nobody_signed_hides_nothing_from_the_next_checkpoint(
    nats: NatsServer, bus: Bus
) -> None:
    """It says that everything up to far ahead has been signed."""
    key = ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True)
    async with checkpointing(nats) as (one, keyring, _), writing(bus, "w1", 3) as audit:
        statement = Statement(n=1, at_ms=1, upto=1_000_000)
        await bus.append(SUBJECT, encode(checkpoint_record(statement, 0, sign(statement, key))))
        audit.record("model.pull", "allowed", target="more")
        await eventually(lambda: audit._idle.is_set())
        await one.last(audit.sequence, within=20)
        found = await bus.last(AUDIT, SUBJECT)
        assert found
        made = open_statement(decode_audit(found.data).statement, keyring.public)

    assert made.checked
    assert made.statement is not None
    assert {head.writer: head.sequence for head in made.statement.heads}["gateway.w1"] == audit.sequence


async def test_checkpoints_are_made_every_minute_while_there_is_something_new(
    nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "EVERY_S", 0.1)
    monkeypatch.setattr(checkpoints_module, "LOOK_S", 0.02)
    async with checkpointing(nats) as (one, keyring, _):
        for writer in ("w1", "w2"):
            async with writing(bus, writer, 3) as audit:
                await eventually(lambda audit=audit: one._heads.since >= audit.sequence)
        await eventually(lambda: not one._heads.has_news)
        assert not await one.make(), "nothing is new"
        report = await whole(bus, keyring)
    assert report.problems == []


async def test_a_replica_that_drains_leaves_a_signed_goodbye(nats: NatsServer, bus: Bus) -> None:
    from services.auth.main import start
    from services.auth.settings import AuthSettings

    settings = AuthSettings(cluster_secret=CLUSTER_SECRET)  # type: ignore[arg-type]
    async with connected(nats) as own, start(settings, own) as running:
        tasks = [asyncio.create_task(task) for task in running.tasks.values()]
        await eventually(lambda: running.checks["checkpoints"]() is None and running.checks["signing"]() is None)
        assert running.drain
        await running.drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    found = await bus.from_sequence(AUDIT, "audit.>")

    assert decode_audit(found[-2].data).action == STOP
    assert found[-1].subject == SUBJECT
    last = open_statement(decode_audit(found[-1].data).statement, {}).statement
    assert last
    assert last.upto == found[-2].sequence
