"""private_key_jwt (RFC 7523, OIDC Core §9): which assertions prove something, and that each does so once."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from libs.common.bus.buckets import Bucket
from libs.common.bus.connection import Bus
from libs.common.bus.failures import Away, Unconfirmed
from services.auth import assertions
from services.auth.assertions import TYPE, Used, check, claimed_subject
from services.auth.once import Once
from tests.auth.running import OPERATOR, OPERATOR_SECRET, Auth, running_auth
from tests.support.nats_server import NatsServer
from tests.support.waiting import eventually

EC = ECKey.generate_key("P-256", {"kid": "ec"})
OTHER_EC = ECKey.generate_key("P-256", {"kid": "other"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
KEYS = [{**key.as_dict(private=False)} for key in (EC, RSA)]
ISSUER, TOKEN_ENDPOINT = "http://auth.test", "http://auth.test/oauth/token"
AUDIENCES = (ISSUER, TOKEN_ENDPOINT)
NOW = 1_800_000_000


def claims(**changed: Any) -> dict[str, Any]:
    made = {"iss": "alice", "sub": "alice", "aud": ISSUER, "jti": "1", "iat": NOW, "exp": NOW + 60, **changed}
    return {name: value for name, value in made.items() if value is not ...}


def signed(key: Any = EC, header: dict[str, Any] | None = None, **changed: Any) -> str:
    alg = "RS256" if isinstance(key, RSAKey) else "ES256"
    return jwt.encode({"alg": alg, "kid": key.kid} | (header or {}), claims(**changed), key)


def judged(assertion: str, keys: Any = KEYS, client: str = "alice") -> Used | None:
    return check(assertion, client, keys, AUDIENCES, float(NOW))


def test_what_a_client_signed_with_its_key_proves_it() -> None:
    for key in (EC, RSA):
        assert judged(signed(key))
    for aud in (ISSUER, TOKEN_ENDPOINT, [ISSUER], [TOKEN_ENDPOINT]):
        assert judged(signed(aud=aud))
    for times in (
        {"iat": ...},
        {"iat": NOW + 25},
        {"exp": NOW - 25},
        {"exp": NOW + 325},
        {"nbf": NOW + 25},
        {"nbf": NOW - 5},
    ):
        assert judged(signed(**times)), times
    assert judged(jwt.encode({"alg": "ES256"}, claims(), EC)), "its only key of that type needs no name"
    assert judged(jwt.encode({"alg": "ES256", "typ": "JWT"}, claims(), EC))


WRONG: dict[str, Callable[[], str]] = {
    "another issuer": lambda: signed(iss="bob"),
    "another subject": lambda: signed(sub="bob"),
    "no issuer": lambda: signed(iss=...),
    "no subject": lambda: signed(sub=...),
    "another audience": lambda: signed(aud="https://elsewhere"),
    "us and another audience": lambda: signed(aud=[ISSUER, "https://elsewhere"]),
    "an empty audience": lambda: signed(aud=[]),
    "no audience": lambda: signed(aud=...),
    "a longer issuer": lambda: signed(aud=ISSUER + "/"),
    "no jti": lambda: signed(jti=...),
    "an empty jti": lambda: signed(jti=""),
    "a jti of another type": lambda: signed(jti=7),
    "a very long jti": lambda: signed(jti="x" * 300),
    "no expiry": lambda: signed(exp=...),
    "expired": lambda: signed(exp=NOW - 31),
    "an expiry too far away": lambda: signed(exp=NOW + 331),
    "an expiry that is no number": lambda: signed(exp="soon"),
    "an expiry that is not a number": lambda: signed(exp=float("nan")),
    "an endless expiry": lambda: signed(exp=float("inf")),
    "issued in the future": lambda: signed(iat=NOW + 31),
    "not valid yet": lambda: signed(nbf=NOW + 31),
    "somebody else's key": lambda: signed(OTHER_EC, {"kid": "ec"}),
    "a key that is not registered": lambda: signed(OTHER_EC),
    "a kid of another type": lambda: signed(EC, {"kid": "rsa"}),
    "alg none": lambda: "eyJhbGciOiJub25lIn0." + signed().split(".")[1] + ".",
    "HS256 with the public key": lambda: _with_public_key_as_secret(),
    "a changed payload": lambda: _changed_payload(),
    "two parts": lambda: signed().rpartition(".")[0],
    "nothing": lambda: "",
    "too long": lambda: signed(note="x" * 9000),
    "a header that is no object": lambda: base64.urlsafe_b64encode(b'"alg"').decode().rstrip("=") + ".e30.AA",
    "a payload that is no object": lambda: _raw_payload(b"[1]"),
    "a payload that is no JSON": lambda: _raw_payload(b"\xff{"),
}


def _with_public_key_as_secret() -> str:
    secret = OctKey.import_key(json.dumps(EC.as_dict(private=False)))
    return jwt.encode({"alg": "HS256", "kid": "ec"}, claims(), secret)


def _changed_payload() -> str:
    header, _, signature = signed().split(".")
    payload = base64.urlsafe_b64encode(json.dumps(claims(jti="2")).encode()).decode().rstrip("=")
    return f"{header}.{payload}.{signature}"


def _raw_payload(payload: bytes) -> str:
    return jws.serialize_compact({"alg": "ES256", "kid": "ec"}, payload, EC)


@pytest.mark.parametrize("name", WRONG)
def test_anything_else_proves_nothing(name: str) -> None:
    assert judged(WRONG[name]()) is None


def test_nobodys_assertion_proves_nothing_whatever_it_is_signed_with() -> None:
    assert judged(signed(), keys=[]) is None
    assert judged(signed(RSA), keys=[]) is None
    assert judged(signed(sub="bob", iss="bob")) is None
    two = [{**key.as_dict(private=False)} for key in (EC, OTHER_EC)]
    assert judged(jwt.encode({"alg": "ES256"}, claims(), EC), keys=two) is None, "it has to say which"


@given(st.text())
def test_text_of_any_kind_is_no_assertion(text: str) -> None:
    for candidate in (text, f"{text}.{text}.{text}"):
        assert judged(candidate) is None
        assert claimed_subject(candidate) == ""


def test_an_assertion_is_remembered_for_as_long_as_it_could_be_shown() -> None:
    first, same, other = judged(signed()), judged(signed(aud=TOKEN_ENDPOINT)), judged(signed(jti="2"))
    assert first
    assert same
    assert other
    assert first.digest == same.digest != other.digest
    bob = check(signed(iss="bob", sub="bob"), "bob", KEYS, AUDIENCES, float(NOW))
    assert bob
    assert bob.digest != first.digest, "ids are each client's own"
    assert 60 + 30 <= first.ttl_s <= 60 + 62


def test_known_and_unknown_clients_cost_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 8, for assertions: one key is read and one signature verified, of the same type, whoever asks."""
    worked: list[str] = []
    original, importing = assertions.jwt.decode, assertions.import_key

    def import_key(key: dict[str, Any]) -> Any:
        worked.append(f"import {key['kty']}")
        return importing(key)

    def decode(value: str, key: Any, algorithms: list[str]) -> Any:
        worked.append(f"{key.key_type} {algorithms}")
        return original(value, key, algorithms=algorithms)

    monkeypatch.setattr(assertions.jwt, "decode", decode)
    monkeypatch.setattr(assertions, "import_key", import_key)
    for key in (EC, RSA):
        work = []
        good, bad, unnamed = signed(key, jti="9"), signed(key, iss="x"), signed(key, {"kid": "?"})
        for keys, assertion in ((KEYS, good), (KEYS, bad), ([], good), (KEYS, unnamed)):
            judged(assertion, keys=keys)
            work.append(tuple(worked))
            worked.clear()
        assert len(set(work)) == 1
        assert len(work[0]) == 2


# -- the service -----------------------------------------------------------------------------------------------------


def asserted(key: Any = EC, **changed: Any) -> dict[str, str]:
    now = int(time.time())
    made = {"iss": "alice", "sub": "alice", "aud": ISSUER, "jti": "j", "iat": now, "exp": now + 60, **changed}
    alg = "RS256" if isinstance(key, RSAKey) else "ES256"
    assertion = jwt.encode({"alg": alg, "kid": key.kid}, made, key)
    return {"grant_type": "client_credentials", "client_assertion_type": TYPE, "client_assertion": assertion}


async def register(auth: Auth, name: str = "alice", keys: Any = KEYS) -> None:
    body = {"name": name, "jwks": {"keys": list(keys)}}
    answer = await auth.http.post("/clients", json=body, headers=await auth.admin())
    assert answer.status_code == 201, answer.text


@pytest.fixture
async def auth(nats: NatsServer) -> AsyncIterator[Auth]:
    async with running_auth(nats, issuer=ISSUER) as running:
        await register(running)
        yield running


async def post(service: Auth, form: dict[str, str], path: str = "/oauth/token", **more: Any) -> httpx.Response:
    return await service.http.post(path, data=form, **more)


async def test_it_gets_a_token_once_and_at_every_endpoint(auth: Auth) -> None:
    answer = await post(auth, asserted(RSA, jti="1") | {"client_id": "alice"})
    assert answer.status_code == 200
    token = answer.json()["access_token"]
    published = (await auth.http.get("/.well-known/jwks.json")).json()
    assert jwt.decode(token, KeySet.import_key_set(published), algorithms=["ES256"]).claims["sub"] == "alice"
    seen = await post(auth, asserted(jti="2") | {"token": token}, "/oauth/introspect")
    assert seen.json()["active"]
    assert (await post(auth, asserted(jti="3") | {"token": token}, "/oauth/revoke")).status_code == 200
    seen = await post(auth, asserted(jti="4") | {"token": token}, "/oauth/introspect")
    assert seen.json() == {"active": False}


async def test_shown_again_it_is_refused_everywhere_and_does_nothing(nats: NatsServer, bus: Bus) -> None:
    async with running_auth(nats, issuer=ISSUER) as one, running_auth(nats, issuer=ISSUER) as two:
        await register(one)
        other = await one.create_client("bob")

        async def known_there() -> bool:
            return (await post(two, asserted(jti="at two"))).status_code == 200

        await eventually(known_there)
        form = asserted(jti="once")
        answers = await asyncio.gather(*(post((one, two)[n % 2], form) for n in range(10)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200] + [401] * 9
        refused = next(answer for answer in answers if answer.status_code == 401)
        wrong = await one.token("bob", other + "x")
        assert (refused.content, refused.headers["www-authenticate"]) == (
            wrong.content,
            wrong.headers["www-authenticate"],
        )
        token = next(answer for answer in answers if answer.status_code == 200).json()["access_token"]
        for path in ("/oauth/revoke", "/oauth/introspect"):
            assert (await post(two, form | {"token": token}, path)).status_code == 401
        active = await post(one, asserted(jti="fresh") | {"token": token}, "/oauth/introspect")
        assert active.json()["active"], "the replayed revocation did nothing"
        stored = await bus.from_sequence("KV_attempts", "$KV.attempts.used.*")
        assert len(stored) == 3
        assert all(85 <= int(record.headers["Nats-TTL"]) <= 125 for record in stored)


async def test_it_is_one_way_of_authentication_and_the_only_one_in_a_request(auth: Auth) -> None:
    good = asserted(jti="x1")
    for form, more in (
        (good | {"client_secret": "s"}, {}),
        (good, {"auth": (OPERATOR, OPERATOR_SECRET)}),
        ({**good, "client_assertion_type": "urn:something:else"}, {}),
        ({name: value for name, value in good.items() if name != "client_assertion_type"}, {}),
    ):
        answer = await post(auth, form, **more)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), form.keys()
    for form in (
        good | {"client_id": "bob"},
        {name: value for name, value in good.items() if name != "client_assertion"},
        {**good, "client_assertion": "x.y.z"},
        asserted(jti="x2", sub="nobody", iss="nobody"),
        asserted(jti="x3", aud="https://elsewhere"),
    ):
        answer = await post(auth, form)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), form
    assert (await post(auth, good)).status_code == 200, "none of that used it up"


async def test_a_disabled_client_and_a_removed_key_prove_nothing(auth: Auth) -> None:
    admin = await auth.admin()
    await auth.http.post("/clients/alice/disable", headers=admin)
    assert (await post(auth, asserted(jti="1"))).status_code == 401
    await auth.http.post("/clients/alice/enable", headers=admin)
    assert (await post(auth, asserted(jti="2"))).status_code == 200
    await auth.http.patch("/clients/alice", json={"jwks": {"keys": [KEYS[1]]}}, headers=admin)
    assert (await post(auth, asserted(jti="3"))).status_code == 401
    assert (await post(auth, asserted(RSA, jti="4"))).status_code == 200


async def test_when_it_cannot_be_seen_whether_it_is_new_nobody_gets_in(
    auth: Auth, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Bucket.put
    stores: list[Any] = [Away("no connection"), "stored, but the ack got lost", "not stored, and no ack"]

    async def put(self: Bucket, key: str, value: bytes, **more: Any) -> int:
        if not key.startswith("used.") or not stores:
            return await original(self, key, value, **more)
        trouble = stores.pop(0)
        if isinstance(trouble, Away):
            raise trouble
        if trouble.startswith("stored"):
            await original(self, key, value, **more)
        raise Unconfirmed(trouble)

    monkeypatch.setattr(Bucket, "put", put)
    for jti, status in (("1", 503), ("2", 200), ("3", 503), ("2", 401), ("3", 200), ("1", 200)):
        answer = await post(auth, asserted(jti=jti))
        assert answer.status_code == status, jti
        if status == 503:
            assert (answer.json()["error"], answer.headers["retry-after"]) == ("temporarily_unavailable", "1")
    assert await Once(bus).claim(Used("another", 5))
