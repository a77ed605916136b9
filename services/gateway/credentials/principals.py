"""From a request's headers to who asks: the gateway's one way of knowing a caller."""

import asyncio
import time
from collections.abc import Callable

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Client, Principal, Scope
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.credentials.api_keys import ApiKeyText
from libs.common.credentials.directory import Directory
from libs.common.credentials.tokens import Claims, Rejected, UnknownKey, verify
from libs.common.credentials.verifiers import Verifiers
from libs.common.ops import Check
from services.gateway.credentials.extract import AccessToken, Headers, extract
from services.gateway.credentials.jwks import Jwks
from services.gateway.credentials.verified import VerifiedTokens

JWKS_PATH = "/.well-known/jwks.json"


class Credentials:
    """`run` must be running. Clients and keys are looked at anew in every call of `principal`, so what auth writes
    about them counts from the moment it arrives; only a token's signature is remembered.

    `issuer` is auth's public URL, as tokens name it; `jwks_url` where this gateway reaches the keys, if not there.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        issuer: str,
        jwks_url: str | None = None,
        cluster_secret: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer.rstrip("/")
        self._directory = Directory(bus)
        self._verifiers = Verifiers(cluster_secret)
        self._jwks = Jwks(jwks_url or self._issuer + JWKS_PATH)
        self._verified = VerifiedTokens()
        self._clock = clock

    async def run(self) -> None:
        """Follows clients and signing keys until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._directory.run(), name="credentials.directory")
            tasks.create_task(self._jwks.run(), name="credentials.jwks")

    def checks(self) -> dict[str, Check]:
        return {"clients": self._directory.check, "jwks": self._jwks.check}

    async def principal(self, headers: Headers) -> Principal:
        """Raises Failed: UNAUTHENTICATED; INVALID_REQUEST for two different credentials; UNAVAILABLE while nobody can
        be judged, because a revocation may have been missed or no signing key was ever loaded."""
        presented = extract(headers)
        self._require_fresh()
        if isinstance(presented, ApiKeyText):
            return self._by_key(presented)
        return self._by_token(await self._claims(presented))

    def named(self, name: str) -> Principal:
        """Of a client that NATS itself has authenticated: its subject names it. Raises Failed: UNAUTHENTICATED,
        UNAVAILABLE."""
        self._require_fresh()
        client = self._client(name)
        return Principal(client=client.id, scopes=frozenset(client.scopes), policy=client.policy, credential="nats")

    def _require_fresh(self) -> None:
        if (why := self._directory.check()) is not None:
            raise _unavailable(why)

    def _by_key(self, presented: ApiKeyText) -> Principal:
        key = self._directory.keys.get(presented.id)
        if not self._verifiers.matches(presented.secret, (key.verifier,) if key else ()) or key is None:
            raise _unauthenticated("This API key does not exist, or no longer. Ask for a new one.")
        if key.disabled:
            raise _unauthenticated("This API key is disabled. Ask for a new one.")
        if key.expires_at is not None and self._clock() >= key.expires_at:
            raise _unauthenticated("This API key has expired. Ask for a new one.")
        client = self._client(key.client)
        scopes = frozenset(client.scopes)
        if key.scopes is not None:
            scopes &= frozenset(key.scopes)
        return Principal(client=client.id, scopes=scopes, policy=client.policy, credential=f"key:{key.id}")

    def _by_token(self, claims: Claims) -> Principal:
        client = self._client(claims.client)
        if claims.iat < client.not_before:
            raise _unauthenticated("This access token was revoked. Get a new one.")
        scopes = claims.scopes & frozenset(client.scopes)
        return Principal(client=client.id, scopes=scopes, policy=client.policy, credential=f"token:{claims.jti}")

    def _client(self, name: str) -> Client:
        client = self._directory.clients.get(name)
        if client is None:
            raise _unauthenticated("The client of this credential no longer exists.")
        if client.disabled:
            raise _unauthenticated("The client of this credential is disabled.")
        return client

    async def _claims(self, token: AccessToken) -> Claims:
        now = self._clock()
        known = self._verified.get(token.text, keys=self._jwks.keys, now=now)
        if known is not None:
            return known
        found = self._verify(token, now)
        if isinstance(found, UnknownKey) and await self._jwks.look_for(found.kid):
            found = self._verify(token, self._clock())
        match found:
            case Claims():
                self._verified.put(token.text, found)
                return found
            case Rejected(reason=reason):
                raise _unauthenticated(f"The access token {reason}. Get a new one from POST /oauth/token.")
            case UnknownKey():
                if not self._jwks.loaded:
                    raise _unavailable(self._jwks.check() or "no signing keys")
                raise _unauthenticated("The access token was signed by a key that is not known. Get a new one.")

    def _verify(self, token: AccessToken, now: float) -> Claims | UnknownKey | Rejected:
        return verify(token.text, self._jwks.keys, issuer=self._issuer, now=now)


def require(principal: Principal, scope: Scope) -> None:
    """Raises Failed (FORBIDDEN)."""
    if scope not in principal.scopes:
        raise failed(
            Code.FORBIDDEN,
            f"This needs the scope {scope}; the credential has {' '.join(sorted(principal.scopes)) or 'none'}.",
        )


def _unauthenticated(message: str) -> Failed:
    return failed(Code.UNAUTHENTICATED, message)


def _unavailable(why: str) -> Failed:
    return failed(Code.UNAVAILABLE, f"Credentials cannot be checked at the moment: {why}. Try again.", retry_after_s=1)
