"""When an access token counts: RFC 9068 §4, as a pure function of the token, the known keys and the time.

Authlib's own validator is not used: it takes tokens without `typ` and knows no leeway (security-and-clients.md §A1.3).
"""

import binascii
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from joserfc.jws import extract_compact

from libs.common.contracts.clients import AUDIENCE, TOKEN_TTL_S

ALGORITHM = "ES256"
TYPE = "at+jwt"
LEEWAY_S = 30  # how far the clocks of auth and gateways may be apart
COUNTS_FOR_S = TOKEN_TTL_S + 2 * LEEWAY_S  # at most: from its issue until the slowest clock refuses it
MAX_LENGTH = 4096  # ours have about 450 characters

PublicKeys = Mapping[str, ECKey]


class Claims(NamedTuple):
    """`kid` is the key that signed it: when that key is withdrawn, the token no longer counts."""

    client: str
    scopes: frozenset[str]
    jti: str
    iat: int
    exp: int
    kid: str


class UnknownKey(NamedTuple):
    """Signed by a key that is not known here; it may have been published since. Nothing in the token was checked."""

    kid: str


class Rejected(NamedTuple):
    reason: str  # a sentence's end: "The access token …"


class _Claimed(msgspec.Struct):
    client_id: str = ""


_claimed = msgspec.json.Decoder(_Claimed)


def claimed_client(token: str) -> str:
    """Whose token it says it is; nobody has looked whether that is true. For counting failures, where an OAuth client that
    shows a new token every few minutes is the one that was there before. Empty when it does not say."""
    parts = token.split(".") if len(token) <= MAX_LENGTH else []
    if len(parts) != 3:
        return ""
    try:
        return _claimed.decode(urlsafe_b64decode(parts[1] + "==")).client_id
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return ""


def verify(token: str, keys: PublicKeys, *, issuer: str, now: float) -> Claims | UnknownKey | Rejected:
    """`now` in seconds since the epoch."""
    if len(token) > MAX_LENGTH:
        return Rejected("is too long")
    try:
        header = extract_compact(token.encode()).headers()
        if not isinstance(header, dict):  # joserfc takes any JSON that holds the word "alg", a string too
            return Rejected("is malformed")
        # RFC 8725 §3.1 and §3.11: one algorithm and one type, both checked before any key is looked at.
        if header.get("alg") != ALGORITHM:
            return Rejected(f"is not signed with {ALGORITHM}")
        if header.get("typ") != TYPE:
            return Rejected(f"is not of the type {TYPE}")
        kid = header.get("kid")
        if not isinstance(kid, str):
            return Rejected("does not name its key")
        if kid not in keys:
            return UnknownKey(kid)
        claims = jwt.decode(token, keys[kid], algorithms=[ALGORITHM]).claims
        _registry(issuer, now).validate(claims)
    except (JoseError, ValueError, RecursionError) as error:
        return Rejected(_REASONS.get(getattr(error, "error", ""), "is malformed"))
    client, scope = claims["client_id"], claims["scope"]
    if not isinstance(client, str) or not isinstance(scope, str):
        return Rejected("is malformed")
    return Claims(client, frozenset(scope.split()), claims["jti"], int(claims["iat"]), int(claims["exp"]), kid)


def _registry(issuer: str, now: float) -> jwt.JWTClaimsRegistry:
    # RFC 9068 §2.2: all of these are required; `scope` is in ours always.
    return jwt.JWTClaimsRegistry(
        now=int(now),
        leeway=LEEWAY_S,
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": AUDIENCE},
        sub={"essential": True},
        client_id={"essential": True},
        scope={"essential": True, "allow_blank": True},
        jti={"essential": True},
        iat={"essential": True},
        exp={"essential": True},
    )


_REASONS = {
    "expired_token": "has expired",
    "bad_signature": "has a wrong signature",
    "invalid_claim": "has a claim that does not fit: issuer, audience or times",
    "missing_claim": "lacks a claim",
}
