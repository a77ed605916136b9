"""When an access token counts: traps 3, 4, 10 and 11 of security-and-clients.md §A1.3, and RFC 9068 §4 claim by claim."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from libs.common.credentials.tokens import LEEWAY_S, Claims, Rejected, UnknownKey, claimed_client, verify

ISSUER = "https://auth.example.org"
NOW = 1_900_000_000
KEY = ECKey.generate_key("P-256", auto_kid=True)
KID = str(KEY.kid)
KEYS = {KID: ECKey.import_key(KEY.as_dict(private=False))}
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": "arriero",
    "sub": "alice",
    "client_id": "alice",
    "scope": "inference jobs:read",
    "jti": "id-1",
    "iat": NOW,
    "exp": NOW + 300,
}
HEADER = {"alg": "ES256", "typ": "at+jwt", "kid": KID}


def token(header: dict[str, Any] | None = None, *, without: str = "", **claims: Any) -> str:
    said = {name: value for name, value in {**CLAIMS, **claims}.items() if name != without}
    return jws.serialize_compact(HEADER if header is None else header, json.dumps(said), KEY, algorithms=["ES256"])


def encoded(claims: bytes) -> str:
    return f"x.{base64.urlsafe_b64encode(claims).decode()}.x"


def check(text: str, now: float = NOW) -> Claims | UnknownKey | Rejected:
    return verify(text, KEYS, issuer=ISSUER, now=now)


def rejected(text: str, now: float = NOW) -> bool:
    found = check(text, now)
    assert not isinstance(found, Rejected) or len(text) < 10 or text not in found.reason
    return isinstance(found, Rejected)


def test_a_good_token_gives_its_claims() -> None:
    assert check(token()) == Claims(
        client="alice", scopes=frozenset({"inference", "jobs:read"}), jti="id-1", iat=NOW, exp=NOW + 300, kid=KID
    )
    assert isinstance(check(token(scope="")), Claims)
    assert isinstance(check(token(aud=["other", "arriero"])), Claims)


@given(
    st.one_of(st.text(), st.builds("x.{}.x".format, st.text()), st.builds(encoded, st.binary()), st.just("x." * 5000))
)
@example(f"x.{'W10' * 1000}.x")
def test_whom_a_token_names_is_read_from_whatever_comes(text: str) -> None:
    assert claimed_client(token()) == "alice"
    assert claimed_client(token(client_id=7)) == claimed_client(token(without="client_id")) == ""
    assert isinstance(claimed_client(text), str)


def test_clocks_may_be_half_a_minute_apart() -> None:
    """Trap 3: the library's validator has no leeway, so a token of a clock one second ahead would not count."""
    accepted = {skew: not rejected(token(), NOW + skew) for skew in (-40, -31, -30, -20, -1, 0, 20)}
    assert accepted == {-40: False, -31: False, -30: True, -20: True, -1: True, 0: True, 20: True}
    accepted = {late: not rejected(token(), NOW + 300 + late) for late in (-1, 0, 20, 29, 30, 40)}
    assert accepted == {-1: True, 0: True, 20: True, 29: True, 30: False, 40: False}
    assert LEEWAY_S == 30


@pytest.mark.parametrize("kind", [None, "JWT", "jwt", "application/at+jwt", "AT+JWT", "at+jwt ", ""])
def test_only_the_type_at_jwt_counts(kind: str | None) -> None:
    """Trap 4: the library takes tokens without a type, such as an ID token of the same issuer."""
    header = {name: value for name, value in {**HEADER, "typ": kind}.items() if value is not None}
    assert rejected(token(header))


def test_other_algorithms_do_not_count_even_when_their_signature_is_right() -> None:
    """Trap 10."""
    unsigned = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({**HEADER, "alg": "none"}, CLAIMS)
    )
    rsa, ed = RSAKey.generate_key(2048), OKPKey.generate_key("Ed25519")
    hs256_header = base64.urlsafe_b64encode(json.dumps({**HEADER, "alg": "HS256"}).encode()).rstrip(b"=").decode()
    body = unsigned.split(".")[1]
    mac = hmac.digest(KEY.as_pem(private=False), f"{hs256_header}.{body}".encode(), hashlib.sha256)
    confused = f"{hs256_header}.{body}." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
    for text in (
        f"{unsigned}.",
        confused,
        jwt.encode({**HEADER, "alg": "RS256"}, CLAIMS, rsa),
        jwt.encode({**HEADER, "alg": "Ed25519"}, CLAIMS, ed, algorithms=["Ed25519"]),
        jwt.encode({**HEADER, "alg": "HS384"}, CLAIMS, OctKey.generate_key(384), algorithms=["HS384"]),
        jwt.encode(HEADER, CLAIMS, ECKey.generate_key("P-256")),  # another key under our kid
    ):
        assert rejected(text)


@pytest.mark.parametrize("claim", list(CLAIMS))
def test_every_claim_is_needed(claim: str) -> None:
    """RFC 9068 §2.2."""
    assert rejected(token(without=claim))
    for value in (None, {"a": 1}, 7 if claim not in ("iat", "exp") else "7"):
        changed: dict[str, Any] = {claim: value}
        assert rejected(token(**changed))


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://auth.example.com"},
        {"iss": ISSUER + "/"},
        {"aud": "other"},
        {"aud": []},
        {"aud": ["other"]},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"iat": float("inf")},
        {"nbf": NOW + 100},
        {"client_id": ""},
        {"client_id": ["alice"]},
    ],
)
def test_claims_that_do_not_fit_are_refused(claims: dict[str, Any]) -> None:
    assert rejected(token(**claims))


def test_an_unknown_key_is_its_own_outcome_so_that_keys_can_be_fetched_once_more() -> None:
    assert check(token({**HEADER, "kid": "another"})) == UnknownKey("another")
    assert check(token({**HEADER, "kid": "../../etc/passwd"})) == UnknownKey("../../etc/passwd")
    assert rejected(token({name: value for name, value in HEADER.items() if name != "kid"}))
    assert verify(token(), {}, issuer=ISSUER, now=NOW) == UnknownKey(KID)
    # What could never count is no reason to fetch anything.
    for header in ({**HEADER, "kid": "another", "typ": "JWT"}, {**HEADER, "kid": "another", "alg": "HS256"}):
        encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
        assert rejected(f"{encoded}.e30.AAAA")


def test_critical_headers_that_nobody_knows_are_refused() -> None:
    """RFC 7515 §4.1.11."""
    header = base64.urlsafe_b64encode(json.dumps({**HEADER, "crit": ["exp"], "exp": 1}).encode()).rstrip(b"=").decode()
    _, body, signature = token().split(".")
    assert rejected(f"{header}.{body}.{signature}")


def test_oversized_tokens_are_refused() -> None:
    """Trap 11."""
    assert rejected(token(padding="x" * 4000))
    assert rejected(token({**HEADER, "cty": "x" * 600}))
    assert rejected("a" * 1000 + "." + "b" * 1000 + "." + "c" * 1000)


@given(st.text(alphabet="abcAB01._-=\u00e9\ud800", max_size=60))
def test_junk_is_rejected_and_never_raises(text: str) -> None:
    assert rejected(text)


@given(st.integers(0, 2), st.binary(max_size=120))
def test_junk_in_one_part_is_rejected_and_never_raises(part: int, raw: bytes) -> None:
    parts = token().split(".")
    parts[part] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    assert rejected(".".join(parts))


@example("alg")  # joserfc lets a header pass that is a string or a list with this word in it
@example(["alg"])
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda s: st.lists(s, max_size=3)))
def test_any_json_as_header_or_claims_never_raises(value: Any) -> None:
    header = base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    assert rejected(f"{header}.e30.AAAA")
    assert rejected(jws.serialize_compact(HEADER, json.dumps(value), KEY, algorithms=["ES256"]))


@given(st.integers(0, 500), st.integers(1, 63))
def test_a_token_with_one_changed_character_never_counts(at: int, step: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = GOOD
    at %= len(text)
    if text[at] == ".":
        return
    changed = text[:at] + alphabet[(alphabet.index(text[at]) + step) % 64] + text[at + 1 :]
    assert not isinstance(check(changed), Claims) or _decodes_alike(text, changed)


def _decodes_alike(one: str, other: str) -> bool:
    """The last character of a part has bits that base64 does not use: such a change changes nothing."""

    def raw(text: str) -> list[bytes]:
        return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split(".")]

    return raw(one)[2] == raw(other)[2] and one.split(".")[:2] == other.split(".")[:2]


GOOD = token()
