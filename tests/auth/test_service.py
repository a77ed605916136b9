"""The auth service over a real nats-server and a real socket."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.provision import create_missing
from libs.common.contracts.clients import AUDIENCE, DEFAULT_SCOPES, Client, Limits, decode_client
from libs.common.contracts.codec import encode
from libs.common.credentials import api_keys
from libs.common.sealing import CannotOpen, Seal
from services.auth.keyring import RECORD
from services.auth.rotation import Ring, SigningKey, decode_ring
from tests.auth.running import CLUSTER_SECRET, OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer, connected, nats_server
from tests.support.waiting import eventually

GRANT = {"grant_type": "client_credentials"}


@pytest.fixture
async def auth(nats: NatsServer) -> AsyncIterator[Auth]:
    async with running_auth(nats) as running:
        yield running


def kid_of(token: str) -> str:
    header = token.split(".")[0]
    kid: str = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["kid"]
    return kid


async def test_a_new_client_gets_its_token_at_once_and_the_published_key_verifies_it(auth: Auth) -> None:
    """Read your write: the answer 201 comes after this replica knows the client itself."""
    for n in range(20):
        secret = await auth.create_client(f"client-{n}")
        assert (await auth.token(f"client-{n}", secret)).status_code == 200
    answer = await auth.http.post("/oauth/token", data={**GRANT, "client_id": "client-0", "client_secret": "wrong"})
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    published = await auth.http.get("/.well-known/jwks.json")
    assert published.headers["cache-control"] == "public, max-age=300"
    assert all("d" not in key for key in published.json()["keys"])
    token = jwt.decode(
        await auth.access_token("client-19", secret), KeySet.import_key_set(published.json()), algorithms=["ES256"]
    )
    assert (token.claims["sub"], token.claims["iss"]) == ("client-19", auth.issuer)


async def test_metadata_names_the_endpoints(auth: Auth) -> None:
    """RFC 8414 §2 and §3.2."""
    answer = await auth.http.get("/.well-known/oauth-authorization-server")
    body = answer.json()
    assert (answer.status_code, answer.headers["content-type"], body["issuer"]) == (
        200,
        "application/json",
        auth.issuer,
    )
    token = await auth.http.post(body["token_endpoint"], data=GRANT, auth=(OPERATOR, OPERATOR_SECRET))
    assert token.status_code == 200
    assert (await auth.http.get(body["jwks_uri"])).json()["keys"]


async def test_an_issuer_with_a_path_has_its_metadata_where_rfc_8414_puts_them(nats: NatsServer) -> None:
    """§3.1: the well-known part stands between host and path."""
    async with running_auth(nats, issuer="https://example.org/tenants/one/") as auth:
        answer = await auth.http.get("/.well-known/oauth-authorization-server/tenants/one")
        assert answer.json()["token_endpoint"] == "https://example.org/tenants/one/oauth/token"


async def test_a_client_is_created_shown_and_created_only_once(auth: Auth) -> None:
    admin = await auth.admin()
    made = await auth.http.post(
        "/clients",
        json={
            "name": "alice",
            "scopes": ["jobs:read", "inference", "jobs:read"],
            "policy": {"priority": "batch", "weight": 0.5, "max_running": 2},
        },
        headers=admin,
    )
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    body = made.json()
    secret = body.pop("client_secret")
    assert len(secret) == 43
    assert body.items() >= {"client_id": "alice", "name": "alice", "scopes": ["jobs:read", "inference"]}.items()
    assert body["policy"] == {
        "priority": "batch", "deadline_s": None, "result_ttl_s": None, "weight": 0.5, "max_running": 2,
        "models": {"allow": ["*"], "deny": []},
        "limits": dict.fromkeys(msgspec.structs.asdict(Limits()), 0),
    }  # fmt: skip

    again = await auth.http.post("/clients", json={"name": "alice"}, headers=admin)
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")
    assert again.headers["content-type"] == "application/problem+json"
    assert again.json() == {
        "type": "urn:arriero:error:already_exists",
        "title": "There is one of that name already",
        "status": 409,
        "detail": "There is a client 'alice' already; take another name.",
        "code": "already_exists",
        "retryable": False,
        "path": "$.name",
    }
    assert (await auth.token("alice", secret)).status_code == 200

    key = await auth.create_key("alice")
    parsed = api_keys.parse(key)
    assert parsed
    shown = await auth.http.get("/clients/alice", headers=admin)
    assert [(k["key_id"], k["last4"]) for k in shown.json()["keys"]] == [(parsed.id, parsed.secret[-4:])]
    listed = await auth.http.get("/clients", headers=admin)
    assert [client["client_id"] for client in listed.json()["clients"]] == ["alice", OPERATOR]
    for answer in (shown, listed):
        assert not any(word in answer.text for word in (secret, parsed.secret, "verifier", "secret"))


async def test_what_is_wrong_with_a_new_client_is_said_with_the_fields_path(auth: Auth) -> None:
    admin = await auth.admin()
    bad: list[tuple[Any, str]] = [
        ({}, "$.name"),
        ({"name": 7}, "$.name"),
        ({"name": ""}, "$.name"),
        ({"name": "a.b"}, "$.name"),
        ({"name": "a*"}, "$.name"),
        ({"name": "a b"}, "$.name"),
        ({"name": "ä"}, "$.name"),
        ({"name": "a\n"}, "$.name"),
        ({"name": "a" * 41}, "$.name"),
        ({"name": "gateway"}, "$.name"),
        ({"name": "Admin"}, "$.name"),
        ({"name": "worker-1"}, "$.name"),
        ({"name": "bob", "scopes": ["root"]}, "$.scopes[0]"),
        ({"name": "bob", "scopes": ["inference", "root"]}, "$.scopes[1]"),
        ({"name": "bob", "scopes": []}, "$.scopes"),
        ({"name": "bob", "scopes": "inference"}, "$.scopes"),
        ({"name": "bob", "secret": "mine"}, "$.secret"),
        ({"name": "bob", "policy": {"priority": "highest"}}, "$.policy.priority"),
        ({"name": "bob", "policy": {"rank": 1}}, "$.policy.rank"),
        ({"name": "bob", "policy": {"deadline_s": 0}}, "$.policy.deadline_s"),
        ({"name": "bob", "policy": {"result_ttl_s": 5}}, "$.policy.result_ttl_s"),
        ({"name": "bob", "policy": {"weight": 0}}, "$.policy.weight"),
        ({"name": "bob", "policy": {"weight": 101}}, "$.policy.weight"),
        ({"name": "bob", "policy": {"max_running": -1}}, "$.policy.max_running"),
        ([], "$"),
    ]
    for body, path in bad:
        answer = await auth.http.post("/clients", json=body, headers=admin)
        assert (answer.status_code, answer.json().get("path")) == (400, path), body
        assert answer.json()["code"] == "invalid_request"
    for raw in (b"", b"{", b"\xff", b'{"name": "\xff"}', b"[" * 60_000, b'{"name": "\\ud800"}'):
        answer = await auth.http.post("/clients", content=raw, headers=admin)
        assert answer.status_code == 400, raw[:20]
    assert (await auth.http.get("/clients/bob", headers=admin)).status_code == 404


async def test_a_key_needs_no_options_but_its_client(auth: Auth) -> None:
    admin = await auth.admin()
    await auth.create_client("alice")
    answer = await auth.http.post("/clients/nobody/keys", headers=admin)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await auth.http.post("/clients/alice/keys", json={"scope": "all"}, headers=admin)
    assert (answer.status_code, answer.json()["path"]) == (400, "$.scope")
    answer = await auth.http.post("/clients/alice/keys", json={}, headers=admin)
    assert answer.status_code == 201
    made = answer.json()
    assert made["client_id"] == "alice"
    assert (made["scopes"], made["models"], made["limits"], made["expires_at"]) == (None, None, None, None)


async def test_administration_needs_a_fresh_token_with_its_scope(auth: Auth, bus: Bus) -> None:
    """RFC 6750 §3: the challenge says what was missing."""
    secret = await auth.create_client("alice")
    token = await auth.access_token("alice", secret)
    key = await auth.create_key("alice")
    plain = await auth.access_token(OPERATOR, OPERATOR_SECRET)  # has the scope, did not ask for it
    cases = [
        ({}, 401, 'Bearer realm="arriero"'),
        ({"Authorization": "Basic YTpi"}, 401, 'Bearer realm="arriero"'),
        ({"Authorization": "Bearer nonsense"}, 401, 'Bearer realm="arriero", error="invalid_token"'),
        ({"Authorization": f"Bearer {key}"}, 401, 'Bearer realm="arriero", error="invalid_token"'),
        ({"Authorization": f"Bearer {token[:-4]}AAAA"}, 401, 'Bearer realm="arriero", error="invalid_token"'),
        *(
            (
                {"Authorization": f"Bearer {t}"},
                403,
                'Bearer realm="arriero", error="insufficient_scope", scope="admin:clients"',
            )
            for t in (token, plain)
        ),
    ]
    for headers, status, challenge in cases:
        for method, path in (
            ("POST", "/clients"),
            ("GET", "/clients"),
            ("GET", "/clients/x"),
            ("POST", "/clients/x/keys"),
        ):
            answer = await auth.http.request(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (status, challenge), (
                method,
                path,
                headers,
            )
            assert answer.headers["content-type"] == "application/problem+json"

    admin = await auth.admin()
    assert (await auth.http.get("/clients", headers=admin)).status_code == 200
    record = Bucket(bus, "clients")
    value, _ = await record.get(f"client.{OPERATOR}")
    assert value is not None
    for change in ({"disabled": True}, {"not_before": int(time.time()) + 60}, {"scopes": DEFAULT_SCOPES}):
        await record.put(f"client.{OPERATOR}", encode(msgspec.structs.replace(decode_client(value), **change)))

        async def refused() -> bool:
            return (await auth.http.get("/clients", headers=admin)).status_code in (401, 403)

        await eventually(refused)
        await record.put(f"client.{OPERATOR}", value)

        async def accepted() -> bool:
            return (await auth.http.get("/clients", headers=admin)).status_code == 200

        await eventually(accepted)


async def test_a_foreign_or_typeless_token_does_not_administrate(auth: Auth) -> None:
    now = int(time.time())
    claims = {
        "iss": auth.issuer, "aud": AUDIENCE, "sub": OPERATOR, "client_id": OPERATOR, "scope": "admin:clients",
        "jti": "x", "iat": now, "exp": now + 60,
    }  # fmt: skip
    kid = (await auth.http.get("/.well-known/jwks.json")).json()["keys"][0]["kid"]
    forged = jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": kid}, claims, ECKey.generate_key("P-256"))
    answer = await auth.http.get("/clients", headers={"Authorization": f"Bearer {forged}"})
    assert answer.status_code == 401


async def test_requests_that_are_too_large_are_cut_off(auth: Auth) -> None:
    admin = await auth.admin()

    async def endless() -> AsyncIterator[bytes]:  # chunked: there is no Content-Length to believe
        for _ in range(70):
            yield b" " * 1024

    answer = await auth.http.post("/clients", content=endless(), headers=admin)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = await auth.http.post(
        "/oauth/token", data={**GRANT, "scope": "x" * 70_000}, auth=(OPERATOR, OPERATOR_SECRET)
    )
    assert (answer.status_code, answer.json()["error"]) == (413, "invalid_request")
    assert answer.headers["cache-control"] == "no-store"


async def test_other_addresses_and_methods_are_named_as_such(auth: Auth) -> None:
    answer = await auth.http.get("/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await auth.http.get("/oauth/token")
    assert (answer.status_code, answer.json()["code"], answer.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_a_wrong_method_is_told_all_that_the_address_takes(auth: Auth) -> None:
    """Found by schemathesis: only the methods of the first of several routes were named (RFC 9110 §15.5.6)."""
    for path, methods in (
        ("/clients", "GET, HEAD, POST"),
        ("/clients/x", "DELETE, GET, HEAD, PATCH"),
        ("/audit", "GET, HEAD"),
    ):
        answer = await auth.http.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


async def test_replicas_that_start_at_once_use_one_key_and_take_each_others_tokens(nats: NatsServer, bus: Bus) -> None:
    async with (
        running_auth(nats, ready=False, issuer="http://auth.test") as one,
        running_auth(nats, ready=False, issuer="http://auth.test") as two,
        running_auth(nats, ready=False, issuer="http://auth.test") as three,
    ):
        replicas = (one, two, three)
        await asyncio.gather(*(replica.ready() for replica in replicas))
        tokens = [await replica.access_token(OPERATOR, OPERATOR_SECRET, "admin:clients") for replica in replicas]
        assert len({kid_of(token) for token in tokens}) == 1
        for replica in replicas:
            published = (await replica.http.get("/.well-known/jwks.json")).json()
            assert [key["kid"] for key in published["keys"]] == [kid_of(tokens[0])]
        stored = await bus.from_sequence("KV_signing", "$KV.signing.>")
        assert len(stored) == 1, "one replica wrote, the others read"

        admins = [{"Authorization": f"Bearer {tokens[n - 1]}"} for n in range(3)]  # each by another replica's token
        for n in range(5):
            answers = await asyncio.gather(
                *(
                    replica.http.post("/clients", json={"name": f"c{n}"}, headers=admin)
                    for replica, admin in zip(replicas, admins, strict=True)
                )
            )
            assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
            (secret,) = (answer.json()["client_secret"] for answer in answers if answer.status_code == 201)

            async def known_everywhere(n: int = n, secret: str = secret) -> bool:
                return all([(await replica.token(f"c{n}", secret)).status_code == 200 for replica in replicas])

            await eventually(known_everywhere)


async def test_a_restart_keeps_the_key_and_the_clients(nats: NatsServer) -> None:
    async with running_auth(nats) as first:
        secret = await first.create_client("alice")
        before = kid_of(await first.access_token("alice", secret))
    async with running_auth(nats) as second:
        assert kid_of(await second.access_token("alice", secret)) == before


async def test_under_another_cluster_secret_it_is_not_ready_and_says_why(nats: NatsServer) -> None:
    async with running_auth(nats):
        pass
    async with running_auth(nats, ready=False, cluster_secret="another-cluster-secret-0123456789-0123") as auth:
        await eventually(lambda: "another cluster secret" in auth.problems().get("signing", ""))
        answer = await auth.token(OPERATOR, OPERATOR_SECRET)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await auth.http.get("/.well-known/jwks.json")).status_code == 503


async def test_only_the_active_key_of_several_signs_and_all_are_published(auth: Auth, bus: Bus) -> None:
    """Trap 2: out of a set of keys joserfc takes a random one."""
    bucket = Bucket(bus, "signing")
    value, _ = await bucket.get(RECORD)
    assert value is not None
    (old,) = decode_ring(value).keys
    seal = Seal(CLUSTER_SECRET.encode(), "signing-keys")

    now = int(time.time())

    def another(state: Any) -> SigningKey:
        key = ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True)
        sealed = seal.close(msgspec.json.encode(key.as_dict(private=True)), of=str(key.kid))
        return SigningKey(
            kid=str(key.kid), state=state, public=dict(key.as_dict()), sealed=sealed, created_at="", since=now
        )

    active, following = another("active"), another("next")
    ring = Ring(keys=(following, msgspec.structs.replace(old, state="retiring", since=now), active))
    await bucket.put(RECORD, encode(ring))

    async def published() -> set[str]:
        return {key["kid"] for key in (await auth.http.get("/.well-known/jwks.json")).json()["keys"]}

    await eventually(lambda: _equals(published, {key.kid for key in ring.keys}))
    kids = {kid_of(await auth.access_token(OPERATOR, OPERATOR_SECRET)) for _ in range(100)}
    assert kids == {active.kid}


async def _equals(get: Any, wanted: Any) -> bool:
    return bool(await get() == wanted)


async def test_the_operators_secret_follows_its_setting(nats: NatsServer) -> None:
    replaced = "another-operator-secret-0123456789-0123"
    async with running_auth(nats):
        pass
    async with running_auth(nats, bootstrap_client_secret=replaced) as auth:
        assert (await auth.token(OPERATOR, OPERATOR_SECRET)).status_code == 401
        scopes = "admin:clients admin:cluster inference"
        assert set((await auth.token(OPERATOR, replaced, scopes)).json()["scope"].split()) == set(scopes.split())


async def test_no_secret_is_stored_or_logged(nats: NatsServer, bus: Bus, capfd: pytest.CaptureFixture[str]) -> None:
    async with running_auth(nats) as auth:
        secret = await auth.create_client("alice")
        token = await auth.access_token("alice", secret)
        admin = (await auth.admin())["Authorization"].split()[1]
        key = await auth.create_key("alice")
        await auth.token("alice", "a-wrong-secret-of-alice")
        await auth.token("a-secret-in-the-wrong-field", "x")
        await auth.http.get("/clients", headers={"Authorization": f"Bearer {key}"})
        published = (await auth.http.get("/metrics-are-elsewhere")).text
    stored = b""
    for stream in ("KV_clients", "KV_signing"):
        stored += b"".join(record.data for record in await bus.from_sequence(stream, ">"))
    out, err = capfd.readouterr()
    parsed = api_keys.parse(key)
    assert parsed
    everything = out + err + published + stored.decode()
    for canary in (
        secret, token, admin, key, parsed.secret, OPERATOR_SECRET, CLUSTER_SECRET,
        "a-wrong-secret-of-alice", "a-secret-in-the-wrong-field",
    ):  # fmt: skip
        assert canary not in everything
    assert "token.issued" in out, "the log was captured"
    assert "token.denied" in out


async def test_while_nats_is_away_nobody_is_let_in_and_readiness_says_so(nats: NatsServer) -> None:
    """A client may have been disabled meanwhile. Afterwards it heals by itself."""
    async with running_auth(nats) as auth:
        admin = await auth.admin()
        await nats.kill()
        answer = await auth.http.post("/clients", json={"name": "bob"}, headers=admin)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        await eventually(lambda: "clients" in auth.problems())
        answer = await auth.token(OPERATOR, OPERATOR_SECRET)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        assert (await auth.http.get("/clients", headers=admin)).status_code == 503
        assert (await auth.http.get("/.well-known/jwks.json")).status_code == 200, "old tokens can still be verified"
        await nats.start()
        await auth.ready()
        assert (await auth.token(OPERATOR, OPERATOR_SECRET)).status_code == 200


async def test_it_starts_before_the_buckets_exist_and_is_ready_once_they_do(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "empty", provision=False) as server, running_auth(server, ready=False) as auth:
        assert auth.problems()
        async with connected(server) as bus:
            await create_missing(bus)
        await auth.ready()
        assert (await auth.token(OPERATOR, OPERATOR_SECRET)).status_code == 200


def test_a_sealed_key_opens_under_its_own_id_and_secret_only() -> None:
    sealed = Seal(b"a" * 32, "signing-keys").close(b"private", of="one")
    assert Seal(b"a" * 32, "signing-keys").open(sealed, of="one") == b"private"
    assert Seal(b"a" * 32, "signing-keys").close(b"private", of="one") != sealed
    for secret, kid, text in ((b"b" * 32, "one", sealed), (b"a" * 32, "two", sealed), (b"a" * 32, "one", "A" + sealed)):
        with pytest.raises(CannotOpen):
            Seal(secret, "signing-keys").open(text, of=kid)
    with pytest.raises(CannotOpen):
        Seal(b"a" * 32, "signing-keys").open("", of="one")


async def test_an_unreadable_record_takes_its_client_out(auth: Auth, bus: Bus) -> None:
    secret = await auth.create_client("alice")
    other = await auth.create_client("bob")
    bucket = Bucket(bus, "clients")
    await bucket.put("client.alice", b"{")
    await bucket.put("client.bob", encode(Client(id="mallory", name="mallory")))

    async def both_gone() -> bool:
        answers = [await auth.token("alice", secret), await auth.token("bob", other)]
        return [answer.status_code for answer in answers] == [401, 401]

    await eventually(both_gone)
    answer: httpx.Response = await auth.token(OPERATOR, OPERATOR_SECRET)
    assert answer.status_code == 200
