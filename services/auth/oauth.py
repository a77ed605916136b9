"""The token endpoint: Authlib's framework-neutral server, its surprising defaults overridden one by one.

Each override names the trap of security-and-clients.md §A1.3 that it closes and has a test in tests/auth/test_oauth_traps.py.
Everything here is synchronous and without I/O: what was asked in, an answer out. That an assertion counts only once takes a
write, which the caller makes before it sends the answer (`Answer.used`). Further grants are registered beside the one there.
"""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientCredentialsGrant,
    ClientMixin,
    InvalidClientError,
    InvalidRequestError,
    OAuth2Error,
    OAuth2Request,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from joserfc.jwk import KeySet

from libs.common.contracts.clients import AUDIENCE, ONLY_WHEN_ASKED, TOKEN_TTL_S, Client, Scope
from libs.common.credentials.directory import Directory
from libs.common.credentials.standing import client_problem, secrets_of
from libs.common.credentials.tokens import ALGORITHM
from libs.common.credentials.verifiers import Verifiers
from services.auth import assertions, presenting
from services.auth.changes import MAX_REPLACED
from services.auth.keyring import Keyring
from services.auth.presenting import ASSERTION, AUTH_METHODS, BASIC, POST, Asked, ClientRefused

GRANT = "client_credentials"
TOKEN_PATH = "/oauth/token"
VERIFIER_SLOTS = 1 + MAX_REPLACED

# Authlib writes whole tokens into its debug log.
logging.getLogger("authlib").setLevel(logging.INFO)


class Answer(NamedTuple):
    """`client` is the id of a client that exists, or empty: what a stranger typed there may be a secret. The answer holds
    only if `used` was never used before."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    client: str
    used: assertions.Used | None = None

    @property
    def error(self) -> str | None:
        return self.body.get("error")


Act = Callable[["TokenRequest"], tuple[int, dict[str, Any], list[tuple[str, str]]]]


class OAuth:
    def __init__(self, issuer: str, directory: Directory, keyring: Keyring, verifiers: Verifiers) -> None:
        self._directory = directory
        self._endpoint = _tls(issuer) + TOKEN_PATH
        self._server = TokenServer(issuer, directory, keyring, verifiers)

    def read(self, authorizations: list[str], content_type: str, body: bytes) -> "TokenRequest | Answer":
        """The request, nothing of it verified; or why it is none."""
        try:
            return TokenRequest(self._endpoint, presenting.read(authorizations, content_type, body))
        except OAuth2Error as error:
            return _refused(error)

    def answered(self, request: "TokenRequest", act: Act) -> Answer:
        """What `act` answers to the request, or why it is refused."""
        try:
            status, body, headers = act(request)
            answer = Answer(status, body, dict(headers), "")
        except OAuth2Error as error:
            answer = _refused(error)
        client = request.claimed if request.claimed in self._directory.clients else ""
        return answer._replace(client=client, used=request.used)

    def issue(self, request: "TokenRequest") -> Any:
        """RFC 6749 §4.4.2. The caller has seen to it that clients and keys are at hand. Raises OAuth2Error."""
        grant = request.fields.get("grant_type")
        if grant is None:
            raise InvalidRequestError(f"Parameter grant_type is missing: send grant_type={GRANT}.")
        if grant != GRANT:
            raise OAuth2Error(f"This server knows grant_type={GRANT} only.", error="unsupported_grant_type")
        return self._server.create_token_response(request)

    def authenticate(self, request: "TokenRequest", endpoint: str) -> Client:
        """Raises OAuth2Error."""
        client = self._server.authenticate_client(request, AUTH_METHODS, endpoint).record
        assert client is not None, "a client without a record has no secret that matches"
        return client


class TokenRequest(OAuth2Request):  # type: ignore[misc]  # authlib has no types
    """Trap 7: Authlib refuses an http URL with an exception that nobody catches, and behind a proxy every request is
    one. So the URL is the configured public one, as https: transport security is the edge's business."""

    def __init__(self, uri: str, asked: Asked) -> None:
        super().__init__("POST", uri)
        self.payload = BasicOAuth2Payload(asked.form)
        self.fields = asked.form
        self.presented = asked.presented
        self.claimed = asked.presented.client if asked.presented else ""  # whoever it says it is
        self.used: assertions.Used | None = None


class TokenServer(AuthorizationServer):  # type: ignore[misc]  # authlib has no types
    def __init__(self, issuer: str, directory: Directory, keyring: Keyring, verifiers: Verifiers) -> None:
        super().__init__(scopes_supported=[str(scope) for scope in Scope])
        self._directory = directory
        self._verifiers = verifiers
        self.register_grant(Grant)
        self.register_token_generator("default", AccessTokens(issuer, keyring))
        for method in (BASIC, POST):
            self.register_client_auth_method(method, _by_secret(method))
        # RFC 7523 §3: the token endpoint's address names us as well as the issuer does; its successor wants the issuer alone.
        self.register_client_auth_method(ASSERTION, _by_assertion((issuer, issuer + TOKEN_PATH)))

    def query_client(self, client_id: str) -> "OAuthClient":
        """Trap 8: never None. An unknown client is one whose secret never matches, with the same text and work."""
        return OAuthClient(self._directory.clients.get(client_id), self._verifiers)

    def authenticate_client(self, request: TokenRequest, methods: list[str], endpoint: str = "token") -> "OAuthClient":
        try:
            client: OAuthClient = super().authenticate_client(request, methods, endpoint)
        except InvalidClientError as error:
            raise ClientRefused() from error
        return client

    def create_oauth2_request(self, request: TokenRequest) -> TokenRequest:
        return request

    def handle_response(self, status: int, body: dict[str, Any], headers: list[tuple[str, str]]) -> Any:
        return status, body, headers

    def save_token(self, token: Any, request: Any) -> None:
        """Nothing: a signed token needs no record."""

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""


class Grant(ClientCredentialsGrant):  # type: ignore[misc]  # authlib has no types
    """RFC 6749 §4.4."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTH_METHODS


class OAuthClient(ClientMixin):  # type: ignore[misc]  # authlib has no types
    """A client's record as Authlib wants to see it; `record` None is a client that does not exist."""

    def __init__(self, record: Client | None, verifiers: Verifiers) -> None:
        self.record = record
        self._verifiers = verifiers

    def get_client_id(self) -> str:
        return self.record.id if self.record else ""

    @property
    def not_before(self) -> int:
        return self.record.not_before if self.record else 0

    def check_client_secret(self, secret: str) -> bool:
        """Always so many comparisons, whatever the client has: trap 8."""
        now = time.time()
        known = secrets_of(self.record, now) if self.record else ()
        matches = self._verifiers.matches(secret, (*known, *_NO_VERIFIERS)[:VERIFIER_SLOTS])
        return matches and client_problem(self.record, now) is None

    def check_assertion(self, presented: presenting.Presented, audiences: tuple[str, ...]) -> assertions.Used | None:
        now = time.time()
        keys = self.record.jwks if self.record is not None and client_problem(self.record, now) is None else ()
        return assertions.check(presented.secret, presented.client, keys, audiences, now)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in AUTH_METHODS

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == GRANT

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """Trap 9. None makes `invalid_scope`. Without the parameter (RFC 6749 §3.3) a client gets its scopes, but what
        changes credentials has to be asked for by name. Asked for one too many, it gets none."""
        has = self.record.scopes if self.record else ()
        asked = set((scope or "").split())
        if not asked <= set(has):
            return None
        granted = [s for s in has if (s in asked if asked else s not in ONLY_WHEN_ASKED)]
        return " ".join(granted) or None


class AccessTokens(JWTBearerTokenGenerator):  # type: ignore[misc]  # authlib has no types
    """RFC 9068 §2: `at+jwt`, signed by the active key alone (trap 2), for five minutes instead of ten days (trap 1)."""

    def __init__(self, issuer: str, keyring: Keyring) -> None:
        super().__init__(issuer, alg=ALGORITHM, expires_generator=lambda client, grant: TOKEN_TTL_S)
        self._keyring = keyring

    def get_jwks(self) -> KeySet:
        assert self._keyring.active is not None, "the route answers 503 before"
        return self._keyring.active

    def get_audiences(self, client: OAuthClient, user: Any, scope: str) -> str:
        return AUDIENCE

    def get_extra_claims(self, client: OAuthClient, grant_type: str, user: Any, scope: str) -> dict[str, Any]:
        """Right after all its tokens were ended a client gets one that counts: stamped a few seconds ahead."""
        return {"iat": max(int(time.time()), client.not_before)}

    def get_jti(self, client: OAuthClient, grant_type: str, user: Any, scope: str) -> str:
        return secrets.token_urlsafe(16)


def _refused(error: OAuth2Error) -> Answer:
    status, body, headers = error()
    return Answer(status, body, dict(headers), "")


def _tls(issuer: str) -> str:
    return "https://" + issuer.partition("://")[2]


def _by_secret(method: str) -> Any:
    def authenticate(query_client: Any, request: TokenRequest) -> OAuthClient | None:
        presented = request.presented
        if presented is None or presented.method != method:
            return None
        client: OAuthClient = query_client(presented.client)
        return client if client.check_client_secret(presented.secret) else None

    return authenticate


def _by_assertion(audiences: tuple[str, ...]) -> Any:
    def authenticate(query_client: Any, request: TokenRequest) -> OAuthClient | None:
        presented = request.presented
        if presented is None or presented.method != ASSERTION:
            return None
        client: OAuthClient = query_client(presented.client)
        request.used = client.check_assertion(presented, audiences)
        return client if request.used else None

    return authenticate


_NO_VERIFIERS = ("0" * 64,) * VERIFIER_SLOTS
