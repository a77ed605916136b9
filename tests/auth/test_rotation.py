"""Signing keys: the state machine against arbitrary histories, and real replicas under constant verification."""

import asyncio
import base64
import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Conflict, Unconfirmed
from libs.common.contracts.codec import encode
from libs.common.contracts.faults import Code, Failed
from libs.common.contracts.revocations import Revocation, signing_key_record
from services.auth import keyring as keyring_module
from services.auth.keyring import RECORD, Keyring
from services.auth.rotation import RETIRE_S, Ring, Schedule, SigningKey, decode_ring, ends_at, step
from services.gateway.credentials import Credentials
from tests.auth.running import CLUSTER_SECRET, OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.gateway.test_credentials import bearer
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

SKEW_S = 15  # clocks of replicas apart: each up to this much ahead or behind
PLAN = Schedule(life_s=3600, lead_s=330)
START = 1_800_000_000


def spare(n: int) -> SigningKey:
    return SigningKey(kid=f"k{n}", state="next", public={}, sealed="", created_at="")


events = st.lists(
    st.tuples(
        st.sampled_from(["look", "look", "look", "look", "ask", "withdraw active", "withdraw next", "withdraw all"]),
        st.integers(0, 900),  # seconds later
        st.integers(-SKEW_S, SKEW_S),  # by the clock of the replica that looks
    ),
    max_size=60,
)


@given(events)
@settings(max_examples=400, deadline=None)
def test_a_ring_keeps_its_promises_whatever_happens(history: list[tuple[str, int, int]]) -> None:
    ring: Ring | None = None
    withdrawn: set[str] = set()
    published: dict[str, float] = {}
    signed_until: dict[str, float] = {}
    now = float(START)

    for made, (event, later, skew) in enumerate([("look", 0, 0), *history]):
        now += later
        before = ring or Ring(keys=())
        if event == "ask":
            ring = msgspec.structs.replace(before, asked=True)
        for state in ("active", "next"):
            if event == f"withdraw {state}" and (key := before.of(state)):
                withdrawn.add(key.kid)
        if event == "withdraw all":
            withdrawn |= {key.kid for key in before.keys}
        emergency = before.of("active") is None or before.of("active").kid in withdrawn  # type: ignore[union-attr]
        signer = before.of("active")
        if signer is not None:
            signed_until[signer.kid] = now
        taken = step(ring, now + skew, PLAN, spare(made), withdrawn)
        if taken is not None:
            assert taken.reasons
            ring = taken.ring
            again = step(ring, now + skew, PLAN, spare(-1), withdrawn)
            assert again is None or ring.asked, "one look does what is due"
        assert ring is not None
        kids = [key.kid for key in ring.keys]
        for kid in kids:
            published.setdefault(kid, now)

        assert [key.state for key in ring.keys].count("active") == 1
        assert [key.state for key in ring.keys].count("next") <= 1
        assert len(set(kids)) == len(kids)
        assert not withdrawn & {*kids, *(key.kid for key in ring.past)}
        assert not set(kids) & {key.kid for key in ring.past}
        gone = set(published) - set(kids) - withdrawn
        assert gone == {key.kid for key in ring.past}, "what they signed for longer can be verified"
        active = ring.of("active")
        assert active is not None
        if signer is None or active.kid != signer.kid:
            assert emergency or now - published[active.kid] >= PLAN.lead_s - 2 * SKEW_S, "published before it signs"
            assert not ring.asked
        for kid, until in signed_until.items():
            if kid not in withdrawn and now - until < RETIRE_S - 2 * SKEW_S:
                assert kid in kids, "its tokens still count"
        assert not any(key.state == "retiring" and now + skew >= key.since + RETIRE_S for key in ring.keys)


def test_by_itself_a_key_is_replaced_when_its_time_has_come() -> None:
    ring, turns = None, []
    for n in range(0, 3 * 3600 + 400, 10):
        taken = step(ring, START + n, PLAN, spare(n))
        if taken is not None:
            ring = taken.ring
            turns.append((n, [(key.kid, key.state) for key in ring.keys]))
    assert turns[:5] == [
        (0, [("k0", "active")]),
        (3270, [("k0", "active"), ("k3270", "next")]),
        (3600, [("k0", "retiring"), ("k3270", "active")]),
        (3960, [("k3270", "active")]),
        (6870, [("k3270", "active"), ("k6870", "next")]),
    ]


def test_a_key_of_an_older_version_is_replaced_in_order() -> None:
    """Its record does not say since when it signs."""
    old = Ring(keys=(SigningKey(kid="old", state="active", public={}, sealed="", created_at="2026-01-01T00:00:00"),))
    first = step(old, START, PLAN, spare(1))
    assert first
    assert [(key.kid, key.state) for key in first.ring.keys] == [("old", "active"), ("k1", "next")]
    assert step(first.ring, START + 329, PLAN, spare(2)) is None
    second = step(first.ring, START + 330, PLAN, spare(2))
    assert second
    assert [(key.kid, key.state) for key in second.ring.keys] == [("old", "retiring"), ("k1", "active")]
    assert ends_at(second.ring.keys[0], PLAN) == START + 330 + RETIRE_S


# -- real replicas ---------------------------------------------------------------------------------------------------


def kid_of(token: str) -> str:
    header = token.split(".")[0]
    kid: str = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"]
    return kid


async def rotate(auth: Auth, **body: Any) -> Any:
    answer = await auth.http.post("/signing-keys/rotate", json=body, headers=await auth.admin())
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.e2e
async def test_under_constant_verification_a_rotation_refuses_nobody_and_a_withdrawal_everybody(
    nats: NatsServer, bus: Bus
) -> None:
    plan = {"issuer": "http://auth.test", "signing_key_lead": 3}
    async with running_auth(nats, **plan) as one, running_auth(nats, **plan) as two:
        gateway = Credentials(
            bus, issuer="http://auth.test", jwks_url=two.url + "/.well-known/jwks.json", cluster_secret=CLUSTER_SECRET.encode()
        )  # fmt: skip
        following = asyncio.create_task(gateway.run())
        tokens: list[str] = []
        refusals: list[str] = []
        verified = 0
        stop = asyncio.Event()

        async def hammer(auth: Auth) -> None:
            nonlocal verified
            while not stop.is_set():
                tokens.append(await auth.access_token(OPERATOR, OPERATOR_SECRET))
                for token in (tokens[-1], tokens[0], tokens[len(tokens) // 2]):
                    try:
                        await gateway.principal(bearer(token))
                        verified += 1
                    except Failed as error:
                        refusals.append(f"{kid_of(token)}: {error.fault.message}")
                await asyncio.sleep(0.01)

        await eventually(lambda: all(check() is None for check in gateway.checks().values()))
        hammering = [asyncio.create_task(hammer(auth)) for auth in (one, two)]
        await eventually(lambda: len(tokens) > 20)
        (first,) = {kid_of(token) for token in tokens}
        answer = await rotate(one)
        assert answer["rotation_asked"]
        assert {key["state"] for key in answer["keys"]} == {"active", "next"}
        (following_kid,) = (key["kid"] for key in answer["keys"] if key["state"] == "next")
        await eventually(lambda: [kid_of(token) for token in tokens[-20:]].count(following_kid) == 20, within=60)
        stop.set()
        await asyncio.gather(*hammering)
        assert refusals == []
        assert verified > 100
        assert {kid_of(token) for token in tokens} == {first, following_kid}
        listed = (await two.http.get("/signing-keys", headers=await two.admin())).json()
        assert {key["kid"]: key["state"] for key in listed["keys"]} == {first: "retiring", following_kid: "active"}
        assert not listed["rotation_asked"]

        before = [tokens[0], tokens[-1]]
        withdrawn = await rotate(two, now=True)
        assert set(withdrawn["withdrawn"]) == {first, following_kid}
        (newest,) = (key["kid"] for key in withdrawn["keys"])

        async def all_refused() -> bool:
            for token in before:
                try:
                    await gateway.principal(bearer(token))
                except Failed as error:
                    if error.fault.code is Code.UNAUTHENTICATED:
                        continue
                return False
            return True

        await eventually(all_refused)

        async def new_ones_count() -> bool:
            made = [await auth.access_token(OPERATOR, OPERATOR_SECRET) for auth in (one, two)]
            assert {kid_of(token) for token in made} <= {newest, *withdrawn["withdrawn"]}
            try:
                for token in made:
                    await gateway.principal(bearer(token))
            except Failed:
                return False
            return True

        await eventually(new_ones_count)
        assert {kid_of(await auth.access_token(OPERATOR, OPERATOR_SECRET)) for auth in (one, two)} == {newest}
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_old_keys_go_and_their_successors_come_by_themselves(nats: NatsServer, bus: Bus) -> None:
    """Aged in the record, because nobody waits for six minutes."""
    async with running_auth(nats, signing_key_lead=1) as auth:
        bucket = Bucket(bus, "signing")
        kids: set[str] = set()
        for _ in range(2):
            value, revision = await bucket.get(RECORD)
            assert value is not None
            ring = decode_ring(value)
            kids |= {key.kid for key in ring.keys}
            aged = Ring(keys=tuple(msgspec.structs.replace(key, since=key.since - 31 * 86400) for key in ring.keys))
            await bucket.put(RECORD, encode(aged), expected=revision)

            async def replaced(kids: frozenset[str] = frozenset(kids)) -> bool:
                token = await auth.access_token(OPERATOR, OPERATOR_SECRET)
                return kid_of(token) not in kids

            await eventually(replaced)
        published = (await auth.http.get("/.well-known/jwks.json")).json()["keys"]
        assert len(published) == 2, "the first of three has gone"
        value, _ = await bucket.get(RECORD)
        assert value is not None
        assert len(decode_ring(value).past) == 1


async def test_a_withdrawal_that_was_cut_short_is_carried_through(nats: NatsServer, bus: Bus) -> None:
    """The note that the key is withdrawn is written, and then everybody died."""
    async with running_auth(nats) as auth:
        old = kid_of(await auth.access_token(OPERATOR, OPERATOR_SECRET))
    await Bucket(bus, "revoked").put(signing_key_record(old), encode(Revocation(at=int(time.time()) - 4000)))
    async with running_auth(nats) as auth:

        async def gone() -> bool:
            return kid_of(await auth.access_token(OPERATOR, OPERATOR_SECRET)) != old

        await eventually(gone)
        kids = [key["kid"] for key in (await auth.http.get("/.well-known/jwks.json")).json()["keys"]]
        assert old not in kids


async def test_a_ring_without_an_active_key_gets_one(nats: NatsServer, bus: Bus) -> None:
    async with running_auth(nats) as auth:
        value, _ = await Bucket(bus, "signing").get(RECORD)
        assert value is not None
        empty = await Bucket(bus, "signing").put(RECORD, encode(Ring(keys=())))

        async def mended() -> bool:
            return (await Bucket(bus, "signing").get(RECORD))[1] > empty

        await eventually(mended)
        await auth.ready()
        await auth.access_token(OPERATOR, OPERATOR_SECRET)


async def test_a_ring_that_cannot_be_read_is_never_written_over(
    nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, turns = Keyring._turn, 0

    async def counted(self: Keyring) -> None:
        nonlocal turns
        try:
            await turn(self)
        finally:
            turns += 1

    monkeypatch.setattr(Keyring, "_turn", counted)
    monkeypatch.setattr(keyring_module, "LOOK_AGAIN_S", 0.02)
    async with running_auth(nats) as auth:
        admin = await auth.admin()
        bucket = Bucket(bus, "signing")
        revision = await bucket.put(RECORD, b"{")
        await eventually(lambda: "signing" in auth.problems())
        assert (await auth.http.post("/signing-keys/rotate", json={}, headers=admin)).status_code == 503
        before = turns
        await eventually(lambda: turns >= before + 3)
        assert await bucket.get(RECORD) == (b"{", revision)


async def test_of_two_that_rotate_at_once_both_are_answered_and_one_successor_comes(nats: NatsServer) -> None:
    async with (
        running_auth(nats, issuer="http://auth.test") as one,
        running_auth(nats, issuer="http://auth.test") as two,
    ):
        answers = await asyncio.gather(*(rotate(auth) for auth in (one, two, one, two)))
        assert len({key["kid"] for answer in answers for key in answer["keys"] if key["state"] == "next"}) == 1
        answer = await one.http.post("/signing-keys/rotate", json={"soon": True}, headers=await one.admin())
        assert (answer.status_code, answer.json()["path"]) == (400, "$.soon")
        assert (await one.http.get("/signing-keys")).status_code == 401


async def test_a_write_that_fails_is_tried_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    original, failures = Bucket.put, [Unconfirmed("no ack"), Conflict("another was first")]

    async def put(self: Bucket, key: str, value: bytes, **more: Any) -> int:
        if failures:
            raise failures.pop(0)
        return await original(self, key, value, **more)

    monkeypatch.setattr(Bucket, "put", put)
    replica = Keyring(bus, b"s" * 32, PLAN)
    task = asyncio.create_task(replica.run())
    await eventually(lambda: replica.check() is None)
    failures.append(Conflict("another was first"))
    assert (await replica.rotate()).asked
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
