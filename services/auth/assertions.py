"""A client proves itself with a JWT that its private key signed: private_key_jwt (RFC 7523 §2.2, §3; OIDC Core §9).

joserfc and not Authlib's JWTBearerClientAssertion: that one asks for the `jti` in the middle of its synchronous work, and
takes more algorithms and longer lives than are wanted here. `check` is pure; that an assertion counts once only is the
caller's to see to (`Used`), because it takes a write that all replicas see. Of several audiences one could be another server
that shows the assertion here, so there is one.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from joserfc.jws import extract_compact

from libs.common.credentials.tokens import LEEWAY_S
from services.auth.public_keys import ALGORITHMS, PublicKey, import_key

TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MAX_LENGTH = 8192
MAX_LIFE_S = 300  # from now to its `exp`
MAX_JTI = 256

# What an unknown client's assertion is checked against, so that it costs as much as a known one's. Nobody has their other
# halves: one was thrown away, the other is a number that is no product of known primes.
_DUMMY_EC: dict[str, Any] = dict(ECKey.generate_key("P-256").as_dict(private=False))
_DUMMY_RSA: dict[str, Any] = {
    "kty": "RSA",
    "e": "AQAB",
    "n": "irlk1janoPgQHBUvOZQyT5ihFhD53AY0Rw83uI5f-2ezillTIp3kxXP55DANhJn9di015ET-UZpmjBEji2DrGOYLlrIRBkm_4WTy"
    "NIYGxIrhmL3Tyf_-1ktlZ1K_xhlQhUrXP0rp6T4o-t1SZW4E3Sn92jqYkoWWTjDkQbftxaBIANeDPGI5SCY1XeZ8s3E9EwKAgjC9"
    "b8z9IxO2qLLZAf5gzC9_heRTSQMWuOhqefKnNnrCYTcwxQ0z9SQlJ1ALSqhZEcTeyWS0JonSbv2w_bUOG3uGxEjRF1aFh7YC87c-"
    "uXWlUGI5fLPZo_GBlYUpaXp9T2a3PaYfzKy3nUoXzw",
}


class Used(NamedTuple):
    """An assertion that has been accepted: its name among all that ever were, and how long it could be shown again."""

    digest: str
    ttl_s: int


def claimed_subject(assertion: str) -> str:
    """Who it says it is about; empty when it says nothing. Nothing is verified."""
    if len(assertion) > MAX_LENGTH:
        return ""
    try:
        claims = msgspec.json.decode(extract_compact(assertion.encode()).payload)
        subject = claims.get("sub") if isinstance(claims, dict) else None
    except (JoseError, ValueError, msgspec.MsgspecError, RecursionError):
        return ""
    return subject if isinstance(subject, str) else ""


def check(
    assertion: str, client: str, keys: Sequence[dict[str, Any]], audiences: Collection[str], now: float
) -> Used | None:
    """None when it proves nothing. `keys` are the client's, empty when there is no such client; `now` in seconds since the
    epoch. Exactly one signature is verified whenever the header can be read."""
    if len(assertion) > MAX_LENGTH:
        return None
    try:
        header = extract_compact(assertion.encode()).headers()
        alg = header.get("alg") if isinstance(header, dict) else None
        kind = ALGORITHMS.get(alg) if isinstance(alg, str) else None
        if kind is None or alg is None:
            return None
        claims = jwt.decode(assertion, _key(kind, header.get("kid"), keys), algorithms=[alg]).claims
        if not keys:
            return None
        _registry(client, audiences, now).validate(claims)
    except (JoseError, ValueError, RecursionError):
        return None
    jti, exp, aud = claims["jti"], claims["exp"], claims["aud"]
    if not isinstance(jti, str) or len(jti) > MAX_JTI or (isinstance(aud, list) and len(aud) != 1):
        return None
    if exp > now + MAX_LIFE_S + LEEWAY_S:
        return None
    digest = hashlib.sha256(f"{client}\0{jti}".encode("utf-8", "surrogatepass")).hexdigest()
    # Accepted until LEEWAY_S after its end, by replicas whose clocks may differ by as much.
    return Used(digest, int(exp - now) + 2 * LEEWAY_S + 1)


def _key(kind: str, kid: object, keys: Sequence[dict[str, Any]]) -> PublicKey:
    """The client's key of that id; without an id its only one of that type. Else one that verifies nothing."""
    fitting = [key for key in keys if key["kty"] == kind]
    named = [key for key in fitting if key["kid"] == kid] if kid is not None else fitting
    # A dummy is imported each time, like a client's key: that takes longer than the rest.
    return import_key(named[0] if len(named) == 1 else _DUMMY_EC if kind == "EC" else _DUMMY_RSA)


def _registry(client: str, audiences: Collection[str], now: float) -> jwt.JWTClaimsRegistry:
    # RFC 7523 §3: iss and sub are the client, aud is us; exp and (OIDC Core §9) jti are required.
    return jwt.JWTClaimsRegistry(
        now=int(now),
        leeway=LEEWAY_S,
        iss={"essential": True, "value": client},
        sub={"essential": True, "value": client},
        aud={"essential": True, "values": list(audiences)},
        exp={"essential": True},
        jti={"essential": True},
    )
