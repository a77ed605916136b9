"""Administration of clients and keys, over real replicas."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from joserfc.jwk import ECKey, RSAKey

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import DEFAULT_SCOPES, decode_client
from libs.common.contracts.codec import encode
from tests.auth.running import OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

ADMIN = "second-admin"
PUBLIC = dict(ECKey.generate_key("P-256").as_dict(private=False))
PRIVATE = dict(ECKey.generate_key("P-256").as_dict(private=True))
RSA = dict(RSAKey.generate_key(2048).as_dict(private=False))
WEAK_RSA = {**RSA, "n": "AQAB" * 42}


@pytest.fixture
async def auth(nats: NatsServer) -> AsyncIterator[Auth]:
    async with running_auth(nats) as running:
        yield running


async def call(auth: Auth, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
    answer = await auth.http.request(method, path, json=body, headers=await auth.admin())
    assert answer.status_code == status, answer.text
    return answer.json()


async def works(auth: Auth, client: str, secret: str) -> bool:
    """Whether it proves who it is, whatever it may."""
    return (await auth.token(client, secret)).status_code != 401


async def test_an_update_changes_what_it_names_and_nothing_else(auth: Auth) -> None:
    await auth.create_client("alice", policy={"weight": 2, "limits": {"queued": 5, "open_streams": 3}})
    before = await call(auth, "GET", "/clients/alice")
    expires_at = int(time.time()) + 3600
    after = await call(
        auth, "PATCH", "/clients/alice",
        {"policy": {"limits": {"queued": 7}, "models": {"allow": ["llama3*"], "deny": ["hf.co/*"]}}, "expires_at": expires_at},
    )  # fmt: skip
    wanted = {**before, "expires_at": expires_at}
    wanted["policy"] = {**before["policy"], "models": {"allow": ["llama3*"], "deny": ["hf.co/*"]}}
    wanted["policy"]["limits"] = {**before["policy"]["limits"], "queued": 7}
    del wanted["keys"]
    assert after == wanted
    assert await call(auth, "PATCH", "/clients/alice", {}) == after
    reset = await call(
        auth, "PATCH", "/clients/alice", {"policy": {"limits": None, "weight": None}, "expires_at": None}
    )
    assert (reset["policy"]["limits"]["open_streams"], reset["policy"]["weight"], reset["expires_at"]) == (0, 1.0, None)
    assert reset["policy"]["models"]["allow"] == ["llama3*"]
    assert (await call(auth, "PATCH", "/clients/alice", {"scopes": None}))["scopes"] == list(DEFAULT_SCOPES)
    await call(auth, "PATCH", "/clients/nobody", {}, status=404)


MISTAKES: list[tuple[Any, str]] = [
    ({"scopes": []}, "$.scopes"),
    ({"scopes": ["root"]}, "$.scopes[0]"),
    ({"name": "bob"}, "$.name"),
    ({"disabled": True}, "$.disabled"),
    ({"not_before": 0}, "$.not_before"),
    ({"verifiers": ["0" * 64]}, "$.verifiers"),
    ({"client_secret": "chosen"}, "$.client_secret"),
    ({"expires_at": 1}, "$.expires_at"),
    ({"expires_at": "tomorrow"}, "$.expires_at"),
    ({"policy": {"models": {"allow": [""]}}}, "$.policy.models.allow[0]"),
    ({"policy": {"models": {"permit": []}}}, "$.policy.models.permit"),
    ({"policy": {"limits": {"queued": -1}}}, "$.policy.limits.queued"),
    ({"policy": {"limits": {"queued": 1.5}}}, "$.policy.limits.queued"),
    ({"policy": {"limits": {"per_second": 1}}}, "$.policy.limits.per_second"),
    ({"policy": {"weight": 0}}, "$.policy.weight"),
    ({"policy": {"result_ttl_s": 31 * 86400}}, "$.policy.result_ttl_s"),
    ({"policy": {"deadline_s": 8 * 86400}}, "$.policy.deadline_s"),
    ({"policy": 1}, "$.policy"),
    ({"nats": "SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4"}, "$.nats"),  # a seed
    ({"jwks": {"keys": [PRIVATE]}}, "$.jwks.keys[0].d"),
    ({"jwks": {"keys": [PUBLIC, {"kty": "oct", "k": "c2VjcmV0"}]}}, "$.jwks.keys[1].k"),
    ({"jwks": {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "x"}]}}, "$.jwks.keys[0].kty"),
    ({"jwks": {"keys": [{**PUBLIC, "crv": "P-521"}]}}, "$.jwks.keys[0].crv"),
    ({"jwks": {"keys": [{**PUBLIC, "alg": "RS256"}]}}, "$.jwks.keys[0].alg"),
    ({"jwks": {"keys": [{**PUBLIC, "alg": 7}]}}, "$.jwks.keys[0].alg"),
    ({"jwks": {"keys": [{**PUBLIC, "use": "enc"}]}}, "$.jwks.keys[0].use"),
    ({"jwks": {"keys": [{**PUBLIC, "kid": 7}]}}, "$.jwks.keys[0].kid"),
    ({"jwks": {"keys": [{**PUBLIC, "x": "AAAA"}]}}, "$.jwks.keys[0]"),
    ({"jwks": {"keys": [{"kty": "EC", "crv": "P-256", "x": PUBLIC["x"]}]}}, "$.jwks.keys[0].y"),
    ({"jwks": {"keys": [WEAK_RSA]}}, "$.jwks.keys[0].n"),
    ({"jwks": {"keys": [PUBLIC, PUBLIC]}}, "$.jwks.keys[1].kid"),
    ({"jwks": {"keys": [{**PUBLIC, "kid": str(n)} for n in range(9)]}}, "$.jwks.keys"),
    ({"jwks": [PUBLIC]}, "$.jwks"),
    ([], "$"),
]


async def test_what_is_wrong_with_a_change_is_said_with_the_fields_path(auth: Auth) -> None:
    await auth.create_client("alice")
    before, admin = await call(auth, "GET", "/clients/alice"), await auth.admin()
    for body, path in MISTAKES:
        for method, where in (("PATCH", "/clients/alice"), ("POST", "/clients")):
            if method == "POST" and isinstance(body, dict):
                body = {"name": "bob"} | body
                if body["name"] == "bob" and path == "$.name":
                    continue
            answer = await auth.http.request(method, where, json=body, headers=admin)
            said = answer.json()
            assert (answer.status_code, said.get("path"), said["code"]) == (400, path, "invalid_request"), (body, said)
            assert "SUAIB" not in answer.text
    for raw in (b"", b"{", b"\xff", b'{"policy":' * 900 + b"1" + b"}" * 900):
        answer = await auth.http.patch("/clients/alice", content=raw, headers=admin)
        assert answer.status_code == 400, raw[:20]
    for path, body, at in (
        ("rotate", {"grace_s": -1}, "$.grace_s"),
        ("rotate", {"grace_s": 10**9}, "$.grace_s"),
        ("rotate", {"now": True, "grace_s": 5}, "$.grace_s"),
        ("rotate", {"secret": "chosen"}, "$.secret"),
        ("keys", {"scopes": ["admin:clients"]}, "$.scopes[0]"),
        ("keys", {"scopes": ["jobs:read", "admin:cluster"]}, "$.scopes[1]"),
        ("keys", {"scopes": []}, "$.scopes"),
        ("keys", {"expires_at": 5}, "$.expires_at"),
        ("keys", {"limits": {"queued": "many"}}, "$.limits.queued"),
        ("keys", {"models": {"allow": ["a b"]}}, "$.models.allow[0]"),
        ("keys", {"api_key": "chosen"}, "$.api_key"),
    ):
        said = await call(auth, "POST", f"/clients/alice/{path}", body, status=400)
        assert said["path"] == at, (body, said)
    assert await call(auth, "GET", "/clients/alice") == before


async def test_public_keys_are_kept_without_what_does_not_belong_there(auth: Auth) -> None:
    keys = [{**PUBLIC, "kid": "mine", "x5c": ["…"], "note": "x"}, RSA]
    made = await call(auth, "POST", "/clients", {"name": "alice", "jwks": {"keys": keys}}, status=201)
    assert "client_secret" not in made, "it proves itself by its keys"
    stored = made["jwks"]["keys"]
    assert stored[0] == {"kid": "mine", **{name: PUBLIC[name] for name in ("kty", "crv", "x", "y")}}
    assert stored[1] == {"kid": RSAKey.import_key(RSA).thumbprint(), **{name: RSA[name] for name in ("kty", "n", "e")}}
    assert (await call(auth, "PATCH", "/clients/alice", {"policy": {"weight": 3}}))["jwks"]["keys"] == stored


async def test_a_disabled_client_gets_nothing_until_it_is_enabled_and_its_tokens_ended_for_good(auth: Auth) -> None:
    secret = await auth.create_client(ADMIN, scopes=["admin:clients"])
    headers = {"Authorization": f"Bearer {await auth.access_token(ADMIN, secret, 'admin:clients')}"}
    assert (await auth.http.get("/clients", headers=headers)).status_code == 200
    assert (await call(auth, "POST", f"/clients/{ADMIN}/disable"))["disabled"]
    assert (await auth.http.get("/clients", headers=headers)).status_code == 401
    assert not await works(auth, ADMIN, secret)
    assert not (await call(auth, "POST", f"/clients/{ADMIN}/enable"))["disabled"]
    assert (await auth.http.get("/clients", headers=headers)).status_code == 401
    headers = {"Authorization": f"Bearer {await auth.access_token(ADMIN, secret, 'admin:clients')}"}
    assert (await auth.http.get("/clients", headers=headers)).status_code == 200, "a new token counts at once"


async def test_a_client_that_expired_gets_nothing(auth: Auth, bus: Bus) -> None:
    """Aged in the record: a time near enough to be waited for may have passed before it is stored."""
    secret = await auth.create_client("alice", expires_at=int(time.time()) + 3600)
    assert await works(auth, "alice", secret)
    bucket = Bucket(bus, "clients")
    value, revision = await bucket.get("client.alice")
    assert value is not None
    aged = msgspec.structs.replace(decode_client(value), expires_at=int(time.time()))
    await bucket.put("client.alice", encode(aged), expected=revision)
    await eventually(lambda: _not(works(auth, "alice", secret)))


async def _not(value: Any) -> bool:
    return not await value


async def test_rotation_gives_both_secrets_their_time(auth: Auth) -> None:
    first = await auth.create_client("alice")
    made = await call(auth, "POST", "/clients/alice/rotate")
    assert len(made["client_secret"]) == 43
    assert [86000 < until - time.time() <= 86400 for until in made["replaced_until"]] == [True]
    assert await works(auth, "alice", first)
    assert await works(auth, "alice", made["client_secret"])

    third = (await call(auth, "POST", "/clients/alice/rotate", {"grace_s": 2}))["client_secret"]
    assert await works(auth, "alice", third)
    for old in (first, made["client_secret"]):
        await eventually(lambda old=old: _not(works(auth, "alice", old)))
    assert await works(auth, "alice", third)


async def test_a_hard_rotation_ends_old_secrets_and_old_tokens_at_once(auth: Auth) -> None:
    first = await auth.create_client(ADMIN, scopes=["admin:clients"])
    second = (await call(auth, "POST", f"/clients/{ADMIN}/rotate", {"grace_s": 1000}))["client_secret"]
    old = {"Authorization": f"Bearer {await auth.access_token(ADMIN, second, 'admin:clients')}"}
    made = await call(auth, "POST", f"/clients/{ADMIN}/rotate", {"now": True})
    assert made["replaced_until"] == []
    assert not await works(auth, ADMIN, first)
    assert not await works(auth, ADMIN, second)
    assert (await auth.http.get("/clients", headers=old)).status_code == 401, "even one of this very second"
    new = {"Authorization": f"Bearer {await auth.access_token(ADMIN, made['client_secret'], 'admin:clients')}"}
    assert (await auth.http.get("/clients", headers=new)).status_code == 200


async def test_a_client_with_public_keys_can_do_without_a_secret(auth: Auth) -> None:
    secret = await auth.create_client("alice")
    said = await call(auth, "DELETE", "/clients/alice/secret", status=400)
    assert said["code"] == "invalid_request"
    await call(auth, "PATCH", "/clients/alice", {"jwks": {"keys": [PUBLIC]}})
    assert await works(auth, "alice", secret), "until it is said otherwise, so that there is no gap"
    await call(auth, "DELETE", "/clients/alice/secret")
    assert not await works(auth, "alice", secret)


async def test_a_deleted_client_takes_its_keys_along_and_its_name_stays_taken(auth: Auth, bus: Bus) -> None:
    """Its jobs live under its name: whoever took it would own them."""
    secret = await auth.create_client("alice")
    key = await auth.create_key("alice")
    await auth.create_client("bob")
    await auth.create_key("bob")
    deleted = await call(auth, "DELETE", "/clients/alice")
    assert (deleted["client_id"], len(deleted["keys"])) == ("alice", 1)
    assert not await works(auth, "alice", secret)
    introspected = await auth.http.post("/oauth/introspect", data={"token": key}, auth=(OPERATOR, OPERATOR_SECRET))
    assert introspected.json() == {"active": False}
    assert [kept["client_id"] for kept in (await call(auth, "GET", "/keys"))["keys"]] == ["bob"]
    await call(auth, "GET", "/clients/alice", status=404)
    await call(auth, "DELETE", "/clients/alice", status=404)
    said = await call(auth, "POST", "/clients", {"name": "alice"}, status=409)
    assert (said["code"], said["path"]) == ("already_exists", "$.name")
    assert "free again on 20" in said["detail"]
    marker = await bus.last("KV_clients", "$KV.clients.client.alice")
    assert marker
    assert int(marker.headers["Nats-TTL"]) > 37 * 86400


async def test_a_key_is_bounded_listed_and_revoked(auth: Auth) -> None:
    await auth.create_client("alice")
    asked = {
        "name": "laptop", "scopes": ["jobs:read"], "models": {"allow": ["llama3*"]}, "limits": {"queued": 2},
        "expires_at": int(time.time()) + 100,
    }  # fmt: skip
    made = await call(auth, "POST", "/clients/alice/keys", asked, status=201)
    key = made.pop("api_key")
    assert made["models"] == {"allow": ["llama3*"], "deny": []}
    assert made["limits"]["queued"] == 2
    assert {name: made[name] for name in ("name", "scopes", "expires_at", "client_id")} == {
        "name": "laptop", "scopes": ["jobs:read"], "expires_at": asked["expires_at"], "client_id": "alice",
    }  # fmt: skip
    await auth.create_key("alice")
    listed = (await call(auth, "GET", "/clients/alice/keys"))["keys"]
    assert made in listed
    assert len(listed) == 2
    assert await call(auth, "GET", f"/keys/{made['key_id']}") == made
    assert key.split("_")[2] not in str(listed)
    assert (await call(auth, "DELETE", f"/keys/{made['key_id']}"))["revoked"]
    await call(auth, "DELETE", f"/keys/{made['key_id']}", status=404)
    await call(auth, "GET", f"/keys/{made['key_id']}", status=404)
    assert len((await call(auth, "GET", "/keys"))["keys"]) == 1


REMOVALS: dict[str, tuple[str, str, Any]] = {
    "disable": ("POST", "/disable", None),
    "take the scope": ("PATCH", "", {"scopes": ["jobs:read"]}),
    "let it expire": ("PATCH", "", {"expires_at": 2**33}),
    "delete": ("DELETE", "", None),
}


@pytest.mark.parametrize("name", REMOVALS)
async def test_the_last_administrator_cannot_be_taken_away(nats: NatsServer, name: str) -> None:
    """Not even by two that take each other away at the same time."""
    method, path, body = REMOVALS[name]
    async with (
        running_auth(nats, issuer="http://auth.test") as one,
        running_auth(nats, issuer="http://auth.test") as two,
    ):
        secret = await one.create_client(ADMIN, scopes=["admin:clients", "jobs:read"])
        await eventually(lambda: works(two, ADMIN, secret))
        await one.create_client("bystander", scopes=["jobs:read"])
        third_secret = await one.create_client("third", scopes=["admin:clients"])
        admin = await one.admin()
        # From here on the operator of the settings is out of the way, so that the two others are the last.
        out = await one.http.post(f"/clients/{OPERATOR}/disable", headers=admin)
        assert out.status_code == 200
        await eventually(lambda: works(two, "third", third_secret))
        by_one = {"Authorization": f"Bearer {await one.access_token(ADMIN, secret, 'admin:clients')}"}
        by_two = {"Authorization": f"Bearer {await two.access_token('third', third_secret, 'admin:clients')}"}
        answers = await asyncio.gather(
            one.http.request(method, f"/clients/third{path}", json=body, headers=by_one),
            two.http.request(method, f"/clients/{ADMIN}{path}", json=body, headers=by_two),
        )
        assert sorted(answer.status_code for answer in answers) in ([200, 409], [200, 401], [200, 403]), answers
        for answer in answers:
            if answer.status_code == 409:
                assert answer.json()["code"] == "last_administrator"
        tokens = [await one.token(*who, "admin:clients") for who in ((ADMIN, secret), ("third", third_secret))]
        left = [token for token in tokens if token.status_code == 200]
        assert len(left) == (2 if name == "let it expire" else 1)


async def test_the_operator_of_the_settings_is_theirs(auth: Auth) -> None:
    await auth.create_client(ADMIN, scopes=["admin:clients"])
    for method, path in (("POST", "/rotate"), ("DELETE", "/secret"), ("DELETE", "")):
        said = await call(auth, method, f"/clients/{OPERATOR}{path}", status=409)
        assert (said["code"], "ARRIERO_AUTH_BOOTSTRAP_CLIENT" in said["detail"]) == ("wrong_state", True)


async def test_changes_of_two_replicas_at_once_are_all_there_in_the_end(nats: NatsServer) -> None:
    async with (
        running_auth(nats, issuer="http://auth.test") as one,
        running_auth(nats, issuer="http://auth.test") as two,
    ):
        await one.create_client("alice")
        admin = await one.admin()
        patches = [{"policy": {"limits": {name: 7}}} for name in ("queued", "open_streams", "tokens_per_day")]
        patches += [{"policy": {"weight": 3}}, {"policy": {"max_running": 4}}, {"scopes": ["jobs:read"]}]
        answers = await asyncio.gather(
            *(
                (one, two)[n % 2].http.patch("/clients/alice", json=patch, headers=admin)
                for n, patch in enumerate(patches)
            )
        )
        assert [answer.status_code for answer in answers] == [200] * len(patches)
        found = await call(one, "GET", "/clients/alice")
        policy = found["policy"]
        limits = policy["limits"]
        assert (limits["queued"], limits["open_streams"], limits["tokens_per_day"]) == (7, 7, 7)
        assert (policy["weight"], policy["max_running"], found["scopes"]) == (3.0, 4, ["jobs:read"])
