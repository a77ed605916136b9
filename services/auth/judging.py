"""What a token or an API key is worth at this moment: the one judgement behind administration, introspection and revocation."""

from typing import NamedTuple

from libs.common.contracts.clients import Client
from libs.common.credentials import api_keys
from libs.common.credentials.directory import Directory
from libs.common.credentials.revocations import Revocations
from libs.common.credentials.standing import client_problem, key_problem, key_scopes
from libs.common.credentials.tokens import Claims, Rejected, UnknownKey, verify
from libs.common.credentials.verifiers import Verifiers
from services.auth.keyring import Keyring


class Token(NamedTuple):
    """An access token that counts. `scopes`: of those in it the ones that its client still has."""

    client: Client
    scopes: tuple[str, ...]
    claims: Claims


class Key(NamedTuple):
    """An API key that counts."""

    client: Client
    scopes: tuple[str, ...]
    id: str
    expires_at: int | None


class Worthless(NamedTuple):
    reason: str  # a sentence's end: "The access token …"


class Judge:
    def __init__(
        self, issuer: str, directory: Directory, keyring: Keyring, revocations: Revocations, verifiers: Verifiers
    ) -> None:
        self._issuer = issuer
        self._directory = directory
        self._keyring = keyring
        self._revocations = revocations
        self._verifiers = verifiers

    def token(self, text: str, now: float) -> Token | Worthless:
        claims = verify(text, self._keyring.public, issuer=self._issuer, now=now)
        if isinstance(claims, UnknownKey):
            return Worthless("was signed by a key that does not exist here")
        if isinstance(claims, Rejected):
            return Worthless(claims.reason)
        client = self._directory.clients.get(claims.client)
        if client is None or client_problem(client, now) is not None:
            return Worthless("belongs to a client that does not exist or is disabled")
        if (
            claims.iat < client.not_before
            or claims.jti in self._revocations.tokens
            or claims.kid in self._revocations.keys
        ):
            return Worthless("was revoked")
        return Token(client, tuple(scope for scope in client.scopes if scope in claims.scopes), claims)

    def key(self, text: str, now: float) -> Key | Worthless:
        parsed = api_keys.parse(text)
        if parsed is None:
            return Worthless("is no API key")
        key = self._directory.keys.get(parsed.id)
        if not self._verifiers.matches(parsed.secret, (key.verifier,) if key else ()) or key is None:
            return Worthless("does not exist")
        client = self._directory.clients.get(key.client)
        if client is None or key_problem(key, now) is not None or client_problem(client, now) is not None:
            return Worthless("is disabled, or its client is")
        return Key(client, key_scopes(key, client), key.id, key.expires_at)
