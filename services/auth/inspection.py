"""Introspection (RFC 7662) and revocation (RFC 7009), as far as they are decisions: who may know or end what.

Not Authlib's endpoints: the one for JWTs refuses to revoke any, and the one for introspection answers `null` to junk
(security-and-clients.md §A1.3, traps 5 and 6).
"""

from typing import Any, NamedTuple

from libs.common.contracts.clients import AUDIENCE, Client, Scope
from libs.common.credentials import api_keys
from libs.common.credentials.tokens import LEEWAY_S
from services.auth.judging import Judge, Key, Token, Worthless

INACTIVE: dict[str, Any] = {"active": False}


class TokenEnd(NamedTuple):
    """To be written: this token no longer counts. `ttl_s`: it would not after that anyway."""

    client: str
    jti: str
    ttl_s: int


class KeyEnd(NamedTuple):
    id: str


class NotYours(NamedTuple):
    """It belongs to another client: RFC 7009 §2.1 refuses and says so, to whoever holds the token anyway."""


End = TokenEnd | KeyEnd | NotYours | None


class Inspection:
    def __init__(self, issuer: str, judge: Judge) -> None:
        self._issuer = issuer
        self._judge = judge

    def introspect(self, asker: Client, text: str, now: float) -> dict[str, Any]:
        """A client sees what is its own, an administrator of clients everything. Whatever does not count, is foreign or
        was never issued looks the same (RFC 7662 §2.2)."""
        found = self._found(text, now)
        if isinstance(found, Worthless):
            return INACTIVE
        if found.client.id != asker.id and Scope.ADMIN_CLIENTS not in asker.scopes:
            return INACTIVE
        common = {
            "active": True,
            "client_id": found.client.id,
            "sub": found.client.id,
            "scope": " ".join(found.scopes),
            "aud": AUDIENCE,
        }
        if isinstance(found, Key):
            expiry = {} if found.expires_at is None else {"exp": found.expires_at}
            return {**common, **expiry, "token_type": "api_key", "key_id": found.id}
        claims = found.claims
        return {
            **common,
            "token_type": "Bearer",
            "iss": self._issuer,
            "exp": claims.exp,
            "iat": claims.iat,
            "jti": claims.jti,
        }

    def revoke(self, asker: Client, text: str, now: float) -> End:
        """None: there is nothing to end, which is fine (RFC 7009 §2.2)."""
        found = self._found(text, now)
        if isinstance(found, Worthless):
            return None
        if found.client.id != asker.id:
            return NotYours()
        if isinstance(found, Key):
            return KeyEnd(found.id)
        # A gateway whose clock is behind takes it until LEEWAY_S after its end.
        return TokenEnd(asker.id, found.claims.jti, int(found.claims.exp - now) + 2 * LEEWAY_S)

    def _found(self, text: str, now: float) -> Token | Key | Worthless:
        return self._judge.key(text, now) if text.startswith(api_keys.PREFIX) else self._judge.token(text, now)
