"""Public keys that clients register to prove themselves with (RFC 7523): which are taken, and how they are stored."""

from base64 import urlsafe_b64decode
from typing import Any, cast

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from libs.common.contracts.faults import Code, Failed, failed

MAX_KEYS = 8
MIN_RSA_BITS = 2048

# Algorithm → type of key. All asymmetric: nothing that a client registers could be used as a secret (RFC 8725 §3.1).
ALGORITHMS: dict[str, str] = {"ES256": "EC", "RS256": "RSA"}

_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_PUBLIC = {"EC": ("crv", "x", "y"), "RSA": ("n", "e")}

PublicKey = ECKey | RSAKey


def import_key(key: dict[str, Any]) -> PublicKey:
    """Raises JoseError, ValueError."""
    return (ECKey if key["kty"] == "EC" else RSAKey).import_key(cast(Any, key))


def checked(keys: list[dict[str, Any]], path: str = "$.jwks.keys") -> tuple[dict[str, Any], ...]:
    """As they are stored: known members only, each with a `kid` (its RFC 7638 thumbprint if it has none). Raises Failed
    (INVALID_REQUEST) with the path of the member."""
    if len(keys) > MAX_KEYS:
        raise _invalid(f"A client has at most {MAX_KEYS} keys.", path)
    stored: list[dict[str, Any]] = []
    for n, key in enumerate(keys):
        stored.append(_checked(key, f"{path}[{n}]"))
        if stored[-1]["kid"] in [other["kid"] for other in stored[:-1]]:
            raise _invalid("Two keys have this kid.", f"{path}[{n}].kid")
    return tuple(stored)


def _checked(key: dict[str, Any], path: str) -> dict[str, Any]:
    if private := sorted(_PRIVATE & key.keys()):
        raise _invalid("This is a secret or private key: keep it, and give its public part.", f"{path}.{private[0]}")
    kind, alg = key.get("kty"), key.get("alg")
    if kind not in _PUBLIC:
        raise _invalid("A key is of kty EC (curve P-256) or RSA.", f"{path}.kty")
    if kind == "EC" and key.get("crv") != "P-256":
        raise _invalid("The curve is P-256.", f"{path}.crv")
    if alg is not None and (not isinstance(alg, str) or ALGORITHMS.get(alg) != kind):
        raise _invalid("The algorithm is ES256 (EC) or RS256 (RSA).", f"{path}.alg")
    if key.get("use", "sig") != "sig":
        raise _invalid("The key's use is sig.", f"{path}.use")
    kid = key.get("kid", "")
    if not isinstance(kid, str) or len(kid) > 200:
        raise _invalid("A kid is a text of at most 200 characters.", f"{path}.kid")
    public = {"kty": kind, **{name: key.get(name) for name in _PUBLIC[kind]}}
    for name, value in public.items():
        if not isinstance(value, str):
            raise _invalid("This member is missing.", f"{path}.{name}")
    try:
        if kind == "RSA" and _bits(public["n"]) < MIN_RSA_BITS:
            raise _invalid(f"An RSA key has at least {MIN_RSA_BITS} bits.", f"{path}.n")
        return {**public, "kid": kid or import_key(public).thumbprint()}
    except (JoseError, ValueError, TypeError, OverflowError) as error:
        raise _invalid("This is not a usable key.", path) from error


def _bits(number: str) -> int:
    return int.from_bytes(urlsafe_b64decode(number + "=" * (-len(number) % 4))).bit_length()


def _invalid(message: str, path: str) -> Failed:
    return failed(Code.INVALID_REQUEST, message, path=path)
