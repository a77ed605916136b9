"""From a request's headers to who asks: the gateway's one way of knowing a caller."""

import asyncio
import math
import time
from collections.abc import Callable

import msgspec

from libs.common.bus.connection import Bus
from libs.common.contracts.clients import Account, ApiKey, Client, Limits, ModelRule, Principal, Scope
from libs.common.contracts.faults import Code, Failed, failed
from libs.common.credentials.api_keys import ApiKeyText
from libs.common.credentials.directory import Directory
from libs.common.credentials.failure_log import FailureLog
from libs.common.credentials.revocations import Revocations
from libs.common.credentials.tokens import Claims, Rejected, UnknownKey, claimed_client, verify
from libs.common.credentials.verifiers import Verifiers
from libs.common.ops import Check
from services.gateway.credentials.changes import Changes
from services.gateway.credentials.extract import AccessToken, Headers, extract
from services.gateway.credentials.jwks import Jwks
from services.gateway.credentials.verified import VerifiedTokens

_NO_LIMITS = Limits()
_ALL_MODELS = ModelRule()

JWKS_PATH = "/.well-known/jwks.json"


class Credentials:
    """`run` must be running. Clients, keys and revocations are looked at anew in every call of `principal`, so what auth
    writes about them counts from the moment it arrives; only a token's signature is remembered. `changes` names whose
    credentials may have ended since.

    `issuer` is auth's public URL, as tokens name it; `jwks_url` where this gateway reaches the keys, if not there.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        issuer: str,
        jwks_url: str | None = None,
        cluster_secret: bytes,
        failures: FailureLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer.rstrip("/")
        self.changes = Changes()
        self._directory = Directory(bus, on_change=self.changes.note)
        self._revocations = Revocations(bus, on_change=self.changes.note)
        self._verifiers = Verifiers(cluster_secret)
        self._jwks = Jwks(jwks_url or self._issuer + JWKS_PATH)
        self._verified = VerifiedTokens()
        self._failures = failures
        self._clock = clock

    async def run(self) -> None:
        """Follows clients and signing keys until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._directory.run(), name="credentials.directory")
            tasks.create_task(self._revocations.run(), name="credentials.revocations")
            tasks.create_task(self._jwks.run(), name="credentials.jwks")
            if self._failures is not None:
                tasks.create_task(self._failures.run(), name="credentials.failures")

    def checks(self) -> dict[str, Check]:
        return {
            "clients": self._directory.check,
            "revocations": self._revocations.check,
            "jwks": self._jwks.check,
        }

    async def principal(self, headers: Headers, address: str = "") -> Principal:
        """`address`: where the request comes from; failures are counted on it. Raises Failed: UNAUTHENTICATED;
        INVALID_REQUEST for two different credentials; RATE_LIMITED after too many failures; UNAVAILABLE while nobody can be
        judged, because a revocation may have been missed or no signing key was ever loaded."""
        presented = extract(headers)
        self._require_fresh()
        if self._failures is None or not address:
            return await self._principal(presented)
        verdict = self._failures.ask(address, _name_of(presented))
        if (wait_s := verdict.blocked_s) > 0:
            raise _too_many_failures(wait_s)
        try:
            found = await self._principal(presented)
        except Failed as error:
            if error.fault.code is Code.UNAUTHENTICATED and (wait_s := verdict.failed()) > 0:
                raise _too_many_failures(wait_s) from None
            raise
        verdict.succeeded()
        return found

    async def _principal(self, presented: ApiKeyText | AccessToken) -> Principal:
        if isinstance(presented, ApiKeyText):
            return self._by_key(presented)
        return self._by_token(await self._claims(presented))

    def named(self, name: str) -> Principal:
        """Of a client that NATS itself has authenticated: its subject names it. Raises Failed: UNAUTHENTICATED,
        UNAVAILABLE."""
        self._require_fresh()
        client = self._client(name)
        return _principal(client, frozenset(client.scopes), "nats")

    def client(self, name: str) -> Client | None:
        """To be believed only while `fresh`. None: deleted, never seen, or its record cannot be read."""
        return self._directory.clients.get(name)

    def deleted(self, name: str) -> bool:
        """Did auth delete this client? To be believed only while `fresh`."""
        return name in self._directory.deleted

    @property
    def fresh(self) -> bool:
        """May what is known of clients and revocations be believed?"""
        return self._directory.fresh and self._revocations.fresh

    def lapsed(self, client: str, credential: str, at: float, *, kid: str = "") -> str | None:
        """Why what `credential` (as in Principal) was given to by `at`, seconds since the epoch, does not count any more;
        None while it does. A token or key that has merely expired has not lapsed: what it began may end.

        To be believed only while `fresh`.
        """
        owner = self._directory.clients.get(client)
        if owner is None:
            return "the client no longer exists"
        if owner.disabled:
            return "the client is disabled"
        kind, _, name = credential.partition(":")
        if kind == "key":
            key = self._directory.keys.get(name)
            return "the API key was revoked" if key is None or key.disabled else None
        if kind == "token" and (name in self._revocations.tokens or at < owner.not_before):
            return "the access token was revoked"
        if kid and kid in self._revocations.keys:
            return "the key that signed the access token was withdrawn"
        return None

    def has(self, principal: Principal, scope: Scope) -> bool:
        """Still? A scope may be taken away from client or key. To be believed only while `fresh`."""
        client = self._directory.clients.get(principal.client)
        kind, _, name = principal.credential.partition(":")
        key = self._directory.keys.get(name) if kind == "key" else None
        return client is not None and scope in principal.scopes & _scopes(client, key)

    def with_lapses(self) -> set[str]:
        """Clients of which something is disabled or revoked at the moment, and those that were deleted."""
        if self._revocations.keys:  # signed tokens for whomever
            return set(self._directory.clients) | self._directory.deleted
        found = {client.id for client in self._directory.clients.values() if client.disabled or client.not_before}
        found |= {key.client for key in self._directory.keys.values() if key.disabled}
        found |= self._directory.deleted
        return found | {token.client for token in self._revocations.tokens.values() if token.client}

    def _require_fresh(self) -> None:
        if (why := self._directory.check() or self._revocations.check()) is not None:
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
        return _principal(client, _scopes(client, key), f"key:{key.id}", key=key)

    def _by_token(self, claims: Claims) -> Principal:
        client = self._client(claims.client)
        credential = f"token:{claims.jti}"
        if why := self.lapsed(client.id, credential, claims.iat, kid=claims.kid):
            raise _unauthenticated(f"This access token does not count any more: {why}. Get a new one.")
        found = _principal(client, claims.scopes & frozenset(client.scopes), credential)
        return msgspec.structs.replace(found, issued_at=claims.iat, kid=claims.kid)

    def _client(self, name: str) -> Client:
        client = self._directory.clients.get(name)
        if client is None:
            raise _unauthenticated("The client of this credential no longer exists.")
        if client.disabled:
            raise _unauthenticated("The client of this credential is disabled.")
        if client.expires_at is not None and self._clock() >= client.expires_at:
            raise _unauthenticated("The client of this credential has expired.")
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


def _scopes(client: Client, key: ApiKey | None) -> frozenset[str]:
    own = frozenset(client.scopes)
    return own if key is None or key.scopes is None else own & frozenset(key.scopes)


def _principal(client: Client, scopes: frozenset[str], credential: str, *, key: ApiKey | None = None) -> Principal:
    policy = client.policy
    models = (policy.models, key.models if key and key.models else _ALL_MODELS)
    accounts = [Account(name=f"client.{client.id}", limits=policy.limits)]
    if key is not None and key.limits is not None:
        accounts.append(Account(name=f"key.{key.id}", limits=key.limits))
    return Principal(
        client=client.id,
        scopes=scopes,
        policy=policy,
        credential=credential,
        models=tuple(rule for rule in models if rule != _ALL_MODELS),
        accounts=tuple(account for account in accounts if account.limits != _NO_LIMITS),
    )


def _name_of(presented: ApiKeyText | AccessToken) -> str:
    """What failures are counted on beside the address, and what has proven itself: a key's id, a token's client."""
    return f"key:{presented.id}" if isinstance(presented, ApiKeyText) else claimed_client(presented.text)


def _too_many_failures(wait_s: float) -> Failed:
    message = "too many credentials from this address, or too many secrets of this key, were wrong; wait, and send the right one"
    return failed(Code.RATE_LIMITED, message, retry_after_s=math.ceil(wait_s))


def _unauthenticated(message: str) -> Failed:
    return failed(Code.UNAUTHENTICATED, message)


def _unavailable(why: str) -> Failed:
    return failed(Code.UNAVAILABLE, f"Credentials cannot be checked at the moment: {why}. Try again.", retry_after_s=1)
