"""Tokens whose signature has been checked, so that each is checked once and not at every request."""

import hashlib
from collections import OrderedDict

from libs.common.credentials.tokens import Claims, PublicKeys

MAX_TOKENS = 10_000  # a client gets a new one every five minutes; each entry is about 1 kB


class VerifiedTokens:
    """By SHA-256 of the token, so that no usable token lies about in memory; the least recently used goes first."""

    def __init__(self, limit: int = MAX_TOKENS) -> None:
        self._limit = limit
        self._claims: OrderedDict[bytes, Claims] = OrderedDict()

    def __len__(self) -> int:
        return len(self._claims)

    def get(self, token: str, *, keys: PublicKeys, now: float) -> Claims | None:
        """None when unknown, expired, or signed by a key that has been withdrawn since."""
        digest = _digest(token)
        claims = self._claims.get(digest)
        if claims is None:
            return None
        if now >= claims.exp or claims.kid not in keys:
            del self._claims[digest]
            return None
        self._claims.move_to_end(digest)
        return claims

    def put(self, token: str, claims: Claims) -> None:
        self._claims[_digest(token)] = claims
        if len(self._claims) > self._limit:
            self._claims.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
