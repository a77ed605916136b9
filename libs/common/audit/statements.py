"""A checkpoint's statement, signed: a JWS by the key that signs access tokens, of a type of its own (RFC 8725 §3.11)."""

from collections.abc import Mapping
from typing import NamedTuple

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from libs.common.contracts.audit import Statement, decode_statement
from libs.common.contracts.codec import Malformed, encode

ALGORITHM = "ES256"
TYPE = "arriero-checkpoint"


class Opened(NamedTuple):
    """Without a `problem` and not `checked`: its key is not among those at hand."""

    statement: Statement | None
    kid: str
    checked: bool
    problem: str | None = None


def sign(statement: Statement, key: ECKey) -> str:
    protected = {"alg": ALGORITHM, "typ": TYPE, "kid": key.kid}
    return jws.serialize_compact(protected, encode(statement), key, algorithms=[ALGORITHM])


def open_statement(text: str, keys: Mapping[str, ECKey]) -> Opened:
    kid = ""
    try:
        found = jws.extract_compact(text.encode())
        header = found.headers()
        kid = str(header.get("kid", "")) if isinstance(header, dict) else ""
        if not kid or header.get("alg") != ALGORITHM or header.get("typ") != TYPE:
            return Opened(None, kid, False, "its statement is not one of a checkpoint")
        statement = decode_statement(found.payload or b"")
        if kid not in keys:
            return Opened(statement, kid, False)
        jws.deserialize_compact(text, keys[kid], algorithms=[ALGORITHM])
    except (JoseError, Malformed, ValueError, RecursionError):
        return Opened(None, kid, False, "its signature is wrong, or its statement unreadable")
    return Opened(statement, kid, True)
