"""Revocation (RFC 7009) and introspection (RFC 7662), over real replicas. Traps 5 and 6 of security-and-clients.md §A1.3."""

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.contracts.clients import AUDIENCE, DEFAULT_SCOPES
from libs.common.contracts.codec import encode
from libs.common.contracts.revocations import Revocation, decode_revocation, signing_key_record, token_record
from libs.common.credentials.tokens import LEEWAY_S
from tests.auth.running import OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

INACTIVE = {"active": False}


@pytest.fixture
async def auth(nats: NatsServer) -> AsyncIterator[Auth]:
    async with running_auth(nats) as running:
        yield running


def _claims(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


async def introspect(auth: Auth, token: str, client: str, secret: str, **more: str) -> Any:
    answer = await auth.http.post("/oauth/introspect", data={"token": token, **more}, auth=(client, secret))
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


async def revoke(auth: Auth, token: str, client: str, secret: str, **more: str) -> Any:
    return await auth.http.post("/oauth/revoke", data={"token": token, **more}, auth=(client, secret))


async def test_a_client_sees_its_own_token_and_an_administrator_everybodys(auth: Auth) -> None:
    alice, bob = await auth.create_client("alice"), await auth.create_client("bob")
    token = await auth.access_token("alice", alice, "inference jobs:read")
    claims = _claims(token)
    seen = await introspect(auth, token, "alice", alice, token_type_hint="refresh_token")
    assert seen == {
        "active": True,
        "client_id": "alice",
        "sub": "alice",
        "scope": "inference jobs:read",
        "aud": AUDIENCE,
        "iss": auth.issuer,
        "token_type": "Bearer",
        "exp": claims["exp"],
        "iat": claims["iat"],
        "jti": claims["jti"],
    }
    assert await introspect(auth, token, OPERATOR, OPERATOR_SECRET) == seen
    assert await introspect(auth, token, "bob", bob) == INACTIVE


async def test_what_does_not_count_looks_all_the_same(auth: Auth, bus: Bus) -> None:
    """Trap 6: Authlib's own answers `null` to junk."""
    alice = await auth.create_client("alice")
    good = await auth.access_token("alice", alice)
    now = int(time.time())
    kid = (await auth.http.get("/.well-known/jwks.json")).json()["keys"][0]["kid"]
    header = {"alg": "ES256", "typ": "at+jwt", "kid": kid}
    claims = _claims(good)
    forged = jwt.encode(header, claims, ECKey.generate_key("P-256"))
    foreign = jwt.encode(header | {"kid": "other"}, claims | {"iss": "https://elsewhere"}, ECKey.generate_key("P-256"))
    none = "eyJhbGciOiJub25lIn0.e30."
    made_up = ["x", "a.b.c", "null", "{}", "\U0001f600", "a" * 9000, none, "arr_x", "arr_" + "a" * 63]
    for junk in (*made_up, good[:-6] + "AAAAAA", forged, foreign):
        assert await introspect(auth, junk, OPERATOR, OPERATOR_SECRET) == INACTIVE, junk[:40]

    assert (await introspect(auth, good, "alice", alice))["active"]
    for change in ({"scopes": ["jobs:read"]}, {"scopes": list(DEFAULT_SCOPES)}):
        changed = await auth.http.patch("/clients/alice", json=change, headers=await auth.admin())
        assert changed.status_code == 200
        assert (await introspect(auth, good, "alice", alice))["scope"] == " ".join(change["scopes"])
    await auth.http.post("/clients/alice/disable", headers=await auth.admin())
    assert await introspect(auth, good, OPERATOR, OPERATOR_SECRET) == INACTIVE
    await auth.http.post("/clients/alice/enable", headers=await auth.admin())
    assert await introspect(auth, good, OPERATOR, OPERATOR_SECRET) == INACTIVE, "its tokens ended for good"
    fresh = await auth.access_token("alice", alice)
    assert (await introspect(auth, fresh, "alice", alice))["active"]

    await Bucket(bus, "revoked").put(signing_key_record(kid), encode(Revocation(at=now)))

    async def inactive() -> bool:
        answer = await auth.http.post("/oauth/introspect", data={"token": fresh}, auth=("alice", alice))
        return bool(answer.json() == INACTIVE)

    await eventually(inactive)


async def test_api_keys_are_introspected_too(auth: Auth) -> None:
    alice, bob = await auth.create_client("alice"), await auth.create_client("bob")
    asked = {"scopes": ["jobs:read"], "expires_at": int(time.time()) + 1000}
    made = await auth.http.post("/clients/alice/keys", json=asked, headers=await auth.admin())
    key = made.json()["api_key"]
    seen = await introspect(auth, key, "alice", alice)
    assert seen == {
        "active": True, "client_id": "alice", "sub": "alice", "aud": AUDIENCE, "scope": "jobs:read",
        "token_type": "api_key", "key_id": made.json()["key_id"], "exp": asked["expires_at"],
    }  # fmt: skip
    assert await introspect(auth, key, "bob", bob) == INACTIVE
    unlimited = await introspect(auth, await auth.create_key("alice"), OPERATOR, OPERATOR_SECRET)
    assert "exp" not in unlimited
    assert unlimited["scope"] == " ".join(DEFAULT_SCOPES)
    assert (await auth.http.delete(f"/keys/{made.json()['key_id']}", headers=await auth.admin())).status_code == 200
    assert await introspect(auth, key, "alice", alice) == INACTIVE


async def test_a_revoked_token_no_longer_counts_at_any_replica(nats: NatsServer, bus: Bus) -> None:
    """Trap 5: Authlib's own endpoint refuses JWTs."""
    async with (
        running_auth(nats, issuer="http://auth.test") as one,
        running_auth(nats, issuer="http://auth.test") as two,
    ):
        token = (await one.admin())["Authorization"].split()[1]
        other = await one.access_token(OPERATOR, OPERATOR_SECRET, "admin:clients")
        assert (await introspect(two, token, OPERATOR, OPERATOR_SECRET))["active"]
        answer = await revoke(one, token, OPERATOR, OPERATOR_SECRET, token_type_hint="access_token")
        assert (answer.status_code, answer.content) == (200, b"")
        assert await introspect(one, token, OPERATOR, OPERATOR_SECRET) == INACTIVE, "read your write"
        assert (await one.http.get("/clients", headers={"Authorization": f"Bearer {token}"})).status_code == 401

        async def refused_there() -> bool:
            answer = await two.http.get("/clients", headers={"Authorization": f"Bearer {token}"})
            return answer.status_code == 401

        await eventually(refused_there)
        assert await introspect(two, token, OPERATOR, OPERATOR_SECRET) == INACTIVE
        assert (await introspect(two, other, OPERATOR, OPERATOR_SECRET))["active"], "that token alone"
        assert (await revoke(two, token, OPERATOR, OPERATOR_SECRET)).status_code == 200, "once more does no harm"

        stored = await bus.last("KV_revoked", f"$KV.revoked.{token_record(_claims(token)['jti'])}")
        assert stored
        revocation = decode_revocation(stored.data)
        assert (revocation.client, revocation.reason) == (OPERATOR, "revoked by its client")
        ttl, left = int(stored.headers["Nats-TTL"]), _claims(token)["exp"] - stored.at_ms / 1000
        assert left + LEEWAY_S <= ttl <= 300 + 2 * LEEWAY_S


async def test_only_its_own_tokens_and_keys_does_a_client_revoke(auth: Auth, bus: Bus) -> None:
    alice, bob = await auth.create_client("alice"), await auth.create_client("bob")
    token, key = await auth.access_token("alice", alice), await auth.create_key("alice")
    for credential in (token, key):
        for client, secret in (("bob", bob), (OPERATOR, OPERATOR_SECRET)):
            answer = await revoke(auth, credential, client, secret)
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
        assert (await introspect(auth, credential, "alice", alice))["active"]
    for nothing in ("junk", "arr_junk", token[:-4] + "AAAA"):
        answer = await revoke(auth, nothing, "bob", bob)
        assert (answer.status_code, answer.content) == (200, b""), "RFC 7009 §2.2"
    assert await bus.from_sequence("KV_revoked", ">") == []
    for credential in (token, key):
        assert (await revoke(auth, credential, "alice", alice)).status_code == 200
        assert await introspect(auth, credential, "alice", alice) == INACTIVE
    assert (await auth.http.get("/clients/alice/keys", headers=await auth.admin())).json() == {"keys": []}


@pytest.mark.parametrize("path", ["/oauth/revoke", "/oauth/introspect"])
async def test_both_need_an_authenticated_client_and_a_token(auth: Auth, path: str) -> None:
    for credentials in (None, (OPERATOR, "wrong"), ("nobody", "x")):
        answer = await auth.http.post(path, data={"token": "x"}, auth=credentials)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
        assert answer.headers["www-authenticate"].startswith("Basic ")
    for data in ({}, {"token": ""}):
        answer = await auth.http.post(path, data=data, auth=(OPERATOR, OPERATOR_SECRET))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    answer = await auth.http.post(path, data={"token": "x" * 70_000}, auth=(OPERATOR, OPERATOR_SECRET))
    assert answer.status_code == 413
    answer = await auth.http.get(path, params={"token": "x"}, auth=(OPERATOR, OPERATOR_SECRET))
    assert answer.status_code == 405, "a token in a query ends up in logs"


async def test_metadata_list_both_endpoints(auth: Auth) -> None:
    body = (await auth.http.get("/.well-known/oauth-authorization-server")).json()
    assert body["revocation_endpoint"] == auth.issuer + "/oauth/revoke"
    assert body["introspection_endpoint"] == auth.issuer + "/oauth/introspect"
    for endpoint in ("token", "revocation", "introspection"):
        assert body[f"{endpoint}_endpoint_auth_methods_supported"] == [
            "client_secret_basic", "client_secret_post", "private_key_jwt",
        ]  # fmt: skip
        assert body[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] == ["ES256", "RS256"]


async def test_while_nats_is_away_nothing_is_said_to_be_revoked(nats: NatsServer) -> None:
    async with running_auth(nats) as auth:
        token = await auth.access_token(OPERATOR, OPERATOR_SECRET)
        await nats.kill()
        answer = await revoke(auth, token, OPERATOR, OPERATOR_SECRET)
        assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (
            503, "temporarily_unavailable", "1",
        )  # fmt: skip
        await eventually(lambda: "revocations" in auth.problems())
        answer = await auth.http.post("/oauth/introspect", data={"token": token}, auth=(OPERATOR, OPERATOR_SECRET))
        assert answer.status_code == 503, "it may have been revoked meanwhile"
        await nats.start()
        await auth.ready()
        assert (await introspect(auth, token, OPERATOR, OPERATOR_SECRET))["active"]
